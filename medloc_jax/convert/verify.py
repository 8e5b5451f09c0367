# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One forward pass of transformers and of ours on the same image and text, compared.

Both sides read their own weights: transformers the Hugging Face folder, ours whatever
`parameters.load` takes. Everything is float32, transformers on the CPU.
"""

import dataclasses
import importlib
import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medloc_jax.convert import parameters
from medloc_jax.model import config as model_config
from medloc_jax.model import geometry, qwen2_5_vl

# Largest difference of a logit, as a share of the logits' standard deviation. Float32 sums of
# different order stay under a tenth of it for the published sizes; a wrong transform exceeds it a
# thousandfold.
TOLERANCE = 1e-3
_MODEL_MODULE = "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl"
_GRID = (1, 12, 18)  # patches: no square, no whole number of windows
_TEXT_BEFORE, _TEXT_AFTER = 6, 9  # tokens


@dataclasses.dataclass(frozen=True)
class Report:
    """What the comparison found.

    Attributes:
        difference: largest absolute difference of a logit.
        scale: standard deviation of transformers' logits.
        same_choice: share of positions at which both have the same best token.
    """

    difference: float
    scale: float
    same_choice: float

    @property
    def passed(self) -> bool:
        """Whether the two are the same model."""
        return bool(self.difference <= TOLERANCE * self.scale)

    def __str__(self) -> str:
        """One line."""
        return (
            f"logits differ by at most {self.difference:.2e} (standard deviation {self.scale:.2f}, "
            f"allowed {TOLERANCE * self.scale:.2e}); same best token at {self.same_choice:.0%} of "
            "the positions"
        )


def check_installed() -> None:
    """Raises a ValueError where transformers' model cannot be had: before hours, not after."""
    if importlib.util.find_spec("torch") is None:
        raise ValueError(
            "--verify compares with transformers on torch, which is not installed: `pip install "
            "torch`, or leave --verify out"
        )
    try:
        # transformers imports a class, and torchvision with it, when it is first looked up.
        module = importlib.import_module(_MODEL_MODULE)
        importlib.import_module("torch")
        module.Qwen2_5_VLForConditionalGeneration  # noqa: B018
    except Exception as error:  # a broken installation raises anything
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            "--verify compares with transformers on torch, and its Qwen2.5-VL cannot be imported "
            f"({type(error).__name__}: {reason}): install versions of torch, torchvision and "
            "transformers that fit together, or leave --verify out"
        ) from error


def memory_bytes(config: model_config.ModelConfig) -> int:
    """About what `compare` needs: the float32 weights of both sides."""
    return 8 * model_config.num_parameters(config)


def compare(
    folder: Path,
    source: Path,
    config: model_config.ModelConfig,
    rounded: np.dtype | None = None,
) -> Report:
    """Compares the two.

    Args:
        folder: Hugging Face's, for transformers.
        source: for `parameters.load`.
        config: of the model.
        rounded: the dtype that one of the two was converted to; both sides' weights are rounded
            to it. None: the weights as they are.

    Raises:
        ValueError: torch is not installed, or weights cannot be read.
    """
    check_installed()
    ids, pixels = _inputs(config)
    expected = _transformers(folder, ids, pixels, rounded)
    ours = _ours(source, config, ids, pixels, rounded)
    return Report(
        difference=float(np.abs(ours - expected).max()),
        scale=float(expected.std()),
        same_choice=float((ours.argmax(-1) == expected.argmax(-1)).mean()),
    )


def _inputs(config: model_config.ModelConfig) -> tuple[list[int], np.ndarray]:
    """A prompt with one image: no two patches alike, and no symmetry."""
    rng = np.random.default_rng(0)
    # A range that no added token is in, for the large and the small tokenizers.
    words = rng.integers(0, config.pad_token_id, _TEXT_BEFORE + _TEXT_AFTER).tolist()
    image = [config.image_token_id] * geometry.merged_tokens(_GRID, config.vision)
    ids = [
        *words[:_TEXT_BEFORE],
        config.vision_start_token_id,
        *image,
        config.vision_end_token_id,
        *words[_TEXT_BEFORE:],
    ]
    pixels = rng.standard_normal((_GRID[1] * _GRID[2], config.vision.patch_dim), np.float32)
    return ids, pixels


def _ours(
    source: Path,
    config: model_config.ModelConfig,
    ids: list[int],
    pixels: np.ndarray,
    rounded: np.dtype | None,
) -> np.ndarray:
    model = qwen2_5_vl.Model(config, remat="none")
    dtype = rounded or np.dtype(np.float32)
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), model.abstract_params()
    )
    params = jax.tree.map(lambda x: x.astype(jnp.float32), parameters.load(source, config, like))
    row = geometry.pack_row(ids, [(pixels, _GRID)], config)
    (bucket,) = geometry.plan_buckets([row.shape], max_buckets=1)
    inputs = jax.tree.map(jnp.asarray, geometry.collate([row], bucket, config))

    def logits(params: Any, inputs: geometry.ModelInputs) -> jax.Array:
        return model.logits(params, inputs, model.encode_images(params, inputs))

    with jax.default_matmul_precision("highest"):  # for accelerators that round float32 down
        found = jax.jit(logits)(params, inputs)
    return np.asarray(found[0, : len(ids)])


def _transformers(
    folder: Path, ids: list[int], pixels: np.ndarray, rounded: np.dtype | None
) -> np.ndarray:
    # Seconds to import; and only whoever asks for --verify needs torch.
    import torch  # pyright: ignore[reportMissingImports]  # an optional extra
    import transformers

    model = transformers.AutoModelForImageTextToText.from_pretrained(
        str(folder), dtype=torch.float32, attn_implementation="eager", local_files_only=True
    ).eval()
    if rounded is not None:
        for weight in model.parameters():  # not the buffers: angles stay float32
            weight.data = weight.data.to(getattr(torch, rounded.name)).float()
    tokens = torch.tensor([ids])
    with torch.no_grad():
        logits = model(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            mm_token_type_ids=(tokens == model.config.image_token_id).int(),
            pixel_values=torch.from_numpy(pixels),
            image_grid_thw=torch.tensor([_GRID]),
            use_cache=False,
        ).logits
    return logits[0].float().numpy()
