# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json

import drawn_data
import numpy as np
import pytest
from PIL import Image

from medloc_jax.data import examples
from medloc_jax.evaluation import data_sheet


def _rows(count=40, *, width=40, height=30, folder=""):
    """Boxes that grow from 1 pixel to the whole image; every fourth is test."""
    return [
        examples.Example(
            id=f"row{index}",
            image=f"images/{index}.png",
            width=width,
            height=height,
            query="lesion",
            boxes_px=((0.0, 0.0, width * (index + 1) / count, float(height)),),
            label=("nv", "mel", None)[index % 3],
            split="test" if index % 4 == 3 else "train",
            group=None,
            source="drawn",
            folder=folder,
        )
        for index in range(count)
    ]


def _statistics(rows, images=None, digests=None):
    images = images or drawn_data.annotated_images(["nv"] * len(rows))
    digests = digests or [str(index) for index in range(len(rows))]
    return data_sheet.statistics(rows, images, [row.split for row in rows], digests)


def test_counts_add_up_by_class_and_split():
    found = _statistics(_rows())
    assert found["examples"] == {"train": 30, "test": 10, "all": 40}
    assert found["images"] == found["examples"]
    assert found["classes"] == {
        "(no label)": {"train": 10, "test": 3},
        "mel": {"train": 10, "test": 3},
        "nv": {"train": 10, "test": 4},
    }
    assert json.loads(json.dumps(found)) == found


def test_box_areas_are_shares_of_the_image():
    found = _statistics(_rows())
    assert found["box_area_percent"]["all"] == {
        **{"5": 7.375, "25": 26.875, "50": 51.25, "75": 75.625, "95": 95.125}
    }
    assert found["boxes_by_area_percent"]["train"] == {
        **{"0-1": 0, "1-5": 2, "5-10": 1, "10-25": 5, "25-50": 7, "50-75": 8, "75-100": 7}
    }
    assert sum(found["boxes_by_area_percent"]["test"].values()) == 10


def test_the_upper_end_of_a_bin_belongs_to_it():
    rows = [
        dataclasses.replace(_rows(1)[0], width=100, height=100, boxes_px=((0.0, 0.0, w, 100.0),))
        for w in (1.0, 5.0, 100.0)
    ]
    found = data_sheet.statistics(
        rows, drawn_data.annotated_images(["a"] * 3), ["train"] * 3, "abc"
    )
    assert list(found["boxes_by_area_percent"]["train"].values()) == [1, 1, 0, 0, 0, 0, 1]


def test_the_floor_is_that_of_the_median_train_box():
    rows = _rows()
    floor = _statistics(rows)["floor"]
    assert floor["split"] == "test" and floor["num_examples"] == 10
    train = np.array([row.box_px for row in rows if row.split == "train"])
    width = np.median(train, axis=0)[2]
    ious = [
        min(width, row.box_px[2]) / max(width, row.box_px[2]) for row in rows if row.split == "test"
    ]
    assert floor["miou"] == pytest.approx(np.mean(ious))
    assert _statistics([dataclasses.replace(row, split="test") for row in rows])["floor"] is None


def test_what_leaks_into_test_is_counted():
    images = drawn_data.annotated_images(["a"] * 6, groups=["g", "g", "h", "k", "k", None])
    splits = ["train", "test", "train", "test", "test", "val"]
    digests = ["0", "1", "2", "2", "4", "0"]
    assert data_sheet.leakage(images, splits, digests) == {
        "groups": 3,
        "images_with_group": 5,
        "val": {"images": 1, "share_group_with_train": 0, "same_file_as_in_train": 1},
        "test": {"images": 3, "share_group_with_train": 1, "same_file_as_in_train": 1},
    }


def test_leakage_is_said_in_words():
    images = drawn_data.annotated_images(["a"] * 2, groups=["g", "g"])
    said = data_sheet.leakage_sentence(data_sheet.leakage(images, ["train", "test"], ["0", "0"]))
    assert said == (
        "Leakage: 1 of 1 test images show a lesion or patient that is in train, too; 1 of the "
        "files of test stand in train, too, byte for byte."
    )
    images = drawn_data.annotated_images(["a"] * 2)
    said = data_sheet.leakage_sentence(data_sheet.leakage(images, ["train", "test"], ["0", "1"]))
    assert said == "Leakage: lesions and patients are not known."


