# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Starts the runs of a sweep as processes, some at a time, and keeps account of what came of them.

A run that fails is told with its last line of error and never counted; the others go on. SIGTERM
and Ctrl-C are passed on to the runs, which save and end.
"""

import collections
import contextlib
import dataclasses
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from medloc_jax.cli import sweep_process, sweep_runs, sweep_state

COMMAND = (sys.executable, "-m", "medloc_jax", "train")
LOG = "log.txt"
FINISHED, FAILED, WAITING, RUNNING = "finished", "failed", "waiting", "running"
_POLL_SECONDS = 0.2


@dataclasses.dataclass
class Entry:
    """One run in the account.

    Attributes:
        name: its folder within the sweep's.
        arm: it belongs to; "" for the warm start.
        kind: see `sweep_runs.Run`.
        seed: of a run.
        state: FINISHED, FAILED, WAITING or RUNNING.
        why: it failed, or waits.
        seconds: that it took in this start; None where it did not run.
        commit: of the program that trained it last; "" where that is not known.
    """

    name: str
    arm: str
    kind: str
    seed: int | None = None
    state: str = WAITING
    why: str = ""
    seconds: float | None = None
    commit: str = ""


@dataclasses.dataclass
class Child:
    """A run whose process is alive."""

    run: sweep_runs.Run
    process: subprocess.Popen
    began: float


class Stopped(Exception):
    """The sweep was asked to end."""

    def __init__(self, number: int) -> None:
        """Takes the signal's number."""
        super().__init__(signal.Signals(number).name)
        self.number = number


