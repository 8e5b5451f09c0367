# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json

import pytest

from medloc_jax.evaluation import comparability, results, run_folder

_IOUS = [0.2, 0.6, 0.9]


def test_methods_on_one_budget_and_split_are_comparable(make_experiment):
    experiments = [
        make_experiment(_IOUS),
        make_experiment(_IOUS, method="fixed"),
        make_experiment(_IOUS, method="sft", rl={}),
        make_experiment(_IOUS, method="zero_shot", num_steps=0, rl={}),
        make_experiment(_IOUS[:2], method="raw_iou", data_set="heel", num_steps=7),
    ]
    assert comparability.check(experiments) == []


@pytest.mark.parametrize(
    ("changed", "field", "values"),
    [
        ({"num_steps": 7}, "num_steps", "9 in .*medloc/42.*; 7 in fixed/42"),
        ({"rl": {"group_size": 4, "prompts_per_step": 4}}, "rl.group_size", "8 in .*; 4 in"),
        ({"rl": {"group_size": 8, "prompts_per_step": 2}}, "prompts per step", "4 in .*; 2 in"),
        (
            {"rl": {"group_size": 8, "prompts_per_step": 4, "num_updates": 2}},
            "rl.num_updates",
            "unknown in .*; 2 in",
        ),
        ({"data": {"manifest": "/d/m.jsonl"}}, "training data", "synthetic in .*; /d/m.jsonl in"),
        ({"model": {"init_from": "/w"}}, "warm start", "random weights.* in .*; /w in"),
    ],
)
def test_another_budget_is_refused_with_runs_and_field(make_experiment, changed, field, values):
    experiments = [make_experiment(_IOUS), make_experiment(_IOUS, method="fixed", **changed)]
    with pytest.raises(ValueError, match=f"differ in budget: .*{field} is {values}") as error:
        comparability.check(experiments)
    assert "\n" not in str(error.value) and "--allow=budget" in str(error.value)
    with pytest.raises(ValueError, match="budget"):
        comparability.check(experiments, ["split"])
    allowed = comparability.check(experiments, ["budget"])
    assert [(one.kind, one.field) for one in allowed] == [("budget", field)]


def test_other_test_examples_are_refused(make_experiment):
    ours, theirs = make_experiment(_IOUS), make_experiment(_IOUS, method="fixed")
    # The same number of examples, one of them another.
    theirs.finals[1].predictions[0]["id"] = "other"
    with pytest.raises(ValueError, match="differ in split: .*true boxes is #.*fixed/43"):
        comparability.check([ours, theirs])
    theirs.finals[1].predictions[0]["id"] = "e0"
    assert comparability.check([ours, theirs]) == []
    theirs.finals[1].predictions[0]["target_boxes_px"] = [[0.0, 0.0, 3.0, 3.0]]
    with pytest.raises(ValueError, match="split"):
        comparability.check([ours, theirs])
    assert len(comparability.check([ours, theirs], ["split"])) == 1


def test_what_may_differ_must_be_known(make_experiment):
    with pytest.raises(ValueError, match="--allow=bugdet: choose of budget, split"):
        comparability.check([make_experiment(_IOUS)], ["bugdet"])


def test_a_warm_start_counts_by_its_config_not_by_its_folder(make_experiment, tmp_path):
    experiments = []
    for name, steps in (("a", 5), ("b", 5), ("c", 6)):
        (tmp_path / name).mkdir()
        start = {"method": "sft", "seed": hash(name) % 9, "num_steps": steps}
        (tmp_path / name / "config.json").write_text(json.dumps(start))
        model = {"init_from": str(tmp_path / name)}
        experiments.append(make_experiment(_IOUS, method=f"m{name}", model=model))
    assert comparability.check(experiments[:2]) == []
    with pytest.raises(ValueError, match="warm start is a run with config #"):
        comparability.check(experiments)


def test_names_tell_runs_apart(make_experiment):
    runs = [final.run for final in make_experiment(_IOUS).finals]
    assert results.run_names(runs) == ["medloc/42", "medloc/43", "medloc/44"]
    plain = [dataclasses.replace(runs[0], folder=runs[0].folder / name) for name in ("x", "y")]
    assert results.run_names(plain) == ["x", "y"]
    assert isinstance(runs[0], run_folder.Run)
