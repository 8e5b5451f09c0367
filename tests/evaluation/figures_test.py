# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
from PIL import Image

from medloc_jax import curriculum
from medloc_jax.evaluation import (
    comparison,
    figures,
    figures_answers,
    figures_arms,
    figures_settings,
    plot_style,
    run_folder,
)
from medloc_jax.evaluation.document import Heading, Picture
from tests.evaluation import made_runs

SMALL = {"num_steps": 40, "examples": 12, "pictures": 6}


def _load(folders):
    return [run_folder.load(folder) for folder in folders]


def _is_drawn(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("L")).std() > 5


@pytest.fixture(scope="module")
def methods(tmp_path_factory):
    root = tmp_path_factory.mktemp("methods")
    return _load(made_runs.write_methods(root, ("fixed", "medloc", "medloc_linear"), **SMALL))


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    root = tmp_path_factory.mktemp("windows")
    return _load(made_runs.write_settings(root, "window", (30, 5), **SMALL))


def test_what_the_runs_hold_is_drawn_and_the_rest_is_named_with_its_cure(methods, tmp_path):
    missing = []
    blocks = figures.blocks(methods, tmp_path, missing)
    drawn = {block.file: block for block in blocks if isinstance(block, Picture)}
    assert set(drawn) == {
        "figure_1_rewards_and_threshold.png",
        "figure_3_accuracy.png",
        "figure_4_examples.png",
        "figure_5_step_size_forms.png",
        "zero_advantage_rate.png",
        "iou_by_method.png",
        "accuracy_by_class.png",
        "accuracy_by_size.png",
        "calibration.png",
        "failures.png",
    }
    assert all(_is_drawn(tmp_path / file) for file in drawn)
    assert [file for file, block in drawn.items() if block.photo] == ["figure_4_examples.png"]
    assert len(missing) == 2
    assert "Figure 6" in missing[0] and "curriculum.step_size_start" in missing[0]
    assert "Figure 7" in missing[1] and "a sweep over it" in missing[1]


def test_runs_that_hold_nothing_get_no_figure(methods, tmp_path):
    runs = _load(methods[index].folder for index in (0, 2))
    bare = [run_folder.Run(run.folder, run.config, ({"step": 0},), (), (), ()) for run in runs]
    missing = []
    assert figures.blocks(bare, tmp_path, missing) == []
    assert len(missing) == len(figures.FIGURES) and not list(tmp_path.iterdir())


def test_other_data_get_other_figures(windows, methods, tmp_path, monkeypatch):
    monkeypatch.setattr(
        figures, "FIGURES", {"Groups without signal": figures.FIGURES["Groups without signal"]}
    )
    names = {id(run): "one" for run in windows} | {id(run): "two" for run in methods}
    monkeypatch.setattr(figures_arms.results, "data_set", lambda run, _: names[id(run)])
    blocks = figures.blocks([*windows, *methods], tmp_path, [])
    assert [b.text for b in blocks if isinstance(b, Heading)] == [
        "Groups without signal: one",
        "Groups without signal: two",
    ]
    files = [block.file for block in blocks if isinstance(block, Picture)]
    assert len(set(files)) == 2 and all((tmp_path / file).is_file() for file in files)


def test_settings_are_drawn_in_their_order_with_the_last_evaluation(windows, tmp_path):
    arms = figures_arms.arms(windows)
    family = figures_arms.by_setting(arms, "curriculum.window")
    assert list(family) == [5, 30]
    [picture] = figures_settings.windows(arms, tmp_path)
    assert _is_drawn(tmp_path / picture.file)
    assert "curriculum.refresh_fraction" in picture.caption
    with pytest.raises(figures_arms.NotThere, match="step_size_start"):
        figures_settings.step_sizes(arms, tmp_path)


