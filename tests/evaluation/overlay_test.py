# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The picture of an answer."""

import numpy as np
from PIL import Image

from medloc_jax.evaluation import overlay


def _pixels(image, color):
    return np.argwhere((np.asarray(image) == color).all(axis=2))  # (row, column)


def test_boxes_lie_where_they_are_in_the_stored_image():
    picture = Image.new("RGB", (200, 100), (128, 128, 128))
    sheet = overlay.draw(picture, [20.0, 10.0, 120.0, 60.0], [[40.0, 20.0, 80.0, 50.0]])
    scale = sheet.width / 200
    assert sheet.size == (round(200 * scale), round(100 * scale)) and scale > 1
    for color, box in [
        (overlay.ANSWER_COLOR, [20.0, 10.0, 120.0, 60.0]),
        (overlay.OTHERS_COLOR, [40.0, 20.0, 80.0, 50.0]),
    ]:
        found = _pixels(sheet, color)
        low, high = found.min(axis=0)[::-1], found.max(axis=0)[::-1] + 1
        np.testing.assert_allclose([*low, *high], np.array(box) * scale, atol=1)


def test_the_caption_takes_a_strip_of_its_own_and_is_shortened():
    picture = Image.new("RGB", (600, 500), (10, 20, 30))
    plain = overlay.draw(picture, None)
    captioned = overlay.draw(picture, None, caption="no box " * 100)
    assert plain.size == (600, 500) and captioned.height > 500
    np.testing.assert_array_equal(np.asarray(captioned)[:500], np.asarray(plain))
    strip = np.asarray(captioned)[500:]
    assert strip.min() < 100  # letters
    assert (strip[:, -8:] == 255).all()  # that end before the edge


def test_a_large_picture_is_reduced():
    assert overlay.draw(Image.new("RGB", (4000, 1000)), None).size == (1600, 400)


def test_a_written_picture_reads_back(tmp_path):
    sheet = overlay.draw(Image.new("RGB", (50, 50)), [1.0, 1.0, 9.0, 9.0])
    overlay.write(tmp_path / "new" / "a.png", sheet)
    with Image.open(tmp_path / "new" / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(sheet))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]
