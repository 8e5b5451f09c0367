# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a plan holds: programs as they compiled, memory by part, the shape they were compiled for.

Bytes are of one device and decimal when printed (1 GB = 1e9 bytes). Counts are of one run of a
program; how often a step runs each is `Program.runs_per_step`.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax

from medloc_jax.model import geometry

# How the programs were compiled. Only the first two tell what the real chip's compiler would do.
TPU_COMPILER = "the TPU compiler"
GPU_COMPILER = "the GPU compiler"
PRETENDED = "XLA for pretended CPU devices"


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of a program that are alike.

    Attributes:
        kind: all-gather, all-reduce, reduce-scatter, all-to-all, collective-permute.
        axes: the mesh axes it runs over ("fsdp", "data+fsdp", ...); "?" where its groups are none.
        shape: of the larger of operand and result on one device, as "bf16[2048,11008]".
        bytes: of that shape, all parts of a tuple together.
        count: times one run of the program executes it: loops multiplied by their trip counts.
        in_loop: whether it stands in a loop.
        in_decode_loop: whether it stands in a loop whose trip count the compiler does not know:
            the sampler's, which ends when all rows have. `count` takes its longest, the
            completion's length.
        source: the operation it was made for, in JAX's words ("jit(grpo_step)/.../dot_general").
        overlapped: whether it is a start/done pair, which the compiler may run beside arithmetic.
    """

    kind: str
    axes: str
    shape: str
    bytes: int
    count: int
    in_loop: bool
    in_decode_loop: bool
    source: str
    overlapped: bool

    @property
    def total_bytes(self) -> int:
        """Bytes of one run of the program, on one device."""
        return self.bytes * self.count


@dataclasses.dataclass(frozen=True)
class Buffer:
    """An array that is whole on every device although it is large.

    Attributes:
        name: of the argument, or the operation that made it.
        shape: as "f32[151936,2048]".
        bytes: on one device.
        kind: "argument", "output" or "temporary".
    """

    name: str
    shape: str
    bytes: int
    kind: str


@dataclasses.dataclass(frozen=True)
class Program:
    """One program of a step, as it compiled.

    Attributes:
        name: encode_images, sample_groups, reference_logprobs, old_logprobs, grpo_step, sft_step.
        runs_per_step: how often an optimizer step (SFT) or a rollout (GRPO) runs it.
        compile_seconds: lowering and compiling.
        does_not_fit: bytes that are missing on each device when the compiler refused for want of
            memory; None where it compiled. Of the figures below only the arguments' is then known.
        refusal: the compiler's own words on that, one line; "" where it compiled.
        argument_bytes: of all arguments.
        output_bytes: of all results, aliased ones included.
        alias_bytes: results that lie in their donated argument's memory.
        temp_bytes: everything between, as if nothing of it shared memory with outputs.
        peak_bytes: at the fullest moment, arguments included: the compiler's own, or else arguments
            + outputs + temporaries - aliased.
        code_bytes: of the program itself.
        flops: the compiler's count for one device, loops counted ONCE by most backends; None where
            the backend has none (GPU). Use the formulas of `planning.floor` for real FLOPs.
        bytes_accessed: likewise.
        optimal_seconds: the TPU compiler's estimate; None elsewhere, and where it does not know
            (it counts a loop once, and some operations as minus one second).
        cycles: the TPU compiler's estimates of all operations, loops multiplied by their trip
            counts, waiting for other devices not counted; None elsewhere.
        collectives: what crosses devices.
        donated: state arrays whose memory the results take.
        not_donated: names of state arrays that were given up but could not be reused (copied).
        replicated: large arrays that are whole on every device: arguments, outputs, and results
            of an all-gather.
        custom_calls: names of library calls and kernels ("__cudnn$fmhaSoftmax", ...), with counts.
    """

    name: str
    runs_per_step: int
    compile_seconds: float
    does_not_fit: int | None = None
    refusal: str = ""
    argument_bytes: int = 0
    output_bytes: int = 0
    alias_bytes: int = 0
    temp_bytes: int = 0
    peak_bytes: int = 0
    code_bytes: int = 0
    flops: float | None = None
    bytes_accessed: float | None = None
    optimal_seconds: float | None = None
    cycles: int | None = None
    collectives: tuple[Collective, ...] = ()
    donated: int = 0
    not_donated: tuple[str, ...] = ()
    replicated: tuple[Buffer, ...] = ()
    custom_calls: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Part:
    """Memory of one device by what it is for.

    Attributes:
        name: weights, frozen weights, moments, gradients, reference, bf16 copy, KV cache,
            activations, logits chunk, batch.
        bytes: on the fullest device.
        exact: True: from the arrays' own shardings; False: by the formula.
        formula: how it was computed, in words and symbols.
        programs: names of the programs during which it exists; ("*",) = always.
        knobs: config fields that change it, the cheapest first.
    """

    name: str
    bytes: int
    exact: bool
    formula: str
    programs: tuple[str, ...]
    knobs: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Numbers of parameters."""

    total: int
    trainable: int
    frozen: int
    vision: int
    text: int
    embedding: int


