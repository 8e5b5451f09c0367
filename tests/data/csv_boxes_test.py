# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pydicom
import pytest
from PIL import Image

from medloc_jax.data import annotated, csv_boxes


def write(folder, text, *, name="boxes.csv"):
    """Images a and b of 40 x 20 px and a table."""
    for stem in ("a", "b"):
        (folder / "images").mkdir(parents=True, exist_ok=True)
        Image.new("L", (40, 20)).save(folder / "images" / f"{stem}.png")
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def read(source, **options):
    refused = annotated.Refusals()
    return {image.id: image for image in csv_boxes.read(source, refused, **options)}, refused.all


def boxes(found):
    return {name: [target.box_px for target in image.targets] for name, image in found.items()}


BOTH = {"a": [(1, 2, 11, 7), (4, 5, 6, 8)], "b": [(0, 0, 40, 20)]}


@pytest.mark.parametrize(
    "text",
    [
        "image,x1,y1,x2,y2\na.png,1,2,11,7\nb.png,0,0,40,20\na.png,4,5,6,8\n",
        "\ufeffFile_Name;Xmin;Ymin;Xmax;Ymax\r\na.png;1;2;11;7\r\nb.png;0;0;40;20\r\na.png;4;5;6;8\r\n",
        'path\tleft\ttop\tright\tbottom\n"images/a.png"\t1\t2\t11\t7\n/x/b.png\t0\t0\t40\t20\n'
        "a\t4\t5\t6\t8\n",
        "filename,x,y,w,h\na.png,1,2,10,5\nb.png,0,0,40,20\na.png,4,5,2,3\n",
        "filename,x,y,width,height\na.png,1,2,10,5\nb.png,0,0,40,20\na.png,4,5,2,3\n",
        "filename,cx,cy,w,h\na.png,6,4.5,10,5\nb.png,20,10,40,20\na.png,5,6.5,2,3\n",
        # As TensorFlow's detection tools write it: width and height are the image's.
        "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,40,20,c,1,2,11,7\n"
        "b.png,40,20,c,0,0,40,20\na.png,40,20,c,4,5,6,8\n",
    ],
)
def test_usual_tables(text, tmp_path):
    path = write(tmp_path, text)
    found, refused = read(tmp_path)
    assert refused == [] and boxes(found) == BOTH
    assert read(path)[0] == found


def test_columns_by_name_and_by_position(tmp_path):
    write(tmp_path, "who;lo;hi;r;b;what\na.png;1;2;11;7;cyst\n")
    found, refused = read(tmp_path, columns="image=who, x1=lo, y1=HI, x2=r, y2=b, label=what")
    assert boxes(found) == {"a": [(1, 2, 11, 7)]} and found["a"].targets[0].label == "cyst"
    assert "b.png" in refused[0].path and "no annotation file names it" in refused[0].reason
    write(tmp_path, "cyst,a.png,1,2,11,7\ncyst,b.png,3,4,5,6\n")
    found, refused = read(tmp_path, columns="label=1,image=2,x1=3,y1=4,x2=5,y2=6")
    assert boxes(found) == {"a": [(1, 2, 11, 7)], "b": [(3, 4, 5, 6)]} and refused == []


def test_other_columns(tmp_path):
    write(
        tmp_path,
        "image,x1,y1,x2,y2,label,patient_id,split,query\n"
        'a.png,1,2,11,7,cyst,p1,valid,"the cyst, left"\na.png,4,5,6,8,,p1,valid,"the cyst, left"\n'
        "b.png,0,0,40,20,node,,train,\n",
    )
    found, refused = read(tmp_path)
    assert refused == []
    assert [target.label for target in found["a"].targets] == ["cyst", None]
    assert (found["a"].group, found["a"].split, found["a"].query) == ("p1", "val", "the cyst, left")
    assert (found["b"].group, found["b"].split, found["b"].query) == (None, "train", None)


def test_a_file_for_each_split(tmp_path):
    write(tmp_path, "image,x1,y1,x2,y2\na.png,1,2,11,7\n", name="train.csv")
    write(tmp_path, "image,x1,y1,x2,y2\nb.png,1,2,11,7\n", name="test.csv")
    write(tmp_path, "image,diagnosis\nb.png,cyst\n", name="diagnoses.csv")
    found, refused = read(tmp_path)
    assert refused == []
    assert {name: image.split for name, image in found.items()} == {"a": "train", "b": "test"}
    found, refused = read(tmp_path, annotations="test.csv")
    assert set(found) == {"b"} and refused == []


