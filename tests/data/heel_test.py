# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import json

import pytest
from PIL import Image

from medloc_jax.data import annotated, heel

PATHS = ("train/Normal/1.png", "train/Heel Spur/1.png", "valid/SEVER/1.png")
CLASSES = {"Normal": 1, "Heel Spur": 1, "Sever": 1}


def draw(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (40, 20)).save(path)


def write_yolo(folder):
    for name in PATHS:
        (folder / name).with_suffix(".txt").write_text("0 0.5 0.5 0.5 0.5\n")


def write_voc(folder):
    for name in PATHS:
        (folder / name).with_suffix(".xml").write_text(
            "<annotation><filename>1.png</filename><object><name>calcaneus</name><bndbox>"
            "<xmin>11</xmin><ymin>6</ymin><xmax>30</xmax><ymax>15</ymax></bndbox></object>"
            "</annotation>"
        )


def write_coco(folder):
    """A file in each class folder."""
    for name in PATHS:
        content = {
            "images": [{"id": 1, "file_name": "1.png"}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 5, 20, 10]}],
            "categories": [{"id": 1, "name": "calcaneus"}],
        }
        (folder / name).with_name("annotations.json").write_text(json.dumps(content))


def write_csv(folder):
    rows = "".join(f"{name},10,5,30,15\n" for name in PATHS)
    (folder / "boxes.csv").write_text(f"file,xmin,ymin,xmax,ymax\n{rows}")


WRITERS = {"yolo": write_yolo, "voc": write_voc, "coco": write_coco, "csv": write_csv}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_is_detected_and_read(name, tmp_path):
    draw(tmp_path, *PATHS)
    WRITERS[name](tmp_path)
    (tmp_path / "diagnoses.csv").write_text("file,age\n1.png,30\n")
    assert heel.detect(tmp_path) == name
    refused = annotated.Refusals()
    found = heel.read(tmp_path, refused)
    assert refused.all == [] and refused.notes == [
        f"The boxes were found to be in the format {name}."
    ]
    assert {image.label: image.split for image in found} == {
        "Normal": "train",
        "Heel Spur": "train",
        "Sever": "val",
    }
    assert {image.targets[0].box_px for image in found} == {(10, 5, 30, 15)}
    expected = {"calcaneus"} if name in ("voc", "coco") else set(heel.CLASSES)
    assert {image.targets[0].label for image in found} == expected


def test_several_formats_need_a_choice(tmp_path):
    draw(tmp_path, *PATHS)
    write_yolo(tmp_path)
    write_csv(tmp_path)
    with pytest.raises(ValueError, match=r"\(yolo, csv\): choose one with --boxes=yolo"):
        heel.read(tmp_path, annotated.Refusals())
    assert len(heel.read(tmp_path, annotated.Refusals(), boxes="csv")) == 3
    with pytest.raises(ValueError, match="--boxes=cvs"):
        heel.read(tmp_path, annotated.Refusals(), boxes="cvs")


def test_no_boxes(tmp_path):
    draw(tmp_path, *PATHS)
    (tmp_path / "train/Normal/1.txt").write_text("a normal heel\n")
    (tmp_path / "train/Normal/2.xml").write_text("<annotation")
    with pytest.raises(ValueError, match="no boxes: looked for YOLO"):
        heel.read(tmp_path, annotated.Refusals())


def test_the_class_of_the_boxes_where_the_path_has_none(tmp_path):
    draw(tmp_path, "images/1.png", "images/2.png", "images/3.png")
    (tmp_path / "labels").mkdir()
    for number, kind in ((1, 0), (2, 2), (3, 3)):
        (tmp_path / f"labels/{number}.txt").write_text(f"{kind} 0.5 0.5 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text("names: [normal, spur, Severs, calcaneus]\n")
    found = heel.read(tmp_path, annotated.Refusals(strict=True))
    assert [image.label for image in found] == ["Normal", "Sever", None]
    assert [image.targets[0].label for image in found] == ["Normal", "Sever", "calcaneus"]


@pytest.mark.parametrize("words", ["normal", "Heel_Spurs", "severs", "abnormal", "heel"])
def test_without_a_word_for_a_class_it_is_not_heel(tmp_path, words):
    draw(tmp_path, "images/1.png")
    (tmp_path / "boxes.csv").write_text(f"image,x1,y1,x2,y2,label\n1.png,1,2,9,9,{words}\n")
    if words in ("abnormal", "heel"):
        with pytest.raises(ValueError, match=rf"\(labels: {words}\); .*`medloc prepare csv`"):
            heel.read(tmp_path, annotated.Refusals())
    else:
        assert len(heel.read(tmp_path, annotated.Refusals())) == 1


def test_boxes_as_fractions_in_a_csv_need_their_unit(tmp_path):
    draw(tmp_path, "Normal/1.png")
    (tmp_path / "boxes.csv").write_text("image,x1,y1,x2,y2\n1.png,0.25,0.5,0.75,1.0\n")
    with pytest.raises(ValueError, match="--columns=units=unit"):
        heel.read(tmp_path, annotated.Refusals())
    (found,) = heel.read(tmp_path, annotated.Refusals(strict=True), columns="units=unit")
    x1, y1, x2, y2 = found.targets[0].box_px
    assert (x1, x2) == (found.width / 4, found.width * 3 / 4)
    assert (y1, y2) == (found.height / 2, found.height) and found.label == "Normal"


@pytest.mark.parametrize(
    ("names", "label"),
    [
        (("Normal", "1.png"), "Normal"),
        (("heel_spurs", "1.png"), "Heel Spur"),
        (("Severe", "1.png"), "Sever"),
        (("Heel Spur", "normal_17.png"), "Normal"),
        (("Normal", "Heel Spur", "1.png"), "Heel Spur"),
        (("abnormal", "1.png"), None),
        (("normal or spur", "1.png"), None),
        ((), None),
    ],
)
def test_class_of(names, label):
    assert heel.class_of(*names) == label
