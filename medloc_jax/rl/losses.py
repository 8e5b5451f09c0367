# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The GRPO loss: a clipped policy-gradient surrogate plus a KL term to a frozen reference.

Reference: MedLoc-R1 (arXiv 2603.28120) Eq. 2; GRPO in DeepSeekMath (arXiv 2402.03300) Eq. 3;
`token_mean` and the separate upper clip bound from DAPO (arXiv 2503.14476); `dr_grpo` from
"Understanding R1-Zero-Like Training" (arXiv 2503.20783). Completions of older parameters: the
decoupled objective of "Batch size-invariance for policy optimization" (arXiv 2110.00641), its
weight truncated as in IMPALA (arXiv 1802.01561) and in the truncated importance sampling of "Your
Efficient RL Framework Secretly Brings You Off-Policy RL Training" (2025).

Three parameters meet in a token: those that sampled it, those before the step's first update (old),
and those of now. The clip binds now / old, so that it limits what this step changes and nothing
else; the weight min(old / sampler, importance_cap) corrects what was sampled elsewhere, carries no
gradient, and multiplies the clipped surrogate. With one update a step, old is now: the ratio is 1
and the weight min(now / sampler, importance_cap).

Departures, all of them:
    * Eq. 2 of MedLoc-R1 has one ratio per completion and no division by its length. The default
      here is one ratio per token and the mean over each completion's tokens, as the code base it
      was built on does. `ratio_level="sequence"` is Eq. 2 as printed.
    * Eq. 2 subtracts a divergence from the objective. Here the k3 estimate of each token is added
      to the loss. It stays per token at both ratio levels, and is aggregated by `loss_aggregation`.
    * Log ratios are clamped to +-20 before exp, per token or per completion (see kl.py).
    * A completion without tokens contributes nothing and is not counted.
    * Denominators are those of the whole batch, so that micro-batches change nothing. (The common
      PyTorch form of `token_mean` and of `seq_mean` divides inside each micro-batch.)
    * `dr_grpo` is only the constant length in the denominator; the other half of that paper,
      advantages that are not divided, is `advantages.group_advantages(..., std="none")`.
    * The weight is per token, or per completion at the sequence level, and does not touch the KL
      term, as in TRL; its batch mean is not brought to 1.
    * No entropy term, no dual clip, no overlong-completion penalty.

Everything is float32: a ratio is a difference of two nearly equal log-probabilities.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from medloc_jax.rl import kl
from medloc_jax.rl.rollout import Hyper


class Denominators(NamedTuple):
    """What the sums of a whole batch are divided by, over all micro-batches and devices.

    Attributes:
        tokens: real completion tokens.
        sequences: completions with at least one token.
        groups: prompts with at least one such completion.
    """

    tokens: Int[Array, ""]
    sequences: Int[Array, ""]
    groups: Int[Array, ""]


class Average(NamedTuple):
    """A mean in the making: totals and counts are added up first, and divided once."""

    total: Float[Array, "..."]
    count: Float[Array, "..."]


class LossStats(NamedTuple):
    """What a loss call saw; `summarize` turns any number of them into metrics.

    Attributes:
        loss: the loss and this call's share of the batch's completions; over the micro-batches of
            an update the shares add up to 1.
        kl: k3 over tokens; None without a reference.
        clip_rate: where the clip bound the update, over tokens (completions at the sequence level).
        ratio_max: largest ratio, after the clamp; 0 where nothing is real.
        importance: the weight, over tokens (completions at the sequence level); None without one.
        importance_capped: where the cap bound it, over the same.
    """

    loss: Average
    kl: Average | None
    clip_rate: Average
    ratio_max: Float[Array, "..."]
    importance: Average | None = None
    importance_capped: Average | None = None


def denominators(completion_mask: Bool[Array, "B G C"]) -> Denominators:
    """Counts a whole batch; call it before the batch is cut into micro-batches."""
    real = jnp.any(completion_mask, axis=2)  # [B, G]
    return Denominators(
        tokens=jnp.sum(completion_mask, dtype=jnp.int32),
        sequences=jnp.sum(real, dtype=jnp.int32),
        groups=jnp.sum(jnp.any(real, axis=1), dtype=jnp.int32),
    )


