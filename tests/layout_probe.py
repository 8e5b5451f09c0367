# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One training job laid out in several ways over the devices and processes there are.

launch/local.sh 2 python tests/layout_probe.py FOLDER LAYOUT [LAYOUT ...]

FOLDER/preset, FOLDER/pictures and FOLDER/sft are the model, the data and the weights to start from.
LAYOUT is a key of LAYOUTS or SABOTAGE; with WHOLE at its end the vision tower is trained, too, and
there are two buckets, which takes twice as long to compile. The first process writes
FOLDER/LAYOUT.npz, and training leaves FOLDER/LAYOUT-free and FOLDER/LAYOUT-replay. A replay takes
the completions that layout "one" has drawn: that one comes first.
"""

import contextlib
import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import small_runs
from absl import flags

from medloc_jax import distributed, sharding
from medloc_jax.cli import job as cli_jobs
from medloc_jax.rewards import scores
from medloc_jax.rl import losses, rollout
from medloc_jax.sampling import choose, groups
from medloc_jax.training import grpo, grpo_programs, programs
from medloc_jax.training import job as jobs
from medloc_jax.training import state as states

STEPS, SABOTAGED_STEPS = 20, 6
BATCH, GROUP, LENGTH = 8, 4, 16


class Layout(NamedTuple):
    """Processes, devices of each, and the sizes of the mesh (data, fsdp, tensor)."""

    processes: int
    devices: int
    mesh: tuple[int, int, int]


LAYOUTS = {
    "one": Layout(1, 8, (1, 1, 1)),  # the first of the eight devices
    "fsdp8": Layout(1, 8, (1, 8, 1)),
    "fsdp4-tensor2": Layout(1, 8, (1, 4, 2)),
    "data2-fsdp2-tensor2": Layout(1, 8, (2, 2, 2)),
    "2x4": Layout(2, 4, (1, 8, 1)),
    "2x4-data2-fsdp2-tensor2": Layout(2, 4, (2, 2, 2)),
    "4x2": Layout(4, 2, (1, 8, 1)),
    "4x2-tensor4": Layout(4, 2, (1, 2, 4)),  # two processes hold the same rows
}

# As LAYOUTS, with mistakes: see `sabotage`.
SABOTAGE = {"sabotaged": "fsdp4-tensor2"}
WHOLE = "+vision"

# Two sizes share the small bucket, so that the prompts of a batch are of unequal lengths.
PICTURES = [(32, 32), (48, 32), (32, 48)] * 24 + [(96, 80)] * 8

WARM_START = {
    "method": "sft",
    "num_steps": 60,
    "model__freeze_vision": False,
    "model__remat": "none",  # compiles faster
    "rl__max_completion_tokens": LENGTH,
    "sft__batch_size": 16,
    "sft__box_jitter": 0.05,  # answers that are not all alike
    "optim__learning_rate": 3e-3,
    "optim__schedule": "constant",
    "eval__every": 0,
    "eval__at_start": False,
    "eval__num_examples": 8,
    "checkpoint__every": 60,
}
GRPO = {
    "model__remat": "none",
    "rl__prompts_per_step": BATCH,
    "rl__group_size": GROUP,
    "rl__max_completion_tokens": LENGTH,
    "rl__num_updates": 2,  # the second has ratios that are not 1, and a loss that is not 0
    # Without signal a gradient is rounding, which Adam would make a full step of.
    "rl__skip_no_signal": True,
    "rewards__weights__format": 0.0,
    "curriculum__threshold_start": 0.3,
    "curriculum__step_sizes": "(0.05,0.05,0.05)",
    "optim__clip_norm": 0.0,
    "optim__learning_rate": 3e-4,
    "eval__every": 0,
    "eval__at_start": False,
    "eval__num_examples": 0,
    "checkpoint__every": STEPS,
}


def layout_of(name: str) -> Layout:
    """The layout of that name."""
    name = name.removesuffix(WHOLE)
    return LAYOUTS[SABOTAGE.get(name, name)]


def reference_of(name: str) -> str:
    """The layout that this one is compared with."""
    return f"one{WHOLE}" if name.endswith(WHOLE) else "one"


def settings(folder: Path, name: str) -> dict[str, Any]:
    """Settings of a layout; the warm start takes those of `one` and WARM_START."""
    whole = name.endswith(WHOLE)
    return {
        "data__manifest": folder / "pictures" / "manifest.jsonl",
        "data__max_buckets": 2 if whole else 1,
        "data__val_fraction": 0.4,
        "model__freeze_vision": not whole,
    }


def open_job(folder: Path, name: str) -> jobs.Job:
    """The job of `medloc train` with those settings, in a mesh of as many devices as it takes."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("workdir", None, "", flag_values=values)

    steps = {"num_steps": SABOTAGED_STEPS if name in SABOTAGE else STEPS}
    changes = settings(folder, name) | GRPO | steps | {"model__init_from": folder / "sft"}
    verb, *argv = small_runs.arguments("train", folder, folder / "preset", **changes)
    opened = cli_jobs.open_job(cli_jobs.parse(argv, verb, define).config, folder)
    data, fsdp, tensor = layout_of(name).mesh
    devices = jax.devices()[: data * fsdp * tensor]
    mesh = sharding.make_mesh(data=data, fsdp=fsdp, tensor=tensor, devices=devices)
    model = dataclasses.replace(opened.model, mesh=mesh)
    initial = functools.partial(cli_jobs.initial_params, opened.config, model, mesh)
    return dataclasses.replace(opened, mesh=mesh, model=model, initial=initial)


