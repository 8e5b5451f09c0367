# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A run's folder on one screen: what is shown, of whole, torn, empty and stalled runs."""

import json
import os
import threading
import time

import pytest

from medloc_jax.cli import main, watch
from medloc_jax.evaluation import live_run


def _row(step, **more):
    seconds = {"data": 0.1, "sample": 1.0, "score": 0.2, "reference": 0.3, "update": 2.4}
    return {
        "step": step,
        "curriculum/threshold": 0.3 if step < 30 else 0.45,
        "reward/total": step / 100,
        "iou/raw_mean": 0.5,
        "group/zero_advantage_rate": 0.25,
        **{f"speed/{name}_seconds": value for name, value in seconds.items()},
        "speed/save_seconds": 5.0,
        "speed/tokens_per_second": 1234.0,
        **more,
    }


@pytest.fixture
def run(tmp_path):
    """Writes a run of 100 steps as far as it has come; returns its folder."""

    def write(steps, *, age=0.0, torn="", last=None, num_steps=100):
        rows = [_row(step) for step in range(1, steps + 1)]
        if rows:
            rows[-1] |= last or {}
        config = {"num_steps": num_steps, "method": "grpo", "checkpoint": {"every": 10}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        file = tmp_path / "metrics.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows) + torn)
        os.utime(file, (time.time() - age,) * 2)
        for step in range(10, steps, 10):
            (tmp_path / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)
        return tmp_path

    return write


def _screen(capsys, folder):
    assert watch.main([str(folder), "--once"]) == 0
    return capsys.readouterr().out


def test_one_screen(run, capsys):
    out = _screen(
        capsys,
        run(
            47,
            last={
                "speed/mfu": 0.312,
                "speed/update_mfu": 0.405,
                "speed/memory_peak_gb": 83.04,
                "eval/val/a50": 0.81,
                "eval/val/map": 0.4,
                "optimizer/skipped_nonfinite": 3,
            },
        ),
    )
    assert len(out.splitlines()) < 25 and max(map(len, out.splitlines())) <= 100
    for text in (
        *("step 47 of 100", "47%", "4.00 s a step", "4 min to go", "last line  0."),
        *("threshold  0.45", "reward  0.470", "mean IoU  0.500", "no signal  25%"),
        *("sample 1.00 s", "update 2.40 s", "save 0.50 s", "1,234 tok/s", "not finite 3"),
        *("MFU 31.2%", "40.5% of the update", "memory at most 83.0 GB"),
        *("of step 47", "val  a50 0.810  map 0.400", "step 40, 7 steps ago"),
    ):
        assert text in out, text
    assert "no longer running" not in out and "process's memory" not in out


def test_a_run_that_says_nothing_for_long(run, capsys):
    out = _screen(capsys, run(47, age=900))
    assert "last line  15 min ago: evaluating, or no longer running?" in out
    assert "no longer running" not in _screen(capsys, run(47, age=30))
    finished = _screen(capsys, run(100, age=900))
    assert "finished" in finished and "no longer running" not in finished


def test_a_store_that_tells_no_time_is_no_long_silence(run, capsys):
    """As epath's s3://, where every file is of the year 1970."""
    folder = run(47)
    os.utime(folder / "metrics.jsonl", (0, 0))
    assert live_run.Run(str(folder)).read().age is None
    out = _screen(capsys, folder)
    assert "step 47 of 100" in out and "last line" not in out and "no longer running" not in out


def test_a_run_that_has_not_begun(run, tmp_path, capsys):
    assert "no step yet: it is compiling" in _screen(capsys, run(0))
    (tmp_path / "metrics.jsonl").unlink()
    assert "no step yet: it is compiling" in _screen(capsys, tmp_path)
    (tmp_path / "config.json").unlink()
    assert "is it a run's folder?" in _screen(capsys, tmp_path)


def test_a_line_that_is_being_written(run, capsys):
    assert "step 5 of 100" in _screen(capsys, run(5, torn='{"step": 6, "rew'))


def test_a_broken_line_is_named(run):
    folder = run(5)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join([*lines[:2], "{\n", *lines[2:]]))
    with pytest.raises(ValueError, match=r"metrics\.jsonl:3 is no JSON"):
        watch.main([str(folder), "--once"])


def test_what_was_not_finite_is_left_out(run, capsys):
    out = _screen(capsys, run(5, last={"reward/total": None, "eval/val/a50": None}))
    assert "reward  0.040" in out


def test_without_a_terminal_a_line_a_step_until_the_end(run, capsys):
    folder = run(98)
    late = threading.Timer(0.3, lambda: run(100))
    late.start()
    assert watch.main([str(folder), "--every=0.1"]) == 0
    late.join()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == [f"{step}/100" for step in range(1, 101)]
    assert "threshold 0.45" in lines[-1]


def test_a_run_that_is_cut_back_is_read_anew(run):
    folder = run(20)
    reader = live_run.Run(str(folder))
    assert reader.read().step == 20
    run(12)
    assert reader.read().step == 12


def test_sft_shows_its_loss(tmp_path, capsys):
    row = {"step": 1, "sft/loss": 1.25, "speed/data_seconds": 0.1, "speed/update_seconds": 1.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    out = _screen(capsys, tmp_path)
    assert "loss  1.2500" in out and "threshold" not in out and "step 1" in out


@pytest.mark.parametrize(
    ("values", "width", "blocks"),
    [
        ([1.0], 10, "▁"),
        ([0.0, 1.0], 10, "▁█"),
        ([0.0, 0.5, 1.0, 0.0], 10, "▁▅█▁"),
        ([3.0, 0.0, 0.0, 1.0, 1.0], 3, "█▁▃"),
    ],
)
def test_sparkline(values, width, blocks):
    assert watch.sparkline(values, width) == blocks


def test_sparkline_is_never_wider():
    for count in range(1, 200):
        assert len(watch.sparkline([float(i) for i in range(count)], 60)) == min(
            60, -(-count // -(-count // 60))
        )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4231, "0.42 s"), (12.34, "12.3 s"), (300, "5 min"), (12000, "3 h 20 min")],
)
def test_duration(seconds, text):
    assert watch.duration(float(seconds)) == text
    assert watch.duration(86400.0 * 3) == "3.0 days"


def test_a_wrong_command_is_one_line(tmp_path, capsys):
    for argv, message in (
        (["watch"], "write `medloc watch WORKDIR"),
        (["watch", "nowhere"], "nowhere is not there"),
        (["watch", str(tmp_path), "--evry=1"], "did you mean --every?"),
        (["watch", str(tmp_path), "--every=0"], "every"),
    ):
        assert main.main(argv) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
