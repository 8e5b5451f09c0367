# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Numbers by hand, and the rule of the recommendation on policies of known kinds."""

import json

import numpy as np
import pytest
from PIL import Image

from medloc_jax import config
from medloc_jax.evaluation import diagnose, diagnose_plot, diagnose_text, sampled_groups

CURRICULUM = config.default_config().curriculum
# Two groups of four: one is divided at 0.3 and 0.5, one only has misses from 0.3 on.
IOUS = np.array([[0.2, 0.4, 0.6, 0.6], [0.0, 0.1, 0.1, 0.2]])


def _recommend(groups, **changes):
    options = {
        "regimes": CURRICULUM.regimes,
        "target": CURRICULUM.threshold_target,
        "margin": CURRICULUM.margin,
    }
    return diagnose.recommend(groups, **options | changes)


def _policy(mean, between, within, *, num_groups=400, valid=1.0, seed=0):
    """Groups of eight whose IoUs scatter by `between` over examples and `within` a group."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(mean, between, (num_groups, 1))
    ious = np.clip(centre + rng.normal(0, within, (num_groups, 8)), 0, 1)
    said = rng.random(ious.shape) < valid
    return sampled_groups.Groups(np.where(said, ious, 0.0), said)


def test_the_numbers_of_a_threshold():
    one = diagnose.at_threshold(IOUS, 0.5)
    assert one["hit_rate"] == 0.25 and one["reward_variance"] == pytest.approx(3 / 16)
    assert (one["all_hit"], one["all_miss"], one["zero_advantage_rate"]) == (0, 0.5, 0.5)
    assert one["signal"] == pytest.approx((0.25 + 0) / 2)
    assert diagnose.at_threshold(IOUS, 0.1)["signal"] == pytest.approx(3 / 32)
    # An IoU that is exactly the threshold is a hit, as on the device.
    assert diagnose.at_threshold(np.array([[0.7, 0.699]]), 0.7)["hit_rate"] == 0.5


def test_the_signal_is_the_rewards_variance_within_groups():
    ious = np.random.default_rng(0).random((50, 8))
    rewards = (ious >= 0.4).astype(float)
    one = diagnose.at_threshold(ious, 0.4)
    assert one["signal"] == pytest.approx(rewards.var(axis=1).mean())
    assert one["reward_variance"] == pytest.approx(rewards.var())
    rates = rewards.mean(axis=1)
    assert one["reward_variance"] == pytest.approx(one["signal"] + rates.var())


def test_the_raw_iou_and_the_thirds_by_size():
    equal = np.array([[0.5, 0.5], [0.5, 0.7], [0.1, 0.2]])
    measured = diagnose.measure(sampled_groups.Groups(equal, areas=np.array([0.9, 0.1, 0.4])))
    raw = measured["raw_iou"]
    assert raw["zero_advantage_rate"] == pytest.approx(1 / 3)
    assert raw["signal"] == pytest.approx((0.01 + 0.0025) / 3)
    small, middle, large = measured["by_size"]
    assert small["name"] == "small" and small["areas"] == [0.1, 0.1]
    assert small["by_threshold"][5] == diagnose.at_threshold(equal[1:2], 0.6)
    assert large["raw_iou"]["zero_advantage_rate"] == 1
    assert middle["num_groups"] == 1 and measured["valid_rate"] is None


def test_a_sloppy_start_is_past_the_papers_threshold():
    """As the warm starts of this repository: nearly all reach 0.3, half 0.5 and few 0.8."""
    advice = _recommend(_policy(0.5, 0.13, 0.07))
    assert 0.45 <= advice["threshold_start"] <= 0.6
    assert any("tau0 = 0.3 has nearly no signal here" in one for one in advice["warnings"])
    # In every such run the raw IoU had spread everywhere and won.
    assert advice["schedule"] == "raw_iou"


def test_the_papers_threshold_is_not_warned_of_where_it_divides():
    advice = _recommend(_policy(0.3, 0.03, 0.1))
    assert 0.25 <= advice["threshold_start"] <= 0.4 and advice["warnings"] == []


def test_a_margin_that_would_hold_back_is_lowered():
    """A hit rate of 0.8 at a mean IoU 0.094 above: the margin of 0.10 held the replica's run."""
    narrow, wide = _policy(0.46, 0.05, 0.05), _policy(0.46, 0.05, 0.25)
    by_hand = float(narrow.ious.mean() - np.quantile(narrow.ious, 0.2))
    advice = _recommend(narrow, regimes=((1.01, 0.8, 0.2),))
    assert advice["surplus"][0]["surplus"] == pytest.approx(by_hand) and by_hand < 0.1
    assert by_hand - 0.01 < advice["margin"] <= by_hand
    assert _recommend(wide, regimes=((1.01, 0.8, 0.2),))["margin"] == CURRICULUM.margin
    # A median asks for no surplus at all, and the regimes below tau0 do not count.
    assert _recommend(narrow)["margin"] < advice["margin"]
    assert [one["below"] for one in _recommend(_policy(0.7, 0.05, 0.05))["surplus"]] == [0.75, 1.01]


