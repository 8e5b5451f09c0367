# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Where a step's completions come from: drawn when the step begins, or one step ahead.

Everything here is dispatched and nothing is waited for, but the pictures. On-policy, a step's
completions are drawn with the parameters that the step before has made. One step ahead, they are
drawn with the parameters before that update: then the devices have them to draw while the host
reads and scores what was drawn before, and an update to make while it reads these; they never wait
for the host. What the difference does to the loss is told in `rl/losses.py`.

What was drawn ahead of a save cannot be drawn again, since the parameters are gone: it is saved.
"""

import base64
import dataclasses
import io
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float

from medloc_jax import sharding, watchdog
from medloc_jax.data import batching
from medloc_jax.model import geometry
from medloc_jax.rl import rollout
from medloc_jax.sampling import groups
from medloc_jax.training import grpo_programs, speed
from medloc_jax.training import job as jobs
from medloc_jax.training import state as states

# By step: completions that were drawn before the update of the step before theirs.
Ahead = MutableMapping[int, groups.Sampled]


class Drawn(NamedTuple):
    """Completions of a step and what belongs to them, on their way.

    Attributes:
        step: that is to learn from them.
        batch: this process's prompts.
        inputs: the prompts of all processes, on the devices.
        features: of their images, under the parameters that drew.
        sampled: the completions.
        reference_logprobs: of them under the frozen reference; None without one.
    """

    step: int
    batch: batching.Batch
    inputs: geometry.ModelInputs
    features: Float[Array, "B m d"]
    sampled: groups.Sampled
    reference_logprobs: Float[Array, "B G C"] | None

    @property
    def completions(self) -> tuple[Array, Array]:
        """Tokens and mask."""
        return self.sampled.completions, self.sampled.completion_mask


@dataclasses.dataclass(frozen=True)
class Draw:
    """Draws completions for the next batch.

    Attributes:
        job: what is trained.
        made: the step's programs.
        features: of `vision_features.encoder`.
        batches: this process's rows of the steps to come.
        reference: all parameters of the reference; None without one.
        clock: is told what the devices are given to do.
    """

    job: jobs.Job
    made: grpo_programs.Programs
    features: Callable[..., Array]
    batches: Iterator[batching.Batch]
    reference: states.Params | None
    clock: speed.DeviceClock

    def __call__(self, step: int, params: states.Params, ahead: Ahead) -> Drawn:
        """Dispatches the encoder, the sampler and the reference.

        Args:
            step: that is to learn from them; steps come in order.
            params: all parameters to draw with.
            ahead: what is in it for this step was drawn before.
        """
        job, made, config = self.job, self.made, self.job.config
        watchdog.mark("data", step)
        batch = next(self.batches)
        watchdog.mark("sample")
        inputs = sharding.shard_batch(job.mesh, batch.inputs)
        temperature = np.float32(config.rl.temperature)
        features = self.features(params, inputs, batch)
        sampled = ahead.get(step)
        if sampled is None:
            seed, number = np.uint32(config.seed), np.uint32(step)
            sampled = made.sample(params, inputs, features, seed, number, temperature)
        self.clock.sent("sample", sampled.completions)
        reference = None
        if self.reference is not None:
            frozen_vision = config.model.freeze_vision
            seen = features if frozen_vision else made.encode(self.reference, inputs)
            tokens = (sampled.completions, sampled.completion_mask)
            reference = made.logprobs(self.reference, inputs, seen, *tokens, temperature)
            self.clock.sent("reference", reference)
        return Drawn(step, batch, inputs, features, sampled, reference)

    def rollout(self, drawn: Drawn, params: states.Params) -> rollout.Rollout:
        """What the loss reads of completions.

        Args:
            drawn: the completions.
            params: all parameters before the first update on them.
        """
        rl, old = self.job.config.rl, None
        if rl.num_updates > 1:
            seen = drawn.features
            if rl.sample_ahead and not self.job.config.model.freeze_vision:
                seen = self.made.encode(params, drawn.inputs)  # the tower has moved since
            of = (drawn.inputs, seen, *drawn.completions, np.float32(rl.temperature))
            old = self.made.logprobs(params, *of)
            self.clock.sent("reference", old)
        weighted = rl.sample_ahead and rl.importance_cap > 0
        return rollout.Rollout(
            *drawn.completions,
            old_logprobs=old,
            reference_logprobs=drawn.reference_logprobs,
            sampler_logprobs=drawn.sampled.logprobs if weighted else None,
        )


# (step, parameters to draw with, what was drawn before) -> the step's completions.
DrawFunction = Callable[[int, Any, Ahead], Drawn]


def on_policy(
    draw: DrawFunction, steps: Sequence[int], params: Callable[[], states.Params], ahead: Ahead
) -> Iterator[Drawn]:
    """Yields each step's completions, drawn when they are asked for."""
    for step in steps:
        yield draw(step, params(), ahead)


def one_ahead(
    draw: DrawFunction, steps: Sequence[int], params: Callable[[], states.Params], ahead: Ahead
) -> Iterator[Drawn]:
    """Yields each step's completions when those of the next step are drawn, too.

    Args:
        draw: see `Draw`.
        steps: in order.
        params: gives the parameters as they are when it is called.
        ahead: holds, while the caller has a step, the completions of that step and of the next.
    """
    waiting: Drawn | None = None
    for step in steps:
        drawn = draw(step, params(), ahead)
        ahead[step] = drawn.sampled
        if waiting is not None:
            yield waiting
            ahead.pop(waiting.step)
        waiting = drawn
    if waiting is not None:
        yield waiting


# By rl.sample_ahead.
STREAMS = {False: on_policy, True: one_ahead}


def pack(job: jobs.Job, sampled: groups.Sampled) -> str:
    """Completions of all processes as text; every process calls it."""
    rows = {name: job.all_rows(sharding.local_rows(x)) for name, x in sampled._asdict().items()}
    packed = io.BytesIO()
    np.savez_compressed(packed, **rows)  # type: ignore[arg-type] # with a checksum of each array
    return base64.b85encode(packed.getvalue()).decode("ascii")


def unpack(job: jobs.Job, text: str) -> groups.Sampled:
    """What `pack` was given, on the devices of this run.

    Raises:
        ValueError: it is damaged, or of other sizes than the run's.
    """
    rl = job.config.rl
    shape = (rl.prompts_per_step, rl.group_size, rl.max_completion_tokens)
    try:
        with np.load(io.BytesIO(base64.b85decode(text))) as stored:
            rows: dict[str, Any] = {name: stored[name] for name in groups.Sampled._fields}
    except Exception as error:  # zipfile, zlib and numpy raise anything
        raise ValueError(
            f"the completions saved in {job.workdir}/checkpoints are damaged ({error}): remove the "
            "newest step, and the run goes on from the one before"
        ) from None
    if any(x.shape != shape for x in rows.values()):
        raise ValueError(f"{job.workdir} holds completions of other sizes than {shape}")
    share = sharding.row_share(job.mesh)
    part = shape[0] // share.count
    mine = slice(share.index * part, (share.index + 1) * part)
    return sharding.shard_batch(job.mesh, groups.Sampled(**{k: v[mine] for k, v in rows.items()}))
