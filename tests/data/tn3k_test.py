# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import drawn_data
import pytest

from medloc_jax.data import annotated, tn3k

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "raw"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="samples of published data sets are not beside the repository"
)


def _read(folder, **options):
    refused = annotated.Refusals()
    return tn3k.read(folder, refused, **options), refused


@pytest.fixture
def folder(tmp_path):
    return drawn_data.write_tn3k(tmp_path / "set" / "tn3k")


def test_one_nodule_is_the_rule_and_what_it_leaves_out_is_listed(folder):
    images, refused = _read(folder)
    assert [image.id for image in images] == [
        *("trainval-0000", "trainval-0001", "trainval-0002", "trainval-0003"),
        *("test-0000", "test-0001"),
    ]
    assert [image.split for image in images] == ["train"] * 4 + ["test"] * 2
    assert [image.label for image in images] == [
        *("benign", "malignant", None, "benign", "benign", "malignant")
    ]
    assert images[1].targets[0].box_px == (4, 4, 15, 16)
    assert not refused.all
    assert [Path(entry.path).name for entry in refused.left_out] == ["0004.jpg", "0002.jpg"]
    assert "2 nodules, and --nodules=one" in refused.left_out[0].reason
    assert "6 of 8 images, 2 of 3 test images; the paper tests on 544" in refused.notes[0]


def test_all_images_have_the_box_of_all_nodules_or_one_box_each(folder):
    images, refused = _read(folder.parent, nodules="all")
    assert len(images) == 8 and not refused.left_out
    assert [target.box_px for target in images[4].targets] == [(4, 4, 36, 28)]
    images, _ = _read(folder.parent, nodules="each")
    assert [target.box_px for target in images[4].targets] == [(4, 4, 18, 16), (28, 20, 36, 28)]
    with pytest.raises(ValueError, match="--nodules=two: choose one of one, all, each"):
        _read(folder, nodules="two")


def test_a_fold_counts_through_the_names_in_numerical_order(folder):
    for kind in ("image", "mask"):  # 9.jpg, 10.jpg: the order of letters is another
        for index, name in ((0, "9"), (1, "10"), (2, "11"), (3, "12"), (4, "13")):
            path = folder / f"trainval-{kind}" / f"{index:04d}.jpg"
            path.rename(path.with_name(f"{name}.jpg"))
    (folder / "label4trainval.csv").write_text("9.jpg,1\n")
    (folder / "tn3k-trainval-fold1.json").write_text(
        json.dumps({"val": [0, 3], "train": [1, 2, 4]})
    )
    images, refused = _read(folder, fold=1)
    assert {image.id: image.split for image in images if "trainval" in image.id} == {
        **{"trainval-9": "val", "trainval-10": "train", "trainval-11": "train"},
        **{"trainval-12": "val"},
    }
    assert images[0].label == "malignant" and images[1].label is None
    assert not refused.all


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"val": [0], "train": [1, 2, 3]}', "4 indices, up to 3, and trainval-image 5 images"),
        ('{"val": [0, 1], "train": [1, 2, 3, 4]}', "6 indices, up to 4"),
        ('{"val": [0]}', "is not readable as"),
        ("not JSON", "is not readable as"),
    ],
)
def test_a_fold_that_does_not_fit_is_an_error(folder, content, message):
    (folder / "tn3k-trainval-fold0.json").write_text(content)
    with pytest.raises(ValueError, match=f"fold0.json: .*{message}"):
        _read(folder, fold=0)
    with pytest.raises(ValueError, match="--fold=5"):
        _read(folder, fold=5)


def test_bad_lines_of_the_labels_are_refused_and_their_images_kept(folder):
    (folder / "label4test.csv").write_text("image,label\n0000.jpg,7\n0001.jpg,1\n0099.jpg,0\n")
    images, refused = _read(folder)
    assert [image.label for image in images if image.split == "test"] == [None, "malignant"]
    assert [(entry.line, entry.reason.partition(":")[0]) for entry in refused.all] == [
        (1, "'image,label' is not like 0000.jpg,1"),
        (2, "'0000.jpg,7' is not like 0000.jpg,1"),
        (4, "0099.jpg is not among the images"),
    ]


def test_images_and_masks_without_each_other_are_refused(folder):
    (folder / "test-image" / "0000.jpg").unlink()
    (folder / "trainval-mask" / "0001.jpg").unlink()
    (folder / "trainval-image" / "cover.jpg").write_bytes(b"")
    (folder / "label4test.csv").unlink()
    images, refused = _read(folder)
    assert [image.id for image in images if image.split == "test"] == ["test-0001"]
    assert [(Path(e.path).parent.name, e.reason.partition(":")[0]) for e in refused.all] == [
        ("trainval-image", "is not named by a number, such as 0000.jpg"),
        ("test-mask", "has no image in test-image"),
        ("trainval-image", "has no mask in trainval-mask"),
    ]
    assert [Path(entry.path).name for entry in refused.warnings] == ["label4test.csv"]


def test_another_layout_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="trainval-image and trainval-mask are missing or empty"):
        _read(tmp_path)


@needs_shared
def test_the_published_layout_is_read():
    images, refused = _read(SHARED / "TN3K_layout_fixture", fold=0)
    assert len(images) == 16 and not refused.all and not refused.warnings
    assert [image.split for image in images].count("val") == 3


@needs_shared
def test_images_and_masks_that_are_no_pairs_are_refused_one_by_one():
    images, refused = _read(SHARED / "TN3K_real_parts")
    assert images == [] and len(refused.all) == 24
