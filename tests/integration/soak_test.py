# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A run that is hit at random moments, again and again, against one that was not (`make soak`)."""

import random
import signal
import time

import machines
import pytest
import small_runs

# Minutes to hours, depending on the machine; every start compiles or reads compiled programs.
pytestmark = [pytest.mark.soak, pytest.mark.timeout(4 * 3600)]

SETTINGS = {
    "model__remat": "none",
    "rl__group_size": 4,
    "rl__max_completion_tokens": 8,
    "rewards__weights__format": 1.0,
    "checkpoint__every": 3,
    "log__tensorboard": True,
    **machines.WATCHDOG,
}
SEED = 20


def _assert_same(workdir, whole, steps):
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        got, want = (small_runs.lines(folder / name) for folder in (workdir, whole))
        assert [line["step"] for line in want] == [*range(name == "rollouts.jsonl", steps + 1)]
        assert got == want, name
        key = "threshold" if name == "rollouts.jsonl" else "curriculum/threshold"
        assert len({line[key] for line in want if key in line}) > 1, name


def _lines(workdir):
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _choose(chance, steps_a_hit):
    """A signal, and when: after so many new lines (0 = while it starts) and so many seconds."""
    number = chance.choice([signal.SIGKILL, signal.SIGTERM])
    if chance.random() < 0.2:
        return number, 0, chance.uniform(0, 12)  # while it starts
    return number, chance.randint(1, steps_a_hit), chance.uniform(0, 0.3)


def test_twenty_hits_leave_no_trace(tmp_path):
    hits, steps = 20, 180
    preset = small_runs.write_preset(tmp_path / "preset")

    def command(name):
        return small_runs.arguments("train", tmp_path / name, preset, num_steps=steps, **SETTINGS)

    code, out, error = small_runs.finish(small_runs.start(command("whole")), timeout=3600)
    assert code == 0, out + error
    chance, workdir, done = random.Random(SEED), tmp_path / "hit", []
    while len(done) < hits:
        number, lines, seconds = _choose(chance, 8)
        process = small_runs.start(command("hit"))
        start, before = time.monotonic(), None
        while process.poll() is None and time.monotonic() - start < 600:
            # The file is cut back at the start: what counts is what this start adds.
            now = _lines(workdir)
            if before is None or now < before:
                before = now
            if now - before >= lines:
                break
            time.sleep(0.002)
        time.sleep(seconds)
        step = _lines(workdir) - 1
        process.send_signal(number)
        out, error = process.communicate(timeout=600)
        # Before the run listens, SIGTERM ends a process as it ends any other.
        expected = (-9,) if number == signal.SIGKILL else (143, -15)
        assert process.returncode in expected, (number, out, error)
        assert "Traceback" not in error, error
        done.append((number.name, step))
        print(f"hit {len(done)}: {number.name} at step {step}", flush=True)
    assert {name for name, _ in done} == {"SIGKILL", "SIGTERM"}
    code, out, error = small_runs.finish(small_runs.start(command("hit")), timeout=3600)
    assert code == 0, out + error
    _assert_same(workdir, tmp_path / "whole", steps)


@pytest.mark.multiprocess
def test_six_hits_of_one_of_two_processes_leave_no_trace(tmp_path):
    hits, steps = 6, 60
    preset = small_runs.write_preset(tmp_path / "preset")

    def start(name):
        argv = small_runs.arguments("train", tmp_path / name, preset, num_steps=steps, **SETTINGS)
        return machines.start(argv, tmp_path / name)

    codes, out = start("whole").finish(timeout=3600)
    assert codes == [0, 0], out
    chance, workdir = random.Random(SEED), tmp_path / "hit"
    for hit in range(hits):
        run, victim = start("hit"), chance.randrange(2)
        number, lines, seconds = _choose(chance, 6)
        pids = {}

        def moved(run=run, lines=lines, pids=pids):
            """This start's own heartbeat, then so many of its marks."""
            record = run.heartbeat(0)
            if record is None:
                return False
            first = pids.setdefault("step", record["step"] if record["step"] else None)
            if not record["step"]:
                pids.pop("step")
            return lines == 0 or (first is not None and record["step"] - first >= lines)

        run.wait_for(moved, seconds=900)
        time.sleep(seconds)
        record = run.signal(victim, number)
        codes, out = run.finish(timeout=900)
        print(f"hit {hit + 1}: {number.name} to {victim} at step {record['step']}: {codes}")
        if number == signal.SIGKILL:
            assert sorted(codes) == [75, 137], out
        else:
            # Before it listens, SIGTERM ends the process at once, and the other one tells.
            assert codes == [143, 143] or sorted(codes) == [75, 143], out
    codes, out = start("hit").finish(timeout=3600)
    assert codes == [0, 0], out
    _assert_same(workdir, tmp_path / "whole", steps)
