# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One table, written as Markdown, LaTeX and CSV."""

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence

from medloc_jax.evaluation.document import Block, Heading, Table, Text

BEST, SECOND = "best", "second"  # marks: printed bold and underlined

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    "±": r"$\pm$",
    "−": r"$-$",
    "≥": r"$\ge$",
    "×": r"$\times$",
    "…": r"\ldots{}",
    "†": r"\dag{}",
    "²": r"$^2$",
    '"': "''",
}


@dataclasses.dataclass(frozen=True)
class ResultTable:
    """A table of texts with what is best in it marked, and the numbers behind it.

    Attributes:
        name: stem of its CSV file and label of the LaTeX table.
        title: what it shows.
        header: names of the columns.
        rows: texts, each row as long as the header.
        marks: BEST or SECOND by (row, column).
        notes: what a reader must know; printed under the table.
        records: the numbers, unrounded, one object a line of the CSV; empty: the texts are.
    """

    name: str
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    marks: Mapping[tuple[int, int], str] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()
    records: Sequence[Mapping[str, str | float | int | None]] = ()

    def __post_init__(self) -> None:
        """Refuses a row of another length than the header."""
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(
                    f"table {self.name}: a row of {len(row)} cells under {len(self.header)} columns"
                )


def blocks(table: ResultTable) -> list[Block]:
    """The table as a section of a report."""
    return [
        Heading(table.title),
        Table(table.header, table.rows, table.marks),
        *(Text(note) for note in table.notes),
    ]


def to_latex(table: ResultTable) -> str:
    r"""The table as a LaTeX float, to be `\input`; it needs no package."""
    first = "l" + "r" * (len(table.header) - 1)
    lines = [
        r"\begin{table}[t]",
        r"\centering\footnotesize",
        rf"\caption{{{latex_text(table.title)}}}",
        rf"\label{{tab:{table.name.replace('_', '-')}}}",
        rf"\begin{{tabular}}{{{first}}}",
        r"\hline",
        " & ".join(map(latex_text, table.header)) + r" \\",
        r"\hline",
    ]
    for index, row in enumerate(table.rows):
        cells = [_latex_cell(text, table.marks.get((index, c))) for c, text in enumerate(row)]
        lines.append(" & ".join(cells) + r" \\")
    lines += [r"\hline", r"\end{tabular}"]
    lines += [rf"\par\smallskip {latex_text(note)}" for note in table.notes]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def to_csv(table: ResultTable) -> str:
    """The numbers of the table (or, where it has none, its texts) as CSV with a header line."""
    text = io.StringIO()
    if table.records:
        names = list(dict.fromkeys(name for record in table.records for name in record))
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table.records)
    else:
        csv.writer(text, lineterminator="\n").writerows([table.header, *table.rows])
    return text.getvalue()


def latex_text(text: str) -> str:
    """Plain text with LaTeX's special characters written so that they print as they are."""
    return "".join(_LATEX.get(character, character) for character in text)


def _latex_cell(text: str, mark: str | None) -> str:
    written = latex_text(text)
    # An opening bracket after a row's end would be read as that row's spacing.
    written = "{}" + written if written.startswith(("[", "*")) else written
    if mark == BEST:
        return rf"\textbf{{{written}}}"
    return rf"\underline{{{written}}}" if mark == SECOND else written
