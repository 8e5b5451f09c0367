# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Processes that are stopped, killed or hang, and what the others make of it."""

import json
import os
import re
import signal

import machines
import numpy as np
import pytest
import small_runs

pytestmark = [pytest.mark.faults, pytest.mark.multiprocess, pytest.mark.timeout(900)]

STEPS = 12
LINES = ("metrics.jsonl", "rollouts.jsonl")
SETTINGS = {
    "num_steps": STEPS,
    "model__remat": "none",
    "checkpoint__every": 4,
    **machines.WATCHDOG,
}
# Each batch of an evaluation takes a while.
SLOW_EVALUATION = """
import time
from medloc_jax.evaluation import predict
_score = predict._score
def slow(*args):
    time.sleep(0.3)
    return _score(*args)
predict._score = slow
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The command line of a run in a folder of that name."""
    folder = tmp_path_factory.mktemp("multiprocess_faults")
    preset = small_runs.write_preset(folder / "preset")

    def make(name, **changes):
        argv = small_runs.arguments("train", folder / name, preset, **(SETTINGS | changes))
        return folder / name, argv

    return make


def _assert_same_lines(workdir, whole):
    for name in LINES:
        got, want = (small_runs.lines(folder / name) for folder in (workdir, whole))
        assert got == want, name


def _finish(argv, workdir, **how):
    codes, out = machines.start(argv, workdir, **how).finish()
    assert codes == [0, 0], out
    return out


