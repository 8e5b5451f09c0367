# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import csv
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from latex_check import latex_faults

from medloc_jax import config, methods
from medloc_jax.evaluation import report, result_tables, results, run_folder

_SEEDS = (42, 43)


@pytest.fixture
def runs(make_run):
    """Folders of two methods, two seeds each."""
    folders = [
        make_run(f"{name}/{seed}", schedule=name, seed=seed, skill=skill)
        for name, skill in (("fixed", 0.0), ("medloc", 0.2))
        for seed in _SEEDS
    ]
    return folders


def _edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_every_table_is_written_three_ways(runs, tmp_path):
    made = result_tables.of_runs([run_folder.load(folder) for folder in runs])
    names = [table.name for table in made.tables]
    assert names[:5] == ["results", "comparisons", "stability", "convergence", "failures"]
    assert names[5:] == ["sizes_synthetic", "reasoning"]  # no labels, no boxes in rollouts.jsonl
    paths = result_tables.write(made, tmp_path / "out")
    assert all(path.is_file() for path in paths)
    markdown, latex = (path.read_text() for path in paths[:2])
    for table in made.tables:
        assert f"## {table.title}\n" in markdown
        assert rf"\label{{tab:{table.name.replace('_', '-')}}}" in latex
    assert latex_faults(latex) == []
    with paths[2].open() as file:
        rows = list(csv.DictReader(file))
    stated = [json.loads((folder / "eval/test-119/metrics.json").read_text()) for folder in runs]
    row = next(r for r in rows if (r["method"], r["measure"]) == ("MedLoc (piecewise)", "a80"))
    assert float(row["mean"]) == pytest.approx(50 * (stated[2]["a80"] + stated[3]["a80"]))
    with (tmp_path / "out/tables/comparisons.csv").open() as file:
        assert {r["seeds"] for r in csv.DictReader(file)} == {"42 43"}


