# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from medloc_jax.evaluation import run_folder, stability


def test_jitter_is_the_variance_of_noise_and_blind_to_a_trend():
    noise = np.random.default_rng(0).normal(0, 2.0, 20_000)
    assert stability.jitter(noise) == pytest.approx(4, rel=0.05)
    trend = noise + np.linspace(0, 1000, 20_000)
    assert stability.jitter(trend) == pytest.approx(4, rel=0.05)
    assert stability.variance(trend) > 10_000
    assert stability.variance(noise[:1]) is None and stability.jitter(noise[:0]) is None


def test_largest_drop_is_between_neighbours():
    assert stability.largest_drop(np.array([0.2, 0.8, 0.5, 0.6, 0.4])) == pytest.approx(0.3)
    assert stability.largest_drop(np.array([0.1, 0.2])) == 0.0
    assert stability.largest_drop(np.array([0.1])) is None


def test_steps_to_a_level():
    series = run_folder.Series(np.array([0, 50, 100]), np.array([0.1, 0.7, 0.6]))
    assert stability.steps_to(series, 0.7) == 50
    assert stability.steps_to(series, 0.71) is None
    assert stability.steps_to(series, 0.05) == 0


def _rows(*accuracies):
    return [
        {"step": 10 * k, "optimizer/grad_norm": float(k % 2), "reward/total": 0.5,
         "eval/val/a50": a50, "eval/val/map": a50 / 2}
        for k, a50 in enumerate(accuracies)
    ]  # fmt: skip


def test_tables_by_method(make_experiment):
    steady = make_experiment([0.6, 0.9], rows=_rows(0.4, 0.55, 0.95), method="fixed")
    never = make_experiment([[0.6, 0.9], [0.1, 0.9]], rows=_rows(0.4, 0.2, 0.3), seeds=(1, 2))
    table = stability.table([steady, never], "val")
    records = {record["method"]: record for record in table.records}
    assert records["Fixed 0.5"]["A@0.5, seed sd"] == 0.0
    assert records["MedLoc (piecewise)"]["A@0.5, seed sd"] == pytest.approx(0.5 / np.sqrt(2))
    assert records["Fixed 0.5"]["gradient norm, jitter"] == 0.5
    assert records["Fixed 0.5"]["reward, variance"] == 0.0
    assert records["Fixed 0.5"]["sampled IoU, jitter"] is None
    assert records["MedLoc (piecewise)"]["A@0.5, largest drop"] == pytest.approx(0.2)

    table = stability.convergence_table([steady, never], "val")
    assert list(table.header[2:5]) == ["A@0.5 50%", "A@0.5 70%", "A@0.5 90%"]
    assert list(table.rows[0][2:5]) == ["10", "20", "20"]
    assert list(table.rows[1][2:5]) == ["never"] * 3


def test_seeds_that_never_came_there_are_counted(make_experiment):
    quick = make_experiment([0.6], rows=_rows(0.1, 0.9), seeds=(1,))
    slow = make_experiment([0.6], rows=_rows(0.1, 0.2), seeds=(2,))
    both = type(quick)("medloc", "both", "synthetic", quick.finals + slow.finals)
    assert stability.convergence_table([both], "val").rows[0][2] == "10 (1 of 2)"
