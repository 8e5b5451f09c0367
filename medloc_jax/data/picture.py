# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Image files of every kind that can be put in: JPEG, PNG, TIFF, BMP, WebP and DICOM.

Manifests hold ordinary images, so training opens them with `processor.open_image` alone; what is
put in from outside, by `medloc prepare` and `medloc predict`, comes through here.
"""

import os
from pathlib import Path

from PIL import Image

from medloc_jax.data import dicom
from medloc_jax.model import processor

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif"),
    *dicom.SUFFIXES,
)


def open_picture(path: str | os.PathLike[str]) -> Image.Image:
    """Opens an image file of any kind and decodes all of it, as 8-bit RGB.

    Raises:
        ValueError: missing, broken, or of several frames; the message names the file and the cure.
    """
    return dicom.read_image(path) if dicom.is_dicom(path) else processor.open_image(path)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(width, height) in pixels of the stored image, from the header alone.

    Raises:
        ValueError: as `open_picture`, as far as the header tells.
    """
    return dicom.image_size(path) if dicom.is_dicom(path) else processor.image_size(path)


def is_picture(path: str | os.PathLike[str]) -> bool:
    """Whether a file is an image by its name; without a suffix, whether it is DICOM."""
    path = Path(path)
    if path.name.startswith("."):  # .DS_Store, and the ._name.jpg of macOS archives
        return False
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return True
    # Scanners write names such as IM000001 or 1.2.840.113619.2.5, whose last part is a number.
    return not path.suffix.strip(".0123456789") and path.is_file() and dicom.is_dicom(path)


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Every image below a folder, sorted by path; hidden files and folders are left out.

    Raises:
        ValueError: `folder` is not a folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    found: list[Path] = []
    visited: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        if os.path.realpath(parent) in visited:  # a link that leads back up
            folders.clear()
            continue
        visited.add(os.path.realpath(parent))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent, name) for name in files if is_picture(Path(parent, name))]
    return sorted(found)
