# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
from PIL import Image

from medloc_jax.data import annotated, source_folder


def draw(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(path)


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (("instances_train2017.json",), "train"),
        (("valid", "_annotations.coco.json"), "val"),
        (("test", "val", "x.csv"), "val"),
        (("Testing",), "test"),
        (("trainval.txt",), None),
        (("train_val",), None),
        (("contest", "retrained"), None),
        ((), None),
    ],
)
def test_split_of(names, split):
    assert source_folder.split_of(*names) == split


def test_only_folders_tell_the_split_of_an_image():
    root = Path("/data/train")
    assert source_folder.split_of_image(root / "val/test_1.png", root) == "val"
    assert source_folder.split_of_image(root / "test_1.png", root) is None
    assert source_folder.split_of_file(root / "test.csv", root) == "test"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("one.png", "a/one.png"),
        ("ONE.PNG", "a/one.png"),
        ("one", "a/one.png"),
        ("./a/one.png", "a/one.png"),
        ("C:\\me\\a\\one.png", "a/one.png"),
        ("/home/me/set/images/one.png", "a/one.png"),
        ("../../a/one.png", "a/one.png"),
        ("train/two.png", "train/two.png"),
        ("elsewhere/train/two.png", "train/two.png"),
    ],
)
def test_images_are_found(name, found, tmp_path):
    draw(tmp_path, "a/one.png", "train/two.png", "val/two.png")
    finder = source_folder.ImageFinder(tmp_path)
    assert finder.find(name, near=tmp_path / "notes.json") == tmp_path / found


def test_the_image_of_the_same_folder_or_split_is_meant(tmp_path):
    draw(tmp_path, "a/images/1.png", "b/images/1.png", "train/2.png", "val/2.png")
    finder = source_folder.ImageFinder(tmp_path)
    assert finder.find("1.png", near=tmp_path / "b/images/1.txt") == tmp_path / "b/images/1.png"
    assert finder.find("1.png", near=tmp_path / "b/xml/1.xml") == tmp_path / "b/images/1.png"
    near = tmp_path / "annotations/val.json"
    assert finder.find("2.png", near=near, split="val") == tmp_path / "val/2.png"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("1.png", "may be"),
        ("3.png", "is not below"),
        ("", "is not below"),
        ("train/2.png", "of another split"),
        ("/etc/passwd", "is not below"),
    ],
)
def test_images_that_are_not_found(name, words, tmp_path):
    draw(tmp_path, "a/1.png", "b/1.png", "val/2.png")
    with pytest.raises(ValueError, match=words):
        source_folder.ImageFinder(tmp_path).find(name, near=tmp_path / "notes.json")


def test_unnamed_images_are_refused(tmp_path):
    draw(tmp_path, "1.png", "2.png")
    finder = source_folder.ImageFinder(tmp_path)
    finder.find("1.png", near=tmp_path / "notes.json")
    refused = annotated.Refusals()
    finder.refuse_unnamed(refused)
    assert [refusal.path for refusal in refused.all] == [str(tmp_path / "2.png")]


def test_the_folder_of_an_annotation_file(tmp_path):
    draw(tmp_path, "images/1.png")
    for name in ("notes.json", "annotations/notes.json"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
        assert source_folder.folder_of(path) == tmp_path
    assert source_folder.folder_of(tmp_path) == tmp_path
    with pytest.raises(ValueError, match="--source"):
        source_folder.folder_of(tmp_path / "none")


def files(tmp_path, found, annotations=""):
    return source_folder.annotation_files(
        *(tmp_path, tmp_path, annotations),
        lambda root: {root / name: split for name, split in found.items()},
        looked_for="papyri",
    )


def test_one_file_or_one_a_split(tmp_path):
    assert list(files(tmp_path, {"a.json": None})) == [tmp_path / "a.json"]
    assert len(files(tmp_path, {"train.json": "train", "val.json": "val"})) == 2


@pytest.mark.parametrize(
    "found", [{"a.json": None, "b.json": "val"}, {"a.json": "val", "b.json": "val"}]
)
def test_several_files_need_a_choice(found, tmp_path):
    with pytest.raises(ValueError, match="a.json, b.json.*--annotations"):
        files(tmp_path, found)
    (tmp_path / "test.json").write_text("{}")
    assert files(tmp_path, found, "test.json") == {tmp_path / "test.json": "test"}


def test_no_file(tmp_path):
    with pytest.raises(ValueError, match="papyri.*--annotations"):
        files(tmp_path, {})
    with pytest.raises(ValueError, match="none.json: no such file"):
        files(tmp_path, {"a.json": None}, "none.json")