@dataclasses.dataclass(frozen=True)
class Shape:
    """What the programs were compiled for.

    Attributes:
        image_size: (width, height) of the image, px; () where the config says otherwise.
        fed_size: (width, height) as the model sees it.
        num_patches: of that image.
        num_image_tokens: of that image, in the prompt.
        prompt_tokens: the whole prompt, image tokens included.
        bucket: the padded shape that is compiled.
        prompts: per step over all devices (SFT: examples).
        micro_batch: prompts per backward pass over all devices.
        group_size: completions per prompt (SFT: 1).
        completion_tokens: longest completion.
    """

    image_size: tuple[int, int]
    fed_size: tuple[int, int]
    num_patches: int
    num_image_tokens: int
    prompt_tokens: int
    bucket: geometry.Bucket
    prompts: int
    micro_batch: int
    group_size: int
    completion_tokens: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `planning.report` finds.

    Attributes:
        method: "grpo" or "sft".
        preset: the model.
        device_kind: h800, h200, h100, v5p, v5e, v6e or cpu.
        topology: as the compiler was told, "v5p:4x4x4"; "" where there is none.
        num_devices: of all processes.
        processes: hosts.
        mesh: devices along each axis.
        compiled_by: who compiled: TPU_COMPILER, GPU_COMPILER or PRETENDED.
        note: what that means for the figures; "" where the real compiler was used.
        device_bytes: memory of one device by its datasheet; 0 where that says nothing (cpu).
        parameters: numbers of parameters.
        shape: what was compiled.
        programs: in the order in which a step runs them.
        memory: by part, at the fullest moment.
    """

    method: str
    preset: str
    device_kind: str
    topology: str
    num_devices: int
    processes: int
    mesh: Mapping[str, int]
    compiled_by: str
    note: str
    device_bytes: int
    parameters: Parameters
    shape: Shape
    programs: tuple[Program, ...]
    memory: tuple[Part, ...]

    @property
    def resident_bytes(self) -> int:
        """What lies on a device all the time: state, reference and batch."""
        return sum(part.bytes for part in self.memory if "*" in part.programs)

    @property
    def peak_bytes(self) -> int:
        """The fullest moment of a step: `held_bytes` of the program that needs most."""
        return max((self.held_bytes(program) for program in self.programs), default=0)

    def held_bytes(self, program: Program) -> int:
        """Bytes on a device while a program runs: its own, and what lies there beside it.

        The optimizer's moments lie on the device while the sampler runs; the reference does while
        the update runs. Of a program that the compiler refused only its arguments are known.
        """
        own = program.peak_bytes - program.argument_bytes + program.code_bytes
        return self.resident_bytes + max(0, own)

    @property
    def does_not_fit(self) -> int | None:
        """Bytes that are missing on each device, or None where the step fits."""
        missing = [
            p.does_not_fit + max(0, self.resident_bytes - p.argument_bytes)
            for p in self.programs
            if p.does_not_fit is not None
        ]
        if self.device_bytes and self.peak_bytes > self.device_bytes:
            missing.append(self.peak_bytes - self.device_bytes)
        return max(missing, default=None)

    def program(self, name: str) -> Program:
        """One of the programs.

        Raises:
            KeyError: there is none of that name.
        """
        return {program.name: program for program in self.programs}[name]


def bytes_of(tree: Any) -> int:
    """Bytes of one device of a tree of structs, by their shardings."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        where = getattr(leaf, "sharding", None)
        shape = where.shard_shape(leaf.shape) if where is not None else leaf.shape
        total += math.prod(shape) * leaf.dtype.itemsize
    return total