def test_fractions_must_be_told(tmp_path):
    write(tmp_path, "image,x1,y1,x2,y2\na.png,0.025,0.1,0.275,0.35\nb.png,0,0,1,1\n")
    with pytest.raises(ValueError, match="units=unit or --columns=units=px"):
        read(tmp_path)
    found, refused = read(tmp_path, columns="units=unit")
    assert refused == []
    assert found["a"].targets[0].box_px == pytest.approx((1, 2, 11, 7))
    assert found["b"].targets[0].box_px == (0, 0, 40, 20)
    found, _ = read(tmp_path, columns="units=px")
    assert found["b"].targets[0].box_px == (0, 0, 1, 1)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a.png,1,2,x,7,c,train", "'x' is not a number"),
        ('a.png,1,2,"11,5",7,c,train', "'11,5' has a decimal comma: write a point"),
        ("a.png,1,2,inf,7,c,train", "not finite"),
        ("a.png,1,2,,7,c,train", "'' is not a number"),
        ("a.png,1,2,11,7,c", "6 columns instead of 7"),
        ("a.png,1,2,11,7,c,train,x", "8 columns instead of 7"),
        ("a.png,11,2,1,7,c,train", "reversed"),
        ("a.png,1,2,50,7,c,train", "outside its image"),
        ("a.png,1,2,11,7,c,never", "split 'never' is unknown"),
        ("a.png,1,2,11,7,c,test", "split is test, and train in line 2"),
    ],
)
def test_a_bad_line_leaves_its_image_out(line, words, tmp_path):
    path = write(
        tmp_path,
        f"image,x1,y1,x2,y2,label,split\na.png,4,5,6,8,c,train\nb.png,4,5,6,8,c,train\n\n{line}\n",
    )
    found, refused = read(tmp_path)
    assert set(found) == {"b"}
    (refusal,) = refused
    assert words in refusal.reason and "a.png is left out" in refusal.reason
    assert (refusal.path, refusal.line) == (str(path), 5)


def test_semicolons_with_decimal_commas(tmp_path):
    write(tmp_path, "image;x1;y1;x2;y2\na.png;1,5;2,5;11,5;7\n")
    found, refused = read(tmp_path)
    assert found == {} and "'1,5' has a decimal comma" in refused[0].reason


def test_images_that_are_not_there_or_have_no_box(tmp_path):
    write(tmp_path, "image,x1,y1,x2,y2\na.png,1,2,11,7\nb.png,,,,\nc.png,1,2,11,7\n,1,2,3,4\n")
    found, refused = read(tmp_path)
    assert set(found) == {"a"}
    reasons = {each.line: each.reason for each in refused}
    assert "'c.png' is not below" in reasons[4] and "'' is not below" in reasons[5]
    assert "no box" in reasons[None]


@pytest.mark.parametrize(
    ("text", "columns", "words"),
    [
        ("a.png,1,2,11,7\n", "", "by position, from 1"),
        ("image,box\na.png,3\n", "", "no column of a box"),
        ("x1,y1,x2,y2\n1,2,11,7\n", "", "no column of an image"),
        ("image,x1,y1,x2,y2,x1\na,1,2,3,4,5\n", "", "'x1' stands twice"),
        ("", "", "is empty"),
        ('image,x1,y1,x2,y2\n"a.png"x,1,2,3,4\n', "", "cannot be read as CSV"),
        ("image,x1,y1,x2,y2\na,1,2,3,4\n", "x1=lo", "no column 'lo'"),
        ("image,x1,y1,x2,y2\na,1,2,3,4\n", "x1", "'x1' is not understood"),
        ("image,x1,y1,x2,y2\na,1,2,3,4\n", "z1=x1", "'z1=x1' is not understood"),
        ("image,x1,y1,x2,y2\na,1,2,3,4\n", "units=cm", "units=cm"),
        ("a,1,2,3,4\n", "image=1,x1=2,y1=3,x2=4,y2=6", "y2=6: the first line has 5"),
        ("a,1,2,3,4\n", "image=0,x1=2,y1=3,x2=4,y2=5", "image=0"),
    ],
)
def test_tables_that_are_not_understood(text, columns, words, tmp_path):
    path = write(tmp_path, text)
    for source in (tmp_path, path):
        with pytest.raises(ValueError) as caught:
            read(source, columns=columns)
        assert words in str(caught.value) and "\n" not in str(caught.value)


def test_no_table(tmp_path):
    with pytest.raises(ValueError, match="looked for CSV files.*--columns=image=file"):
        read(tmp_path)
    path = write(tmp_path, "")
    path.write_bytes(b"image,x1\n\xff")
    with pytest.raises(ValueError, match="UTF-8"):
        read(tmp_path)


def test_dicom_files_without_suffix(tmp_path):
    """The size of an image comes from its header, of whatever kind it is."""
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    data.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    data.Rows, data.Columns, data.PatientName = 20, 40, "DOE^JANE"
    data.save_as(tmp_path / "IM000001", enforce_file_format=True)
    (tmp_path / "boxes.csv").write_text("image,x1,y1,x2,y2\nIM000001,1,2,11,20\n")
    found, refused = read(tmp_path)
    assert refused == [] and found["IM000001"].height == 20
    assert "DOE" not in repr(found)


def test_line_numbers_count_lines_of_the_file(tmp_path):
    path = write(
        tmp_path, 'image,x1,y1,x2,y2,label\na.png,1,2,11,7,"two\nlines"\n\nb.png,1,2,x,7,c\n'
    )
    _, refused = read(tmp_path)
    assert [each.line for each in refused] == [5] and Path(refused[0].path) == path
