# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The reference side: transformers' Qwen2.5-VL in float32 with eager attention on the CPU."""

from collections.abc import Sequence

import numpy as np
import torch
from parity_cases import Json, Prompt
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from medloc_jax.convert import mapping

torch.set_num_threads(2)

LOGIT_SCALE = 3.0  # standard deviation of the logits
ATTENTION_GAIN = 1.5  # of each matrix: peaked attention, so that where a token looks matters


def build(json: Json, seed: int = 0) -> Qwen2_5_VLForConditionalGeneration:
    """A model with random weights, none of them at a value that hides a mistake.

    Linear layers get variance 1 / fan-in, so that activations are of order 1 to 10; biases and the
    deviations of norm weights from 1 get 0.3; the head is scaled so that logits have standard
    deviation about LOGIT_SCALE. (Fresh models have biases 0 and norm weights 1.) The last norm's
    weights have mean 0: with a tied head each token would otherwise ask for itself again.
    """
    config = Qwen2_5_VLConfig(**json)
    config._attn_implementation = "eager"
    model = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    tied = json["tie_word_embeddings"]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(generator=generator)
            if name.endswith("language_model.norm.weight"):
                continue
            if weight.ndim == 1:
                weight.mul_(0.3).add_(0.0 if name.endswith(".bias") else 1.0)
            elif name.endswith("lm_head.weight") or (tied and "embed_tokens" in name):
                weight.mul_(LOGIT_SCALE * weight.shape[1] ** -0.5)
            elif "embed_tokens" not in name:
                gain = ATTENTION_GAIN if "attn" in name else 1.0
                weight.mul_(gain * weight[0].numel() ** -0.5)
    return model


def weights(model: Qwen2_5_VLForConditionalGeneration) -> dict[str, np.ndarray]:
    """All tensors under their in-memory names (a tied head is there too); memory is shared."""
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def batch(
    model: Qwen2_5_VLForConditionalGeneration,
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[int]] | None = None,
) -> dict[str, torch.Tensor | None]:
    """What the model takes for these prompts (each followed by its completion), right padded."""
    config = model.config
    completions = completions or [[]] * len(prompts)
    rows = [prompt.ids + list(more) for prompt, more in zip(prompts, completions, strict=True)]
    length = max(map(len, rows))
    pad = config.text_config.pad_token_id
    ids = torch.tensor([row + [pad] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    images = [image for prompt in prompts for image in prompt.images]
    pixels = torch.from_numpy(np.concatenate([p for p, _ in images])) if images else None
    inputs = {
        "input_ids": ids,
        "attention_mask": mask,
        "image_grid_thw": torch.tensor([grid for _, grid in images]) if images else None,
        "mm_token_type_ids": (ids == config.image_token_id).int() * mask.int(),
    }
    positions, _ = model.model.get_rope_index(**inputs)
    return inputs | {"pixel_values": pixels, "position_ids": positions}


def logits(model, prompts: Sequence[Prompt]) -> list[np.ndarray]:
    """Logits at the real positions of each prompt: f32[T, v] each."""
    with torch.no_grad():
        out = model(**batch(model, prompts), use_cache=False).logits
    return [row[: len(prompt.ids)].numpy() for row, prompt in zip(out, prompts, strict=True)]


def hidden_states(model, prompts: Sequence[Prompt]) -> dict[str, list[np.ndarray]]:
    """Outputs of each vision block, the merger and each decoder layer, caught by hooks.

    Returns:
        visual.blocks: per block, patches of all images one after another, in window order;
        visual.merger: one array, merged tokens likewise;
        language_model.layers: per layer [B, T, d].
    """
    kept: dict[str, list[np.ndarray]] = {}
    handles = []

    def keep(name: str, module: torch.nn.Module) -> None:
        def hook(_module, _inputs, output):
            output = output[0] if isinstance(output, tuple) else output
            kept.setdefault(name, []).append(output.detach().numpy().copy())

        handles.append(module.register_forward_hook(hook))

    for block in model.model.visual.blocks:
        keep("visual.blocks", block)
    keep("visual.merger", model.model.visual.merger)
    for layer in model.model.language_model.layers:
        keep("language_model.layers", layer)
    try:
        logits(model, prompts)
    finally:
        for handle in handles:
            handle.remove()
    return kept


def greedy(model, prompt: Prompt, num_tokens: int) -> tuple[list[int], float]:
    """The tokens that `generate` appends to one prompt, and the smallest lead of a winner.

    One prompt at a time, so that nothing is padded; the end token is no end here.
    """
    inputs = {name: value for name, value in batch(model, [prompt]).items() if value is not None}
    del inputs["position_ids"]  # generate makes its own, and continues them
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        out = model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=num_tokens,
            pad_token_id=model.config.text_config.pad_token_id,
            output_scores=True,
            return_dict_in_generate=True,
        )
    best = torch.stack(out.scores)[:, 0].topk(2).values
    tokens = out.sequences[0, len(prompt.ids) :].tolist()
    return tokens, float((best[:, 0] - best[:, 1]).min())


def token_logprobs(
    model, prompts: Sequence[Prompt], completions: Sequence[Sequence[Sequence[int]]]
) -> list[torch.Tensor]:
    """Log-probabilities of completions [B][G], each prompt repeated G times; differentiable."""
    rows = [(p, c) for p, group in zip(prompts, completions, strict=True) for c in group]
    repeated, flat = [p for p, _ in rows], [c for _, c in rows]
    out = model(**batch(model, repeated, flat), use_cache=False).logits
    logprobs = []
    for row, prompt, completion in zip(out, repeated, flat, strict=True):
        start = len(prompt.ids) - 1
        chosen = row[start : start + len(completion)].log_softmax(-1)
        logprobs.append(chosen.gather(1, torch.tensor(completion)[:, None])[:, 0])
    return logprobs


def gradients(
    model, prompts: Sequence[Prompt], completions: Sequence[Sequence[Sequence[int]]]
) -> tuple[float, dict[str, np.ndarray]]:
    """The mean cross-entropy over completion tokens and its gradients, by published names."""
    model.zero_grad()
    loss = -torch.cat(token_logprobs(model, prompts, completions)).mean()
    loss.backward()
    named = {
        mapping.published_name(name): weight.grad.numpy().copy()
        for name, weight in model.named_parameters()
        if weight.grad is not None
    }
    model.zero_grad()
    return loss.item(), named
