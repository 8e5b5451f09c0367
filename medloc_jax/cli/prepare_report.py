# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What `medloc prepare` says on the terminal when it is done."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medloc_jax.data import annotated, examples, importing
from medloc_jax.evaluation import data_sheet

# The paper's experiments, by data set.
CONFIGS = {name: f"configs/grpo/{name}_3b.py" for name in ("ham10000", "heel", "tn3k")}
MOST_CLASSES = 12
MOST_REASONS = 8

# What differs between two refusals of one kind: quoted texts, lists, paths, anything with a digit.
_PARTICULAR = re.compile(r"'[^']*'|\"[^\"]*\"|\[[^\]]*\]|\S*/\S*|\S*\d\S*")
_KINDS = {
    "refused": "refused (files or lines)",
    "refused_questions": "refused (questions; what else is asked of their images stays)",
    "left_out": "left out by a rule",
    "warnings": "to be looked at",
}
_NO_SHEET = (
    "No overlay.png, the sheet of images with their boxes, as matplotlib is not installed: "
    "pip install 'medloc_jax[report]', then run this again with --overwrite."
)


def counts_by_reason(refused: annotated.Refusals) -> dict[str, dict[str, int]]:
    """How many were refused, left out or warned of, by the first such reason in full."""
    return {
        key: {str(entries[0]): len(entries) for entries in _by_reason(found)}
        for key, found in _found(refused).items()
    }


def refused_text(refused: annotated.Refusals) -> str:
    """How many were refused, left out or warned of, and why, where no folder is written."""
    return "\n".join(_reason_lines(counts_by_reason(refused), where=""))


def parted_note(count: int, name: str) -> str:
    """What the manifest calls the lesions or patients that are in several splits.

    Args:
        count: how many of them there are.
        name: one of the names they have got.
    """
    return (
        f"Lesions or patients in several splits: {count:,}. The manifest has a group a split for "
        f"each, such as {name}, so that a val cut from train shares none with what stays there."
    )


def to_text(out: Path, summary: Mapping[str, Any], *, has_sheet: bool) -> str:
    """The report.

    Args:
        out: the folder that was written.
        summary: what `statistics.json` holds.
        has_sheet: whether the overlay sheet was drawn.
    """
    manifest = out / examples.MANIFEST_NAME
    images, rows = summary["images"], summary["examples"]
    spread = summary["box_area_percent"]["all"]
    to_look_at = [*(["overlay.png"] if has_sheet else []), "statistics.md"]
    lines = [
        f"{summary['data_set']}: {images['all']:,} images, {rows['all']:,} examples in {manifest}",
        "",
        *_count_lines(summary),
        "",
        f"Split: {summary['split_rule']}. Seed {summary['seed']}.",
        data_sheet.leakage_sentence(summary["leakage"]),
        *_leakage_cure(summary["leakage"]),
        "Box area, 5th / 50th / 95th percentile: "
        + " / ".join(f"{spread[key]:.3g}" for key in ("5", "50", "95"))
        + " % of the image.",
        data_sheet.floor_sentence(summary["floor"]),
        *summary["notes"],
        *_reason_lines(summary),
        f"Licence: {summary['licence']}",
        "",
        *([] if has_sheet else [_NO_SHEET]),
        f"Look at {' and '.join(str(out / name) for name in to_look_at)}. Then:",
        f"  medloc train --config={CONFIGS.get(summary['data_set'], 'FILE')} "
        f"--config.data.manifest={manifest} --workdir=DIR",
    ]
    return "\n".join(lines)


def _count_lines(summary: Mapping[str, Any]) -> list[str]:
    """Examples by class and split, aligned."""
    names = [name for name in examples.SPLITS if name in summary["examples"]]
    classes: Mapping[str, Mapping[str, int]] = summary["classes"]
    rows: list[Sequence[str]] = [["class", *names]]
    if len(classes) <= MOST_CLASSES:
        rows += [
            [each, *(f"{counts.get(name, 0):,}" for name in names)]
            for each, counts in classes.items()
        ]
    for key in ("examples", "images"):
        rows.append([key, *(f"{summary[key].get(name, 0):,}" for name in names)])
    first = max(len(row[0]) for row in rows)
    lines = [f"  {row[0]:<{first}}" + "".join(f"{cell:>9}" for cell in row[1:]) for row in rows]
    if len(classes) > MOST_CLASSES:
        lines.append(f"  ({len(classes)} classes: see statistics.md)")
    return lines


def _leakage_cure(leakage: Mapping[str, Any]) -> list[str]:
    leaks = [leakage[name]["share_group_with_train"] for name in ("val", "test") if name in leakage]
    if not any(leaks):
        return []
    return ["  --split=group keeps each lesion or patient in one split."]


def _reason_lines(
    counts: Mapping[str, Any], *, where: str = f", listed in {importing.REFUSED_NAME}"
) -> list[str]:
    """How many of each kind and a line a reason; nothing but that no file was refused, if so."""
    lines = []
    for key, title in _KINDS.items():
        reasons: Mapping[str, int] = counts[key]
        if not reasons:
            continue
        lines.append(f"{sum(reasons.values()):,} {title}{where}:")
        shown = sorted(reasons.items(), key=lambda item: -item[1])
        for reason, count in shown[:MOST_REASONS]:
            more = f"  (and {count - 1:,} like it)" if count > 1 else ""
            lines.append(f"  {reason}{more}")
        if len(shown) > MOST_REASONS:
            lines.append(f"  and {len(shown) - MOST_REASONS} more kinds of reason")
    return lines if counts["refused"] else [*lines, "No file was refused."]


def _found(refused: annotated.Refusals) -> dict[str, Sequence[annotated.Refusal]]:
    return {
        "refused": [each for each in refused.all if each.what != "question"],
        "refused_questions": [each for each in refused.all if each.what == "question"],
        "left_out": refused.left_out,
        "warnings": refused.warnings,
    }


def _by_reason(found: Sequence[annotated.Refusal]) -> list[list[annotated.Refusal]]:
    """Refusals that differ in their particulars only, together."""
    groups: dict[str, list[annotated.Refusal]] = {}
    for refusal in found:
        groups.setdefault(_PARTICULAR.sub("…", refusal.reason), []).append(refusal)
    return list(groups.values())
