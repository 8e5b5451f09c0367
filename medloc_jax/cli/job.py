# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""From a configuration to a job: model, tokenizer, examples, shapes, initial weights."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags

from medloc_jax import checkpoint, distributed, sharding, storage
from medloc_jax import config as configuration
from medloc_jax.cli import validate
from medloc_jax.convert import parameters
from medloc_jax.data import batching, examples, pipeline, synthetic
from medloc_jax.model import config as model_config
from medloc_jax.model import geometry, processor, qwen2_5_vl, tokenizer
from medloc_jax.training import job as jobs
from medloc_jax.training import state as states


def parse(argv: Sequence[str], verb: str, define: Callable[[flags.FlagValues], None]) -> Any:
    """Reads a verb's flags, `--config` and its overrides among them.

    Args:
        argv: what follows the verb.
        verb: for usage messages.
        define: adds the verb's own flags.

    Returns:
        The flag values.
    """
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "the experiment file", flag_values=values, sys_argv=[verb, *argv]
    )
    define(values)
    rest = values([verb, *argv])[1:]
    if rest:
        raise ValueError(f"unknown argument {rest[0]!r}: flags are written --name=value")
    return values


def use_compilation_cache() -> None:
    """Keeps compiled programs for the next process: a restarted run starts in seconds."""
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    jax.config.update(
        "jax_compilation_cache_dir", folder or str(Path.home() / ".cache" / "medloc_jax" / "xla")
    )


def resolve(config: Any) -> None:
    """Fills in what a configuration leaves to its weights: the tokenizer that came with them."""
    if not config.model.tokenizer:
        config.model.tokenizer = _tokenizer_folder(config)


def _tokenizer_folder(config: Any) -> str:
    origin = config.model.init_from
    home = configuration.find_home(origin) if origin else None
    for source in filter(None, (config.model.preset, origin, home)):
        if (storage.path(source) / "tokenizer_config.json").is_file():
            # The run goes on to be read from other working directories.
            return str(storage.absolute(source))
    run = configuration.find_run(origin) if origin else None
    return configuration.read(run).model.tokenizer if run else ""


def write_config(config: Any, workdir: Any) -> None:
    """Writes the resolved configuration; refuses a folder that holds another run.

    Raises:
        ValueError: naming what differs.
    """
    path = workdir / configuration.FILE
    # Without a checkpoint there is nothing to lose: a start that failed may be corrected.
    if path.is_file() and checkpoint.is_checkpoint(workdir):
        validate.check_same_run(configuration.read(workdir), config, workdir)
    if distributed.is_primary():
        storage.make_folder(workdir)
        storage.write_text(path, config.to_json_best_effort(indent=2) + "\n")
    distributed.barrier("config_written")


def open_job(config: Any, workdir: Any, *, only_split: str = "") -> jobs.Job:
    """Builds everything that training and evaluation need, and refuses what cannot work.

    Args:
        config: the resolved configuration.
        workdir: the run's folder, as `storage.path` gives it.
        only_split: evaluate this split alone; the train split then only gives the floor, where
            there is one.

    Returns:
        The job; no weights are loaded yet.

    Raises:
        ValueError: one line that names the thing and the cure.
    """
    validate.check(config)
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"--workdir={workdir} is a file: name a folder")
    if not only_split:
        _check_origin(config.model.init_from)
    mesh = sharding.make_mesh(**config.mesh.to_dict())
    sizes = model_config.preset(_small_files(config.model.preset))
    text_coder = tokenizer.load(_small_files(config.model.tokenizer), sizes)
    model = jobs.make_model(config, sizes, mesh)
    pixels = processor.ImageProcessor.for_model(
        sizes.vision, min_pixels=config.data.min_pixels, max_pixels=config.data.max_pixels
    )
    loader = batching.RowLoader(
        config=sizes,
        processor=pixels,
        tokenizer=text_coder,
        template=config.data.template,
        augment=tuple(config.data.augment),
        seed=config.seed,
        image_keys=bool(config.data.feature_cache),
        pictures=bool(config.rewards.semantic_scorer),
    )
    by_split = _examples(config, workdir, only_split)
    looked_at = [only_split] if only_split else by_split
    shapes = [s for split in looked_at for s in pipeline.row_shapes(by_split[split], loader)]
    buckets = geometry.tighten(geometry.plan_buckets(shapes, config.data.max_buckets), shapes)
    rows = config.sft.batch_size if config.method == "sft" else config.rl.prompts_per_step
    name = "sft.batch_size" if config.method == "sft" else "rl.prompts_per_step"
    micro = config.sft.micro_batch if config.method == "sft" else config.rl.micro_batch_prompts
    if not only_split:
        sharding.check_batch(mesh, rows, name)
        if micro:
            sharding.check_batch(mesh, micro, "the micro-batch of " + name)
    sharding.check_batch(mesh, config.eval.batch_size, "eval.batch_size")
    return jobs.Job(
        config=config,
        workdir=workdir,
        mesh=mesh,
        model=model,
        tokenizer=text_coder,
        loader=loader,
        examples=by_split,
        buckets=buckets,
        initial=lambda: initial_params(config, model, mesh),
    )


