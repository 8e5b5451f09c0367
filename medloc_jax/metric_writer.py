# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Writes scalars to metrics.jsonl, TensorBoard and Weights & Biases, and a line to the terminal.

`metrics.jsonl` is the record; the others are views of it. Only the primary process writes. A number
that JSON does not know (NaN, infinity) is written as null.

In an object store a file cannot be appended to: there lines are on their way for half a minute, and
`flush` before a checkpoint writes them.
"""

import contextlib
import errno
import json
import logging
import math
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tqdm

from medloc_jax import storage

METRICS_FILE = "metrics.jsonl"
ROLLOUTS_FILE = "rollouts.jsonl"

# What a terminal line shows, in this order, where the step has it: metric name -> (label, format).
_TERMINAL = {
    "sft/loss": ("loss", "{:.4f}"),
    "reward/total": ("reward", "{:.3f}"),
    "iou/raw_mean": ("iou", "{:.3f}"),
    "curriculum/threshold": ("threshold", "{:.2f}"),
    "group/zero_advantage_rate": ("no signal", "{:.0%}"),
    "answer/valid_rate": ("valid", "{:.0%}"),
    "grpo/kl": ("kl", "{:.4f}"),
    "optimizer/grad_norm": ("grad", "{:.2f}"),
    "speed/tokens_per_second": ("tok/s", "{:.0f}"),
    "speed/mfu": ("mfu", "{:.1%}"),
}

_log = logging.getLogger(__name__)


class MetricWriter:
    """Appends the scalars of a run, one step at a time."""

    def __init__(
        self,
        workdir: storage.PathLike,
        *,
        tensorboard: bool,
        wandb: bool,
        project: str,
        config: Mapping[str, Any],
        is_primary: bool,
        start_step: int = 0,
    ):
        """Opens the run's files; on any but the primary process, nothing.

        Args:
          workdir: the run's folder.
          tensorboard: also write event files to `workdir/tensorboard`.
          wandb: also send to Weights & Biases; a warning where it is not installed.
          project: its project there.
          config: the resolved configuration, for Weights & Biases.
          is_primary: whether this process writes.
          start_step: the step that was resumed from: TensorBoard forgets later ones of its own.
            `truncate_jsonl` is for the caller to call.
        """
        self._metrics = self._rollouts = self._tensorboard = self._wandb = None
        if not is_primary:
            return
        home = storage.path(workdir)
        storage.make_folder(home)
        self._metrics = storage.Lines(home / METRICS_FILE)
        self._rollouts = storage.Lines(home / ROLLOUTS_FILE)
        self._events = storage.Mirror(home / "tensorboard")
        if tensorboard:
            self._tensorboard = _open_tensorboard(self._events.folder, start_step)
        if wandb:
            self._wandb = _open_wandb(home, project, config)

    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes one line, and the same scalars elsewhere; a disk has it when this returns.

        Args:
          step: of the run.
          scalars: by metric name: Python numbers, or arrays with one element.
        """
        if self._metrics is None:
            return
        values = {name: json_number(value) for name, value in scalars.items()}
        with full_disk_is_a_warning(f"metrics of step {step}"):
            self._metrics.write(_json_line({"step": step, **values}))
        finite = {name: value for name, value in values.items() if value is not None}
        if self._tensorboard is not None:
            for name, value in finite.items():
                self._tensorboard.add_scalar(name, value, step)
            self._events.copy_if_due()
        if self._wandb is not None:
            self._wandb.log(finite, step=step)

    def write_rollouts(self, step: int, record: Mapping[str, Any]) -> None:
        """Writes one line of rollouts.jsonl; NaN and infinity, however deep, become null."""
        if self._rollouts is not None:
            with full_disk_is_a_warning(f"rollouts of step {step}"):
                self._rollouts.write(_json_line(json_value({"step": step, **record})))

    def flush(self) -> None:
        """Writes what an object store has not got yet; call it before a checkpoint.

        Lines of a step that is saved must not be lost: a resumed run does not write them again.
        """
        if self._metrics is None or self._rollouts is None:
            return
        self._metrics.flush()
        self._rollouts.flush()
        if self._tensorboard is not None:
            self._tensorboard.flush()
            self._events.copy()

    def say(self, text: str) -> None:
        """Prints a line, above the progress bar if there is one."""
        if self._metrics is not None:
            tqdm.tqdm.write(text)
            sys.stdout.flush()  # a log file should tell what goes on while it goes on

    def close(self) -> None:
        """Flushes and closes everything."""
        if self._metrics is not None and self._rollouts is not None:
            self._metrics.close()
            self._rollouts.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._events.copy()
        if self._wandb is not None:
            self._wandb.finish()


