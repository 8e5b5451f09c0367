# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Floating-point operations of the model and of a training step, from sizes and lengths alone.

Counted are the multiplications and additions of matrix products, two for each pair of numbers that
meet: what utilisation is measured in. Norms, softmax, rotary angles, biases and the optimizer are
left out (well under 1 % at the published sizes). A prompt is counted once for its group, as the
programs run it; recomputation (`model.remat`) is not counted, so that utilisation is that of the
model, not of the hardware.

Lengths may be numbers or arrays (elementwise). Given real lengths, padding does not count; given a
compiled program's static shapes and `causal_share=1.0`, the counts are those of the program.

Letters: p patches, t tokens; the rest as in the glossary of the code (d, f, n, k, h, v, l).
"""

import dataclasses
from typing import Any

import numpy as np

from medloc_jax.model.config import ModelConfig, TextConfig, VisionConfig

Number = Any  # an int, a float or an array of them

# Of the scores of causal attention, those at or below the diagonal are needed.
NEEDED = 0.5


def vision(config: VisionConfig, patches: Number, window_slots: Number | None = None) -> Number:
    """One image through tower and merger.

    2 p (l (4 d^2 + 3 d f) + c d) + 2 p/4 ((4d)^2 + 4d e) + 4 p d (full p + windowed w), where c is
    the values in a patch, e the language model's width, w the patches in a window.

    Args:
        config: sizes.
        patches: of the image; as executed: the row's padded number.
        window_slots: patches of all windows together, empty slots included; None = `patches`.
    """
    d, f = config.hidden_size, config.intermediate_size
    slots = patches if window_slots is None else window_slots
    wide = d * config.merge_unit
    full = len(config.fullatt_block_indexes)
    blocks = 2 * patches * config.depth * (4 * d * d + 3 * d * f)
    embed = 2 * patches * config.patch_dim * d
    merger = 2 * (patches / config.merge_unit) * wide * (wide + config.out_hidden_size)
    over_image = 4 * d * full * patches * patches
    in_windows = 4 * d * (config.depth - full) * slots * config.window_patches
    return blocks + embed + merger + over_image + in_windows


def prompt(config: TextConfig, tokens: Number, *, causal_share: float = NEEDED) -> Number:
    """One prompt through the layers, without logits: 2 t W + 4 l n h t^2 causal_share.

    W is the number of weights in the layers' matrix products.

    Args:
        config: sizes.
        tokens: of the prompt, image tokens included.
        causal_share: of the square of scores that is counted: 0.5 needed, 1 by plain XLA.
    """
    return _layers(config, tokens) + _scores(config, tokens * tokens * causal_share)


def completion(
    config: TextConfig, prompt_tokens: Number, tokens: Number, *, causal_share: float = NEEDED
) -> Number:
    """One completion on its prompt's keys and values: 2 t W + 4 l n h t (p + t causal_share).

    The same for all tokens in one pass as for decoding them one by one. The logits are apart.

    Args:
        config: sizes.
        prompt_tokens: of its prompt (p).
        tokens: of the completion.
        causal_share: see `prompt`.
    """
    met = tokens * (prompt_tokens + tokens * causal_share)
    return _layers(config, tokens) + _scores(config, met)


def logits(config: TextConfig, tokens: Number) -> Number:
    """The vocabulary projection of so many tokens: 2 t d v."""
    return 2 * tokens * config.hidden_size * config.vocab_size


@dataclasses.dataclass(frozen=True)
class Rows:
    """How much a batch holds.

    Attributes:
        patches: of each image, [images].
        prompt_tokens: of each prompt, image tokens included, [B].
        completion_tokens: of each completion, [B, G], or anything that broadcasts to it.
        group_size: G.
    """

    patches: np.ndarray
    prompt_tokens: np.ndarray
    completion_tokens: np.ndarray
    group_size: int

    @classmethod
    def uniform(
        cls, *, prompts: int, group_size: int, patches: int, prompt_tokens: int, completion: int
    ) -> "Rows":
        """Prompts of one length with an image of one size each."""
        return cls(
            patches=np.full((prompts,), patches, np.float64),
            prompt_tokens=np.full((prompts,), prompt_tokens, np.float64),
            completion_tokens=np.full((prompts, group_size), completion, np.float64),
            group_size=group_size,
        )


def encode_images(config: ModelConfig, rows: Rows) -> float:
    """The vision tower over a batch, once a prompt."""
    return float(np.sum(vision(config.vision, np.asarray(rows.patches, np.float64))))


def prefill(config: ModelConfig, rows: Rows) -> float:
    """The prompts once, with the logits of their last token."""
    tokens = np.asarray(rows.prompt_tokens, np.float64)
    return float(np.sum(prompt(config.text, tokens)) + logits(config.text, tokens.size))


def decode(config: ModelConfig, rows: Rows) -> float:
    """All completions token by token, each with its logits."""
    tokens = np.asarray(rows.prompt_tokens, np.float64)[:, None]
    own = np.broadcast_to(rows.completion_tokens, (tokens.shape[0], rows.group_size))
    every = completion(config.text, tokens, own) + logits(config.text, own)
    return float(np.sum(every))


def group_forward(config: ModelConfig, rows: Rows) -> float:
    """Log-probabilities of all completions: prompts once, completions, completions' logits."""
    return prefill(config, rows) + decode(config, rows)


def grpo_step(
    config: ModelConfig,
    rows: Rows,
    *,
    freeze_vision: bool,
    reference: bool,
    num_updates: int,
) -> dict[str, float]:
    """A GRPO step by phase; backward is twice forward.

    Args:
        config: sizes.
        rows: the batch.
        freeze_vision: features are computed once for policy and reference, outside the gradient.
        reference: whether there is one.
        num_updates: optimizer passes over the rollout; with more than one, the policy's
            log-probabilities before the first are computed too.

    Returns:
        FLOPs of vision, prefill, decode, reference (with the old policy's pass) and update.
    """
    images, text = encode_images(config, rows), group_forward(config, rows)
    again = 0.0 if freeze_vision else images
    return {
        "vision": images,
        "prefill": prefill(config, rows),
        "decode": decode(config, rows),
        "reference": reference * (text + again) + (num_updates > 1) * text,
        "update": 3 * num_updates * (text + again),
    }


def sft_step(config: ModelConfig, rows: Rows, *, freeze_vision: bool) -> dict[str, float]:
    """An SFT step: vision (forward alone where it is frozen) and update; backward as in GRPO."""
    images, text = encode_images(config, rows), group_forward(config, rows)
    return {"vision": images * (1 if freeze_vision else 3), "update": 3 * text}


def _layers(config: TextConfig, tokens: Number) -> Number:
    """The matrix products with weights of all decoder layers."""
    d, h = config.hidden_size, config.head_dim
    queries, keys = config.num_attention_heads * h, config.num_key_value_heads * h
    weights = 2 * d * queries + 2 * d * keys + 3 * d * config.intermediate_size
    return 2 * tokens * config.num_hidden_layers * weights


def _scores(config: TextConfig, met: Number) -> Number:
    """Scores and weighted values of so many pairs of query and key, over all heads and layers."""
    width = config.num_attention_heads * config.head_dim
    return 4 * config.num_hidden_layers * width * met
