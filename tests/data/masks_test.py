# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import hypothesis
import hypothesis.extra.numpy
import numpy as np
import pytest
from PIL import Image

from medloc_jax.data import masks


def _mask():
    mask = np.zeros((20, 30), bool)
    mask[4:9, 7:21] = True
    return mask


def _write(path, mask, white=255):
    Image.fromarray(np.where(mask, white, 0).astype(np.uint8)).save(path)
    return path


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
    assert masks.read_mask(tmp_path / "grey.png", threshold=126).all()


def test_an_empty_mask_says_what_is_in_it(tmp_path):
    path = _write(tmp_path / "classes.png", _mask(), white=1)
    with pytest.raises(
        ValueError, match="classes.png: the mask is empty: .* 127, the largest is 1"
    ):
        masks.read_mask(path)
    assert (masks.read_mask(path, threshold=0) == _mask()).all()


def test_masks_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match="text.png: not an image"):
        masks.read_mask(tmp_path / "text.png")
    Image.fromarray(np.zeros((4, 4), np.int32)).save(tmp_path / "deep.tif")
    with pytest.raises(ValueError, match="deep.tif: mask of mode I"):
        masks.read_mask(tmp_path / "deep.tif")
    with pytest.raises(ValueError, match="none.png: no such mask file"):
        masks.read_mask(tmp_path / "none.png")
    whole = _write(tmp_path / "cut.png", np.random.default_rng(0).random((50, 60)) > 0.5)
    whole.write_bytes(whole.read_bytes()[:150])
    with pytest.raises(ValueError, match="cut.png: broken or truncated"):
        masks.read_mask(whole)
    frames = [Image.fromarray(_mask()), Image.fromarray(~_mask())]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match="two.gif: a mask of 2 frames"):
        masks.read_mask(tmp_path / "two.gif")


def test_a_box_is_scaled_to_the_image_and_its_edges_stay_edges():
    mask = np.ones((450, 600), bool)
    whole = masks.scale_box_px(masks.tight_box_px(mask), mask, 199, 149)
    assert whole == (0, 0, 199, 149)
    box = masks.scale_box_px(np.array([3.0, 6.0, 300.0, 225.0]), mask, 200, 150)
    assert box == pytest.approx((1, 2, 100, 75))


def test_a_mask_across_its_image_is_refused():
    mask = _mask()  # 30 x 20
    box = masks.tight_box_px(mask)
    for size in ((20, 30), (40, 61)):
        with pytest.raises(
            ValueError, match="30 x 20 px. is turned by a quarter against its image"
        ):
            masks.scale_box_px(box, mask, *size)
    assert masks.scale_box_px(box, mask, 30, 30) == pytest.approx((7, 6, 21, 13.5))


def test_what_should_be_looked_at_is_said():
    mask = _mask()
    assert masks.doubts(mask, 60, 40) == []
    assert masks.doubts(mask, 61, 41) == []  # rounding
    assert "another aspect ratio (30 x 20 px)" in masks.doubts(mask, 40, 40)[0]
    assert "all white" in masks.doubts(np.ones((20, 30), bool), 30, 20)[0]


def test_components_touch_at_corners_and_come_in_raster_order():
    mask = np.array([[0, 1, 0, 0, 1], [1, 0, 0, 0, 1], [0, 0, 0, 0, 0], [1, 1, 0, 0, 0]], bool)
    assert masks.component_boxes_px(mask).tolist() == [[0, 0, 2, 2], [4, 0, 5, 2], [0, 3, 2, 4]]
    assert masks.component_boxes_px(np.zeros((3, 4), bool)).shape == (0, 4)


@hypothesis.given(hypothesis.extra.numpy.arrays(bool, (9, 11)))
def test_components_are_those_of_scipy(mask):
    ndimage = pytest.importorskip("scipy.ndimage")
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    expected = [
        [columns.start, rows.start, columns.stop, rows.stop]
        for rows, columns in ndimage.find_objects(labels)
    ]
    assert sorted(masks.component_boxes_px(mask).tolist()) == sorted(expected)
