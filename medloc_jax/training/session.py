# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A run's folder while it trains: what is restored at the start, written on the way, saved.

Metrics of a step are on disk before its checkpoint is, and both files of lines are cut back to the
restored step, so that every step appears exactly once however often a run was killed.
"""

import dataclasses
import json
import logging
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import tqdm

from medloc_jax import checkpoint, distributed, metric_writer, sharding, watchdog
from medloc_jax.curriculum import Schedule
from medloc_jax.model.qwen2_5_vl import Params
from medloc_jax.training import diagnostics, layout, rollouts, speed
from medloc_jax.training import job as jobs
from medloc_jax.training import state as states

SKIPPED_EXAMPLES = "data/skipped_examples"

_log = logging.getLogger(__name__)


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
        pending: metrics of `step`, whose evaluation was cut short; None: its line is written.
        stop: whether SIGTERM came.
        profile: traces a few steps, where the configuration asks for it.
        clock: when the devices were busy.
        ahead: completions that were drawn before the update of the step before theirs, by step;
            those of the step after `step` are saved, for they cannot be drawn again.
        save_seconds: what the last save took.
        evaluated: whether a run of no steps has done what it is for; it saves no checkpoint.
    """

    job: jobs.Job
    placement: states.Placement
    state: states.TrainState
    frozen: Params
    reference: Params | None
    step: int
    counters: dict[str, int]
    pending: dict[str, Any] | None
    schedule: Schedule | None
    checkpointer: checkpoint.Checkpointer
    writer: metric_writer.MetricWriter
    batch_size: int
    reference_fingerprint: int | None
    stop: jobs.StopSignal
    profile: speed.Profile
    clock: speed.DeviceClock
    ahead: rollouts.Ahead = dataclasses.field(default_factory=dict)
    save_seconds: float = 0.0
    evaluated: bool = False

    @property
    def params(self) -> Params:
        """All parameters of the policy."""
        return states.merge(self.state.trainable, self.frozen)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        at_end = self.step >= self.job.config.num_steps and self.pending is None
        return at_end and (self.step > 0 or self.evaluated)

    def is_due(self, step: int) -> bool:
        """Whether a step ends with an evaluation or a checkpoint."""
        config = self.job.config
        due = jobs.due(step, config.eval.every) or jobs.due(step, config.checkpoint.every)
        return due or step == config.num_steps

    def begin(self, evaluate: jobs.Evaluator) -> bool:
        """Does what comes before the next step; returns whether to stop at once.

        That is the evaluation of step 0, or the one that SIGTERM cut short: the checkpoint then
        has the step's other metrics, and its line is still to be written.
        """
        watchdog.mark("begin", self.step)
        stopped = self._agree().asked
        if self.pending is None and not (self.step == 0 and self.job.config.eval.at_start):
            if stopped:
                self.writer.say("stopped by SIGTERM: no step since the start, so nothing to save")
            return stopped
        try:
            evaluation = evaluate.scheduled(self.params, self.step, stop=self.stop)
        except jobs.InterruptedByStop:
            self.writer.say("stopped by SIGTERM: this evaluation is done again at the next start")
            return True
        metrics = {**(self.pending or {}), **evaluation}
        self.log(self.step, metrics)
        self.evaluated = True
        if self.pending is not None:
            self.pending = None
            self.save(self.step, metrics, final=self.finished)
        return stopped and not self.finished

    def end_step(
        self, step: int, metrics: Mapping[str, Any], evaluate: jobs.Evaluator, skipped: int = 0
    ) -> bool:
        """Evaluates, logs and saves what is due after a step; returns whether to stop.

        Args:
            step: that was done.
            metrics: of it.
            evaluate: called when an evaluation is due.
            skipped: examples of this process whose image could not be read.

        Raises:
            distributed.DisagreementError: the processes do not hold the same step or schedule.
        """
        self.step = step
        watchdog.mark("agree", step)
        agreed = self._agree(skipped)
        if self.job.config.data.missing_files == "skip":
            total = self.counters.get(SKIPPED_EXAMPLES, 0) + agreed.total
            self.counters[SKIPPED_EXAMPLES] = total
            metrics = {**metrics, SKIPPED_EXAMPLES: total}
        try:
            metrics = {**metrics, **evaluate.scheduled(self.params, step, stop=self.stop)}
        except jobs.InterruptedByStop:
            # The step is done and its line is not: the next start evaluates it and writes that.
            self.pending = {name: _plain(value) for name, value in metrics.items()}
            self.save(step, {}, final=True)
            self._say_stopped()
            return True
        self.log(step, metrics)
        if self.is_due(step):
            self.clock.restart()
        last = step == self.job.config.num_steps
        if jobs.due(step, self.job.config.checkpoint.every) or last or agreed.asked:
            self.save(step, metrics, final=last or agreed.asked)
        if agreed.asked and not last:
            self._say_stopped()
        return agreed.asked and not last

    def check_finite(
        self,
        step: int,
        metrics: Mapping[str, Any],
        tell: Callable[..., diagnostics.Rows],
        *args: Any,
    ) -> None:
        """Ends a run whose updates are skipped again and again for gradients that are not finite.

        Args:
            step: under way.
            metrics: what the update returned.
            tell: gives what is to be written down of this process's rows.
            *args: of `tell`.

        Raises:
            diagnostics.NonFiniteError: on every process.
        """
        limit = self.job.config.optim.max_nonfinite
        finite = float(sharding.local_rows(metrics["optimizer/skipped_nonfinite"])) == 0
        in_a_row = 0 if finite else self.counters.get("nonfinite_in_a_row", 0) + 1
        self.counters["nonfinite_in_a_row"] = in_a_row
        if 0 < limit <= in_a_row:
            rows, trainable = tell(*args), self.state.trainable
            diagnostics.stop(self.job, step, trainable, metrics, rows, limit)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes the line of a step, and a short form of it to the terminal."""
        self.writer.write(step, metrics)
        config = self.job.config
        if step <= 3 or step % 10 == 0 or step == config.num_steps or _has_eval(metrics):
            self.writer.say(metric_writer.terminal_line(step, config.num_steps, metrics))

    def log_rollouts(self, step: int, record: Mapping[str, Any]) -> None:
        """Appends to rollouts.jsonl (primary process)."""
        self.writer.write_rollouts(step, record)

    def save(self, step: int, metrics: Mapping[str, Any], *, final: bool) -> None:
        """Saves everything that a restart needs; a full disk is a warning unless it is the last."""
        watchdog.mark("save", step)
        self.writer.flush()
        split = self.job.config.eval.split
        best = metrics.get(f"eval/{split}/map")
        ahead = self.ahead.get(step + 1)
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
                "pending": self.pending,
                "ahead": None if ahead is None else rollouts.pack(self.job, ahead),
            },
            {} if best is None else {"best": float(best)},
            final=final,
        )
        self.save_seconds = result.seconds
        self.clock.restart()

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
        self.profile.close()
        self.clock.close()
        self.stop.close()
        self.writer.close()
        self.checkpointer.close()
        return 0 if self.finished else watchdog.STOPPED_BY_SIGTERM

    def _agree(self, count: int = 0) -> distributed.Agreed:
        """Checks that all processes are at one step with one schedule; who was asked to stop."""
        same: dict[str, float | int] = {"step": self.step}
        # One process has nobody to agree with, and this costs a millisecond a step.
        if self.schedule is not None and jax.process_count() > 1:
            state = json.dumps(self.schedule.state_dict(), sort_keys=True).encode()
            same |= {"threshold": self.schedule.threshold, "schedule checksum": zlib.crc32(state)}
        if not sharding.row_share(self.job.mesh).is_first:
            count = 0  # its neighbour counts the rows that both have
        return distributed.agree(same, asked=self.stop.asked, count=count)

    def _say_stopped(self) -> None:
        self.writer.say(f"stopped by SIGTERM, saved at step {self.step}: start it again to go on")


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
        asynchronous=config.checkpoint.asynchronous,
    )
    restored = checkpointer.restore(placement.abstract())
    step, counters, pending, reference, fingerprint = 0, {}, None, None, None
    ahead: rollouts.Ahead = {}
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
        counters, pending = dict(host["counters"]), host.get("pending")
        if host.get("ahead") is not None and not finished:
            ahead[step + 1] = rollouts.unpack(job, host["ahead"])
        if schedule is not None:
            schedule.load_state_dict(host["schedule"])
    if distributed.is_primary():
        # Lines of a run that was killed before its first checkpoint go too: -1 keeps none.
        for name in (metric_writer.METRICS_FILE, metric_writer.ROLLOUTS_FILE):
            kept = -1 if restored is None else step
            # The line of a step whose evaluation is still to be made belongs to no start before.
            kept -= pending is not None and name == metric_writer.METRICS_FILE
            metric_writer.truncate_jsonl(job.workdir / name, kept)
    distributed.barrier("lines_cut")
    writer = metric_writer.MetricWriter(
        job.workdir,
        tensorboard=config.log.tensorboard,
        wandb=config.log.wandb,
        project=config.log.wandb_project,
        config=json.loads(config.to_json_best_effort()),
        is_primary=distributed.is_primary(),
        start_step=step if pending is None else step - 1,
    )
    if restored is not None:
        writer.say(f"continuing {job.workdir} from step {step}")
    text, warnings = layout.describe(job, placement, reference)
    writer.say(text)
    for warning in warnings if distributed.is_primary() else []:
        _log.warning(warning)
    return Session(
        job=job,
        placement=placement,
        state=state,
        frozen=frozen,
        reference=reference,
        step=step,
        counters=counters,
        pending=pending,
        schedule=schedule,
        checkpointer=checkpointer,
        writer=writer,
        batch_size=batch_size,
        reference_fingerprint=fingerprint,
        # From here on: compiling and the first evaluation take time, too.
        stop=jobs.StopSignal(),
        profile=speed.Profile(
            job.workdir, config.log.profile_steps, enabled=distributed.is_primary()
        ),
        clock=speed.DeviceClock(),
        ahead=ahead,
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
    """Fetches the scalars from the devices; waits for the program that makes them."""
    scalars = {name: value for name, value in metrics.items() if value.ndim == 0}
    return {name: float(sharding.local_rows(value)) for name, value in scalars.items()}


def _plain(value: Any) -> Any:
    """As JSON can hold it."""
    return value if isinstance(value, (bool, int)) else float(value)
