# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What the training loops are given, and what they share: evaluating and stopping."""

import dataclasses
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from medloc_jax import distributed, metric_writer, sharding, watchdog
from medloc_jax.data import batching, pipeline
from medloc_jax.data.examples import Example
from medloc_jax.evaluation import predict
from medloc_jax.grounding import prompts
from medloc_jax.model import attention, geometry, qwen2_5_vl
from medloc_jax.model import config as model_config
from medloc_jax.model.tokenizer import Tokenizer
from medloc_jax.rewards import semantic
from medloc_jax.sampling import groups
from medloc_jax.training import optimizer, programs, state

LOGGED_MEASURES = ("a50", "a80", "miou", "map", "valid_rate")  # of an evaluation, as scalars


@dataclasses.dataclass(frozen=True)
class Job:
    """Everything a loop needs that does not change while it runs.

    Attributes:
        config: the resolved configuration, checked.
        workdir: the run's folder.
        mesh: all devices.
        model: the model's programs.
        tokenizer: of the model.
        loader: from example to row; its copy for training carries the augmentations.
        examples: by split.
        buckets: the static shapes that cover every split.
        initial: gives the parameters to start from, whole, laid out or on the host.
    """

    config: Any
    workdir: Path
    mesh: Mesh
    model: qwen2_5_vl.Model
    tokenizer: Tokenizer
    loader: batching.RowLoader
    examples: Mapping[str, Sequence[Example]]
    buckets: tuple[geometry.Bucket, ...]
    initial: Callable[[], qwen2_5_vl.Params]

    @property
    def template(self) -> prompts.Template:
        """The prompt and answer format."""
        return prompts.TEMPLATES[self.loader.template]

    def regions(self, batch: batching.Batch) -> semantic.Regions | None:
        """What the scores that look at images are given; None without a configured scorer.

        Raises:
            ValueError: there is a scorer, and the batch holds no pictures for it.
        """
        scorer = semantic.load_scorer(self.config.rewards.semantic_scorer)
        if scorer is None:
            return None
        if batch.pictures is None:
            raise ValueError(
                f"rewards.semantic_scorer={self.config.rewards.semantic_scorer!r} looks at images, "
                "and the batch holds none: make its loader with RowLoader(pictures=True)"
            )
        return semantic.Regions(scorer, batch.pictures, [one.query for one in batch.examples])

    def rules(self, *, group_size: int, greedy: bool) -> groups.SamplingRules:
        """How this run samples, or decodes greedily."""
        return groups.SamplingRules(
            group_size=group_size,
            max_completion_tokens=self.config.rl.max_completion_tokens,
            stop_ids=self.tokenizer.stop_ids,
            forbidden_ids=self.tokenizer.forbidden_ids,
            pad_id=self.tokenizer.pad_id,
            greedy=greedy,
            gather_weights=self.config.rl.gather_weights,
        )

    def texts(self, completions: np.ndarray) -> list[list[str]]:
        """Decodes [B, G, C] token ids."""
        return [[self.tokenizer.decode(ids.tolist()) for ids in group] for group in completions]

    def all_rows(self, local: np.ndarray) -> np.ndarray:
        """The rows of all processes, in the order of the batch; every process calls it.

        Args:
            local: numbers of this process's rows, rows leading.
        """
        # Processes that share their rows, because the tensor axis spans them, count once.
        copies = sharding.row_share(self.mesh).copies
        everyone = distributed.all_hosts(local).reshape(-1, *local.shape)
        return everyone[::copies].reshape(-1, *local.shape[1:])

    def all_records(self, local: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """As `all_rows`, of one record a row, such as JSON can hold."""
        return predict.gather_over_processes(local, sharding.row_share(self.mesh).copies)

    def learning_rate(self, step: int) -> float:
        """The rate of the update after `step` steps."""
        return learning_rate(self.config, step)

    def train_batches(
        self, loader: batching.RowLoader, batch_size: int, start_step: int
    ) -> Iterator[batching.Batch]:
        """This process's rows of the batches from `start_step` on."""
        data, share = self.config.data, sharding.row_share(self.mesh)
        return pipeline.train_batches(
            self.examples["train"],
            loader,
            batch_size=batch_size,
            seed=self.config.seed,
            start_step=start_step,
            num_steps=self.config.num_steps,
            process_index=share.index,
            process_count=share.count,
            buckets=self.buckets,
            num_workers=data.num_workers,
            num_threads=data.num_threads,
            skip_unreadable=data.missing_files == "skip",
        )


def learning_rate(config: Any, step: int) -> float:
    """The learning rate that the configuration gives the update after `step` steps."""
    optim = config.optim
    return optimizer.learning_rate_at(
        step,
        learning_rate=optim.learning_rate,
        warmup_steps=optim.warmup_steps,
        schedule=optim.schedule,
        total_steps=optim.total_steps or config.num_steps,
    )


def make_model(config: Any, sizes: model_config.ModelConfig, mesh: Mesh) -> qwen2_5_vl.Model:
    """The model as the configuration wants it computed."""
    dtype = jnp.dtype(config.model.compute_dtype)
    return qwen2_5_vl.Model(
        sizes,
        compute_dtype=dtype,
        remat=config.model.remat,
        attention=attention.choose(config.model.attention, mesh.devices.flat[0], dtype),
        vocab_chunk=config.model.vocab_chunk,
        unroll=config.model.unroll,
        mesh=mesh,
    )


def make_optimizer(config: Any) -> Any:
    """The optimizer that the configuration describes."""
    optim = config.optim
    return optimizer.make_optimizer(
        beta1=optim.beta1,
        beta2=optim.beta2,
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        clip_norm=optim.clip_norm,
    )


def place(job: Job, chain: Any) -> state.Placement:
    """Plans the run's arrays."""
    model = job.config.model
    return state.place(
        job.model,
        job.mesh,
        chain,
        freeze_vision=model.freeze_vision,
        frozen_dtype=model.frozen_dtype,
    )


class Evaluator:
    """Greedy decoding of a split with parameters of the moment."""

    def __init__(self, job: Job, encode: programs.Program):
        """Takes the programs; `tasks` compiles them."""
        self._job = job
        self._encode = encode
        self._decode = programs.sample_program(
            job.model, job.mesh, job.rules(group_size=1, greedy=True)
        )

    def tasks(self, params: Any) -> list[tuple[programs.Program, tuple]]:
        """What to compile, for parameters of these shapes."""
        job, tasks = self._job, []
        one = np.float32(1)
        for bucket in job.buckets:
            rows = job.config.eval.batch_size
            inputs = programs.batch_struct(job.mesh, job.model.config, bucket, rows)
            features = programs.struct_of(job.model.encode_images, job.mesh, params, inputs)
            tasks.append((self._encode, (params, inputs)))
            args = (params, inputs, features, np.uint32(0), np.uint32(0), one)
            tasks.append((self._decode, args))
        return tasks

    def scheduled(
        self, params: Any, step: int, stop: "StopSignal | None" = None
    ) -> dict[str, float]:
        """What is due after a step: the watched split now and then, the final at both ends.

        Raises:
            InterruptedByStop: on every process, if one was asked to stop meanwhile.
        """
        job, evaluation = self._job, self._job.config.eval
        end = step == job.config.num_steps or (step == 0 and evaluation.at_start)
        metrics: dict[str, float] = {}
        if end and evaluation.final_split:
            metrics |= self(params, evaluation.final_split, step, stop=stop)
        watched = end or (step > 0 and due(step, evaluation.every))
        if watched and (evaluation.split != evaluation.final_split or not end):
            metrics |= self(params, evaluation.split, step, evaluation.num_examples, stop=stop)
        return metrics

    def __call__(
        self,
        params: Any,
        split: str,
        step: int,
        limit: int = 0,
        out: Path | None = None,
        stop: "StopSignal | None" = None,
    ) -> dict[str, float]:
        """Decodes a split, writes `eval/<split>-<step>/`; returns `eval/<split>/...` scalars.

        Args:
            params: parameters to decode with.
            split: which examples.
            step: that the parameters are of.
            limit: only so many examples; 0 = all.
            out: another folder to write to.
            stop: looked at before each batch, so that nobody waits for a long evaluation.

        Raises:
            InterruptedByStop: as `scheduled`.
        """
        job = self._job
        config = job.config
        examples, share = job.examples[split][: limit or None], sharding.row_share(job.mesh)
        batches = pipeline.eval_batches(
            examples,
            job.loader,
            batch_size=config.eval.batch_size,
            process_index=share.index,
            process_count=share.count,
            buckets=job.buckets,
            num_workers=config.data.num_workers,
            num_threads=config.data.num_threads,
        )

        def generate(batch: batching.Batch) -> list[str]:
            watchdog.mark(f"evaluate {split}", step)
            if stop is not None and stop.agreed():
                raise InterruptedByStop
            inputs = sharding.shard_batch(job.mesh, batch.inputs)
            features = self._encode(params, inputs)
            no_noise, one = np.uint32(0), np.float32(1)
            sampled = self._decode(params, inputs, features, no_noise, no_noise, one)
            return [group[0] for group in job.texts(sharding.local_rows(sampled.completions))]

        predictions, summary = predict.evaluate(
            batches,
            generate,
            job.template,
            eval_examples=examples,
            train_examples=job.examples["train"],
            max_completion_tokens=config.rl.max_completion_tokens,
            gather=job.all_records if jax.process_count() > 1 else None,
            progress=distributed.is_primary(),
        )
        if distributed.is_primary():
            out = out or job.workdir / "eval" / f"{split}-{step}"
            with metric_writer.full_disk_is_a_warning(f"{out}"):
                predict.write(out, predictions, summary)
        return {f"eval/{split}/{name}": summary[name] for name in LOGGED_MEASURES}


class InterruptedByStop(Exception):
    """An evaluation was left because the run is asked to stop."""


class StopSignal:
    """Remembers SIGTERM, so that the step under way can end and be saved."""

    def __init__(self) -> None:
        """Listens."""
        self.asked = False
        self._previous: Any = signal.signal(signal.SIGTERM, self._remember)

    def close(self) -> None:
        """Restores whoever listened before."""
        signal.signal(signal.SIGTERM, self._previous)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def agreed(self) -> bool:
        """Whether any process was asked: all leave at the same place."""
        return distributed.agree({}, asked=self.asked).asked


def due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps happens after this one; 0 = never."""
    return every > 0 and step % every == 0
