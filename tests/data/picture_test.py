# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import pytest
from PIL import Image

from medloc_jax.data import picture


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "bmp", "webp"])
def test_ordinary_images(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (6, 4), (250, 10, 10)).save(path)
    assert picture.image_size(path) == (6, 4)
    image = picture.open_picture(path)
    assert (image.mode, image.size) == ("RGB", (6, 4))


def test_several_pages(tmp_path):
    path = tmp_path / "pages.tiff"
    Image.new("L", (6, 4)).save(path, save_all=True, append_images=[Image.new("L", (6, 4), 9)])
    for read in (picture.open_picture, picture.image_size):
        with pytest.raises(ValueError, match=r"pages.tiff.*several frames or pages \(2\)"):
            read(path)


def test_list_images(tmp_path):
    names = [
        "b.PNG",
        "a/x.jpg",
        "a/IM000001",
        "a/1.2.840.5",
        "a/notes.txt",
        ".hidden/c.png",
        "._b.PNG",
    ]
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(128) + b"DICM")
    (tmp_path / "IM2").write_text("no DICOM file")
    found = [path.relative_to(tmp_path).as_posix() for path in picture.list_images(tmp_path)]
    assert found == ["a/1.2.840.5", "a/IM000001", "a/x.jpg", "b.PNG"]
    with pytest.raises(ValueError, match="no such folder"):
        picture.list_images(tmp_path / "none")


def test_linked_folders_are_followed_once(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real/a.png").touch()
    (tmp_path / "set").mkdir()
    (tmp_path / "set/images").symlink_to(tmp_path / "real")
    (tmp_path / "real/back").symlink_to(tmp_path / "set")
    assert picture.list_images(tmp_path / "set") == [tmp_path / "set/images/a.png"]
