# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import pytest

from medloc_jax.data import csv_columns


def table(tmp_path, text, columns=""):
    path = tmp_path / "boxes.csv"
    path.write_text(text)
    return csv_columns.read_table(path, csv_columns.parse_columns(columns))


@pytest.mark.parametrize(
    ("header", "box", "size"),
    [
        ("image,x1,y1,x2,y2,width,height", ("x1", "y1", "x2", "y2"), (5, 6)),
        ("image,x,y,width,height", ("x", "y", "w", "h"), None),
        ("image,x,y,w,h,width,height", ("x", "y", "w", "h"), (5, 6)),
        ("image,x,y,width,height,image_width,image_height", ("x", "y", "w", "h"), (5, 6)),
        ("image,cx,cy,w,h,x,y", ("cx", "cy", "w", "h"), None),
    ],
)
def test_whose_width_and_height_it_is(header, box, size, tmp_path):
    found = table(tmp_path, header + "\n")
    assert found.box == box
    sides = [found.places.get(side) for side in ("width", "height")]
    assert sides == ([None, None] if size is None else list(size))


def test_the_delimiter_is_that_of_the_usual_names(tmp_path):
    found = table(tmp_path, "image;x1;y1;x2;y2;a,b,c,d,e,f,g\n")
    assert found.num_columns == 6


def test_numbers_are_always_positions(tmp_path):
    """Also where the first line holds the same numbers."""
    found = table(tmp_path, "a,1,2,3,4,5\n", "image=1,x1=2,y1=3,x2=4,y2=5")
    assert found.rows == [(1, ["a", "1", "2", "3", "4", "5"])]
    assert found.places["y2"] == 4


def test_units(tmp_path):
    header = "image,x1,y1,x2,y2\n"
    assert table(tmp_path, header).in_unit is None
    assert table(tmp_path, header, "units=unit").in_unit is True
    assert table(tmp_path, header, "units=px").in_unit is False


@pytest.mark.parametrize("text", ["1,5", "one", "", "nan", "1e999"])
def test_what_is_no_number(text):
    with pytest.raises(ValueError):
        csv_columns.number(text)
    assert csv_columns.number("-1.5") == -1.5
