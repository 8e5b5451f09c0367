# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One GRPO step of a `peer_items.Side`: what its programs cost to compile, to hold and to run."""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peer_items

from medloc_jax.model import geometry
from medloc_jax.training import grpo_programs, programs


class OneStep:
    """The step in the order in which `training.grpo` takes it, phase by phase."""

    def __init__(
        self,
        side: peer_items.Side,
        reward: Callable[[np.ndarray], np.ndarray] = peer_items.parity_reward,
    ):
        """Takes a side; copies its parameters for the reference. Compiles nothing."""
        self.side, self.reward = side, reward
        self.reference = jax.tree.map(jnp.copy, side.params)

    def tasks(self) -> dict[str, tuple[programs.Program, tuple]]:
        """What the step runs, in order, with the shapes of its arguments."""
        side = self.side
        inputs = side.inputs()
        bucket = geometry.Bucket(
            inputs.pixel_values.shape[1], inputs.window_index.shape[1], inputs.input_ids.shape[1]
        )
        return grpo_programs.compile_tasks(
            side.job, side.made, side.state, side.frozen, self.reference, bucket
        )

    def compile(self) -> dict[str, dict[str, float]]:
        """Compiles every program of the step.

        Returns:
            By program: CPU seconds to trace, lower and compile, and the bytes that XLA plans for
            its arguments, results (without those that take arguments' memory) and temporaries.
        """
        found, seen = {}, set()
        for name, (program, args) in self.tasks().items():
            if (program, program.key(args)) in seen:  # the reference's are the policy's
                continue
            seen.add((program, program.key(args)))
            begun = time.process_time()
            executable = program.compile(*args)
            seconds = time.process_time() - begun
            found[name] = {"compile_s": round(seconds, 2), **memory_of(executable)}
        return found

    def __call__(self, now: Callable[[], float]) -> dict[str, float]:
        """Takes one step; seconds of each phase by the given clock."""
        return self.side.step(self.reference, self.reward, now)

    def measure(self, given: argparse.Namespace) -> dict[str, Any]:
        """`given.reps` steps after one that is not counted: samples, and the median of phases."""
        now = peer_items.CLOCKS[given.clock]
        self(now)
        laps = peer_items.repeat(lambda: self(now), given)
        return {
            "samples_s": [round(sum(lap.values()), 4) for lap in laps],
            "phases_s": {
                name: round(statistics.median(lap[name] for lap in laps), 4)
                for name in peer_items.PHASES
            },
        }


def memory_of(executable: Any) -> dict[str, int]:
    """Bytes on a device by XLA's plan of a compiled program."""
    memory = executable.memory_analysis()
    return {
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temp_bytes": memory.temp_size_in_bytes,
    }
