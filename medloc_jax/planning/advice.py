# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Which knob to turn when a step does not fit, and by how much each would help.

Nothing is compiled again: the parts of the memory are computed anew for each change
(`planning.memory`), and what a part gains is taken off the programs that hold it. Parts that come
and go are by formula there, so that the answer is to be checked by another plan.
"""

import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jax.sharding import AxisType, Mesh

from medloc_jax import sharding
from medloc_jax.planning import abstract, memory
from medloc_jax.planning import plan as plans


@dataclasses.dataclass(frozen=True)
class Change:
    """Something to set differently.

    Attributes:
        knobs: config field -> value.
        price: what it costs.
        times: so many times the devices.
        alters: whether the run would learn something else.
    """

    knobs: Mapping[str, Any]
    price: str
    times: int = 1
    alters: bool = False

    def flags(self, plan: plans.Plan) -> str:
        """As they are given on the command line."""
        more = [f"--devices={plan.num_devices * self.times}"] if self.times > 1 else []
        more += [f"--config.{name}={value}" for name, value in self.knobs.items()]
        return " ".join(more)


@dataclasses.dataclass(frozen=True)
class Advice:
    """What a change would do.

    Attributes:
        flags: the change, ready to be given.
        saves: bytes less on each device at the fullest moment.
        peak_bytes: what is left then.
        fits: whether that is enough.
        price: what it costs.
    """

    flags: str
    saves: int
    peak_bytes: int
    fits: bool
    price: str


def advise(plan: plans.Plan, config: Any) -> tuple[Advice, ...]:
    """Changes that save memory at the fullest moment; nothing where the step fits.

    Args:
        plan: what was found.
        config: what it was found for.

    Returns:
        One change at a time, those that cost least first. Where none of them is enough on the
        same devices: those that leave the run's results alone, together, without the ones that are
        not needed for it; on more devices where they must be.
    """
    if plan.does_not_fit is None:
        return ()
    changes = list(_changes(plan, config))
    effects = [_effect(plan, config, change) for change in changes]
    tried = [(change, one) for change, one in zip(changes, effects, strict=True) if one]
    found = [one for _, one in tried if one.saves > 0]
    if any(one.fits for change, one in tried if change.times == 1):
        return tuple(found)
    # Also what saves nothing alone: once another part has shrunk, it may hold the fullest moment.
    mild = [c for c, one in tried if c.times == 1 and not c.alters and one.saves >= 0]
    for more in [1] if any(one.fits for one in found) else [1, 2, 4, 8]:
        together = _fewest(plan, config, mild, more)
        if together is not None:
            return *found, together
    return tuple(found)


def _fewest(plan: plans.Plan, config: Any, changes: list[Change], times: int) -> Advice | None:
    """As few of the changes as fit together; None where all are not enough."""

    def joined(chosen: list[Change]) -> Advice | None:
        split = {"mesh.tensor": plan.mesh["tensor"] * times} if times > 1 else {}
        knobs = {name: value for one in chosen for name, value in one.knobs.items()} | split
        return _effect(plan, config, Change(knobs, "together", times))

    kept = [one for one in changes if not any(name.startswith("mesh.") for name in one.knobs)]
    best = joined(kept)
    if best is None or not best.fits:
        return None
    for one in reversed(kept[:]):  # the dearest first
        fewer = [other for other in kept if other is not one]
        without = joined(fewer)
        if without is not None and without.fits:
            kept, best = fewer, without
    return best


def _effect(plan: plans.Plan, config: Any, change: Change) -> Advice | None:
    """What a change does; None where the batch or the hosts do not allow it."""
    changed = copy.deepcopy(config)
    for name, value in change.knobs.items():
        section, _, field = name.rpartition(".")
        changed[section][field] = value
    changed.model.attention = "auto"  # seats are no devices that kernels could be refused for
    # The configuration may leave an axis to the number of devices; the plan knows it.
    mesh = {axis: change.knobs.get(f"mesh.{axis}", size) for axis, size in plan.mesh.items()}
    if mesh["data"] * mesh["fsdp"] * mesh["tensor"] != plan.num_devices * change.times:
        return None
    sizes = tuple(mesh[axis] for axis in sharding.MESH_AXES)
    seats = np.array([_Seat(number) for number in range(math.prod(sizes))]).reshape(sizes)
    over = Mesh(seats, sharding.MESH_AXES, axis_types=(AxisType.Auto,) * len(sizes))
    shape = plan.shape
    try:
        made = abstract.make(
            changed, over, image_size=shape.image_size, prompt_tokens=shape.prompt_tokens
        )
    except ValueError:  # the batch does not split so
        return None
    before, after = _by_program(plan, plan.memory), _by_program(plan, memory.parts(made))
    peak = max(_held(plan, one) - before[one.name] + after[one.name] for one in plan.programs)
    was = max(_held(plan, one) for one in plan.programs)
    return Advice(change.flags(plan), was - peak, peak, peak <= plan.device_bytes, change.price)


@dataclasses.dataclass(frozen=True)
class _Seat:
    """Stands for a device in a mesh of which only the shapes of parts are asked."""

    id: int
    process_index: int = 0
    platform: str = "cpu"
    device_kind: str = "cpu"


def _held(plan: plans.Plan, program: plans.Program) -> int:
    """What a program needs, also one that the compiler refused."""
    if program.does_not_fit is None:
        return plan.held_bytes(program)
    beside = max(0, plan.resident_bytes - program.argument_bytes)
    return plan.device_bytes + program.does_not_fit + beside


def _by_program(plan: plans.Plan, parts: tuple[plans.Part, ...]) -> dict[str, int]:
    """Bytes of all parts that exist while a program runs."""
    return {
        program.name: sum(
            part.bytes for part in parts if "*" in part.programs or program.name in part.programs
        )
        for program in plan.programs
    }


def _changes(plan: plans.Plan, config: Any) -> Iterator[Change]:
    """What the configuration leaves room for, the cheapest first."""
    grpo, shape, model = plan.method == "grpo", plan.shape, config.model
    ways = plan.mesh["data"] * plan.mesh["fsdp"]
    if model.frozen_dtype == "float32":
        yield Change({"model.frozen_dtype": "bfloat16"}, "the reference is rounded")
    if model.compute_dtype == "float32":
        yield Change({"model.compute_dtype": "bfloat16"}, "activations have 8 bits of mantissa")
    if model.vocab_chunk > 256:
        yield Change({"model.vocab_chunk": 256}, "a little time")
    smaller = shape.micro_batch
    while smaller % 2 == 0 and smaller // 2 >= ways:
        smaller //= 2
        passes = shape.prompts // smaller
        name = "rl.micro_batch_prompts" if grpo else "sft.micro_batch"
        yield Change({name: smaller}, f"{passes} backward passes; gradients are kept between them")
    if model.remat != "layer":
        yield Change({"model.remat": "layer"}, "one forward pass more in each update")
    if plan.mesh["data"] > 1:
        whole = {"mesh.data": 1, "mesh.fsdp": ways}
        yield Change(whole, "weights cross the links in every pass")
    local, tensor = plan.num_devices // plan.processes, plan.mesh["tensor"]
    if plan.mesh["fsdp"] % 2 == 0 and local % (2 * tensor) == 0:
        split = {"mesh.fsdp": plan.mesh["fsdp"] // 2, "mesh.tensor": 2 * tensor}
        yield Change(split, "activations are summed over the links in every layer")
    if grpo and config.rl.gather_weights and plan.mesh["fsdp"] > 1:
        yield Change({"rl.gather_weights": False}, "weights cross the links for every token")
    if not model.freeze_vision:
        price = "the vision tower is not trained"
        yield Change({"model.freeze_vision": True}, price, alters=True)
    if shape.completion_tokens >= 64:
        half = {"rl.max_completion_tokens": shape.completion_tokens // 2}
        yield Change(half, "longer answers are cut", alters=True)
    if grpo and config.rl.kl_weight > 0:
        yield Change({"rl.kl_weight": 0.0}, "another objective: no KL term", alters=True)
    for times in (2, 4, 8):
        fsdp = {"mesh.fsdp": plan.mesh["fsdp"] * times}
        if shape.micro_batch % (ways * times) == 0:
            yield Change(fsdp, "more devices", times)
        else:
            yield Change({"mesh.tensor": tensor * times}, "more devices", times)
