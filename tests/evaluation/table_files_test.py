# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import csv
import io

import pytest
from latex_check import latex_faults

from medloc_jax.evaluation import document, table_files
from medloc_jax.evaluation.table_files import ResultTable

_TABLE = ResultTable(
    "results",
    "50% of A_1 & B",
    ["method", "A@0.5"],
    [["a_b & c%", "54.1 ± 1.2"], [r"\x{1} $2 #3", "[−1, <2]"], ["z", "1"]],
    {(0, 1): table_files.BEST, (1, 1): table_files.SECOND},
    ['a "note" of 100% ~ ^ |'],
)


def test_latex_is_written_so_that_it_compiles():
    text = table_files.to_latex(_TABLE)
    assert latex_faults(text) == []
    assert r"a\_b \& c\% & \textbf{54.1 $\pm$ 1.2} \\" in text
    assert r"\textbackslash{}x\{1\} \$2 \#3 & \underline{{}[$-$1, $<$2]} \\" in text
    assert text.isascii()


@pytest.mark.parametrize(
    "broken",
    [
        "50% of A",
        "a_b",
        "{",
        r"\begin{table}",
        "$x",
        "\\begin{tabular}{lr}\na & b & c \\\\\n\\end{tabular}",
    ],
)
def test_latex_that_does_not_compile_is_seen(broken):
    assert latex_faults(broken)


def test_csv_parses_back_to_the_same_texts_and_numbers():
    rows = list(csv.reader(io.StringIO(table_files.to_csv(_TABLE))))
    assert rows == [list(_TABLE.header), *map(list, _TABLE.rows)]
    table = ResultTable(
        "n", "t", ["x"], [["1"]], records=[{"x": 1 / 3, "y": 'a,"b"'}, {"x": None, "z": 2}]
    )
    first, second = csv.DictReader(io.StringIO(table_files.to_csv(table)))
    assert float(first["x"]) == 1 / 3 and first["y"] == 'a,"b"' and first["z"] == ""
    assert second == {"x": "", "y": "", "z": "2"}


def test_best_is_bold_and_second_underlined_in_markdown_and_html(tmp_path):
    blocks = table_files.blocks(_TABLE)
    markdown = document.to_markdown(blocks)
    assert "| a_b &amp; c% | <b>54.1 ± 1.2</b> |" in markdown
    assert "<u>[−1, &lt;2]</u>" in markdown and "| z | 1 |" in markdown
    page = document.to_html(blocks, tmp_path)
    assert "<b>54.1 ± 1.2</b>" in page and "<u>[−1, &lt;2]</u>" in page


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="a row of 1 cells under 2 columns"):
        ResultTable("n", "t", ["a", "b"], [["1"]])
