# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""GRPO with the MedLoc-R1 curriculum. This file is the algorithm.

For each step: a batch of prompts; the vision tower once; G completions of every prompt; the
reference's log-probabilities (all four in rollouts.py); scores (IoU, format) on the host; reward at
today's threshold, group advantages and the update in one program; then the schedule looks at the
IoUs and may raise the threshold. The devices are given the next step's sampling before the metrics
of this one are read.

Reference: MedLoc-R1 (arXiv 2603.28120) section 3; GRPO in DeepSeekMath (arXiv 2402.03300).

Departures:
    * kl_weight is 0.04, the value of the code base that the paper builds on; it prints 0.4.
    * Sampling and loss use the same temperature, 0.9, so that the first update is on-policy.
    * A step holds several prompts, and the window one entry a step (`curriculum.window_unit`).
    * An update in which no group has signal is skipped (`rl.skip_no_signal`): the KL term would be
      its only gradient, and Adam would make a full-size step of it.
    * The vision tower is frozen by default; the paper does not say.
    * With `rl.sample_ahead`, which is off by default, a step's completions are drawn before the
      update of the step before it.
The loss, the advantages and the schedule list their own.
"""

import functools
from collections.abc import Mapping
from concurrent import futures
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from medloc_jax import sharding, watchdog
from medloc_jax.curriculum import Schedule, make_schedule, stability_note
from medloc_jax.curriculum.schedule import Event
from medloc_jax.data import batching
from medloc_jax.model import geometry
from medloc_jax.rewards import combine, scores
from medloc_jax.rl import advantages, losses, rollout
from medloc_jax.training import (
    diagnostics,
    grpo_programs,
    micro_batches,
    optimizer,
    programs,
    rollouts,
    session,
    speed,
    vision_features,
)
from medloc_jax.training import job as jobs
from medloc_jax.training import state as states


def train(job: jobs.Job) -> int:
    """Trains until `num_steps`, or until SIGTERM; returns the process's exit code."""
    config, rl, mesh = job.config, job.config.rl, job.mesh
    schedule = make_schedule(
        config.curriculum.schedule, num_steps=config.num_steps, **config.curriculum.to_dict()
    )
    chain = jobs.make_optimizer(config)
    run = session.open_session(
        job,
        chain,
        batch_size=rl.prompts_per_step,
        schedule=schedule,
        needs_reference=rl.kl_weight > 0 and config.num_steps > 0,
    )
    if run.finished:
        run.writer.say(f"{job.workdir} is finished: {run.step} of {config.num_steps} steps")
        return run.close()
    made, evaluate = _programs(job, run, chain, schedule)
    note = stability_note(schedule, prompts=rl.prompts_per_step, group_size=rl.group_size)
    if note and config.num_steps:
        run.writer.say(note)
    meter = speed.Meter(
        job.model.config,
        freeze_vision=config.model.freeze_vision,
        reference=run.reference is not None,
        num_updates=rl.num_updates,
    )
    draw = rollouts.Draw(
        job,
        made,
        vision_features.encoder(job, made.encode, run.frozen),
        job.train_batches(job.loader, rl.prompts_per_step, run.step),
        None if run.reference is None else states.merge(run.reference, run.frozen),
        run.clock,
    )
    steps = range(run.step + 1, config.num_steps + 1)
    drawn_steps = rollouts.STREAMS[rl.sample_ahead](draw, steps, lambda: run.params, run.ahead)
    if run.begin(evaluate):
        return run.close()

    end_step_before = None  # what is left to do of it
    with run.progress() as bar:
        # G completions of each prompt and their reference log-probabilities are on their way.
        for drawn in drawn_steps:
            step = drawn.step
            run.profile.begin(step)
            hyper = rollout.hyper(
                threshold=schedule.threshold,
                rivals=schedule.rivals,
                temperature=rl.temperature,
                kl_weight=rl.kl_weight,
                clip_low=rl.clip_low,
                clip_high=rl.clip_high,
                learning_rate=job.learning_rate(step - 1),
            )
            taken = draw.rollout(drawn, run.params)

            # Read and score the answers while the devices go on.
            watchdog.mark("score", step)
            texts = job.texts(sharding.local_rows(drawn.sampled.completions))
            targets, frames = drawn.batch.target_boxes_px, drawn.batch.frames
            regions = job.regions(drawn.batch)  # None, unless a score looks at the images
            scored = scores.score_completions(texts, targets, frames, job.template, regions)
            watchdog.mark("gather", step)  # of one that still scores, the others say that they wait
            if end_step_before is not None and end_step_before():
                break
            facts = _facts(scored, sharding.local_rows(drawn.sampled.completion_mask))
            facts = _Facts(*np.moveaxis(job.all_rows(facts), 2, 0))

            # Reward at today's threshold, advantages, loss, update.
            watchdog.mark("update", step)
            raw = sharding.shard_batch(mesh, scored.scores)
            returned = []
            for _ in range(rl.num_updates):
                args = (run.state, run.frozen, drawn.inputs, drawn.features, taken, raw, hyper)
                run.state, metrics, rewards = made.update(*args)
                returned.append(metrics)
                run.clock.sent("update", metrics["optimizer/grad_norm"])

            # Look at the IoUs of all hosts; perhaps raise the threshold.
            event = schedule.update(facts.iou)

            done = _Done(drawn, taken, texts, scored, facts, rewards, returned, hyper, event)
            end_step_before = functools.partial(
                _end_step, job, run, evaluate, meter, done, run.clock.lap()
            )
            bar.update()
            # The device goes on to the next step before this one's numbers are read, unless an
            # evaluation or a checkpoint of the parameters as they are now is due.
            if run.is_due(step):
                if end_step_before():
                    break
                end_step_before = None
    return run.close()


