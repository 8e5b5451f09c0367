# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Reasoning in the answers: how often there is some, how long it is, and whether it fits the box.

Reasoning is what stands between `<think>` and `</think>` (or the end, where it was cut off). In a
completion without that tag it is the text before `<answer>`, or, without either, before the last
box; with none of the three there is none. It counts as there when it holds a word (two letters or
more).

Does the reasoning name the box that is answered? The boxes in it are read by the parser of answers;
the last one counts as what it comes to, and is the answered one when both round to the same pixels.
That tells whether the text and the answer agree, not whether the text is a reason.
"""

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from medloc_jax.evaluation import results
from medloc_jax.evaluation.table_files import ResultTable
from medloc_jax.grounding import answer

_WORD = re.compile(r"[^\W\d_]{2,}")
_LIST = re.compile(r"\[[^\[\]]*\]")
# What opens the JSON around an answer, up to its box: no reasoning.
_JSON_HEAD = re.compile(r"(?:```\w*\s*)?\[?\s*\{[^{}]*$")
_TAG = re.compile(r"</?(?:think|answer)>")


class Reasoning(NamedTuple):
    """What a completion says before it answers."""

    text: str  # "" where there is none
    words: int
    names_box: bool  # whether a box stands in it
    same_box: bool  # whether its last box is the one that is answered


class Summary(NamedTuple):
    """Over completions; shares in [0, 1], None where there is nothing to take a share of."""

    completions: int
    share: float | None
    words: float | None  # median, of those with reasoning
    names_box: float | None  # of those with reasoning
    same_box: float | None  # of those whose reasoning names a box and that answer with one


def read(completion: str) -> Reasoning:
    """Takes the reasoning out of a completion; never raises on any text."""
    text = _before_answer(completion)
    words = len(text.split()) if _WORD.search(text) else 0
    if not words:
        return Reasoning("", 0, False, False)
    said = answer.parse(text).boxes
    answered = answer.parse(completion).box
    same = (
        len(said) > 0
        and answered is not None
        and bool(np.array_equal(np.rint(said[-1]), np.rint(answered)))
    )
    return Reasoning(text.strip(), words, len(said) > 0, same)


def summarize(predictions: Sequence[Mapping[str, Any]]) -> Summary:
    """The shares over the lines of predictions.jsonl."""
    found = [(read(str(line["completion"])), bool(line["valid"])) for line in predictions]
    reasons = [(one, valid) for one, valid in found if one.words]
    named = [one for one, valid in reasons if one.names_box and valid]
    return Summary(
        len(found),
        len(reasons) / len(found) if found else None,
        statistics.median(one.words for one, _ in reasons) if reasons else None,
        sum(one.names_box for one, _ in reasons) / len(reasons) if reasons else None,
        sum(one.same_box for one in named) / len(named) if named else None,
    )


def table(experiments: Sequence[results.Experiment]) -> ResultTable:
    """By method, all seeds together; detectors, which say nothing, are left out."""
    rows, records = [], []
    for experiment in experiments:
        lines = [
            line
            for final in experiment.finals
            if not final.run.is_detector
            for line in final.predictions
        ]
        if not lines:
            continue
        found = summarize(lines)
        shares = [_percent(value) for value in (found.share, found.names_box, found.same_box)]
        words = "-" if found.words is None else f"{found.words:g}"
        rows.append([experiment.data_set, experiment.name, str(found.completions)]
                    + [shares[0], words, *shares[1:]])  # fmt: skip
        records.append(
            {"data_set": experiment.data_set, "method": experiment.name} | found._asdict()
        )
    return ResultTable(
        "reasoning",
        "Reasoning in the answers",
        ["data", "method", "answers", "with reasoning", "words", "names a box", "the answered one"],
        rows,
        {},
        [
            "With reasoning: words stand between the think tags, or before the answer. Words: "
            "median of those. Names a box: of those with reasoning. The answered one: of those "
            "that name a box and answer with one, the last box of the reasoning is the answer, to "
            "the pixel. It tells whether text and answer agree, not whether the text is a reason."
        ],
        records,
    )


def _before_answer(completion: str) -> str:
    start = completion.find("<think>")
    if start >= 0:
        inside = completion[start + len("<think>") :]
        # Cut off before its end tag: the rest is reasoning, if an answer is not in it.
        ends = [end for tag in ("</think>", "<answer>") if (end := inside.find(tag)) >= 0]
        return inside[: min(ends)] if ends else inside
    start = completion.find("<answer>")
    if start >= 0:
        return _TAG.sub(" ", completion[:start])
    lists = list(_LIST.finditer(completion))
    # Without a tag or a box nothing tells reasoning from an answer that went wrong.
    return _JSON_HEAD.sub("", completion[: lists[-1].start()]) if lists else ""


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
