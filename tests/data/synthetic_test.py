# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import os

import numpy as np
import pytest
from PIL import Image

from medloc_jax.data import examples, synthetic


@pytest.mark.parametrize("variant", synthetic.VARIANTS)
def test_a_picture_is_a_function_of_its_arguments(variant):
    first, query, box = synthetic.render(variant, 7, 3)
    again, *rest = synthetic.render(variant, 7, 3)
    assert (np.asarray(first) == np.asarray(again)).all() and rest == [query, box]
    for other, *_ in (synthetic.render(variant, 8, 3), synthetic.render(variant, 7, 4)):
        assert other.size != first.size or (np.asarray(other) != np.asarray(first)).any()


@pytest.mark.parametrize(("variant", "contrast"), [("lesions", 0.05), ("easy", 0.12)])
def test_the_box_holds_what_the_query_names(variant, contrast):
    sizes, queries, shares = set(), set(), []
    for index in range(40):
        picture, query, (x1, y1, x2, y2) = synthetic.render(variant, 0, index)
        sizes.add(picture.size)
        queries.add(query)
        shares.append((x2 - x1) / picture.width)
        assert 0 <= x1 < x2 <= picture.width and 0 <= y1 < y2 <= picture.height
        assert min(x2 - x1, y2 - y1) >= 10
        grey = np.asarray(picture.convert("L"), np.float64) / 255
        # The middle half of the box against the median of the picture.
        margin_x, margin_y = int(x2 - x1) // 4, int(y2 - y1) // 4
        middle = grey[
            int(y1) + margin_y : int(y2) - margin_y, int(x1) + margin_x : int(x2) - margin_x
        ]
        difference = np.median(middle) - np.median(grey)
        if (x2 - x1) * (y2 - y1) < 0.35 * grey.size:  # else the median is the target's
            assert (difference < -contrast) if query == "dark lesion" else (difference > contrast)
    assert sizes == set(synthetic.SIZES)
    assert queries == set(synthetic.QUERIES)
    assert min(shares) < 0.4 and max(shares) > 0.5


def test_unknown_variants_and_bad_numbers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'hard' is unknown: choose lesions or easy"):
        synthetic.render("hard", 0, 0)
    with pytest.raises(ValueError, match="num_train is -1"):
        synthetic.write(tmp_path / "s", num_train=-1)
    with pytest.raises(ValueError, match="both 0"):
        synthetic.write(tmp_path / "s", num_train=0, num_test=0)
    assert not (tmp_path / "s").exists()


def test_a_folder_is_written_once_and_used_again(tmp_path):
    out = tmp_path / "deep" / "set"
    manifest = synthetic.write(out, num_train=4, num_test=3, seed=5)
    rows = examples.load_manifest(manifest)
    assert [row.split for row in rows] == ["train"] * 4 + ["test"] * 3
    picture, query, box = synthetic.render("lesions", 5, 2)
    with Image.open(rows[2].image_path) as stored:
        assert (np.asarray(stored) == np.asarray(picture)).all()
    assert (rows[2].query, rows[2].box_px) == (query, box)
    assert os.listdir(out.parent) == ["set"]  # no temporary folder is left

    stamp = os.stat(manifest).st_mtime_ns
    assert synthetic.write(out, num_train=4, num_test=3, seed=5) == manifest
    assert os.stat(manifest).st_mtime_ns == stamp
    with pytest.raises(ValueError, match="holds another synthetic data set"):
        synthetic.write(out, num_train=4, num_test=3, seed=6)


def test_test_pictures_do_not_depend_on_num_train(tmp_path):
    few = examples.load_manifest(synthetic.write(tmp_path / "few", num_train=1, num_test=2))
    more = examples.load_manifest(synthetic.write(tmp_path / "more", num_train=3, num_test=2))
    few, more = examples.select(few, "test"), examples.select(more, "test")
    assert [row.to_json() for row in few] == [row.to_json() for row in more]


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no synthetic data set"):
        synthetic.write(tmp_path, num_train=1, num_test=1)
    with pytest.raises(ValueError, match="is a file"):
        synthetic.write(tmp_path / "thesis.txt", num_train=1, num_test=1)
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_nothing_is_left_of_an_interrupted_write(tmp_path, monkeypatch):
    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "render", fail)
    with pytest.raises(KeyboardInterrupt):
        synthetic.write(tmp_path / "s", num_train=1, num_test=1)
    assert os.listdir(tmp_path) == []


def test_the_faster_of_two_writers_wins(tmp_path, monkeypatch):
    out = tmp_path / "s"
    replace = os.replace

    def overtaken(source, target):
        monkeypatch.setattr(os, "replace", replace)
        synthetic.write(out, num_train=2, num_test=1)
        replace(source, target)

    monkeypatch.setattr(os, "replace", overtaken)
    manifest = synthetic.write(out, num_train=2, num_test=1)
    assert len(examples.load_manifest(manifest)) == 3
    assert os.listdir(tmp_path) == ["s"]
