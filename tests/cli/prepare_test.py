# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import inspect
import json
import os
import sys
from pathlib import Path

import drawn_data
import numpy as np
import pytest
from PIL import Image

from medloc_jax.cli import main, prepare
from medloc_jax.data import examples
from medloc_jax.evaluation import data_sheet

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "raw"
FILES = ["images", "manifest.jsonl", "overlay.png", "refused.jsonl", "statistics.json",
         "statistics.md"]  # fmt: skip


def _run(name, source, out, *flags):
    assert prepare.main([name, f"--source={source}", f"--out={out}", *flags]) == 0
    return examples.load_manifest(out), json.loads((out / "statistics.json").read_text())


def _refused(out):
    lines = (out / "refused.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture
def no_sheet(monkeypatch):
    """Drawing takes longer than all the rest of a small data set."""

    def draw(path, rows, *, seed):
        path.write_bytes(b"")

    monkeypatch.setattr(data_sheet, "draw_overlay", draw)


@pytest.fixture
def ham(tmp_path):
    return drawn_data.write_ham10000(tmp_path / "ham")


def test_synthetic_is_written_and_summed_up(tmp_path, capsys):
    out = tmp_path / "set"
    argv = ["synthetic", "--out", str(out), "--num_train=3", "--num_test=2", "--variant=easy"]
    assert prepare.main(argv) == 0
    rows = examples.load_manifest(out)
    assert [row.split for row in rows] == ["train"] * 3 + ["test"] * 2
    assert rows[0].id == "easy-0-0"
    assert f"{out / 'manifest.jsonl'}: 3 train, 2 test" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "no data set is named: .* DATASET of ham10000, heel, tn3k, .*, synthetic"),
        (["ham"], "'ham' is no data set"),
        (["synthetic"], "--out is missing"),
        (["synthetic", "--out=x", "--colour=red"], "colour.*--num_train"),
        (["synthetic", "--out=x", "--num_train=many"], "num_train.*many"),
        (["synthetic", "--out=x", "y"], "'y' is not understood"),
        (["ham10000", "--out=x"], "--source is missing"),
        (["ham10000", "--source=."], "--out is missing"),
        (["ham10000", "--source=nowhere", "--out=x"], "--source=nowhere: there is no such folder"),
        (["ham10000", "--source=.", "--out=x", "--split=best"], "split.*best.*--seed"),
        (["ham10000", "--source=.", "--out=x", "--fold=1"], "fold.*--metadata"),
        (["masks", "--source=.", "--out=x"], "--query is missing"),
    ],
)
def test_a_wrong_command_line_is_one_clear_error(argv, message):
    with pytest.raises(ValueError, match=message) as error:
        prepare.main(argv)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", prepare.DATASETS)
def test_every_option_of_a_reader_is_a_flag_with_help(name, capsys):
    data_set = prepare.DATASETS[name]
    parameters = inspect.signature(data_set.read).parameters.values()
    options = [each.name for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY]
    assert list(data_set.options) == options
    assert prepare.main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"medloc prepare {name} --source=DIR --out=DIR [FLAG...]")
    assert "'' if left away" not in shown
    for flag in (*options, "source", "out", "one_box", "strict"):
        assert f"--{flag}" in shown


def test_help_lists_flags_and_data_sets(capsys):
    assert main.main(["prepare", "--help"]) == 0
    first = capsys.readouterr().out
    assert main.main(["prepare", "--source=x", "--help"]) == 0
    assert capsys.readouterr().out == first
    for flag in ("images (copy)", "overwrite (False)", "query", "export"):
        assert f"  --{flag}: " in first
    assert "ham10000" in first