def sft_loader(job: jobs.Job) -> batching.RowLoader:
    """The job's loader, making target texts too."""
    return dataclasses.replace(
        job.loader,
        completion_length=job.config.rl.max_completion_tokens,
        box_scale=job.config.sft.box_scale,
        box_jitter=job.config.sft.box_jitter,
    )


def initial_params(
    config: Any, model: qwen2_5_vl.Model, mesh: jax.sharding.Mesh
) -> qwen2_5_vl.Params:
    """The parameters of `model.init_from`, or random ones.

    Raises:
        ValueError: if they cannot be read, or belong to another model.
    """
    source = config.model.init_from
    if not source:
        return states.fresh(model, mesh, config.seed)
    _check_origin(source)
    if not checkpoint.is_checkpoint(source) and not parameters.is_hf_folder(source):
        raise ValueError(
            f"model.init_from={source} holds no parameters: give a Hugging Face folder, a "
            "converted one, the workdir of a run, its checkpoints folder, or one of its steps"
        )
    return parameters.load(source, model.config, params_struct(model, mesh))


def _check_origin(source: str) -> None:
    """Refuses a model.init_from that is not there, or cannot be read where it is."""
    if source and not storage.path(source).exists():
        raise ValueError(f"model.init_from={source}: there is no such folder")
    if source and storage.is_remote(source) and not checkpoint.is_checkpoint(source):
        raise ValueError(
            f"model.init_from={source} is no checkpoint of medloc_jax, and of an object store "
            "nothing else can be read: copy the folder to this machine, or convert it first "
            "(`medloc convert`) and copy the result there"
        )


def _small_files(folder: str) -> str:
    """The folder of a model's sizes or words as one of this machine; presets are left alone."""
    if not storage.is_remote(folder):
        return folder
    endings = (".json", ".txt", ".jinja", ".model")
    return str(storage.local_copy(folder, lambda name: "/" not in name and name.endswith(endings)))


def params_struct(model: qwen2_5_vl.Model, mesh: jax.sharding.Mesh) -> qwen2_5_vl.Params:
    """Shapes and shardings of a whole parameter tree, as the checkpointer wants them."""
    return sharding.param_structs(mesh, model.abstract_params(), model.logical_axes())


def _drawings(made: Any, workdir: Any) -> Path:
    """Where the synthetic data are drawn; of a remote run, each host draws its own."""
    if not storage.is_remote(workdir):
        return workdir / "data"
    name = f"{made.variant}-{made.num_train}-{made.num_test}-{made.seed}"
    return Path.home() / ".cache" / "medloc_jax" / "synthetic" / name


def _examples(config: Any, workdir: Any, only_split: str) -> dict[str, list[examples.Example]]:
    """The splits that the run looks at; val is cut from train where the manifest has none."""
    data, manifest = config.data, config.data.manifest
    if manifest == "synthetic":
        made = data.synthetic
        manifest = synthetic.write(
            _drawings(made, workdir),
            variant=made.variant,
            num_train=made.num_train,
            num_test=made.num_test,
            seed=made.seed,
        )
    rows = examples.load_manifest(manifest, unreadable_train=data.missing_files == "skip")
    # Cut with a seed of its own, so that runs that differ in their seed look at the same val.
    rows = examples.cut_val(rows, data.val_fraction, seed=0)
    if data.missing_files == "skip":
        examples.check_evaluated(rows)
    if only_split:
        train = [example for example in rows if example.split == "train"]
        return {"train": train, only_split: examples.select(rows, only_split)}
    needed = {"train", config.eval.split, config.eval.final_split} - {""}
    return {split: examples.select(rows, split) for split in sorted(needed)}