@contextlib.contextmanager
def full_disk_is_a_warning(what: str) -> Iterator[None]:
    """Lets a run go on when the disk is full: what could not be written is named.

    Other errors pass through.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise
        _log.warning("%s not written (%s): make room (the run goes on)", what, error.strerror)


def terminal_line(step: int, num_steps: int, scalars: Mapping[str, Any]) -> str:
    """Returns the few metrics that tell how a run does, such as `step 20/300  reward 0.412`."""
    parts = [f"step {step}/{num_steps}"]
    for name, (label, form) in _TERMINAL.items():
        if name in scalars:
            parts.append(f"{label} {form.format(float(scalars[name]))}")
    for name in sorted(scalars):
        if name.startswith("eval/"):
            parts.append(f"{name.removeprefix('eval/')} {float(scalars[name]):.3f}")
    return "  ".join(parts)


def truncate_jsonl(path: storage.PathLike, step: int) -> None:
    """Cuts the lines of later steps, and a torn last line, so that a resumed run repeats none.

    The file is replaced as a whole: a run killed here leaves the old one. No file is no error.

    Args:
      path: JSON objects with a `step`, one a line.
      step: the last step that stays.

    Raises:
      ValueError: names file and line, if a line that is not the last one is not such an object.
    """
    file = storage.path(path)
    if not file.exists():
        return
    lines = file.read_bytes().splitlines(keepends=True)
    kept = []
    for number, line in enumerate(lines, start=1):
        try:
            later = json.loads(line)["step"] > step
        except (ValueError, KeyError, TypeError):
            if number == len(lines):
                continue  # torn by the kill
            raise ValueError(
                f"{path}:{number} is not a JSON object with a step: remove that line, or start the "
                "run in another workdir"
            ) from None
        if not line.endswith(b"\n"):
            line += b"\n"
        if not later:
            kept.append(line)
    storage.write_bytes(file, b"".join(kept))


def json_number(value: Any) -> float | int | None:
    """A number, or an array of one element, as JSON can hold it; NaN and infinity become null."""
    if isinstance(value, (bool, int)):
        return int(value)
    value = float(value)
    return value if math.isfinite(value) else None


def json_value(value: Any) -> Any:
    """Nested mappings and lists likewise: NaN and infinity, however deep, become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: json_value(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(inner) for inner in value]
    return value


def _json_line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def _open_tensorboard(folder: Path, start_step: int) -> Any:
    import tensorboardX  # here: it takes a second, and not every run wants it

    # Steps that a killed run had reached after its last checkpoint are written again.
    return tensorboardX.SummaryWriter(
        str(folder), purge_step=start_step + 1 if start_step else None
    )


def _open_wandb(workdir: Any, project: str, config: Mapping[str, Any]) -> Any:
    try:
        import wandb  # type: ignore[import-not-found]
    except ImportError:
        _log.warning("log.wandb is on, but wandb is not installed: pip install wandb")
        return None
    id_file = workdir / "wandb_id"
    if not id_file.exists():
        id_file.write_text(uuid.uuid4().hex)
    # Its own files are nobody's record: those of a remote run stay on this machine.
    folder = tempfile.mkdtemp() if storage.is_remote(workdir) else str(workdir)
    return wandb.init(
        project=project,
        dir=folder,
        config=dict(config),
        id=id_file.read_text().strip(),
        resume="allow",
    )
