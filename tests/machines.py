# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Runs of several processes that stand for several machines: one can be hit without the others.

`launch/local.sh` ends all processes when one fails. Here each of them runs under a small shell that
reports how it ended and waits for the others, as a machine would stay when its process is gone.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time

import small_runs

_SHELL = """
"$@"; code=$?
echo "ended with code $code"
touch "$HOLD/$MEDLOC_PROCESS_ID"
for _ in $(seq 1200); do
  [ "$(ls "$HOLD" | wc -l)" -ge "$MEDLOC_NUM_PROCESSES" ] && break
  sleep 0.1
done
exit $code
"""
# Times with which a test is over soon; compiling on a busy machine takes longer than ten seconds.
WATCHDOG = {"watchdog__lost_seconds": 10.0, "watchdog__hung_seconds": 120.0}


@dataclasses.dataclass
class Run:
    """A run that was started."""

    process: subprocess.Popen
    workdir: object
    count: int

    def last_record(self, index):
        """What a process wrote last, of this start or another; None: nothing, or half of it."""
        try:
            return json.loads((self.workdir / "heartbeat" / str(index)).read_text())
        except (OSError, ValueError):
            return None

    def heartbeat(self, index):
        """The record of a process that is alive, or None."""
        record = self.last_record(index)
        return record if record is not None and is_alive(record["pid"]) else None

    def wait_for(self, condition, seconds=400.0):
        """Returns what `condition` gives as soon as that is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := condition():
                return found
            if self.process.poll() is not None:
                raise AssertionError(f"it ended by itself:\n{self.process.communicate()[0]}")
            time.sleep(0.005)
        self.process.terminate()
        raise AssertionError(f"nothing happened:\n{self.process.communicate()[0]}")

    def num_lines(self):
        """Lines of metrics.jsonl."""
        path = self.workdir / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def wait_for_lines(self, count, *, cut_to=None):
        """Returns when metrics.jsonl has so many lines; at a restart, after it was cut to fewer."""
        if cut_to is not None:
            self.wait_for(lambda: self.num_lines() <= cut_to)
        self.wait_for(lambda: self.num_lines() >= count)

    def signal(self, index, number):
        """Sends a signal to a process of this start; returns its record."""
        record = self.heartbeat(index)
        assert record is not None, self.last_record(index)
        os.kill(record["pid"], number)
        return record

    def finish(self, timeout=400):
        """Waits; returns (exit code of each process, output)."""
        try:
            out, _ = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            out, _ = self.process.communicate()
            raise AssertionError(f"still running after {timeout} s:\n{out}") from None
        codes = dict(re.findall(r"^\[(\d)\] ended with code (\d+)$", out, re.MULTILINE))
        return [int(codes.get(str(index), -1)) for index in range(self.count)], out


def start(argv, workdir, *, count=2, num_devices=1, sabotage=None):
    """Starts `medloc` on so many machines; `sabotage` is Python that each runs first."""
    hold = workdir.with_name(f"{workdir.name}.hold-{time.monotonic_ns()}")
    hold.mkdir(parents=True)
    program = ["-m", "medloc_jax"]
    if sabotage is not None:
        program = ["-c", f"{sabotage}\nimport sys\nfrom medloc_jax.cli import main\n"]
        program[1] += "if __name__ == '__main__':\n    sys.exit(main.main())\n"
    command = ["bash", "launch/local.sh", str(count), "bash", "-c", _SHELL, "machine"]
    process = subprocess.Popen(
        [*command, sys.executable, *program, *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=small_runs.ROOT,
        env=small_runs.environment(num_devices) | {"HOLD": str(hold)},
    )
    return Run(process, workdir, count)


def is_alive(pid):
    """Whether there is such a process, zombies apart."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
