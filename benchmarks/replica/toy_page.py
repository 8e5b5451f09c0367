# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""How TOY.md looks, from the results of toy.py; no number in it is typed."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import toy_policy
from jaxtyping import Float
from toy_shapes import REFERENCE, SHAPES
from verdicts import LEVEL, seed_interval

from medloc_jax.evaluation import significance
from medloc_jax.evaluation.document import Block, Bullets, Heading, Table, Text

MEASURES = {"map": "mAP", "a80": "A@0.8"}


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of a shape on a task at a learning rate.

    Attributes:
        measures: of the greedy answers on the test examples after the last step, 0..1 each seed.
        no_signal: share of the groups trained on that had no signal, mean over steps and seeds.
        seconds: that it took, without the warm start.
    """

    measures: dict[str, Float[np.ndarray, " S"]]
    no_signal: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Cell:
    """Names one of the table's trainings; `shape` is "" for the warm start as it is."""

    task: str
    rate: float
    shape: str


@dataclasses.dataclass(frozen=True)
class Difference:
    """A shape less raw IoU, paired by seed, in points of a per cent.

    Attributes:
        effect: mean over seeds.
        half_width: of the interval of that mean, by Student's t; None where seeds cannot tell.
        p: two-tailed, not corrected; None where seeds cannot tell.
    """

    effect: float
    half_width: float | None
    p: float | None

    @property
    def side(self) -> int:
        """1 or -1 where the interval lies above or below 0; else 0."""
        if self.half_width is None or abs(self.effect) <= self.half_width:
            return 0
        return 1 if self.effect > 0 else -1


def compare(ours: Float[np.ndarray, " S"], theirs: Float[np.ndarray, " S"]) -> Difference:
    """Pairs two columns of 0..1 by seed."""
    test = significance.paired_t_test(100 * ours, 100 * theirs)
    if not test.t:  # None, or the 0 of a mean of exactly 0
        return Difference(test.effect, None, test.p)
    interval = seed_interval(test)
    return Difference(test.effect, interval and interval[1] - test.effect, test.p)


def all_differences(results: Mapping[Cell, Result]) -> dict[tuple[Cell, str], Difference]:
    """Every shape against raw IoU on the same task at the same rate, by each measure."""
    return {
        (cell, measure): compare(
            result.measures[measure],
            results[dataclasses.replace(cell, shape=REFERENCE)].measures[measure],
        )
        for cell, result in results.items()
        if cell.shape not in ("", REFERENCE)
        for measure in MEASURES
    }


def page(results: Mapping[Cell, Result], made_with: Sequence[str]) -> list[Block]:
    """TOY.md; `made_with` tells the command, the seeds and the sizes."""
    names = list(dict.fromkeys(cell.shape for cell in results if cell.shape))
    differences = all_differences(results)
    corrected = significance.holm([one.p for one in differences.values()])
    passed = {
        key
        for key, p in zip(differences, corrected, strict=True)
        if p is not None and p < 1 - LEVEL
    }
    made = _head(made_with)
    made += [Heading("How to read it"), Bullets(_reading(len(differences)))]
    rows = [[name, SHAPES[name].about] for name in names]
    made += [Heading("The shapes"), Table(["shape", "what a completion earns"], rows)]
    for task in dict.fromkeys(cell.task for cell in results):
        made += _task_section(task, names, results, differences, passed)
    return made


def _head(made_with: Sequence[str]) -> list[Block]:
    """What this is, what it is not, and what made it."""
    return [
        Heading("Shapes of the reward in a toy", 1),
        Text(
            "Written by benchmarks/replica/toy.py: which reward of an IoU teaches a policy most? "
            "It is a quick look at shapes, to choose what is worth a real run, and no evidence for "
            "a claim about one."
        ),
        Text(
            "It is the part of the task that a reward acts on: a policy says a box as four tokens, "
            "completions of a prompt form a group, their IoUs become rewards and advantages, and "
            "GRPO with a KL term trains it from a warm start that says boxes "
            f"{toy_policy.TOO_LARGE} times too large. It is not: there is no image, no language "
            "model, no format to keep and no answer that fails to parse; the four coordinates are "
            "said independently of each other, from a noisy view of the box."
        ),
        Heading("Made with"),
        Bullets(made_with),
    ]


def _reading(count: int) -> list[str]:
    return [
        "mAP and A@0.8 are per cent, means over seeds. A difference is the shape less raw IoU on "
        "the same task at the same learning rate, in points, paired by seed, with its "
        f"{100 * LEVEL:g} % interval over seeds (paired t).",
        f"The page makes {count} comparisons, and the intervals are not corrected for that: of "
        f"{count} differences that are all nothing, about {(1 - LEVEL) * count:.0f} would "
        f"show as something. A star marks those that pass Holm's correction over all {count} at "
        f"{100 * (1 - LEVEL):.0f} %.",
        "The learning rates stand side by side; none was chosen by its result. A shape that is "
        "ahead only at the rate where raw IoU does worse is not better than raw IoU.",
        "No signal: per cent of the groups trained on whose rewards are all the same.",
        "The shapes were chosen while looking at other draws of this toy, and so were the numbers "
        "in them. What a shape that was chosen so shows here, it has to show again elsewhere.",
    ]


def _task_section(
    task: str,
    names: Sequence[str],
    results: Mapping[Cell, Result],
    differences: Mapping[tuple[Cell, str], Difference],
    passed: set[tuple[Cell, str]],
) -> list[Block]:
    """The table of a task, and what stands out in it."""
    rates = list(dict.fromkeys(cell.rate for cell in results if cell.shape))
    header = ["shape"]
    for rate in rates:
        for title in MEASURES.values():
            header += [f"{title}, {rate:g}", "difference"]
        header.append(f"no signal, {rate:g}")
    rows = []
    for name in names:
        row = [name]
        for rate in rates:
            cell = Cell(task, rate, name)
            for measure in MEASURES:
                row.append(f"{100 * results[cell].measures[measure].mean():.1f}")
                star = "*" if (cell, measure) in passed else ""
                row.append(_told(differences.get((cell, measure))) + star)
            row.append(f"{100 * results[cell].no_signal:.0f}")
        rows.append(row)
    start = results[Cell(task, 0.0, "")].measures
    told = " and ".join(f"{title} {100 * start[key].mean():.1f}" for key, title in MEASURES.items())
    made: list[Block] = [Heading(f"The {task} task"), Text(f"Before any step: {told}.")]
    made.append(Table(header, rows))
    for measure, title in MEASURES.items():
        sides = {
            name: [differences[Cell(task, rate, name), measure].side for rate in rates]
            for name in names
            if name != REFERENCE
        }
        better = [name for name, one in sides.items() if min(one) > 0]
        worse = [name for name, one in sides.items() if max(one) < 0]
        made.append(
            Text(
                f"{title} at every learning rate, intervals not corrected: above raw IoU "
                f"{', '.join(better) or 'none'}; below it {', '.join(worse) or 'none'}."
            )
        )
    return made


def _told(difference: Difference | None) -> str:
    if difference is None:
        return ""
    effect = f"{round(difference.effect, 1) + 0.0:+.1f}"  # adding 0 turns -0.0 into 0.0
    return effect if difference.half_width is None else f"{effect} ± {difference.half_width:.1f}"
