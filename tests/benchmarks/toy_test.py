# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The toy's rewards are the package's, its gradient its loss's, and its page says what came."""

import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks" / "replica"))

import toy  # noqa: E402
import toy_page  # noqa: E402
import toy_policy  # noqa: E402
import toy_shapes  # noqa: E402
from toy_page import Cell, Result  # noqa: E402
from toy_shapes import SHAPES  # noqa: E402

from medloc_jax.evaluation import document  # noqa: E402
from medloc_jax.rewards import combine  # noqa: E402
from medloc_jax.rl import advantages  # noqa: E402

SEEDS, PROMPTS, GROUP_SIZE = 2, 5, 8


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def made_up_ious(rng):
    """With ties, zeros, IoUs on a threshold, and a group that is all the same."""
    ious = rng.integers(0, 11, (SEEDS, PROMPTS, GROUP_SIZE)) / 10
    ious[0, 0] = 0.7
    return ious


def seen(ious, progress=0.0):
    rows = np.tile(np.arange(PROMPTS), (SEEDS, 1))
    return toy_shapes.History(SEEDS, PROMPTS, toy_shapes.ALL).seen(ious, rows, progress)


def packages_own(ious, reward_shape, threshold=0.0, rivals=1.0):
    rewards, _ = combine.combine(
        {"iou": jnp.asarray(ious, jnp.float32)},
        threshold,
        {"localization": 1.0},
        reward_shape,
        rivals,
    )
    return np.asarray(rewards)


# ---- rewards and advantages ----


def test_shapes_that_the_package_has_are_the_same_there(rng):
    ious = made_up_ious(rng)
    for name, progress, arguments in (
        ("raw_iou", 0.0, ("raw_iou",)),
        ("hit_50", 0.0, ("hit", 0.5)),
        ("hit_70", 0.0, ("hit", 0.7)),
        ("medloc", 0.0, ("hit", 0.3)),  # where MedLoc starts
        ("rivals_4", 0.5, ("rivals", 0.0, 4.0)),
        ("rivals_1_6", 0.5, ("rivals", 0.0, 3.5)),
        ("rivals_6_1", 1.0, ("rivals", 0.0, 1.0)),
    ):
        rewards = SHAPES[name].reward(seen(ious, progress))
        for ours, of_seed in zip(rewards, ious, strict=True):
            np.testing.assert_allclose(ours, packages_own(of_seed, *arguments), atol=1e-6)
    # Beating by a tie would be another shape, and is seen.
    tied = np.mean(ious[..., :, None] >= ious[..., None, :], axis=-1)
    assert np.abs(tied[0] - packages_own(ious[0], "rivals")).max() > 0.1


def test_advantages_are_the_packages_own(rng):
    ious = made_up_ious(rng)

    def error(shape):
        theirs = np.stack([advantages.group_advantages(of_seed) for of_seed in ious])
        return np.abs(shape.advantages(ious, ious) - theirs).max()

    assert error(SHAPES["raw_iou"]) < 1e-4
    for other in ("undivided", "divided_by_batch", "weight_gap", "negative_half"):
        assert error(SHAPES[other]) > 0.1


def test_every_shape_gives_more_for_a_better_box_or_the_same(rng):
    ious = rng.random((SEEDS, PROMPTS, GROUP_SIZE))
    for name, shape in SHAPES.items():
        rewards = shape.reward(seen(ious, 0.5))
        ranked = np.take_along_axis(rewards, np.argsort(ious, axis=-1), axis=-1)
        assert np.all(np.diff(ranked, axis=-1) >= 0) and np.ptp(rewards) > 0, name


def test_history_is_of_the_examples_and_steps_that_were(rng):
    history = toy_shapes.History(SEEDS, 9, toy_shapes.ALL)
    rows = np.array([[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]])
    first = np.full((SEEDS, PROMPTS, GROUP_SIZE), 0.9)
    assert np.isnan(history.seen(first, rows, 0.0).own_thresholds).all()
    for _ in range(30):
        history.update(first, rows)
    later = history.seen(first / 3, rows[::-1], 0.0)
    assert later.window.shape == (SEEDS, toy_shapes.RECENT * PROMPTS * GROUP_SIZE)
    assert later.window.min() == pytest.approx(0.3) and later.quantile(0.5) == pytest.approx(0.9)
    assert np.isnan(later.own_thresholds[0, 1:]).all()
    assert later.own_thresholds[0, 0] == later.own_thresholds[1, 4] == 0.9
    assert later.threshold == pytest.approx(0.45)  # a full window of hits moves MedLoc's


# ---- the policy ----


@pytest.fixture
def small(monkeypatch):
    for name, value in {"BINS": 6, "HIDDEN": 5, "WARM_START_STEPS": 2}.items():
        monkeypatch.setattr(toy_policy, name, value)


