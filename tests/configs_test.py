# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Every experiment file loads and validates; those of the paper build their step abstractly."""

import importlib.util
import math
import re
from pathlib import Path

import jax
import pytest

from medloc_jax import methods
from medloc_jax.cli import job as open_job
from medloc_jax.cli import sweep_runs, sweep_state, validate
from medloc_jax.curriculum import make_schedule
from medloc_jax.curriculum import schedule as schedules
from medloc_jax.model import config as model_config
from medloc_jax.planning import abstract
from medloc_jax.rewards import semantic
from medloc_jax.training import grpo, sft
from medloc_jax.training import job as jobs

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
DATA_SETS, SIZES = ("ham10000", "heel", "tn3k"), ("3b", "7b", "32b")
SWEEPS = sorted((CONFIGS / "sweeps").glob("*.py"))
EXPERIMENTS = sorted(set(CONFIGS.rglob("*.py")) - set(SWEEPS))


def _load(path, *variant):
    spec = importlib.util.spec_from_file_location("experiment", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*variant)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_validates_and_names_itself(path):
    config = _load(path)
    validate.check(config)
    text = path.read_text()
    assert f"--config={path.relative_to(CONFIGS.parent)}" in text  # its command


def test_the_papers_runs_are_all_there():
    names = {f"{data}_{size}.py" for data in DATA_SETS for size in SIZES}
    for method in ("grpo", "sft"):
        assert {path.name for path in (CONFIGS / method).glob("*.py")} >= names
        for name in names:
            config = _load(CONFIGS / method / name)
            assert config.method == method and config.num_steps == 1000
            assert name == f"{Path(config.data.manifest).parent.name}_{config.model.preset}.py"


@pytest.mark.parametrize("data", DATA_SETS)
def test_the_values_of_the_paper(data):
    config = _load(CONFIGS / "grpo" / f"{data}_3b.py")
    rl, curriculum, optim = config.rl, config.curriculum, config.optim
    assert (rl.group_size, rl.prompts_per_step, rl.temperature, rl.kl_weight) == (8, 8, 0.9, 0.04)
    assert (curriculum.threshold_start, curriculum.threshold_target) == (0.3, 0.8)
    assert curriculum.window == 30 and curriculum.margin == 0.1 and optim.learning_rate == 1e-6
    # The rate decays over five epochs of the set, of which 1000 steps are run.
    left = 1 - 1000 / optim.total_steps
    assert left == pytest.approx({"ham10000": 0.80, "heel": 0.49, "tn3k": 0.40}[data], abs=0.005)
    assert jobs.learning_rate(config, 1000) == pytest.approx(left * 1e-6)


def test_as_written_takes_the_paper_literally():
    config = _load(CONFIGS / "grpo/tn3k_7b.py", "medloc_as_written")
    validate.check(config)
    rl = config.rl
    assert (rl.kl_weight, rl.advantage_std, rl.ratio_level) == (
        0.4,
        "population_inside",
        "sequence",
    )
    assert not rl.skip_no_signal and not config.model.freeze_vision
    assert config.data.template == "medloc" and config.rewards.weights.format == 0
    assert config.data.val_fraction == 0 and config.curriculum.window_unit == "prompt"
    with pytest.raises(ValueError, match="choose of medloc, medloc_as_written"):
        _load(CONFIGS / "grpo/tn3k_7b.py", "as_written")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("variant", ["medloc", "medloc_as_written", "sft"])
