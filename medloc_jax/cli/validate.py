# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Cross-checks of a configuration: what is inconsistent is refused before anything compiles."""

import difflib
from pathlib import Path
from typing import Any

from medloc_jax import config as configuration
from medloc_jax.curriculum import make_schedule
from medloc_jax.data import augment, synthetic
from medloc_jax.data.examples import SPLITS
from medloc_jax.grounding import prompts
from medloc_jax.model import attention, layers
from medloc_jax.rewards import scores, semantic
from medloc_jax.rl import advantages, losses
from medloc_jax.training import job as jobs
from medloc_jax.training import micro_batches, optimizer

METHODS = ("sft", "grpo")
DTYPES = ("float32", "bfloat16")

# What may change between starts of one run: how long it is, how it is watched, where it runs.
FREE = (
    "label",
    "num_steps",
    "eval.",
    "checkpoint.",
    "log.",
    "mesh.",
    "data.num_",
    "data.feature_cache",
    "data.missing_files",
    "optim.max_nonfinite",
    "watchdog.",
    "model.attention",
    "model.remat",
    "model.unroll",
    "model.vocab_chunk",
    "rl.micro_batch_prompts",
    "rl.gather_weights",
    "sft.micro_batch",
)


def check(config: Any) -> None:
    """Refuses a configuration that cannot work.

    Raises:
        ValueError: one line that names the field, its value and the cure.
    """
    rl, data, evaluation = config.rl, config.data, config.eval
    _one_of("method", config.method, METHODS)
    _one_of("model.compute_dtype", config.model.compute_dtype, DTYPES)
    _one_of("model.frozen_dtype", config.model.frozen_dtype, DTYPES)
    _one_of("data.template", data.template, prompts.TEMPLATES)
    _one_of("data.synthetic.variant", data.synthetic.variant, synthetic.VARIANTS)
    _one_of("data.missing_files", data.missing_files, ("stop", "skip"))
    for name in data.augment:
        _one_of("data.augment", name, augment.AUGMENTATIONS)
    _one_of("eval.split", evaluation.split, SPLITS)
    if evaluation.final_split:
        _one_of("eval.final_split", evaluation.final_split, SPLITS)
    _one_of("model.remat", config.model.remat, layers.REMAT_POLICIES)
    _one_of("model.attention", config.model.attention, attention.CHOICES)
    attention.check(config.model.attention, config.model.compute_dtype)
    _one_of("optim.schedule", config.optim.schedule, optimizer.SCHEDULES)
    _one_of("rl.advantage_std", rl.advantage_std, advantages.NORMALISERS)
    _one_of("rl.ratio_level", rl.ratio_level, losses.RATIO_LEVELS)
    _one_of("rl.loss_aggregation", rl.loss_aggregation, losses.AGGREGATIONS)
    _at_least(config, 1, "rl.max_completion_tokens", "rl.prompts_per_step")
    _at_least(config, 1, "rl.num_updates", "sft.batch_size", "eval.batch_size", "data.max_buckets")
    _at_least(config, 1, "checkpoint.every", "model.vocab_chunk")
    _at_least(config, 0, "seed", "rl.kl_weight", "rl.clip_low", "rl.clip_high", "eval.every")
    _at_least(config, 0, "num_steps", "log.rollouts_every", "data.num_workers", "data.num_threads")
    _at_least(config, 1, "checkpoint.keep_last", "data.min_pixels", "data.max_pixels")
    _at_least(config, 0, "checkpoint.keep_best", "eval.num_examples", "optim.learning_rate")
    _at_least(config, 0, "sft.box_jitter", "optim.max_nonfinite", "rl.importance_cap")
    _at_least(config, 0, "watchdog.lost_seconds", "watchdog.hung_seconds")
    steps = config.log.profile_steps
    if len(steps) != 2 or not (0 < steps[0] <= steps[1] or steps[0] == steps[1] == 0):
        raise ValueError(f"log.profile_steps={steps}: give (first, last) step, or (0, 0) for none")
    if config.seed >= 2**32:
        raise ValueError(f"seed={config.seed}: it must be below 2**32")
    if not config.sft.box_scale > 0:
        raise ValueError(f"sft.box_scale={config.sft.box_scale}: it must be above 0")
    _check_feature_cache(config)
    if rl.group_size < 2:
        raise ValueError(
            f"rl.group_size={rl.group_size}: a group of one has no advantage over itself; "
            "set it to 2 or more"
        )
    if not 0 < rl.temperature < float("inf"):
        raise ValueError(f"rl.temperature={rl.temperature}: it must be above 0")
    if not sum(abs(weight) for weight in config.rewards.weights.values()):
        raise ValueError("rewards.weights are all 0: nothing would be rewarded")
    known = scores.names(of_regions=True)
    terms = ["localization", *(name for name in known if name != "iou")]
    for name in config.rewards.weights:
        _one_of("rewards.weights", name, terms)
    scorer = semantic.load_scorer(config.rewards.semantic_scorer)
    if config.rewards.weights.semantic and scorer is None:
        raise ValueError(
            f"rewards.weights.semantic={config.rewards.weights.semantic}, and nothing scores it: "
            'set rewards.semantic_scorer to "module:function", or this weight to 0'
        )
    micro_batches.num_parts(rl.prompts_per_step, rl.micro_batch_prompts, "rl.micro_batch_prompts")
    micro_batches.num_parts(config.sft.batch_size, config.sft.micro_batch, "sft.micro_batch")
    # Making them checks their options.
    jobs.make_optimizer(config)
    if config.num_steps == 0:
        _check_only_evaluates(config)
        return
    jobs.learning_rate(config, 0)
    make_schedule(
        config.curriculum.schedule, num_steps=config.num_steps, **config.curriculum.to_dict()
    )


