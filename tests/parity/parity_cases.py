# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What is compared: model shapes as published config.json files, and prompts with textured images.

Both sides are built from the same config.json content, each by its own reader. Image sizes need no
resize; pixels come from transformers' own image processor, so that only the model is compared here.
"""

import dataclasses
from typing import Any

import numpy as np
from PIL import Image

from medloc_jax.model import config as model_config

Json = dict[str, Any]


def small(
    *, vocab: int = 320, tied: bool = True, text: Json | None = None, vision: Json | None = None
) -> Json:
    """A small model in the published layout; `text` and `vision` change single sizes."""
    text, vision = text or {}, vision or {}
    json: Json = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "attention_dropout": 0.0,
        "bos_token_id": vocab - 16,
        "eos_token_id": vocab - 14,
        "pad_token_id": vocab - 16,
        "vision_start_token_id": vocab - 7,
        "vision_end_token_id": vocab - 6,
        "image_token_id": vocab - 4,
        "video_token_id": vocab - 3,
        "hidden_act": "silu",
        "hidden_size": 128,
        "intermediate_size": 192,
        "max_position_embeddings": 4096,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
        "tie_word_embeddings": tied,
        "use_sliding_window": False,
        "vocab_size": vocab,
    } | text
    json["vision_config"] = {
        "model_type": "qwen2_5_vl",
        "depth": 2,
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 100,
        "num_heads": 4,
        "in_chans": 3,
        "out_hidden_size": json["hidden_size"],
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    } | vision
    return json


def _widths_3b() -> Json:
    """The real 3B, cut to one decoder layer, one windowed and one full vision block."""
    json = model_config.to_hf(model_config.PRESETS["3b"]) | {"num_hidden_layers": 1}
    json["vision_config"] |= {"depth": 2, "fullatt_block_indexes": [1]}
    return json


# Every field that a reader could get wrong is moved away from its usual value somewhere.
CASES: dict[str, Json] = {
    "tied": small(),
    "untied": small(
        tied=False,
        vocab=288,
        text={
            "hidden_size": 96,
            "num_attention_heads": 6,
            "num_key_value_heads": 6,
            "rms_norm_eps": 1e-3,
            "rope_theta": 10000.0,
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        },
    ),
    # The 7B has 28 query heads on 4 key heads of size 128.
    "ratio_7b": small(
        tied=False,
        text={
            "hidden_size": 14 * 128,
            "intermediate_size": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        },
    ),
    # Two neighbouring full blocks, a full first one, and no period.
    "deep_vision": small(
        text={"num_hidden_layers": 2}, vision={"depth": 7, "fullatt_block_indexes": [0, 3, 4]}
    ),
    "tiny": model_config.to_hf(model_config.PRESETS["tiny"]),
    "widths_3b": _widths_3b(),
}
SMALL_CASES = tuple(name for name in CASES if name != "widths_3b")

# (height, width) in patches of the images of each prompt, and its numbers of text tokens before,
# between and after them. None is square, none a whole number of windows (8 x 8 patches at 14
# pixels, 4 x 4 in `tiny`), and the two of a batch differ.
BATCHES: dict[str, tuple[tuple[tuple[tuple[int, int], ...], tuple[int, ...]], ...]] = {
    "pair": ((((12, 18),), (5, 9)), (((10, 6),), (3, 4))),
    "mixed": ((((6, 10), (12, 6)), (2, 3, 6)), ((), (11,))),
}


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        ids: token ids, image placeholders expanded.
        images: (pixel_values in HF order, grid_thw) of each image.
    """

    ids: list[int]
    images: list[tuple[np.ndarray, tuple[int, int, int]]]


def textured_image(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """Waves of several directions plus noise: no two patches alike, no symmetry."""
    y, x = np.mgrid[:height, :width]
    channels = []
    for _ in range(3):
        fy, fx, phase = rng.uniform(0.05, 0.6), rng.uniform(0.05, 0.6), rng.uniform(0, 6)
        channels.append(np.sin(fy * y + fx * x + phase) + 0.01 * (x - 0.7 * y))
    waves = np.stack(channels, -1) * 60 + 128 + rng.normal(0, 25, (height, width, 3))
    return Image.fromarray(np.clip(waves, 0, 255).astype(np.uint8))


def make_prompts(json: Json, seed: int = 7) -> dict[str, list[Prompt]]:
    """The batches of `BATCHES` for a model: {name: prompts}."""
    from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as hf_processing

    vision = json["vision_config"]
    processor = hf_processing.Qwen2VLImageProcessorPil(
        patch_size=vision["patch_size"],
        temporal_patch_size=vision["temporal_patch_size"],
        merge_size=vision["spatial_merge_size"],
        min_pixels=1,
        max_pixels=10**8,
    )
    rng = np.random.default_rng(seed)
    first_special = min(value for key, value in json.items() if key.endswith("_token_id"))

    def text(length: int) -> list[int]:
        return rng.integers(0, first_special, length).tolist()

    def prompt(grids: tuple[tuple[int, int], ...], lengths: tuple[int, ...]) -> Prompt:
        ids, images = text(lengths[0]), []
        for (h, w), length in zip(grids, lengths[1:], strict=True):
            size = vision["patch_size"]
            out = processor(
                [textured_image(rng, h * size, w * size)], do_convert_rgb=True, return_tensors="np"
            )
            grid = tuple(out["image_grid_thw"][0].tolist())
            assert grid == (1, h, w), "the image was resized"
            images.append((np.asarray(out["pixel_values"], np.float32), grid))
            tokens = h * w // vision["spatial_merge_size"] ** 2
            ids += [
                json["vision_start_token_id"],
                *[json["image_token_id"]] * tokens,
                json["vision_end_token_id"],
                *text(length),
            ]
        return Prompt(ids, images)

    return {name: [prompt(*row) for row in batch] for name, batch in BATCHES.items()}


def make_completions(json: Json, lengths: tuple[tuple[int, ...], ...], seed: int = 3):
    """Random completions [B][G] of the given lengths, as lists of text token ids."""
    rng = np.random.default_rng(seed)
    first_special = min(value for key, value in json.items() if key.endswith("_token_id"))
    return [[rng.integers(0, first_special, n).tolist() for n in group] for group in lengths]
