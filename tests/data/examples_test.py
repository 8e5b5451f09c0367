# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import collections
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medloc_jax.data import examples

SHARED_DATA = Path(__file__).resolve().parents[2] / "../shared/data"


def _line(index=0, **changes):
    line = {
        "id": f"e{index}",
        "image": "a.png",
        "width": 40,
        "height": 30,
        "query": "dark lesion",
        "boxes_px": [[1, 2.5, 20, 30]],
        "label": None,
        "split": "train",
        "group": None,
        "source": "made",
    }
    return {**line, **changes}


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    return tmp_path


def _write(folder, lines):
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path = folder / "manifest.jsonl"
    path.write_text(text, encoding="utf-8")
    return path


def _example(index, **changes):
    line = _line(index, **changes)
    return examples.Example(**{**line, "boxes_px": ((1.0, 2.0, 3.0, 4.0),)})


def test_a_good_manifest_is_read_and_written_back(folder):
    path = _write(folder, [_line(0), _line(1, split="test", group="p", label="nevus")])
    rows = examples.load_manifest(path)
    assert [row.id for row in rows] == ["e0", "e1"]
    assert rows[0].box_px == (1.0, 2.5, 20.0, 30.0)
    assert rows[0].image_path == str(folder / "a.png")
    assert examples.load_manifest(folder) == rows
    examples.write_manifest(folder / "again.jsonl", rows)
    assert examples.load_manifest(folder / "again.jsonl") == rows


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", "not JSON"),
        ("", "empty line"),
        ("[1]", "not a JSON object but list"),
        ({key: value for key, value in _line(1).items() if key != "query"}, "missing query"),
        (_line(1, box=[0, 0, 1, 1]), "unknown key 'box'"),
        (_line(1, id=7), "id is 7"),
        (_line(1, query=" "), "query is ' '"),
        (_line(1, label=3), "label is 3"),
        (_line(1, width=True), "width is True"),
        (_line(1, width=40.0), "width is 40.0"),
        (_line(1, height=0), "height is 0"),
        (_line(1, split="valid"), "one of train, val, test"),
        (_line(1, boxes_px=[]), "list of one"),
        (_line(1, boxes_px=[1, 2, 3, 4]), "--one_box=largest"),
        (_line(1, boxes_px=[[1, 2, 3, 4]] * 2), "--one_box=union or --one_box=split"),
        (_line(1, boxes_px=[[1, 2, 3]]), "four numbers"),
        (_line(1, boxes_px=[[1, 2, "3", 4]]), "four numbers"),
        (_line(1, boxes_px=[[1, 2, float("nan"), 4]]), "not finite"),
        (_line(1, boxes_px=[[1, 2, float("inf"), 4]]), "not finite"),
        (_line(1, boxes_px=[[9, 2, 3, 4]]), "is reversed"),
        (_line(1, boxes_px=[[3, 2, 3, 4]]), "is empty"),
        (_line(1, boxes_px=[[-0.5, 2, 3, 4]]), "outside its image of 40 x 30 px"),
        (_line(1, boxes_px=[[1, 2, 3, 30.5]]), "outside its image of 40 x 30 px"),
        (_line(0), "id 'e0' stands in line 1 already"),
        (_line(1, image="none.png"), "none.png does not exist"),
        (_line(1, image="text.png"), "text.png cannot be opened (not an image)"),
        (_line(1, width=41), "is 40 x 30 px, and the line says 41 x 30"),
    ],
)
def test_a_bad_line_is_refused_with_file_and_line(folder, bad, message):
    (folder / "text.png").write_text("no image")
    path = _write(folder, [_line(0), bad])
    with pytest.raises(ValueError) as error:
        examples.load_manifest(path)
    assert str(error.value).startswith(f"{path}:2: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert "more bad" not in str(error.value)


def test_the_number_of_further_bad_lines_is_told(folder):
    path = _write(folder, [_line(0, width=-1), _line(1), "{", _line(3, split="x")])
    with pytest.raises(ValueError, match=r":1: width .*\(and 2 more bad lines of 4\)"):
        examples.load_manifest(path)


def test_a_decompression_bomb_is_refused_by_its_header(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="decompression bomb"):
        examples.load_manifest(_write(folder, [_line(0)]))


def test_headers_are_not_read_where_that_is_not_wanted(folder):
    path = _write(folder, [_line(0, width=41)])
    assert len(examples.load_manifest(path, check_images=False)) == 1


def test_a_group_in_two_splits_is_refused(folder):
    path = _write(folder, [_line(0, group="p"), _line(1, group="p", split="test")])
    with pytest.raises(ValueError, match=r":2: group 'p' is in test here and in train in line 1"):
        examples.load_manifest(path)


def test_a_missing_or_empty_manifest_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"manifest.jsonl: cannot be read .*medloc prepare"):
        examples.load_manifest(tmp_path / "manifest.jsonl")
    with pytest.raises(ValueError, match="has no lines"):
        examples.load_manifest(_write(tmp_path, []))