class _Done(NamedTuple):
    """A step whose update is on its way."""

    drawn: rollouts.Drawn
    taken: rollout.Rollout
    texts: list[list[str]]
    scored: scores.Scored
    facts: "_Facts"
    rewards: Array
    returned: list[dict[str, Array]]
    hyper: rollout.Hyper
    event: Event


def _end_step(
    job: jobs.Job,
    run: session.Session,
    evaluate: jobs.Evaluator,
    meter: speed.Meter,
    done: _Done,
    seconds: "futures.Future[dict[str, float]]",
) -> bool:
    """Reads what the update gave; logs, evaluates and saves what is due; returns whether to stop.

    Called before the next update: `run` holds the parameters that this one has made.
    """
    config, step, batch = job.config, done.drawn.step, done.drawn.batch
    told = (batch, done.texts, done.taken, done.rewards, config.rl.advantage_std)
    run.check_finite(step, done.returned[-1], diagnostics.of_rollout, *told)
    metrics = {
        **_averages(done.facts),
        **_updates([session.to_host(one) for one in done.returned], run.counters),
        **done.event.metrics(),
        "optimizer/learning_rate": float(done.hyper.learning_rate),
        **meter.grpo(batch.inputs, done.facts.length, seconds.result()),
        "speed/save_seconds": run.save_seconds,
    }
    if jobs.due(step, config.log.rollouts_every):
        record = _record(job, batch, done.texts, done.scored, done.rewards, done.event.threshold)
        run.log_rollouts(step, record)
    return run.end_step(step, metrics, evaluate, batch.num_skipped)


class _Part(NamedTuple):
    """What the loss reads of a batch, prompts leading."""

    inputs: geometry.ModelInputs
    features: Array
    taken: rollout.Rollout
    advantage: Float[Array, "B G"]


def make_update(job: jobs.Job, chain: Any, reward_shape: str) -> Any:
    """Returns grpo_step, which gives the new state, metrics, and the rewards [B, G].

    The reward is made here, on the device, from raw scores and the traced threshold, so that a
    threshold that moves compiles nothing.
    """
    config, rl, model = job.config, job.config.rl, job.model
    num_parts = micro_batches.num_parts(
        rl.prompts_per_step, rl.micro_batch_prompts, "rl.micro_batch_prompts"
    )
    weights = config.rewards.weights.to_dict()

    def grpo_step(
        state: states.TrainState,
        frozen: states.Params,
        inputs: geometry.ModelInputs,
        features: Float[Array, "B m d"],
        taken: rollout.Rollout,
        raw: Mapping[str, Float[Array, "B G"]],
        hyper: rollout.Hyper,
    ) -> tuple[states.TrainState, dict[str, Array], Float[Array, "B G"]]:
        threshold, rivals = jnp.asarray(hyper.threshold), jnp.asarray(hyper.rivals)
        reward, terms = combine.combine(raw, threshold, weights, reward_shape, rivals)
        advantage = advantages.group_advantages(reward, std=rl.advantage_std)
        signal = advantages.has_signal(reward)
        whole = losses.denominators(taken.completion_mask)

        def loss(trainable: states.Params, part: _Part) -> tuple[Array, losses.LossStats]:
            params = states.merge(trainable, frozen)
            seen = part.features
            if not config.model.freeze_vision:
                seen = model.encode_images(params, part.inputs)
            token_logprobs = model.group_logprobs(
                params,
                part.inputs,
                seen,
                part.taken.completions,
                part.taken.completion_mask,
                jnp.asarray(hyper.temperature),
            )
            return losses.grpo_loss(
                token_logprobs,
                part.taken.old_logprobs,
                part.taken.reference_logprobs,
                part.advantage,
                part.taken.completion_mask,
                hyper,
                ratio_level=rl.ratio_level,
                loss_aggregation=rl.loss_aggregation,
                denominators=whole,
                max_completion_tokens=rl.max_completion_tokens,
                sampler_logprobs=part.taken.sampler_logprobs,
                importance_cap=rl.importance_cap,
            )

        batch = _Part(inputs, features, taken, advantage)
        stats, grads = micro_batches.value_and_grad(loss, state.trainable, batch, num_parts)
        keep = jnp.any(signal) if rl.skip_no_signal else jnp.array(True)
        trainable, opt_state, grad_norm = optimizer.apply(
            chain, grads, state.opt_state, state.trainable, hyper.learning_rate, keep
        )
        metrics = {
            "reward/total": jnp.mean(reward),
            **{f"reward/{name}": jnp.mean(term) for name, term in terms.items()},
            "group/zero_advantage_rate": 1 - jnp.mean(signal),
            "group/skipped_updates": 1 - keep.astype(jnp.float32),
            "optimizer/grad_norm": grad_norm,
            "optimizer/skipped_nonfinite": 1 - jnp.isfinite(grad_norm).astype(jnp.float32),
            diagnostics.LEAF_NORMS: optimizer.leaf_norms(grads),
            **losses.summarize(stats),
        }
        return states.TrainState(trainable, opt_state), metrics, reward

    return grpo_step


