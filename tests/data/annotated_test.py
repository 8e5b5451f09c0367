# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import pytest

from medloc_jax.data import annotated


def _half(number):
    if number % 2:
        raise ValueError(f"file{number}: is odd")
    return number // 2


def test_results_keep_their_order_and_refusals_name_the_file_once():
    refused = annotated.Refusals()
    found = annotated.for_each(
        _half, range(7), refused, path_of=lambda number: f"file{number}", what="halves"
    )
    assert found == [0, 1, 2, 3]
    assert [str(entry) for entry in refused.all] == [f"file{n}: is odd" for n in (1, 3, 5)]


def test_strict_stops_at_the_first_refusal_and_not_at_a_warning():
    refused = annotated.Refusals(strict=True)
    refused.warn("a.png", "looks odd")
    refused.leave_out("b.png", "a rule")
    refused.note("A fact.")
    assert (len(refused.warnings), len(refused.left_out), refused.notes) == (1, 1, ["A fact."])
    with pytest.raises(ValueError, match="file1: is odd .--strict stops at the first"):
        annotated.for_each(_half, range(7), refused, path_of=lambda n: f"file{n}", what="halves")


def test_a_bug_is_not_a_refusal():
    refused = annotated.Refusals()
    with pytest.raises(ZeroDivisionError):
        annotated.for_each(lambda n: 1 // n, [1, 0], refused, path_of=str, what="inverses")
    assert refused.all == []


def test_a_refusal_names_its_line():
    assert str(annotated.Refusal("a.csv", "bad", 3)) == "a.csv:3: bad"
