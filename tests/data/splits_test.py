# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import collections
import dataclasses
from pathlib import Path

import drawn_data
import pytest

from medloc_jax.data import examples, splits

SPLITS = examples.SPLITS


def _split(name, images, *, data_set="any", test_fraction=None, seed=42):
    return splits.split_images(
        name, images, data_set=data_set, test_fraction=test_fraction, seed=seed
    )


def _counts(images, found, split):
    return collections.Counter(
        image.label for image, each in zip(images, found.splits, strict=True) if each == split
    )


@pytest.fixture(scope="module")
def ham():
    """As many images of each class as HAM10000 has, up to six a lesion."""
    classes, groups = [], []
    for name, count in splits.HAM10000_TEST.items():
        for index in range(count + splits.HAM10000_TRAIN[name]):
            classes.append(name)
            groups.append(f"{name}-{index // (1 + index % 3)}")
    return drawn_data.annotated_images(classes, groups=groups)


@pytest.mark.parametrize("seed", [42, 43, 44])
def test_the_papers_split_has_the_counts_of_table_5(ham, seed):
    found = _split("paper", ham, data_set="ham10000", seed=seed)
    assert sum(splits.HAM10000_TRAIN.values()) == 8012
    assert sum(splits.HAM10000_TEST.values()) == 2003
    assert _counts(ham, found, "train") == splits.HAM10000_TRAIN
    assert _counts(ham, found, "test") == splits.HAM10000_TEST
    assert found.rule == "the paper's: by image, with the class counts of Table 5"


def test_seeds_differ_and_the_order_of_the_images_does_not_matter(ham):
    by_seed = {
        seed: _split("paper", ham, data_set="ham10000", seed=seed).splits for seed in (42, 43, 44)
    }
    assert by_seed[42] != by_seed[43] != by_seed[44] != by_seed[42]
    backwards = _split("paper", ham[::-1], data_set="ham10000").splits
    assert backwards[::-1] == by_seed[42]


def test_a_split_is_the_same_on_every_machine():
    images = drawn_data.annotated_images(["a"] * 10)
    moved = [
        dataclasses.replace(image, image_path=Path("/other") / image.image_path.name)
        for image in images
    ]
    found = _split("image", images).splits
    assert found == _split("image", moved).splits
    # By value: another hash, or another order, would change every published split.
    assert [index for index, split in enumerate(found) if split == "test"] == [2, 5]


