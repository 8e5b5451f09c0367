# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import shutil
from pathlib import Path

import pytest
from PIL import Image

from medloc_jax.data import annotated, voc

RAW = Path(__file__).resolve().parents[2] / "../shared/data/raw/BCCD_Dataset"

OBJECT = (
    "<object><name>{}</name><part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin>"
    "<xmax>2</xmax><ymax>2</ymax></bndbox></part><difficult>1</difficult><bndbox><xmin>{}</xmin>"
    "<ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>\n"
)
PAGE = (
    "<annotation><folder>x</folder><filename>{}.png</filename>\n"
    "<size><width>40</width><height>20</height><depth>3</depth></size>\n{}</annotation>"
)


def write(folder, stem, *objects, page=None, image=True):
    if image:
        path = folder / "JPEGImages" / f"{stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (40, 20)).save(path)
    path = folder / "Annotations" / f"{stem}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(OBJECT.format(*each) for each in objects)
    path.write_text(PAGE.format(stem, content) if page is None else page)
    return path


def read(source, **options):
    refused = annotated.Refusals()
    images = {image.id: image for image in voc.read(source, refused, **options)}
    return images, refused


def test_pixels_are_counted_from_one_and_the_last_is_inside(tmp_path):
    write(tmp_path, "a", ("cell", 1, 1, 40, 20), ("drop", 5, 6, 5, 9))
    found, refused = read(tmp_path)
    assert found["a"].targets == (
        annotated.Target((0.0, 0.0, 40.0, 20.0), "cell"),
        annotated.Target((4.0, 5.0, 5.0, 9.0), "drop"),
    )
    assert refused.all == [] and refused.notes == []


def test_a_zero_says_that_corners_are_counted_from_zero(tmp_path):
    write(tmp_path, "a", ("cell", 3, 0, 40, 20))
    write(tmp_path, "b", ("cell", 5, 6, 7, 9))
    found, refused = read(tmp_path)
    assert found["a"].targets[0].box_px == (3, 0, 40, 20)
    assert found["b"].targets[0].box_px == (5, 6, 7, 9)
    assert "a.xml holds a coordinate 0" in refused.notes[0]
    found, refused = read(tmp_path, origin="1")
    assert set(found) == {"b"} and found["b"].targets[0].box_px == (4, 5, 7, 9)
    assert "[2, -1, 40, 20] is outside" in refused.all[0].reason
    assert read(tmp_path, origin="0")[0]["b"].targets[0].box_px == (5, 6, 7, 9)
    with pytest.raises(ValueError, match="--origin=2"):
        read(tmp_path, origin="2")


def test_splits_of_the_lists(tmp_path):
    for stem in "abcd":
        write(tmp_path, stem, ("cell", 5, 6, 7, 9))
    lists = tmp_path / "ImageSets/Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\n\nb\n")
    (lists / "val.txt").write_text("c\nb\n")
    (lists / "trainval.txt").write_text("a\nb\nc\n")
    (lists / "test.txt").write_text("e\nf\n")
    (lists / "cell_train.txt").write_text("d 1\n")
    found, refused = read(tmp_path)
    assert {name: image.split for name, image in found.items()} == {
        "a": "train",
        "c": "val",
        "d": None,
    }
    reasons = {(Path(each.path).name, each.line): each.reason for each in refused.all}
    assert set(reasons) == {("test.txt", 1), ("val.txt", 2)}
    assert "2 names have no annotation file, such as e.xml" in reasons["test.txt", 1]
    assert "b stands in" in reasons["val.txt", 2]


def test_splits_of_folders(tmp_path):
    """Roboflow puts both files of an image into a folder of its split."""
    for split in ("train", "valid"):
        path = write(tmp_path, "a", ("cell", 5, 6, 7, 9))
        (tmp_path / split).mkdir()
        path.rename(tmp_path / split / "a.xml")
        (tmp_path / "JPEGImages/a.png").rename(tmp_path / split / "a.png")
    found, refused = read(tmp_path)
    assert refused.all == []
    assert {name: image.split for name, image in found.items()} == {
        "train/a": "train",
        "valid/a": "val",
    }


GOOD = OBJECT.format("cell", 5, 6, 7, 9)


