# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Differences that no claim of the paper asks for: its controls, and our schedule."""

from claims import ALL
from verdicts import Better, Sweep

from medloc_jax.evaluation import results
from medloc_jax.evaluation.table_files import ResultTable

PAIRS = (  # ours, theirs
    ("medloc", "fixed_60"),  # where the curriculum's threshold mostly ends
    ("medloc", "fixed_70"),
    ("medloc", "medloc_no_margin"),
    ("medloc", "medloc_as_written"),
    ("rivals", "raw_iou"),
    ("rivals", "medloc"),
    ("v_triune", "raw_iou"),
    ("raw_iou", "sft"),
)


def table(sweep: Sweep) -> ResultTable:
    """The differences with their intervals; a pair with no runs is left out."""
    rows = []
    for ours, theirs in PAIRS:
        for part in Better(ours, (theirs,), ALL).judge(sweep).parts:
            rows.append(
                [f"{results.title(ours)} \N{MINUS SIGN} {part.against}", part.reading]
                + [part.effect, part.over_seeds, part.over_examples, str(part.seeds)]
            )
    note = (
        "Points, with 95 % intervals over seeds (paired, Student's t) and over test examples "
        "(paired bootstrap); not corrected for how many there are."
    )
    header = ["difference", "measure", "effect", "over seeds", "over examples", "seeds"]
    return ResultTable("controls", "Controls, and our schedule", header, rows, {}, [note])
