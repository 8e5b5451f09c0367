# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Sizes of a Qwen2.5-VL model: frozen dataclasses, presets, and Hugging Face's config.json.

Field names are Hugging Face's. Reading is strict: a size that config.json leaves out is never
filled in from a class default, because 3B, 7B and 32B differ exactly where the defaults are silent.

Reference: Qwen2.5-VL Technical Report, arXiv:2502.13923, Table 1.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MODEL_TYPE = "qwen2_5_vl"


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Sizes of the vision tower and the merger; lengths of patches and windows are in pixels."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int
    window_size: int
    fullatt_block_indexes: tuple[int, ...]
    out_hidden_size: int

    def __post_init__(self) -> None:
        """Refuses sizes that do not divide."""
        if self.hidden_size % self.num_heads or self.head_dim % 4:
            raise ValueError(
                f"vision hidden_size {self.hidden_size} over num_heads {self.num_heads} must be a "
                "multiple of 4: 2-D rotary needs pairs for rows and for columns"
            )
        if self.window_size % (self.patch_size * self.spatial_merge_size):
            raise ValueError(
                f"vision window_size {self.window_size} must be a multiple of patch_size * "
                f"spatial_merge_size = {self.patch_size * self.spatial_merge_size}"
            )
        beyond = [i for i in self.fullatt_block_indexes if not 0 <= i < self.depth]
        if beyond:
            raise ValueError(
                f"vision fullatt_block_indexes {beyond} lie outside depth {self.depth}"
            )

    @property
    def patch_dim(self) -> int:
        """Values in one flattened patch."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def merge_unit(self) -> int:
        """Patches that the merger joins into one token."""
        return self.spatial_merge_size**2

    @property
    def window_patches(self) -> int:
        """Patches in a full attention window (S)."""
        return (self.window_size // self.patch_size) ** 2

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Sizes of the language model."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    rms_norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, ...]
    tie_word_embeddings: bool

    def __post_init__(self) -> None:
        """Refuses sizes that do not divide."""
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} does not divide into "
                f"num_attention_heads {self.num_attention_heads}"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if len(self.mrope_section) != 3 or 2 * sum(self.mrope_section) != self.head_dim:
            raise ValueError(
                f"mrope_section {self.mrope_section} must be three numbers whose sum is half of "
                f"the head size {self.head_dim}"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A whole model: both towers and the token ids that the model itself must know."""

    text: TextConfig
    vision: VisionConfig
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    eos_token_id: int
    pad_token_id: int

    def __post_init__(self) -> None:
        """Refuses towers that do not fit together and token ids beyond the vocabulary."""
        if self.vision.out_hidden_size != self.text.hidden_size:
            raise ValueError(
                f"vision out_hidden_size {self.vision.out_hidden_size} must equal the language "
                f"model's hidden_size {self.text.hidden_size}"
            )
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_token_id") and not 0 <= value < self.text.vocab_size:
                raise ValueError(
                    f"{field.name} {value} lies outside vocab_size {self.text.vocab_size}"
                )


def num_parameters(config: ModelConfig) -> int:
    """Number of parameters, from the shapes alone."""
    text, vision = config.text, config.vision
    d, f = text.hidden_size, text.intermediate_size
    keys = text.num_key_value_heads * text.head_dim
    attention = 2 * d * d + d + 2 * (d * keys + keys)  # q with bias, o without, k and v with
    layer = attention + 3 * d * f + 2 * d
    language = text.num_hidden_layers * layer + d + text.vocab_size * d
    if not text.tie_word_embeddings:
        language += text.vocab_size * d
    d, f = vision.hidden_size, vision.intermediate_size
    block = 4 * d * d + 4 * d + (3 * d * f + 2 * f + d) + 2 * d
    wide = d * vision.merge_unit
    merger = d + wide * wide + wide + wide * vision.out_hidden_size + vision.out_hidden_size
    return language + vision.patch_dim * d + vision.depth * block + merger


