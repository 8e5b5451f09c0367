# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
from PIL import Image

from medloc_jax.data import annotated, yolo


def write(folder, name, text, *, image=True):
    """An image of 100 x 50 px and its label file, images/ and labels/ wherever the name says."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if image:
        Image.new("L", (100, 50)).save(path)
    label = (folder / name.replace("images", "labels")).with_suffix(".txt")
    label.parent.mkdir(parents=True, exist_ok=True)
    if text is not None:
        label.write_text(text)
    return label


def read(source, **options):
    refused = annotated.Refusals()
    return {image.id: image for image in yolo.read(source, refused, **options)}, refused.all


@pytest.mark.parametrize(
    "names",
    [("images/train/a.png", "images/val/b.png"), ("train/images/a.png", "valid/images/b.png")],
)
def test_boxes_labels_and_splits(names, tmp_path):
    write(tmp_path, names[0], "0 0.5 0.5 0.2 0.4\n\n1 0.1 0.2 0.2 0.4\n")
    write(tmp_path, names[1], "1 0.5 0.5 1 1\n")
    (tmp_path / "data.yaml").write_text("names: [cyst, nodule]\nnc: 2\ntrain: ../train/images\n")
    found, refused = read(tmp_path)
    assert refused == []
    assert found["a"].targets == (
        annotated.Target((40.0, 15.0, 60.0, 35.0), "cyst"),
        annotated.Target((0.0, 0.0, 20.0, 20.0), "nodule"),
    )
    assert found["b"].targets[0].box_px == (0, 0, 100, 50)
    assert (found["a"].split, found["b"].split) == ("train", "val")


def test_labels_beside_the_images(tmp_path):
    write(tmp_path, "obj_train_data/a.png", "0 0.5 0.5 0.2 0.4")
    (tmp_path / "obj.names").write_text("cyst\n")
    (tmp_path / "obj_train_data/readme.txt").write_text("hello")
    found, refused = read(tmp_path)
    assert refused == [] and found["a"].targets[0].label == "cyst"
    assert found["a"].split == "train"


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("data.yaml", "names:\n  0: cyst\n  1: 'big, nodule'\n"),
        ("classes.txt", "cyst\nbig, nodule\n\n"),
        ("labels/classes.txt", "cyst\r\nbig, nodule\r\n"),
    ],
)
def test_names_of_classes(file, text, tmp_path):
    write(tmp_path, "images/a.png", "1 0.5 0.5 0.2 0.4")
    (tmp_path / file).write_text(text)
    found, refused = read(tmp_path)
    assert refused == [] and found["a"].targets[0].label == "big, nodule"
    found, _ = read(tmp_path, names="x, y")
    assert found["a"].targets[0].label == "y"
    (tmp_path / "mine.txt").write_text("p\nq\n")
    found, _ = read(tmp_path, names="mine.txt")
    assert found["a"].targets[0].label == "q"


def test_names_that_are_not_there(tmp_path):
    write(tmp_path, "images/a.png", "1 0.5 0.5 0.2 0.4")
    with pytest.raises(ValueError, match="no class names.*--names"):
        read(tmp_path)
    with pytest.raises(ValueError, match="none.txt: no such file"):
        read(tmp_path, names="none.txt")
    (tmp_path / "data.yaml").write_text("names: [a")
    with pytest.raises(ValueError, match="data.yaml: cannot be read as YAML"):
        read(tmp_path)
    (tmp_path / "data.yaml").write_text("names: 3")
    with pytest.raises(ValueError, match="data.yaml: names is 3"):
        read(tmp_path)
    (tmp_path / "data.yaml").write_text("names: [a, b]")
    (tmp_path / "other.yaml").write_text("names: [b, a]")
    with pytest.raises(ValueError, match="several lists of class names"):
        read(tmp_path)


def test_splits_that_only_data_yaml_tells(tmp_path):
    for name in ("one", "two", "three"):
        write(tmp_path, f"{name}/images/{name}.png", "0 0.5 0.5 0.2 0.4")
    (tmp_path / "list.txt").write_text("./three/images/three.png\n")
    (tmp_path / "data.yaml").write_text(
        "path: .\ntrain: [one/images]\nval: two/images\ntest: list.txt\nnames: [cyst]\n"
    )
    found, refused = read(tmp_path)
    assert refused == []
    assert [found[name].split for name in ("one", "two", "three")] == ["train", "val", "test"]


@pytest.mark.parametrize(
    ("line", "box"),
    [
        ("0 0.1 0.2 0.3 0.2 0.3 0.6", (10, 10, 30, 30)),
        ("0 0.1 0.2 0.3 0.2 0.3 0.6 0.1 0.6", (10, 10, 30, 30)),
        ("0.0 0.5 0.5 0.2 0.4", (40, 15, 60, 35)),
        # Six digits after the point put a box over the edge by a ten thousandth of a pixel.
        ("0 0.050001 0.5 0.100004 1", (0, 0, 10.0003, 50)),
    ],
)
def test_kinds_of_lines(line, box, tmp_path):
    write(tmp_path, "images/a.png", line)
    found, refused = read(tmp_path, names="cyst")
    assert refused == [] and found["a"].targets[0].box_px == pytest.approx(box)


def test_keypoints_are_no_polygon(tmp_path):
    write(tmp_path, "images/a.png", "0 0.5 0.5 0.2 0.4 0.9 0.9")
    (tmp_path / "data.yaml").write_text("names: [heel]\nkpt_shape: [1, 2]\n")
    found, _ = read(tmp_path)
    assert found["a"].targets[0].box_px == pytest.approx((40, 15, 60, 35))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 0.5 0.5 0.2", "4 numbers"),
        ("0 0.5 0.5 0.2 0.4 0.97", "a prediction with its confidence?"),
        ("0 0.5 0.5 0.2 0.4 0.97 0.1 0.2", "8 numbers"),
        ("cyst 0.5 0.5 0.2 0.4", "is not numbers"),
        ("0,0.5,0.5,0.2,0.4", "is not numbers"),
        ("0 0,5 0,5 0,2 0,4", "is not numbers"),
        ("2 0.5 0.5 0.2 0.4", "class 2 is not among the 2 names (cyst, nodule)"),
        ("-1 0.5 0.5 0.2 0.4", "class -1"),
        ("0.5 0.5 0.5 0.2 0.4", "class 0.5"),
        ("0 50 25 20 20", "no fractions"),
        ("0 0.95 0.5 0.2 0.4", "outside its image of 100 x 50 px"),
        ("0 0.5 0.5 0 0.4", "is empty"),
        ("0 0.5 0.5 -0.1 0.4", "is reversed"),
        ("0 nan 0.5 0.1 0.4", "not finite"),
    ],
)
def test_a_bad_line_leaves_its_image_out(line, words, tmp_path):
    write(tmp_path, "images/b.png", "0 0.5 0.5 0.2 0.4")
    label = write(tmp_path, "images/a.png", f"0 0.5 0.5 0.2 0.4\n{line}\n")
    found, refused = read(tmp_path, names="cyst,nodule")
    assert set(found) == {"b"}
    (refusal,) = refused
    assert words in refusal.reason and "a.png is left out" in refusal.reason
    assert (refusal.path, refusal.line) == (str(label), 2)


def test_files_without_a_partner(tmp_path):
    write(tmp_path, "images/a.png", "0 0.5 0.5 0.2 0.4")
    write(tmp_path, "images/b.png", None)
    write(tmp_path, "images/c.png", "\n")
    write(tmp_path, "images/d.png", "0 0.5 0.5 0.2 0.4", image=False)
    write(tmp_path, "images/e.png", "").write_bytes(b"\xff\xfe\x00")
    found, refused = read(tmp_path, names="cyst")
    assert set(found) == {"a"}
    reasons = {Path(each.path).name: each.reason for each in refused}
    assert set(reasons) == {"b.png", "c.png", "d.txt", "e.txt"}
    assert "no label file" in reasons["b.png"] and "no box" in reasons["c.png"]
    assert "without an image" in reasons["d.txt"] and "cannot be read" in reasons["e.txt"]


def test_no_labels(tmp_path):
    write(tmp_path, "images/a.png", None)
    with pytest.raises(ValueError, match="no label file.*--source"):
        read(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        read(tmp_path / "none")
