# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The estimate of KL(policy || reference) from sampled tokens.

Reference: GRPO in DeepSeekMath (arXiv 2402.03300) Eq. 4; the estimator is k3 of J. Schulman,
"Approximating KL divergence" (2020). MedLoc-R1 (arXiv 2603.28120) Eq. 2 writes a divergence and no
estimator.

Departure: the log ratio is clamped to +-20 before the exponential, so that one token on which the
two disagree wildly gives a large finite number instead of inf. Beyond the clamp the gradient is 0:
clamping only inside exp would leave the linear term alone and push such a token the wrong way.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

MAX_LOG_RATIO = 20.0  # e^20 is 5e8: thousands of such tokens still sum in float32


def clamp_log_ratio(log_ratio: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Clamps to [-20, 20]; the gradient outside is 0."""
    return jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO)


def k3(log_ratio: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns exp(x) - x - 1 of each token's x = reference_logprob - token_logprob.

    Zero where the two agree, positive elsewhere, unbiased for tokens drawn from the policy.
    """
    log_ratio = clamp_log_ratio(log_ratio)
    # expm1 keeps the digits that exp(x) - 1 loses in float32 when policy and reference are close.
    return jnp.expm1(log_ratio) - log_ratio
