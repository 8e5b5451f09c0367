# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import hashlib
import json
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from PIL import Image

from medloc_jax.model import config as model_config
from medloc_jax.model import processor

SHARED = Path(__file__).resolve().parents[2] / "../shared/processor"
QWEN = processor.ImageProcessor(14, 2, 2, min_pixels=3136, max_pixels=12_845_056)
TINY = processor.ImageProcessor.for_model(
    model_config.PRESETS["tiny"].vision, min_pixels=256, max_pixels=4096
)


def pattern(height, width):
    """A textured image that is neither symmetric nor square."""
    y, x = np.mgrid[:height, :width]
    channels = [(7 * x + 3 * y) % 256, (x * y) % 256, (5 * x * x + 11 * y) % 256]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


# sha256 of what transformers 5.23's PIL processor makes of `pattern`, in sizes that need no
# resize; tests/parity/processor_parity_test.py makes them anew.
GOLDEN = [
    (QWEN, (112, 84), "4b92ffde7e1057b3c1cae5f8ea81fbe1e592f48146917d68601698e1173e061f"),
    (QWEN, (84, 252), "cab961ce9124326b659f5a35c5adbc093d58b2c82620452dac3de87240450c16"),
    (TINY, (48, 80), "39139ab1f28a83a77c103f9ca01799edb1775e965ff00ce4a89467d345e0d0d7"),
]


@pytest.mark.parametrize(("process", "size", "digest"), GOLDEN)
def test_golden_pixel_values(process, size, digest):
    values, grid = process(pattern(*size))
    assert grid == (1, size[0] // process.patch_size, size[1] // process.patch_size)
    assert values.dtype == np.float32
    assert hashlib.sha256(values.tobytes()).hexdigest() == digest


def test_reference_values_of_transformers():
    file = SHARED / "refvals_transformers_5_23.json"
    if not file.is_file():
        pytest.skip("the reference values of transformers are not at hand")
    cases = json.loads(file.read_text())
    # The recipe of the reference images is not recorded; their first red and last blue levels
    # can be read back, and must then give the recorded values again.
    for size, red, blue in [
        ((112, 84), [0, 7, 14, 21, 28, 35], [87, 124, 161, 198, 235, 16]),
        ((100, 150), [0, 8, 15, 23, 30, 38], [149, 185, 235, 36, 24, 70]),
    ]:
        case = cases[f"pixel_values img({size[0]},{size[1]})"]
        height, width = QWEN.resized_size(*size)
        assert list(QWEN.grid_thw(*size)) == case["grid"]
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[0, :6, 0] = red
        pixels[-1, -6:, 2] = blue
        values, _ = QWEN(Image.fromarray(pixels))
        assert list(values.shape) == case["shape"]
        np.testing.assert_allclose(values[0, :6], case["row0[:6]"], atol=1e-6)
        np.testing.assert_allclose(values[-1, -6:], case["row[-1][-6:]"], atol=1e-6)


@hypothesis.given(st.integers(1, 3), st.integers(1, 3), st.data())
def test_every_value_is_where_it_belongs(rows, columns, data):
    """A value's place in the patches, derived one index at a time."""
    height, width = 16 * rows, 16 * columns
    values, grid = TINY(pattern(height, width))
    assert grid == (1, 2 * rows, 2 * columns)
    y = data.draw(st.integers(0, height - 1))
    x = data.draw(st.integers(0, width - 1))
    channel = data.draw(st.integers(0, 2))
    frame = data.draw(st.integers(0, 1))
    merged = (y // 16) * columns + x // 16
    patch = merged * 4 + (y // 8 % 2) * 2 + x // 8 % 2
    inside = ((channel * 2 + frame) * 8 + y % 8) * 8 + x % 8
    level = np.asarray(pattern(height, width))[y, x, channel]
    expected = (level / 255 - processor.CLIP_MEAN[channel]) / processor.CLIP_STD[channel]
    assert values[patch, inside] == pytest.approx(expected, abs=2e-6)


def test_resize_is_bicubic_and_keeps_proportions():
    image = pattern(100, 150)
    values, grid = QWEN(image)
    assert grid == (1, 8, 10) == QWEN.grid_thw(100, 150)
    resized = image.resize((140, 112), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(values, QWEN(resized)[0])
    assert QWEN(pattern(28, 2800))[1] == (1, 2, 200)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_other_modes_become_rgb(mode):
    image = pattern(48, 80).convert(mode)
    np.testing.assert_array_equal(TINY(image)[0], TINY(image.convert("RGB"))[0])


# ---- configuration ----


def test_folder_and_back(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(QWEN.to_hf()))
    assert processor.ImageProcessor.from_folder(tmp_path) == QWEN
    small = processor.ImageProcessor.from_folder(tmp_path, min_pixels=784, max_pixels=401_408)
    assert (small.min_pixels, small.max_pixels) == (784, 401_408)


def test_published_folder():
    if not SHARED.is_dir():
        pytest.skip("the published processor files are not at hand")
    assert processor.ImageProcessor.from_folder(SHARED) == QWEN


def test_newer_size_keys(tmp_path):
    content = QWEN.to_hf()
    del content["min_pixels"], content["max_pixels"]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    assert processor.ImageProcessor.from_folder(tmp_path) == QWEN


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_processor_type": "CLIPImageProcessor"}, "image_processor_type 'CLIPImagePro"),
        ({"do_resize": False}, "do_resize false"),
        ({"resample": 2}, "resample 2"),
        ({"patch_size": None}, "patch_size is missing"),
        ({"image_mean": None}, "image_mean is missing"),
        ({"min_pixels": None, "size": None}, "min_pixels is missing"),
        ({"min_pixels": 10_000, "max_pixels": 5_000}, "min_pixels 10000 and max_pixels 5000"),
    ],
)
def test_unfit_folders_are_refused(change, words, tmp_path):
    content = {**QWEN.to_hf(), **change}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError) as caught:
        processor.ImageProcessor.from_folder(tmp_path)
    assert words in str(caught.value)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="preprocessor_config.json"):
        processor.ImageProcessor.from_folder(tmp_path)


