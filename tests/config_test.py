# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The configuration is locked, fresh, explained and JSON-able."""

import json

import pytest

from medloc_jax import config


def _fields(node, prefix=""):
    for name, value in node.items():
        if hasattr(value, "items"):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def test_a_misspelt_field_is_an_error():
    with pytest.raises(AttributeError, match="grup_size"):
        config.default_config().rl.grup_size = 4


def test_every_call_gives_a_fresh_config():
    first = config.default_config()
    first.rl.group_size += 1
    assert config.default_config().rl.group_size == first.rl.group_size - 1


def test_a_config_survives_json():
    for name, value in _fields(config.default_config()):
        if isinstance(value, tuple):
            value = json.loads(json.dumps(value))
            assert isinstance(value, list), name
        else:
            assert json.loads(json.dumps(value)) == value, name


def test_names_that_others_set_from_outside_stay():
    fields = dict(_fields(config.default_config()))
    names = """method seed num_steps model.preset model.init_from data.manifest data.template
        rl.group_size rl.prompts_per_step rl.kl_weight rl.temperature rl.num_updates
        rl.advantage_std rl.ratio_level rl.loss_aggregation rl.skip_no_signal optim.learning_rate
        eval.every checkpoint.every curriculum.schedule curriculum.step_size
        curriculum.threshold_start curriculum.threshold_target curriculum.window
        curriculum.window_unit curriculum.window_rewards curriculum.min_fill curriculum.margin
        curriculum.step_sizes curriculum.boundaries curriculum.step_size_start curriculum.regimes
        curriculum.refresh_fraction curriculum.criteria"""
    assert not set(names.split()) - set(fields)