def test_killed_then_stopped_then_finished_with_the_same_lines(command):
    """SIGKILL of one of two processes, a restart, SIGTERM to one of them, a restart.

    What the first start had reached after its checkpoint is the record that the later ones must
    repeat, digit for digit.
    """
    workdir, argv = command("hit")
    run = machines.start(argv, workdir)
    run.wait_for_lines(7)
    gone = run.signal(1, signal.SIGKILL)
    codes, out = run.finish()
    assert codes == [75, 137], out
    name = re.escape(f"process 1 on {gone['host']} (pid {gone['pid']})")
    assert re.search(rf"{name}: no sign of life since 20\d\d-\S+ \S+ UTC \(1\d s", out), out
    assert "Process 0 ends with code 75; start all processes again" in out
    assert "Traceback" not in out
    first = {name: small_runs.lines(workdir / name) for name in LINES}
    saved = [path.name for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
    saved = max(map(int, saved))
    assert 4 <= saved < first["metrics.jsonl"][-1]["step"]

    run = machines.start(argv, workdir)
    run.wait_for_lines(saved + 2, cut_to=saved + 1)
    run.signal(1, signal.SIGTERM)
    codes, out = run.finish()
    assert codes == [143, 143], out
    assert (
        f"continuing {workdir} from step {saved}" in out
        and "stopped by SIGTERM, saved at step" in out
    )
    assert "Traceback" not in out
    stopped = small_runs.lines(workdir / "metrics.jsonl")[-1]["step"]
    assert saved < stopped < STEPS

    assert f"continuing {workdir} from step {stopped}" in _finish(argv, workdir)
    for name, before in first.items():
        lines = small_runs.lines(workdir / name)
        assert [line["step"] for line in lines] == [*range(name == "rollouts.jsonl", STEPS + 1)]
        assert lines[: len(before)] == before


@pytest.mark.slow
def test_the_process_with_the_coordinator_is_killed(command):
    """JAX's runtime aborts the others at once; they say who is gone before they end."""
    workdir, argv = command("coordinator", num_steps=2000, eval__every=0)
    run = machines.start(argv, workdir)
    run.wait_for_lines(4)
    gone = run.signal(0, signal.SIGKILL)
    codes, out = run.finish()
    assert codes == [137, 75], out
    assert f"process 0 on {gone['host']} (pid {gone['pid']}): no sign of life since" in out
    assert "Process 1 ends with code 75" in out


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_stopped_is_named(command, victim):
    workdir, argv = command(f"frozen-{victim}", num_steps=2000, eval__every=0)
    run = machines.start(argv, workdir)
    run.wait_for_lines(4)
    gone = run.signal(victim, signal.SIGSTOP)
    try:
        run.wait_for(lambda: run.last_record(1 - victim)["left"])
    finally:
        os.kill(gone["pid"], signal.SIGKILL)
    codes, out = run.finish()
    assert codes[1 - victim] == 75 and codes[victim] == 137, out
    assert f"process {victim} on {gone['host']} (pid {gone['pid']}): no sign of life since" in out


@pytest.mark.slow
def test_a_main_thread_that_hangs_is_named(command):
    """Its heartbeat goes on, so only its progress tells; the waiting one has got further."""
    sabotage = """
import time, jax
from medloc_jax.rewards import scores
_score, _calls = scores.score_completions, []
def hang(*args):
    _calls.append(1)
    if jax.process_index() == 1 and len(_calls) == 4:
        time.sleep(3600)
    return _score(*args)
scores.score_completions = hang
"""
    changes = {"eval__every": 0, "eval__at_start": False, "watchdog__hung_seconds": 30.0}
    workdir, argv = command("hung", num_steps=2000, **changes)
    codes, out = machines.start(argv, workdir, sabotage=sabotage).finish()
    assert codes == [75, 75], out
    found = re.search(r"medloc train: (.*) hangs at step 4, score; process [01] has waited", out)
    assert found, out[-3000:]
    assert re.fullmatch(r"process 1 on \S+ \(pid \d+\)", found[1])
    # Where it stands is told, too.
    assert "in hang" in out


@pytest.mark.slow
def test_sigterm_does_not_wait_for_an_evaluation_which_is_made_up_for(command):
    changes = {"eval__batch_size": 2, "eval__num_examples": 0}
    workdir, argv = command("evaluation-whole", **changes)
    _finish(argv, workdir)
    stopped, argv = command("evaluation", **changes)
    run = machines.start(argv, stopped, sabotage=SLOW_EVALUATION)

    def evaluates():
        record = run.heartbeat(1) or {}
        return record.get("phase") == "evaluate val" and record["step"] == 4

    run.wait_for(evaluates)
    run.signal(1, signal.SIGTERM)
    codes, out = run.finish()
    assert codes == [143, 143] and "saved at step 4" in out, out
    # The line of step 4 waits for its evaluation.
    assert [line["step"] for line in small_runs.lines(stopped / "metrics.jsonl")] == [0, 1, 2, 3]
    assert not (stopped / "eval" / "val-4").exists()
    # Once more, while that is made up for.
    run = machines.start(argv, stopped, sabotage=SLOW_EVALUATION)
    run.wait_for(evaluates)
    run.signal(0, signal.SIGTERM)
    codes, out = run.finish()
    assert codes == [143, 143] and "this evaluation is done again at the next start" in out, out
    _finish(argv, stopped)
    _assert_same_lines(stopped, workdir)
    one, other = (folder / "eval" / "val-4" / "predictions.jsonl" for folder in (stopped, workdir))
    assert one.read_text() == other.read_text()


@pytest.mark.slow
def test_nan_gradients_end_the_run_with_a_dump_of_all_rows(command):
    """From step 5 on the loss is NaN: the learning rate tells the program."""
    sabotage = """
import jax.numpy as jnp
from medloc_jax.rl import losses
_loss = losses.grpo_loss
def poisoned(*args, **kwargs):
    loss, stats = _loss(*args, **kwargs)
    return loss * jnp.where(args[5].learning_rate < 7.0e-4, jnp.nan, 1.0), stats
losses.grpo_loss = poisoned
"""
    changes = {
        "optim__max_nonfinite": 3,
        "optim__warmup_steps": 0,
        "optim__schedule": "linear",
        "checkpoint__every": 5,
        "eval__at_start": False,
    }
    workdir, argv = command("nan", **changes)
    codes, out = machines.start(argv, workdir, sabotage=sabotage).finish()
    assert codes == [76, 76], out
    assert "step 7: the gradient was not finite 3 steps in a row" in out
    lines = small_runs.lines(workdir / "metrics.jsonl")
    assert [line["optimizer/skipped_nonfinite"] for line in lines] == [0, 0, 0, 0, 1, 2]
    told = json.loads((workdir / "diagnostics" / "7.json").read_text())
    with np.load(workdir / "diagnostics" / "7.npz") as arrays:
        assert arrays["completions"].shape == (8, 2, 4)
        assert arrays["rewards"].tolist() == [row["rewards"] for row in told["rows"]]
    assert len({row["id"] for row in told["rows"]}) == 8
    assert all(len(row["completions"]) == len(row["advantages"]) == 2 for row in told["rows"])
    assert "lm_head/kernel" in told["nonfinite_gradients"] and not told["nonfinite_parameters"]
    assert told["gradient_norm_of_group"]["lm_head/kernel"] is None
    # A restart meets the same: the checkpoint of step 5 remembers that it was the first in a row.
    codes, out = machines.start(argv, workdir, sabotage=sabotage).finish()
    assert codes == [76, 76] and "step 7: the gradient was not finite 3 steps" in out, out


def _pictures(folder):
    """A manifest of twenty pictures, the last four of them val, in a folder."""
    manifest = small_runs.write_manifest(folder, [(64, 64)] * 20)
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    for line in lines[16:]:
        line["split"] = "val"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"data__manifest": manifest, "eval__every": 0}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["threads", "workers"])
