# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import math
from pathlib import Path

import pytest
from PIL import Image

from medloc_jax.data import annotated, records


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "a.png"
    Image.new("L", (40, 20)).save(path)
    return path


def read(image, *boxes, **fields):
    """The one image that a record with these boxes becomes, and what was refused."""
    refused = annotated.Refusals()
    record = records.Record(
        path=Path("notes.txt"),
        image_path=image,
        boxes=[records.RawBox(tuple(map(float, box)), "cyst", line=7) for box in boxes],
        **fields,
    )
    images = records.to_images([record], image.parent, refused, what="images")
    return (images[0] if images else None), refused


def test_a_good_box(image):
    found, refused = read(image, (1, 2, 30.5, 20), split="val", group="p1", query="the cyst")
    assert found == annotated.AnnotatedImage(
        id="a",
        image_path=image,
        width=40,
        height=20,
        targets=(annotated.Target((1.0, 2.0, 30.5, 20.0), "cyst"),),
        group="p1",
        split="val",
        query="the cyst",
    )
    assert refused.all == [] and refused.notes == []


def test_fractions_become_pixels(image):
    found, _ = read(image, (0.25, 0.5, 0.75, 1.0), in_unit=True)
    assert found.targets[0].box_px == (10, 10, 30, 20)


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ((1, 2, 1, 8), "is empty"),
        ((9, 2, 1, 8), "is reversed"),
        ((1, 2, math.nan, 8), "is not finite"),
        ((1, 2, math.inf, 8), "is not finite"),
        ((1, 2, 40.6, 8), "outside its image of 40 x 20 px"),
        ((-0.6, 2, 4, 8), "outside"),
        ((1, 2, 8, 21), "outside"),
        ((40.1, 2, 40.4, 8), "outside"),
    ],
)
def test_a_bad_box_leaves_the_image_out(image, box, words):
    found, refused = read(image, (1, 1, 5, 5), box)
    assert found is None
    (refusal,) = refused.all
    assert (refusal.path, refusal.line) == ("notes.txt", 7)
    assert words in refusal.reason and str(image) in refusal.reason


def test_rounding_at_the_edge_is_cut_off_and_told(image):
    found, refused = read(image, (-0.5, 0, 40.5, 20.2), (1, 1, 40, 20))
    assert [target.box_px for target in found.targets] == [(0, 0, 40, 20), (1, 1, 40, 20)]
    assert refused.all == [] and refused.notes[0].startswith("1 boxes reached over")


def test_a_copy_of_a_box_is_refused_alone(image):
    found, refused = read(image, (1, 1, 5, 5), (1, 1, 5, 5), (1, 1, 5, 6))
    assert len(found.targets) == 2
    assert ["a copy of another" in refusal.reason for refusal in refused.all] == [True]


def test_an_image_without_box(image):
    found, refused = read(image)
    assert found is None and refused.all[0].path == str(image)
    assert "no box" in refused.all[0].reason


@pytest.mark.parametrize(
    ("size", "words"), [((80, 40), "80 x 40 px"), ((20, 40), "turned by a quarter"), ((40, 0), "0")]
)
def test_another_size_than_stated(image, size, words):
    found, refused = read(image, (1, 1, 5, 5), stated_size=size)
    assert found is None and words in refused.all[0].reason


@pytest.mark.parametrize("size", [(40, 20), (0, 0), None])
def test_the_size_as_stated_or_not_stated(image, size):
    assert read(image, (1, 1, 5, 5), stated_size=size)[0] is not None


def test_a_broken_image_is_refused_by_its_own_path(image):
    image.write_bytes(b"no image")
    found, refused = read(image, (1, 1, 5, 5))
    assert found is None
    assert refused.all[0].path == str(image) and "not an image" in refused.all[0].reason


def test_strict_stops_at_the_first(image):
    record = records.Record(
        Path("notes.txt"), image, [records.RawBox((5.0, 5.0, 5.0, 5.0))], line=3
    )
    with pytest.raises(ValueError, match="is empty"):
        records.to_images([record], image.parent, annotated.Refusals(strict=True), what="images")


def test_two_descriptions_of_one_image(image):
    refused = annotated.Refusals()
    both = [
        records.Record(
            Path("notes.txt"), image, [records.RawBox((1.0, 1.0, 5.0, 5.0 + each))], line=each
        )
        for each in (1, 2)
    ]
    assert records.to_images(both, image.parent, refused, what="images") == []
    assert [refusal.line for refusal in refused.all] == [1, 2]
    found = records.to_images(both, image.parent, refused, what="images", repeats=True)
    assert [each.id for each in found] == ["a#1", "a#2"]


def test_ids_are_as_short_as_they_can_be(tmp_path):
    names = ["a.png", "x/b.png", "y/b.png", "y/c.png", "y/c.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (9, 9)).save(tmp_path / name)
    all_of_them = [
        records.Record(Path("n"), tmp_path / name, [records.RawBox((1.0, 1.0, 5.0, 5.0))])
        for name in names
    ]
    found = records.to_images(all_of_them, tmp_path, annotated.Refusals(strict=True), what="images")
    assert [each.id for each in found] == ["a", "x/b", "y/b", "y/c.png", "y/c.jpg"]


@pytest.mark.parametrize(
    "values", [None, [1, 2, 3], [1, 2, 3, "4"], [1, 2, 3, True], [10**400] * 4]
)
def test_what_is_no_box(values):
    with pytest.raises(ValueError, match="correct it"):
        records.box_of(values)