def _at_least_one(count: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
    # An empty completion or batch has a sum of 0: dividing it by 1 keeps 0/0 out of the gradient.
    return jnp.maximum(count, 1).astype(jnp.float32)


def _seq_mean(values, completion_mask, whole: Denominators, max_completion_tokens: int):
    del max_completion_tokens
    lengths = _at_least_one(jnp.sum(completion_mask, axis=2))  # [B, G]
    return jnp.sum(jnp.sum(values, axis=2) / lengths) / _at_least_one(whole.sequences)


def _token_mean(values, completion_mask, whole: Denominators, max_completion_tokens: int):
    del completion_mask, max_completion_tokens
    return jnp.sum(values) / _at_least_one(whole.tokens)


def _dr_grpo(values, completion_mask, whole: Denominators, max_completion_tokens: int):
    del completion_mask
    return jnp.sum(values) / (_at_least_one(whole.sequences) * max_completion_tokens)


# Each takes per-token values f32[B, G, C] that are 0 where masked, and returns a scalar.
AGGREGATIONS = {"seq_mean": _seq_mean, "token_mean": _token_mean, "dr_grpo": _dr_grpo}
RATIO_LEVELS = ("token", "sequence")


def _whole_batch(given: Denominators | None, completion_mask) -> Denominators:
    return denominators(completion_mask) if given is None else given


def grpo_loss(
    token_logprobs: Float[Array, "B G C"],
    old_logprobs: Float[Array, "B G C"] | None,
    reference_logprobs: Float[Array, "B G C"] | None,
    advantages: Float[Array, "B G"],
    completion_mask: Bool[Array, "B G C"],
    hyper: Hyper,
    *,
    ratio_level: str = "token",
    loss_aggregation: str = "seq_mean",
    denominators: Denominators | None = None,
    max_completion_tokens: int,
    sampler_logprobs: Float[Array, "B G C"] | None = None,
    importance_cap: float = math.inf,
) -> tuple[Float[Array, ""], LossStats]:
    """Computes the loss of a batch, or one micro-batch's share of it.

    Args:
        token_logprobs: log-probabilities of the completions under the policy, at the sampling
            temperature; the only argument a gradient flows into.
        old_logprobs: under the parameters before the first update on these completions; None =
            this is the first: the ratio is exactly 1 and its gradient that of the log-probability.
        reference_logprobs: under the frozen reference; None = no KL term at all.
        advantages: one per completion.
        completion_mask: true = real token. What stands elsewhere is never read.
        hyper: clip_low, clip_high and kl_weight are used.
        ratio_level: "token", or "sequence": one ratio, exp of the summed log ratio, per completion
            and the plain mean over completions, whatever `loss_aggregation` says of the KL term.
        loss_aggregation: "seq_mean": mean over a completion's tokens, then over completions;
            "token_mean": sum / tokens; "dr_grpo": sum / (completions * max_completion_tokens).
        denominators: of the whole batch, when the arguments are a micro-batch: losses and gradients
            of the micro-batches then add up to those of the batch. None = the arguments are all.
        max_completion_tokens: the longest completion allowed, for dr_grpo.
        sampler_logprobs: under the parameters that sampled, where they are not those of
            `old_logprobs`; None = no importance weights.
        importance_cap: largest importance weight, above 0.

    Returns:
        The loss, and what was seen on the way.

    Raises:
        ValueError: an unknown `ratio_level` or `loss_aggregation`.
    """
    if ratio_level not in RATIO_LEVELS:
        raise ValueError(
            f"rl.ratio_level is {ratio_level!r}: choose one of {', '.join(RATIO_LEVELS)}"
        )
    if loss_aggregation not in AGGREGATIONS:
        raise ValueError(
            f"rl.loss_aggregation is {loss_aggregation!r}: choose one of {', '.join(AGGREGATIONS)}"
        )
    whole = _whole_batch(denominators, completion_mask)
    aggregate = AGGREGATIONS[loss_aggregation]
    new = token_logprobs.astype(jnp.float32)
    old = new if old_logprobs is None else old_logprobs.astype(jnp.float32)
    # Masked before exp, not after: inf * 0 would be NaN in the gradient.
    log_ratio = jnp.where(completion_mask, new - jax.lax.stop_gradient(old), 0.0)
    advantages = jax.lax.stop_gradient(advantages.astype(jnp.float32))
    nonempty = jnp.any(completion_mask, axis=2)  # [B, G]
    drift = None  # log of old / sampler
    if sampler_logprobs is not None:
        drift = jnp.where(completion_mask, old - sampler_logprobs.astype(jnp.float32), 0.0)
        drift = jax.lax.stop_gradient(drift)

    importance = importance_capped = None
    if ratio_level == "token":
        real = completion_mask
        gain, clipped, ratio = _surrogate(log_ratio, advantages[:, :, None], real, hyper)
        if drift is not None:
            gain, importance, importance_capped = _weighted(gain, drift, real, importance_cap)
        loss = -aggregate(gain, completion_mask, whole, max_completion_tokens)
    else:
        real = nonempty
        gain, clipped, ratio = _surrogate(jnp.sum(log_ratio, axis=2), advantages, real, hyper)
        if drift is not None:
            drift = jnp.sum(drift, axis=2)
            gain, importance, importance_capped = _weighted(gain, drift, real, importance_cap)
        loss = -jnp.sum(gain) / _at_least_one(whole.sequences)

    kl_average = None
    if reference_logprobs is not None:
        reference = jax.lax.stop_gradient(reference_logprobs.astype(jnp.float32))
        token_kl = kl.k3(jnp.where(completion_mask, reference - new, 0.0))
        loss += hyper.kl_weight * aggregate(token_kl, completion_mask, whole, max_completion_tokens)
        kl_average = Average(jnp.sum(token_kl), jnp.sum(completion_mask, dtype=jnp.float32))

    stats = LossStats(
        loss=Average(loss, jnp.sum(nonempty) / _at_least_one(whole.sequences)),
        kl=kl_average,
        clip_rate=Average(jnp.sum(clipped, dtype=jnp.float32), jnp.sum(real, dtype=jnp.float32)),
        ratio_max=jnp.max(jnp.where(real, ratio, 0.0)),
        importance=importance,
        importance_capped=importance_capped,
    )
    return loss, jax.lax.stop_gradient(stats)


def _surrogate(log_ratio, advantages, real, hyper: Hyper):
    """Returns min(ratio * A, clip(ratio) * A) (0 if not real), where the clip bound, and ratio."""
    ratio = jnp.exp(kl.clamp_log_ratio(log_ratio))
    gain = ratio * advantages
    clipped_gain = jnp.clip(ratio, 1 - hyper.clip_low, 1 + hyper.clip_high) * advantages
    clipped = real & (clipped_gain < gain)
    return jnp.where(real, jnp.minimum(gain, clipped_gain), 0.0), clipped, ratio


def _weighted(gain, drift, real, cap: float):
    """Returns gain times the importance weight, that weight's average, how often the cap bound."""
    ratio = jnp.exp(kl.clamp_log_ratio(drift))
    weight = jnp.minimum(ratio, cap)
    count = jnp.sum(real, dtype=jnp.float32)
    capped = jnp.sum(real & (ratio > cap), dtype=jnp.float32)
    return (
        gain * weight,
        Average(jnp.sum(jnp.where(real, weight, 0.0)), count),
        Average(capped, count),
    )


def summarize(stats: LossStats) -> dict[str, Float[Array, ""]]:
    """Turns the stats of one or many loss calls, stacked along any leading axes, into metrics.

    Returns:
        `grpo/loss`, `grpo/clip_rate`, `grpo/ratio_max`, `grpo/kl` where there was a reference,
        `grpo/importance_mean` and `grpo/importance_capped_rate` where there were weights. Over
        several updates of one rollout: means over them, and the largest ratio of all.
    """
    averages = {
        "grpo/loss": stats.loss,
        "grpo/kl": stats.kl,
        "grpo/clip_rate": stats.clip_rate,
        "grpo/importance_mean": stats.importance,
        "grpo/importance_capped_rate": stats.importance_capped,
    }
    metrics = {"grpo/ratio_max": jnp.max(stats.ratio_max)}
    for name, average in averages.items():
        if average is not None:
            count = jnp.sum(average.count)
            metrics[name] = jnp.sum(average.total) / jnp.where(count > 0, count, 1.0)
    return metrics
