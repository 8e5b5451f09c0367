# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What is inconsistent is refused, with the field, its value and the cure in one line."""

from pathlib import Path

import pytest

from medloc_jax import config as configuration
from medloc_jax.cli import validate


def _with(**changes):
    config = configuration.default_config()
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in changes.items()}
    )
    return config


def test_the_defaults_pass():
    validate.check(_with())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "gpro"}, "method='gpro': choose one of sft, grpo; did you mean 'grpo'?"),
        ({"model__compute_dtype": "bf16"}, "model.compute_dtype='bf16'.*bfloat16"),
        ({"model__attention": "flash"}, "model.attention='flash': choose one of auto, xla"),
        ({"model__attention": "cudnn"}, "model.attention='cudnn' computes in bfloat16, not"),
        ({"model__remat": "dot"}, "model.remat='dot': .*did you mean 'dots'"),
        ({"data__template": "boxes"}, "data.template='boxes'.*did you mean 'box'"),
        ({"data__augment": ("flip",)}, "data.augment='flip'"),
        ({"data__synthetic__variant": "hard"}, "data.synthetic.variant='hard'"),
        ({"eval__split": "valid"}, "eval.split='valid'.*did you mean 'val'"),
        ({"eval__final_split": "tests"}, "eval.final_split='tests'"),
        ({"optim__schedule": "cosine"}, "optim.schedule='cosine'"),
        ({"rl__advantage_std": "std"}, "rl.advantage_std='std'"),
        ({"rl__ratio_level": "tokens"}, "rl.ratio_level='tokens'.*'token'"),
        ({"rl__loss_aggregation": "mean"}, "rl.loss_aggregation='mean'"),
        ({"rl__group_size": 1}, "rl.group_size=1: .*set it to 2 or more"),
        ({"rl__temperature": 0.0}, "rl.temperature=0.0: it must be above 0"),
        ({"rl__temperature": float("nan")}, "rl.temperature=nan"),
        ({"num_steps": -1}, "num_steps=-1: it must be at least 0"),
        ({"num_steps": 0, "eval__at_start": False}, "num_steps=0 only evaluates, .*eval.at_start"),
        ({"rl__num_updates": 0}, "rl.num_updates=0: it must be at least 1"),
        ({"rl__kl_weight": -0.1}, "rl.kl_weight=-0.1: it must be at least 0"),
        ({"rl__kl_weight": float("nan")}, "rl.kl_weight=nan"),
        (
            {"data__feature_cache": "f", "model__freeze_vision": False},
            "data.feature_cache='f': model.freeze_vision is False.*; set it to ''",
        ),
        ({"data__feature_cache": "f", "data__augment": ("rescale",)}, "'rescale'.*a new one"),
        ({"data__feature_cache": "gs://b/f"}, "must be a folder of this machine"),
        ({"data__feature_cache": "f", "method": "sft"}, "SFT does not read it"),
        ({"data__feature_cache": "f", "data__feature_cache_gb": 0.0}, "feature_cache_gb=0.0"),
        ({"rl__importance_cap": -1.0}, "rl.importance_cap=-1.0: it must be at least 0"),
        ({"checkpoint__every": 0}, "checkpoint.every=0"),
        ({"rewards__weights__localization": 0.0}, "rewards.weights are all 0"),
        ({"rewards__weights__semantic": 1.0}, "semantic=1.0, and nothing scores it: set rewards"),
        ({"rewards__semantic_scorer": "no.such:f"}, "rewards.semantic_scorer='no.such:f'"),
        ({"curriculum__schedule": "medlock"}, "medlock"),
        ({"log__profile_steps": (5, 3)}, r"log.profile_steps=\(5, 3\): give \(first, last\)"),
        ({"log__profile_steps": (0, 3)}, r"log.profile_steps=\(0, 3\)"),
        ({"curriculum__window": 0}, "window"),
        ({"curriculum__criteria": ("luck",)}, "luck"),
    ],
)
def test_what_cannot_work_is_refused(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        validate.check(_with(**changes))
    assert "\n" not in str(error.value)


def test_a_reward_term_that_does_not_exist_is_refused():
    config = _with()
    with config.unlocked():
        config.rewards.weights.format_ = 1.0
    with pytest.raises(ValueError, match="rewards.weights='format_'.*did you mean 'format'"):
        validate.check(config)


def test_how_long_and_where_a_run_goes_on_is_free():
    free = {
        "num_steps": 5,
        "eval__every": 3,
        "checkpoint__every": 2,
        "log__rollouts_every": 1,
        "mesh__fsdp": 1,
        "data__num_threads": 7,
        "data__feature_cache": "features",
    }
    validate.check_same_run(_with(), _with(**free), Path("runs/x"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, r"runs/x holds another run \(seed 42 -> 1\): set these back"),
        ({"data__manifest": "m.jsonl"}, "data.manifest 'synthetic' -> 'm.jsonl'"),
        (
            {"rl__group_size": 4, "model__init_from": "a"},
            "model.init_from .*; rl.group_size 8 -> 4",
        ),
        (
            {"seed": 1, "rl__group_size": 4, "rl__clip_low": 0.1, "rl__kl_weight": 0.0},
            "and 1 more.*choose another --workdir",
        ),
    ],
)
def test_another_run_is_told_by_what_differs(changes, message):
    with pytest.raises(ValueError, match=message):
        validate.check_same_run(_with(), _with(**changes), Path("runs/x"))
