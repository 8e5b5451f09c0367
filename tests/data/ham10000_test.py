# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import csv
import itertools
import re
import shutil
import zipfile
from pathlib import Path

import drawn_data
import numpy as np
import pytest
from PIL import Image

from medloc_jax.data import annotated, ham10000

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "ham10000_official"
MASKS = "HAM10000_segmentations_lesion_tschandl"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the real HAM10000 is not beside the repository"
)


def _read(folder, **options):
    refused = annotated.Refusals()
    return ham10000.read(folder, refused, **options), refused


@pytest.fixture
def folder(tmp_path):
    return drawn_data.write_ham10000(tmp_path / "ham", 4)


def _reasons(refused):
    return [f"{Path(entry.path).name}:{entry.line}: {entry.reason}" for entry in refused.all]


def test_images_masks_and_metadata_come_together(folder):
    images, refused = _read(folder)
    assert [image.id for image in images] == [drawn_data.ham_id(index) for index in range(4)]
    assert [image.targets[0].box_px for image in images] == [
        tuple(map(float, drawn_data.ham_box(index))) for index in range(4)
    ]
    assert [image.label for image in images] == ["nv", "nv", "nv", "nv"]
    assert [image.group for image in images] == ["HAM_0000000"] * 2 + ["HAM_0000001"] * 2
    assert {image.split for image in images} == {None}
    assert (images[0].width, images[0].height) == (40, 30)
    assert not refused.all and not refused.warnings


@pytest.mark.parametrize("images", ["images", "ham10000_images_part_1"])
def test_other_folders_and_isic_2018_names_do(tmp_path, images):
    folder = drawn_data.write_ham10000(tmp_path / "ham", 3, images=images)
    (folder / MASKS).rename(folder / "ISIC2018_Task1_Training_GroundTruth")
    (folder / "ISIC2018_Task1_Training_GroundTruth" / "LICENSE.txt").write_text("CC")
    assert len(_read(folder)[0]) == 3


def test_a_table_with_tabs_and_one_more_column_is_read(folder):
    lines = (folder / "HAM10000_metadata.csv").read_text().splitlines()
    rows = ["\t".join([*line.split(","), extra]) for line, extra in
            zip(lines, ["dataset", *["vidir_modern"] * 4], strict=True)]  # fmt: skip
    (folder / "HAM10000_metadata.csv").unlink()
    (folder / "HAM10000_metadata").write_text("\ufeff" + "\n".join(rows), encoding="utf-8")
    images, refused = _read(folder)
    assert len(images) == 4 and images[3].group == "HAM_0000001" and not refused.all


def test_a_larger_mask_is_scaled_to_its_image(tmp_path):
    images, refused = _read(drawn_data.write_ham10000(tmp_path / "ham", 4, scale=3))
    boxes = [image.targets[0].box_px for image in images]
    assert boxes == [tuple(map(float, drawn_data.ham_box(index))) for index in range(4)]
    assert not refused.warnings


def test_an_inverted_palette_is_no_full_frame(folder):
    path = folder / MASKS / f"{drawn_data.ham_id(0)}_segmentation.png"
    x1, y1, x2, y2 = drawn_data.ham_box(0)
    indices = np.ones((30, 40), np.uint8)
    indices[y1:y2, x1:x2] = 0
    image = Image.fromarray(indices).convert("P")
    image.putpalette([255, 255, 255, 0, 0, 0])
    image.save(path)
    assert _read(folder)[0][0].targets[0].box_px == (x1, y1, x2, y2)


def test_all_white_masks_are_kept_with_a_warning(folder):
    path = folder / MASKS / f"{drawn_data.ham_id(1)}_segmentation.png"
    drawn_data.write_mask(path, [(0, 0, 40, 30)])
    images, refused = _read(folder)
    assert images[1].targets[0].box_px == (0, 0, 40, 30) and not refused.all
    assert [(Path(entry.path), "all white" in entry.reason) for entry in refused.warnings] == [
        (path, True)
    ]


def test_several_components_have_one_box(folder):
    path = folder / MASKS / f"{drawn_data.ham_id(2)}_segmentation.png"
    drawn_data.write_mask(path, [(2, 3, 5, 6), (20, 10, 30, 25)])
    assert [t.box_px for t in _read(folder)[0][2].targets] == [(2, 3, 30, 25)]


def _drop_mask(folder):
    (folder / MASKS / f"{drawn_data.ham_id(0)}_segmentation.png").unlink()
    return [f"{drawn_data.ham_id(0)}.jpg:None: no mask belongs to this image"]


def _drop_image(folder):
    (folder / "HAM10000_images_part_1" / f"{drawn_data.ham_id(0)}.jpg").unlink()
    return [f"{drawn_data.ham_id(0)}_segmentation.png:None: no image belongs to this mask"]


def _drop_row(folder):
    table = folder / "HAM10000_metadata.csv"
    table.write_text(
        "\n".join(line for line in table.read_text().splitlines() if "24306" not in line)
    )
    return [f"{drawn_data.ham_id(0)}.jpg:None: no row in HAM10000_metadata.csv"]


def _drop_image_and_mask(folder):
    _drop_mask(folder)
    _drop_image(folder)
    return [f"HAM10000_metadata.csv:2: {drawn_data.ham_id(0)} has no image"]