def test_the_step_builds_at_its_true_size(size, variant):
    """Shapes, shardings and dtypes of the whole update, without an array."""
    if variant == "sft":
        config = _load(CONFIGS / "sft" / f"ham10000_{size}.py")
    else:
        config = _load(CONFIGS / "grpo" / f"ham10000_{size}.py", variant)
    made = abstract.make(config, abstract.make_mesh(config))
    trained, frozen = (
        sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
        for tree in (made.placement.trainable, made.placement.frozen)
    )
    assert trained + frozen == model_config.num_parameters(made.job.model.config)
    assert (frozen > 0) == config.model.freeze_vision
    chain = jobs.make_optimizer(config)
    if variant == "sft":
        _, args = made.tasks["sft_step"]
        new, _ = jax.eval_shape(sft.make_update(made.job, chain), *args)
    else:
        _, args = made.tasks["grpo_step"]
        step = grpo.make_update(made.job, chain, "hit")
        new, metrics, rewards = jax.eval_shape(step, *args)
        assert rewards.shape == (8, config.rl.group_size) and "grpo/kl" in metrics
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(
        lambda x: (x.shape, x.dtype), args[0]
    )


def test_large_weights_of_the_papers_models_are_split():
    """On eight devices no array of 100 MB is whole on one of them."""
    for size in SIZES:
        config = _load(CONFIGS / "grpo" / f"heel_{size}.py")
        job = abstract.make(config, abstract.make_mesh(config)).job
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            open_job.params_struct(job.model, job.mesh)
        ):
            held = math.prod(leaf.sharding.shard_shape(leaf.shape))
            large = math.prod(leaf.shape) * 4 > 100e6
            assert not large or held < math.prod(leaf.shape), (size, path)


WITH_METHODS = [path for path in EXPERIMENTS if "sft" not in path.parent.name + path.stem]


@pytest.mark.parametrize("path", WITH_METHODS, ids=lambda path: path.stem)
def test_every_experiment_takes_every_method(path):
    for name in methods.METHODS:
        config = _load(path, name)
        if config.rewards.weights.semantic:
            config.rewards.semantic_scorer = next(iter(semantic.SCORERS))
        validate.check(config)
    with pytest.raises(ValueError, match="'raw-iou' is no method: .*did you mean 'raw_iou'"):
        _load(path, "raw-iou")


@pytest.mark.parametrize("name", [f"{data}_{size}.py" for data in DATA_SETS for size in SIZES])
def test_sft_is_the_same_as_a_variant_and_as_a_file(name):
    variant, file = _load(CONFIGS / "grpo" / name, "sft"), _load(CONFIGS / "sft" / name)
    assert validate.differences(file, variant, ("label",)) == []


# ---- sweeps ----