def test_the_page_holds_the_numbers():
    summary = _statistics(_rows()) | {
        **{"data_set": "drawn", "command": "medloc prepare drawn", "seed": 42, "query": "lesion"},
        **{"split_rule": "by hand", "one_box": "refuse", "notes": ["A fact."], "licence": "Mine."},
        **{"refused": {"a.csv:3: bad": 7}, "left_out": {}, "warnings": {"b.png: odd": 1}},
        "refused_questions": {"c.png: two": 2},
    }
    page = data_sheet.to_markdown(summary)
    assert "| nv | 10 | 4 | 14 |" in page
    assert "| **images** | **30** | **10** | **40** |" in page
    assert "Split: by hand. Seed 42." in page and "A fact." in page
    assert "## Refused files and lines\n\n* 7 x a.csv:3: bad\n" in page
    assert "## Refused questions\n\n* 2 x c.png: two\n" in page
    assert "## Taken, to be looked at\n\n* 1 x b.png: odd\n" in page
    assert "Left out" not in page and "No file was refused" not in page
    assert f"A@0.5 {100 * summary['floor']['a50']:.1f}" in page
    assert "No file was refused." in data_sheet.to_markdown(
        summary | {"refused": {}, "floor": None}
    )


def test_the_sheet_shows_extremes_and_every_class_and_nothing_twice():
    rows = _rows()
    chosen = data_sheet.choose_examples(rows, seed=1)
    assert list(chosen) == ["smallest", "largest", "nv", "(no label)", "mel"]
    assert chosen["smallest"] == [0, 1, 2, 3, 4, 5] and chosen["largest"][0] == 39
    shown = [index for indices in chosen.values() for index in indices]
    assert len(shown) == len(set(shown))
    for title in ("nv", "mel"):
        assert {rows[index].label for index in chosen[title]} == {title}
        assert {rows[index].split for index in chosen[title]} == {"train", "test"}
    assert chosen != data_sheet.choose_examples(rows, seed=2)
    assert chosen == data_sheet.choose_examples(rows, seed=1)
    assert list(data_sheet.choose_examples(rows[:1], seed=1)) == ["smallest"]


@pytest.mark.parametrize(
    ("box", "view"),
    [
        ((300.0, 200.0, 340.0, 220.0), (240, 150, 400, 270)),  # 4 times 40 of 640, in the middle
        ((0.0, 470.0, 40.0, 480.0), (0, 360, 160, 480)),  # moved into the image
        ((300.0, 200.0, 302.0, 202.0), (277, 183, 325, 219)),  # 48 px at least
        ((300.0, 200.0, 380.0, 202.0), None),
        ((0.0, 0.0, 640.0, 480.0), None),
    ],
)
def test_small_boxes_are_zoomed(box, view):
    row = dataclasses.replace(_rows(1, width=640, height=480)[0], boxes_px=(box,))
    assert data_sheet.zoom(row) == view
    small = dataclasses.replace(_rows(1)[0], boxes_px=((0.0, 0.0, 1.0, 1.0),))
    assert data_sheet.zoom(small) is None  # 40 x 30 px: less than is shown at least


def test_a_zoomed_box_leaves_its_target_in_sight(tmp_path):
    """A red target of 8 px in 640: under its own line it would not be seen."""
    image = Image.new("RGB", (640, 480), (90, 90, 90))
    image.paste((250, 0, 0), (100, 60, 108, 68))
    image.save(tmp_path / "a.png")
    row = dataclasses.replace(
        _rows(1, width=640, height=480, folder=str(tmp_path))[0],
        image="a.png",
        boxes_px=((100.0, 60.0, 108.0, 68.0),),
    )
    data_sheet.draw_overlay(tmp_path / "sheet.png", [row] * 2, seed=1)
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"), np.int64)
    red = (pixels[..., 0] > 200) & (pixels[..., 1] < 60)
    ys, xs = np.nonzero(red)
    assert red.sum() > 300
    middle = np.array([ys.mean(), xs.mean()])
    green = np.abs(pixels - (0, 158, 115)).max(axis=-1) < 10
    ys, xs = np.nonzero(green)
    assert ys.min() < middle[0] < ys.max() and xs.min() < middle[1] < xs.max()


def test_the_sheet_is_drawn_with_true_boxes_only(tmp_path):
    rows = _rows(8, folder=str(tmp_path))
    for row in rows:
        path = tmp_path / row.image
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), (200, 10, 10)).save(path)
    data_sheet.draw_overlay(tmp_path / "overlay.png", rows, seed=1)
    with Image.open(tmp_path / "overlay.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"), np.int64)

    def shows(colour):
        return np.abs(pixels - colour).max(axis=-1).min() < 10

    assert shows((0, 158, 115))  # plot_style.GREEN
    assert not shows((230, 159, 0))  # ORANGE: there is no prediction
