# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import drawn_data
import pytest

from medloc_jax.data import annotated, mask_folder

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "raw"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="samples of published data sets are not beside the repository"
)
BOX = (5, 6, 20, 18)


def _read(folder, **options):
    refused = annotated.Refusals()
    return mask_folder.read(folder, refused, **options), refused


@pytest.mark.parametrize("mask", ["a.png", "a_mask.png", "a_Segmentation.png", "a_lesion.bmp"])
def test_a_mask_has_its_images_name_or_that_and_a_suffix(tmp_path, mask):
    drawn_data.write_image(tmp_path / "images" / "a.jpg")
    drawn_data.write_mask(tmp_path / "masks" / mask, [BOX])
    (image,), refused = _read(tmp_path)
    assert (image.id, image.targets) == ("a", (annotated.Target(BOX),)) and not refused.all


def test_one_folder_may_hold_both_and_several_masks_are_several_targets(tmp_path):
    for name in ("benign (1)", "benign (1)_1"):
        drawn_data.write_image(tmp_path / f"{name}.png")
    drawn_data.write_mask(tmp_path / "benign (1)_mask.png", [BOX])
    drawn_data.write_mask(tmp_path / "benign (1)_mask_1.png", [(1, 2, 3, 4)])
    drawn_data.write_mask(tmp_path / "benign (1)_1_mask.png", [(7, 7, 9, 9)])
    images, refused = _read(tmp_path, image_files=".", mask_files=".")
    assert [(image.id, [target.box_px for target in image.targets]) for image in images] == [
        ("benign (1)", [BOX, (1, 2, 3, 4)]),
        ("benign (1)_1", [(7, 7, 9, 9)]),
    ]
    assert not refused.all


def test_equal_names_are_told_apart_by_their_folders(tmp_path):
    for part, x in (("benign", 1), ("malignant", 2)):
        drawn_data.write_image(tmp_path / "images" / part / "7.png")
        drawn_data.write_mask(tmp_path / "masks" / part / "7.png", [(x, 1, 9, 9)])
    images, _ = _read(tmp_path)
    assert [(image.id, image.targets[0].box_px[0]) for image in images] == [
        ("benign/7", 1),
        ("malignant/7", 2),
    ]


def test_what_has_no_partner_is_refused(tmp_path):
    for name in ("a.png", "b.png", "c.png", "c.jpg"):
        drawn_data.write_image(tmp_path / "images" / name)
    for name in ("a.png", "c.png", "d.png", "a_other.png"):
        drawn_data.write_mask(tmp_path / "masks" / name, [BOX])
    images, refused = _read(tmp_path)
    assert [image.id for image in images] == ["a", "c"]
    assert [(Path(e.path).parent.name, Path(e.path).name) for e in refused.all] == [
        *(("images", "c.png"), ("masks", "a_other.png"), ("masks", "d.png"), ("images", "b.png"))
    ]
    assert "c.jpg has the same name" in refused.all[0].reason


def test_the_suffix_and_the_threshold_can_be_set(tmp_path):
    drawn_data.write_image(tmp_path / "images" / "a.png")
    drawn_data.write_mask(tmp_path / "masks" / "aXYZ.png", [BOX])
    assert len(_read(tmp_path, mask_suffix="XYZ")[0]) == 1
    images, refused = _read(tmp_path)
    assert images == [] and len(refused.all) == 2
    images, refused = _read(tmp_path, mask_suffix="XYZ", threshold=255)
    assert images == [] and "no grey value is above 255" in refused.all[0].reason


def test_folders_that_are_not_there_or_empty_are_named_with_their_flag(tmp_path):
    with pytest.raises(ValueError, match="/images: no such folder.*--image_files"):
        _read(tmp_path)
    drawn_data.write_image(tmp_path / "images" / "a.png")
    with pytest.raises(ValueError, match=r"\*_mask.png: holds no image.*--mask_files"):
        _read(tmp_path, mask_files="**/*_mask.png")


@pytest.mark.parametrize(
    ("mask_size", "box", "warned"),
    [((80, 60), (2.5, 3, 10, 9), 0), ((40, 60), (5, 3, 20, 9), 1)],
)
def test_masks_of_another_size_are_scaled(tmp_path, mask_size, box, warned):
    drawn_data.write_image(tmp_path / "images" / "a.png")
    drawn_data.write_mask(tmp_path / "masks" / "a.png", [BOX], mask_size)
    (image,), refused = _read(tmp_path)
    assert image.targets[0].box_px == box
    assert len(refused.warnings) == warned


def _write_ph2(folder, table, text):
    for name in ("IMD002", "IMD003"):
        root = folder / "PH2Dataset" / "PH2 Dataset images" / name
        drawn_data.write_image(root / f"{name}_Dermoscopic_Image" / f"{name}.bmp")
        drawn_data.write_mask(root / f"{name}_lesion" / f"{name}_lesion.bmp", [BOX])
        drawn_data.write_mask(root / f"{name}_roi" / f"{name}_R1_Label3.bmp", [BOX])
    (folder / "PH2Dataset" / table).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ("PH2_dataset.csv", "\ufeffName,Clinical Diagnosis,Asymmetry\nIMD002,1,0\nIMD003,2,0\n"),
        ("PH2_dataset.txt", "Name\tClinical Diagnosis\nIMD002\t1\nIMD003\t2\n\n1 - Atypical\t\n"),
        (
            "PH2_dataset.txt",
            "||   Name || Histological Diagnosis || Clinical Diagnosis ||\n"
            "|| IMD002 ||              || 1 ||\n|| IMD003 || Melanoma || 2 ||\nLegends: 0 - x\n",
        ),
    ],
)
def test_ph2_is_read_in_every_form_of_its_table(tmp_path, table, text):
    refused = annotated.Refusals()
    images = mask_folder.read_ph2(_write_ph2(tmp_path, table, text), refused)
    assert [(image.id, image.label) for image in images] == [
        ("IMD002", "atypical nevus"),
        ("IMD003", "melanoma"),
    ]
    assert images[0].targets == (annotated.Target(BOX, "atypical nevus"),) and not refused.all


def test_a_diagnosis_of_ph2_that_is_unknown_or_missing_is_refused(tmp_path):
    _write_ph2(tmp_path, "PH2_dataset.csv", "Name,Clinical Diagnosis\nIMD002,7\n")
    refused = annotated.Refusals()
    assert mask_folder.read_ph2(tmp_path, refused) == []
    assert [entry.line for entry in refused.all] == [2, None, None]
    (tmp_path / "PH2Dataset" / "PH2_dataset.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match="no line names the columns"):
        mask_folder.read_ph2(tmp_path, annotated.Refusals())


@needs_shared
def test_real_ph2_and_ddti_are_read():
    refused = annotated.Refusals()
    images = mask_folder.read_ph2(SHARED / "PH2", refused)
    assert [image.id for image in images] == ["IMD002", "IMD058", "IMD168", "IMD406"]
    assert images[0].targets[0].box_px == (239, 85, 617, 519)
    images, other = _read(SHARED / "DDTI_preprocessing", image_files="cropped", mask_files="mask")
    assert len(images) == 12 and not refused.all and not other.all