def _plan(path, *variant, seeds=(), changes=None):
    changes = changes or {"rewards.semantic_scorer": next(iter(semantic.SCORERS))}
    return sweep_runs.Plan(_load(path, *variant), "runs/x", seeds=seeds, changes=changes)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_run_of_every_sweep_validates(path, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    runs = list(sweep_runs.every(_plan(path, seeds=(42,)), {}))
    sweep_state.check(runs)
    assert len({run.folder for run in runs}) == len(runs)
    text = path.read_text()
    assert f"--config={path.relative_to(CONFIGS.parent)}" in text
    # Two arms that are the same run would be compared with each other.
    settings = [
        (
            run.experiment,
            str(sorted((k, str(v)) for k, v in run.changes.items() if k not in ("label",))),
        )
        for run in runs
        if run.kind == "run"
    ]
    assert len(set(settings)) == len(settings)


def _schedules(name):
    """By arm, the schedule of every run of a sweep."""
    plan = _plan(CONFIGS / f"sweeps/{name}.py", seeds=(42,))
    configs = {run.arm: sweep_runs.expected(run) for run in sweep_runs.every(plan, {})}
    return {
        arm: make_schedule(
            config.curriculum.schedule, num_steps=1000, **config.curriculum.to_dict()
        )
        for arm, config in configs.items()
    }


def _ladder(schedule):
    """The thresholds that an always right policy sees."""
    seen = [schedule.threshold]
    for _ in range(400):
        schedule.update([[1.0, 1.0]])
        if schedule.threshold > seen[-1]:
            seen.append(schedule.threshold)
    return seen


def test_table_2_has_seven_rows_in_both_window_units(monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    by_unit = {"step": [], "prompt": []}
    for schedule in _schedules("table2").values():
        by_unit[schedule.options.window_unit].append(frozenset(schedule.options.criteria))
    assert all(len(set(rows)) == 7 for rows in by_unit.values())


def test_table_3_is_the_fixed_strategies(monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    found = _schedules("table3")
    for name, options in schedules.FIXED_STRATEGIES.items():
        mine = vars(found[name].options)
        assert {key: mine[key] for key in options} == options
    assert _ladder(found["piecewise"]) == [0.3, 0.45, 0.6, 0.7, 0.8]


def test_table_6_climbs_as_the_rows_say(monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    ladders = {name: _ladder(schedule) for name, schedule in _schedules("table6").items()}
    assert ladders == {
        "row1_55": [0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8],
        "row1_50": [0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8],
        "row2_55": [0.3, 0.45, 0.6, 0.7, 0.8],
        "row2_50": [0.3, 0.45, 0.6, 0.7, 0.8],
        "row3_60": [0.3, 0.5, 0.7, 0.8],
        "row4_60": [0.3, 0.55, 0.8],
    }


@pytest.mark.parametrize("data", ["synthetic", "ham10000"])
def test_the_replica_gives_every_method_the_same_budget(monkeypatch, data):
    monkeypatch.chdir(CONFIGS.parent)
    plan = _plan(CONFIGS / "sweeps/replica.py", data, changes={"model.remat": "none"})
    chosen = {arm.name: 1e-4 for arm in plan.arms}
    runs = list(sweep_runs.every(plan, chosen))
    tries = [sum(r.arm == a.name and r.kind == "tuning" for r in runs) for a in plan.arms]
    of = {run.arm: sweep_runs.expected(run) for run in runs if run.kind == "run"}
    assert set(tries) == {0, 3} and tries[0] == 0 and plan.arms[0].name == "zero_shot"
    for name, config in of.items():
        assert config.model.init_from == "runs/x/warm_start" and config.eval.split == "val"
        assert config.data.val_fraction == 0.1 and config.eval.final_split == "test"
        assert config.num_steps == (0 if name == "zero_shot" else of["medloc"].num_steps)
        rows = config.sft.batch_size if config.method == "sft" else config.rl.prompts_per_step
        assert rows == 8 and config.rl.group_size == 8
    seeds = {name: {run.changes["seed"] for run in runs if run.arm == name} - {41} for name in of}
    assert all(len(found) == (1 if name == "zero_shot" else 5) for name, found in seeds.items())


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_report_of_every_sweep_is_not_refused_and_has_differences(path, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    sweep = _load(path)
    assert (sweep.reference or "medloc") in [arm.name for arm in sweep.arms]
    text = path.read_text()
    words = [f"--allow={kind}" for kind in sweep.allow]
    words += [f"--reference={sweep.reference}"] if sweep.reference else []
    if words:
        assert re.search(rf"^medloc report runs/\S+ {' '.join(words)}$", text, re.M)
    runs = [run for run in sweep_runs.every(_plan(path, seeds=(42,)), {}) if run.kind == "run"]
    trained = [one for one in map(sweep_runs.expected, runs) if one.num_steps]
    budgets = {
        (
            one.num_steps,
            one.model.init_from,
            one.data.val_fraction,
            one.rl.prompts_per_step,
            one.rl.group_size if one.method == "grpo" else 8,
        )
        for one in trained
    }
    assert (len(budgets) > 1) == ("budget" in sweep.allow)


def test_a_sweep_for_a_laptop_varies_the_file_it_is_given(monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    sweep = _load(CONFIGS / "sweeps/table2.py")
    sweep.base = "configs/ham10000_tiny.py"
    runs = list(sweep_runs.every(sweep_runs.Plan(sweep, "runs/x", seeds=(42,)), {}))
    sweep_state.check(runs)
    assert {sweep_runs.expected(run).model.preset for run in runs} == {"tiny"}
