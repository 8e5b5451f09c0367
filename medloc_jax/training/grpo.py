# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""GRPO with the MedLoc-R1 curriculum. This file is the algorithm.

For each step: a batch of prompts; the vision tower once; G completions of every prompt; the
reference's log-probabilities; scores (IoU, format) on the host; reward at today's threshold,
group advantages and the update in one program; then the schedule looks at the IoUs and may raise
the threshold.

Reference: MedLoc-R1 (arXiv 2603.28120) section 3; GRPO in DeepSeekMath (arXiv 2402.03300).

Departures:
    * kl_weight is 0.04, the value of the code base that the paper builds on; it prints 0.4.
    * Sampling and loss use the same temperature, 0.9, so that the first update is on-policy.
    * A step holds several prompts, and the window one entry a step (`curriculum.window_unit`).
    * An update in which no group has signal is skipped (`rl.skip_no_signal`): the KL term would be
      its only gradient, and Adam would make a full-size step of it.
    * The vision tower is frozen by default; the paper does not say.
The loss, the advantages and the schedule list their own.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from medloc_jax import distributed, sharding
from medloc_jax.curriculum import Schedule, make_schedule, stability_note
from medloc_jax.data import batching
from medloc_jax.model import geometry
from medloc_jax.rewards import combine, scores
from medloc_jax.rl import advantages, losses, rollout
from medloc_jax.training import job as jobs
from medloc_jax.training import micro_batches, optimizer, programs, session
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
        needs_reference=rl.kl_weight > 0,
    )
    if run.step >= config.num_steps:
        run.writer.say(f"{job.workdir} is finished: {run.step} of {config.num_steps} steps")
        return run.close()
    encode, sample, logprobs, update, evaluate = _programs(job, run, chain, schedule)
    note = stability_note(schedule, prompts=rl.prompts_per_step, group_size=rl.group_size)
    if note:
        run.writer.say(note)
    batches = job.train_batches(job.loader, rl.prompts_per_step, run.step)
    if run.step == 0 and config.eval.at_start:
        run.log(0, evaluate.scheduled(run.params, 0))

    with run.progress() as bar:
        for step in range(run.step + 1, config.num_steps + 1):
            watch = programs.Stopwatch()
            batch = next(batches)
            inputs = sharding.shard_batch(mesh, batch.inputs)
            waited = watch.lap()  # for the data; logged as part of the rate alone
            hyper = rollout.hyper(
                threshold=schedule.threshold,
                temperature=rl.temperature,
                kl_weight=rl.kl_weight,
                clip_low=rl.clip_low,
                clip_high=rl.clip_high,
                learning_rate=job.learning_rate(step - 1),
            )
            seed, number = np.uint32(config.seed), np.uint32(step)

            # Sample a group of completions for each prompt.
            features = encode(run.params, inputs)
            sampled = sample(run.params, inputs, features, seed, number, hyper.temperature)
            drawn = (sampled.completions, sampled.completion_mask)

            # The reference is on its way while the host reads and scores the answers.
            reference = old = None
            if run.reference is not None:
                frozen_policy = states.merge(run.reference, run.frozen)
                at_start = features if config.model.freeze_vision else encode(frozen_policy, inputs)
                reference = logprobs(frozen_policy, inputs, at_start, *drawn, hyper.temperature)
            if rl.num_updates > 1:
                old = logprobs(run.params, inputs, features, *drawn, hyper.temperature)
            tokens = sharding.local_rows(sampled.completions)
            seconds = {"speed/sample_seconds": watch.lap()}
            texts = job.texts(tokens)
            scored = scores.score_completions(
                texts, batch.target_boxes_px, batch.frames, job.template
            )
            seconds["speed/score_seconds"] = watch.lap()
            jax.block_until_ready((reference, old))
            seconds["speed/reference_seconds"] = watch.lap()

            # Reward at today's threshold, advantages, loss, update.
            taken = rollout.Rollout(*drawn, old_logprobs=old, reference_logprobs=reference)
            raw = sharding.shard_batch(mesh, scored.scores)
            seen = []
            for _ in range(rl.num_updates):
                args = (run.state, run.frozen, inputs, features, taken, raw, hyper)
                run.state, metrics, rewards = update(*args)
                seen.append(session.to_host(metrics))
            seconds["speed/update_seconds"] = watch.lap()

            # Look at the IoUs of all hosts; perhaps raise the threshold.
            facts = _facts(scored, sharding.local_rows(sampled.completion_mask))
            facts = _Facts(*np.moveaxis(distributed.all_hosts(facts), 2, 0))
            event = schedule.update(facts.iou)

            run.step = step
            metrics = {
                **_averages(facts),
                **_updates(seen, run.counters),
                **event.metrics(),
                "optimizer/learning_rate": float(hyper.learning_rate),
                **_speed(seconds, waited, facts, run.save_seconds),
            }
            if jobs.due(step, config.log.rollouts_every):
                record = _record(batch, texts, scored, rewards, facts.iou, event.threshold)
                run.log_rollouts(step, record)
            metrics |= evaluate.scheduled(run.params, step)
            run.log(step, metrics)
            bar.update()
            if run.save_if_due(step, metrics):
                break
    return run.close()


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
        reward, terms = combine.combine(raw, jnp.asarray(hyper.threshold), weights, reward_shape)
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
            **losses.summarize(stats),
        }
        return states.TrainState(trainable, opt_state), metrics, reward

    return grpo_step


