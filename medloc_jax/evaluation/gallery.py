# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The predictions of a report's page, to page through: small images, boxes, texts, as one object.

A page that can be mailed has a limit, and images are what fills it. The images that go in are those
that are hardest (lowest mean IoU over the methods) and random ones, in turn, until the limit is
reached; the other examples keep their boxes and texts, on an empty frame. What is left out is said.
"""

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medloc_jax.evaluation import figures_arms, run_folder
from medloc_jax.evaluation.document import Gallery
from medloc_jax.evaluation.figures_arms import Arm
from medloc_jax.model import processor

DEFAULT_MEGABYTES = 6.0  # of images, as they stand in the page
MOST_EXAMPLES = 2000
_SIDE = 256  # px, the longer one of an embedded image
_QUALITY = 72  # of the JPEG
_LONGEST_TEXT = 600  # characters of a completion
_SEED = 0


class _Source(NamedTuple):
    """An example as a run answered it."""

    run: run_folder.Run
    evaluation: run_folder.Evaluation


def check(megabytes: float, most: int = MOST_EXAMPLES) -> None:
    """Refuses limits that are none.

    Raises:
        ValueError: a negative limit, or one that is not finite.
    """
    if not 0 <= megabytes < math.inf or most < 1:
        raise ValueError(
            f"gallery of {most} examples and {megabytes:g} MB: take one example and 0 MB or more "
            "(--gallery_mb)"
        )


def build(
    runs: Sequence[run_folder.Run],
    *,
    megabytes: float = DEFAULT_MEGABYTES,
    most: int = MOST_EXAMPLES,
) -> Gallery | None:
    """Gathers the last predictions of each method's first seed on one split.

    Args:
        runs: all that the report compares.
        megabytes: limit of the embedded images (10^6 bytes of base64); 0 embeds none.
        most: examples that are taken; of more, the hardest and random ones.

    Returns:
        The gallery, None where no run has predictions.

    Raises:
        ValueError: as `check`.
    """
    check(megabytes, most)
    answers: dict[str, dict[str, Mapping[str, Any]]] = {}
    sources: dict[str, _Source] = {}
    splits = []
    by_data_set = figures_arms.by_data_set(runs)
    for data_set, members in by_data_set.items():
        arms = figures_arms.arms(members)
        split, having = figures_arms.last_evaluations(arms, predictions=True)
        splits += [split] if split else []
        # Two data sets may use the same ids.
        prefix = f"{data_set}: " if len(by_data_set) > 1 else ""
        for arm in having:
            run = arm.runs[0]
            evaluation = [entry for entry in run.of_split(split) if entry.has_predictions][-1]
            told: dict[str, Mapping[str, Any]] = {
                f"{prefix}{p['id']}": p for p in evaluation.predictions()
            }
            answers[prefix + _name(arm)] = told
            for name in told:
                sources.setdefault(name, _Source(run, evaluation))
    if not sources:
        return None
    order = list(_hardest_and_random(answers))
    kept = order[:most]
    notes = [
        f"Split: {', '.join(dict.fromkeys(splits))}; the last evaluation of one seed of each "
        "method. Solid green: true box; dashed orange: the answer."
    ]
    if len(kept) < len(order):
        notes.append(
            f"{len(kept)} of {len(order)} examples are here: the hardest and random ones, in turn."
        )
    examples, images = _examples(kept, answers, sources, int(megabytes * 1e6), notes)
    data = {
        "methods": list(answers),
        "examples": examples,
        "images": images,
        "answers": [[_answer(by_id.get(name)) for name in kept] for by_id in answers.values()],
    }
    return Gallery(data, " ".join(notes))


def _name(arm: Arm) -> str:
    seed = arm.runs[0].seed
    return arm.title if seed is None else f"{arm.title}, seed {seed}"


def _hardest_and_random(
    answers: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> Iterator[str]:
    """Every example's id once: the hardest, one at random, the next hardest, ..."""
    ious: dict[str, list[float]] = {}
    for by_id in answers.values():
        for name, prediction in by_id.items():
            ious.setdefault(name, []).append(figures_arms.counted_iou(prediction))
    hardest = sorted(ious, key=lambda name: float(np.mean(ious[name])))
    shuffled = [str(name) for name in np.random.default_rng(_SEED).permutation(list(ious))]
    seen = set()
    for pair in zip(hardest, shuffled, strict=True):
        for name in pair:
            if name not in seen:
                seen.add(name)
                yield name


