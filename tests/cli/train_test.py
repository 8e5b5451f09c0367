# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`medloc train`: a run's folder, and what a user gets wrong. GRPO: tests/integration."""

import json
import re

import numpy as np
import pytest
import small_runs
from PIL import Image

from medloc_jax.cli import main
from medloc_jax.training import grpo, grpo_programs
from medloc_jax.training import job as jobs


def _files(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        # A heartbeat tells of a process, not of its run.
        if path.is_file() and path.parent.name != "heartbeat"
    }


def _error(capsys, argv):
    """The one line on stderr of a command that is refused."""
    capsys.readouterr()
    assert main.main(argv) == 2
    error = capsys.readouterr().err.splitlines()
    # A progress bar or a warning of a library may come first; what we say is one line.
    ours = [line for line in error if line.startswith("medloc train: error: ")]
    assert len(ours) == 1 and error[-1] == ours[0], error
    assert "Traceback" not in "\n".join(error)
    return ours[0].removeprefix("medloc train: error: ")


def test_a_run_leaves_its_folder(sft_run):
    assert {"config.json", "metrics.jsonl", "checkpoints", "eval", "data"} <= {
        path.name for path in sft_run.iterdir()
    }
    lines = small_runs.lines(sft_run / "metrics.jsonl", without="-")
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert "eval/val/a50" in lines[0] and "eval/val/a50" in lines[3]
    for line in lines[1:]:
        assert line["sft/loss"] > 0 and line["optimizer/grad_norm"] > 0
        assert line["optimizer/skipped_nonfinite"] == 0
    assert [line["optimizer/learning_rate"] for line in lines[1:]] == pytest.approx(
        [0, 5e-4, 1e-3], rel=1e-6
    )
    steps = {int(path.name) for path in (sft_run / "checkpoints").iterdir()}
    assert steps == {2, 3}
    assert json.loads((sft_run / "config.json").read_text())["method"] == "sft"
    assert (sft_run / "eval/val-3/predictions.jsonl").is_file()


def test_a_finished_run_that_is_started_again_changes_nothing(sft_run, preset, weights):
    before = _files(sft_run)
    argv = _sft_arguments(sft_run, preset, weights)
    assert main.main(argv) == 0
    assert _files(sft_run) == before


def _sft_arguments(workdir, preset, weights, **changes):
    settings = small_runs.SFT | {"model__init_from": weights}
    return small_runs.arguments("train", workdir, preset, **settings | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rl__group_size": 1}, "rl.group_size=1: .*set it to 2 or more"),
        ({"sft__batch_size": 12}, "sft.batch_size=12 does not divide over data x fsdp = 8 devices"),
        ({"mesh__tensor": 3}, "there are 8: set mesh.data"),
        ({"sft__bach_size": 8}, "config.sft.bach_size: no such field; did you mean sft.batch_size"),
        ({"seed": 43}, r"holds another run \(seed 42 -> 43\): .*choose another --workdir"),
        ({"method": "grpo"}, "holds another run .*method 'sft' -> 'grpo'"),
        ({"optim__learning_rate": 0.5}, "holds another run .*optim.learning_rate"),
        ({"data__manifest": "no.jsonl"}, "no.jsonl"),
        ({"model__preset": "tinny"}, "tinny"),
        ({"model__tokenizer": "no/folder"}, "no/folder: no such tokenizer folder"),
    ],
)
def test_a_mistake_is_one_line_and_a_run_that_is_there_stays(
    sft_run, preset, weights, capsys, changes, message
):
    before = _files(sft_run)
    argv = _sft_arguments(sft_run, preset, weights, **changes)
    assert re.search(message, _error(capsys, argv))
    assert _files(sft_run) == before


def test_missing_flags_are_one_line(capsys, tmp_path):
    assert "workdir" in _error(capsys, ["train", "--config=configs/demo.py"])
    assert "config" in _error(capsys, ["train", f"--workdir={tmp_path}"])
    assert "no such file" in _error(
        capsys, ["train", "--config=configs/no.py", f"--workdir={tmp_path}"]
    )


