# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from PIL import Image

from medloc_jax.data import masks


def _mask():
    mask = np.zeros((20, 30), bool)
    mask[4:9, 7:21] = True
    return mask


def test_the_box_is_tight_and_half_open():
    assert masks.tight_box_px(_mask()).tolist() == [7, 4, 21, 9]
    with pytest.raises(ValueError, match="no true pixel"):
        masks.tight_box_px(np.zeros((3, 3), bool))


def test_an_inverted_palette_is_read_by_its_colours(tmp_path):
    indices = np.where(_mask(), 0, 1).astype(np.uint8)  # 0 is white in this palette
    image = Image.fromarray(indices).convert("P")
    image.putpalette([255, 255, 255, 0, 0, 0])
    image.save(tmp_path / "palette.png")
    assert (masks.read_mask(tmp_path / "palette.png") == _mask()).all()


def test_a_grey_mask_is_thresholded(tmp_path):
    Image.fromarray(np.where(_mask(), 128, 127).astype(np.uint8)).save(tmp_path / "grey.png")
    assert (masks.read_mask(tmp_path / "grey.png") == _mask()).all()


def test_masks_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match="text.png: cannot be read"):
        masks.read_mask(tmp_path / "text.png")
    Image.fromarray(np.zeros((4, 4), np.int32)).save(tmp_path / "deep.tif")
    with pytest.raises(ValueError, match="deep.tif: mask of mode I"):
        masks.read_mask(tmp_path / "deep.tif")
