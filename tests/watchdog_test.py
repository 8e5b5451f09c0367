# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Who is called lost, hung or gone, and who is not. Real processes: tests/integration."""

import json
import re
import socket
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from medloc_jax import watchdog

HOST = socket.gethostname()


@pytest.fixture(autouse=True)
def progress(monkeypatch):
    """The main thread's progress belongs to a process, of which there is one here."""
    fresh = watchdog._Progress()
    monkeypatch.setattr(watchdog, "_progress", fresh)
    return fresh


def _dogs(folder, count=2, *, attempt=1, lost=10.0, hung=0.0):
    return [
        watchdog.Watchdog(
            folder,
            process_index=index,
            process_count=count,
            attempt=attempt,
            lost_seconds=lost,
            hung_seconds=hung,
        )
        for index in range(count)
    ]


def test_a_process_that_falls_silent_is_named_with_host_and_time(tmp_path):
    me, other = _dogs(tmp_path)
    watchdog.mark("update", 12)
    for _ in range(30):
        assert me.beat() and other.beat()
        assert me.look(1.0) is None
    verdicts = [me.look(1.0) for _ in range(10)]
    assert verdicts[:9] == [None] * 9
    assert verdicts[9].code == watchdog.LOST == 75
    pattern = rf"process 1 on {re.escape(HOST)} \(pid \d+\): no sign of life since \d{{4}}-.*UTC"
    assert re.match(pattern, verdicts[9].reason)
    assert verdicts[9].reason.endswith("(10 s, watchdog.lost_seconds); it was at step 12, update")


def test_time_in_which_nothing_could_be_seen_is_not_held_against_anyone(tmp_path):
    me, other = _dogs(tmp_path)
    other.beat()
    assert me.look(1.0) is None
    assert all(me.look(0.0) is None for _ in range(1000))
    assert me.look(9.0) is None and me.look(1.0) is not None


def test_files_of_an_earlier_start_say_nothing(tmp_path):
    _, old = _dogs(tmp_path, attempt=1)
    old.leave(2, "an old story")
    me, other = _dogs(tmp_path, attempt=2)
    assert me.look(9.0) is None
    verdict = me.look(1.0)
    assert verdict.code == 75 and "process 1 has not been heard of since" in verdict.reason
    me, other = _dogs(tmp_path, attempt=2)
    me.look(9.0)
    other.beat()
    assert me.look(9.0) is None


def test_a_later_start_in_the_same_folder_is_named_as_such(tmp_path, monkeypatch, capfd):
    me, other = _dogs(tmp_path, attempt=1)
    other.beat()
    assert me.look(1.0) is None
    _, later = _dogs(tmp_path, attempt=2)
    later.beat()
    assert me.look(9.0) is None
    verdict = me.look(1.0)
    assert verdict.code == 75 and verdict.reason.startswith("another start uses this workdir")
    assert f"{tmp_path}/heartbeat/1" in verdict.reason and "no sign of life" not in verdict.reason

    # To start all of them again would end the later start.
    monkeypatch.setattr(watchdog, "_end_now", lambda code: stop.set())
    for reason, cure in ((verdict.reason, False), ("process 1 is gone", True)):
        stop = threading.Event()
        monkeypatch.setattr(me, "look", lambda _, reason=reason: watchdog.Verdict(75, reason))
        monkeypatch.setattr(me, "interval", 0.01)
        watchdog._watch(me, stop)
        assert ("start all processes again" in capfd.readouterr().err) is cure


def test_half_a_record_is_no_record(tmp_path):
    me, other = _dogs(tmp_path)
    other.beat()
    assert me.look(1.0) is None
    path = tmp_path / "heartbeat" / "1"
    path.write_text(path.read_text()[:40])
    assert me.look(1.0) is None
    other.beat()
    assert me.look(8.5) is None and me.look(8.5) is None


@pytest.mark.parametrize("code", [2, 75, 76])
def test_a_process_that_fails_takes_the_others_with_it_by_its_code_and_reason(tmp_path, code):
    me, other = _dogs(tmp_path)
    watchdog.mark("data", 7)
    other.leave(code, "images/7.png: no such image file")
    verdict = me.look(1.0)
    assert verdict.code == code
    assert verdict.reason.startswith(f"process 1 on {HOST}")
    assert f"ended at step 7 with code {code}: images/7.png: no such image file" in verdict.reason


@pytest.mark.parametrize("hung", [(), (0,), (1,)])
def test_the_one_that_hangs_tells_where_though_another_has_noticed_first(tmp_path, capfd, hung):
    me, other = _dogs(tmp_path)
    other.leave(75, "somebody hangs", hung)
    assert me.look(1.0).code == 75
    assert ("most recent call first" in capfd.readouterr().err) is (0 in hung)


@pytest.mark.parametrize("code", [0, 143])
def test_a_process_that_ends_well_is_left_in_peace(tmp_path, code):
    me, other = _dogs(tmp_path)
    other.leave(code, "")
    assert all(me.look(9.0) is None for _ in range(5))


def test_the_one_that_got_least_far_hangs(tmp_path, progress, capfd):
    me, other = _dogs(tmp_path, lost=0.0, hung=30.0)
    watchdog.mark("score", 4)
    other.beat()
    watchdog.mark("update", 4)
    assert me.look(0.1) is None
    for _ in range(29):
        other.beat()
        progress_here, progress.count, progress.phase = progress.count, 1, "score"
        other.beat()
        progress.count, progress.phase = progress_here, "update"
        assert me.look(1.0) is None
    verdict = me.look(1.5)
    assert verdict.code == 75
    assert f"process 1 on {HOST}" in verdict.reason and "hangs at step 4, score" in verdict.reason
    assert "process 0 on" not in verdict.reason
    # Stacks are told by the one that hangs.
    assert "most recent call first" not in capfd.readouterr().err


