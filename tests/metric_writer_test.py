# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Lines of metrics.jsonl, cutting them back, and the other places they go to."""

import json
import logging
import sys
import types

import numpy as np
import pytest

from medloc_jax import metric_writer


def _open(workdir, **options):
    defaults = {
        "tensorboard": False,
        "wandb": False,
        "project": "test",
        "config": {"seed": 1},
        "is_primary": True,
    }
    return metric_writer.MetricWriter(workdir, **(defaults | options))


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_step_is_one_line_on_disk_at_once(tmp_path):
    writer = _open(tmp_path / "run")
    writer.write(1, {"reward/total": np.float32(0.1), "group/skipped_updates": 3})
    assert _lines(tmp_path / "run" / "metrics.jsonl") == [
        {"step": 1, "reward/total": float(np.float32(0.1)), "group/skipped_updates": 3}
    ]
    writer.close()
    writer = _open(tmp_path / "run")  # a resumed run goes on in the same file
    writer.write(2, {"reward/total": 0.2})
    writer.close()
    assert [line["step"] for line in _lines(tmp_path / "run" / "metrics.jsonl")] == [1, 2]


def test_what_json_does_not_know_is_null(tmp_path):
    writer = _open(tmp_path)
    writer.write(1, {"a": float("nan"), "b": np.float32("inf"), "c": 1.0})
    assert _lines(tmp_path / "metrics.jsonl") == [{"step": 1, "a": None, "b": None, "c": 1.0}]
    assert not (tmp_path / "rollouts.jsonl").exists()  # made by its first line
    writer.write_rollouts(1, {"boxes": [[1.0, float("nan")]], "d": {"x": (2,)}})
    lines = _lines(tmp_path / "rollouts.jsonl")
    assert lines == [{"step": 1, "boxes": [[1.0, None]], "d": {"x": [2]}}]


def test_only_the_primary_process_writes(tmp_path, capsys):
    writer = _open(tmp_path / "run", is_primary=False, tensorboard=True, wandb=True)
    writer.write(1, {"a": 1.0})
    writer.write_rollouts(1, {"a": 1.0})
    writer.say("hello")
    writer.flush()
    writer.close()
    assert not (tmp_path / "run").exists() and capsys.readouterr().out == ""


def test_values_are_made_what_json_can_hold():
    number, value = metric_writer.json_number, metric_writer.json_value
    assert [number(x) for x in (True, 3, np.float32(0.5), np.array(2.0))] == [1, 3, 0.5, 2.0]
    assert [number(x) for x in (float("nan"), np.float32("inf"), np.array(-np.inf))] == [None] * 3
    deep = {"a": [1, (float("nan"), {"b": float("inf")})], "c": "NaN", "d": None}
    assert value(deep) == {"a": [1, [None, {"b": None}]], "c": "NaN", "d": None}


def test_later_lines_and_a_torn_one_are_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "rew')
    metric_writer.truncate_jsonl(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    metric_writer.truncate_jsonl(path, 0)
    assert path.read_text() == ""
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]
    metric_writer.truncate_jsonl(tmp_path / "absent.jsonl", 3)


def test_a_whole_last_line_without_its_newline_stays_and_gets_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    metric_writer.truncate_jsonl(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize("broken", ['{"step": 2, "re', '{"loss": 1}', "[1]"])
def test_a_broken_line_in_the_middle_is_named_and_nothing_is_lost(tmp_path, broken):
    path = tmp_path / "metrics.jsonl"
    text = f'{{"step": 1}}\n{broken}\n{{"step": 3}}\n'
    path.write_text(text)
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2 "):
        metric_writer.truncate_jsonl(path, 5)
    assert path.read_text() == text


def test_tensorboard_gets_the_scalars_and_forgets_steps_that_are_written_again(tmp_path):
    import tensorboardX  # noqa: F401

    for start_step in (0, 2):
        writer = _open(tmp_path, tensorboard=True, start_step=start_step)
        for step in (start_step + 1, start_step + 2):
            writer.write(step, {"reward/total": 0.5, "bad": float("nan")})
        writer.close()
    files = sorted((tmp_path / "tensorboard").iterdir())
    events = b"".join(path.read_bytes() for path in files)
    assert b"reward/total" in events and b"bad" not in events


def test_wandb_resumes_its_own_run(tmp_path, monkeypatch):
    calls = []
    run = types.SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("end")
    )
    fake = types.ModuleType("wandb")
    starts = []

    def init(**options):
        starts.append(options)
        return run

    vars(fake)["init"] = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for step in (1, 2):
        writer = _open(tmp_path, wandb=True, project="mine")
        writer.write(step, {"a": 1.0, "b": float("nan")})
        writer.close()
    assert calls == [(1, {"a": 1.0}), "end", (2, {"a": 1.0}), "end"]
    assert starts[0] == starts[1] and starts[0]["id"] and starts[0]["project"] == "mine"
    assert starts[0]["resume"] == "allow" and starts[0]["config"] == {"seed": 1}


def test_wandb_that_is_not_installed_is_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with caplog.at_level(logging.WARNING):
        writer = _open(tmp_path, wandb=True)
    writer.write(1, {"a": 1.0})
    assert "pip install wandb" in caplog.text
    assert _lines(tmp_path / "metrics.jsonl") == [{"step": 1, "a": 1.0}]


def test_the_terminal_line_has_the_few_that_matter():
    scalars = {
        "reward/total": 0.5,
        "curriculum/threshold": 0.45,
        "speed/tokens_per_second": 1234.5,
        "grpo/ratio_max": 1.0,
        "eval/val/a50": 0.25,
    }
    line = metric_writer.terminal_line(20, 300, scalars)
    assert line.startswith("step 20/300")
    assert "reward 0.500" in line and "threshold 0.45" in line and "tok/s 1234" in line
    assert "val/a50 0.250" in line and "ratio" not in line