def _empty_mask(folder):
    drawn_data.write_mask(folder / MASKS / f"{drawn_data.ham_id(0)}_segmentation.png", [])
    return [f"{drawn_data.ham_id(0)}.jpg:None: .*_segmentation.png: the mask is empty"]


def _text_for_image(folder):
    (folder / "HAM10000_images_part_1" / f"{drawn_data.ham_id(0)}.jpg").write_text("no image")
    return [f"{drawn_data.ham_id(0)}.jpg:None: not an image"]


def _unknown_diagnosis(folder):
    table = folder / "HAM10000_metadata.csv"
    table.write_text(table.read_text().replace("24306,nv", "24306,wart"))
    return [f"HAM10000_metadata.csv:2: {drawn_data.ham_id(0)} .* dx 'wart': a lesion and one of"]


def _two_rows_that_differ(folder):
    table = folder / "HAM10000_metadata.csv"
    row = table.read_text().splitlines()[1].replace(",nv,", ",mel,")
    table.write_text(table.read_text() + row + "\n")
    return [f"HAM10000_metadata.csv:6: {drawn_data.ham_id(0)} has two rows that differ"]


def _two_images_that_differ(folder):
    drawn_data.write_image(folder / "more" / f"{drawn_data.ham_id(0)}.jpg", seed=99)
    return [f"{drawn_data.ham_id(0)}.jpg:None: .* is there twice, with other content"] * 2


@pytest.mark.parametrize(
    "damage",
    [
        _drop_mask,
        _drop_image,
        _drop_row,
        _drop_image_and_mask,
        _empty_mask,
        _text_for_image,
        _unknown_diagnosis,
        _two_rows_that_differ,
        _two_images_that_differ,
    ],
)
def test_what_is_damaged_is_refused_with_its_reason_and_the_rest_is_kept(folder, damage):
    expected = damage(folder)
    images, refused = _read(folder)
    assert [image.id for image in images] == [drawn_data.ham_id(index) for index in (1, 2, 3)]
    reasons = _reasons(refused)
    assert len(reasons) == len(expected)
    for pattern, reason in zip(expected, reasons, strict=True):
        assert re.match(pattern, reason), reason


def test_copies_of_images_and_rows_lose_nothing(folder):
    shutil.copytree(folder / "HAM10000_images_part_1", folder / "ham10000_images_part_1")
    table = folder / "HAM10000_metadata.csv"
    table.write_text(table.read_text() + table.read_text().splitlines()[1] + "\n")
    images, refused = _read(folder)
    assert len(images) == 4
    assert refused.notes == ["2 files are there twice, byte for byte; one of each is used."]
    assert [reason.partition(": ")[0] for reason in _reasons(refused)] == [
        "HAM10000_metadata.csv:6"
    ]


def test_the_table_must_be_there_with_its_columns(folder):
    table = folder / "HAM10000_metadata.csv"
    table.write_text(table.read_text().replace("image_id", "image"))
    with pytest.raises(ValueError, match=r"metadata.csv:1: column image_id is missing"):
        _read(folder)
    table.rename(folder / "other.csv")
    with pytest.raises(ValueError, match="holds no HAM10000_metadata.csv"):
        _read(folder)
    with pytest.raises(ValueError, match="column image_id is missing"):
        _read(folder, metadata="other.csv")
    with pytest.raises(ValueError, match=r"none.csv: no such file.*--metadata"):
        _read(folder, metadata="none.csv")


def _expected_boxes():
    with open(SHARED / "boxes_from_official_masks_600x450.csv", newline="") as file:
        return {
            row["image_id"]: tuple(float(row[key]) for key in ("x1", "y1", "x2", "y2"))
            for row in csv.DictReader(file)
        }


def _check_real(tmp_path, chosen):
    """Reads a part of the real data, and compares every box with the reference."""
    with zipfile.ZipFile(SHARED / "ham10000_full_lowres.zip") as archive:
        names = [name for name in archive.namelist() if chosen is None
                 or name.endswith(".csv") or any(each in name for each in chosen)]  # fmt: skip
        archive.extractall(tmp_path, names)
    images, refused = _read(tmp_path)
    expected = _expected_boxes()
    for image in images:
        assert (image.width, image.height) == (200, 150)
        scaled = tuple(3 * side for side in image.targets[0].box_px)
        assert scaled == pytest.approx(expected[image.id], abs=1e-9), image.id
    return images, refused


@needs_shared
def test_boxes_of_real_masks_are_those_of_the_reference(tmp_path):
    # Palette masks with an inverted palette, both all-white masks, and ordinary ones.
    chosen = [f"ISIC_{number:07d}" for number in (24306, 24316, 24500, 24717, 26042, 29819, 34320)]
    images, refused = _check_real(tmp_path, chosen)
    assert [image.id for image in images] == chosen
    assert len(refused.warnings) == 2
    # The table is that of all images.
    assert len(refused.all) == 10_015 - len(chosen)


@needs_shared
@pytest.mark.slow
def test_all_boxes_of_real_masks_are_those_of_the_reference(tmp_path):
    images, refused = _check_real(tmp_path, None)
    assert len(images) == 10_015 and not refused.all and len(refused.warnings) == 2
    assert len({image.group for image in images}) == 7470


def test_ids_are_sorted_whatever_the_order_of_the_files(folder):
    ids = [image.id for image in _read(folder)[0]]
    assert all(a < b for a, b in itertools.pairwise(ids))
