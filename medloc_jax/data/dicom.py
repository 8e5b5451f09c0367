# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""From a DICOM file to an 8-bit RGB image: pixels only, no other tag is even read.

The order is that of the standard (PS3.4 N.2): modality LUT or rescale, then the first VOI LUT or
window, then the polarity of the photometric interpretation. Without a window the image's own range
is used, padding left out. Pixels are never resampled, so boxes keep their meaning.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

SUFFIXES = (".dcm", ".dicom")

# All that is needed to show the pixels: names, dates and numbers of patients stay in the file.
_TAGS = [
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames"),
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "PixelPresentation"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
    *(
        f"{kind}{colour}PaletteColorLookupTableData"
        for kind in ("", "Segmented")
        for colour in ("Red", "Green", "Blue")
    ),
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in ("Red", "Green", "Blue")),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *("PixelData", "FloatPixelData", "DoubleFloatPixelData"),
]
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_GREY = ("MONOCHROME1", "MONOCHROME2")
# What pydicom gives as RGB, uncompressed or from its decoders.
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_DECODERS = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"


class _UnfitError(ValueError):
    """A file that is understood and refused; the message is complete."""


def is_dicom(path: str | os.PathLike[str]) -> bool:
    """Whether a file is, or by its name claims to be, DICOM."""
    return Path(path).suffix.lower() in SUFFIXES or _has_magic(path)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(width, height) in pixels from the header; pixels are not read.

    Raises:
        ValueError: as `read_image`, as far as the header tells.
    """
    try:
        header = _read(path, stop_before_pixels=True)
        return int(header.Columns), int(header.Rows)
    except _UnfitError:
        raise
    except Exception as error:  # pydicom raises many classes on broken files
        raise ValueError(f"{path}: {_broken(error)}") from error


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """The pixels of a DICOM file as 8-bit RGB, black to white as a viewer would show them.

    Raises:
        ValueError: pydicom is not installed, not DICOM, without pixels, several frames, an unknown
            photometric interpretation, compressed without a decoder at hand, or broken; the
            message names the file and the cure.
    """
    try:
        return _render(_read(path), path)
    except _UnfitError:
        raise
    except Exception as error:  # pydicom raises many classes on broken files
        raise ValueError(f"{path}: {_broken(error)}") from error


def write_png(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Renders a DICOM file to a PNG, which holds the pixels and nothing else.

    Raises:
        ValueError: as `read_image`.
    """
    read_image(source).save(target, format="PNG")


def _pydicom() -> Any:
    """The library, imported when the first DICOM file is met."""
    try:
        import pydicom
        import pydicom.pixels
    except ImportError as error:
        raise _UnfitError(
            f"DICOM images need pydicom ({error}): pip install 'medloc_jax[dicom]'"
        ) from error
    return pydicom


def _has_magic(path: str | os.PathLike[str]) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _read(path: str | os.PathLike[str], *, stop_before_pixels: bool = False) -> Any:
    """The tags that say how to show the pixels."""
    if not os.path.isfile(path):
        raise _UnfitError(f"{path}: no such DICOM file")
    if not _has_magic(path):
        raise _UnfitError(
            f"{path}: not a DICOM file (no DICM after the preamble): replace it, or take it away"
        )
    data = _pydicom().dcmread(path, specific_tags=_TAGS, stop_before_pixels=stop_before_pixels)
    if not stop_before_pixels and not any(name in data for name in _PIXELS):
        raise _UnfitError(
            f"{path}: a DICOM file without pixels, such as a report: take it out of the folder"
        )
    if not data.get("Rows") or not data.get("Columns"):
        raise _UnfitError(f"{path}: a DICOM file without Rows and Columns, so without an image")
    frames = int(data.get("NumberOfFrames") or 1)
    if frames > 1:
        raise _UnfitError(
            f"{path}: holds {frames} frames; store the one that is meant in a file by itself"
        )
    return data


def _render(data: Any, path: str | os.PathLike[str]) -> Image.Image:
    kind = str(data.get("PhotometricInterpretation", "none"))
    if kind not in (*_GREY, *_COLOUR, "PALETTE COLOR"):
        raise _UnfitError(
            f"{path}: photometric interpretation {kind} is not read: convert the file to one of "
            f"{', '.join((*_GREY, *_COLOUR, 'PALETTE COLOR'))}"
        )
    _require_decoder(data, path)
    stored = _pydicom().pixels.pixel_array(data)
    if kind == "PALETTE COLOR":
        levels = _palette_levels(stored, data)
    elif kind in _COLOUR:
        # pydicom has made RGB of the YBR kinds.
        levels = _stretch(stored, 0.0, 2.0 ** int(data.BitsStored) - 1)
    else:
        levels = _grey_levels(stored, data, path)
    return Image.fromarray(levels).convert("RGB")