def test_the_gradient_is_that_of_the_loss(rng, small):
    seeds = [np.random.default_rng(seed) for seed in range(SEEDS)]
    start = toy_policy._initial(seeds, 3)
    start = {name: array.astype(np.float64) for name, array in start.items()}
    here = {name: array + 0.3 * rng.normal(size=array.shape) for name, array in start.items()}
    features = rng.normal(size=(SEEDS, PROMPTS, 3))
    tokens = rng.integers(0, 6, (SEEDS, PROMPTS, 4, GROUP_SIZE))
    wanted = rng.normal(size=(SEEDS, PROMPTS, GROUP_SIZE))

    def loss(parameters):
        return toy_policy.loss_and_gradient(parameters, start, features, tokens, wanted, 0.5)[0]

    def error(gradient):
        """Along a direction that moves every parameter, each seed by itself."""
        way = {name: rng.normal(size=array.shape) for name, array in here.items()}
        ahead, behind = (
            loss({name: here[name] + sign * 1e-5 * way[name] for name in here}) for sign in (1, -1)
        )
        expected = sum((gradient[name] * way[name]).sum(axis=(1, 2)) for name in here)
        return np.abs((ahead - behind) / 2e-5 - expected).max()

    _, gradient = toy_policy.loss_and_gradient(here, start, features, tokens, wanted, 0.5)
    assert error(gradient) < 1e-7
    _, without_kl = toy_policy.loss_and_gradient(here, start, features, tokens, wanted, 0.0)
    assert error(without_kl) > 1e-3
    for name in here:
        assert error({**gradient, name: 1.5 * gradient[name]}) > 1e-5, name


def test_tokens_come_as_often_as_the_policy_says(rng, small):
    parameters = toy_policy._initial([rng], 3)
    features = 3 * rng.normal(size=(1, 1, 3)).astype(np.float32)
    draws = 1000
    uniform = np.broadcast_to((np.arange(draws) + 0.5) / draws, (1, 1, 4, draws))
    tokens = toy_policy.sample(parameters, features, uniform)
    logits = toy_policy.forward(parameters, features)[-1] / toy_policy.TEMPERATURE
    expected = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    often = np.mean(tokens[..., None] == np.arange(6), axis=3)
    np.testing.assert_allclose(often, expected, atol=2 / draws)


@pytest.fixture
def quick(monkeypatch):
    """Next to no warm start; boxes are anywhere, and most groups have no hit."""
    sizes = {"WARM_START_STEPS": 20, "TRAIN": 40, "TEST": 20, "WARM_START": 40, "HIDDEN": 8}
    for name, value in sizes.items():
        monkeypatch.setattr(toy_policy, name, value)
    monkeypatch.setattr(toy, "cached_task", toy_policy.make_task)


def test_training_moves_the_policy_and_leaves_the_warm_start(quick):
    task = toy_policy.make_task(0.5, (0, 1))
    before = {name: array.copy() for name, array in task.start.items()}
    trained, no_signal = toy.train(task, SHAPES["medloc"], 3e-3, 3)
    again, _ = toy.train(task, SHAPES["medloc"], 3e-3, 3)
    for name in before:
        np.testing.assert_array_equal(task.start[name], before[name])
        np.testing.assert_array_equal(trained[name], again[name])
        assert np.abs(trained[name] - before[name]).max() > 0
    # Of twice the prompts, there are more groups with a signal.
    _, resampled = toy.train(task, SHAPES["medloc_resampled"], 3e-3, 3)
    assert 0 <= resampled < no_signal < 1
    # No hit, no signal: nothing moves, not even by the KL term.
    never = toy_shapes.Shape("1 if IoU >= 2", toy_shapes.hit(2.0))
    still, all_of_them = toy.train(task, never, 3e-3, 2)
    assert all_of_them == 1 and all(np.array_equal(still[name], before[name]) for name in before)


# ---- the page ----


def test_a_run_writes_its_page(quick, tmp_path, capsys):
    out = tmp_path / "TOY.md"
    arguments = ["--seeds=2", "--steps=1", "--only=best", f"--out={out}"]
    toy.main(arguments)
    text = out.read_text()
    assert f"toy.py {' '.join(arguments)}" in text and f"numpy {np.__version__}" in text
    assert "Seeds: 0, 1;" in text and "makes 8 comparisons" in text
    assert text.count("| best |") == 1 + len(toy.TASKS)
    assert "hard 0.006 best: mAP" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--only names bets: choose of raw_iou, "):
        toy.main(["--only=bets", f"--out={out}"])


def results(gain, seeds=8):
    noise = np.random.default_rng(0).normal(0, 0.01, (3, seeds))
    made = {}
    for task in ("normal", "hard"):
        made[Cell(task, 0.0, "")] = Result({"map": noise[2], "a80": noise[2]}, 0.0, 0.0)
        for rate in (3e-3, 6e-3):
            for shape, level, of_seed in (("raw_iou", 0.4, noise[0]), ("best", 0.4 + gain, 0)):
                measures = {"map": level + of_seed + noise[1], "a80": 0.1 + noise[1]}
                made[Cell(task, rate, shape)] = Result(measures, 0.25, 1.0)
    return made


def test_what_is_clearly_better_is_told_so_and_what_is_not_is_not():
    text = document.to_markdown(toy_page.page(results(0.1), ["a command"]))
    said = "mAP at every learning rate, intervals not corrected: above raw IoU best; below it none."
    assert text.count(said) == 2 and "\\*" in text
    difference = toy_page.compare(*(results(0.1)[Cell("hard", 3e-3, s)].measures["map"]
                                    for s in ("best", "raw_iou")))  # fmt: skip
    assert difference.effect == pytest.approx(10, abs=1) and difference.side == 1
    same = document.to_markdown(toy_page.page(results(0.0), ["a command"]))
    assert "above raw IoU best" not in same and "\\*" not in same.partition("normal task")[2]
    worse = document.to_markdown(toy_page.page(results(-0.1), ["a command"]))
    assert worse.count("above raw IoU none; below it best.") == 2
