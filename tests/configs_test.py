# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Every experiment file loads and validates; those of the paper build their step abstractly."""

import importlib.util
import math
from pathlib import Path

import jax
import pytest

from medloc_jax.cli import job as open_job
from medloc_jax.cli import validate
from medloc_jax.model import config as model_config
from medloc_jax.planning import abstract
from medloc_jax.training import grpo, sft
from medloc_jax.training import job as jobs

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
        assert {path.name for path in (CONFIGS / method).glob("*.py")} >= names
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


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("variant", ["medloc", "medloc_as_written", "sft"])
def test_the_step_builds_at_its_true_size(size, variant):
    """Shapes, shardings and dtypes of the whole update, without an array."""
    if variant == "sft":
        config = _load(CONFIGS / "sft" / f"ham10000_{size}.py")
    else:
        config = _load(CONFIGS / "grpo" / f"ham10000_{size}.py", variant)
    made = abstract.make(config, abstract.make_mesh(config))
    trained, frozen = (
        sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
        for tree in (made.placement.trainable, made.placement.frozen)
    )
    assert trained + frozen == model_config.num_parameters(made.job.model.config)
    assert (frozen > 0) == config.model.freeze_vision
    chain = jobs.make_optimizer(config)
    if variant == "sft":
        _, args = made.tasks["sft_step"]
        new, _ = jax.eval_shape(sft.make_update(made.job, chain), *args)
    else:
        _, args = made.tasks["grpo_step"]
        step = grpo.make_update(made.job, chain, "hit")
        new, metrics, rewards = jax.eval_shape(step, *args)
        assert rewards.shape == (8, config.rl.group_size) and "grpo/kl" in metrics
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(
        lambda x: (x.shape, x.dtype), args[0]
    )


def test_large_weights_of_the_papers_models_are_split():
    """On eight devices no array of 100 MB is whole on one of them."""
    for size in SIZES:
        config = _load(CONFIGS / "grpo" / f"heel_{size}.py")
        job = abstract.make(config, abstract.make_mesh(config)).job
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            open_job.params_struct(job.model, job.mesh)
        ):
            held = math.prod(leaf.sharding.shard_shape(leaf.shape))
            large = math.prod(leaf.shape) * 4 > 100e6
            assert not large or held < math.prod(leaf.shape), (size, path)
