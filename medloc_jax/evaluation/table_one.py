# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The paper's Table 1 from run folders: a row a method, columns by data set, and the tests.

Rows: the constant-box floor, each method, under it what the paper prints for it (theirs), and the
differences of one method (MedLoc) to every other. `contrasts` holds the tests behind these rows.
"""

import statistics
from collections.abc import Sequence
from typing import Any

from medloc_jax import methods
from medloc_jax.evaluation import contrasts, paper_numbers, results, tables
from medloc_jax.evaluation.table_files import BEST, SECOND, ResultTable


def main_table(
    experiments: Sequence[results.Experiment], tested: Sequence[contrasts.Comparison]
) -> ResultTable:
    """Mean ± sample standard deviation over seeds, best bold, second underlined."""
    data_sets = list(dict.fromkeys(experiment.data_set for experiment in experiments))
    columns = [(data_set, measure) for data_set in data_sets for measure in results.MEASURES]
    header = ["method", "seeds"]
    for data_set, measure in columns:
        prefix = f"{data_set} " if len(data_sets) > 1 else ""
        header.append(prefix + results.MEASURES[measure])

    rows, records, ours = [], [], []
    rows += _floor_rows(experiments, columns, records)
    for name in _ordered_names(experiments):
        cells = {one.data_set: one for one in experiments if one.name == name}
        ours.append(len(rows))
        rows.append(_own_row(name, cells, columns, records))
        first = next(iter(cells.values()))
        # The paper's numbers stand under what the paper's method is, not under a change of it.
        if not results.departures(first.finals[0].run.config, first.method):
            rows += _paper_rows(first.method, columns, records)
    marks = _marks(rows, ours)
    rows += _delta_rows(tested, columns)
    return ResultTable(
        "results",
        f"Results on {', '.join(data_sets)}"
        if len(data_sets) > 1
        else f"Results on {data_sets[0]}",
        header,
        rows,
        marks,
        _notes(rows, ours, tested),
        records,
    )


def _ordered_names(experiments: Sequence[results.Experiment]) -> list[str]:
    """The methods in the order of the paper's table, others after them as they were named."""
    known = list(methods.METHODS)
    ranked = sorted(
        experiments,
        key=lambda one: known.index(one.method) if one.method in known else len(known),
    )
    return list(dict.fromkeys(experiment.name for experiment in ranked))


def _own_row(
    name: str,
    cells: dict[str, results.Experiment],
    columns: Sequence[tuple[str, str]],
    records: list[dict[str, Any]],
) -> list[str]:
    row = [name, "/".join(dict.fromkeys(str(len(one.finals)) for one in cells.values()))]
    for data_set, measure in columns:
        values = list(cells[data_set].values(measure).values()) if data_set in cells else []
        row.append(tables.mean_and_deviation(values))
        if values:
            mean = 100 * statistics.fmean(values)
            deviation = 100 * statistics.stdev(values) if len(values) > 1 else None
            records.append(_record("ours", data_set, name, measure, mean, deviation, len(values)))
    return row


def _floor_rows(
    experiments: Sequence[results.Experiment],
    columns: Sequence[tuple[str, str]],
    records: list[dict[str, Any]],
) -> list[list[str]]:
    """A row a floor: runs on one data set share it; where they do not, each is shown."""
    by_data_set: dict[str, list[dict[str, Any]]] = {}
    for experiment in experiments:
        known = by_data_set.setdefault(experiment.data_set, [])
        for final in experiment.finals:
            floor = final.evaluation.floor
            if floor and not any(
                all(floor.get(m) == other.get(m) for m in results.MEASURES) for other in known
            ):
                known.append(floor)
    rows = []
    for index in range(max(map(len, by_data_set.values()), default=0)):
        row = ["Constant box (floor)", "-"]
        for data_set, measure in columns:
            floors = by_data_set.get(data_set, [])
            value = floors[index].get(measure) if index < len(floors) else None
            row.append("-" if value is None else f"{100 * value:.1f}")
            if value is not None:
                records.append(
                    _record("floor", data_set, "constant box", measure, 100 * value, None, 1)
                )
        rows.append(row)
    return rows