def _examples(
    names: Sequence[str],
    answers: Mapping[str, Mapping[str, Mapping[str, Any]]],
    sources: Mapping[str, _Source],
    most_bytes: int,
    notes: list[str],
) -> tuple[list[dict[str, Any]], list[str]]:
    """What is told of each example, and the JPEGs as base64; adds to the notes what is left out."""
    examples: list[dict[str, Any]] = []
    images: list[str] = []
    # Index in `images` or -1, and size; None: broken
    places: dict[Path, tuple[int, tuple[int, int]] | None] = {}
    used, left_out, lost, cut = 0, 0, 0, 0
    for name in names:
        predictions = [by_id[name] for by_id in answers.values() if name in by_id]
        run, evaluation = sources[name]
        path = run.image_path(dict(predictions[0]), evaluation)
        if path is not None and path not in places:
            # Once one does not fit, no other goes in: a smaller one would break the order.
            try:
                text, size = _jpeg(path) if used <= most_bytes else ("", processor.image_size(path))
            except ValueError:
                places[path] = None
            else:
                used += len(text)
                fits = bool(text) and used <= most_bytes
                places[path] = (len(images) if fits else -1, size)
                images += [text] if fits else []
        found = places[path] if path is not None else None
        place, size = found or (-1, _extent(predictions))
        lost += found is None
        left_out += found is not None and place < 0
        cut += sum(len(str(p["completion"])) > _LONGEST_TEXT for p in predictions)
        examples.append(
            {
                "id": name,
                "image": place,
                "size": size,
                "label": str(predictions[0].get("label") or ""),
                "target": _rounded(predictions[0]["target_boxes_px"][0]),
            }
        )
    if left_out:
        notes.append(
            f"{left_out} of {len(names)} examples are shown without their image, to keep the "
            f"images of this page under {most_bytes / 1e6:g} MB: `medloc report --gallery_mb=...` "
            "sets the limit."
        )
    if lost:
        notes.append(
            f"The images of {lost} examples were not found or cannot be read: they are looked for "
            "beside the manifest that config.json names."
        )
    if cut:
        notes.append(f"{cut} texts are cut after {_LONGEST_TEXT} characters.")
    return examples, images


def _jpeg(path: Path) -> tuple[str, tuple[int, int]]:
    """A small version as base64, and the size in px of the stored image."""
    image = processor.open_image(path)
    size = image.size
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return base64.b64encode(buffer.getvalue()).decode("ascii"), size


def _extent(predictions: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """A frame that holds every box of an example whose image is not there."""
    corners = [box[2:] for p in predictions for box in (*p["target_boxes_px"], *p["boxes_px"])]
    width, height = np.ceil(np.max(corners, axis=0) * 1.1).astype(int).tolist()
    return max(1, width), max(1, height)


def _answer(prediction: Mapping[str, Any] | None) -> list[Any] | None:
    """IoU, box (or none) and text of one prediction."""
    if prediction is None:
        return None
    text = str(prediction["completion"])
    if len(text) > _LONGEST_TEXT:
        text = text[: _LONGEST_TEXT - 1] + "…"
    there = prediction["valid"] and prediction["boxes_px"]
    box = _rounded(prediction["boxes_px"][0]) if there else None
    return [round(figures_arms.counted_iou(prediction), 4), box, text]


def _rounded(box: Sequence[float]) -> list[float]:
    return [round(float(side), 1) for side in box]