def test_one_process_alone_that_hangs_says_where(tmp_path, capfd):
    (me,) = _dogs(tmp_path, count=1, hung=5.0)
    watchdog.mark("compile", 0)
    assert me.look(4.0) is None and me.look(4.0) is None
    verdict = me.look(4.0)
    assert "hangs at step 0, compile" in verdict.reason
    watchdog.mark("data", 1)
    assert me.look(4.0) is None


def test_nothing_is_judged_that_is_switched_off(tmp_path):
    me, _ = _dogs(tmp_path, lost=0.0, hung=0.0)
    assert me.look(1e6) is None and me.look(1e6) is None
    assert 0.2 <= me.interval <= 5.0


def test_a_beat_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "heartbeat").write_text("a file where the folder should be")
    me, _ = _dogs(tmp_path)
    assert me.beat() is False


def test_alone_no_folder_is_made_for_a_run_that_may_be_refused(tmp_path):
    (me,) = _dogs(tmp_path / "run", count=1)
    assert me.beat() is False and not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    assert me.beat() is True
    assert json.loads((tmp_path / "run" / "heartbeat" / "0").read_text())["host"] == HOST


def test_records_are_overwritten_in_place(tmp_path):
    """A full disk has room for them, once they are there."""
    me, _ = _dogs(tmp_path)
    sizes = set()
    for step in (1, 10**9):
        watchdog.mark("sample" * step if step == 1 else "x", step)
        me.beat()
        sizes.add((tmp_path / "heartbeat" / "0").stat().st_size)
    assert len(sizes) == 1


def test_far_away_processes_are_looked_at_by_their_neighbours(tmp_path):
    dogs = _dogs(tmp_path, count=40)
    assert set(dogs[38]._watched) == {39, *range(7)}


def test_errors_of_the_runtime_are_told_from_ours():
    gloo = ValueError("UNKNOWN: Gloo AllGather failed: [pair.cc:538] Connection reset by peer")
    assert watchdog.is_from_runtime(gloo)
    assert watchdog.is_from_runtime(RuntimeError("INTERNAL: Error dispatching computation: Gloo"))
    assert not watchdog.is_from_runtime(RuntimeError("RESOURCE_EXHAUSTED: Out of memory"))
    assert not watchdog.is_from_runtime(ValueError("images/7.png: no such image file"))
    assert not watchdog.is_from_runtime(ValueError("INTERNALS are not a status"))


def _with(error, behind, how):
    """The error as `raise` leaves it where another is behind it."""
    error.__context__ = behind
    error.__cause__ = behind if how == "from" else None
    error.__suppress_context__ = how != "during"
    return error


@pytest.mark.parametrize(("how", "found"), [("from", True), ("during", True), ("from None", False)])
def test_errors_of_the_runtime_are_found_behind_ours(how, found):
    gone = RuntimeError("UNAVAILABLE: failed to connect to all addresses")
    inner = _with(ValueError("barrier"), gone, how)
    error = _with(OSError("checkpoint of step 7 was not saved"), inner, "from")
    assert watchdog.is_from_runtime(error) is found
    full = _with(OSError("not saved"), OSError(28, "No space left on device"), how)
    assert not watchdog.is_from_runtime(full) and watchdog.exit_code(full) == 2


def test_exit_codes():
    assert watchdog.exit_code(ValueError("x")) == watchdog.exit_code(OSError("x")) == 2
    assert watchdog.exit_code(TypeError("x")) == 1
    assert watchdog.exit_code(KeyboardInterrupt()) == 130
    assert watchdog.exit_code(SystemExit(7)) == 7 and watchdog.exit_code(SystemExit()) == 0
    assert watchdog.exit_code(type("E", (RuntimeError,), {"exit_code": 76})("x")) == 76
    table = re.findall(r"^\| (\d+) \|", watchdog.__doc__, re.MULTILINE)
    assert {"75", "76", "77", "143"} <= set(table)


_ABORT = """
    import os, sys, threading, time
    from medloc_jax import watchdog
    kind, folder = sys.argv[1:]
    me, other = (
        watchdog.Watchdog(folder, process_index=i, process_count=2, attempt=1, lost_seconds=2.0,
                          hung_seconds=0.0)
        for i in (0, 1)
    )
    other.beat()
    with watchdog.watching(me):
        if kind == "abort":
            os.abort()
        if kind == "runtime":
            raise ValueError("UNKNOWN: Gloo AllReduce failed: Connection reset by peer")
        if kind == "wait":
            time.sleep(60)
        if kind == "saving":  # a thread that Python joins before it calls what is to be called last
            watchdog._END_SECONDS = 1.0
            threading.Thread(target=time.sleep, args=(300,)).start()
        raise ValueError("images/7.png: no such image file")
"""


@pytest.mark.parametrize(
    ("kind", "code"), [("abort", 75), ("runtime", 75), ("wait", 75), ("ours", 2), ("saving", 2)]
)
def test_aborts_and_errors_of_the_transport_wait_for_the_reason(tmp_path, kind, code):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_ABORT), kind, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).resolve().parents[1],
    )
    assert done.returncode == code, done.stderr
    if code == 75:
        assert "process 1 on" in done.stderr and "no sign of life since" in done.stderr
        assert "Traceback" not in done.stderr
    left = json.loads((tmp_path / "heartbeat" / "0").read_text())["left"]
    assert left["code"] == code
    if code == 2:
        assert left["reason"] == "images/7.png: no such image file"
