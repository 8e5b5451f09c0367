# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Supervised fine-tuning on answers alone: cross-entropy of the target text, the prompt unscored.

The group forward with one completion a prompt, so that SFT and GRPO train the same program's
log-probabilities. Departure from LLaMA-Factory's default: the mean is over the target tokens of the
whole batch, whatever the micro-batches.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from medloc_jax import sharding, watchdog
from medloc_jax.data import batching
from medloc_jax.model import geometry
from medloc_jax.training import diagnostics, micro_batches, optimizer, programs, session, speed
from medloc_jax.training import job as jobs
from medloc_jax.training import state as states


def train(job: jobs.Job, loader: batching.RowLoader) -> int:
    """Trains until `num_steps`, or until SIGTERM; returns the process's exit code.

    Args:
        job: what to train.
        loader: makes rows with target texts.
    """
    config, mesh = job.config, job.mesh
    chain = jobs.make_optimizer(config)
    run = session.open_session(job, chain, batch_size=config.sft.batch_size)
    if run.finished:
        run.writer.say(f"{job.workdir} is finished: {run.step} of {config.num_steps} steps")
        return run.close()
    update, evaluate = _programs(job, run, chain)
    batches = job.train_batches(loader, config.sft.batch_size, run.step)
    meter = speed.Meter(job.model.config, freeze_vision=config.model.freeze_vision)
    if run.begin(evaluate):
        return run.close()

    with run.progress() as bar:
        for step in range(run.step + 1, config.num_steps + 1):
            run.profile.begin(step)
            watchdog.mark("data", step)
            watch = programs.Stopwatch()
            batch = next(batches)
            watchdog.mark("update")
            learn = Targets(batch.completions, batch.completion_mask)  # type: ignore
            inputs, targets = sharding.shard_batch(mesh, (batch.inputs, learn))
            seconds = {"speed/data_seconds": watch.lap()}
            rate = np.float32(job.learning_rate(step - 1))
            run.state, returned = update(run.state, run.frozen, inputs, targets, rate)
            metrics = session.to_host(returned)
            seconds["speed/update_seconds"] = watch.lap()
            skipped = run.counters.get("optimizer/skipped_nonfinite", 0)
            skipped += int(metrics["optimizer/skipped_nonfinite"])
            run.counters["optimizer/skipped_nonfinite"] = skipped
            run.check_finite(step, returned, diagnostics.of_targets, batch, job)
            metrics |= {
                "optimizer/skipped_nonfinite": skipped,
                "optimizer/learning_rate": float(rate),
                **meter.sft(batch, config.sft.batch_size, seconds),
                "speed/save_seconds": run.save_seconds,
            }
            bar.update()
            if run.end_step(step, metrics, evaluate, batch.num_skipped):
                break
    return run.close()


class Targets(NamedTuple):
    """The texts to learn, one a prompt."""

    completions: Int[Array, "B 1 C"]
    completion_mask: Bool[Array, "B 1 C"]


class _Part(NamedTuple):
    inputs: geometry.ModelInputs
    targets: Targets


def make_update(job: jobs.Job, chain: Any) -> Any:
    """Returns sft_step: (state, frozen, inputs, targets, learning_rate) -> state, metrics."""
    model, config = job.model, job.config
    num_parts = micro_batches.num_parts(
        config.sft.batch_size, config.sft.micro_batch, "sft.micro_batch"
    )

    def sft_step(
        state: states.TrainState,
        frozen: states.Params,
        inputs: geometry.ModelInputs,
        targets: Targets,
        learning_rate: Float[Array, ""],
    ) -> tuple[states.TrainState, dict[str, Array]]:
        tokens = jnp.sum(targets.completion_mask).astype(jnp.float32)  # of the whole batch

        def loss(trainable: states.Params, part: _Part) -> tuple[Array, Array]:
            params = states.merge(trainable, frozen)
            features = model.encode_images(params, part.inputs)
            logprobs = model.group_logprobs(params, part.inputs, features, *part.targets, 1.0)
            share = -jnp.sum(logprobs) / tokens
            return share, share

        seen, grads = micro_batches.value_and_grad(
            loss, state.trainable, _Part(inputs, targets), num_parts
        )
        trainable, opt_state, grad_norm = optimizer.apply(
            chain, grads, state.opt_state, state.trainable, learning_rate, jnp.array(True)
        )
        metrics = {
            "sft/loss": jnp.sum(seen),
            "optimizer/grad_norm": grad_norm,
            "optimizer/skipped_nonfinite": 1 - jnp.isfinite(grad_norm).astype(jnp.float32),
            diagnostics.LEAF_NORMS: optimizer.leaf_norms(grads),
        }
        return states.TrainState(trainable, opt_state), metrics

    return sft_step


def make_program(job: jobs.Job, chain: Any, placement: states.Placement) -> programs.Program:
    """Makes the step's program; nothing is compiled yet."""
    layout = states.shardings(states.TrainState(placement.trainable, placement.opt_state))
    return programs.Program(
        "sft_step",
        make_update(job, chain),
        out_shardings=(layout, sharding.replicated(job.mesh)),
        donate=(0,),
    )


def compile_args(
    job: jobs.Job, state: states.TrainState, frozen: states.Params, bucket: geometry.Bucket
) -> tuple:
    """The step's arguments for one bucket; state and frozen parameters are arrays or structs."""
    mesh, rows = job.mesh, job.config.sft.batch_size
    shape = (rows, 1, job.config.rl.max_completion_tokens)
    targets = Targets(
        programs.struct(mesh, shape, jnp.int32), programs.struct(mesh, shape, jnp.bool_)
    )
    inputs = programs.batch_struct(mesh, job.model.config, bucket, rows)
    return state, frozen, inputs, targets, np.float32(1)


def _programs(job: jobs.Job, run: session.Session, chain: Any):
    """Makes and compiles the step's programs for every bucket."""
    update = make_program(job, chain, run.placement)
    evaluate = jobs.Evaluator(job, programs.encode_program(job.model, job.mesh))
    tasks = evaluate.tasks(run.params)
    steps = job.buckets if job.config.num_steps else ()
    tasks += [(update, compile_args(job, run.state, run.frozen, bucket)) for bucket in steps]
    run.writer.say(programs.compile_all(tasks, job.buckets))
    return update, evaluate
