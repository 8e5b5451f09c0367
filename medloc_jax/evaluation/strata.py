# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A@0.5 by class and by the size of the true box: a mean may hide whom a method fails.

The strata are those of the test examples, the same for every method unless a report allows other
examples: then the numbers of examples are told by method, in the CSV files. Sizes are thirds of the
examples (tertiles) by the true box's share of its image, or by its area in pixels where
predictions.jsonl does not hold the image's size (files written by older versions).
"""

import collections
import functools
import operator
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from medloc_jax.evaluation import metrics, results, tables
from medloc_jax.evaluation.table_files import ResultTable

NO_LABEL = "(no label)"
SIZES = ("small", "medium", "large")
MOST_CLASSES = 12  # columns of classes in a table
_BRACKETS = "in brackets the number of examples."
_DIFFER = "the runs' examples differ: the CSV file has each method's number."


def labels(predictions: Sequence[Mapping[str, Any]]) -> list[str]:
    """The class of every line: its label, NO_LABEL where it has none."""
    return [str(line.get("label") or NO_LABEL) for line in predictions]


def areas(predictions: Sequence[Mapping[str, Any]]) -> tuple[Float[np.ndarray, " n"], str]:
    """The area of every true box, and its unit: "share of image" or "px"."""
    boxes_px = np.asarray([line["target_boxes_px"][0] for line in predictions], np.float64)
    areas_px = (boxes_px[:, 2] - boxes_px[:, 0]) * (boxes_px[:, 3] - boxes_px[:, 1])
    if all(line.get("width") and line.get("height") for line in predictions):
        images_px = np.asarray([line["width"] * line["height"] for line in predictions], np.float64)
        return areas_px / images_px, "share of image"
    return areas_px, "px"


def tertiles(sizes: Float[np.ndarray, " n"]) -> tuple[list[str], tuple[float, float]]:
    """An entry of SIZES for each value, and the two borders; a border belongs to the part below."""
    low, high = np.quantile(sizes, [1 / 3, 2 / 3])
    parts = np.searchsorted([low, high], sizes, side="left")
    return [SIZES[part] for part in parts], (float(low), float(high))


def accuracy(
    predictions: Sequence[Mapping[str, Any]], strata: Sequence[str]
) -> dict[str, tuple[float, int]]:
    """A@0.5 and the number of examples of each stratum, in order of appearance."""
    hits = metrics.per_example(results.ious(predictions), "a50")
    found = {}
    for stratum in dict.fromkeys(strata):
        chosen = np.asarray([name == stratum for name in strata])
        found[stratum] = (float(hits[chosen].mean()), int(chosen.sum()))
    return found


def class_table(experiments: Sequence[results.Experiment]) -> list[ResultTable]:
    """A@0.5 by class, a table a data set; none where there is one class alone."""
    found = []
    for data_set, there in _by_data_set(experiments):
        counted = [collections.Counter(labels(lines)) for lines in _answered(there)]
        counts = functools.reduce(operator.or_, counted)  # the most that any run has
        if len(counts) < 2:
            continue
        shown = sorted(counts, key=lambda label: (-counts[label], label))[:MOST_CLASSES]
        alike = all(one == counts for one in counted)
        notes = [f"A@0.5 in per cent, mean ± sd over seeds; {_BRACKETS if alike else _DIFFER}"]
        if len(counts) > len(shown):
            notes.append(f"The {len(shown)} most frequent of {len(counts)} classes.")
        found.append(
            _table(f"classes_{_stem(data_set)}", f"A@0.5 by class, {data_set}", there, labels,
                   {label: f"{label} ({counts[label]})" if alike else label for label in shown},
                   notes)
        )  # fmt: skip
    return found


def size_table(experiments: Sequence[results.Experiment]) -> list[ResultTable]:
    """A@0.5 by thirds of box size, a table a data set."""
    found = []
    for data_set, there in _by_data_set(experiments):
        answered = _answered(there)
        sizes, unit = areas(answered[0])
        parts, (low, high) = tertiles(sizes)
        alike = all(sorted(map(_target, lines)) == sorted(map(_target, answered[0]))
                    for lines in answered)  # fmt: skip
        borders = [f"{low:,.0f} px²", f"{high:,.0f} px²"]
        if unit == "share of image":
            borders = [f"{100 * low:.3g}%", f"{100 * high:.3g}% of the image"]
        note = (
            f"A@0.5 in per cent, mean ± sd over seeds; {_BRACKETS if alike else _DIFFER} Thirds of "
        )
        note += (
            f"the examples by the area of the true box: up to {borders[0]}, up to {borders[1]}, "
            "above."
            if alike
            else "each run's own examples by the area of the true box."
        )
        found.append(
            _table(f"sizes_{_stem(data_set)}", f"A@0.5 by box size, {data_set}", there,
                   lambda lines: tertiles(areas(lines)[0])[0],
                   {size: f"{size} ({parts.count(size)})" if alike else size
                    for size in SIZES if size in parts or not alike},
                   [note])
        )  # fmt: skip
    return found


def _table(name, title, experiments, stratify, columns, notes) -> ResultTable:
    rows, records = [], []
    for experiment in experiments:
        runs = [
            accuracy(final.predictions, stratify(final.predictions))
            for final in experiment.finals
            if final.predictions
        ]
        row = [experiment.name]
        for stratum in columns:
            values = [found[stratum][0] for found in runs if stratum in found]
            row.append(tables.mean_and_deviation(values))
            if values:
                records.append(
                    {
                        "data_set": experiment.data_set,
                        "method": experiment.name,
                        "stratum": stratum,
                        "examples": runs[0][stratum][1] if stratum in runs[0] else None,
                        "a50": statistics.fmean(values),
                        "sd": statistics.stdev(values) if len(values) > 1 else None,
                        "seeds": len(values),
                    }
                )
        rows.append(row)
    return ResultTable(name, title, ["method", *columns.values()], rows, {}, notes, records)


def _by_data_set(
    experiments: Sequence[results.Experiment],
) -> list[tuple[str, list[results.Experiment]]]:
    """The experiments of which a run has predictions, by data set."""
    found: dict[str, list[results.Experiment]] = {}
    for experiment in experiments:
        if any(final.predictions for final in experiment.finals):
            found.setdefault(experiment.data_set, []).append(experiment)
    return list(found.items())


def _answered(
    experiments: Sequence[results.Experiment],
) -> list[Sequence[Mapping[str, Any]]]:
    """The predictions of every run that has any."""
    return [final.predictions for one in experiments for final in one.finals if final.predictions]


def _target(line: Mapping[str, Any]) -> tuple[str, tuple[float, ...]]:
    """Which example a line is of, and its true box."""
    return str(line["id"]), tuple(line["target_boxes_px"][0])


def _stem(data_set: str) -> str:
    """A data set's name as part of a file name."""
    return "".join(letter if letter.isalnum() else "_" for letter in data_set)