@pytest.mark.parametrize(
    ("groups", "named"),
    [
        (_policy(0.5, 0.1, 0.1, valid=0.3), "have a box"),
        (_policy(0.5, 0.1, 0.0), "two different IoUs"),
        (_policy(0.02, 0.01, 0.01), "not near the target"),
    ],
)
def test_sft_comes_first_where_nothing_can_be_compared(groups, named):
    advice = _recommend(groups)
    assert advice["schedule"] == "sft_first" and advice["threshold_start"] is None
    assert named in advice["reasons"][0] and advice["warnings"] == []


@pytest.mark.parametrize("iou", [0.85, 1.0])
def test_a_finished_policy_is_not_sent_back_to_sft(iou):
    groups = sampled_groups.Groups(np.full((200, 8), iou))
    advice = _recommend(groups)
    assert advice["schedule"] == "no_differences" and advice["threshold_start"] is None
    assert "has converged, or is sampled too cold" in advice["reasons"][0]
    text = diagnose_text.to_text("a run", diagnose.measure(groups), advice)
    assert "SFT" not in text and "rl.temperature" in text


def test_no_start_is_named_that_train_refuses():
    """Above threshold_target there is no curriculum."""
    groups = _policy(0.9, 0.02, 0.03)
    advice = _recommend(groups)
    assert advice["schedule"] == "raw_iou"
    assert advice["threshold_start"] > CURRICULUM.threshold_target
    text = diagnose_text.to_text("a run", diagnose.measure(groups), advice)
    assert "threshold_start" not in text
    higher = _recommend(groups, target=0.95)
    assert "threshold_start" in diagnose_text.to_text("a", diagnose.measure(groups), higher)


def test_medloc_and_fixed_where_the_raw_iou_does_not_lead():
    # Half of the groups have equal IoUs, and those that differ are divided.
    ious = np.where(np.arange(400)[:, None] % 10 < 7, [[0.2, 0.7] * 4], 0.5)
    assert _recommend(sampled_groups.Groups(ious))["schedule"] == "medloc"
    high = np.where(np.arange(400)[:, None] % 10 < 7, [[0.7, 0.92] * 4], 0.95)
    advice = _recommend(sampled_groups.Groups(high))
    assert advice["schedule"] == "fixed" and advice["threshold_start"] == 0.9
    # Undivided advantages: small differences of the IoU are small gradients.
    sloppy = _policy(0.46, 0.10, 0.08)
    assert _recommend(sloppy, normalised=False)["schedule"] == "medloc"


def test_few_groups_are_said_to_be_few():
    assert any("+-" in one for one in _recommend(_policy(0.4, 0.1, 0.1, num_groups=20))["warnings"])


@pytest.mark.parametrize("areas", [None, np.linspace(0.01, 0.5, 400)])
def test_the_text_and_the_picture_say_what_was_measured(tmp_path, areas):
    groups = _policy(0.46, 0.10, 0.08)
    groups = sampled_groups.Groups(groups.ious, groups.valid, areas)
    measured, advice = diagnose.measure(groups), _recommend(groups)
    json.dumps(measured | advice, allow_nan=False)
    text = diagnose_text.to_text("a run", measured, advice)
    half = measured["by_threshold"][4]
    (row,) = [line for line in text.splitlines() if line.startswith(" IoU>=0.5")]
    assert f"{half['hit_rate']:.1%}" in row and f"{half['signal']:.3f}" in row
    assert ("1.0% to 17" in text) == (areas is not None)
    assert f"threshold_start={advice['threshold_start']:g}" in text
    diagnose_plot.draw(tmp_path / "x.png", "a run", measured, advice)
    pixels = np.asarray(Image.open(tmp_path / "x.png").convert("L"))
    assert pixels.std() > 10
