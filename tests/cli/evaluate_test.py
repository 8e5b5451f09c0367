# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`medloc evaluate`: a checkpoint's numbers are those that its run logged."""

import json
import shutil

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
