# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a GRPO step is given: numbers that move during a run, completions to learn from."""

from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Float32, Int


class Hyper(NamedTuple):
    """The numbers that may change between steps; traced, so that a new value compiles nothing.

    Attributes:
        threshold: IoU a completion must reach now, in [0, 1]; scalar, or f32[B] for a schedule with
            one threshold per example (another shape, hence another program).
        temperature: of sampling, and of the log-probabilities in the loss; > 0.
        kl_weight: weight of the KL term (beta in the papers).
        clip_low: the ratio is clipped to at least 1 - clip_low.
        clip_high: the ratio is clipped to at most 1 + clip_high.
        learning_rate: step size of this update.
        rivals: siblings that a completion must beat (`curriculum/rivals.py`); > 0.
    """

    threshold: Float32[Array | np.ndarray, "*B"]
    temperature: Float32[Array | np.ndarray, ""]
    kl_weight: Float32[Array | np.ndarray, ""]
    clip_low: Float32[Array | np.ndarray, ""]
    clip_high: Float32[Array | np.ndarray, ""]
    learning_rate: Float32[Array | np.ndarray, ""]
    rivals: Float32[Array | np.ndarray, ""]


def hyper(
    *,
    threshold: ArrayLike,
    temperature: ArrayLike,
    kl_weight: ArrayLike,
    clip_low: ArrayLike,
    clip_high: ArrayLike,
    learning_rate: ArrayLike,
    rivals: ArrayLike = 1.0,
) -> Hyper:
    """Makes a Hyper whose leaves are float32 whatever was given.

    A Python float is weakly typed and an int is not a float: letting either through would make a
    second program of a jitted step.

    Args:
        threshold: a number, or one per example [B].
        temperature: a number above 0; for this and the others see `Hyper`.
        kl_weight: a number.
        clip_low: a number.
        clip_high: a number.
        learning_rate: a number.
        rivals: a number; only one reward shape reads it.

    Raises:
        ValueError: a value is not finite, or the temperature is not above 0.
    """
    given = (threshold, temperature, kl_weight, clip_low, clip_high, learning_rate, rivals)
    values = Hyper(*(np.asarray(value, np.float32) for value in given))
    for name, value in values._asdict().items():
        if not np.isfinite(value).all():
            raise ValueError(f"{name} is {value}: give a finite number")
    if values.temperature <= 0:
        raise ValueError(f"rl.temperature is {values.temperature}: give a number above 0")
    return values


class Rollout(NamedTuple):
    """The completions of one step, in groups of G per prompt.

    Attributes:
        completions: token ids, the end token included, padded on the right.
        completion_mask: true = real token; the end token counts, what follows does not.
        old_logprobs: of these tokens under the parameters before the first update on them; None
            when one update is made per rollout, where they equal the policy's own.
        reference_logprobs: of these tokens under the frozen reference; None when the KL weight
            is 0.
        sampler_logprobs: of these tokens under the parameters that sampled them; None when those
            are the parameters before the first update, or the difference is to be ignored.
    """

    completions: Int[Array, "B G C"]
    completion_mask: Bool[Array, "B G C"]
    old_logprobs: Float[Array, "B G C"] | None
    reference_logprobs: Float[Array, "B G C"] | None
    sampler_logprobs: Float[Array, "B G C"] | None = None
