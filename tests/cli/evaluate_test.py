# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`medloc evaluate`: a checkpoint's numbers are those that its run logged."""

import json
import shutil

import pytest
import small_runs

from medloc_jax.cli import main


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


def test_an_older_step_of_another_folder_by_a_config(run, preset, weights, tmp_path, capsys):
    out = tmp_path / "scores"
    argv = small_runs.arguments("evaluate", out, preset, rl__max_completion_tokens=16)
    argv += [f"--checkpoint={weights}", "--split=test"]
    assert main.main(argv) == 0
    assert len(_predictions(out / "eval/test-0")) == 8
    before = _predictions(out / "eval/test-0")
    assert main.main([*argv[:-2], f"--checkpoint={run}/checkpoints/2", "--split=test"]) == 0
    after = _predictions(out / "eval/test-2")
    assert [line["id"] for line in before] == [line["id"] for line in after]
    assert before != after  # two steps of training lie between them


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workdir=no/run"], "no/run has no config.json: it is not the folder of a run"),
        ([], "workdir"),
        (["--workdir={run}", "--split=tests"], "eval.final_split='tests'"),
        (["--workdir={run}", "--checkpoint=no/where"], "no/where"),
        (["--workdir={run}", "--manifest=no.jsonl"], "no.jsonl"),
        (["--workdir={run}", "extra"], "unknown argument 'extra'"),
    ],
)
def test_a_mistake_is_one_line(run, capsys, flags, message):
    assert main.main(["evaluate", *(flag.format(run=run) for flag in flags)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("medloc evaluate: error: ") and message in line
