# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A run's folder while it trains: what is restored at the start, written on the way, saved.

Metrics of a step are on disk before its checkpoint is, and both files of lines are cut back to the
restored step, so that every step appears exactly once however often a run was killed.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import tqdm

from medloc_jax import checkpoint, distributed, metric_writer, sharding
from medloc_jax.curriculum import Schedule
from medloc_jax.model.qwen2_5_vl import Params
from medloc_jax.training import job as jobs
from medloc_jax.training import state as states


@dataclasses.dataclass
class Session:
    """An open run.

    Attributes:
        job: what is trained.
        state: parameters and optimizer as of `step`.
        frozen: parameters that are not trained.
        reference: trainable parameters as they were at step 0, in frozen_dtype; None if not needed.
        step: updates done, which is also the number of global batches consumed.
        counters: skipped updates so far, by metric name.
        stop: whether SIGTERM came.
        save_seconds: what the last save took.
    """

    job: jobs.Job
    placement: states.Placement
    state: states.TrainState
    frozen: Params
    reference: Params | None
    step: int
    counters: dict[str, int]
    schedule: Schedule | None
    checkpointer: checkpoint.Checkpointer
    writer: metric_writer.MetricWriter
    batch_size: int
    reference_fingerprint: int | None
    stop: jobs.StopSignal
    save_seconds: float = 0.0

    @property
    def params(self) -> Params:
        """All parameters of the policy."""
        return states.merge(self.state.trainable, self.frozen)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes the line of a step, and a short form of it to the terminal."""
        self.writer.write(step, metrics)
        config = self.job.config
        if step <= 3 or step % 10 == 0 or step == config.num_steps or _has_eval(metrics):
            self.writer.say(metric_writer.terminal_line(step, config.num_steps, metrics))

    def log_rollouts(self, step: int, record: Mapping[str, Any]) -> None:
        """Appends to rollouts.jsonl (primary process)."""
        if distributed.is_primary():
            path = self.job.workdir / metric_writer.ROLLOUTS_FILE
            metric_writer.append_jsonl(path, {"step": step, **record})

    def save_if_due(self, step: int, metrics: Mapping[str, Any]) -> bool:
        """Saves now and then, at the end, and when asked to stop; returns whether to stop."""
        config, stopped = self.job.config, self.stop.agreed()
        last = step == config.num_steps
        if jobs.due(step, config.checkpoint.every) or last or stopped:
            self.save(step, metrics, final=last or stopped)
        if stopped and not last:
            self.writer.say(f"stopped by SIGTERM, saved at step {step}: start it again to go on")
        return stopped and not last

    def save(self, step: int, metrics: Mapping[str, Any], *, final: bool) -> None:
        """Saves everything that a restart needs; a full disk is a warning unless it is the last."""
        split = self.job.config.eval.split
        best = metrics.get(f"eval/{split}/map")
        result = self.checkpointer.save(
            step,
            {"params": self.params, "optimizer": self.state.opt_state},
            {
                "seed": self.job.config.seed,
                "batches": step,
                "batch_size": self.batch_size,
                "schedule": None if self.schedule is None else self.schedule.state_dict(),
                "counters": self.counters,
                "reference": self.reference_fingerprint,
            },
            {} if best is None else {"best": float(best)},
            final=final,
        )
        self.save_seconds = result.seconds

    def progress(self) -> Any:
        """A bar over the steps that are left."""
        return tqdm.tqdm(
            total=self.job.config.num_steps,
            initial=self.step,
            desc=self.job.config.method,
            unit="step",
            # None: where nobody watches (no terminal), the lines of `log` are enough.
            disable=None if distributed.is_primary() else True,
        )

    def close(self) -> int:
        """Closes the files; returns the exit code of the process."""
        self.stop.close()
        self.writer.close()
        self.checkpointer.close()
        return jobs.STOPPED_BY_SIGTERM if self.step < self.job.config.num_steps else 0


def open_session(
    job: jobs.Job,
    chain: Any,
    *,
    batch_size: int,
    schedule: Schedule | None = None,
    needs_reference: bool = False,
) -> Session:
    """Continues the run in the job's folder, or starts it.

    Args:
        job: what to train.
        chain: the optimizer.
        batch_size: rows of a global batch, which ties the step to a place in the data.
        schedule: its state is restored in place.
        needs_reference: keep the parameters of step 0 beside the policy's.

    Raises:
        ValueError: if the folder holds a run that this one cannot continue.
    """
    config, placement = job.config, jobs.place(job, chain)
    checkpointer = checkpoint.Checkpointer(
        job.workdir / "checkpoints",
        keep_last=config.checkpoint.keep_last,
        keep_best=config.checkpoint.keep_best,
    )
    restored = checkpointer.restore(placement.abstract())
    step, counters, reference, fingerprint = 0, {}, None, None
    finished = restored is not None and restored.step >= config.num_steps
    needs_reference &= not finished  # nothing more is asked of model.init_from
    if restored is None or needs_reference:
        params = job.initial()
        if needs_reference:
            trainable, _ = states.split_like(params, placement)
            reference = states.copy(trainable, config.model.frozen_dtype)
            fingerprint = states.fingerprint(reference)
            del trainable
    if restored is None:
        state, frozen = states.start(params, placement, chain)
    else:
        host = restored.host_state
        step = host["batches"]  # each update consumes one global batch
        _check_continues(host, config.seed, batch_size, fingerprint, job)
        trainable, frozen = states.split_like(restored.arrays["params"], placement)
        state = states.TrainState(trainable, restored.arrays["optimizer"])
        counters = dict(host["counters"])
        if schedule is not None:
            schedule.load_state_dict(host["schedule"])
    if distributed.is_primary():
        # Lines of a run that was killed before its first checkpoint go too: -1 keeps none.
        for name in (metric_writer.METRICS_FILE, metric_writer.ROLLOUTS_FILE):
            kept = -1 if restored is None else step
            metric_writer.truncate_jsonl(job.workdir / name, kept)
    distributed.barrier("lines_cut")
    writer = metric_writer.MetricWriter(
        job.workdir,
        tensorboard=config.log.tensorboard,
        wandb=config.log.wandb,
        project=config.log.wandb_project,
        config=json.loads(config.to_json_best_effort()),
        is_primary=distributed.is_primary(),
        start_step=step,
    )
    if restored is not None:
        writer.say(f"continuing {job.workdir} from step {step}")
    return Session(
        job=job,
        placement=placement,
        state=state,
        frozen=frozen,
        reference=reference,
        step=step,
        counters=counters,
        schedule=schedule,
        checkpointer=checkpointer,
        writer=writer,
        batch_size=batch_size,
        reference_fingerprint=fingerprint,
        # From here on: compiling and the first evaluation take time, too.
        stop=jobs.StopSignal(),
    )


def _check_continues(
    host: Mapping[str, Any], seed: int, batch_size: int, fingerprint: int | None, job: jobs.Job
) -> None:
    """Refuses to continue on other data or against another reference."""
    for name, now in (("seed", seed), ("batch_size", batch_size)):
        if host[name] != now:
            raise ValueError(
                f"{job.workdir} was trained with {name} {host[name]}, not {now}: the place in the "
                "data would be another; set it back, or choose another --workdir"
            )
    if fingerprint is not None and host["reference"] != fingerprint:
        raise ValueError(
            f"the reference policy of {job.workdir} is not what model.init_from="
            f"{job.config.model.init_from!r} holds now: bring that checkpoint back"
        )


def _has_eval(metrics: Mapping[str, Any]) -> bool:
    return any(name.startswith("eval/") for name in metrics)


def to_host(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Fetches scalars from the devices; waits for the program that makes them."""
    return {name: float(sharding.local_rows(value)) for name, value in metrics.items()}