class Launcher:
    """Runs what a plan asks for.

    Attributes:
        plan: of the sweep.
        chosen: arm -> value that tuning chose.
        entries: the account, by name, in the order of the starts.
    """

    def __init__(
        self,
        plan: sweep_runs.Plan,
        *,
        num_jobs: int = 1,
        command: Sequence[str] = COMMAND,
        say: Callable[[str], None] = print,
        save: Callable[["Launcher"], None] = lambda launcher: None,
        pass_fds: Sequence[int] = (),
        commit: str = "",
        before: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Takes the plan; nothing is started.

        Args:
            plan: what to run.
            num_jobs: processes at a time.
            command: that takes the arguments of `medloc train`.
            say: takes lines for the user.
            save: is called after every change of the account.
            pass_fds: file descriptors that the processes inherit.
            commit: of this program.
            before: name -> what an earlier start noted of a run.
        """
        self.plan, self.chosen = plan, {}
        self._num_jobs, self._command, self._pass_fds = num_jobs, tuple(command), tuple(pass_fds)
        self._say, self._save, self._commit = say, save, commit
        self.entries: dict[str, Entry] = {}
        for run in sweep_runs.every(plan, {}):
            noted = (before or {}).get(run.name, {})
            self.entries[run.name] = Entry(
                run.name,
                run.arm,
                run.kind,
                seed=run.changes.get("seed") if run.kind == "run" else None,
                seconds=noted.get("seconds"),
                commit=noted.get("commit", ""),
            )
        self._children: list[Child] = []
        self._took: dict[str, list[float]] = collections.defaultdict(list)
        self._stop: int | None = None

    def run(self) -> None:
        """Runs everything; returns when nothing is left that can be started.

        Raises:
            Stopped: on SIGTERM or Ctrl-C, after the processes have ended.
        """
        self._note_finished()
        self._save(self)
        with self._listening():
            while self._stop is None:
                self._start_ready()
                if not self._children:
                    break
                self._wait()
            self._end_children()
        self._save(self)
        if self._stop is not None:
            raise Stopped(self._stop)

    def count(self, state: str) -> int:
        """How many entries are in a state."""
        return sum(entry.state == state for entry in self.entries.values())

    def _note_finished(self) -> None:
        """Finds out what is done already, and what was chosen by it."""
        for run in sweep_runs.every(self.plan, {}):
            if run.kind != "run":
                self._note(run)
        for arm in self.plan.arms:
            self._choose(arm)
            if self.plan.tune_field(arm) and arm.name not in self.chosen:
                continue
            for run in self.plan.runs(arm, self.chosen.get(arm.name)):
                sweep_state.check([run])
                self._note(run)

    def _note(self, run: sweep_runs.Run) -> None:
        if sweep_state.status(run, sweep_runs.expected(run)) == sweep_state.FINISHED:
            self.entries[run.name].state = FINISHED

    def _choose(self, arm: Any) -> None:
        """Chooses the arm's value once all its tries are there; one that failed fails its runs."""
        if not self.plan.tune_field(arm) or arm.name in self.chosen:
            return
        tries = self.plan.tuning(arm)
        states = [self.entries[run.name].state for run in tries]
        if all(state == FINISHED for state in states):
            value = sweep_state.choose(self.plan, arm, tries)
            self.chosen[arm.name] = value
            self._say(f"{arm.name}: {self.plan.tune_field(arm)} = {value}, by {len(tries)} tries")
        elif FAILED in states:
            failed = tries[states.index(FAILED)].name
            runs = [run.name for run in self.plan.runs(arm)]
            self._fail_waiting(lambda entry: entry.name in runs, f"its try {failed} failed")

    def _fail_waiting(self, which: Callable[[Entry], bool], why: str) -> None:
        for entry in self.entries.values():
            if entry.state == WAITING and which(entry):
                entry.state, entry.why = FAILED, why

    def _start_ready(self) -> None:
        for entry in self.entries.values():
            if len(self._children) >= self._num_jobs:
                return
            if entry.state == WAITING and self._is_ready(entry):
                self._start(self._run_of(entry))

    def _is_ready(self, entry: Entry) -> bool:
        warm = self.entries.get(sweep_runs.WARM_START)
        if warm is not None and entry is not warm and warm.state != FINISHED:
            return False
        arm = self._arm(entry)
        tuned = arm is not None and bool(self.plan.tune_field(arm))
        return entry.kind != "run" or not tuned or entry.arm in self.chosen

    def _arm(self, entry: Entry) -> Any:
        return next((arm for arm in self.plan.arms if arm.name == entry.arm), None)

    def _run_of(self, entry: Entry) -> sweep_runs.Run:
        if entry.kind == sweep_runs.WARM_START:
            run = self.plan.warm_start()
            assert run is not None
            return run
        arm = self._arm(entry)
        of = self.plan.tuning(arm) if entry.kind == sweep_runs.TUNING else None
        runs = of or self.plan.runs(arm, self.chosen.get(arm.name))
        return next(run for run in runs if run.name == entry.name)

    def _start(self, run: sweep_runs.Run) -> None:
        entry = self.entries[run.name]
        try:
            sweep_state.link_drawings(run, self.plan.workdir)
            folder = Path(run.folder)
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / LOG, "ab") as log:
                log.write(f"$ {run.line}\n".encode())
                log.flush()
                process = subprocess.Popen(
                    [*self._command, *run.arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=sweep_process.environment(self._num_jobs),
                    pass_fds=self._pass_fds,
                    start_new_session=True,  # Ctrl-C comes to this process alone
                )
        except (OSError, ValueError) as error:
            self._ended(run, FAILED, " ".join(str(error).split()), 0.0)
            return
        entry.state, entry.commit, entry.why = RUNNING, self._commit, ""
        self._children.append(Child(run, process, time.monotonic()))
        begun = sum(self.count(state) for state in (FINISHED, FAILED, RUNNING))
        self._say(f"{begun} of {len(self.entries)}: {run.name} ...")
        self._save(self)

    def _wait(self) -> None:
        """Waits until a process has ended, or a signal has come."""
        while self._stop is None:
            over = [child for child in self._children if child.process.poll() is not None]
            for child in over:
                self._children.remove(child)
                self._judge(child)
            if over:
                return
            time.sleep(_POLL_SECONDS)

    def _judge(self, child: Child) -> None:
        """Notes what a process that has ended leaves."""
        run, code = child.run, child.process.returncode
        seconds = time.monotonic() - child.began
        state = sweep_state.status(run, sweep_runs.expected(run))
        if code == 0 and state == sweep_state.FINISHED:
            self._ended(run, FINISHED, "", seconds)
        elif self._stop is not None:
            self.entries[run.name].state = WAITING
            self.entries[run.name].why = "stopped on the way; it goes on from its last checkpoint"
        elif code == 0:
            self._ended(run, FAILED, "it ended without its last step and evaluation", seconds)
        else:
            how = f"signal {-code}" if code < 0 else f"code {code}"
            why = sweep_process.last_error(Path(run.folder) / LOG)
            self._ended(run, FAILED, f"{why} ({how})", seconds)

    def _ended(self, run: sweep_runs.Run, state: str, why: str, seconds: float) -> None:
        entry = self.entries[run.name]
        entry.state, entry.why, entry.seconds = state, why, round(seconds, 1)
        arm = self._arm(entry)
        if state == FINISHED:
            self._took[entry.arm].append(seconds)
        self._say(self._line(run, entry))
        if run.kind == sweep_runs.WARM_START and state == FAILED:
            self._fail_waiting(lambda entry: True, "the warm start failed")
        if run.kind == sweep_runs.TUNING:
            self._choose(arm)
        self._save(self)

    def _line(self, run: sweep_runs.Run, entry: Entry) -> str:
        done = self.count(FINISHED) + self.count(FAILED)
        head = f"{done} of {len(self.entries)}: {run.name} "
        if entry.state == FAILED:
            text = f"{head}FAILED: {entry.why}; see {run.folder}/{LOG}"
        else:
            result = sweep_state.last_line(run)
            split = sweep_runs.expected(run).eval.split
            measure = result.get(f"eval/{split}/map")
            told = f", {split} mAP {measure:.3f}" if isinstance(measure, float) else ""
            text = f"{head}{entry.seconds:.0f} s{told}"
        left = self.seconds_left()
        return text + (f"; about {_duration(left)} left" if left else "")

    def seconds_left(self) -> float:
        """What the runs that are left may take, by those that have run; 0 where none has."""
        everything = [seconds for took in self._took.values() for seconds in took]
        if not everything:
            return 0.0
        total = 0.0
        for entry in self.entries.values():
            if entry.state in (WAITING, RUNNING):
                took = self._took.get(entry.arm) or everything
                total += sum(took) / len(took)
        now = time.monotonic()
        total -= sum(now - child.began for child in self._children)
        return max(0.0, total / self._num_jobs)

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        numbers = (signal.SIGINT, signal.SIGTERM)
        previous = [signal.signal(number, self._asked) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, previous, strict=True):
                signal.signal(number, handler)

    def _asked(self, number: int, frame: Any) -> None:
        again = self._stop is not None
        self._stop = number
        for child in self._children:
            with contextlib.suppress(ProcessLookupError):
                child.process.send_signal(signal.SIGKILL if again else signal.SIGTERM)

    def _end_children(self) -> None:
        """Waits for the processes that were asked to end; a second signal kills them."""
        if self._children:
            names = ", ".join(child.run.name for child in self._children)
            self._say(f"stopping: {names} saves and ends (once more to kill)")
        for child in self._children:
            # Asked again: it may have been starting when the signal came.
            if child.process.poll() is None:
                child.process.terminate()
            child.process.wait()
            self._judge(child)
        self._children.clear()


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
