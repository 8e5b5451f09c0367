# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

from medloc_jax.cli import prepare_report
from medloc_jax.data import annotated


def test_reasons_that_differ_in_particulars_are_counted_together():
    refused = annotated.Refusals()
    for number in range(5):
        refused.add_question(f"a/{number}.png", f"{number + 2} boxes answer 'x{number}': choose")
    refused.add("t.csv", "no row", 7)
    refused.warn("w.png", "odd")
    assert prepare_report.counts_by_reason(refused) == {
        "refused": {"t.csv:7: no row": 1},
        "refused_questions": {"a/0.png: 2 boxes answer 'x0': choose": 5},
        "left_out": {},
        "warnings": {"w.png: odd": 1},
    }
    assert prepare_report.refused_text(refused).splitlines() == [
        "1 refused (files or lines):",
        "  t.csv:7: no row",
        "5 refused (questions; what else is asked of their images stays):",
        "  a/0.png: 2 boxes answer 'x0': choose  (and 4 like it)",
        "1 to be looked at:",
        "  w.png: odd",
    ]


def test_many_kinds_of_reasons_are_cut_short():
    refused = annotated.Refusals()
    for letter in "abcdefghij":
        refused.add("a.png", f"reason {letter}")
    lines = prepare_report.refused_text(refused).splitlines()
    assert lines[0].startswith("10 refused") and lines[-1] == "  and 2 more kinds of reason"
    assert len(lines) == 2 + prepare_report.MOST_REASONS


def test_the_experiments_that_are_named_exist():
    root = Path(__file__).resolve().parents[2]
    assert [path for path in prepare_report.CONFIGS.values() if not (root / path).is_file()] == []


def test_nothing_refused_is_said():
    assert prepare_report.refused_text(annotated.Refusals()) == "No file was refused."