def test_a_part_of_ham10000_is_split_in_proportion_and_says_so(ham):
    images = ham[::7]
    found = _split("paper", images, data_set="ham10000")
    assert found.splits.count("test") == -(-len(images) // 5)
    assert "not the paper's Table 5, which is for 10,015 images, and here are 1,431" in found.rule
    for name, count in _counts(images, found, "test").items():
        assert abs(count - 0.2 * sum(image.label == name for image in images)) < 1


def test_a_missing_image_moves_hardly_any_other(ham):
    whole = _split("image", ham).splits
    without = _split("image", ham[1:]).splits
    assert sum(a != b for a, b in zip(whole[1:], without, strict=True)) <= 7  # one a class


def test_heel_has_the_papers_counts():
    images = drawn_data.annotated_images(["Normal"] * 1842 + ["Heel Spur"] * 1316 + ["Sever"] * 798)
    found = _split("paper", images, data_set="heel")
    assert collections.Counter(found.splits) == {"train": 3164, "test": 792}
    assert _counts(images, found, "test") == {"Normal": 369, "Heel Spur": 263, "Sever": 160}
    assert "the paper's" in found.rule
    assert "the paper has 3,956" in _split("paper", images[1:], data_set="heel").rule


def test_the_paper_knows_three_data_sets():
    images = drawn_data.annotated_images(["a"] * 4, split="test")
    assert _split("paper", images, data_set="tn3k").splits == ["test"] * 4
    with pytest.raises(ValueError, match="--split=paper: the paper has no coco"):
        _split("paper", images, data_set="coco")


@pytest.mark.parametrize("seed", [42, 43, 44])
def test_no_group_is_in_two_splits(ham, seed):
    found = _split("group", ham, seed=seed)
    assert splits.crossing_groups(ham, found.splits) == set()
    assert found.splits.count("test") == 2003
    counts = collections.Counter(image.label for image in ham)
    for name, count in _counts(ham, found, "test").items():
        assert abs(count - 0.2 * counts[name]) < 1.5
    assert splits.part_crossing_groups(ham, found.splits) == ham


def test_groups_in_several_splits_are_parted_and_val_is_cut_by_lesion(ham):
    found = _split("paper", ham, data_set="ham10000")
    crossing = splits.crossing_groups(ham, found.splits)
    parted = splits.part_crossing_groups(ham, found.splits)
    assert crossing and not splits.crossing_groups(parted, found.splits)
    for before, after, split in zip(ham, parted, found.splits, strict=True):
        name = f"{before.group}@{split}" if before.group in crossing else before.group
        assert after == dataclasses.replace(before, group=name)

    def in_both(images):
        """The lesions that a val cut from train has images of, and the rest of train as well."""
        rows = [
            examples.Example(
                *(image.id, image.image_path.name, 40, 30, "lesion", ((1.0, 2.0, 11.0, 12.0),)),
                *(image.label, split, image.group, "drawn"),
            )
            for image, split in zip(images, found.splits, strict=True)
        ]
        lesions = {image.id: image.group for image in ham}
        cut = examples.cut_val(rows, 0.1, 42)
        of = {name: {lesions[row.id] for row in cut if row.split == name} for name in SPLITS}
        return of["train"] & of["val"]

    assert in_both(parted) == set()
    assert in_both([dataclasses.replace(image, group=None) for image in ham])  # it could fail


def test_a_parted_group_never_takes_the_name_of_another():
    images = drawn_data.annotated_images(["a"] * 3, groups=["g", "g", "g@train"])
    parted = splits.part_crossing_groups(images, ["train", "test", "test"])
    assert [image.group for image in parted] == ["g@@train", "g@@test", "g@train"]


def test_large_groups_stay_whole_even_where_the_quota_is_missed():
    images = drawn_data.annotated_images(["a"] * 12, groups=["p", "q", "r"] * 4)
    found = _split("group", images)
    assert found.splits.count("test") == 4 and not splits.crossing_groups(images, found.splits)
    with pytest.raises(ValueError, match="two groups of images or more, and there is 1"):
        _split("group", drawn_data.annotated_images(["a"] * 3, groups=["p"] * 3))


def test_questions_on_one_image_stay_together():
    images = drawn_data.annotated_images(["a"] * 40)
    pairs = [
        dataclasses.replace(image, image_path=images[index // 2].image_path)
        for index, image in enumerate(images)
    ]
    found = _split("image", pairs).splits
    assert found[0::2] == found[1::2] and found.count("test") == 8


def test_auto_takes_the_published_split_where_it_is_whole():
    images = drawn_data.annotated_images(["a"] * 10, split="val")
    assert _split("auto", images) == (["val"] * 10, "as published")
    images[3] = dataclasses.replace(images[3], split=None)
    assert _split("auto", images).splits.count("test") == 2
    with pytest.raises(ValueError, match="1 of 10 images of any are in no split, such as /nowhere"):
        _split("official", images)


def test_all_of_it_may_be_one_split():
    images = drawn_data.annotated_images(["a"] * 3)
    assert _split("all_test", images).splits == ["test"] * 3
    assert _split("all_train", images).splits == ["train"] * 3


def test_the_fraction_is_refused_where_it_means_nothing():
    images = drawn_data.annotated_images(["a"] * 10, split="test")
    assert _split("image", images, test_fraction=0.35).splits.count("test") == 4
    for name in ("official", "all_test", "auto"):
        with pytest.raises(ValueError, match="--test_fraction=0.3: --split=.* has its own"):
            _split(name, images, test_fraction=0.3)
    with pytest.raises(ValueError, match="above 0 and below 1"):
        _split("image", images, test_fraction=1.0)
    with pytest.raises(ValueError, match="--split=random: choose one of auto, paper"):
        _split("random", images)


def test_quotas_share_all_of_it():
    assert splits.quotas({"a": 5, "b": 3, "c": 2}, 5) == {"a": 3, "b": 1, "c": 1}
    assert splits.quotas({"a": 1, "b": 1, "c": 1}, 1) == {"a": 1, "b": 0, "c": 0}