def test_ham10000_becomes_a_data_set_folder(ham, tmp_path, capsys):
    out = tmp_path / "out"
    rows, statistics = _run("ham10000", ham, out, "--split=group")
    assert sorted(os.listdir(out)) == FILES and sorted(os.listdir(tmp_path)) == ["ham", "out"]
    assert [row.id for row in rows] == [drawn_data.ham_id(index) for index in range(12)]
    assert rows[1].box_px == drawn_data.ham_box(1)
    assert {(row.query, row.source) for row in rows} == {("skin lesion", "ham10000")}
    assert rows[0].group == "HAM_0000000"
    assert rows[0].image == f"images/{drawn_data.ham_id(0)}.jpg"
    assert statistics["leakage"]["test"]["share_group_with_train"] == 0
    assert statistics["command"].startswith("medloc prepare ham10000 --source=")
    assert statistics["examples"]["test"] in (2, 4)
    assert (out / "statistics.md").read_text().startswith("# ham10000\n")
    assert Image.open(out / "overlay.png").width == 1350
    shown = capsys.readouterr().out
    for words in ("12 images, 12 examples", "Leakage: 0 of", "A@0.5", "No file was refused",
                  "CC BY-NC-SA", "medloc train --config=configs/grpo/ham10000_3b.py"):  # fmt: skip
        assert words in shown


@pytest.mark.usefixtures("no_sheet")
def test_a_split_by_image_counts_what_leaks_and_parts_the_groups(ham, tmp_path, capsys):
    rows, statistics = _run("ham10000", ham, tmp_path / "out")
    parted = [row for row in rows if "@" in row.group]
    assert parted and len(parted) == 2 * statistics["leakage"]["test"]["share_group_with_train"]
    assert all(row.group.endswith(f"@{row.split}") for row in parted)
    assert f"in several splits: {len(parted) // 2}" in (tmp_path / "out/statistics.md").read_text()
    assert "not the paper's Table 5" in statistics["split_rule"]
    assert statistics["leakage"]["test"]["share_group_with_train"] > 0
    assert "--split=group keeps each lesion" in capsys.readouterr().out


@pytest.mark.usefixtures("no_sheet")
def test_seeds_are_other_splits_and_a_seed_is_always_the_same(tmp_path):
    ham = drawn_data.write_ham10000(tmp_path / "ham", 30)
    found = {}
    for name, seed in (("a", 42), ("b", 43), ("c", 44), ("d", 42)):
        rows, _ = _run("ham10000", ham, tmp_path / name, f"--seed={seed}", "--images=reference")
        found[name] = [row.split for row in rows]
    assert found["a"] == found["d"]
    assert found["a"] != found["b"] != found["c"] != found["a"]


def _truncate(folder):
    path = folder / "HAM10000_images_part_1" / f"{drawn_data.ham_id(0)}.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    return "truncated"


def _empty(folder):
    name = f"{drawn_data.ham_id(0)}_segmentation.png"
    drawn_data.write_mask(folder / "HAM10000_segmentations_lesion_tschandl" / name, [])
    return "the mask is empty"


def _no_image(folder):
    (folder / "HAM10000_images_part_1" / f"{drawn_data.ham_id(0)}.jpg").write_text("<html>")
    return "not an image"


def _twice(folder):
    table = folder / "HAM10000_metadata.csv"
    row = table.read_text().splitlines()[1].replace("HAM_0000000", "HAM_0000009")
    table.write_text(table.read_text() + row + "\n")
    return "two rows that differ"


@pytest.mark.usefixtures("no_sheet")
@pytest.mark.parametrize("damage", [_truncate, _empty, _no_image, _twice])
def test_a_damaged_file_is_refused_reported_and_stops_a_strict_run(ham, tmp_path, capsys, damage):
    reason = damage(ham)
    rows, statistics = _run("ham10000", ham, tmp_path / "out")
    assert len(rows) == 11 and drawn_data.ham_id(0) not in {row.id for row in rows}
    (line,) = _refused(tmp_path / "out")
    assert line["kind"] == "refused" and reason in line["reason"]
    assert sum(statistics["refused"].values()) == 1
    assert "1 refused (files or lines), listed in refused.jsonl" in capsys.readouterr().out
    with pytest.raises(ValueError, match=reason) as error:
        _run("ham10000", ham, tmp_path / "strict", "--strict")
    assert "--strict stops at the first" in str(error.value)
    assert not (tmp_path / "strict").exists()


