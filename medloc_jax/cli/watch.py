# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`medloc watch WORKDIR [--once] [--every=SECONDS]`: a run on one screen, while it goes on.

Reads WORKDIR/metrics.jsonl and nothing of the machine that writes it, so the run may be on another:
WORKDIR is any folder that both see, or gs://... or s3://... Where the output is no terminal, a line
a step is printed instead. Ends with the run's last step, or by Ctrl-C; the run does not notice.
"""

import math
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

from absl import flags

from medloc_jax import metric_writer
from medloc_jax.cli import verb_flags
from medloc_jax.evaluation import live_run

_BLOCKS = "▁▂▃▄▅▆▇█"

# Of what a step spends its time on, and of saving.
_COLOURS = {
    "data": "magenta",
    "sample": "cyan",
    "score": "yellow",
    "reference": "blue",
    "update": "green",
    "save": "red",
}

# Rows with a history, where the run has the metric: label -> (metric, format).
_ROWS = {
    "threshold": ("curriculum/threshold", "{:.2f}"),
    "loss": ("sft/loss", "{:.4f}"),
    "reward": ("reward/total", "{:.3f}"),
    "mean IoU": ("iou/raw_mean", "{:.3f}"),
    "no signal": ("group/zero_advantage_rate", "{:.0%}"),
    "valid": ("answer/valid_rate", "{:.0%}"),
    "KL": ("grpo/kl", "{:.4f}"),
    "grad norm": ("optimizer/grad_norm", "{:.3g}"),
}


def main(argv: Sequence[str]) -> int:
    """Runs the verb.

    Args:
        argv: what follows `medloc watch`.

    Returns:
        The exit code.

    Raises:
        ValueError: a wrong command line, or a folder that is no run's; one line with the cure.
    """
    values = _flags()
    rest = verb_flags.parse("watch", values, argv)
    if len(rest) != 1:
        raise ValueError("write `medloc watch WORKDIR [--once] [--every=SECONDS]`")
    run = live_run.Run(rest[0])
    try:
        if values.once:
            _print_screen(run.read())
        elif sys.stdout.isatty():
            _live(run, values.every)
        else:
            _lines(run, values.every)
    except KeyboardInterrupt:
        pass  # the usual way to stop watching
    return 0


def help_text() -> str:
    """What the verb does, and its flags."""
    return f"{(__doc__ or '').strip()}\n\n{verb_flags.help_text(_flags())}"


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_boolean("once", False, "print one screen and leave", flag_values=values)
    flags.DEFINE_float("every", 3.0, "seconds between looks", lower_bound=0.1, flag_values=values)
    return values


def _live(run: live_run.Run, every: float) -> None:
    """Redraws the screen until the run's last step."""
    from rich.live import Live

    seen = run.read()
    with Live(screen(seen), auto_refresh=False) as live:
        while not seen.finished:
            time.sleep(every)
            seen = run.read()
            live.update(screen(seen), refresh=True)


def _lines(run: live_run.Run, every: float) -> None:
    """A line for each step, those that are there already first, until the run's last."""
    shown = -1
    while True:
        seen = run.read()
        for row in seen.rows:
            if row["step"] > shown:
                scalars = {name: value for name, value in row.items() if value is not None}
                print(metric_writer.terminal_line(row["step"], seen.num_steps, scalars))
                shown = row["step"]
        sys.stdout.flush()
        if seen.finished:
            return
        time.sleep(every)


def _print_screen(seen: live_run.Seen) -> None:
    from rich.console import Console

    # Without a terminal there is no width to ask for.
    width = None if sys.stdout.isatty() else 100
    Console(width=width, highlight=False).print(screen(seen))