class _Sampler:
    """The sampling program; writes down all rows' completions, or gives recorded ones instead."""

    def __init__(self, job: jobs.Job, program: programs.Program, recorded: Any = None):
        self._job, self._program, self._recorded = job, program, recorded
        self.drawn: list[np.ndarray] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._program, name)

    def __call__(self, *args: Any) -> groups.Sampled:
        if self._recorded is not None:
            tokens = self._recorded[len(self.drawn)]
            self.drawn.append(tokens)
            mine = _my_rows(self._job, tokens)
            mask = _mask(self._job, mine)
            nothing = np.zeros(mine.shape, np.float32)  # training does not read them
            return groups.Sampled(*sharding.shard_batch(self._job.mesh, (mine, mask, nothing)))
        sampled = self._program(*args)
        self.drawn.append(self._job.all_rows(sharding.local_rows(sampled.completions)))
        return sampled


def _my_rows(job: jobs.Job, rows: np.ndarray) -> np.ndarray:
    share = sharding.row_share(job.mesh)
    part = len(rows) // share.count
    return rows[share.index * part : (share.index + 1) * part]


def _mask(job: jobs.Job, tokens: np.ndarray) -> np.ndarray:
    """True up to the first end token."""
    ends = np.isin(tokens, job.tokenizer.stop_ids)
    return np.cumsum(ends, axis=2) - ends == 0


def one_update(job: jobs.Job, made: grpo_programs.Programs, recorded: Any) -> dict[str, Any]:
    """Samples and updates once from the first weights, with a batch of every bucket.

    Args:
        job: in its layout.
        made: its programs.
        recorded: what this gave in the layout to compare with; None: this is that layout.
    """
    chain = jobs.make_optimizer(job.config)
    placement = jobs.place(job, chain)
    everywhere = jax.jit(lambda tree: tree, out_shardings=sharding.replicated(job.mesh))
    state, frozen = states.start(job.initial(), placement, chain)
    args = (state, frozen, state.trainable)
    tasks = [grpo_programs.compile_tasks(job, made, *args, bucket) for bucket in job.buckets]
    programs.compile_all([task for one in tasks for task in one.values()], job.buckets)
    seen: dict[str, Any] = {}
    for step, batch in enumerate(job.train_batches(job.loader, BATCH, 0), start=1):
        name = f"bucket{batch.inputs.pixel_values.shape[1]}"
        if f"{name}/tokens" in seen:
            continue
        if seen:  # an update takes the memory of its state
            state, frozen = states.start(job.initial(), placement, chain)
        params = states.merge(state.trainable, frozen)
        inputs = sharding.shard_batch(job.mesh, batch.inputs)
        features = made.encode(params, inputs)
        seed, number = np.uint32(job.config.seed), np.uint32(step)
        sampled = made.sample(params, inputs, features, seed, number, np.float32(0.9))
        seen[f"{name}/tokens"] = job.all_rows(sharding.local_rows(sampled.completions))
        seen[f"{name}/logprobs"] = job.all_rows(sharding.local_rows(sampled.logprobs))

        rows = seen if recorded is None else recorded
        tokens, logprobs = rows[f"{name}/tokens"], rows[f"{name}/logprobs"]
        # Ratios that are not 1 and a KL that is not 0.
        old, reference = logprobs + np.random.default_rng(step).normal(
            scale=0.2, size=(2, *logprobs.shape)
        ).astype(np.float32)
        tokens, old, reference = (_my_rows(job, x) for x in (tokens, old, reference))
        scored = scores.score_completions(
            job.texts(tokens), batch.target_boxes_px, batch.frames, job.template
        ).scores
        seen[f"{name}/ious"] = job.all_rows(scored["iou"])
        hyper = rollout.hyper(
            threshold=float(np.median(rows[f"{name}/ious"])),
            temperature=0.9,
            kl_weight=0.5,
            clip_low=0.2,
            clip_high=0.2,
            learning_rate=1e-3,
        )
        taken = rollout.Rollout(tokens, _mask(job, tokens), old, reference)
        taken, raw = sharding.shard_batch(job.mesh, (taken, scored))
        after, metrics, _ = made.update(state, frozen, inputs, features, taken, raw, hyper)
        for metric in ("grpo/loss", "grpo/kl", "grpo/clip_rate", "reward/total"):
            seen[f"{name}/{metric}"] = sharding.local_rows(metrics[metric])
        # Unclipped, and from a fresh state: a tenth of the gradient.
        moments = everywhere(optax.tree_utils.tree_get(after.opt_state, "mu"))
        for path, leaf in jax.tree_util.tree_leaves_with_path(moments):
            where = jax.tree_util.keystr(path, simple=True, separator=".")
            seen[f"{name}/gradient/{where}"] = np.asarray(leaf)
        if len(job.buckets) == sum(key.endswith("/tokens") for key in seen):
            break
    return seen