@pytest.mark.usefixtures("no_sheet")
def test_a_mask_of_another_size_is_scaled(tmp_path):
    ham = drawn_data.write_ham10000(tmp_path / "ham", scale=2)
    rows, _ = _run("ham10000", ham, tmp_path / "out")
    assert [row.box_px for row in rows] == [drawn_data.ham_box(index) for index in range(12)]


@pytest.mark.usefixtures("no_sheet")
def test_nothing_is_written_where_nothing_can_be_used(tmp_path, capsys):
    source = tmp_path / "parts"
    for index in range(3):
        drawn_data.write_image(source / "trainval-image" / f"{index:04d}.jpg")
        drawn_data.write_mask(source / "test-mask" / f"{index:04d}.jpg", [(1, 2, 9, 9)])
    with pytest.raises(ValueError, match="no image in it can be used"):
        prepare.main(["tn3k", f"--source={source}", f"--out={tmp_path / 'out'}"])
    shown = capsys.readouterr().err
    assert "6 refused" in shown and "has no mask in trainval-mask" in shown
    assert os.listdir(tmp_path) == ["parts"]


@pytest.mark.usefixtures("no_sheet")
def test_tn3k_keeps_its_split_and_reports_the_rule(tmp_path, capsys):
    source = drawn_data.write_tn3k(tmp_path / "tn3k")
    rows, statistics = _run("tn3k", tmp_path / "tn3k", tmp_path / "out")
    assert [row.split for row in rows] == ["train"] * 4 + ["test"] * 2
    assert statistics["split_rule"] == "as published" and rows[0].query == "thyroid nodule"
    assert [line["kind"] for line in _refused(tmp_path / "out")] == ["left_out"] * 2
    assert "2 of 3 test images; the paper tests on 544" in capsys.readouterr().out
    rows, _ = _run("tn3k", source, tmp_path / "all", "--nodules=each", "--one_box=split")
    assert len(rows) == 10 and rows[-1].id == "test-0002#2"


@pytest.mark.usefixtures("no_sheet")
def test_masks_take_label_and_patient_from_the_path(tmp_path):
    for index in range(10):
        kind = "benign" if index % 2 else "malignant"
        name = f"p{index // 2}_{index}.png"
        drawn_data.write_image(tmp_path / "set" / "images" / kind / name, seed=index)
        drawn_data.write_mask(tmp_path / "set" / "masks" / kind / name, [(1, 2, 20, 20)])
    flags = ("--query={label} lesion", "--label_pattern=benign|malignant",
             r"--group_pattern=/(p\d+)_", "--name=mine")  # fmt: skip
    rows, statistics = _run("masks", tmp_path / "set", tmp_path / "out", *flags)
    assert rows[0].query == "benign lesion" and rows[0].label == "benign"
    assert {row.group for row in rows} == {f"p{index}" for index in range(5)}
    assert rows[0].source == "mine" and "5 lesions or patients" in statistics["split_rule"]


@pytest.mark.usefixtures("no_sheet")
def test_an_existing_folder_is_replaced_only_when_asked(ham, tmp_path):
    out = tmp_path / "out"
    _run("ham10000", ham, out)
    before = (out / "manifest.jsonl").read_bytes()
    with pytest.raises(ValueError, match="holds a data set already"):
        _run("ham10000", ham, out, "--seed=43")
    assert (out / "manifest.jsonl").read_bytes() == before
    _, statistics = _run("ham10000", ham, out, "--seed=43", "--overwrite")
    assert statistics["seed"] == 43


def test_without_matplotlib_only_the_sheet_is_missing(ham, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "medloc_jax.evaluation.contact_sheet", raising=False)
    monkeypatch.delitem(sys.modules, "medloc_jax.evaluation.plot_style", raising=False)
    rows, _ = _run("ham10000", ham, tmp_path / "out")
    assert len(rows) == 12 and sorted(os.listdir(tmp_path / "out")) == [
        name for name in FILES if name != "overlay.png"
    ]
    shown = capsys.readouterr().out
    assert "No overlay.png" in shown and "pip install 'medloc_jax[report]'" in shown