def _require_decoder(data: Any, path: str | os.PathLike[str]) -> None:
    """Refuses a compressed file that nothing installed can decode."""
    syntax = data.file_meta.TransferSyntaxUID
    if not syntax.is_compressed:
        return
    cure = "or decompress the file, for example with `dcmdjpeg`"
    try:
        decoder = _pydicom().pixels.get_decoder(syntax)
    except NotImplementedError as error:
        raise _UnfitError(
            f"{path}: compressed as {syntax.name}, which is not read: {cure[3:]}"
        ) from (error)
    if not decoder.is_available:
        raise _UnfitError(
            f"{path}: compressed as {syntax.name}, and no decoder for it is installed: "
            f"{_DECODERS}, {cure}"
        )


def _palette_levels(stored: np.ndarray, data: Any) -> UInt8[np.ndarray, "h w 3"]:
    colours = _pydicom().pixels.apply_color_lut(stored, data)[..., :3]
    # Entries of 16 bits fill them, except where tables of 8 bits are stored in 16.
    return _stretch(colours, 0.0, 65535.0 if colours.max(initial=0) > 255 else 255.0)


def _grey_levels(
    stored: np.ndarray, data: Any, path: str | os.PathLike[str]
) -> UInt8[np.ndarray, "h w"]:
    """Modality LUT, VOI LUT or window, polarity; padding is black."""
    pixels = _pydicom().pixels
    padding = _padding(stored, data)
    values = np.asarray(pixels.apply_modality_lut(stored, data))
    if data.get("VOILUTSequence"):
        # The table is indexed by whole numbers, and rescaling has made floats of them.
        values = pixels.apply_voi(np.rint(values).astype(np.int64), data, index=0)
        low, high = 0.0, 2.0 ** int(data.VOILUTSequence[0].LUTDescriptor[2]) - 1
    elif data.get("WindowCenter") is not None and data.get("WindowWidth") is not None:
        _refuse_window(data, path)
        # pydicom's output range depends on five tags; its ends are asked for by values far outside.
        ends = np.array([-1e30, 1e30])
        with np.errstate(over="ignore"):
            low, high = (float(end) for end in pixels.apply_windowing(ends, data, index=0))
        values = pixels.apply_windowing(values, data, index=0)
    else:
        shown = values[~padding]
        low, high = (float(shown.min()), float(shown.max())) if shown.size else (0.0, 0.0)
    levels = _stretch(values, low, high)
    if data.PhotometricInterpretation == "MONOCHROME1":
        levels = 255 - levels
    levels[padding] = 0
    return levels


def _refuse_window(data: Any, path: str | os.PathLike[str]) -> None:
    """A window narrower than the standard allows shows nothing."""
    width = data.WindowWidth if data["WindowWidth"].VM == 1 else data.WindowWidth[0]
    linear = str(data.get("VOILUTFunction") or "LINEAR") == "LINEAR"
    if not (float(width) >= 1 if linear else float(width) > 0):
        raise _UnfitError(
            f"{path}: WindowWidth {width} shows nothing: correct it, or delete WindowCenter and "
            "WindowWidth to use the image's own range"
        )


def _padding(stored: np.ndarray, data: Any) -> np.ndarray:
    """True where a pixel only fills up the frame, bool[h, w]."""
    value = data.get("PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, bool)
    limit = data.get("PixelPaddingRangeLimit")
    low, high = sorted((int(value), int(value if limit is None else limit)))
    return (stored >= low) & (stored <= high)


def _stretch(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values as levels, u8: `low` -> 0, `high` -> 255, what is outside at the ends."""
    span = high - low
    unit = (values.astype(np.float64) - low) / (span if span > 0 else 1.0)
    return np.rint(255 * np.clip(unit, 0, 1)).astype(np.uint8)


def _broken(error: Exception) -> str:
    """What pydicom stumbled over, in one line, and the cure."""
    reason = " ".join(str(error).split()) or type(error).__name__
    cure = "replace the file"
    if isinstance(error, RuntimeError):  # of a decoder; another one may know the variant
        cure += f", or {_DECODERS}"
    return f"broken or truncated DICOM file: {reason}: {cure}"
