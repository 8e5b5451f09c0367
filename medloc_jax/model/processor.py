# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""From an image file to the model's patches: open, resize, normalise, cut (numpy and Pillow).

Equal to transformers' PIL image processor of Qwen2-VL, bit for bit where Pillow is the same.
"""

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from medloc_jax import storage
from medloc_jax.model import geometry
from medloc_jax.model.config import VisionConfig

# The statistics of CLIP's training images, with which Qwen2.5-VL was trained.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# Pillow's modes that hold 8 bits a channel and that it converts to RGB itself.
_SHALLOW_MODES = (
    *("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"),
)
# Modes of one channel that hold more: converting them to RGB would clip nearly all to white.
_DEEP_MODES = ("I", "F")
_TIFF_PHOTOMETRIC, _TIFF_WHITE_IS_ZERO = 262, 0


@functools.lru_cache(maxsize=8)
def _levels(mean: tuple[float, ...], std: tuple[float, ...]) -> Float32[np.ndarray, "3 256"]:
    """The normalised value of each 8-bit level of each channel.

    The order of roundings is transformers': scaled in float64, then float32 throughout.
    """
    unit = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    table = (unit - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[:, None]
    table.flags.writeable = False
    return table


@dataclasses.dataclass(frozen=True)
class ImageProcessor:
    """Resizes an image to whole merged tokens, normalises it and cuts it into patches."""

    patch_size: int
    temporal_patch_size: int
    merge_size: int
    min_pixels: int  # area of the resized image, at least
    max_pixels: int  # and at most
    image_mean: tuple[float, float, float] = CLIP_MEAN
    image_std: tuple[float, float, float] = CLIP_STD

    def __post_init__(self) -> None:
        """Refuses an area range in which no image can lie."""
        if not self.factor**2 <= self.max_pixels or not 0 < self.min_pixels <= self.max_pixels:
            raise ValueError(
                f"min_pixels {self.min_pixels} and max_pixels {self.max_pixels}: needed is "
                f"0 < min_pixels <= max_pixels and max_pixels >= {self.factor**2}, one merged token"
            )

    @classmethod
    def for_model(
        cls, vision: VisionConfig, *, min_pixels: int, max_pixels: int
    ) -> "ImageProcessor":
        """The processor of a model, with CLIP's normalisation.

        Raises:
            ValueError: the model does not read RGB, or the area range is empty.
        """
        if vision.in_channels != 3:
            raise ValueError(f"images are RGB, but the model reads {vision.in_channels} channels")
        return cls(
            patch_size=vision.patch_size,
            temporal_patch_size=vision.temporal_patch_size,
            merge_size=vision.spatial_merge_size,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
        )

    @classmethod
    def from_folder(
        cls,
        path: str | os.PathLike[str],
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> "ImageProcessor":
        """Reads preprocessor_config.json of a Hugging Face folder.

        Args:
            path: the folder.
            min_pixels: replaces the file's value where given.
            max_pixels: replaces the file's value where given.

        Raises:
            ValueError: unreadable, another kind of processor, or a missing key; the message names
                the file and the key.
        """
        file = Path(path) / "preprocessor_config.json"
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{file}: cannot be read as a processor config: {error}") from error
        kind = content.get("image_processor_type", "Qwen2VLImageProcessor")
        if not kind.startswith("Qwen2VLImageProcessor"):
            raise ValueError(f"{file}: image_processor_type {kind!r} is not Qwen2VLImageProcessor")
        for key in ("do_convert_rgb", "do_resize", "do_rescale", "do_normalize"):
            if not content.get(key, True):
                raise ValueError(f"{file}: {key} false is not supported")
        if content.get("resample", Image.Resampling.BICUBIC) != Image.Resampling.BICUBIC:
            raise ValueError(f"{file}: resample {content['resample']} is not 3 (bicubic)")
        size = content.get("size") or {}
        content.setdefault("min_pixels", size.get("shortest_edge"))
        content.setdefault("max_pixels", size.get("longest_edge"))

        def value(key: str) -> Any:
            if content.get(key) is None:
                raise ValueError(f"{file}: {key} is missing")
            return content[key]

        return cls(
            patch_size=value("patch_size"),
            temporal_patch_size=value("temporal_patch_size"),
            merge_size=value("merge_size"),
            min_pixels=value("min_pixels") if min_pixels is None else min_pixels,
            max_pixels=value("max_pixels") if max_pixels is None else max_pixels,
            image_mean=tuple(value("image_mean")),
            image_std=tuple(value("image_std")),
        )

    def to_hf(self) -> dict[str, Any]:
        """The content of a preprocessor_config.json that transformers and vLLM read."""
        return {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
            "patch_size": self.patch_size,
            "temporal_patch_size": self.temporal_patch_size,
            "merge_size": self.merge_size,
            "min_pixels": self.min_pixels,
            "max_pixels": self.max_pixels,
            "size": {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels},
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
        }

    @property
    def factor(self) -> int:
        """Pixels that a side of the resized image is a multiple of."""
        return self.patch_size * self.merge_size

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) in pixels that the model sees of an image of that size."""
        return geometry.smart_resize(
            height,
            width,
            factor=self.factor,
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
        )

    def grid_thw(self, height: int, width: int) -> geometry.Grid:
        """Patch grid of an image of that size, without its pixels."""
        resized_height, resized_width = self.resized_size(height, width)
        return 1, resized_height // self.patch_size, resized_width // self.patch_size

    def __call__(
        self, image: Image.Image
    ) -> tuple[Float32[np.ndarray, "n patch_dim"], geometry.Grid]:
        """Cuts an image into normalised patches.

        Returns:
            pixel_values: in HF's patch order (raster over merged tokens, raster inside each), each
                patch flattened as (channel, frame, row, column).
            grid_thw: (1, rows, columns) in patches.
        """
        height, width = self.resized_size(image.height, image.width)
        image = image.convert("RGB")
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        grid = (1, height // self.patch_size, width // self.patch_size)
        return self._patches(np.asarray(image), grid), grid

    def _patches(
        self, pixels: UInt8[np.ndarray, "height width 3"], grid: geometry.Grid
    ) -> Float32[np.ndarray, "n patch_dim"]:
        size, merge, frames = self.patch_size, self.merge_size, self.temporal_patch_size
        _, rows, columns = grid
        blocks = pixels.reshape(rows // merge, merge, size, columns // merge, merge, size, 3)
        # [row, column of the merged token, row, column inside it, channel, row, column of a pixel]
        blocks = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, 3, 1, size, size)
        levels = _levels(self.image_mean, self.image_std)
        patches = np.empty((len(blocks), 3, frames, size, size), np.float32)
        for channel in range(3):
            # A still image fills every frame of the temporal patch.
            patches[:, channel] = levels[channel][blocks[:, channel]]
        return patches.reshape(len(blocks), -1)


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """Opens an image file and decodes all of it, as 8-bit RGB.

    EXIF orientation is deliberately not applied: boxes are given in the pixels as stored.
    Transparency is dropped, as transformers' processor does, so that a model sees the same pixels
    here and there. Grey levels of 16 or 32 bits, whole or float, are scaled linearly from the
    image's own least and greatest value to 0..255; an image of a single value becomes black.

    Raises:
        ValueError: missing, not an image, truncated, too large to be honest (a decompression bomb),
            empty, of several frames, or of a mode without a way to RGB; the message names the
            file.
    """
    with _opened(path) as image:
        image.load()
        if image.mode.startswith(_DEEP_MODES):
            return _windowed(image, path).convert("RGB")
        return image.convert("RGB")


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(width, height) in pixels from an image file's header; nothing is decoded.

    Raises:
        ValueError: as `open_image`, as far as the header tells.
    """
    with _opened(path) as image:
        return image.size


class UnreadableImageError(ValueError):
    """An image file that is gone or damaged."""


class _UnfitImageError(ValueError):
    """An image that could be decoded but must not be."""


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """An image file whose header is fit; what goes wrong inside is told as a ValueError."""
    try:
        with Image.open(storage.readable(path)) as image:
            _refuse_unfit(image, path)
            yield image
    except FileNotFoundError as error:
        raise UnreadableImageError(f"{path}: no such image file") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{path}: refused as a decompression bomb: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise UnreadableImageError(f"{path}: not an image in a format that Pillow reads") from error
    except _UnfitImageError:
        raise
    except Exception as error:  # what Pillow's decoders raise on broken data has no common class
        raise UnreadableImageError(f"{path}: broken or truncated image: {error}") from error


def _refuse_unfit(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Judges an image by its header, before any pixel is decoded."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise _UnfitImageError(
            f"{path}: refused as a decompression bomb: {image.width} x {image.height} pixels, the "
            f"limit is {limit}"
        )
    if not image.width or not image.height:
        raise _UnfitImageError(f"{path}: empty image of {image.width} x {image.height} pixels")
    if image.mode not in _SHALLOW_MODES and not image.mode.startswith(_DEEP_MODES):
        raise _UnfitImageError(f"{path}: pixels of mode {image.mode}: store the image as RGB")
    # An MPO file is an ordinary photograph with a preview behind it.
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise _UnfitImageError(
            f"{path}: has several frames or pages ({frames}); store the one that is meant by itself"
        )


def _windowed(image: Image.Image, path: str | os.PathLike[str]) -> Image.Image:
    """Grey levels of any depth as 8-bit grey, the least value black and the greatest white."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise _UnfitImageError(f"{path}: holds values that are not finite: replace them")
    low, high = values.min(), values.max()
    levels = np.rint((values - low) * 255 / (high - low or 1.0))
    # Pillow turns WhiteIsZero round where it has 8 bits, but not where it has more.
    tags = getattr(image, "tag_v2", {})
    if tags.get(_TIFF_PHOTOMETRIC) == _TIFF_WHITE_IS_ZERO and high > low:
        levels = 255 - levels
    return Image.fromarray(levels.astype(np.uint8))
