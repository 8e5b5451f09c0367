# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""From an image with boxes to questions with one box each: the query and the one-box rule."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from medloc_jax.data import annotated


class Question(NamedTuple):
    """One question on one image: what becomes a line of the manifest.

    Attributes:
        id: the image's id where it asks one question; else that and `#k`, k the place of the
            question's first box in the image, from 1.
        text: the query.
        box_px: its one box, as Target.box_px.
        label: class of the target, else of the image.
    """

    id: str
    text: str
    box_px: annotated.Box
    label: str | None


def _largest(targets: Sequence[annotated.Target]) -> list[annotated.Target]:
    return [max(targets, key=lambda target: _area_px(target.box_px))]  # the first of equals


def _union(targets: Sequence[annotated.Target]) -> list[annotated.Target]:
    return [annotated.Target(union_px([target.box_px for target in targets]), targets[0].label)]


# What becomes of several boxes that one question asks for; "refuse" makes no example of them.
ONE_BOX: Mapping[str, Callable[[Sequence[annotated.Target]], Sequence[annotated.Target]]] = {
    "refuse": lambda targets: [],
    "largest": _largest,
    "union": _union,
    "split": lambda targets: targets,
}


def check_query(query: str) -> None:
    """Refuses a query with a placeholder other than {label}.

    Raises:
        ValueError: with the placeholder's name.
    """
    for name in re.findall(r"\{(\w*)\}", query):
        if name != "label":
            raise ValueError(
                f"--query={query!r}: {{{name}}} is unknown: {{label}} can be asked for"
            )


def ask(
    image: annotated.AnnotatedImage, query: str, one_box: str
) -> tuple[list[Question], list[str]]:
    """Makes the questions of one image.

    Args:
        image: the image.
        query: what to ask, `{label}` standing for the target's label, else the image's.
        one_box: an entry of ONE_BOX.

    Returns:
        The questions in the order of their first boxes, and why others could not be asked.
    """
    targets_of: dict[str, list[int]] = {}
    problems = []
    for index, target in enumerate(image.targets):
        label = target.label or image.label
        if "{label}" in query and not label:
            problems.append(f"box {index + 1} has no label: give a --query without {{label}}")
        else:
            text = query.replace("{label}", label or "")
            targets_of.setdefault(text, []).append(index)
    questions = []
    for text, indices in targets_of.items():
        kept = [image.targets[index] for index in indices]
        if len(kept) > 1:
            kept = ONE_BOX[one_box](kept)
        if not kept:
            problems.append(
                f"{len(indices)} boxes answer {text!r}, and an example has one: choose "
                "--one_box=largest, union or split"
            )
        for number, target in zip(indices, kept, strict=False):
            alone = len(targets_of) == 1 and (len(indices) == 1 or one_box != "split")
            labels = {image.targets[index].label for index in indices}
            label = target.label if len(labels) == 1 or one_box != "union" else None
            questions.append(
                Question(
                    id=image.id if alone else f"{image.id}#{number + 1}",
                    text=text,
                    box_px=target.box_px,
                    label=label or image.label,
                )
            )
    return questions, problems


def union_px(boxes_px: Sequence[annotated.Box]) -> annotated.Box:
    """The smallest box that holds all of them."""
    x1, y1, x2, y2 = zip(*boxes_px, strict=True)
    return min(x1), min(y1), max(x2), max(y2)


def _area_px(box_px: annotated.Box) -> float:
    x1, y1, x2, y2 = box_px
    return (x2 - x1) * (y2 - y1)
