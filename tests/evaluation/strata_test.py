# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from medloc_jax.evaluation import strata


def test_tertiles_hold_a_third_each_and_the_border_belongs_below():
    parts, (low, high) = strata.tertiles(np.arange(1.0, 10.0))
    assert parts == ["small"] * 3 + ["medium"] * 3 + ["large"] * 3
    assert 3 < low < 4 and 6 < high < 7
    assert strata.tertiles(np.ones(4))[0] == ["small"] * 4


def test_areas_are_shares_where_the_images_size_is_known():
    line = {"target_boxes_px": [[10.0, 10.0, 30.0, 20.0]]}
    assert strata.areas([line])[0].tolist() == [200.0] and strata.areas([line])[1] == "px"
    sized = line | {"width": 100, "height": 40}
    assert strata.areas([sized])[0].tolist() == [0.05]
    assert strata.areas([sized, line])[1] == "px"  # a file of both: nothing is mixed


def test_accuracy_by_class_is_worked_by_hand(make_experiment):
    # Labels a, b, a, b, a.
    experiment = make_experiment([[0.9, 0.1, 0.2, 0.8, 0.5], [0.9, 0.1, 0.2, 0.2, 0.1]],
                                 seeds=(1, 2))  # fmt: skip
    (table,) = strata.class_table([experiment])
    assert list(table.header) == ["method", "a (3)", "b (2)"]
    assert list(table.rows[0]) == ["MedLoc (piecewise)", "50.0 ± 23.6", "25.0 ± 35.4"]
    assert table.records[0]["a50"] == pytest.approx(0.5) and table.records[0]["examples"] == 3
    for final in experiment.finals:
        for line in final.predictions:
            line["label"] = None
    assert strata.class_table([experiment]) == []


def test_other_examples_have_no_common_numbers_in_the_header(make_experiment):
    pair = [make_experiment([0.9] * 5), make_experiment([0.9] * 6, method="fixed")]
    for make in (strata.class_table, strata.size_table):
        (table,) = make(pair)
        assert not any("(" in cell for cell in table.header) and "examples differ" in table.notes[0]
        assert len({record["examples"] for record in table.records}) > 1
        (table,) = make(pair[:1])
        assert all("(" in cell for cell in table.header[1:])


def test_a_first_seed_without_predictions_drops_no_method(make_experiment):
    pair = [make_experiment([0.9] * 4), make_experiment([0.9] * 4, method="fixed")]
    for experiment in pair:
        experiment.finals[0].predictions.clear()
    for make in (strata.class_table, strata.size_table):
        (table,) = make(pair)
        assert [row[0] for row in table.rows] == ["MedLoc (piecewise)", "Fixed 0.5"]


def test_size_table_names_its_borders(make_experiment):
    (table,) = strata.size_table([make_experiment([0.9, 0.9, 0.1, 0.1, 0.6, 0.6])])
    assert list(table.rows[0][1:]) == ["100.0 ± 0.0", "0.0 ± 0.0", "100.0 ± 0.0"]
    assert list(table.header[1:]) == ["small (2)", "medium (2)", "large (2)"]
    assert "up to 117 px², up to 133 px²" in table.notes[0]
