# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`medloc diagnose`: from a log, from a list of IoUs, and from a model that it samples."""

import json

import numpy as np
import pytest
import small_runs

from medloc_jax import distributed
from medloc_jax.cli import diagnose_sampling, main
from medloc_jax.evaluation import diagnose


@pytest.fixture
def logged(tmp_path):
    """A run's folder with three logged steps of two groups."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"method": "grpo", "rl": {"group_size": 4}}))
    rows = [{"step": step, "reward/total": 0.5} for step in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = [{"step": step, "ious": rng.random((2, 4)).tolist()} for step in (1, 2, 3)]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "rollouts.jsonl").write_text(lines)
    return folder, records


@pytest.mark.parametrize(
    ("flags", "taken", "title"),
    [
        ([], [0, 1, 2], "steps 1 to 3"),
        (["--first=1"], [0], "steps 1 to 1"),
        (["--last=2"], [1, 2], "steps 2 to 3"),
    ],
)
def test_a_run_is_diagnosed_from_its_log(logged, tmp_path, capsys, flags, taken, title):
    folder, records = logged
    out = tmp_path / "numbers.json"
    assert main.main(["diagnose", f"--workdir={folder}", f"--json={out}", *flags]) == 0
    assert title in capsys.readouterr().out
    told = json.loads(out.read_text())
    expected = np.concatenate([records[row]["ious"] for row in taken])
    assert told["num_groups"] == len(expected)
    assert told["by_threshold"][4] == diagnose.at_threshold(expected, 0.5)


def test_a_list_of_ious_gives_the_same_numbers_as_the_run(logged, tmp_path, capsys):
    folder, _ = logged
    said = []
    for source in (f"--workdir={folder}", f"--ious={folder / 'rollouts.jsonl'}"):
        assert main.main(["diagnose", source, f"--out={tmp_path / 'picture'}"]) == 0
        said.append(capsys.readouterr().out.split("\n", 1)[1])
    assert said[0] == said[1] and (tmp_path / "picture/diagnose.png").is_file()


def test_a_checkpoint_is_sampled_with_its_runs_settings(sft_run, tmp_path, capsys):
    """The same command twice gives the same groups; the weights decide what they are."""
    told = []
    for name, flags in {
        "newest": [],
        "again": [],
        "before": [f"--checkpoint={sft_run / 'checkpoints/2'}"],
    }.items():
        out = tmp_path / f"{name}.json"
        argv = ["diagnose", f"--workdir={sft_run}", "--split=val", "--num_examples=5"]
        assert main.main([*argv, "--num_samples=4", f"--json={out}", *flags]) == 0
        told.append(json.loads(out.read_text()))
    newest, again, before = told
    assert (newest["num_groups"], newest["group_size"]) == (5, 4)
    assert newest["valid_rate"] is not None and len(newest["by_size"]) == 3
    assert newest == again
    assert newest["title"] != before["title"]
    assert "val split, temperature 0.9" in newest["title"]
    capsys.readouterr()


def test_the_examples_are_spread_over_the_split():
    rows = list(range(100))
    chosen = diagnose_sampling.choose(rows, 10)
    assert len(set(chosen)) == 10 and chosen == sorted(chosen) and max(chosen) > 50
    assert diagnose_sampling.choose(rows, 0) == diagnose_sampling.choose(rows, 500) == rows


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "nothing to diagnose"),
        (["--workdir=no/run"], "no/run: no such folder"),
        (["--ious=no.jsonl"], "cannot read --ious=no.jsonl"),
        (["--ious=a", "--workdir=b"], "--ious stands alone"),
        (["--workdir=b", "--first=1", "--last=1"], "give one of them"),
        (["--workdir=b", "--split=val", "--last=1"], "--split samples anew"),
        (["--workdir=b", "--checkpoint=c"], "say of which --split"),
        (["--config=configs/demo.py"], "add --split=train"),
        (["--config=configs/demo.py", "--split=val", "--num_samples=1"], "2 or more"),
        (["--workdir={run}"], "rollouts.jsonl holds nothing"),
        (["--workdir={run}", "--split=vla"], "split 'vla' is unknown"),
    ],
)
def test_a_mistake_is_one_line(sft_run, capsys, flags, message):
    assert main.main(["diagnose", *(flag.format(run=sft_run) for flag in flags)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("medloc diagnose: error: ") and message in line


@pytest.mark.parametrize("argv", [["--help"], ["--ious=x", "--help"]])
def test_help_lists_the_flags(capsys, argv):
    assert main.main(["diagnose", *argv]) == 0
    shown = capsys.readouterr().out
    for name in ("workdir", "ious", "num_examples (128)", "config"):
        assert f"  --{name}: " in shown


def test_only_a_flag_starts_the_other_processes(logged, monkeypatch):
    """A folder that is called split samples nothing."""
    folder, _ = logged
    monkeypatch.setattr(distributed, "initialize", lambda: pytest.fail("started"))
    monkeypatch.chdir(folder.parent)
    folder.rename("split")
    assert main.main(["diagnose", "--workdir", "split"]) == 0


@pytest.mark.slow
def test_the_config_can_be_that_of_an_experiment(preset, weights, tmp_path):
    argv = small_runs.arguments("diagnose", "", preset, rl__max_completion_tokens=16)
    out = tmp_path / "told.json"
    flags = [f"--checkpoint={weights}", "--split=test", "--num_examples=3"]
    flags += ["--num_samples=4", f"--json={out}"]
    assert main.main([*(one for one in argv if one != "--workdir="), *flags]) == 0
    assert json.loads(out.read_text())["num_groups"] == 3