def _programs(job: jobs.Job, run: session.Session, chain: Any, schedule: Schedule):
    """Makes and compiles the step's programs for every bucket."""
    rl, mesh, model = job.config.rl, job.mesh, job.model
    over_batch, everywhere = sharding.over_batch(mesh), sharding.replicated(mesh)
    encode = programs.encode_program(model, mesh)
    rules = job.rules(group_size=rl.group_size, greedy=False)
    sample = programs.sample_program(model, mesh, rules)
    logprobs = programs.logprobs_program(model, mesh)
    state_layout = states.shardings(
        states.TrainState(run.placement.trainable, run.placement.opt_state)
    )
    update = programs.Program(
        "grpo_step",
        make_update(job, chain, schedule.reward_shape),
        out_shardings=(state_layout, everywhere, over_batch),
        donate=(0,),
    )
    evaluate = jobs.Evaluator(job, encode)

    tasks, one, number = [], np.float32(1), np.uint32(0)
    hyper = rollout.hyper(**dict.fromkeys(rollout.Hyper._fields, 1.0))
    for bucket in job.buckets:
        inputs = programs.batch_struct(mesh, model.config, bucket, rl.prompts_per_step)
        features = programs.struct_of(model.encode_images, mesh, run.params, inputs)
        shape = (rl.prompts_per_step, rl.group_size, rl.max_completion_tokens)
        tokens, mask, floats = (
            programs.struct(mesh, shape, dtype) for dtype in (jnp.int32, jnp.bool_, jnp.float32)
        )
        raw = programs.struct(mesh, shape[:2], jnp.float32)
        taken = rollout.Rollout(
            tokens,
            mask,
            old_logprobs=floats if rl.num_updates > 1 else None,
            reference_logprobs=floats if run.reference is not None else None,
        )
        tasks.append((encode, (run.params, inputs)))
        tasks.append((sample, (run.params, inputs, features, number, number, one)))
        scored = dict.fromkeys(scores.SCORES, raw)
        tasks.append((update, (run.state, run.frozen, inputs, features, taken, scored, hyper)))
        if rl.num_updates > 1:
            tasks.append((logprobs, (run.params, inputs, features, tokens, mask, one)))
        if run.reference is not None:
            # Programs of their own where the reference is stored in bfloat16.
            frozen_policy = states.merge(run.reference, run.frozen)
            tasks.append((logprobs, (frozen_policy, inputs, features, tokens, mask, one)))
            if not job.config.model.freeze_vision:
                tasks.append((encode, (frozen_policy, inputs)))
    tasks += evaluate.tasks(run.params)
    run.writer.say(programs.compile_all(tasks, job.buckets))
    return encode, sample, logprobs, update, evaluate


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


def _speed(
    seconds: dict[str, float],
    waited: float,
    facts: _Facts,
    save_seconds: float,
) -> dict[str, float]:
    """Phases of the step, and completion tokens a second over all of it (the last save's apart).

    The reference's time is what is left to wait for once the host has scored the answers.
    """
    rate = float(facts.length.sum()) / (waited + sum(seconds.values()))
    return {**seconds, "speed/save_seconds": save_seconds, "speed/tokens_per_second": rate}


def _record(
    batch: batching.Batch,
    texts: list[list[str]],
    scored: scores.Scored,
    rewards: Array,
    ious: np.ndarray,
    threshold: float,
) -> dict[str, Any]:
    """A line of rollouts.jsonl: the IoUs of all hosts, and this process's prompts and answers."""
    return {
        "threshold": threshold,
        "ids": [example.id for example in batch.examples],
        "queries": [example.query for example in batch.examples],
        "target_boxes_px": batch.target_boxes_px.tolist(),
        "completions": texts,
        "boxes_px": scored.boxes_px.tolist(),
        "ious": ious.tolist(),
        "rewards": sharding.local_rows(rewards).tolist(),
    }
