# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The methods: what each sets, that nothing else changes, and how a wrong name is told."""

import pytest

from medloc_jax import config as configuration
from medloc_jax import methods
from medloc_jax.cli import validate
from medloc_jax.curriculum import baselines, make_schedule
from medloc_jax.rewards import semantic


def _config(name):
    return configuration.apply_method(configuration.default_config(), name)


def _schedule(name):
    config = _config(name)
    return make_schedule(config.curriculum.schedule, num_steps=100, **config.curriculum.to_dict())


def test_every_method_has_a_title_and_a_note():
    assert list(methods.METHODS) == list(methods.TITLES) == list(methods.NOTES)
    assert len(set(methods.TITLES.values())) == len(methods.TITLES)


@pytest.mark.parametrize("name", methods.METHODS)
def test_a_method_sets_its_fields_and_no_others(name):
    config = _config(name)
    if config.rewards.weights.semantic:
        config.rewards.semantic_scorer = next(iter(semantic.SCORERS))
    validate.check(config)
    changed = {
        line.split(" ")[0]
        for line in validate.differences(configuration.default_config(), config, ())
    }
    assert changed - {"rewards.semantic_scorer", "label"} <= set(methods.METHODS[name])
    # The default method is derived, so that a run whose schedule is changed by hand is not named
    # for another.
    assert config.label == ("" if name == methods.DEFAULT else name)


def test_sft_takes_answers_alone_on_the_batches_of_grpo():
    config = configuration.default_config()
    config.rl.prompts_per_step, config.sft.box_scale, config.sft.box_jitter = 6, 1.5, 0.1
    configuration.apply_method(config, "sft")
    assert config.method == "sft" and config.sft.batch_size == 6
    assert (config.sft.box_scale, config.sft.box_jitter) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("name", "shape", "thresholds"),
    [
        ("fixed", "hit", (0.5, 0.5, 0.5)),
        ("fixed_80", "hit", (0.8, 0.8, 0.8)),
        ("raw_iou", "raw_iou", None),
        ("boxmed", "raw_iou", None),
        ("v_triune", "iou_if_hit", (0.3, 0.5, 0.7)),
        ("v_triune_original", "iou_if_hit", (0.85, 0.95, 0.99)),
        ("medground_released", "hit", (0.5, 0.5, 0.5)),
    ],
)
def test_baselines_reward_as_they_should(name, shape, thresholds):
    schedule = _schedule(name)
    assert schedule.reward_shape == shape
    if thresholds is None:
        return
    seen = []
    for _ in range(100):
        seen.append(schedule.threshold)
        schedule.update([[0.5, 0.5]])
    assert (seen[0], seen[20], seen[99]) == thresholds


def test_the_stages_are_those_of_the_schedule():
    for name, stages in baselines.STAGES.items():
        assert methods.METHODS[name]["curriculum.stages"] == stages


def test_linear_and_cosine_start_at_a_fifth_and_move_as_the_equations_say():
    for name, second in (("medloc_linear", 0.533333), ("medloc_cosine", 0.55)):
        schedule = _schedule(name)
        seen = [schedule.threshold]
        for _ in range(100):
            schedule.update([[1.0, 1.0]])
            if schedule.threshold > seen[-1]:
                seen.append(schedule.threshold)
        assert seen[:3] == pytest.approx([0.2, 0.4, second], abs=1e-3)


@pytest.mark.parametrize(("given", "nearest"), [("raw-iou", "raw_iou"), ("medlok", "medloc")])
def test_an_unknown_method_is_one_line_with_the_nearest(given, nearest):
    with pytest.raises(ValueError, match=f"choose of medloc, .*did you mean '{nearest}'") as error:
        _config(given)
    assert "\n" not in str(error.value)
    assert all(name in str(error.value) for name in methods.METHODS)


def test_a_field_that_is_not_there_or_of_another_type_is_told():
    config = configuration.default_config()
    with pytest.raises(ValueError, match="config.rl.grup_size: no such field"):
        configuration.set_field(config, "rl.grup_size", 4)
    with pytest.raises(ValueError, match="config.rl.group_size='four'"):
        configuration.set_field(config, "rl.group_size", "four")
