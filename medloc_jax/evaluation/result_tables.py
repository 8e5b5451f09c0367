# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""All tables of a report, from the folders of its runs, and their files."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from medloc_jax.evaluation import (
    calibration,
    comparability,
    contrasts,
    document,
    failures,
    reasoning,
    results,
    run_folder,
    stability,
    strata,
    table_files,
    table_one,
)
from medloc_jax.evaluation.table_files import ResultTable

FOLDER = "tables"  # within the report's: a CSV file each
_LATEX_HEAD = "% Written by `medloc report`; to be \\input, needs no package.\n\n"


class Options(NamedTuple):
    """What a report is asked for.

    Attributes:
        allow: entries of `comparability.KINDS` in which runs may differ.
        reference: the method that the others are taken from in difference rows; "" = MedLoc.
        split: that is compared; "" = test, or, where no run has it, the first that one has.
    """

    allow: Collection[str] = ()
    reference: str = ""
    split: str = ""


class Tables(NamedTuple):
    """The tables of a report."""

    tables: tuple[ResultTable, ...]
    differences: tuple[comparability.Difference, ...]  # that were allowed
    missing: tuple[str, ...]

    def blocks(self) -> list[document.Block]:
        """The sections of a report, what the runs differ in first."""
        blocks: list[document.Block] = []
        if self.differences:
            blocks += [
                document.Heading("These runs differ"),
                document.Text("Compared all the same, as --allow or the sweep asks for:"),
                document.Bullets([f"{one.kind}: {one}" for one in self.differences]),
            ]
        for table in self.tables:
            blocks += table_files.blocks(table)
        return blocks


def of_runs(runs: Sequence[run_folder.Run], options: Options = Options()) -> Tables:  # noqa: B008
    """Makes the tables of one run or of several; none where no run was evaluated.

    Raises:
        ValueError: the runs may not be compared (see `comparability`), no run has the split that is
            asked for, or a file is broken.
    """
    having = [split for run in runs for split in run.splits() if run.of_split(split)]
    split = options.split or ("test" if "test" in having else min(having, default=""))
    if options.split and options.split not in having:
        there = ", ".join(sorted(set(having))) or "no split"
        raise ValueError(f"--split={options.split}: no run was evaluated on it, but on {there}")
    if not split:
        return Tables((), (), ())
    experiments, missing = results.collect(runs, split)
    differences = comparability.check(experiments, options.allow)
    curve_split = "val" if any("val" in run.splits() for run in runs) else split
    tested = contrasts.comparisons(experiments, options.reference)
    tables = [table_one.main_table(experiments, tested)]
    if tested:
        tables.append(contrasts.table(tested))
    tables += [
        stability.table(experiments, curve_split),
        stability.convergence_table(experiments, curve_split),
        failures.table(experiments),
        *strata.class_table(experiments),
        *strata.size_table(experiments),
        calibration.table(experiments),
        reasoning.table(experiments),
    ]
    return Tables(tuple(one for one in tables if one.rows), tuple(differences), tuple(missing))


def write(made: Tables, out: Path) -> list[Path]:
    """Writes results.md, results.tex and results.csv, and every table's CSV into `tables/`.

    Returns:
        The files, results.md first; none where there are no tables.
    """
    if not made.tables:
        return []
    (out / FOLDER).mkdir(parents=True, exist_ok=True)
    texts = {
        "results.md": document.to_markdown([document.Heading("Results", 1), *made.blocks()]),
        "results.tex": _LATEX_HEAD + "\n".join(map(table_files.to_latex, made.tables)),
        "results.csv": table_files.to_csv(made.tables[0]),
    }
    texts |= {f"{FOLDER}/{one.name}.csv": table_files.to_csv(one) for one in made.tables[1:]}
    for name, text in texts.items():
        document.replace(out / name, text)
    return [out / name for name in texts]
