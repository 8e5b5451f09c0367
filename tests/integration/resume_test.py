# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A run that was killed, stopped or damaged and started again, against one that never was."""

import json
import random
import shutil
import signal
import time

import pytest
import small_runs

pytestmark = pytest.mark.resume

STEPS = 12
# Sixty steps of SFT answer with valid boxes; GRPO then meets hits, misses and a moving threshold.
WARM_START = {
    "method": "sft",
    "num_steps": 60,
    "data__synthetic__num_train": 40,
    "model__freeze_vision": False,
    "rl__max_completion_tokens": 16,
    "sft__batch_size": 16,
    "optim__learning_rate": 3e-3,
    "optim__schedule": "constant",
    "eval__every": 0,
    "eval__at_start": False,
    "checkpoint__every": 60,
}
GRPO = {
    "num_steps": STEPS,
    "data__synthetic__num_train": 40,
    "rl__max_completion_tokens": 16,
    "rl__group_size": 4,
    "rl__skip_no_signal": True,
    "rewards__weights__format": 0.0,
    "log__tensorboard": True,
}


@pytest.fixture(scope="module")
def grpo(tmp_path_factory):
    """The command line of the GRPO run in a folder of that name."""
    folder = tmp_path_factory.mktemp("resume")
    preset = small_runs.write_preset(folder / "preset")
    argv = small_runs.arguments("train", folder / "sft", preset, **WARM_START)
    code, out, error = small_runs.finish(small_runs.start(argv))
    assert code == 0, out + error

    def command(name, **changes):
        settings = GRPO | {"model__init_from": folder / "sft"} | changes
        return folder / name, small_runs.arguments("train", folder / name, preset, **settings)

    return command


@pytest.fixture(scope="module")
def whole(grpo):
    """The run that nothing happened to."""
    workdir, argv = grpo("whole")
    code, out, error = small_runs.finish(small_runs.start(argv))
    assert code == 0, out + error
    lines = small_runs.lines(workdir / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(STEPS + 1))
    # There is something to lose: the threshold and the weights move, rewards differ.
    assert len({line["curriculum/threshold"] for line in lines[1:]}) > 2
    assert any(line["group/zero_advantage_rate"] < 1 for line in lines[1:])
    assert any(line["iou/raw_mean"] > 0 for line in lines[1:])
    assert lines[-1]["grpo/kl"] > 0
    return workdir


def _continue(argv):
    code, out, error = small_runs.finish(small_runs.start(argv))
    assert code == 0, out + error
    return out, error


def _assert_same_lines(workdir, whole):
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        got, want = (small_runs.lines(folder / name) for folder in (workdir, whole))
        assert [line["step"] for line in got] == [line["step"] for line in want]
        for one, other in zip(got, want, strict=True):
            assert one == other


def _wait_for_lines(process, workdir, count):
    """Returns as soon as metrics.jsonl has that many lines."""
    path = workdir / "metrics.jsonl"
    for _ in range(60_000):
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        if process.poll() is not None:
            raise AssertionError(f"it ended by itself: {process.communicate()}")
        time.sleep(0.002)
    raise AssertionError("no progress")


def _steps_saved(workdir):
    return sorted(
        int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()
    )


def test_a_killed_run_goes_on_as_if_nothing_had_happened(grpo, whole):
    workdir, argv = grpo("killed")
    step = random.Random(17).randrange(3, STEPS - 1)
    print(f"killed after the line of step {step}")
    process = small_runs.start(argv)
    _wait_for_lines(process, workdir, step + 1)  # one line for step 0
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert max(_steps_saved(workdir), default=0) < STEPS
    out, _ = _continue(argv)
    assert f"continuing {workdir} from step" in out
    _assert_same_lines(workdir, whole)


def test_a_run_stopped_by_sigterm_saves_says_so_and_goes_on(grpo, whole):
    workdir, argv = grpo("stopped", checkpoint__every=100)
    process = small_runs.start(argv)
    _wait_for_lines(process, workdir, 4)
    process.send_signal(signal.SIGTERM)
    code, out, error = small_runs.finish(process)
    assert code == 143, out + error
    (step,) = _steps_saved(workdir)
    assert 3 <= step < STEPS
    assert f"saved at step {step}: start it again to go on" in out
    assert "Traceback" not in error
    out, _ = _continue(argv)
    assert f"continuing {workdir} from step {step}" in out
    _assert_same_lines(workdir, whole)


def test_a_run_killed_before_its_first_checkpoint_starts_clean(grpo, whole):
    workdir, argv = grpo("early")
    shutil.copytree(whole, workdir, ignore=shutil.ignore_patterns("checkpoints", "eval"))
    for name, count in (("metrics.jsonl", 2), ("rollouts.jsonl", 1)):
        path = workdir / name
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[:count]) + lines[count][:40])  # the last one torn
    _continue(argv)
    _assert_same_lines(workdir, whole)


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(grpo, whole):
    workdir, argv = grpo("damaged")
    shutil.copytree(whole, workdir)
    newest, before = _steps_saved(workdir)[-1], _steps_saved(workdir)[-2]
    for path in (workdir / f"checkpoints/{newest}/params").rglob("*"):
        if path.is_file() and path.stat().st_size > 1000:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    out, error = _continue(argv)
    assert f"{workdir}/checkpoints/{newest} cannot be read" in error
    assert f"continuing {workdir} from step {before}" in out
    _assert_same_lines(workdir, whole)


def test_the_comparison_sees_another_draw(whole, tmp_path):
    """It goes red for one digit of one number."""
    changed = tmp_path / "changed"
    shutil.copytree(whole, changed, ignore=shutil.ignore_patterns("checkpoints", "data"))
    lines = [json.loads(line) for line in (changed / "metrics.jsonl").read_text().splitlines()]
    lines[5]["optimizer/grad_norm"] *= 1 + 1e-15 * 8
    (changed / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(AssertionError):
        _assert_same_lines(changed, whole)
