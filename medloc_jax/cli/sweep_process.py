# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What the process of a run is given, of which commit it is, and what its log tells of its end."""

import os
import subprocess
from pathlib import Path

from medloc_jax import xla_flags


def environment(num_jobs: int) -> dict[str, str]:
    """What the processes of runs find in their environment.

    Several at a time share the cores: each takes its part of them, or they would wait for one
    another at every small operation.
    """
    made = dict(os.environ)
    made["PYTHONUNBUFFERED"] = "1"
    # Runs compile the same small programs again and again.
    made.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    if num_jobs > 1:
        part = str(max(1, num_cores() // num_jobs))
        for name in (xla_flags.CPU_THREADS, "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            made.setdefault(name, part)
    return made


def num_cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def commit() -> str:
    """The commit of this program's source, with + where files differ from it; "" outside git."""
    root = Path(__file__).resolve().parents[2]
    git = ["git", "-C", str(root)]
    try:
        told = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True
        )
    except OSError:
        return ""
    if told.returncode:
        return ""
    return told.stdout.strip() + ("+" if changed.stdout.strip() else "")


def last_error(log: Path) -> str:
    """The last line of a log that tells an error, else its last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    # Only of the last start.
    starts = [number for number, line in enumerate(lines) if line.startswith("$ medloc train")]
    lines = lines[starts[-1] + 1 :] if starts else lines
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["it said nothing"])[-1][:300]