def test_a_file_that_vanishes_or_breaks_stops_all_and_is_named_with_its_line(
    command, tmp_path, how
):
    changes = _pictures(tmp_path / "data") | {"num_steps": 2000, "eval__at_start": False}
    if how == "workers":
        changes |= {"data__num_workers": 1}
    workdir, argv = command(f"vanished-{how}", **changes)
    run = machines.start(argv, workdir)
    run.wait_for_lines(3)
    for index in range(16):
        # Both processes come to one of them soon; which of them first, nobody knows.
        path = tmp_path / "data" / f"{index}.png"
        if how == "threads":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-100])
    codes, out = run.finish()
    assert codes == [2, 2], out
    reason = "no such image file" if how == "threads" else "broken or truncated image"
    pattern = rf"/(\d+)\.png: {reason}.*\(example 'noise-(\d+)', \S+manifest.jsonl:(\d+)\)"
    index, example, line = map(int, re.search(pattern, out).groups())
    assert index == example == line - 1
    assert "Traceback" not in out, out


@pytest.mark.slow
def test_one_process_that_cannot_read_a_file_ends_the_other_by_its_reason(command, tmp_path):
    sabotage = """
import jax
from medloc_jax.data import batching
_load = batching.RowLoader.__call__
def load(self, example, position=None):
    if jax.process_index() == 1 and position is not None and position > 30:
        raise ValueError("the disk of this host is gone: mend it")
    return _load(self, example, position)
batching.RowLoader.__call__ = load
"""
    changes = _pictures(tmp_path / "data") | {"num_steps": 2000, "eval__at_start": False}
    workdir, argv = command("one-disk", **changes)
    codes, out = machines.start(argv, workdir, sabotage=sabotage).finish()
    assert codes == [2, 2], out
    reason = r"ended at step 4 with code 2: the disk of this host is gone"
    assert re.search(rf"\[0\] medloc train: process 1 on \S+ \(pid \d+\) {reason}", out), out


@pytest.mark.slow
def test_a_missing_file_is_skipped_alike_by_one_process_and_by_two(command, tmp_path):
    changes = _pictures(tmp_path / "data") | {"data__missing_files": "skip"}
    for index in range(0, 16, 3):
        (tmp_path / "data" / f"{index}.png").unlink()
    alone, argv = command("skip-one", **changes)
    code, out, error = small_runs.finish(small_runs.start(argv, num_devices=2))
    assert code == 0, out + error
    workdir, argv = command("skip-two", **changes)
    out = _finish(argv, workdir)
    assert "takes its place" in out
    one, two = (small_runs.lines(folder / "metrics.jsonl") for folder in (alone, workdir))
    skipped = [line["data/skipped_examples"] for line in two[1:]]
    assert skipped == [line["data/skipped_examples"] for line in one[1:]]
    assert skipped == sorted(skipped) and skipped[-1] > 8
    pairs = (small_runs.lines(folder / "rollouts.jsonl") for folder in (workdir, alone))
    for got, want in zip(*pairs, strict=True):
        assert got["ids"] == want["ids"] and len(want["ids"]) == 8
        assert not {int(name.removeprefix("noise-")) % 3 for name in want["ids"]} & {0}