def _check_only_evaluates(config: Any) -> None:
    """Refuses a run of no steps that would not evaluate either."""
    if not config.eval.at_start:
        raise ValueError(
            "num_steps=0 only evaluates, and eval.at_start=False forbids that: set eval.at_start "
            "to True, or num_steps to 1 or more"
        )


def _check_feature_cache(config: Any) -> None:
    """Refuses a cache of features that are never seen twice."""
    folder = config.data.feature_cache
    if not folder:
        return
    why = ""
    if config.method != "grpo":
        why = "SFT does not read it"
    elif not config.model.freeze_vision:
        why = "model.freeze_vision is False, so that the features change with every update"
    elif "rescale" in config.data.augment:
        why = "data.augment has 'rescale', which makes nearly every image a new one"
    elif "://" in folder:
        why = "it must be a folder of this machine"
    if why:
        raise ValueError(f"data.feature_cache={folder!r}: {why}; set it to ''")
    if not config.data.feature_cache_gb > 0:
        gb = config.data.feature_cache_gb
        raise ValueError(f"data.feature_cache_gb={gb}: it must be above 0")


def check_same_run(before: Any, now: Any, workdir: Path) -> None:
    """Refuses to continue a folder's run with settings that make it another run.

    Raises:
        ValueError: naming the first fields that differ.
    """
    differ = differences(before, now, FREE)
    if differ:
        more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
        raise ValueError(
            f"{workdir} holds another run ({'; '.join(differ[:3])}{more}): "
            "set these back to continue it, or choose another --workdir"
        )


def differences(before: Any, now: Any, free: tuple[str, ...]) -> list[str]:
    """The fields, by name, in which two configurations differ, as `name old -> new`.

    Args:
        before: a configuration.
        now: another.
        free: beginnings of names that may differ.
    """
    old, new = configuration.flatten(before.to_dict()), configuration.flatten(now.to_dict())
    return [
        f"{name} {old.get(name)!r} -> {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not name.startswith(free)
    ]


def _one_of(field: str, value: Any, known: Any) -> None:
    names = list(known)
    if value not in names:
        near = difflib.get_close_matches(str(value), [str(name) for name in names], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{field}={value!r}: choose one of {', '.join(map(str, names))}{hint}")


def _at_least(config: Any, least: int, *fields: str) -> None:
    for field in fields:
        value = config
        for part in field.split("."):
            value = value[part]
        if not value >= least:  # also refuses NaN
            raise ValueError(f"{field}={value}: it must be at least {least}")
