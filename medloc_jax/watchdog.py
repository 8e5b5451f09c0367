# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Notices a process of the run that is gone or hangs, says which and since when, and ends this one.

Every process writes `WORKDIR/heartbeat/<process>` every few seconds, from a thread of its own:
host, pid, step, phase, and a count that moves when the main thread does (`mark`). The same thread
reads the files of others. It judges by what changes while it looks, on its own clock: the hosts'
clocks need not agree, and files of an earlier start mean nothing.

* A file that does not change for `watchdog.lost_seconds`: its process is killed, or stopped, or its
  host is gone.
* The main thread has not moved for `watchdog.hung_seconds`: everybody waits for whoever got least
  far, so those are named (the waiting ones have got further).
* A process that fails by itself leaves its reason in its file, and the others end with its code.

Left alone, the survivors would wait for ever, fail with a message of the transport that names
nobody, or be aborted by JAX's runtime, which ends every process as soon as the first one is gone.
`watching` holds such an error, or such an abort, back until the reason is known.

Exit codes of `medloc train`, for whoever starts it (a scheduler, a script):

| code | what has happened | start it again? |
|---|---|---|
| 0 | finished | no |
| 1 | an error of the program, with a traceback | no, report it |
| 2 | what the user can mend, in one line: a config, a data file, a full disk | after mending |
| 75 | another process is gone or hangs (it is named), or this one hangs | yes, all processes |
| 76 | gradients not finite `optim.max_nonfinite` times in a row; see WORKDIR/diagnostics | no |
| 77 | the processes no longer hold the same step, threshold or schedule | yes; report it |
| 130 | Ctrl-C | as you like |
| 137 | killed (SIGKILL: out of memory, or a scheduler out of patience) | yes |
| 143 | SIGTERM (a preemption notice); saved where there was something to save | yes |

A start continues from the newest checkpoint that can be read.
"""

import contextlib
import ctypes
import dataclasses
import faulthandler
import json
import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from medloc_jax import storage

LOST = 75  # EX_TEMPFAIL of sysexits.h: try again
NONFINITE = 76
STOPPED_BY_SIGTERM = 143  # what a shell reports for it; schedulers restart such a run

FOLDER = "heartbeat"  # in the run's folder
# Reading everybody's file costs the square of the number of processes: beyond so many, each looks
# at the next ones alone. Whoever ends says why in its own file, so the reason travels on.
_NEIGHBOURS = 8
_WIDTH = 1024  # bytes of a record: overwriting as many needs no room on a full disk
# A process that fails has so long to print its traceback and end by itself.
_END_SECONDS = 20.0
_TAKEN = "another start uses this workdir"  # in a reason: starting once more is no cure
# How errors of the runtime begin that may mean that another process is gone; gloo's come as a plain
# ValueError. Not RESOURCE_EXHAUSTED, INVALID_ARGUMENT and the like, which are our own.
_RUNTIME_ERROR = re.compile(
    r"\s*(UNKNOWN|INTERNAL|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED|FAILED_PRECONDITION)\b"
)


@dataclasses.dataclass
class _Progress:
    """How far the main thread has got."""

    count: int = 0
    phase: str = "start"
    step: int = 0


_progress = _Progress()


def mark(phase: str, step: int | None = None) -> None:
    """Notes that the main thread begins a phase. Every process passes the same marks.

    Args:
      phase: what begins, such as "sample".
      step: of the run; None: the one before.
    """
    _progress.phase = phase
    _progress.step = _progress.step if step is None else step
    _progress.count += 1


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Why this process has to end.

    Attributes:
      code: its exit code.
      reason: who, what, since when.
      hung: processes that make no progress, where that is the reason.
    """

    code: int
    reason: str
    hung: tuple[int, ...] = ()


@dataclasses.dataclass
class _Seen:
    """What is known of another process."""

    record: dict[str, Any] | None = None
    silent: float = 0.0  # s without a change
    since: float = dataclasses.field(default_factory=time.time)  # wall clock here, for the message