def _qwen(
    *,
    hidden_size: int,
    intermediate_size: int,
    num_hidden_layers: int,
    num_attention_heads: int,
    num_key_value_heads: int,
    vocab_size: int,
    tie_word_embeddings: bool,
    vision_intermediate_size: int,
) -> ModelConfig:
    """A published size; what all four share is written here once."""
    return ModelConfig(
        text=TextConfig(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_hidden_layers=num_hidden_layers,
            num_attention_heads=num_attention_heads,
            num_key_value_heads=num_key_value_heads,
            rms_norm_eps=1e-6,
            rope_theta=1e6,
            mrope_section=(16, 24, 24),
            tie_word_embeddings=tie_word_embeddings,
        ),
        vision=VisionConfig(
            depth=32,
            hidden_size=1280,
            intermediate_size=vision_intermediate_size,
            num_heads=16,
            in_channels=3,
            patch_size=14,
            temporal_patch_size=2,
            spatial_merge_size=2,
            window_size=112,
            fullatt_block_indexes=(7, 15, 23, 31),
            out_hidden_size=hidden_size,
        ),
        image_token_id=151655,
        video_token_id=151656,
        vision_start_token_id=151652,
        vision_end_token_id=151653,
        eos_token_id=151645,
        pad_token_id=151643,
    )


def _small(text: TextConfig, vision: VisionConfig, first_added_id: int) -> ModelConfig:
    """A model for the byte-level tokenizer, whose added tokens keep Qwen's order."""
    return ModelConfig(
        text=text,
        vision=vision,
        pad_token_id=first_added_id,
        eos_token_id=first_added_id + 2,
        vision_start_token_id=first_added_id + 9,
        vision_end_token_id=first_added_id + 10,
        image_token_id=first_added_id + 12,
        video_token_id=first_added_id + 13,
    )


# The id of <|endoftext|> in the byte-level tokenizer: 256 bytes and 74 merges come before it.
TINY_FIRST_ADDED_ID = 330

PRESETS: dict[str, ModelConfig] = {
    # Small enough for a laptop, yet every feature is alive: windows of 2x2 merged tokens (a 64-px
    # image spans four), both kinds of vision block, grouped heads, all three M-RoPE sections.
    "tiny": _small(
        TextConfig(
            vocab_size=352,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=1e-6,
            # Positions run to 60 here, not to 128,000: at 1e6 the frequencies that M-RoPE gives
            # to columns would turn by less than a thousandth over the whole image.
            rope_theta=10.0,
            mrope_section=(4, 6, 6),
            tie_word_embeddings=True,
        ),
        VisionConfig(
            depth=4,
            hidden_size=64,
            intermediate_size=128,
            num_heads=4,
            in_channels=3,
            patch_size=8,
            temporal_patch_size=2,
            spatial_merge_size=2,
            window_size=32,
            fullatt_block_indexes=(1, 3),
            out_hidden_size=128,
        ),
        TINY_FIRST_ADDED_ID,
    ),
    # The size at which benchmarks compare with other projects.
    "bench_tiny": _small(
        TextConfig(
            vocab_size=2048,
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=2,
            rms_norm_eps=1e-6,
            rope_theta=1e6,
            mrope_section=(4, 6, 6),
            tie_word_embeddings=True,
        ),
        VisionConfig(
            depth=4,
            hidden_size=128,
            intermediate_size=344,
            num_heads=4,
            in_channels=3,
            patch_size=14,
            temporal_patch_size=2,
            spatial_merge_size=2,
            window_size=112,
            fullatt_block_indexes=(3,),
            out_hidden_size=256,
        ),
        TINY_FIRST_ADDED_ID,
    ),
    "3b": _qwen(
        hidden_size=2048,
        intermediate_size=11008,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=2,
        vocab_size=151936,
        tie_word_embeddings=True,
        vision_intermediate_size=3420,
    ),
    "7b": _qwen(
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
        tie_word_embeddings=False,
        vision_intermediate_size=3420,
    ),
    "32b": _qwen(
        hidden_size=5120,
        intermediate_size=27648,
        num_hidden_layers=64,
        num_attention_heads=40,
        num_key_value_heads=8,
        vocab_size=152064,
        tie_word_embeddings=False,
        vision_intermediate_size=3456,
    ),
    "72b": _qwen(
        hidden_size=8192,
        intermediate_size=29568,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=152064,
        tie_word_embeddings=False,
        vision_intermediate_size=3456,
    ),
}


