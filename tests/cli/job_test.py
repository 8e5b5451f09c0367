# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""From the command line to a job."""

import jax
import numpy as np
import pytest
import small_runs
from absl import flags

from medloc_jax import checkpoint, sharding
from medloc_jax import config as configuration
from medloc_jax.cli import job as jobs
from medloc_jax.model import config as model_config
from medloc_jax.model import tokenizer


def _parse(*overrides):
    config = f"--config={small_runs.ROOT / 'configs/demo.py'}"
    return jobs.parse([config, *overrides], "train", lambda values: None).config


def test_overrides_arrive_with_their_types():
    config = _parse(
        "--config.rl.group_size=4",
        "--config.curriculum.regimes=((0.5,0.6,0.4),(1.01,0.5,0.4))",
        "--config.optim.learning_rate=1e-3",
        "--config.model.init_from=runs/x",
        "--noconfig.rl.skip_no_signal",
    )
    assert config.rl.group_size == 4
    assert config.curriculum.regimes == ((0.5, 0.6, 0.4), (1.01, 0.5, 0.4))
    assert config.optim.learning_rate == 1e-3
    assert config.model.init_from == "runs/x"
    assert config.rl.skip_no_signal is False


def test_a_stray_argument_is_refused():
    with pytest.raises(ValueError, match="unknown argument 'seed=3'"):
        _parse("seed=3")
    with pytest.raises(flags.Error, match="seeed"):
        _parse("--seeed=3")


def test_a_configuration_comes_back_from_its_file(tmp_path):
    config = _parse("--config.data.augment=('hflip',)", "--config.seed=3")
    jobs.write_config(config, tmp_path)
    assert configuration.read(tmp_path).to_dict() == config.to_dict()
    jobs.write_config(config, tmp_path)  # the same run again
    corrected = _parse("--config.seed=2")
    jobs.write_config(corrected, tmp_path)  # nothing was saved yet: a mistake may be mended
    assert configuration.read(tmp_path).seed == 2
    jobs.write_config(config, tmp_path)
    saver = checkpoint.Checkpointer(tmp_path / "checkpoints", keep_last=1, keep_best=0)
    saver.save(1, {"params": {"kernel": np.zeros(2)}}, {})
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(ValueError, match="holds another run .*seed 3 -> 4"):
        jobs.write_config(_parse("--config.data.augment=('hflip',)", "--config.seed=4"), tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before
    with pytest.raises(ValueError, match="it is not the folder of a run"):
        configuration.read(tmp_path / "nothing")


def test_a_job_is_what_its_configuration_says(tmp_path):
    job = small_runs.open_job(
        tmp_path, data__val_fraction=0.5, eval__final_split="test", model__vocab_chunk=64
    )
    assert job.model.config == small_runs.SIZES and job.model.vocab_chunk == 64
    assert set(job.examples) == {"train", "val", "test"}
    assert {k: len(rows) for k, rows in job.examples.items()} == {"train": 10, "val": 10, "test": 8}
    rules = job.rules(group_size=3, greedy=True)
    assert rules.greedy and rules.group_size == 3
    assert small_runs.SIZES.image_token_id in rules.forbidden_ids
    assert not set(rules.stop_ids) & set(rules.forbidden_ids)
    assert job.loader.completion_length is None
    learns = jobs.sft_loader(job)
    assert learns.completion_length == job.config.rl.max_completion_tokens


def test_val_does_not_depend_on_the_seed_of_the_run(tmp_path):
    first, second = (small_runs.open_job(tmp_path, seed=seed) for seed in (1, 2))
    assert [e.id for e in first.examples["val"]] == [e.id for e in second.examples["val"]]


def test_a_mesh_or_batch_that_does_not_fit_is_refused(tmp_path):
    for changes, message in [
        ({"rl__prompts_per_step": 12}, "rl.prompts_per_step=12 does not divide"),
        ({"eval__batch_size": 12}, "eval.batch_size=12 does not divide"),
        ({"method": "sft", "sft__batch_size": 4}, "sft.batch_size=4 does not divide"),
        ({"mesh__fsdp": 3}, "fsdp=3 x tensor=1 needs 3 devices, there are 8"),
    ]:
        with pytest.raises(ValueError, match=message):
            small_runs.open_job(tmp_path, **changes)


class _Config:
    """What initial_params reads of a configuration."""

    def __new__(cls, source, **model):
        config = configuration.default_config()
        config.model.init_from = str(source)
        return config


def test_parameters_come_from_a_checkpoint(tmp_path):
    mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
    params = small_runs.params()
    saver = checkpoint.Checkpointer(tmp_path / "run/checkpoints", keep_last=1, keep_best=0)
    saver.save(7, {"params": params, "optimizer": {"count": np.zeros(())}}, {})
    for source in ("run", "run/checkpoints", "run/checkpoints/7"):
        loaded = jobs.initial_params(_Config(tmp_path / source), small_runs.MODEL, mesh)
        layout = jobs.params_struct(small_runs.MODEL, mesh)
        for got, want, struct in zip(
            jax.tree.leaves(loaded), jax.tree.leaves(params), jax.tree.leaves(layout), strict=True
        ):
            np.testing.assert_array_equal(got, want)
            assert got.sharding == struct.sharding


def test_parameters_that_cannot_be_read_are_named(tmp_path):
    mesh, model = small_runs.one_device(), small_runs.MODEL
    with pytest.raises(ValueError, match="model.init_from=.*/no: there is no such folder"):
        jobs.initial_params(_Config(tmp_path / "no"), model, mesh)
    with pytest.raises(ValueError, match="holds no parameters: give a Hugging Face folder"):
        jobs.initial_params(_Config(tmp_path), model, mesh)
    saver = checkpoint.Checkpointer(tmp_path / "checkpoints", keep_last=1, keep_best=0)
    saver.save(7, {"params": small_runs.params()}, {})
    other = type(model)(model_config.preset("tiny"))
    with pytest.raises(ValueError, match="has shape .* belongs to another model"):
        jobs.initial_params(_Config(tmp_path), other, mesh)


def test_every_kind_of_folder_gives_the_same_weights(weights, hf_weights):
    mesh, model = small_runs.one_device(), small_runs.MODEL
    from_run = jobs.initial_params(_Config(weights), model, mesh)
    published = jobs.initial_params(_Config(hf_weights), model, mesh)
    jax.tree.map(np.testing.assert_array_equal, from_run, published)


def test_the_tokenizer_is_that_of_the_weights(tmp_path, hf_weights):
    own = tokenizer.load("", small_runs.SIZES)
    folder = tmp_path / "published"
    own.save(folder)
    config = _parse(f"--config.model.init_from={folder}")
    jobs.resolve(config)
    assert config.model.tokenizer == str(folder)
    # A run that starts from that run takes its tokenizer from there.
    jobs.write_config(config, tmp_path / "run")
    later = _parse(f"--config.model.init_from={tmp_path / 'run' / 'checkpoints' / '7'}")
    jobs.resolve(later)
    assert later.model.tokenizer == str(folder)
    given = _parse("--config.model.tokenizer=elsewhere", f"--config.model.init_from={folder}")
    jobs.resolve(given)
    assert given.model.tokenizer == "elsewhere"
    none = _parse(f"--config.model.init_from={hf_weights}")  # it has no tokenizer files
    jobs.resolve(none)
    assert none.model.tokenizer == ""