def _train(job: jobs.Job, made: grpo_programs.Programs, workdir: Path, recorded: Any = None):
    """Trains as `medloc train` does, with programs that are made; returns all completions."""
    sampler = _Sampler(job, made.sample, recorded)
    grpo_programs.make_programs = lambda *_: made._replace(sample=sampler)
    assert grpo.train(dataclasses.replace(job, workdir=workdir)) == 0
    return np.stack(sampler.drawn)


def measure(folder: Path, name: str) -> None:
    """Writes what a layout gives."""
    job = open_job(folder, name)
    chain = jobs.make_optimizer(job.config)
    grpo_step = grpo.make_update(job, chain, "hit")
    made = _make_programs(job, grpo_step, jobs.place(job, chain))
    first = reference_of(name)
    recorded = None if name == first else np.load(folder / f"{first}.npz")
    seen = one_update(job, made, recorded)
    seen["free/tokens"] = _train(job, made, folder / f"{name}-free")
    replayed = (seen if recorded is None else recorded)["free/tokens"]
    if name in SABOTAGE:
        replayed = np.roll(replayed, 1, axis=1)
    _train(job, made, folder / f"{name}-replay", replayed)
    if distributed.is_primary():
        np.savez(folder / f"{name}.npz", **seen)
    distributed.barrier("measured")


_make_programs = grpo_programs.make_programs


def main(folder: Path, names: list[str]) -> None:
    """Measures one layout after the other."""
    distributed.initialize()
    for name in names:
        with contextlib.ExitStack() as stack:
            # Both runs of a layout evaluate with one program; the next layout makes its own.
            once = functools.cache(programs.sample_program)
            stack.enter_context(mock.patch.object(programs, "sample_program", once))
            if name in SABOTAGE:
                sabotage(stack)
            measure(folder, name)


def sabotage(stack: contextlib.ExitStack) -> None:
    """One mistake for every comparison: keys by the row of a shard, and a shard not counted."""
    shards = 4
    row_keys, grpo_loss = choose.row_keys, losses.grpo_loss

    def by_row_of_the_shard(key, batch, group_size):
        one = row_keys(key, batch // shards, group_size)
        return jnp.tile(one, (shards, 1, 1))

    def without_the_last_shard(new, old, reference, advantages, mask, hyper, **rules):
        mask = mask.at[-(mask.shape[0] // shards) :].set(False)
        return grpo_loss(new, old, reference, advantages, mask, hyper, **rules)

    stack.enter_context(mock.patch.object(choose, "row_keys", by_row_of_the_shard))
    stack.enter_context(mock.patch.object(losses, "grpo_loss", without_the_last_shard))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
