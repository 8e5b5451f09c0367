# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Plans made by hand: what a compiler might have said."""

from medloc_jax import config as configuration
from medloc_jax import devices
from medloc_jax.model import config as model_config
from medloc_jax.model import geometry
from medloc_jax.planning import plan


def paper_config(**changes):
    """A 3B run of the paper; `a__b=c` sets config field a.b."""
    config = configuration.paper_config("grpo")
    config.model.preset = "3b"
    for name, value in changes.items():
        section, field = name.split("__")
        config[section][field] = value
    return config


def program(name, *, temp=1e9, **more):
    """A program that compiled, unless `does_not_fit` says otherwise."""
    known = {"name": name, "runs_per_step": 1, "compile_seconds": 12.0}
    if "does_not_fit" not in more:
        known |= {"temp_bytes": int(temp), "argument_bytes": 10**9, "peak_bytes": 10**9 + int(temp)}
    return plan.Program(**(known | more))


def make(programs, *, kind="h800", mesh=(1, 4, 1), memory=(), **changes):
    """A plan of the 3B step of 8 prompts on those devices."""
    data, fsdp, tensor = mesh
    total = model_config.num_parameters(model_config.preset("3b"))
    vision = 668_000_000
    fields = {
        "method": "grpo",
        "preset": "3b",
        "device_kind": kind,
        "topology": "",
        "num_devices": data * fsdp * tensor,
        "processes": 1,
        "mesh": {"data": data, "fsdp": fsdp, "tensor": tensor},
        "compiled_by": plan.GPU_COMPILER,
        "note": "",
        "device_bytes": devices.DEVICES[kind].memory_bytes if kind != "cpu" else 0,
        "parameters": plan.Parameters(
            total=total,
            trainable=total - vision,
            frozen=vision,
            vision=vision,
            text=total - vision,
            embedding=151936 * 2048,
        ),
        "shape": plan.Shape(
            image_size=(600, 450),
            fed_size=(588, 448),
            num_patches=1344,
            num_image_tokens=336,
            prompt_tokens=410,
            bucket=geometry.Bucket(1536, 32, 512),
            prompts=8,
            micro_batch=8,
            group_size=8,
            completion_tokens=256,
        ),
        "programs": tuple(programs),
        "memory": tuple(memory),
    }
    return plan.Plan(**(fields | changes))


def part(name, gigabytes, *programs):
    """A part of the memory; of all programs where none is named."""
    return plan.Part(name, int(gigabytes * 1e9), True, "as it is", programs or ("*",), ())
