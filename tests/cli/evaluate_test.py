# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`medloc evaluate`: a checkpoint's numbers are those that its run logged."""

import json
import shutil
from pathlib import Path

import pytest
import small_runs

from medloc_jax.cli import main
from medloc_jax.evaluation import run_folder


@pytest.fixture(scope="module")
def run(sft_run, tmp_path_factory):
    """A copy, to be written into."""
    copied = tmp_path_factory.mktemp("evaluate") / "run"
    shutil.copytree(sft_run, copied)
    shutil.rmtree(copied / "eval")
    return copied


def _predictions(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_the_newest_checkpoint_scores_what_its_run_logged(run, sft_run, capsys):
    assert main.main(["evaluate", f"--workdir={run}", "--split=val"]) == 0
    out = capsys.readouterr().out
    assert f"written to {run / 'eval/val-3'}" in out and "eval/val/a50" in out
    got, logged = _predictions(run / "eval/val-3"), _predictions(sft_run / "eval/val-3")
    # The run looked at the first eval.num_examples only; here every example comes once.
    assert got[: len(logged)] == logged and len(logged) == 4
    ids = [line["id"] for line in got]
    assert len(set(ids)) == len(ids) == 8
    metrics = json.loads((run / "eval/val-3/metrics.json").read_text())
    assert metrics["num_examples"] == 8
    assert {"a50", "a80", "map", "miou", "valid_rate"} <= metrics.keys()


def test_another_checkpoint_under_a_config_goes_where_out_says(
    run, preset, weights, hf_weights, tmp_path
):
    argv = small_runs.arguments("evaluate", tmp_path / "run", preset, rl__max_completion_tokens=16)
    scores = []
    sources = {"before": weights, "published": hf_weights, "after": run / "checkpoints/2"}
    for name, source in sources.items():
        out = tmp_path / name
        flags = [f"--checkpoint={source}", "--split=test", f"--out={out}"]
        assert main.main([*argv, *flags]) == 0
        scores.append(_predictions(out))
        assert json.loads((out / "metrics.json").read_text())["num_examples"] == 8
    before, published, after = scores
    assert published == before  # the same weights in Hugging Face's form
    assert [line["id"] for line in before] == [line["id"] for line in after]
    assert before != after  # two steps of training lie between them


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workdir=no/run"], "no/run has no config.json: it is not the folder of a run"),
        ([], "workdir"),
        (["--workdir={run}", "--split=tests"], "split 'tests' is unknown"),
        (["--workdir={run}", "--checkpoint=no/where", "--out={run}/out"], "no/where"),
        (["--workdir={run}", "--checkpoint=no/where"], "--out=DIR is needed"),
        (["--workdir={run}", "--manifest=no.jsonl"], "--out=DIR is needed"),
        (["--workdir={run}", "--manifest=no.jsonl", "--out={run}/out"], "no.jsonl"),
        (["--workdir={run}", "extra"], "unknown argument 'extra'"),
        # A word without dashes is a flag's value and not the flag --predictions.
        (["--workdir=no/run", "--out", "predictions"], "no/run has no config.json"),
    ],
)
def test_a_mistake_is_one_line(run, capsys, flags, message):
    assert main.main(["evaluate", *(flag.format(run=run) for flag in flags)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("medloc evaluate: error: ") and message in line


@pytest.fixture
def detector(tmp_path):
    """A manifest, and a file with its true boxes, of which one has a false box with more score."""
    small_runs.write_manifest(tmp_path / "data", [(64, 48)] * 4)
    lines = small_runs.lines(tmp_path / "data/manifest.jsonl")
    for index, line in enumerate(lines):
        line["split"] = "test" if index > 1 else "train"
    manifest = tmp_path / "data/manifest.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    boxes = [
        {"id": line["id"], "boxes_px": line["boxes_px"], "scores": [0.5]} for line in lines[2:]
    ]
    boxes[0]["boxes_px"] = [*boxes[0]["boxes_px"], [40, 30, 64, 48]]
    boxes[0]["scores"] = [0.5, 0.6]
    path = tmp_path / "dino.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in boxes))
    return [f"--predictions={path}", f"--manifest={manifest}", f"--out={tmp_path / 'dino'}"]


def test_an_outside_detector_is_scored_without_a_model(detector, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("jax.devices", lambda *_: pytest.fail("JAX was started"))
    assert main.main(["evaluate", *detector, "--label=GroundingDINO", "--seed=3"]) == 0
    assert "eval/test/a50 0.5000" in capsys.readouterr().out
    run = run_folder.load(tmp_path / "dino")
    (evaluation,) = run.evaluations
    assert (evaluation.split, evaluation.step, run.seed) == ("test", 0, 3)
    assert run.config["label"] == "GroundingDINO" and run.method == "predictions"
    assert [line["iou"] for line in evaluation.predictions()] == [0.0, 1.0]
    assert evaluation.metrics["a50"] == 0.5 and evaluation.floor is not None
    # The picture is found from another folder, too.
    assert run.image_path(evaluation.predictions()[0], evaluation) == tmp_path / "data/2.png"
    # The same again is no harm; another result in its place is refused.
    assert main.main(["evaluate", *detector, "--label=GroundingDINO", "--seed=3"]) == 0
    assert main.main(["evaluate", *detector]) == 2
    assert "holds other results" in capsys.readouterr().err


def test_another_file_does_not_take_the_place_of_the_first(detector, tmp_path, capsys):
    argv = ["evaluate", *detector, "--label=dino"]
    assert main.main(argv) == 0
    before = (tmp_path / "dino/eval/test-0/predictions.jsonl").read_text()
    other = tmp_path / "other.jsonl"
    other.write_text((tmp_path / "dino.jsonl").read_text().replace("0.6", "0.4"))
    assert main.main([*argv, f"--predictions={other}"]) == 2
    assert "results of another file for split test" in capsys.readouterr().err
    assert (tmp_path / "dino/eval/test-0/predictions.jsonl").read_text() == before
    # Boxes of another split are no other results, and another training is another run.
    manifest = small_runs.lines(tmp_path / "data/manifest.jsonl")
    other.write_text(
        "".join(
            json.dumps({"id": line["id"], "boxes_px": line["boxes_px"], "scores": [1]}) + "\n"
            for line in manifest[:2]
        )
    )
    train = [f"--predictions={other}", "--split=train", "--val_fraction=0"]
    assert main.main([*argv, *train, f"--out={tmp_path / 'both'}"]) == 0
    assert main.main([*argv, "--val_fraction=0", f"--out={tmp_path / 'both'}"]) == 0
    both = run_folder.load(tmp_path / "both")
    assert len(both.evaluations) == 2 and len(both.config["predictions_sha256"]) == 2
    shutil.copytree(tmp_path / "both", tmp_path / "again")
    config = both.config | {"seed": 1, "predictions_sha256": {"test": "0"}}
    (tmp_path / "again/config.json").write_text(json.dumps(config))
    (group,) = run_folder.groups_by_seed([both, run_folder.load(tmp_path / "again")])
    assert [run.seed for run in group] == [0, 1]


@pytest.mark.parametrize("start", ["", "some/weights"])
def test_a_run_without_a_step_says_what_to_give(run, tmp_path, capsys, start):
    config = json.loads((run / "config.json").read_text())
    config["num_steps"] = 0
    config["model"]["init_from"] = start
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main.main(["evaluate", f"--workdir={tmp_path}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "this run took no step" in line
    assert ("give --checkpoint=some/weights --out=DIR" in line) == bool(start)


@pytest.mark.parametrize("argv", [["--help"], ["--predictions=x", "--help"], ["--out=x", "-h"]])
def test_help_lists_the_flags_of_both_forms(capsys, argv):
    assert main.main(["evaluate", *argv]) == 0
    shown = capsys.readouterr().out
    for name in ("workdir", "checkpoint", "predictions", "missing (error)", "config"):
        assert f"  --{name}: " in shown
    assert not Path("x").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--predictions=no.jsonl"], "cannot read --predictions=no.jsonl"),
        (["--manifest="], "--manifest is missing"),
        (["--split=val", "--val_fraction=0"], "no example"),
        (["--missing=skip"], "choose one of error, no_box"),
        (["--workdir=x"], "unknown flag --workdir"),
    ],
)
def test_a_mistake_with_a_detector_is_one_line(detector, capsys, flags, message):
    assert main.main(["evaluate", *detector, *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("medloc evaluate: error: ") and message in line