@pytest.mark.slow
def test_the_full_disk_of_one_process_is_a_warning_until_the_final_save(command):
    """Played by a limit on the size of files: arrays are larger than it, all else is smaller."""
    sabotage = """
import os, resource
if os.environ["MEDLOC_PROCESS_ID"] == "1":
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
"""
    changes = {"num_steps": 6, "eval__every": 0, "eval__at_start": False, "checkpoint__every": 2}
    workdir, argv = command("full", **changes)
    codes, out = machines.start(argv, workdir, sabotage=sabotage).finish()
    assert codes == [2, 2], out
    warned = [line for line in out.splitlines() if "the run goes on" in line]
    assert any("checkpoint of step 2 was not saved" in line for line in warned), out
    assert any("checkpoint of step 4 was not saved" in line for line in warned), out
    assert "error: checkpoint of step 6 was not saved" in out and "Traceback" not in out
    assert [line["step"] for line in small_runs.lines(workdir / "metrics.jsonl")] == [*range(1, 7)]
    assert [path.name for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()] == []
    _finish(argv, workdir)
    assert (workdir / "checkpoints" / "6" / "host").is_dir()


@pytest.mark.slow
def test_a_torn_newest_checkpoint_is_named_and_the_one_before_is_used(command):
    workdir, argv = command("torn")
    _finish(argv, workdir)
    before = {
        name: small_runs.lines(workdir / name) for name in ("metrics.jsonl", "rollouts.jsonl")
    }
    for path in (workdir / "checkpoints" / str(STEPS) / "params").rglob("*"):
        if path.is_file() and path.stat().st_size > 1000:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    out = _finish(argv, workdir)
    assert f"{workdir}/checkpoints/{STEPS} cannot be read" in out
    assert f"continuing {workdir} from step {STEPS - 4}" in out
    for name, lines in before.items():
        assert small_runs.lines(workdir / name) == lines


@pytest.mark.slow
def test_processes_that_no_longer_agree_are_named(command):
    sabotage = """
import jax
from medloc_jax.curriculum import schedule
_update, _calls = schedule.MedLoc.update, []
def update(self, ious):
    _calls.append(1)
    event = _update(self, ious)
    if jax.process_index() == 1 and len(_calls) == 3:
        self.threshold += 0.05
    return event
schedule.MedLoc.update = update
"""
    workdir, argv = command("disagree", eval__at_start=False)
    codes, out = machines.start(argv, workdir, sabotage=sabotage).finish()
    assert codes == [77, 77], out
    found = (
        r"do not hold the same threshold: (\S+) on process 0 \(\S+\); (\S+) on process 1 \(\S+\)"
    )
    match = re.search(found, out)
    assert match and float(match[2]) == pytest.approx(float(match[1]) + 0.05), out
    assert len(small_runs.lines(workdir / "metrics.jsonl")) == 2


@pytest.mark.slow
def test_one_then_two_processes_and_one_then_eight_devices_go_on_with_one_run(command):
    """The data position and the threshold are those of the run that never moved."""
    # Without signal the gradient is the KL term's alone, at first mere rounding, and Adam makes a
    # step of full size of it: a small rate keeps what follows from it small, too.
    rate = {"optim__learning_rate": 1e-4}
    alone, argv = command("alone", **rate)
    code, out, error = small_runs.finish(small_runs.start(argv, num_devices=2))
    assert code == 0, out + error
    want = small_runs.lines(alone / "metrics.jsonl")
    for name, devices, count in [("to-two", 1, 2), ("to-eight", 8, 1)]:
        workdir, first = command(name, num_steps=4, optim__total_steps=STEPS, **rate)
        code, out, error = small_runs.finish(small_runs.start(first))
        assert code == 0, out + error
        _, argv = command(name, optim__total_steps=STEPS, **rate)
        codes, out = machines.start(argv, workdir, count=count, num_devices=devices).finish()
        assert codes == [0] * count and f"continuing {workdir} from step 4" in out, out
        got = small_runs.lines(workdir / "metrics.jsonl")
        assert [line["step"] for line in got] == list(range(STEPS + 1))
        assert len({line["curriculum/threshold"] for line in want[1:]}) > 2
        for one, other in zip(got, want, strict=True):
            for key in ("curriculum/threshold", "grpo/loss", "iou/raw_mean", "reward/total"):
                if key in other:
                    assert one[key] == pytest.approx(other[key], abs=1e-4), (name, one["step"], key)
        ids = [
            [line["ids"] for line in small_runs.lines(folder / "rollouts.jsonl")]
            for folder in (workdir, alone)
        ]
        assert ids[0] == ids[1]
