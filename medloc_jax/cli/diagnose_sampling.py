# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Groups of completions drawn from a model that is not trained on them: for `medloc diagnose`.

The sampler, its batch and its temperature are those of the run that the configuration describes.
"""

import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from medloc_jax import checkpoint, sharding, storage
from medloc_jax.cli import job as open_job
from medloc_jax.convert import parameters
from medloc_jax.data import pipeline
from medloc_jax.data.examples import Example
from medloc_jax.evaluation import sampled_groups
from medloc_jax.rewards import scores
from medloc_jax.training import job as jobs
from medloc_jax.training import programs


def sample(
    config: Any, *, split: str, source: str, workdir: str, num_examples: int
) -> sampled_groups.Groups:
    """Samples `rl.group_size` completions for some examples of a split, and scores them.

    Args:
        config: the run's configuration; its tokenizer is filled in.
        split: train, val or test.
        source: checkpoint, run or Hugging Face folder; "": what `model.init_from` says.
        workdir: of the run, where synthetic data are; "": they are drawn for this once.
        num_examples: drawn from the split with a seed of their own; 0 = all.

    Returns:
        The groups, alike on every process.

    Raises:
        ValueError: one line that names the thing and the cure.
    """
    if source and not config.model.init_from:
        config.model.init_from = source  # so that its tokenizer is found
    open_job.resolve(config)
    open_job.use_compilation_cache()
    # Every process draws synthetic data for itself, alike, in a folder of its own.
    with tempfile.TemporaryDirectory() as drawings:
        job = open_job.open_job(config, storage.path(workdir or drawings), only_split=split)
        sharding.check_batch(job.mesh, config.rl.prompts_per_step, "rl.prompts_per_step")
        return _sample(job, choose(job.examples[split], num_examples), _params(job, source))


def choose(rows: Sequence[Any], limit: int) -> list[Any]:
    """So many examples, in order: the first ones of a manifest may all be of one class."""
    if not limit or limit >= len(rows):
        return list(rows)
    chosen = np.random.default_rng(0).choice(len(rows), limit, replace=False)
    return [rows[row] for row in sorted(chosen)]


def _params(job: jobs.Job, source: str) -> Any:
    if not source:
        return job.initial()
    like = open_job.params_struct(job.model, job.mesh)
    if parameters.is_hf_folder(source):
        return parameters.load(source, job.model.config, like)
    return checkpoint.load_items(source, {"params": like}).arrays["params"]


def _sample(job: jobs.Job, chosen: Sequence[Example], params: Any) -> sampled_groups.Groups:
    rl, mesh = job.config.rl, job.mesh
    encode = programs.encode_program(job.model, mesh)
    rules = job.rules(group_size=rl.group_size, greedy=False)
    draw = programs.sample_program(job.model, mesh, rules)
    seed, temperature = np.uint32(job.config.seed), np.float32(rl.temperature)
    tasks = []
    for bucket in job.buckets:
        inputs = programs.batch_struct(mesh, job.model.config, bucket, rl.prompts_per_step)
        features = programs.struct_of(job.model.encode_images, mesh, params, inputs)
        tasks.append((encode, (params, inputs)))
        tasks.append((draw, (params, inputs, features, seed, np.uint32(0), temperature)))
    programs.compile_all(tasks, job.buckets)
    share, records = sharding.row_share(mesh), []
    batches = pipeline.eval_batches(
        chosen,
        job.loader,
        batch_size=rl.prompts_per_step,
        process_index=share.index,
        process_count=share.count,
        buckets=job.buckets,
        num_workers=job.config.data.num_workers,
        num_threads=job.config.data.num_threads,
    )
    for number, batch in enumerate(batches):
        inputs = sharding.shard_batch(mesh, batch.inputs)
        features = encode(params, inputs)
        drawn = draw(params, inputs, features, seed, np.uint32(number), temperature)
        texts = job.texts(sharding.local_rows(drawn.completions))
        scored = scores.score_completions(texts, batch.target_boxes_px, batch.frames, job.template)
        sides = batch.target_boxes_px[:, 2:] - batch.target_boxes_px[:, :2]
        for row, example in enumerate(batch.examples):
            if batch.row_valid[row]:
                area = float(np.prod(sides[row]) / (example.width * example.height))
                said = (scored.scores["iou"][row].tolist(), scored.valid[row].tolist(), area)
                records.append(dict(zip(("ious", "valid", "area"), said, strict=True)))
    if jax.process_count() > 1:
        records = job.all_records(records)
    return sampled_groups.Groups(
        np.array([one["ious"] for one in records], np.float64),
        np.array([one["valid"] for one in records], np.bool_),
        np.array([one["area"] for one in records], np.float64),
    )
