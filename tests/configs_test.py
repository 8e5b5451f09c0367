# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Every experiment file loads and validates; those of the paper build their step abstractly."""

import importlib.util
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medloc_jax import sharding
from medloc_jax.cli import job as open_job
from medloc_jax.cli import validate
from medloc_jax.data import batching
from medloc_jax.model import config as model_config
from medloc_jax.model import geometry, processor, qwen2_5_vl, tokenizer
from medloc_jax.rewards import scores
from medloc_jax.rl import rollout
from medloc_jax.training import grpo, programs, sft
from medloc_jax.training import job as jobs
from medloc_jax.training import state as states

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
DATA_SETS, SIZES = ("ham10000", "heel", "tn3k"), ("3b", "7b", "32b")


def _load(path, *variant):
    spec = importlib.util.spec_from_file_location("experiment", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*variant)


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.py")), ids=lambda path: path.stem)
def test_every_experiment_validates_and_names_itself(path):
    config = _load(path)
    validate.check(config)
    text = path.read_text()
    assert f"--config={path.relative_to(CONFIGS.parent)}" in text  # its command


def test_the_papers_runs_are_all_there():
    names = {f"{data}_{size}.py" for data in DATA_SETS for size in SIZES}
    for method in ("grpo", "sft"):
        assert {path.name for path in (CONFIGS / method).glob("*.py")} == names
        for name in names:
            config = _load(CONFIGS / method / name)
            assert config.method == method and config.num_steps == 1000
            assert name == f"{Path(config.data.manifest).parent.name}_{config.model.preset}.py"


@pytest.mark.parametrize("data", DATA_SETS)
def test_the_values_of_the_paper(data):
    config = _load(CONFIGS / "grpo" / f"{data}_3b.py")
    rl, curriculum, optim = config.rl, config.curriculum, config.optim
    assert (rl.group_size, rl.prompts_per_step, rl.temperature, rl.kl_weight) == (8, 8, 0.9, 0.04)
    assert (curriculum.threshold_start, curriculum.threshold_target) == (0.3, 0.8)
    assert curriculum.window == 30 and curriculum.margin == 0.1 and optim.learning_rate == 1e-6
    # The rate decays over five epochs of the set, of which 1000 steps are run.
    left = 1 - 1000 / optim.total_steps
    assert left == pytest.approx({"ham10000": 0.80, "heel": 0.49, "tn3k": 0.40}[data], abs=0.005)
    assert jobs.learning_rate(config, 1000) == pytest.approx(left * 1e-6)


def test_as_written_takes_the_paper_literally():
    config = _load(CONFIGS / "grpo/tn3k_7b.py", "medloc_as_written")
    validate.check(config)
    rl = config.rl
    assert (rl.kl_weight, rl.advantage_std, rl.ratio_level) == (
        0.4,
        "population_inside",
        "sequence",
    )
    assert not rl.skip_no_signal and not config.model.freeze_vision
    assert config.data.template == "medloc" and config.rewards.weights.format == 0
    assert config.data.val_fraction == 0 and config.curriculum.window_unit == "prompt"
    with pytest.raises(ValueError, match="choose of medloc, medloc_as_written"):
        _load(CONFIGS / "grpo/tn3k_7b.py", "as_written")


def _job(config, tmp_path):
    """A job of that size, without its tokenizer's files, data or weights."""
    sizes = model_config.preset(config.model.preset)
    tiny = model_config.preset("tiny")
    loader = batching.RowLoader(
        config=sizes,
        processor=processor.ImageProcessor.for_model(
            sizes.vision, min_pixels=config.data.min_pixels, max_pixels=config.data.max_pixels
        ),
        tokenizer=tokenizer.load("", tiny),
        template=config.data.template,
    )
    model = qwen2_5_vl.Model(
        sizes,
        compute_dtype=jnp.dtype(config.model.compute_dtype),
        remat=config.model.remat,
        vocab_chunk=config.model.vocab_chunk,
    )
    # 600 x 450 px are fed as 588 x 448: 1344 patches, 336 image tokens, a prompt of about 420.
    bucket = geometry.Bucket(num_patches=1536, num_windows=32, prompt_length=512)
    return jobs.Job(
        config=config,
        workdir=tmp_path,
        mesh=sharding.make_mesh(**config.mesh.to_dict()),
        model=model,
        tokenizer=loader.tokenizer,
        loader=loader,
        examples={},
        buckets=(bucket,),
        initial=lambda: {},
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("variant", ["medloc", "medloc_as_written", "sft"])
def test_the_step_builds_at_its_true_size(size, variant, tmp_path):
    """Shapes, shardings and dtypes of the whole update, without an array."""
    if variant == "sft":
        config = _load(CONFIGS / "sft" / f"ham10000_{size}.py")
    else:
        config = _load(CONFIGS / "grpo" / f"ham10000_{size}.py", variant)
    job = _job(config, tmp_path)
    sharding.check_batch(job.mesh, config.rl.prompts_per_step, "rl.prompts_per_step")
    chain = jobs.make_optimizer(config)
    plan = jobs.place(job, chain)
    trained = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(plan.trainable))
    frozen = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(plan.frozen))
    assert trained + frozen == model_config.num_parameters(job.model.config)
    assert (frozen > 0) == config.model.freeze_vision
    state = states.TrainState(plan.trainable, plan.opt_state)
    (bucket,) = job.buckets
    rows, rl = 8, config.rl
    inputs = programs.batch_struct(job.mesh, job.model.config, bucket, rows)
    length = rl.max_completion_tokens
    if variant == "sft":
        targets = sft.Targets(
            jax.ShapeDtypeStruct((rows, 1, length), jnp.int32),
            jax.ShapeDtypeStruct((rows, 1, length), jnp.bool_),
        )
        step = sft.make_update(job, chain)
        new, _ = jax.eval_shape(step, state, plan.frozen, inputs, targets, np.float32(1))
    else:
        params = states.merge(plan.trainable, plan.frozen)
        features = programs.struct_of(job.model.encode_images, job.mesh, params, inputs)
        shape = (rows, rl.group_size, length)
        taken = rollout.Rollout(
            jax.ShapeDtypeStruct(shape, jnp.int32),
            jax.ShapeDtypeStruct(shape, jnp.bool_),
            old_logprobs=None,
            reference_logprobs=jax.ShapeDtypeStruct(shape, jnp.float32),
        )
        raw = dict.fromkeys(scores.SCORES, jax.ShapeDtypeStruct(shape[:2], jnp.float32))
        hyper = rollout.hyper(**dict.fromkeys(rollout.Hyper._fields, 1.0))
        step = grpo.make_update(job, chain, "hit")
        new, metrics, rewards = jax.eval_shape(
            step, state, plan.frozen, inputs, features, taken, raw, hyper
        )
        assert rewards.shape == (rows, rl.group_size) and "grpo/kl" in metrics
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )


def test_large_weights_of_the_papers_models_are_split(tmp_path):
    """On eight devices no array of 100 MB is whole on one of them."""
    for size in SIZES:
        config = _load(CONFIGS / "grpo" / f"heel_{size}.py")
        job = _job(config, tmp_path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            open_job.params_struct(job.model, job.mesh)
        ):
            held = math.prod(leaf.sharding.shard_shape(leaf.shape))
            large = math.prod(leaf.shape) * 4 > 100e6
            assert not large or held < math.prod(leaf.shape), (size, path)