def test_select_refuses_an_empty_split():
    rows = [_example(0), _example(1, split="test")]
    assert examples.select(rows, "test") == rows[1:]
    with pytest.raises(ValueError, match=r"split 'val' \(there are: 1 train, 1 test\).*val_frac"):
        examples.select(rows, "val")
    with pytest.raises(ValueError, match="'dev' is unknown"):
        examples.select(rows, "dev")


def test_val_is_cut_by_group_and_does_not_depend_on_the_order():
    rows = [_example(i, group=f"g{i // 5}") for i in range(100)]
    rows += [_example(100 + i, split="test", group=f"t{i}") for i in range(10)]
    cut = examples.cut_val(rows, 0.2, seed=3)
    counts = collections.Counter(row.split for row in cut)
    assert counts == {"train": 80, "val": 20, "test": 10}
    splits = collections.defaultdict(set)
    for row in cut:
        splits[row.group].add(row.split)
    assert all(len(names) == 1 for names in splits.values())
    assert [dataclasses.replace(row, split="") for row in cut] == [
        dataclasses.replace(row, split="") for row in rows
    ]
    val = {row.id for row in cut if row.split == "val"}
    assert {row.id for row in examples.cut_val(rows[::-1], 0.2, 3) if row.split == "val"} == val
    assert {row.id for row in examples.cut_val(rows, 0.2, 4) if row.split == "val"} != val


def test_lines_without_a_group_are_kept_together_by_their_image():
    rows = [_example(i, image=f"{i // 2}.png") for i in range(20)]
    cut = examples.cut_val(rows, 0.3, seed=0)
    val = {row.image for row in cut if row.split == "val"}
    assert len(val) == 3
    assert not val & {row.image for row in cut if row.split == "train"}


def test_val_is_left_alone_where_it_is_there_or_not_wanted():
    rows = [_example(0), _example(1), _example(2, split="val")]
    assert examples.cut_val(rows, 0.5, 0) == rows
    assert examples.cut_val(rows[:2], 0.0, 0) == rows[:2]


def test_a_cut_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="data.val_fraction=0"):
        examples.cut_val([_example(0, group="g"), _example(1, group="g")], 0.5, 0)
    with pytest.raises(ValueError, match="data.val_fraction is 1"):
        examples.cut_val([_example(0), _example(1)], 1.0, 0)


@pytest.mark.parametrize(
    ("pack", "train", "test"),
    [("ham10000", 1663, 405), ("busi", 92, 36), ("ph2", 155, 45), ("brain_mri", 162, 58)],
)
def test_published_packs_pass(pack, train, test):
    path = SHARED_DATA / pack / "manifest.jsonl"
    if not path.exists():
        pytest.skip(f"{pack} is not beside the repository")
    rows = examples.load_manifest(path)
    assert len(examples.select(rows, "train")) == train
    assert len(examples.select(rows, "test")) == test
    val = examples.select(examples.cut_val(rows, 0.1, 0), "val")
    assert np.isclose(len(val), 0.1 * train, atol=3)
