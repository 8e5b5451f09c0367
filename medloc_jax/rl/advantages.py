# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Group-relative advantages: how much better a completion is than its siblings.

Reference: MedLoc-R1 (arXiv 2603.28120) Eq. 1; GRPO in DeepSeekMath (arXiv 2402.03300) section 4.1;
Dr.GRPO (arXiv 2503.20783) for the centred form.

Departures:
    * The default, `sample`, divides by the unbiased standard deviation plus 1e-4, as the code base
      that MedLoc-R1 was built on does. Eq. 1 as printed (population variance, gamma inside the
      root) is `population_inside`; the paper leaves gamma open, here it is 1e-8.
    * A group whose rewards are all equal gets exactly 0. In float32 `r - mean(r)` need not be 0,
      and a small divisor makes a visible push out of that rounding error.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

SAMPLE_EPSILON = 1e-4  # added to the standard deviation
POPULATION_GAMMA = 1e-8  # added to the variance


def _by_sample_std(centred: Float[Array, "B G"]) -> Float[Array, "B G"]:
    variance = jnp.sum(jnp.square(centred), axis=1, keepdims=True) / (centred.shape[1] - 1)
    return centred / (jnp.sqrt(variance) + SAMPLE_EPSILON)


def _by_population_std_inside(centred: Float[Array, "B G"]) -> Float[Array, "B G"]:
    variance = jnp.mean(jnp.square(centred), axis=1, keepdims=True)
    return centred / jnp.sqrt(variance + POPULATION_GAMMA)


def _undivided(centred: Float[Array, "B G"]) -> Float[Array, "B G"]:
    return centred


NORMALISERS = {
    "sample": _by_sample_std,
    "population_inside": _by_population_std_inside,
    "none": _undivided,
}


def group_advantages(
    rewards: Float[Array | np.ndarray, "B G"], std: str = "sample"
) -> Float[Array, "B G"]:
    """Centres the rewards of each group and divides them by the group's spread.

    Args:
        rewards: one per completion, any range.
        std: "sample": divided by (unbiased std + 1e-4); "population_inside": by sqrt(population
            variance + 1e-8), Eq. 1 as printed; "none": centred only.

    Returns:
        Float32 advantages; exactly 0 in a group whose largest and smallest reward are equal. A
        reward that is NaN is not hidden: it makes its group's advantages NaN.

    Raises:
        ValueError: groups of fewer than two completions, or an unknown `std`.
    """
    if std not in NORMALISERS:
        raise ValueError(f"rl.advantage_std is {std!r}: choose one of {', '.join(NORMALISERS)}")
    if rewards.shape[1] < 2:
        raise ValueError(
            f"rl.group_size is {rewards.shape[1]}: a completion is compared with its siblings, so "
            "set it to 2 or more"
        )
    rewards = jnp.asarray(rewards, jnp.float32)
    centred = rewards - jnp.mean(rewards, axis=1, keepdims=True)
    return jnp.where(has_signal(rewards)[:, None], NORMALISERS[std](centred), 0.0)


def has_signal(rewards: Float[Array | np.ndarray, "B G"]) -> Bool[Array, " B"]:
    """Tells which groups hold completions of different reward, that is, have anything to teach."""
    rewards = jnp.asarray(rewards, jnp.float32)
    return jnp.max(rewards, axis=1) != jnp.min(rewards, axis=1)
