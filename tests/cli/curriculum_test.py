# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from medloc_jax.cli import curriculum

CONFIG = (
    "from medloc_jax import config\n\n\ndef get_config():\n    return config.default_config()\n"
)


@pytest.fixture
def replay(tmp_path, capsys):
    """Runs the verb over IoUs (or lines) with overrides; returns what it printed."""
    (tmp_path / "config.py").write_text(CONFIG)

    def run(steps, *flags):
        lines = [step if isinstance(step, str) else json.dumps({"ious": step}) for step in steps]
        (tmp_path / "ious.jsonl").write_text("".join(line + "\n" for line in lines))
        argv = [f"--config={tmp_path}/config.py", f"--ious={tmp_path}/ious.jsonl", *flags]
        assert curriculum.main(argv) == 0
        return capsys.readouterr().out

    return run


def trace(output):
    return [json.loads(line) for line in output.splitlines()]


def test_json_trace(replay):
    got = trace(replay([[[0.65] * 4] * 2] * 61, "--json"))
    assert [list(line) for line in got] == [["step", "threshold", "tightened", "blocked_by"]] * 61
    assert [line["step"] for line in got] == list(range(1, 62))
    assert [line["step"] for line in got if line["tightened"]] == [30, 45]
    assert [got[step - 1]["threshold"] for step in (30, 31, 45, 46, 61)] == [
        *(0.3, 0.45, 0.45, 0.6, 0.6)
    ]
    assert [line["step"] for line in got if line["blocked_by"] == ["margin"]] == [60, 61]


def test_overrides_are_seen_tuples_too(replay):
    steps = [[[0.62] * 4 + [0.0] * 2] * 2] * 40  # hit rate 2/3: passes .6, not the default .8
    common = ("--json", "--config.curriculum.criteria=('reward','stability')")
    assert not any(line["tightened"] for line in trace(replay(steps, *common)))
    got = trace(
        replay(
            steps,
            *common,
            "--config.curriculum.regimes=((1.01,0.6,0.4),)",
            "--config.curriculum.window=20",
        )
    )
    assert [line["step"] for line in got if line["tightened"]] == [20, 30, 40]
    got = trace(replay(steps, "--json", "--config.curriculum.criteria=()"))
    assert [line["step"] for line in got if line["tightened"]] == [30]


def test_one_criterion_without_quotes_and_a_schedule_by_name(replay):
    steps = [[[0.31] * 4]] * 31
    got = trace(replay(steps, "--json", "--config.curriculum.criteria=reward"))
    assert got[29]["tightened"]
    got = trace(
        replay(
            steps,
            "--json",
            "--config.curriculum.schedule=v_triune",
            "--config.curriculum.stages=v_triune_original",
            "--config.num_steps=40",
        )
    )
    assert [got[step - 1]["threshold"] for step in (4, 5, 10, 11)] == [0.85, 0.95, 0.95, 0.99]


def test_table(replay):
    lines = replay([[[0.9, 0.0]]] * 31, "--config.curriculum.window=30").splitlines()
    assert len(lines) == 1 + 31 + 1
    assert lines[1].endswith("window 1/30")
    assert lines[31].endswith("blocked by reward")
    assert lines[-1].startswith("threshold 0.3 -> 0.3 in 31 steps, tightened 0 times; of 2 tests")
    assert "tightened to 0.8" in replay(
        [[[0.95]]] * 4,
        "--config.curriculum.window=2",
        "--config.curriculum.step_size=constant",
        "--config.curriculum.step_size_start=0.5",
    )
    assert "   0.5        -      -       -" in replay(
        [[[0.95]]], "--config.curriculum.schedule=fixed"
    )


def test_lines_may_name_their_step_and_hold_more(replay):
    lines = ['{"step": 50, "ious": [[0.5]], "completions": [["\u2028"]]}', '{"ious": [[0.5]]}']
    assert [line["step"] for line in trace(replay(lines, "--json"))] == [50, 2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("", "not JSON"),
        ("[[0.5]]", "need an object"),
        ('{"iou": [[0.5]]}', "need an object"),
        ('{"ious": [0.5]}', "shape"),
        ('{"ious": [[0.5], [0.5, 0.5]]}', "ragged"),
        ('{"ious": [[NaN]]}', "nan"),
        ('{"ious": [["a"]]}', "numbers"),
        ('{"ious": [[0.5]], "step": "two"}', "whole number"),
    ],
)
def test_a_bad_line_is_named_before_anything_is_printed(replay, capsys, line, message):
    with pytest.raises(ValueError, match=rf"ious\.jsonl:2: .*{message}") as caught:
        replay(['{"ious": [[0.5]]}', line, '{"ious": [[0.5]]}'])
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--bogus=1", "bogus"),
        ("extra", "'extra' is not understood"),
        ("--config.curriculum.margn=1", "margn"),
        ("--config.curriculum.margin=abc", "margin"),
        ("--config.curriculum.regimes=((0.6,0.8,0.2),)", "regimes"),
        ("--config.curriculum.schedule=medlock", "medlock"),
        ("--ious=nowhere.jsonl", "nowhere.jsonl"),
        ("--config=nowhere.py", "nowhere.py"),
    ],
)
def test_a_bad_command_is_one_line_that_names_it(replay, flag, message):
    with pytest.raises(ValueError, match=message) as caught:
        replay([[[0.5]]], flag)
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named(replay, tmp_path):
    with pytest.raises(ValueError, match="--config=FILE is missing"):
        curriculum.main(["--ious=x"])
    with pytest.raises(ValueError, match="is empty"):
        replay([])
    with pytest.raises(ValueError, match="--ious=FILE is missing"):
        curriculum.main([f"--config={tmp_path}/config.py"])


def test_a_gap_between_logged_steps_is_refused(replay):
    lines = ['{"step": 50, "ious": [[0.5]]}', '{"step": 100, "ious": [[0.5]]}']
    with pytest.raises(ValueError, match=r":2: step 100 follows step 50.*log.rollouts_every=1"):
        replay(lines)