def screen(seen: live_run.Seen) -> Any:
    """The screen, for rich to draw."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="dim", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis")
    for label, (name, form) in _ROWS.items():
        values = seen.history(name)
        if values:
            table.add_row(label, form.format(values[-1]), sparkline(values))
    lower = Table.grid(padding=(0, 2))
    lower.add_column(justify="right", style="dim", no_wrap=True)
    lower.add_column()
    for label, text in (
        ("phases", _phases(seen)),
        ("speed", _speed(seen)),
        ("skipped", _skipped(seen)),
        ("evaluation", _evaluation(seen)),
        ("checkpoint", _checkpoint(seen)),
        ("last line", _last_line(seen)),
    ):
        if text:
            lower.add_row(label, text)
    title = f"{seen.workdir}  {seen.config.get('method', '')}".rstrip()
    return Panel(Group(_head(seen), "", table, "", lower), title=title, title_align="left")


def _head(seen: live_run.Seen) -> Any:
    """Step, bar, what is left."""
    from rich.text import Text

    if not seen.rows:
        why = "it is compiling" if seen.config else "and no config.json: is it a run's folder?"
        return Text(f"no step yet: {why}", style="yellow")
    text = Text(f"step {seen.step}", style="bold")
    if seen.num_steps:
        share = min(1.0, seen.step / seen.num_steps)
        filled = round(share * 30)
        text.append(f" of {seen.num_steps}  ")
        text.append("━" * filled, style="green")
        text.append("─" * (30 - filled), style="dim")
        text.append(f" {share:.0%}")
    seconds = seen.step_seconds
    if seen.finished:
        text.append("  finished", style="green")
    elif seconds is not None:
        # Evaluations come on top.
        left = duration((seen.num_steps - seen.step) * seconds) if seen.num_steps else "?"
        text.append(f"  {duration(seconds)} a step, {left} to go")
    return text


def _last_line(seen: live_run.Seen) -> Any:
    """How long ago the run has said something."""
    from rich.text import Text

    if seen.age is None or seen.finished:
        return None
    seconds = seen.step_seconds
    # Evaluating and saving take a while, too.
    if seconds is None or seen.age <= max(60.0, 10 * seconds):
        return f"{duration(seen.age)} ago"
    question = "evaluating, or no longer running?"
    return Text(f"{duration(seen.age)} ago: {question}", style="bold red")


def _phases(seen: live_run.Seen) -> Any:
    """The phases of a step as one bar, and in words."""
    from rich.columns import Columns
    from rich.console import Group
    from rich.text import Text

    seconds = {name: seen.recent(f"speed/{name}_seconds") for name in _COLOURS}
    if seen.recent("speed/save_seconds") is not None:
        # What is logged is the last save's whole time; steps share it.
        every = seen.config.get("checkpoint", {}).get("every", 0)
        seconds["save"] = (seconds["save"] or 0.0) / max(1, every)
    known = {name: value for name, value in seconds.items() if value}
    total = sum(known.values())
    if not known:
        return None
    bar = Text()
    words = []
    for name, value in known.items():
        bar.append("█" * round(40 * value / total), style=_COLOURS[name])
        words.append(Text(f"{name} ", style=_COLOURS[name]))
        words[-1].append(f"{duration(value)} {value / total:.0%}", style="default")
    return Group(bar, Columns(words, padding=(0, 2)))


def _speed(seen: live_run.Seen) -> str:
    parts = []
    for name, form in (
        ("speed/tokens_per_second", "{:,.0f} tok/s"),
        ("speed/mfu", "MFU {:.1%}"),
        ("speed/update_mfu", "({:.1%} of the update)"),
    ):
        value = seen.recent(name)
        if value is not None:
            parts.append(form.format(value))
    for name, label in (
        ("speed/memory_peak_gb", "memory at most"),
        ("speed/host_memory_peak_gb", "process's memory at most"),
    ):
        values = seen.history(name)
        if values:
            parts.append(f"{label} {values[-1]:.1f} GB")
    return "  ".join(parts)


def _skipped(seen: live_run.Seen) -> str:
    names = {"not finite": "optimizer/skipped_nonfinite", "no signal": "group/skipped_updates"}
    counts = {label: seen.last.get(name) for label, name in names.items()}
    return "  ".join(f"{label} {count:.0f}" for label, count in counts.items() if count)


def _evaluation(seen: live_run.Seen) -> str:
    for row in reversed(seen.rows):
        scores = {name: value for name, value in row.items() if name.startswith("eval/")}
        if scores:
            splits: dict[str, list[str]] = {}
            for name, value in scores.items():
                _, split, measure = name.split("/")
                if value is not None:
                    splits.setdefault(split, []).append(f"{measure} {value:.3f}")
            lines = ["  ".join([split, *parts]) for split, parts in splits.items()]
            return "\n".join([f"of step {row['step']}", *lines])
    return ""


def _checkpoint(seen: live_run.Seen) -> str:
    if not seen.checkpoints:
        return "none yet" if seen.rows else ""
    newest = seen.checkpoints[-1]
    behind = seen.step - newest
    return f"step {newest}" + (f", {behind} steps ago" if behind > 0 else "")


def sparkline(values: Sequence[float], width: int = 60) -> str:
    """A history as blocks from its least to its largest value; newest on the right.

    Args:
        values: at least one, finite.
        width: at most so many blocks: each is the mean of equally many neighbours.
    """
    size = math.ceil(len(values) / width)
    # Cut from the right, so that the newest block is full.
    first = len(values) % size or size
    starts = [0, *range(first, len(values), size)]
    means = [
        statistics.fmean(values[a:b])
        for a, b in zip(starts, [*starts[1:], len(values)], strict=True)
    ]
    low, high = min(means), max(means)
    if high == low:
        return _BLOCKS[0] * len(means)
    top = len(_BLOCKS) - 1
    return "".join(_BLOCKS[round((mean - low) / (high - low) * top)] for mean in means)


def duration(seconds: float) -> str:
    """Such as 0.42 s, 12.3 s, 5 min, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    hours = minutes // 60
    if hours < 1:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours / 24:.1f} days"
