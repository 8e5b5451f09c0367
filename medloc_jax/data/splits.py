# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Which image goes into train, val or test: the paper's split, the published one, or by patient.

MedLoc-R1 splits its data sets 8:2 at random: HAM10000 image by image with the class counts of Table
5, HEEL 3164/792 with the classes in proportion, TN3K as published. HAM10000 shows one lesion on up
to six images, so its split by image puts images of one lesion into train and test; `group` does
not.

Every choice sorts by a hash of (seed, id): it depends neither on the order of files nor on Python
or numpy, and an image that is missing moves hardly any other.
"""

import collections
import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from medloc_jax.data import annotated

# Test images by diagnosis in the paper's Table 5, and train images.
HAM10000_TEST = {"akiec": 74, "bcc": 96, "bkl": 231, "df": 27, "mel": 213, "nv": 1338, "vasc": 24}
HAM10000_TRAIN = {
    **{"akiec": 253, "bcc": 418, "bkl": 868, "df": 88, "mel": 900, "nv": 5367, "vasc": 118},
}
HEEL_IMAGES = 3956

Key = tuple[str, str]  # ("group", its name) or ("image", its id): what is in one split


class Split(NamedTuple):
    """A split of a data set.

    Attributes:
        splits: "train", "val" or "test" of each image.
        rule: one sentence: what was done, and why where it is not what was asked for.
    """

    splits: list[str]
    rule: str


def split_paper(
    images: Sequence[annotated.AnnotatedImage], *, data_set: str, test_fraction: float, seed: int
) -> Split:
    """The paper's split of one of its data sets.

    Args:
        images: all that were not refused.
        data_set: "ham10000", "heel" or "tn3k".
        test_fraction: for images that the paper's counts do not fit.
        seed: the paper's are 42, 43, 44.

    Raises:
        ValueError: the paper has not this data set, or there are too few images.
    """
    if data_set == "tn3k":
        return split_official(images, data_set=data_set, test_fraction=test_fraction, seed=seed)
    if data_set == "heel":
        found = _split_by_class(images, _image_keys(images), test_fraction, seed)
        rule = f"{_share(test_fraction)} by image, classes in proportion"
        if len(images) == HEEL_IMAGES:
            return Split(found, f"the paper's: {rule}")
        return Split(
            found, f"{rule}; the paper has {HEEL_IMAGES:,} images, and here are {len(images):,}"
        )
    if data_set != "ham10000":
        raise ValueError(
            f"--split=paper: the paper has no {data_set}: choose --split=group, image or official"
        )
    counts = collections.Counter(_class_of(image) for image in images)
    wanted = {name: HAM10000_TRAIN[name] + HAM10000_TEST[name] for name in HAM10000_TEST}
    if counts == wanted:
        found = _split_by_class(images, _image_keys(images), test_fraction, seed, HAM10000_TEST)
        return Split(found, "the paper's: by image, with the class counts of Table 5")
    found = _split_by_class(images, _image_keys(images), test_fraction, seed)
    return Split(
        found,
        f"{_share(test_fraction)} by image, classes in proportion; not the paper's Table 5, which "
        f"is for {sum(wanted.values()):,} images, and here are {len(images):,}",
    )


def split_official(
    images: Sequence[annotated.AnnotatedImage], *, data_set: str, test_fraction: float, seed: int
) -> Split:
    """The data set's own split.

    Raises:
        ValueError: an image has none.
    """
    del test_fraction, seed
    missing = [image for image in images if image.split is None]
    if missing:
        raise ValueError(
            f"--split=official: {len(missing)} of {len(images)} images of {data_set} are in no "
            f"split, such as {missing[0].image_path}: choose --split=group or --split=image"
        )
    return Split([str(image.split) for image in images], "as published")


def split_by_group(
    images: Sequence[annotated.AnnotatedImage], *, data_set: str, test_fraction: float, seed: int
) -> Split:
    """Train and test without a lesion or patient in both, classes in proportion as far as possible.

    An image without a group is a group of its own.

    Raises:
        ValueError: there are fewer than two groups.
    """
    del data_set
    keys = _group_keys(images)
    found = _split_by_class(images, keys, test_fraction, seed)
    if not any(image.group for image in images):
        rule = f"{_share(test_fraction)} by image, as no patient or lesion is known"
    else:
        rule = f"{_share(test_fraction)} by group ({len(set(keys)):,} lesions or patients)"
    return Split(found, f"{rule}, classes in proportion")


def split_by_image(
    images: Sequence[annotated.AnnotatedImage], *, data_set: str, test_fraction: float, seed: int
) -> Split:
    """Train and test at random, image by image, classes in proportion; groups may be in both.

    Raises:
        ValueError: there are fewer than two images.
    """
    del data_set
    found = _split_by_class(images, _image_keys(images), test_fraction, seed)
    return Split(found, f"{_share(test_fraction)} by image, classes in proportion")


def _all_in(split: str) -> Callable[..., Split]:
    def rule(images: Sequence[annotated.AnnotatedImage], **_: object) -> Split:
        return Split([split] * len(images), f"all of it is {split}")

    return rule


SPLITS: Mapping[str, Callable[..., Split]] = {
    "paper": split_paper,
    "official": split_official,
    "group": split_by_group,
    "image": split_by_image,
    "all_train": _all_in("train"),
    "all_test": _all_in("test"),
}
RULES = ("auto", *SPLITS)  # auto: official where every image is in a split, else group
TEST_FRACTION = 0.2
_WITHOUT_FRACTION = ("paper", "official", "all_train", "all_test")


def split_images(
    name: str,
    images: Sequence[annotated.AnnotatedImage],
    *,
    data_set: str,
    test_fraction: float | None,
    seed: int,
) -> Split:
    """Splits by one of RULES.

    Args:
        name: of the rule.
        images: all that were not refused; the result does not depend on their order.
        data_set: its name, for the paper's rule.
        test_fraction: share of test, in (0, 1); None: the paper's, 0.2.
        seed: of the choice.

    Raises:
        ValueError: the rule is unknown or cannot be applied, or the fraction is out of range or
            given to a rule that has no use for it.
    """
    if name not in RULES:
        raise ValueError(f"--split={name}: choose one of {', '.join(RULES)}")
    if name == "auto":
        name = "official" if all(image.split is not None for image in images) else "group"
    if test_fraction is None:
        test_fraction = TEST_FRACTION
    elif name in _WITHOUT_FRACTION:
        raise ValueError(
            f"--test_fraction={test_fraction}: --split={name} has its own: leave one of them away"
        )
    if not 0 < test_fraction < 1:
        raise ValueError(f"--test_fraction={test_fraction}: it must be above 0 and below 1")
    return SPLITS[name](images, data_set=data_set, test_fraction=test_fraction, seed=seed)


def part_crossing_groups(
    images: Sequence[annotated.AnnotatedImage], splits: Sequence[str]
) -> list[annotated.AnnotatedImage]:
    """The images, each group that is in several splits made one group a split: "g" is "g@train".

    A manifest promises that no group crosses its splits, and val is cut from train by group: with
    these names both holds, whatever leaks from train to test.

    Args:
        images: with the data set's own groups.
        splits: of each image.

    Returns:
        The images in order; the other groups keep their names.
    """
    crossing = crossing_groups(images, splits)
    if not crossing:
        return list(images)
    taken = {image.group for image in images}
    mark = "@"
    while any(f"{group}{mark}{split}" in taken for group in crossing for split in set(splits)):
        mark += "@"
    return [
        dataclasses.replace(image, group=f"{image.group}{mark}{split}")
        if image.group in crossing
        else image
        for image, split in zip(images, splits, strict=True)
    ]


def crossing_groups(images: Sequence[annotated.AnnotatedImage], splits: Sequence[str]) -> set[str]:
    """The groups that are in more than one split."""
    found: dict[str, set[str]] = {}
    for image, split in zip(images, splits, strict=True):
        if image.group is not None:
            found.setdefault(image.group, set()).add(split)
    return {group for group, in_splits in found.items() if len(in_splits) > 1}


def quotas(counts: Mapping[str, int], total: int) -> dict[str, int]:
    """Shares `total` among the classes in proportion to their counts, by largest remainder."""
    whole = sum(counts.values())
    shares = {name: total * count / whole for name, count in counts.items()}
    result = {name: math.floor(share) for name, share in shares.items()}
    left = total - sum(result.values())
    for name in sorted(shares, key=lambda name: (result[name] - shares[name], name))[:left]:
        result[name] += 1
    return result


def _split_by_class(
    images: Sequence[annotated.AnnotatedImage],
    keys: Sequence[Key],
    test_fraction: float,
    seed: int,
    test_counts: Mapping[str, int] | None = None,
) -> list[str]:
    """Fills the test quota of every class with whole groups (of one key) in hashed order."""
    members: dict[Key, list[str]] = {}
    for image, key in zip(images, keys, strict=True):
        members.setdefault(key, []).append(_class_of(image))
    if len(members) < 2:
        raise ValueError(
            f"a split into train and test needs two groups of images or more, and there is "
            f"{len(members)}: choose --split=image, all_train or all_test"
        )
    classes = {key: _most_frequent(names) for key, names in members.items()}
    counts = collections.Counter(classes[key] for key in keys)
    # Rounded up, as the paper's 2,003 of 10,015 and 792 of 3,956; 1e-9 for what 0.2 is not exactly.
    total = math.ceil(test_fraction * len(images) - 1e-9)
    left = dict(test_counts or quotas(counts, min(total, len(images) - 1)))
    order = sorted(members, key=lambda key: _hash(seed, key))
    test: set[Key] = set()
    for key in order:
        size = len(members[key])
        # A group that overshoots is taken if that is nearer to the quota than to stop short of it.
        if size < 2 * left[classes[key]] and len(test) < len(members) - 1:
            test.add(key)
            left[classes[key]] -= size
    if not test:
        test.add(min(order, key=lambda key: len(members[key])))
    return ["test" if key in test else "train" for key in keys]


def _image_keys(images: Sequence[annotated.AnnotatedImage]) -> list[Key]:
    """A key an image file: what asks several questions of one file must not be torn apart."""
    # Named by the least id, as a path differs from machine to machine.
    ids: dict[Path, str] = {}
    for image in images:
        ids[image.image_path] = min(image.id, ids.get(image.image_path, image.id))
    return [("image", ids[image.image_path]) for image in images]


def _group_keys(images: Sequence[annotated.AnnotatedImage]) -> list[Key]:
    """A key a group; an image without one is a group of its own."""
    alone = _image_keys(images)
    return [
        key if image.group is None else ("group", image.group)
        for image, key in zip(images, alone, strict=True)
    ]


def _class_of(image: annotated.AnnotatedImage) -> str:
    """The class of an image; the set of its targets' labels where it has none of its own."""
    if image.label is not None:
        return image.label
    return " + ".join(sorted({target.label for target in image.targets if target.label}))


def _most_frequent(names: Iterable[str]) -> str:
    counts = collections.Counter(names)
    return min(counts, key=lambda name: (-counts[name], name))


def _hash(seed: int, key: Key) -> bytes:
    return hashlib.sha256(repr((seed, key)).encode()).digest()


def _share(test_fraction: float) -> str:
    return f"{1 - test_fraction:.0%} to {test_fraction:.0%}"
