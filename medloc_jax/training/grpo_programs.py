# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The programs of a GRPO step and the shapes of their arguments: for training, and for a plan.

`medloc plan` compiles what training compiles because both ask here.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from medloc_jax import sharding
from medloc_jax.model import geometry
from medloc_jax.rewards import scores
from medloc_jax.rl import rollout
from medloc_jax.training import job as jobs
from medloc_jax.training import programs
from medloc_jax.training import state as states


class Programs(NamedTuple):
    """The programs of a step."""

    encode: programs.Program
    sample: programs.Program
    logprobs: programs.Program
    update: programs.Program


def make_programs(
    job: jobs.Job, grpo_step: Callable[..., Any], placement: states.Placement
) -> Programs:
    """Makes the step's programs; nothing is compiled yet.

    Args:
        job: what is trained.
        grpo_step: of `grpo.make_update`.
        placement: of the run's arrays.
    """
    mesh, model = job.mesh, job.model
    over_batch, everywhere = sharding.over_batch(mesh), sharding.replicated(mesh)
    rules = job.rules(group_size=job.config.rl.group_size, greedy=False)
    state_layout = states.shardings(states.TrainState(placement.trainable, placement.opt_state))
    return Programs(
        encode=programs.encode_program(model, mesh),
        sample=programs.sample_program(model, mesh, rules),
        logprobs=programs.logprobs_program(model, mesh),
        update=programs.Program(
            "grpo_step",
            grpo_step,
            out_shardings=(state_layout, everywhere, over_batch),
            donate=(0,),
        ),
    )


def compile_tasks(
    job: jobs.Job,
    made: Programs,
    state: states.TrainState,
    frozen: states.Params,
    reference: states.Params | None,
    bucket: geometry.Bucket,
) -> dict[str, tuple[programs.Program, tuple]]:
    """What a step runs for one bucket: program and arguments by name, in order.

    Args:
        job: whose model and sizes they are.
        made: the programs.
        state: arrays or structs, as `frozen` and `reference` may be.
        frozen: parameters that are not trained.
        reference: trainable parameters of the reference; None without one.
        bucket: the static shape.
    """
    rl, mesh, model = job.config.rl, job.mesh, job.model
    params = states.merge(state.trainable, frozen)
    one, number = np.float32(1), np.uint32(0)
    hyper = rollout.hyper(**dict.fromkeys(rollout.Hyper._fields, 1.0))
    inputs = programs.batch_struct(mesh, model.config, bucket, rl.prompts_per_step)
    features = programs.struct_of(model.encode_images, mesh, params, inputs)
    shape = (rl.prompts_per_step, rl.group_size, rl.max_completion_tokens)
    tokens, mask, floats = (
        programs.struct(mesh, shape, dtype) for dtype in (jnp.int32, jnp.bool_, jnp.float32)
    )
    taken = rollout.Rollout(
        tokens,
        mask,
        old_logprobs=floats if rl.num_updates > 1 else None,
        reference_logprobs=floats if reference is not None else None,
        sampler_logprobs=floats if rl.sample_ahead and rl.importance_cap > 0 else None,
    )
    scored = scores.names(of_regions=bool(job.config.rewards.semantic_scorer))
    raw = dict.fromkeys(scored, programs.struct(mesh, shape[:2], jnp.float32))
    tasks = {
        "encode_images": (made.encode, (params, inputs)),
        "sample_groups": (made.sample, (params, inputs, features, number, number, one)),
    }
    if reference is not None:
        # Programs of their own where the reference is stored in bfloat16.
        frozen_policy = states.merge(reference, frozen)
        if not job.config.model.freeze_vision:
            tasks["encode_reference"] = (made.encode, (frozen_policy, inputs))
        args = (frozen_policy, inputs, features, tokens, mask, one)
        tasks["reference_logprobs"] = (made.logprobs, args)
    if rl.num_updates > 1:
        tasks["old_logprobs"] = (made.logprobs, (params, inputs, features, tokens, mask, one))
    update_args = (state, frozen, inputs, features, taken, raw, hyper)
    return tasks | {"grpo_step": (made.update, update_args)}
