# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""From a configuration to a job: model, tokenizer, examples, shapes, initial weights."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from ml_collections import config_flags

from medloc_jax import checkpoint, distributed, sharding
from medloc_jax import config as configuration
from medloc_jax.cli import validate
from medloc_jax.data import batching, examples, pipeline, synthetic
from medloc_jax.model import config as model_config
from medloc_jax.model import geometry, processor, qwen2_5_vl, tokenizer
from medloc_jax.training import job as jobs
from medloc_jax.training import state as states

CONFIG_FILE = "config.json"


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


def read_config(workdir: Path) -> Any:
    """The configuration that a run was started with.

    Raises:
        ValueError: if the folder is not a run's.
    """
    path = workdir / CONFIG_FILE
    if not path.is_file():
        raise ValueError(f"{workdir} has no {CONFIG_FILE}: it is not the folder of a run")
    resolved = configuration.default_config()
    resolved.update(_tuples(json.loads(path.read_text(encoding="utf-8"))))
    return resolved


def write_config(config: Any, workdir: Path) -> None:
    """Writes the resolved configuration; refuses a folder that holds another run.

    Raises:
        ValueError: naming what differs.
    """
    path = workdir / CONFIG_FILE
    if path.is_file():
        validate.check_same_run(read_config(workdir), config, workdir)
    if distributed.is_primary():
        workdir.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(config.to_json_best_effort(indent=2) + "\n", encoding="utf-8")
        partial.replace(path)
    distributed.barrier("config_written")


def open_job(config: Any, workdir: Path) -> jobs.Job:
    """Builds everything that training and evaluation need, and refuses what cannot work.

    Args:
        config: the resolved configuration.
        workdir: the run's folder.

    Returns:
        The job; no weights are loaded yet.

    Raises:
        ValueError: one line that names the thing and the cure.
    """
    validate.check(config)
    mesh = sharding.make_mesh(**config.mesh.to_dict())
    sizes = model_config.preset(config.model.preset)
    text_coder = tokenizer.load(config.model.tokenizer, sizes)
    model = qwen2_5_vl.Model(
        sizes,
        compute_dtype=jnp.dtype(config.model.compute_dtype),
        remat=config.model.remat,
        attention=config.model.attention,
        vocab_chunk=config.model.vocab_chunk,
    )
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
    )
    by_split = _examples(config, workdir)
    shapes = [shape for rows in by_split.values() for shape in pipeline.row_shapes(rows, loader)]
    buckets = geometry.plan_buckets(shapes, config.data.max_buckets)
    rows = config.sft.batch_size if config.method == "sft" else config.rl.prompts_per_step
    name = "sft.batch_size" if config.method == "sft" else "rl.prompts_per_step"
    sharding.check_batch(mesh, rows, name)
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
    if not Path(source).exists():
        raise ValueError(f"model.init_from={source}: there is no such folder")
    if not checkpoint.is_checkpoint(source):
        raise ValueError(
            f"model.init_from={source} holds no checkpoint: give the workdir of a run, its "
            "checkpoints folder, or one of its step folders"
        )
    return checkpoint.load_item(source, "params", params_struct(model, mesh))


def params_struct(model: qwen2_5_vl.Model, mesh: jax.sharding.Mesh) -> qwen2_5_vl.Params:
    """Shapes and shardings of a whole parameter tree, as the checkpointer wants them."""
    shapes = model.abstract_params()
    layout = sharding.of_params(mesh, shapes, model.logical_axes())
    return jax.tree.map(
        lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, layout
    )


def _examples(config: Any, workdir: Path) -> dict[str, list[examples.Example]]:
    """The splits that the run looks at; val is cut from train where the manifest has none."""
    data, manifest = config.data, config.data.manifest
    if manifest == "synthetic":
        made = data.synthetic
        manifest = synthetic.write(
            workdir / "data",
            variant=made.variant,
            num_train=made.num_train,
            num_test=made.num_test,
            seed=made.seed,
        )
    rows = examples.load_manifest(manifest)
    # Cut with a seed of its own, so that runs that differ in their seed look at the same val.
    rows = examples.cut_val(rows, data.val_fraction, seed=0)
    needed = {"train", config.eval.split, config.eval.final_split} - {""}
    return {split: examples.select(rows, split) for split in sorted(needed)}


def _tuples(value: Any) -> Any:
    """JSON lists back to the tuples that they were."""
    if isinstance(value, dict):
        return {name: _tuples(one) for name, one in value.items()}
    if isinstance(value, list):
        return tuple(_tuples(one) for one in value)
    return value