def _paper_rows(
    method: str, columns: Sequence[tuple[str, str]], records: list[dict[str, Any]]
) -> list[list[str]]:
    printed = {
        data_set: paper_numbers.row(method, data_set)
        for data_set in dict.fromkeys(data_set for data_set, _ in columns)
    }
    known = [number for numbers in printed.values() for number in numbers.values()]
    if not known:
        return []
    row = [f"  theirs (paper, {known[0].size})", "-"]
    for data_set, measure in columns:
        number = printed[data_set].get(measure)
        if number is None:
            row.append("-")
            continue
        deviation = "" if number.deviation is None else f" ± {number.deviation:g}"
        digits = 1 if number.read == paper_numbers.ROUNDED else 2
        mark = "" if number.read == paper_numbers.PAPER else "†"
        row.append(f"{number.value:.{digits}f}{deviation}{mark}")
        source = f"{number.table}, {number.read}"
        records.append(
            _record(
                "paper", data_set, method, measure, number.value, number.deviation, None, source
            )
        )
    return [row]


def _delta_rows(
    tested: Sequence[contrasts.Comparison], columns: Sequence[tuple[str, str]]
) -> list[list[str]]:
    by_pair: dict[tuple[str, str], dict[tuple[str, str], contrasts.Comparison]] = {}
    for one in tested:
        by_pair.setdefault((one.ours, one.theirs), {})[one.data_set, one.measure] = one
    rows = []
    for (ours, theirs), cells in by_pair.items():
        pairs = "/".join(dict.fromkeys(str(len(one.seeds)) for one in cells.values()))
        row = [f"{ours} {contrasts.MINUS} {theirs}", pairs]
        row += [
            contrasts.signed(cells[column].test.effect) if column in cells else "-"
            for column in columns
        ]
        rows.append(row)
    return rows


def _marks(rows: Sequence[Sequence[str]], ours: Sequence[int]) -> dict[tuple[int, int], str]:
    """Best and second of our methods by what is printed: equal texts are equally good."""
    marks: dict[tuple[int, int], str] = {}
    for column in range(2, len(rows[0]) if rows else 0):
        printed = {
            index: float(rows[index][column].split(" ")[0])
            for index in ours
            if rows[index][column] != "-"
        }
        ranked = sorted(set(printed.values()), reverse=True)
        if len(printed) < 2:
            continue  # nothing to be better than
        for index, value in printed.items():
            if value == ranked[0]:
                marks[index, column] = BEST
            # After a shared first place there is no second.
            elif value == ranked[1] and list(printed.values()).count(ranked[0]) == 1:
                marks[index, column] = SECOND
    return marks


def _notes(
    rows: Sequence[Sequence[str]], ours: Sequence[int], tested: Sequence[contrasts.Comparison]
) -> list[str]:
    notes = [
        "Per cent: mean ± sample standard deviation over seeds, of each run's last evaluation; a "
        "single run has no deviation. Best of our methods bold, second underlined, by what is "
        "printed and whatever the tests say. The floor always answers the median training box."
    ]
    if any("theirs (paper" in row[0] for row in rows):
        notes.append(
            'Rows named "theirs" are the paper\'s numbers (arXiv 2603.28120v1), for its own '
            'models, data sizes and splits: not ours, and not tested. "-": not known here, or not '
            "printed (it has no mIoU). †: not read in the paper itself, but in a note that quotes "
            "it, or with one decimal only; results.csv says which."
        )
    if tested:
        notes.append("Difference rows: percentage points; their tests stand in the next table.")
    elif len(ours) > 1:
        notes.append(
            f"No difference rows: {methods.DEFAULT}, which the others are taken from, is not among "
            "the runs, or there more than once; --reference names the one to take."
        )
    return notes


def _record(
    kind: str,
    data_set: str,
    method: str,
    measure: str,
    mean: float,
    deviation: float | None,
    seeds: int | None,
    source: str = "",
) -> dict[str, Any]:
    return {
        "kind": kind,
        "data_set": data_set,
        "method": method,
        "measure": measure,
        "mean": mean,
        "sd": deviation,
        "seeds": seeds,
        "source": source,
    }