def _programs(job: jobs.Job, run: session.Session, chain: Any, schedule: Schedule):
    """Makes and compiles the step's programs for every bucket."""
    grpo_step = make_update(job, chain, schedule.reward_shape)
    made = grpo_programs.make_programs(job, grpo_step, run.placement)
    evaluate = jobs.Evaluator(job, made.encode)
    tasks = evaluate.tasks(run.params)
    for bucket in job.buckets if job.config.num_steps else ():
        args = (run.state, run.frozen, run.reference, bucket)
        tasks += grpo_programs.compile_tasks(job, made, *args).values()
    run.writer.say(programs.compile_all(tasks, job.buckets))
    return made, evaluate


class _Facts(NamedTuple):
    """What every host has to know of every completion, f32[B, G] each, over all hosts."""

    iou: np.ndarray
    valid: np.ndarray
    clipped: np.ndarray
    length: np.ndarray
    truncated: np.ndarray


def _facts(scored: scores.Scored, completion_mask: np.ndarray) -> np.ndarray:
    """The facts of this process's rows, f32[B, G, 5]: one array, so one gather."""
    length = completion_mask.sum(axis=2)
    # The longest may have ended by itself with its last token; that is counted as cut, too.
    truncated = length == completion_mask.shape[2]
    columns = (scored.scores["iou"], scored.valid, scored.clipped, length, truncated)
    return np.stack(columns, axis=2).astype(np.float32)


def _averages(facts: _Facts) -> dict[str, float]:
    """Metrics of the completions alone."""
    means = {name: float(np.mean(x, dtype=np.float64)) for name, x in facts._asdict().items()}
    hits = {f"iou/hit_rate_{t}": float(np.mean(facts.iou >= t / 100)) for t in (30, 50, 70, 80)}
    return {
        "iou/raw_mean": means["iou"],
        **hits,
        "answer/valid_rate": means["valid"],
        "answer/clipped_rate": means["clipped"],
        "completion/length_mean": means["length"],
        "completion/truncated_rate": means["truncated"],
    }


def _updates(seen: list[dict[str, float]], counters: dict[str, int]) -> dict[str, float | int]:
    """Means over the updates of one rollout; skipped updates are counted from step 1 on."""
    metrics = {name: float(np.mean([one[name] for one in seen])) for name in seen[0]}
    metrics["grpo/ratio_max"] = max(one["grpo/ratio_max"] for one in seen)
    for name in ("group/skipped_updates", "optimizer/skipped_nonfinite"):
        counters[name] = counters.get(name, 0) + int(sum(one[name] for one in seen))
        metrics[name] = counters[name]
    return metrics


def _record(
    job: jobs.Job,
    batch: batching.Batch,
    texts: list[list[str]],
    scored: scores.Scored,
    rewards: Array,
    threshold: float,
) -> dict[str, Any]:
    """A line of rollouts.jsonl: prompts and answers of all hosts; every process calls it."""
    columns = {
        "ids": [example.id for example in batch.examples],
        "queries": [example.query for example in batch.examples],
        "target_boxes_px": batch.target_boxes_px.tolist(),
        "completions": texts,
        "boxes_px": scored.boxes_px.tolist(),
        "ious": scored.scores["iou"].tolist(),
        "rewards": sharding.local_rows(rewards).tolist(),
    }
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    rows = job.all_records(rows)
    return {"threshold": threshold, **{name: [row[name] for row in rows] for name in columns}}