def test_runs_of_other_budgets_are_refused_before_anything_is_written(runs, tmp_path):
    _edit_config(runs[3], num_steps=7)
    with pytest.raises(ValueError, match="differ in budget: synthetic: num_steps is 120 in"):
        report.write_report(runs, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    options = result_tables.Options(allow=["budget"])
    made = result_tables.of_runs([run_folder.load(folder) for folder in runs], options)
    titles = [block.text for block in made.blocks() if hasattr(block, "text")]
    assert titles[0] == "These runs differ"


def test_labels_name_methods_and_sources_name_data_sets(runs):
    for folder, label in zip(runs, ("n_10", "n_10", "v_triune", "v_triune"), strict=True):
        _edit_config(folder, label=label, curriculum={"schedule": "v_triune"})
    path = runs[0] / "eval/test-119/predictions.jsonl"
    lines = [json.loads(line) | {"source": "heel"} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    experiments, _ = results.collect([run_folder.load(folder) for folder in runs], "test")
    assert [(e.name, e.data_set, len(e.finals)) for e in experiments] == [
        ("n_10", "heel", 1),
        ("n_10", "synthetic", 1),
        ("V-Triune", "synthetic", 2),
    ]


@pytest.mark.parametrize(
    ("label", "curriculum", "name"),
    [
        ("", {"schedule": "fixed", "threshold_fixed": 0.5}, "Fixed 0.5"),
        ("", {"schedule": "fixed", "threshold_fixed": 0.7},
         "fixed, curriculum.threshold_fixed=0.7"),
        ("fixed", {"schedule": "fixed", "threshold_fixed": 0.7},
         "fixed, curriculum.threshold_fixed=0.7"),
        ("fixed_70", {"schedule": "fixed", "threshold_fixed": 0.7}, "Fixed 0.7"),
        ("", {"schedule": "medloc", "step_size": "linear"}, "medloc, curriculum.step_size=linear"),
        ("", {"schedule": "medloc", "step_sizes": [0.15, 0.1, 0.05], "window": 30},
         "MedLoc (piecewise)"),
        ("", {"schedule": "medloc", "threshold_fixed": 0.7}, "MedLoc (piecewise)"),  # not read
        ("v_triune", {"schedule": "medloc"}, "v_triune, curriculum.schedule=medloc"),
        ("n_10", {"schedule": "medloc", "window": 10}, "n_10"),
    ],
)  # fmt: skip
def test_a_run_is_called_a_method_only_where_it_is_one(make_run, label, curriculum, name):
    folder = make_run("run")
    _edit_config(folder, label=label, curriculum=curriculum)
    run = run_folder.load(folder)
    assert results.run_title(run) == name and results.group_labels([[run]]) == [name]


def test_a_run_of_no_steps_and_one_of_an_outside_file_are_no_method(make_run):
    run = run_folder.load(make_run("run"))
    settings = {"label": "", "num_steps": 0}
    bare = dataclasses.replace(run, config=run.config | settings)
    assert (results.method(bare), results.run_title(bare)) == ("zero_shot", "Zero-shot")
    named = dataclasses.replace(run, config=run.config | settings | {"label": "medloc"})
    assert results.run_title(named) == "medloc, num_steps=0"
    detector = dataclasses.replace(run, config=settings | {"label": "sft", "method": "predictions"})
    assert results.run_title(detector) == "sft, method=predictions, num_steps=0"


def test_what_no_number_hangs_on_names_no_group(make_run):
    folders = [make_run(f"g{size}", group_size=size) for size in (4, 8)]
    for number, folder in enumerate(folders):
        _edit_config(folder, checkpoint={"every": number}, log={"a": number}, mesh={"b": number})
    groups = [[run_folder.load(folder)] for folder in folders]
    assert results.group_labels(groups)[0] == "MedLoc (piecewise), rl.group_size=4"
    for folder in folders:
        _edit_config(folder, rl={"group_size": 8})
    groups = [[run_folder.load(folder)] for folder in folders]
    assert results.group_labels(groups)[0].startswith("MedLoc (piecewise), checkpoint.every=0")


@pytest.mark.parametrize("name", sorted(methods.METHODS))
@pytest.mark.parametrize("base", [config.default_config, lambda: config.paper_config("grpo")])
def test_every_method_as_it_is_applied_has_its_title(name, base):
    applied = json.loads(config.apply_method(base(), name).to_json_best_effort())
    assert results.departures(applied) == {}
    run = run_folder.Run(Path("x"), applied, (), (), (), ())
    assert results.run_title(run) == methods.TITLES[name]


def test_old_files_name_their_data_set_by_the_manifest(runs, tmp_path):
    manifest = tmp_path / "some" / "manifest.jsonl"
    manifest.parent.mkdir()
    run = run_folder.load(runs[0])
    run.config["data"] = {"manifest": str(manifest)}
    assert results.data_set(run, []) == "some"
    manifest.write_text('{"id": "a", "source": "tn3k"}\n')
    assert results.data_set(run, []) == "tn3k"
    manifest.write_text('{"id": "a"}\n')
    with pytest.raises(ValueError, match='line 1 has no "source"'):
        results.data_set(run, [])
    run.config["data"] = {"manifest": "synthetic", "synthetic": {"variant": "nodules"}}
    assert results.data_set(run, [{"source": "synthetic"}]) == "synthetic nodules"


def test_a_seed_that_is_there_twice_is_refused(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "copy")
    with pytest.raises(ValueError, match="fixed/42 and .*copy are the same experiment.*seed 42"):
        result_tables.of_runs([run_folder.load(folder) for folder in (*runs, tmp_path / "copy")])


def test_files_of_two_evaluations_are_seen(runs):
    name = "predictions.jsonl"
    shutil.copy(runs[2] / "eval/val-0" / name, runs[0] / "eval/test-119" / name)
    with pytest.raises(ValueError, match="metrics.json says A@0.5 .*different evaluations"):
        result_tables.of_runs([run_folder.load(folder) for folder in runs])


def test_the_split_is_chosen_or_named(runs):
    loaded = [run_folder.load(folder) for folder in runs]
    made = result_tables.of_runs(loaded, result_tables.Options(split="val"))
    record = made.tables[0].records[0]
    path = next((runs[0] / "eval").glob("val-119/metrics.json"))
    assert record["kind"] == "floor"
    assert record["mean"] == pytest.approx(100 * json.loads(path.read_text())["floor"]["a50"])
    with pytest.raises(ValueError, match="--split=train: no run was evaluated on it, but on test"):
        result_tables.of_runs(loaded, result_tables.Options(split="train"))


def test_runs_without_predictions_keep_their_row_and_lose_their_interval(runs):
    for folder in runs[:2]:
        (folder / "eval/test-119/predictions.jsonl").unlink()
    made = result_tables.of_runs([run_folder.load(folder) for folder in runs])
    assert any("fixed/42: no predictions of test" in line for line in made.missing)
    comparison = made.tables[1].records[0]
    assert comparison["low"] is None and comparison["p"] is not None