@pytest.mark.usefixtures("no_sheet")
def test_boxes_in_coco_are_asked_by_label_and_by_one_box_rule(tmp_path):
    source = tmp_path / "set"
    names = [drawn_data.write_image(source / "images" / f"{k}.png").name for k in range(4)]
    content = {
        "images": [
            {"id": k, "file_name": name, "width": 40, "height": 30} for k, name in enumerate(names)
        ],
        "annotations": [
            {"id": 10 * k + n, "image_id": k, "category_id": 1, "bbox": [n, n, 10, 10]}
            for k in range(4)
            for n in range(1 + (k == 0))
        ],
        "categories": [{"id": 1, "name": "tumour"}],
    }
    (source / "annotations.json").write_text(json.dumps(content))
    rows, _ = _run("coco", source, tmp_path / "out")
    assert len(rows) == 3 and {row.query for row in rows} == {"tumour"}
    (line,) = _refused(tmp_path / "out")
    assert "2 boxes answer 'tumour'" in line["reason"] and line["path"].endswith("0.png")
    assert line["what"] == "question"
    rows, _ = _run("coco", source, tmp_path / "union", "--one_box=union")
    assert len(rows) == 4 and rows[0].box_px == (0, 0, 11, 11)


@pytest.mark.usefixtures("no_sheet")
def test_dicom_becomes_png_without_the_patients_tags(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    source = tmp_path / "set"
    source.mkdir()
    for index in range(3):
        data = pydicom.dataset.Dataset()
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
        data.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
        data.PatientName, data.PatientID = "Doe^Jane", "id-4711"
        data.Rows, data.Columns, data.SamplesPerPixel = 30, 40, 1
        data.PhotometricInterpretation, data.PixelRepresentation = "MONOCHROME2", 0
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit = 15
        data.PixelData = np.arange(1200, dtype=np.uint16).tobytes()
        data.save_as(source / f"{index}.dcm", enforce_file_format=True)
    (source / "boxes.csv").write_text(
        "image,x1,y1,x2,y2\n" + "".join(f"{index}.dcm,1,2,11,12\n" for index in range(3))
    )
    out = tmp_path / "out"
    rows, _ = _run("dicom", source, out, "--query=calcaneus")
    assert [row.image for row in rows] == [f"images/{index}.png" for index in range(3)]
    levels = np.asarray(Image.open(rows[0].image_path).convert("L"))
    assert (levels[0, 0], levels[-1, -1]) == (0, 255)
    for path in out.rglob("*.*"):
        assert not any(word in path.read_bytes() for word in (b"Doe", b"4711")), path
    with pytest.raises(ValueError, match="no image in it can be used"):
        _run("dicom", source, tmp_path / "link", "--query=calcaneus", "--images=link")


@pytest.mark.usefixtures("no_sheet")
def test_what_has_no_word_of_heel_is_not_prepared_as_heel(tmp_path):
    source = tmp_path / "set"
    drawn_data.write_image(source / "a.png")
    (source / "boxes.csv").write_text("image,x1,y1,x2,y2,label\na.png,1,2,11,12,malignant\n")
    with pytest.raises(ValueError, match="not known as HEEL.*`medloc prepare csv`"):
        _run("heel", source, tmp_path / "out")
    assert os.listdir(tmp_path) == ["set"]


@pytest.mark.usefixtures("no_sheet")
@pytest.mark.skipif(not SHARED.is_dir(), reason="real samples are not beside the repository")
@pytest.mark.parametrize(
    ("name", "folder", "flags", "count"),
    [
        ("ham10000", "HAM10000", (), 12),
        ("ph2", "PH2", (), 4),
        ("tn3k", "TN3K_layout_fixture", (), 16),
        ("voc", "BCCD_Dataset", ("--one_box=split",), 218),
        ("coco", "BUSI_coco", ("--query=breast lesion",), 12),
        ("coco", "brain_mri_coco", (), 6),
    ],
)
def test_samples_as_published_are_prepared(tmp_path, name, folder, flags, count):
    rows, statistics = _run(name, SHARED / folder, tmp_path / "out", *flags)
    assert len(rows) == count and statistics["examples"]["all"] == count
