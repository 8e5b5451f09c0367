# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Compiles one program and reads what the compiler says of it.

That a program does not fit is an answer, not an error: of the compiler's RESOURCE_EXHAUSTED is made
the number of bytes that are missing.
"""

import contextlib
import math
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding

from medloc_jax.planning import hlo, plan
from medloc_jax.training import programs

# An array of this size that is whole on every device is worth a line; 3B's largest layer in
# bfloat16 is 45 MB, its vocabulary projection 622 MB.
LARGE_BYTES = 100_000_000

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_NUMBER = r"([\d.]+)\s*([KMGT]?)i?B?"
# As TPU compilers put it; what is required or used counts arguments and results, too.
_NEEDED = (
    re.compile(rf"required .*?\({_NUMBER}\) exceeds available .*?\({_NUMBER}\)"),
    re.compile(rf"[Uu]sed {_NUMBER} of {_NUMBER}"),
)


def compile_program(
    name: str,
    program: programs.Program,
    args: Sequence[Any],
    mesh: Mesh,
    *,
    runs_per_step: int = 1,
    unknown_trips: int = 1,
    large_bytes: int = LARGE_BYTES,
) -> plan.Program:
    """Compiles a program and describes it.

    Args:
        name: what the step calls it.
        program: jitted, not compiled.
        args: structs with shardings.
        mesh: of the shardings.
        runs_per_step: how often a step runs it.
        unknown_trips: what the sampler's loop is counted as: the completion's length.
        large_bytes: from which size on an array that is whole everywhere is named.

    Returns:
        The description; where it does not fit, with its arguments and what is missing alone.

    Raises:
        jax.errors.JaxRuntimeError: the compiler refuses for another reason than memory.
    """
    start = time.perf_counter()
    try:
        executable = program.compile(*args)
    except jax.errors.JaxRuntimeError as error:
        missing = missing_bytes(str(error))
        if missing is None:
            raise
        return plan.Program(
            name=name,
            runs_per_step=runs_per_step,
            compile_seconds=time.perf_counter() - start,
            argument_bytes=plan.bytes_of(args),
            does_not_fit=missing,
            refusal=_first_lines(str(error)),
        )
    seconds = time.perf_counter() - start
    listing = hlo.Listing(executable.as_text())
    crossing = hlo.collectives(listing, mesh, unknown_trips)
    memory = executable.memory_analysis()
    cost = _cost(executable)
    aliased = listing.aliased_parameters()
    return plan.Program(
        name=name,
        runs_per_step=runs_per_step,
        compile_seconds=seconds,
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        alias_bytes=memory.alias_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        peak_bytes=_peak(memory, mesh.devices.flat[0].platform),
        code_bytes=memory.generated_code_size_in_bytes,
        flops=cost.get("flops"),
        bytes_accessed=cost.get("bytes accessed"),
        optimal_seconds=cost.get("optimal_seconds"),
        cycles=hlo.cycles(listing, unknown_trips) or None,
        collectives=crossing,
        donated=len(aliased),
        not_donated=_not_donated(listing, aliased),
        replicated=(
            *_whole(args, "argument", mesh, large_bytes),
            *_whole(executable.out_info, "output", mesh, large_bytes),
            *_gathered(crossing, large_bytes),
        ),
        custom_calls=hlo.custom_calls(listing),
    )


@contextlib.contextmanager
def without_cache() -> Iterator[None]:
    """Compiling for devices that are not there can write to the persistent cache, but not read it.

    Nor should it: what is asked for is what the compiler says.
    """
    before = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # whether it is used is remembered
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def missing_bytes(message: str) -> int | None:
    """Bytes that a compiler says are missing; None where it complains of something else.

    Args:
        message: of the error.

    Returns:
        0 where it does not say how many.
    """
    if "RESOURCE_EXHAUSTED" not in message and "Ran out of memory" not in message:
        return None
    for pattern in _NEEDED:
        found = pattern.search(message)
        if found:
            number, unit, limit, limit_unit = found.groups()
            return max(0, _bytes(number, unit) - _bytes(limit, limit_unit))
    return 0


def _bytes(number: str, unit: str) -> int:
    return round(float(number) * _UNITS[unit])


def _first_lines(message: str) -> str:
    return " ".join(message.split())[:300]


def _peak(memory: Any, platform: str) -> int:
    """What lies on a device at the fullest moment of a program, its arguments included."""
    if platform == "tpu":  # XLA for CPUs and GPUs leaves arguments out of theirs
        return memory.peak_memory_in_bytes
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )


def _cost(executable: Any) -> dict[str, float | None]:
    """The compiler's own estimates; a negative one says that it does not know."""
    try:
        cost = executable.cost_analysis() or {}
    except (NotImplementedError, jax.errors.JaxRuntimeError):
        return {}
    names = ("flops", "bytes accessed", "optimal_seconds")
    return {name: cost[name] for name in names if cost.get(name, -1) > 0}


def _not_donated(listing: hlo.Listing, aliased: set[int]) -> tuple[str, ...]:
    """The state's arrays whose memory no result takes, of a program that gives its state up."""
    if not aliased:
        return ()
    given = listing.parameters().items()
    return tuple(
        line.source
        for number, line in given
        if line.source.startswith("state.") and number not in aliased
    )


def _whole(tree: Any, kind: str, mesh: Mesh, large_bytes: int) -> list[plan.Buffer]:
    """Large arrays of a tree that are not split at all; none on a mesh of one."""
    found = []
    if mesh.size == 1:
        return found
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        where = getattr(leaf, "sharding", None)
        if not isinstance(where, NamedSharding) or not where.is_fully_replicated:
            continue
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        if size >= large_bytes:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            shape = f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
            found.append(plan.Buffer(name, shape, size, kind))
    return found


def _gathered(crossing: Sequence[plan.Collective], large_bytes: int) -> list[plan.Buffer]:
    """Large arrays that an all-gather makes whole."""
    return [
        plan.Buffer(one.source, one.shape, one.bytes, "temporary")
        for one in crossing
        if one.kind == "all-gather" and one.bytes >= large_bytes
    ]
