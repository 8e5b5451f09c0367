# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import os

import pytest
import small_runs
from safetensors.numpy import save_file

from medloc_jax import checkpoint
from medloc_jax.cli import main
from medloc_jax.convert import mapping


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    """Configurations are named as a user names them."""
    monkeypatch.chdir(small_runs.ROOT)


@pytest.fixture(scope="session")
def preset(tmp_path_factory):
    return small_runs.write_preset(tmp_path_factory.mktemp("preset"))


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A checkpoint to start from: random weights would be drawn by a program that compiles."""
    folder = tmp_path_factory.mktemp("weights")
    saver = checkpoint.Checkpointer(folder / "checkpoints", keep_last=1, keep_best=0)
    saver.save(0, {"params": small_runs.params()}, {})
    return folder


@pytest.fixture(scope="session")
def hf_weights(tmp_path_factory):
    """The same weights as a Hugging Face folder."""
    folder = small_runs.write_preset(tmp_path_factory.mktemp("hf_weights"))
    tensors = mapping.to_hf(small_runs.params(), small_runs.SIZES)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def sft_run(tmp_path_factory, preset, weights):
    """The folder of a finished SFT run on eight devices."""
    workdir = tmp_path_factory.mktemp("sft") / "run"
    settings = small_runs.SFT | {"model__init_from": weights}
    argv = small_runs.arguments("train", workdir, preset, **settings)
    previous = os.getcwd()
    os.chdir(small_runs.ROOT)
    try:
        assert main.main(argv) == 0
    finally:
        os.chdir(previous)
    return workdir