def preset(name_or_folder: str) -> ModelConfig:
    """The preset of that name, else the config.json of that folder.

    Raises:
        ValueError: it is neither a preset nor a folder with a config.json.
    """
    if name_or_folder in PRESETS:
        return PRESETS[name_or_folder]
    if Path(name_or_folder).is_dir():
        return from_hf(name_or_folder)
    raise ValueError(
        f"model preset {name_or_folder!r} is neither one of {', '.join(PRESETS)} nor a folder with "
        "a config.json"
    )


class _Section:
    """One object of a config.json that names file and key when something is missing or wrong."""

    def __init__(self, values: Mapping[str, Any], where: str):
        self.values = values
        self.where = where

    def present(self, *keys: str) -> str:
        """The first of these keys that is present and not null."""
        for key in keys:
            if self.values.get(key) is not None:
                return key
        raise ValueError(f"{self.where}: {' or '.join(keys)} is missing")

    def first(self, *keys: str) -> Any:
        """The value of that key."""
        return self.values[self.present(*keys)]

    def integer(self, *keys: str) -> int:
        value = self.first(*keys)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{self.where}: {keys[0]} must be an integer, not {value!r}")
        return value

    def number(self, *keys: str) -> float:
        value = self.first(*keys)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{self.where}: {keys[0]} must be a number, not {value!r}")
        return float(value)

    def integers(self, *keys: str) -> tuple[int, ...]:
        value = self.first(*keys)
        if not isinstance(value, list | tuple) or not all(type(v) is int for v in value):
            raise ValueError(f"{self.where}: {keys[0]} must be a list of integers, not {value!r}")
        return tuple(value)

    def section(self, *keys: str) -> "_Section":
        key = self.present(*keys)
        if not isinstance(self.values[key], Mapping):
            raise ValueError(f"{self.where}: {key} must be an object, not {self.values[key]!r}")
        return _Section(self.values[key], f"{self.where}: {key}")

    def refuse_unless(self, key: str, *allowed: Any) -> None:
        value = self.values.get(key)
        if value is not None and value not in allowed:
            raise ValueError(f"{self.where}: {key} {value!r} is not supported, only {allowed[0]!r}")


def from_hf(path_or_dict: str | os.PathLike[str] | Mapping[str, Any]) -> ModelConfig:
    """Reads Hugging Face's config.json of a Qwen2.5-VL model.

    Both layouts are read: the published flat one (text sizes at the top level, `rope_scaling`) and
    the newer nested one (`text_config`, `rope_parameters`).

    Args:
        path_or_dict: a folder with a config.json, that file itself, or its content.

    Raises:
        ValueError: unreadable, another model type, a feature that this model does not have, or a
            missing or malformed key; the message names the file and the key.
    """
    if isinstance(path_or_dict, Mapping):
        top = _Section(path_or_dict, "config.json")
    else:
        path = Path(path_or_dict)
        path = path / "config.json" if path.is_dir() else path
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: cannot be read as a model config: {error}") from error
        if not isinstance(content, dict):
            raise ValueError(f"{path}: a model config must be a JSON object")
        top = _Section(content, str(path))
    if top.values.get("model_type") != MODEL_TYPE:
        raise ValueError(
            f"{top.where}: model_type {top.values.get('model_type')!r} is not supported, only "
            f"{MODEL_TYPE!r}"
        )
    text = top.section("text_config") if top.values.get("text_config") is not None else top
    # Token ids and tying moved between the two levels over the versions of transformers.
    either = _Section({**text.values, **_present(top.values)}, top.where)
    vision = _vision_from_hf(top.section("vision_config"))
    return ModelConfig(
        text=_text_from_hf(text, either),
        vision=vision,
        image_token_id=either.integer("image_token_id"),
        video_token_id=either.integer("video_token_id"),
        vision_start_token_id=either.integer("vision_start_token_id"),
        vision_end_token_id=either.integer("vision_end_token_id"),
        eos_token_id=either.integer("eos_token_id"),
        # Published files name no padding token; the tokenizer's is the beginning-of-text token.
        pad_token_id=either.integer("pad_token_id", "bos_token_id"),
    )


