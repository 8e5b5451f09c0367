# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from medloc_jax.data import augment, masks


@st.composite
def _pictures(draw):
    """A grey picture with a white rectangle, and the rectangle's box."""
    width, height = draw(st.integers(24, 80)), draw(st.integers(24, 80))
    x1, y1 = draw(st.integers(0, width - 8)), draw(st.integers(0, height - 8))
    x2, y2 = draw(st.integers(x1 + 8, width)), draw(st.integers(y1 + 8, height))
    pixels = np.full((height, width, 3), 40, np.uint8)
    pixels[y1:y2, x1:x2] = 255
    return Image.fromarray(pixels), np.array([x1, y1, x2, y2], np.float64)


@hypothesis.given(
    _pictures(),
    st.lists(st.sampled_from(list(augment.AUGMENTATIONS)), min_size=1, max_size=3),
    st.integers(0, 10**9),
)
def test_the_box_follows_the_target(case, names, position):
    picture, box = case
    changed, new_box = augment.augment(picture, box, names, seed=1, position=position)
    assert changed.size == picture.size
    limit = np.array([picture.width, picture.height] * 2)
    assert (new_box >= 0).all() and (new_box <= limit).all()
    white = np.asarray(changed)[:, :, 0] > 147
    found = masks.tight_box_px(white)
    # A box at the border may stretch with the repeated edge; inside it ends within a pixel.
    inside = (new_box > 0.5) & (new_box < limit - 0.5) & (box > 0) & (box < limit)
    assert np.abs(found - new_box)[inside].max(initial=0) <= 1.01
    if set(names) <= {"hflip", "vflip"}:
        assert (found == new_box).all()
    # The target stays whole: only the zoom, within its bounds, changes its size.
    zoom = (new_box[2:] - new_box[:2]) / (box[2:] - box[:2])
    assert zoom.min() > augment.MAX_ZOOM ** -len(names) - 1e-6
    assert zoom.max() < augment.MAX_ZOOM ** len(names) + 1e-6
    np.testing.assert_allclose(zoom[0], zoom[1], rtol=1e-6)


def test_it_is_a_function_of_seed_and_position():
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    picture, box = Image.fromarray(pixels), np.array([10.0, 5.0, 30.0, 30.0])
    names = ("hflip", "vflip", "rescale")

    def box_at(seed, position):
        return augment.augment(picture, box, names, seed=seed, position=position)[1].tolist()

    assert box_at(0, 5) == box_at(0, 5)
    assert len({tuple(box_at(0, position)) for position in range(8)}) == 8
    assert box_at(0, 5) != box_at(1, 5)


@pytest.mark.parametrize("name", ["hflip", "vflip"])
def test_a_flip_comes_in_about_half_of_the_rows_and_undoes_itself(name):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    picture, box = Image.fromarray(pixels), np.array([3.0, 2.0, 11.0, 9.0])
    flipped = 0
    for position in range(200):
        changed, new_box = augment.augment(picture, box, [name], seed=0, position=position)
        if (new_box != box).any():
            flipped += 1
            axis = 1 if name == "hflip" else 0
            assert (np.flip(np.asarray(changed), axis) == pixels).all()
    assert 70 < flipped < 130


@pytest.mark.parametrize("margin", [0, 2])
def test_a_target_that_nearly_fills_the_picture_is_not_cut(margin):
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    box = np.array([margin, margin, 40 - margin, 30 - margin], np.float64)
    zooms = []
    for position in range(60):
        _, new_box = augment.augment(
            Image.fromarray(pixels), box, ["rescale"], seed=0, position=position
        )
        # A side that were cut would be shorter than the other by its share.
        zoom = (new_box[2:] - new_box[:2]) / (box[2:] - box[:2])
        np.testing.assert_allclose(zoom[0], zoom[1], rtol=1e-6)
        zooms.append(zoom[0])
    assert min(zooms) < 0.85
    np.testing.assert_allclose(max(zooms), 40 / (40 - 2 * margin), rtol=1e-6)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="data.augment names 'rotate'"):
        augment.check_names(["hflip", "rotate"])
