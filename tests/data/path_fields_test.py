# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
from pathlib import Path

import drawn_data
import pytest

from medloc_jax.data import annotated, path_fields


def _images():
    images = drawn_data.annotated_images(["old", "old"], groups=["g", "g"])
    paths = ["benign/12_1.png", "malignant/7.png"]
    return [
        dataclasses.replace(image, image_path=Path("/set") / path)
        for image, path in zip(images, paths, strict=True)
    ]


def _add(label_pattern="", group_pattern=""):
    refused = annotated.Refusals()
    found = path_fields.add_path_fields(
        *(_images(), Path("/set"), refused),
        label_pattern=label_pattern,
        group_pattern=group_pattern,
    )
    return found, refused


def test_without_patterns_all_stays():
    found, refused = _add()
    assert found == _images() and not refused.all


def test_labels_and_groups_are_found_in_the_path():
    found, refused = _add("benign|malignant", r"/(\d+)[^/]*$")
    assert [(image.label, image.targets[0].label, image.group) for image in found] == [
        ("benign", "benign", "12"),
        ("malignant", "malignant", "7"),
    ]
    assert not refused.all


def test_a_path_that_does_not_match_is_refused():
    found, refused = _add(group_pattern=r"(\d+)_")
    assert len(found) == 1 and found[0].label == "old"
    assert "--group_pattern='(\\\\d+)_' finds nothing in this path" in refused.all[0].reason
    with pytest.raises(ValueError, match="--label_pattern='.': is no regular expression"):
        _add("(")
