# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`medloc diagnose` on the terminal: the table, and the recommendation in words."""

from collections.abc import Mapping
from typing import Any


def to_text(title: str, measured: Mapping[str, Any], advice: Mapping[str, Any]) -> str:
    """The report.

    Args:
        title: what was looked at, in a few words.
        measured: of `diagnose.measure`.
        advice: of `diagnose.recommend`.
    """
    valid = measured["valid_rate"]
    said = "not told" if valid is None else f"{valid:.1%}"
    return "\n".join(
        [
            f"{title}: {measured['num_groups']} groups of {measured['group_size']}",
            f"mean IoU {measured['mean_iou']:.3f}, completions with a box: {said}",
            "",
            *_table(measured),
            "",
            *_legend(measured),
            "",
            *_advice(advice),
        ]
    )


def _table(measured: Mapping[str, Any]) -> list[str]:
    sizes = measured["by_size"]
    head = f"{'reward':>9} {'hits':>6} {'no signal':>9} {'variance':>8} {'signal':>7}"
    if sizes:
        names = "".join(f"{one['name']:>7}" for one in sizes)
        wide = len(names)
        top = " " * len(head) + f" |{'hits':^{wide}} |{'no signal':^{wide}}"
        lines = [top, f"{head} |{names} |{names}"]
    else:
        lines = [head]
    for index, one in enumerate(measured["by_threshold"]):
        rows = [part["by_threshold"][index] for part in sizes]
        name = f"IoU>={one['threshold']:.1f}"
        line = f"{name:>9} {one['hit_rate']:6.1%}{_rest(one)}"
        lines.append(line + _by_size(rows, hits=True))
    raw = measured["raw_iou"]
    line = f"{'IoU':>9} {'-':>6}{_rest(raw)}"
    lines.append(line + _by_size([part["raw_iou"] for part in sizes], hits=False))
    return lines


def _rest(one: Mapping[str, float]) -> str:
    return f" {one['zero_advantage_rate']:9.1%} {one['reward_variance']:8.3f} {one['signal']:7.3f}"


def _by_size(rows: list[Mapping[str, float]], *, hits: bool) -> str:
    if not rows:
        return ""
    shown = "".join(f"{one['hit_rate']:7.0%}" if hits else f"{'-':>7}" for one in rows)
    return f" |{shown} |" + "".join(f"{one['zero_advantage_rate']:7.0%}" for one in rows)


def _legend(measured: Mapping[str, Any]) -> list[str]:
    lines = [
        "no signal: groups whose completions all earn the same, and so have no advantage.",
        "signal: mean over groups of the reward's variance within the group, p(1 - p) for a hit.",
    ]
    sizes = measured["by_size"]
    if sizes:
        shown = "; ".join(f"{one['name']} {_extent(one)}" for one in sizes)
        lines.append(f"thirds by the area of the target box: {shown}.")
    return lines


def _extent(one: Mapping[str, Any]) -> str:
    low, high = one["areas"]
    if one["area_unit"] == "px^2":
        return f"{low:.0f} to {high:.0f} px^2"
    return f"{low:.1%} to {high:.1%} of the image"


def _advice(advice: Mapping[str, Any]) -> list[str]:
    schedule, start = advice["schedule"], advice["threshold_start"]
    if schedule == "sft_first":
        lines = ["Recommended: SFT first; then diagnose again."]
    elif schedule == "no_differences":
        lines = [
            "Recommended: no GRPO from here, which would have next to nothing to compare; a warmer "
            "--config.rl.temperature may show differences."
        ]
    else:
        lines = [f"Recommended: --config.curriculum.schedule={schedule}"]
        if schedule == "fixed":
            lines[0] += f" --config.curriculum.threshold_fixed={start:g}"
        medloc = (
            f"--config.curriculum.threshold_start={start:g} "
            f"--config.curriculum.margin={advice['margin']:g}"
        )
        if schedule == "medloc":
            lines[0] += f" {medloc}"
        elif schedule == "raw_iou" and start < advice["threshold_target"]:  # else train refuses it
            lines.append(f"For MedLoc's curriculum instead: {medloc}")
    lines += [f"  - {reason}" for reason in advice["reasons"]]
    if advice["surplus"]:
        shown = "; ".join(
            f"{one['surplus']:+.3f} (below {one['below']:g}, where {one['min_hit_rate']:.0%} must "
            "hit)"
            for one in advice["surplus"]
        )
        lines.append(
            f"  - the mean IoU's surplus when the hit rate agrees: {shown}; a larger margin holds "
            "the threshold back"
        )
    return lines + [f"Note: {warning}." for warning in advice["warnings"]]
