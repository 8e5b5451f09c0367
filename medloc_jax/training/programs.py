# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Compiled programs: one executable for each static shape, made before the first step.

`encode_images`, `sample_groups`, `group_logprobs` and the update are separate programs, so that
phases can be timed and overlapped. After the start nothing compiles; a shape that was not prepared
still runs, is compiled then, and is counted and named in a warning.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array

from medloc_jax import sharding, watchdog
from medloc_jax.model import geometry, qwen2_5_vl
from medloc_jax.model.config import ModelConfig
from medloc_jax.sampling import groups

# Purposes of random keys; part of every key, so that no two uses share noise.
SAMPLING = 1

_log = logging.getLogger(__name__)


class Program:
    """A jitted function that is compiled once for each combination of argument shapes.

    Attributes:
        name: for messages.
        num_compiled: executables made so far.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        *,
        out_shardings: Any,
        donate: tuple[int, ...] = (),
    ):
        """Wraps a function.

        Args:
            name: for messages.
            function: pure, of arrays alone.
            out_shardings: as for `jax.jit`.
            donate: arguments whose memory the results may take.
        """
        self.name = name
        self._jitted = jax.jit(function, out_shardings=out_shardings, donate_argnums=donate)
        self._executables: dict[tuple, Any] = {}

    @property
    def num_compiled(self) -> int:
        """Executables made so far."""
        return len(self._executables)

    def compile(self, *args: Any) -> Any:
        """Compiles for arguments of these shapes (arrays or structs); returns the executable."""
        key = self.key(args)
        if key not in self._executables:
            self._executables[key] = self._jitted.lower(*args).compile()
        return self._executables[key]

    def __call__(self, *args: Any) -> Any:
        """Runs the executable for these shapes."""
        executable = self._executables.get(self.key(args))
        if executable is None:
            _log.warning("%s was not compiled for these shapes: compiling now", self.name)
            executable = self.compile(*args)
        return executable(*args)

    def key(self, args: Sequence[Any]) -> tuple:
        """What tells executables apart: shapes, and dtypes (frozen weights may be bfloat16)."""
        return tuple((x.shape, x.dtype) for x in jax.tree.leaves(args))


def encode_program(model: qwen2_5_vl.Model, mesh: Mesh) -> Program:
    """(params, inputs) -> image features."""
    return Program(
        "encode_images",
        model.encode_images,
        out_shardings=sharding.over_batch(mesh),
    )


def sample_program(model: qwen2_5_vl.Model, mesh: Mesh, rules: groups.SamplingRules) -> Program:
    """(params, inputs, features, seed, step, temperature) -> groups.Sampled."""

    def sample(
        params: Any, inputs: Any, features: Array, seed: Array, step: Array, temperature: Array
    ) -> groups.Sampled:
        key = step_key(seed, step, SAMPLING)
        return groups.sample_groups(model, params, inputs, features, key, temperature, rules)

    name = "sample_greedily" if rules.greedy else "sample_groups"
    return Program(name, sample, out_shardings=sharding.over_batch(mesh))


def logprobs_program(model: qwen2_5_vl.Model, mesh: Mesh) -> Program:
    """(params, inputs, features, completions, mask, temperature) -> log-probabilities."""
    return Program(
        "group_logprobs",
        model.group_logprobs,
        out_shardings=sharding.over_batch(mesh),
    )


def step_key(seed: Array, step: Array, purpose: int) -> Array:
    """The random key of (seed, step, purpose): resuming and re-running agree."""
    key = jax.random.PRNGKey(seed)
    return jax.random.fold_in(jax.random.fold_in(key, step), purpose)


def batch_struct(
    mesh: Mesh, config: ModelConfig, bucket: geometry.Bucket, rows: int
) -> geometry.ModelInputs:
    """Shapes of a global batch of that bucket."""
    vision = config.vision
    n, w, p = bucket.num_patches, bucket.num_windows, bucket.prompt_length

    def ints(*shape: int) -> Any:
        return struct(mesh, (rows, *shape), jnp.int32)

    return geometry.ModelInputs(
        input_ids=ints(p),
        prompt_lengths=ints(),
        mrope_positions=ints(3, p),
        rope_delta=ints(),
        image_index=ints(p),
        pixel_values=struct(mesh, (rows, n, vision.patch_dim), jnp.float32),
        patch_hw=ints(n, 2),
        segment_ids=ints(n),
        window_index=ints(w, vision.window_patches),
        window_slot=ints(n),
    )


def struct(mesh: Mesh, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
    """Shape of an array that is split over the batch."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.over_batch(mesh))


def struct_of(function: Callable[..., Any], mesh: Mesh, *args: Any) -> Any:
    """Shapes of a function's results, split over the batch."""
    results = jax.eval_shape(function, *args)
    return jax.tree.map(lambda x: struct(mesh, x.shape, x.dtype), results)


def compile_all(tasks: Sequence[tuple[Program, tuple]], buckets: Sequence[geometry.Bucket]) -> str:
    """Compiles programs for argument shapes, several at a time (XLA leaves Python's lock alone).

    Returns:
        A line that says what was compiled and how long it took.
    """
    watch = Stopwatch()
    distinct = {(program, program.key(args)): args for program, args in tasks}
    with futures.ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        running = [pool.submit(program.compile, *args) for (program, _), args in distinct.items()]
        for task in running:
            task.result()
            watchdog.mark("compile")
    names = ", ".join(dict.fromkeys(program.name for program, _ in tasks))
    shapes = ", ".join(f"{b.num_patches}/{b.num_windows}/{b.prompt_length}" for b in buckets)
    return (
        f"compiled {names} for patches/windows/prompt tokens of {shapes} in {watch.lap():.1f} s; "
        "nothing compiles from here on"
    )


class Stopwatch:
    """Seconds since the last lap, for the phases of a step."""

    def __init__(self) -> None:
        """Starts."""
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the start or the last lap."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds
