# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import csv
import io

import numpy as np
import pytest

from medloc_jax.evaluation import contrasts, paper_numbers, table_files, table_one

_WEAK = [0.1, 0.4, 0.55, 0.9]  # A@0.5 = 50, A@0.8 = 25
_GOOD = [0.6, 0.7, 0.85, 0.9]  # 100, 50


def _column(table, name):
    index = list(table.header).index(name)
    return {row[0]: row[index] for row in table.rows}


def test_golden_table(make_experiment):
    """Worked by hand: fixed 50, 50, 75 over seeds; medloc 100 each."""
    fixed = make_experiment([_WEAK, _WEAK, [0.1, 0.5, 0.55, 0.9]], method="fixed")
    medloc = make_experiment(_GOOD)
    table = table_one.main_table([fixed, medloc], contrasts.comparisons([fixed, medloc]))
    assert list(table.header) == ["method", "seeds", "A@0.5", "A@0.8", "mAP", "mIoU"]
    assert table.title == "Results on synthetic"
    # mean 58.33, sample deviation of 50, 50, 75: 25 / sqrt 3 = 14.43
    assert [list(row[:4]) for row in table.rows] == [
        ["Fixed 0.5", "3", "58.3 ± 14.4", "25.0 ± 0.0"],
        ["MedLoc (piecewise)", "3", "100.0 ± 0.0", "50.0 ± 0.0"],
        ["MedLoc (piecewise) − Fixed 0.5", "3", "+41.7", "+25.0"],
    ]
    assert {column: table.marks[1, column] for column in range(2, 6)} == dict.fromkeys(
        range(2, 6), table_files.BEST
    )
    assert table.marks[0, 2] == table_files.SECOND and (2, 2) not in table.marks
    records = list(csv.DictReader(io.StringIO(table_files.to_csv(table))))
    first = records[0]
    assert (first["kind"], first["method"], first["measure"]) == ("ours", "Fixed 0.5", "a50")
    assert float(first["sd"]) == pytest.approx(25 / np.sqrt(3)) and first["seeds"] == "3"


def test_a_shared_first_place_has_no_second(make_experiment):
    names = ("fixed", "raw_iou", "medloc")
    three = [make_experiment(ious, method=name)
             for name, ious in zip(names, (_GOOD, _WEAK, _GOOD), strict=True)]  # fmt: skip
    table = table_one.main_table(three, [])
    assert [table.marks.get((row, 2)) for row in range(3)] == ["best", None, "best"]
    assert table_one.main_table(three[:1], []).marks == {}
    assert any("No difference rows" in note for note in table.notes)


def test_columns_by_data_set_and_the_papers_numbers_marked_as_theirs(make_experiment):
    experiments = [
        make_experiment(_GOOD, data_set="ham10000"),
        make_experiment(_WEAK, data_set="heel", seeds=(42, 43)),
        make_experiment(_WEAK, method="fixed", data_set="heel"),
    ]
    table = table_one.main_table(experiments, contrasts.comparisons(experiments))
    a50, a80 = _column(table, "ham10000 A@0.5"), _column(table, "heel A@0.8")
    assert [row[0] for row in table.rows] == [
        "Fixed 0.5",
        "  theirs (paper, 3B)",
        "MedLoc (piecewise)",
        "  theirs (paper, 3B)",
        "MedLoc (piecewise) − Fixed 0.5",
    ]
    assert a50["  theirs (paper, 3B)"] == "94.46 ± 0.89" and a50["Fixed 0.5"] == "-"
    assert a80["  theirs (paper, 3B)"] == "47.35"
    assert _column(table, "heel mIoU")["  theirs (paper, 3B)"] == "-"
    assert _column(table, "seeds")["MedLoc (piecewise)"] == "3/2"
    assert a50["MedLoc (piecewise) − Fixed 0.5"] == "-"
    theirs = [record for record in table.records if record["kind"] == "paper"]
    assert theirs and all(record["source"] for record in theirs)
    # Neither the floor's nor the paper's numbers compete with ours.
    assert not {row for row, _ in table.marks} & {1, 3, 4}


def test_the_floor_is_a_row_and_two_floors_are_two(make_experiment):
    experiments = [make_experiment(_GOOD), make_experiment(_WEAK, method="fixed")]
    floor = {"a50": 0.25, "a80": 0.0, "map": 0.1, "miou": 0.3}
    for experiment in experiments:
        for final in experiment.finals:
            final.evaluation.metrics["floor"] = dict(floor)
    rows = table_one.main_table(experiments, []).rows
    assert [row[:3] for row in rows if row[0].startswith("Constant")] == [
        ["Constant box (floor)", "-", "25.0"]
    ]
    experiments[1].finals[0].evaluation.metrics["floor"]["a50"] = 0.5
    rows = table_one.main_table(experiments, []).rows
    assert [row[2] for row in rows if row[0].startswith("Constant")] == ["25.0", "50.0"]


def test_tests_pair_seeds_by_name_and_examples_by_id(make_experiment):
    rng = np.random.default_rng(0)
    base = rng.random((3, 50))
    ours = make_experiment(np.clip(base + 0.05, 0, 1))
    # The same three trainings, listed in another order.
    theirs = make_experiment(base[::-1], method="fixed", seeds=(44, 43, 42))
    found = {one.measure: one for one in contrasts.comparisons([theirs, ours])}
    miou = found["miou"]
    assert miou.ours == "MedLoc (piecewise)" and miou.seeds == (42, 43, 44)
    differences = (np.clip(base + 0.05, 0, 1) - base).mean(axis=1)
    assert miou.test.effect == pytest.approx(differences.mean())
    t = differences.mean() / (differences.std(ddof=1) / np.sqrt(3))
    assert miou.test.t == pytest.approx(t) and miou.test.df == 2
    assert miou.interval is not None and 0 < miou.interval.low < miou.interval.high < 0.06
    # Paired by position the interval would be that of unrelated answers.
    wrong = make_experiment(base[:, ::-1], method="fixed")
    interval = contrasts.comparisons([wrong, ours])[3].interval
    assert interval is not None and interval.low < 0 < interval.high


def test_only_shared_seeds_are_compared(make_experiment):
    ours = make_experiment([_GOOD, _WEAK], seeds=(42, 43))
    theirs = make_experiment(_WEAK, method="fixed", seeds=(43, 44))
    one = contrasts.comparisons([ours, theirs])[0]
    assert one.seeds == (43,) and one.test.effect == 0 and one.test.p is None
    table = contrasts.table([one])
    assert list(table.rows[0])[3:] == ["+0.0", "[+0.0, +0.0]", "1", "-", "-", "-", "-"]
    apart = contrasts.comparisons([ours, make_experiment(_WEAK, method="fixed", seeds=(7,))])[0]
    assert list(contrasts.table([apart]).rows[0])[3:6] == ["-", "-", "0"]


@pytest.mark.parametrize("first", [True, False])
def test_a_run_without_steps_is_paired_with_every_seed_of_the_other(make_experiment, first):
    rng = np.random.default_rng(0)
    trained = make_experiment(rng.random((3, 50)))
    constant = make_experiment(rng.random(50), method="zero_shot", seeds=(7,), num_steps=0)
    pair = [constant, trained] if first else [trained, constant]
    reference = "zero_shot" if first else ""
    one = contrasts.comparisons(pair, reference)[3]
    assert one.seeds == (42, 43, 44) and one.examples == 50 and one.interval is not None
    (number,) = constant.values("miou").values()
    effect = np.mean(list(trained.values("miou").values())) - number
    assert one.test.effect == pytest.approx(-effect if first else effect) and one.test.df == 2
    # Two constants are one pair; a run that was trained stays what it is.
    other = make_experiment(rng.random(50), method="det", seeds=(8,), num_steps=0)
    assert len(contrasts.comparisons([constant, other], "det")[0].seeds) == 1
    single = make_experiment(rng.random(50), method="sft", seeds=(7,))
    assert contrasts.comparisons([trained, single])[0].seeds == ()
    assert "paired with every seed" in contrasts.table([one]).notes[0]


def test_the_papers_numbers_stand_under_no_change_of_its_method(make_experiment):
    changed = make_experiment(
        _GOOD, data_set="ham10000", curriculum={"schedule": "medloc", "window": 5}
    )
    assert len(table_one.main_table([changed], []).rows) == 1
    same = make_experiment(
        _GOOD, data_set="ham10000", curriculum={"schedule": "medloc", "window": 30}
    )
    assert len(table_one.main_table([same], []).rows) == 2
    # Of two that are called medloc the others are taken from the one that is.
    fixed = make_experiment(_WEAK, method="fixed", data_set="ham10000")
    assert contrasts.comparisons([changed, same, fixed])


def test_holm_is_over_all_tests_of_the_table(make_experiment):
    rng = np.random.default_rng(1)
    ours = make_experiment(rng.random((3, 40)))
    others = [make_experiment(rng.random((3, 40)), method=name) for name in ("fixed", "raw_iou")]
    tested = contrasts.comparisons([ours, *others])
    records = contrasts.table(tested).records
    smallest = min(record["p"] for record in records)
    assert min(r["p_holm"] for r in records) == pytest.approx(min(1, 8 * smallest))


def test_the_reference_must_be_there_and_be_one(make_experiment):
    fixed, raw = (make_experiment(_GOOD, method=name) for name in ("fixed", "raw_iou"))
    assert contrasts.comparisons([fixed, raw]) == []
    assert {one.ours for one in contrasts.comparisons([fixed, raw], "raw_iou")} == {"Raw IoU"}
    with pytest.raises(ValueError, match="--reference=sft: no such method.*fixed, raw_iou"):
        contrasts.comparisons([fixed, raw], "sft")
    with pytest.raises(ValueError, match="could be 'Fixed 0.5', 'Fixed 0.5'"):
        contrasts.comparisons([fixed, fixed, raw], "fixed")


def test_numbers_of_the_paper_stand_once_and_say_how_they_were_read():
    keys = [(n.data_set, n.size, n.method, n.measure) for n in paper_numbers.NUMBERS]
    assert len(set(keys)) == len(keys)
    reads = {paper_numbers.PAPER, paper_numbers.QUOTED, paper_numbers.ROUNDED}
    assert {number.read for number in paper_numbers.NUMBERS} == reads
    assert all(0 < number.value < 100 for number in paper_numbers.NUMBERS)
    # What is printed as differences agrees with what is printed as numbers.
    ham = {m: paper_numbers.row(m, "ham10000") for m in ("medloc", "raw_iou")}
    assert ham["medloc"]["a50"].value - ham["raw_iou"]["a50"].value == pytest.approx(1.60)
    assert ham["medloc"]["a80"].value - ham["raw_iou"]["a80"].value == pytest.approx(6.77)
    assert paper_numbers.row("boxmed", "ham10000") == {}
