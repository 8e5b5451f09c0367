# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""From a configuration and a kind of device to a `plan.Plan`, without the devices."""

import contextlib
import math
import os
from collections.abc import Sequence
from concurrent import futures
from typing import Any

import jax

from medloc_jax import devices
from medloc_jax.model import config as model_config
from medloc_jax.planning import abstract, compiled, memory, plan, topology
from medloc_jax.training import state as states


def report(
    config: Any,
    device_kind: str,
    num_devices: int = 0,
    *,
    processes: int = 0,
    image_size: tuple[int, int] = (600, 450),
    prompt_tokens: int = 0,
) -> plan.Plan:
    """Compiles a job's programs for devices that need not be there, and says what they take.

    Args:
        config: a checked configuration; data set, tokenizer and weights are not read.
        device_kind: h800, h200, h100, v5p, v5e, v6e, cpu; or with the topology, "v5p:4x4x4".
        num_devices: of all processes; 0 = as the topology says.
        processes: hosts that share them evenly; 0 = as many as the hardware has.
        image_size: (width, height) of the picture in the prompt, px.
        prompt_tokens: length of the whole prompt, image tokens included; 0 = the template with a
            short question, about 100 tokens beside the image.

    Returns:
        The plan. A program that the compiler refuses for want of memory is in it as one that does
        not fit; nothing is raised for that.

    Raises:
        ValueError: one line that names the argument or config field and the cure.
    """
    found = topology.find(device_kind, num_devices, processes)
    mesh = abstract.make_mesh(config, found.devices)
    made = abstract.make(config, mesh, image_size=image_size, prompt_tokens=prompt_tokens)
    described = compile_tasks(made)
    device = devices.DEVICES.get(found.kind)
    return plan.Plan(
        method=config.method,
        preset=config.model.preset,
        device_kind=found.kind,
        topology=found.name,
        num_devices=len(found.devices),
        processes=found.processes,
        mesh=dict(mesh.shape),
        compiled_by=found.compiled_by,
        note=found.note,
        device_bytes=device.memory_bytes if device else 0,
        parameters=_parameters(made.placement, made.job.model.config),
        shape=made.shape,
        programs=described,
        memory=memory.parts(made),
    )


def compile_tasks(
    made: abstract.AbstractJob, names: Sequence[str] = ()
) -> tuple[plan.Program, ...]:
    """Compiles programs of a job, several at a time (XLA leaves Python's lock alone).

    Args:
        made: the job.
        names: which; () = all.
    """

    def one(name: str) -> plan.Program:
        program, args = made.tasks[name]
        return compiled.compile_program(
            name,
            program,
            args,
            made.job.mesh,
            runs_per_step=made.runs[name],
            unknown_trips=made.shape.completion_tokens,
        )

    names = list(names or made.tasks)
    pretended = made.job.mesh.devices.flat[0].platform == "cpu"
    cache = contextlib.nullcontext() if pretended else compiled.without_cache()
    with cache, futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return tuple(pool.map(one, names))


def _parameters(placement: states.Placement, sizes: model_config.ModelConfig) -> plan.Parameters:
    def count(tree: Any) -> int:
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))

    whole = states.merge(placement.trainable, placement.frozen)
    total, vision = count(whole), count(whole["visual"])
    return plan.Parameters(
        total=total,
        trainable=count(placement.trainable),
        frozen=count(placement.frozen),
        vision=vision,
        text=total - vision,
        embedding=sizes.text.vocab_size * sizes.text.hidden_size,
    )