@pytest.mark.parametrize(
    ("page", "line", "words"),
    [
        (PAGE.format("a", GOOD + OBJECT.format("cell", 5, 6, "x", 9)), 4, "<xmax> is 'x'"),
        (PAGE.format("a", GOOD + OBJECT.format("", 5, 6, 7, 9)), 4, "<name> is missing or empty"),
        (PAGE.format("a", GOOD + OBJECT.format("cell", 5, 6, 4, 9)), 4, "object 2: [4, 5, 4, 9]"),
        (PAGE.format("a", GOOD + OBJECT.format("cell", 5, 6, 42, 9)), 4, "outside its image"),
        (PAGE.format("a", "<object><name>x</name></object>"), 3, "<xmin> is missing"),
        (PAGE.format("a", ""), None, "no box"),
        (PAGE.format("b", GOOD), None, "<filename> is b.png, but there is"),
        (PAGE.format("a", GOOD).replace(">40<", ">20<"), None, "20 x 20 px and is 40 x 20"),
        (PAGE.format("a", GOOD).replace(">40<", ">wide<"), None, "<size> is"),
        (PAGE.format("a", GOOD)[:-20], None, "cannot be read as XML"),
        ("", None, "cannot be read as XML"),
        ("<?xml version='1.0' encoding='klingon'?><annotation/>", None, "unknown encoding"),
    ],
)
def test_what_is_wrong_leaves_its_image_out(page, line, words, tmp_path):
    write(tmp_path, "b", ("cell", 5, 6, 7, 9))
    path = write(tmp_path, "a", page=page)
    found, refused = read(tmp_path)
    assert set(found) == {"b"}
    refusal = refused.all[0]
    assert words in refusal.reason and "\n" not in refusal.reason
    assert refusal.line == line
    assert refusal.path in (str(path), str(tmp_path / "JPEGImages/a.png"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_refused_unread(encoding, tmp_path):
    write(tmp_path, "b", ("cell", 5, 6, 7, 9))
    bomb = (
        f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE annotation [<!ENTITY a "aaaa">'
        '<!ENTITY b "&a;&a;&a;&a;">]>' + PAGE.format("a", GOOD.replace("cell", "&b;"))
    )
    write(tmp_path, "a", page="").write_text(bomb, encoding=encoding)
    found, refused = read(tmp_path)
    assert set(found) == {"b"} and "entities" in refused.all[0].reason


@pytest.mark.parametrize(
    "page",
    [
        PAGE.format("missing", GOOD),
        PAGE.format("a", GOOD).replace("<filename>a.png</filename>", ""),
        PAGE.format("a", GOOD).replace("a.png", "C:\\set\\a.png"),
        PAGE.format("a", GOOD).replace(">40<", ">0<").replace(">20<", ">0<"),
    ],
)
def test_what_tools_write_and_is_clear(page, tmp_path):
    write(tmp_path, "a", page=page)
    found, refused = read(tmp_path)
    assert set(found) == {"a"} and refused.all == []


def test_images_and_annotations_that_have_no_partner(tmp_path):
    write(tmp_path, "a", ("cell", 5, 6, 7, 9))
    write(tmp_path, "b", ("cell", 5, 6, 7, 9), image=False)
    Image.new("L", (4, 4)).save(tmp_path / "JPEGImages/c.png")
    found, refused = read(tmp_path)
    assert set(found) == {"a"}
    reasons = {Path(each.path).name: each.reason for each in refused.all}
    assert "'b.png' is not below" in reasons["b.xml"]
    assert "no annotation file names it" in reasons["c.png"]


def test_no_annotations(tmp_path):
    (tmp_path / "pom.xml").write_text("<project/>")
    with pytest.raises(ValueError, match="no annotation file.*--source"):
        read(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        read(tmp_path / "none")


def test_published_bccd(tmp_path):
    if not RAW.is_dir():
        pytest.skip("the published sample BCCD_Dataset is not at hand")
    found, refused = read(RAW)
    assert len(found) == 12 and sum(len(image.targets) for image in found.values()) == 218
    assert found["BloodImage_00000"].targets[0] == ((259, 176, 491, 376), "WBC")
    assert {image.split for image in found.values()} == {"train", "val", "test"}
    # The sample has all the names in its lists, but not all the files.
    assert [Path(each.path).name for each in refused.all] == ["test.txt", "train.txt", "val.txt"]
    shutil.copytree(RAW, tmp_path / "set")
    file = tmp_path / "set/BCCD/Annotations/BloodImage_00000.xml"
    file.write_text(file.read_text().replace("<xmax>491</xmax>", "<xmax>4910</xmax>"))
    found, refused = read(tmp_path / "set")
    assert len(found) == 11 and refused.all[-1].path == str(file)
    assert file.read_text().splitlines()[refused.all[-1].line - 1].strip() == "<object>"