# ---- files ----


def refused(path):
    with pytest.raises(ValueError) as caught:
        processor.open_image(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_open_image(suffix, tmp_path):
    path = tmp_path / f"image.{suffix}"
    pattern(30, 50).save(path)
    image = processor.open_image(path)
    assert image.mode == "RGB" and image.size == (50, 30)
    with Image.open(path) as direct:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(direct.convert("RGB")))


def test_exif_orientation_is_ignored(tmp_path):
    """Boxes are in stored pixels, so turning the image would put them elsewhere."""
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer would turn it by 90 degrees
    pattern(30, 50).save(path, exif=exif)
    assert processor.open_image(path).size == (50, 30)


def test_missing_file(tmp_path):
    assert "no such image file" in refused(tmp_path / "none.png")


def test_not_an_image(tmp_path):
    path = tmp_path / "text.png"
    path.write_text("not an image")
    assert "not an image" in refused(path)
    assert "broken" in refused(tmp_path)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_truncated_file(suffix, tmp_path):
    path = tmp_path / f"cut.{suffix}"
    pattern(200, 300).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "truncated" in refused(path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [1000, 400], ids=["warned about", "an error"])
def test_decompression_bomb(limit, tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    pattern(30, 50).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    assert "decompression bomb" in refused(path)


def test_several_frames(tmp_path):
    path = tmp_path / "moving.gif"
    pattern(16, 16).save(path, save_all=True, append_images=[pattern(16, 16).rotate(90)])
    assert "several frames" in refused(path)


DEEP = np.array([[100, 600, 1100], [4100, 8100, 16420]])


@pytest.mark.parametrize(
    ("dtype", "suffix"),
    [("u2", "png"), ("u2", "tiff"), (">u2", "tiff"), ("i4", "tiff"), ("f4", "tiff")],
)
def test_deep_grey_is_scaled_from_its_own_range(dtype, suffix, tmp_path):
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(DEEP.astype(dtype)).save(path)
    image = processor.open_image(path)
    assert image.mode == "RGB"
    expected = np.array([[0, 8, 16], [62, 125, 255]])
    np.testing.assert_array_equal(np.asarray(image), np.repeat(expected[..., None], 3, -1))


def test_negative_values_are_black(tmp_path):
    path = tmp_path / "signed.tiff"
    Image.fromarray(np.array([[-100, 0, 100]], np.int32)).save(path)
    assert np.asarray(processor.open_image(path))[0, :, 0].tolist() == [0, 128, 255]


def test_deep_grey_of_one_value_is_black(tmp_path):
    path = tmp_path / "flat.png"
    Image.fromarray(np.full((2, 2), 40_000, np.uint16)).save(path)
    assert not np.asarray(processor.open_image(path)).any()


def test_deep_grey_that_is_white_at_zero(tmp_path):
    path = tmp_path / "white.tiff"
    Image.fromarray(DEEP.astype("u2")).save(path, tiffinfo={262: 0})
    with Image.open(path) as image:
        assert image.tag_v2[262] == 0
    assert np.asarray(processor.open_image(path))[..., 0].tolist() == [
        [255, 247, 239],
        [193, 130, 0],
    ]


def test_values_that_are_not_finite(tmp_path):
    path = tmp_path / "hole.tiff"
    Image.fromarray(np.array([[1, np.nan]], np.float32)).save(path)
    assert "not finite" in refused(path)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_shallow_modes_are_pillows_own(mode, tmp_path):
    path = tmp_path / ("image.tiff" if mode == "CMYK" else "image.png")
    original = pattern(10, 20).convert(mode)
    if mode in ("LA", "RGBA"):
        original.putalpha(Image.linear_gradient("L").resize((20, 10)))
    original.save(path)
    np.testing.assert_array_equal(processor.open_image(path), original.convert("RGB"))


def test_transparency_is_dropped(tmp_path):
    """As transformers does: what stands under it is seen, wherever it was meant to be hidden."""
    path = tmp_path / "clear.png"
    Image.new("RGBA", (2, 2), (200, 100, 50, 0)).save(path)
    assert np.asarray(processor.open_image(path))[0, 0].tolist() == [200, 100, 50]


def test_a_mode_without_a_way_to_rgb(tmp_path):
    path = tmp_path / "lab.tiff"
    Image.new("LAB", (4, 4)).save(path)
    assert "mode LAB" in refused(path)


def test_size_from_the_header_alone(tmp_path):
    path = tmp_path / "cut.jpg"
    pattern(30, 50).save(path)
    assert processor.image_size(path) == (50, 30)
    path.write_bytes(path.read_bytes()[:-200])
    assert processor.image_size(path) == (50, 30)
    with pytest.raises(ValueError, match="no such image file"):
        processor.image_size(tmp_path / "none.jpg")


def test_model_of_other_channels_is_refused():
    vision = dataclasses.replace(model_config.PRESETS["tiny"].vision, in_channels=1)
    with pytest.raises(ValueError, match="1 channels"):
        processor.ImageProcessor.for_model(vision, min_pixels=256, max_pixels=4096)