class Watchdog:
    """The heartbeat of this process, and what it sees of the others."""

    def __init__(
        self,
        workdir: storage.PathLike,
        *,
        process_index: int,
        process_count: int,
        attempt: int,
        lost_seconds: float,
        hung_seconds: float,
    ):
        """Does nothing yet; `watching` starts the thread.

        Args:
          workdir: the run's folder, local or on an object store; all processes see the same.
          process_index: of this process.
          process_count: of the run.
          attempt: a number that this start shares with no other, the same on every process.
          lost_seconds: without a change of a file before its process is called lost; 0 = never.
          hung_seconds: without a mark before a process is called hung; 0 = never.
        """
        self._folder = storage.path(workdir) / FOLDER
        self._me = process_index
        self._attempt = attempt
        self._lost_seconds, self._hung_seconds = lost_seconds, hung_seconds
        limits = [limit for limit in (lost_seconds, hung_seconds) if limit > 0]
        self.interval = min(5.0, max(0.2, min(limits, default=50.0) / 10))
        ring = [(process_index + k) % process_count for k in range(1, process_count)]
        self._others, self.alone = ring, not ring
        self._watched = {index: _Seen() for index in ring[:_NEIGHBOURS]}
        self._beats = 0
        self._stood, self._stood_since = 0.0, time.time()
        self._last_count = _progress.count
        self._left: Verdict | None = None
        self._lock = threading.Lock()

    def beat(self) -> bool:
        """Writes this process's record; returns whether that worked."""
        with self._lock:
            self._beats += 1
            record = {
                "attempt": self._attempt,
                "process": self._me,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "beat": self._beats,
                "step": _progress.step,
                "phase": _progress.phase,
                "progress": _progress.count,
                "left": None if self._left is None else dataclasses.asdict(self._left),
                "time": _clock(time.time()),
            }
            try:
                # Alone, there is nobody to tell before there is a run's folder.
                _overwrite(self._folder / str(self._me), json.dumps(record), parents=not self.alone)
            except Exception:  # A file system may raise anything, and the run must not care.
                return False
            return True

    def leave(self, code: int, reason: str, hung: tuple[int, ...] = ()) -> None:
        """Leaves the reason for the others, and who of them hangs; beats no more after it."""
        with self._lock:
            self._left = Verdict(code, reason[: _WIDTH // 2], hung)
        self.beat()

    def look(self, seconds: float) -> Verdict | None:
        """Reads the others' records.

        Args:
          seconds: since the last look, of which `beat` could write; what a stalled file system or
            a stopped process slept through must not be held against the others.

        Returns:
          Why to end, or None.
        """
        for index, seen in self._watched.items():
            record = self._read(index)
            if record is not None and record != seen.record:
                self._watched[index] = seen = _Seen(record)
                if record["left"] is not None and record["left"]["code"] not in (
                    0,
                    STOPPED_BY_SIGTERM,
                ):
                    return self._of_left(record)
                continue
            if seen.record is not None and seen.record["left"] is not None:
                continue  # finished
            seen.silent += seconds
            if 0 < self._lost_seconds <= seen.silent:
                return Verdict(LOST, self._of_silent(index, seen))
        return self._look_at_progress(seconds)

    def _look_at_progress(self, seconds: float) -> Verdict | None:
        if _progress.count != self._last_count:
            self._last_count = _progress.count
            self._stood, self._stood_since = 0.0, time.time()
            return None
        self._stood += seconds
        if not 0 < self._hung_seconds <= self._stood:
            return None
        records = [record for index in self._others if (record := self._read(index)) is not None]
        records = [record for record in records if record["left"] is None]
        mine = {
            "process": self._me,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "step": _progress.step,
            "phase": _progress.phase,
            "progress": _progress.count,
        }
        least = min(record["progress"] for record in [mine, *records])
        hung = [record for record in [mine, *records] if record["progress"] == least]
        hung.sort(key=lambda record: record["process"])
        if mine in hung:
            faulthandler.dump_traceback(all_threads=True)
        return Verdict(
            LOST,
            f"{' and '.join(map(_name, hung))} {'hang' if len(hung) > 1 else 'hangs'} at step "
            f"{hung[0]['step']}, {hung[0]['phase']}; process {self._me} has waited since "
            f"{_clock(self._stood_since)} ({self._stood:.0f} s, watchdog.hung_seconds)",
            tuple(record["process"] for record in hung),
        )

    def _read(self, index: int) -> dict[str, Any] | None:
        """The record of a process of this start; None while there is none, or half of one."""
        record = self._read_any(index)
        return None if record is None or record["attempt"] != self._attempt else record

    def _read_any(self, index: int) -> dict[str, Any] | None:
        """Likewise, of whatever start has written last."""
        try:
            record = json.loads((self._folder / str(index)).read_text())
            return record if isinstance(record["attempt"], int) else None
        except Exception:  # As in `beat`.
            return None

    def _of_silent(self, index: int, seen: _Seen) -> str:
        after = f"since {_clock(seen.since)} ({seen.silent:.0f} s, watchdog.lost_seconds)"
        record = self._read_any(index)
        if record is not None and record["attempt"] > self._attempt:
            return (
                f"{_TAKEN}: {self._folder / str(index)} has been written by the later one, "
                f"{_name(record)}, at {record['time']}, and not by this one's process {index} "
                f"{after}; give each run a workdir of its own"
            )
        if seen.record is None:
            return f"process {index} has not been heard of {after}: it wrote no {self._folder}"
        return (
            f"{_name(seen.record)}: no sign of life {after}; it was at step "
            f"{seen.record['step']}, {seen.record['phase']}"
        )

    def _of_left(self, record: Mapping[str, Any]) -> Verdict:
        code, reason = record["left"]["code"], record["left"]["reason"]
        # Another has noticed first: only this process can tell where it stands.
        if self._me in record["left"]["hung"]:
            faulthandler.dump_traceback(all_threads=True)
        return Verdict(
            code, f"{_name(record)} ended at step {record['step']} with code {code}: {reason}"
        )


@contextlib.contextmanager
def watching(dog: Watchdog) -> Iterator[None]:
    """Beats and looks while the block runs; ends this process if another is gone or one hangs.

    An error of the block is told to the other processes, unless it is one of the runtime, which may
    only mean that another process is gone: then what the watchdog finds is told instead. A process
    that fails does not wait for the others at its end, as JAX would have it: they wait for it.
    """
    mark("start")
    dog.beat()
    stop = threading.Event()
    thread = threading.Thread(target=_watch, args=(dog, stop), name="watchdog", daemon=True)
    thread.start()
    patience = dog._lost_seconds * 1.5 + 10 * dog.interval
    restore = (lambda: None) if dog.alone else _hold_aborts_back(patience)
    code, reason = 0, ""
    try:
        yield
    except BaseException as error:
        if not dog.alone and dog._lost_seconds > 0 and is_from_runtime(error):
            _say(f"process {dog._me}: {_one_line(error)}; looking for the process that is gone")
            time.sleep(patience)  # the watchdog's thread ends the process meanwhile
        code, reason = exit_code(error), _one_line(error)
        raise
    finally:
        stop.set()
        thread.join(timeout=10)
        dog.leave(code, reason)
        restore()
        if code and not dog.alone:
            _end_without_waiting(code)


def exit_code(error: BaseException) -> int:
    """The code that a process ends with for an error (table above)."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        return 130
    return getattr(error, "exit_code", 2 if isinstance(error, (ValueError, OSError)) else 1)


def is_from_runtime(error: BaseException) -> bool:
    """Whether JAX's runtime, or its transport between processes, may have lost another process.

    That of the error, or of one behind it: a save in the background tells its errors as its own.
    """
    if _RUNTIME_ERROR.match(str(error)):
        return True
    behind = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return behind is not None and is_from_runtime(behind)


def _watch(dog: Watchdog, stop: threading.Event) -> None:
    last = time.monotonic()
    while not stop.wait(dog.interval):
        written = dog.beat()
        now = time.monotonic()
        # Who could not write, or was not there itself, has seen nothing of the others' silence.
        seconds = min(now - last, 2 * dog.interval) if written else 0.0
        last = now
        verdict = dog.look(seconds)
        if verdict is None or stop.is_set():
            continue
        mends = verdict.code == LOST and _TAKEN not in verdict.reason
        again = "; start all processes again" if mends else ""
        _say(f"{verdict.reason}. Process {dog._me} ends with code {verdict.code}{again}")
        dog.leave(verdict.code, verdict.reason, verdict.hung)
        _end_now(verdict.code)


def _hold_aborts_back(patience: float) -> Any:
    """Lets the watchdog speak before JAX's runtime aborts the process; returns how to undo it.

    When the process with the coordinator dies, JAX logs a fatal error in a thread of the runtime,
    at once. `abort` calls the handler of SIGABRT in that thread, outside any other signal, so that
    the handler may be Python. A handler of Python's own `signal` would only set a flag.
    """
    libc = ctypes.CDLL(None)
    handler_type = ctypes.CFUNCTYPE(None, ctypes.c_int)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)

    def wait(number: int) -> None:
        _say("JAX's runtime gives up; looking for the process that is gone")
        time.sleep(patience)
        libc.signal(number, None)  # the default: when this returns, `abort` goes on

    handler = handler_type(wait)
    before = libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))

    def restore() -> None:
        libc.signal(signal.SIGABRT, before)

    restore.handler = handler  # type: ignore[attr-defined]  # alive as long as it may be called
    return restore


def _end_without_waiting(code: int) -> None:
    """At the interpreter's end, does not join JAX's barrier, which others never come to.

    Nor, for long, a thread that is still saving: it waits for the others, too.
    """
    import atexit

    def end() -> None:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        _end_now(code)

    atexit.register(end)  # the last one registered runs first, before JAX's
    # But after all threads that are no daemons have ended.
    late = threading.Timer(_END_SECONDS, _end_now, (code,))
    late.daemon = True
    late.start()


def _end_now(code: int) -> None:
    for child in multiprocessing.active_children():  # loader workers would stay
        child.kill()
    os._exit(code)


def _overwrite(path: Any, text: str, *, parents: bool) -> None:
    """Writes a record in place: cheap, the same on an object store, and no room is needed."""
    padded = text.ljust(_WIDTH) + "\n"
    if storage.is_remote(path):
        path.write_text(padded)
        return
    path.parent.mkdir(parents=parents, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.pwrite(descriptor, padded.encode(), 0)
        os.ftruncate(descriptor, len(padded.encode()))
    finally:
        os.close(descriptor)


def _name(record: Mapping[str, Any]) -> str:
    return f"process {record['process']} on {record['host']} (pid {record['pid']})"


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:400] if text else type(error).__name__


def _say(text: str) -> None:
    # Not through sys.stderr, whose lock the main thread may hold for ever.
    os.write(2, f"medloc train: {text}\n".encode())