def test_arms_that_differ_in_two_settings_are_no_family(windows):
    def with_setting(run, section, name, value):
        config = json.loads(json.dumps(run.config))
        config.setdefault(section, {})[name] = value
        return run_folder.Run(run.folder, config, run.rows, run.rollouts, run.evaluations, ())

    changed = [
        with_setting(run, "rl", "group_size", 4) if run.config["curriculum"]["window"] == 5 else run
        for run in windows
    ]
    assert figures_arms.by_setting(figures_arms.arms(changed), "curriculum.window") == {}
    # What tuning chooses for each arm may differ.
    rate = {5: 1e-6, 30: 3e-6}
    tuned = [
        with_setting(run, "optim", "learning_rate", rate[run.config["curriculum"]["window"]])
        for run in windows
    ]
    assert len(figures_arms.by_setting(figures_arms.arms(tuned), "curriculum.window")) == 2


def test_a_band_is_over_steps_that_all_runs_reached():
    long = run_folder.Series(np.array([0, 1, 2, 3]), np.array([0.0, 1.0, 2.0, 30.0]))
    short = run_folder.Series(np.array([0, 2]), np.array([2.0, 4.0]))
    none = run_folder.Series(np.zeros(0, np.int64), np.zeros(0))
    band = figures_arms.band([long, none, short])
    assert band.steps.tolist() == [0, 2] and band.mean.tolist() == [1.0, 3.0]
    assert band.deviation == pytest.approx([np.sqrt(2), np.sqrt(2)]) and band.num_runs == 2
    assert figures_arms.band([none]).num_runs == 0
    assert figures_arms.band([long]).deviation.tolist() == [0.0] * 4


def test_a_threshold_is_there_where_the_reward_asks_for_one(methods):
    for name in curriculum.SCHEDULES:
        config = {"curriculum": {"schedule": name}}
        run = run_folder.Run(methods[0].folder, config, (), (), (), ())
        shape = curriculum.make_schedule(name, num_steps=10).reward_shape
        assert run.has_threshold == (shape in ("hit", "iou_if_hit"))
    rivals = run_folder.Run(
        methods[0].folder, {"curriculum": {"schedule": "rivals"}}, methods[0].rows, (), (), ()
    )
    assert len(figures_arms.curve(rivals, "curriculum/threshold").steps) == 0
    assert comparison._threshold_reached(rivals) == "-"


def test_forms_of_the_step_size_may_start_elsewhere(methods):
    def start(run, value):
        config = json.loads(json.dumps(run.config))
        config["curriculum"]["threshold_start"] = value
        return run_folder.Run(run.folder, config, run.rows, run.rollouts, run.evaluations, ())

    runs = [start(run, 0.3 if run.config["label"] == "medloc" else 0.2) for run in methods]
    family = figures_arms.by_setting(figures_arms.arms(runs), "curriculum.step_size")
    assert set(family) == {"piecewise", "linear"}


def test_raw_iou_has_no_threshold(methods):
    assert len(figures_arms.curve(methods[0], "curriculum/threshold").steps) == 40
    config = {**methods[0].config, "curriculum": {"schedule": "raw_iou"}}
    raw = run_folder.Run(methods[0].folder, config, methods[0].rows, (), (), ())
    assert len(figures_arms.curve(raw, "curriculum/threshold").steps) == 0


def test_a_share_grid_keeps_absent_kinds_apart_from_none_right(tmp_path):
    shares = np.array([[0.0, np.nan], [0.5, 1.0]])
    grid = figures_answers.Grid(["a", "b"], ["x", "y"], [3, 4], shares)
    figures_answers.share_grid(tmp_path / "grid.png", grid, title="A@0.5", label="class")
    assert _is_drawn(tmp_path / "grid.png")


def test_no_two_of_many_methods_look_alike():
    styles = plot_style.line_styles([f"method {index}" for index in range(77)])
    looks = {(s["color"], s["linestyle"], s["marker"]) for s in styles.values()}
    assert len(looks) == 77
    first = list(styles.values())[:15]
    assert len({(s["color"], s["linestyle"]) for s in first}) == 15