def _present(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _text_from_hf(text: _Section, either: _Section) -> TextConfig:
    text.refuse_unless("hidden_act", "silu")
    text.refuse_unless("use_sliding_window", False)
    rope = text.section("rope_parameters", "rope_scaling")
    for key in ("type", "rope_type"):
        rope.refuse_unless(key, "mrope", "default")
    theta = _Section({**text.values, **_present(rope.values)}, text.where)
    tied = either.first("tie_word_embeddings")
    if not isinstance(tied, bool):
        raise ValueError(f"{either.where}: tie_word_embeddings must be true or false, not {tied!r}")
    return TextConfig(
        vocab_size=text.integer("vocab_size"),
        hidden_size=text.integer("hidden_size"),
        intermediate_size=text.integer("intermediate_size"),
        num_hidden_layers=text.integer("num_hidden_layers"),
        num_attention_heads=text.integer("num_attention_heads"),
        num_key_value_heads=text.integer("num_key_value_heads"),
        rms_norm_eps=text.number("rms_norm_eps"),
        rope_theta=theta.number("rope_theta"),
        mrope_section=rope.integers("mrope_section"),
        tie_word_embeddings=tied,
    )


def _vision_from_hf(vision: _Section) -> VisionConfig:
    vision.refuse_unless("hidden_act", "silu")
    return VisionConfig(
        depth=vision.integer("depth"),
        hidden_size=vision.integer("hidden_size"),
        intermediate_size=vision.integer("intermediate_size"),
        num_heads=vision.integer("num_heads"),
        in_channels=vision.integer("in_channels", "in_chans"),
        patch_size=vision.integer("patch_size"),
        temporal_patch_size=vision.integer("temporal_patch_size"),
        spatial_merge_size=vision.integer("spatial_merge_size"),
        window_size=vision.integer("window_size"),
        fullatt_block_indexes=vision.integers("fullatt_block_indexes"),
        out_hidden_size=vision.integer("out_hidden_size"),
    )


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The content of a config.json that transformers reads, in the published flat layout."""
    vision = dataclasses.asdict(config.vision)
    vision["in_chans"] = vision["in_channels"]  # the published name; transformers reads the other
    vision["spatial_patch_size"] = config.vision.patch_size
    vision["fullatt_block_indexes"] = list(config.vision.fullatt_block_indexes)
    text = dataclasses.asdict(config.text)
    section = list(text.pop("mrope_section"))
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": MODEL_TYPE,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 128000,
        "use_cache": True,
        "use_sliding_window": False,
        **text,
        "rope_scaling": {"type": "mrope", "mrope_section": section},
        "bos_token_id": config.pad_token_id,
        "pad_token_id": config.pad_token_id,
        "eos_token_id": config.eos_token_id,
        "image_token_id": config.image_token_id,
        "video_token_id": config.video_token_id,
        "vision_start_token_id": config.vision_start_token_id,
        "vision_end_token_id": config.vision_end_token_id,
        "vision_config": {**vision, "hidden_act": "silu", "tokens_per_second": 2},
    }