@pytest.mark.parametrize("source", ["nowhere", "empty", "damaged", "other model"])
def test_weights_that_cannot_be_read_are_named(tmp_path, preset, weights, capsys, source):
    init_from, message = tmp_path / "from", "model.init_from="
    if source != "nowhere":
        init_from.mkdir()
    if source == "damaged":
        folder = init_from / "checkpoints/5"
        (folder / "host").mkdir(parents=True)
        (folder / "host/metadata").write_text('{"step": 5, "ho')
        message = "no checkpoint in .*from.* can be read"
    if source == "other model":
        init_from, message = weights, "belongs to another model"
        preset = "tiny"
    argv = _sft_arguments(tmp_path / "run", preset, init_from)
    error = _error(capsys, argv)
    assert re.search(message, error) and str(init_from) in error


# ---- data ----


def _manifest(folder, change):
    path = small_runs.write_manifest(folder, [(48, 48)] * 24)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    change(records, folder)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def _missing(records, folder):
    (folder / "3.png").unlink()


def _broken(records, folder):
    (folder / "3.png").write_bytes(b"no picture at all")


def _outside(records, folder):
    records[3]["boxes_px"] = [[10, 10, 49, 20]]


def _reversed(records, folder):
    records[3]["boxes_px"] = [[20, 10, 10, 20]]


def _nan(records, folder):
    records[3]["boxes_px"] = [[float("nan"), 10, 20, 20]]


def _duplicate(records, folder):
    records[3]["id"] = records[1]["id"]


def _other_size(records, folder):
    Image.fromarray(np.zeros((50, 48, 3), np.uint8)).save(folder / "3.png")


def _no_train(records, folder):
    for record in records:
        record["split"] = "test"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_missing, ["manifest.jsonl:4", "3.png"]),
        (_broken, ["manifest.jsonl:4", "3.png"]),
        (_outside, ["manifest.jsonl:4", "49"]),
        (_reversed, ["manifest.jsonl:4"]),
        (_nan, ["manifest.jsonl:4"]),
        (_duplicate, ["manifest.jsonl:4", "noise-1"]),
        (_other_size, ["3.png", "50"]),
        (_no_train, ["train"]),
    ],
)
def test_bad_data_is_refused_before_anything_starts(
    tmp_path, preset, weights, capsys, monkeypatch, change, words
):
    path = _manifest(tmp_path / "data", change)
    monkeypatch.setattr(grpo, "train", lambda job: 0)
    argv = _grpo_arguments(tmp_path / "run", preset, weights, path)
    error = _error(capsys, argv)
    assert all(word in error for word in words), error
    assert not (tmp_path / "run" / "config.json").exists()


def _grpo_arguments(workdir, preset, weights, manifest):
    return small_runs.arguments(
        "train", workdir, preset, data__manifest=manifest, model__init_from=weights
    )


def test_good_data_is_taken(tmp_path, preset, weights, monkeypatch):
    """What the refusals above are compared with."""
    path = _manifest(tmp_path / "data", lambda records, folder: None)
    monkeypatch.setattr(grpo, "train", lambda job: 5)
    assert main.main(_grpo_arguments(tmp_path / "run", preset, weights, path)) == 5


def test_a_truncated_image_is_named_when_its_turn_comes(
    tmp_path, preset, weights, capsys, monkeypatch
):
    """Its header is whole, so that only decoding can tell."""

    def cut(records, folder):
        for index in range(24):
            file = folder / f"{index}.png"
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    evaluator = jobs.Evaluator.__new__(jobs.Evaluator)
    made = grpo_programs.Programs(*[None] * len(grpo_programs.Programs._fields))  # none runs
    monkeypatch.setattr(grpo, "_programs", lambda *args: (made, evaluator))
    path = _manifest(tmp_path / "data", cut)
    argv = _grpo_arguments(tmp_path / "run", preset, weights, path)
    error = _error(capsys, [*argv, "--config.eval.at_start=False"])
    assert str(tmp_path / "data") in error and ".png: broken or truncated" in error
