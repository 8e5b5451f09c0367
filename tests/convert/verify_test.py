# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import importlib
import importlib.util
import types

import ml_dtypes
import numpy as np
import pytest
import random_folders
from random_folders import SMALL, TINY

from medloc_jax import checkpoint
from medloc_jax.convert import mapping, verify


def test_without_torch_it_says_so(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else find(name)
    )
    with pytest.raises(ValueError, match="which is not installed: `pip install torch`"):
        verify.check_installed()


def test_a_torch_that_cannot_be_used_is_one_clear_line(monkeypatch):
    module = types.ModuleType("modeling")

    def broken(name):
        raise RuntimeError("operator torchvision::nms\ndoes not exist")

    module.__getattr__ = broken
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: True)
    monkeypatch.setattr(importlib, "import_module", lambda _: module)
    with pytest.raises(
        ValueError, match="torchvision::nms does not exist.*leave --verify"
    ) as error:
        verify.check_installed()
    assert "\n" not in str(error.value)


@pytest.mark.parity
def test_a_torch_that_works_is_let_through():
    pytest.importorskip("torch")
    verify.check_installed()


def test_the_verdict():
    assert verify.Report(difference=0.9e-3, scale=1.0, same_choice=1.0).passed
    assert not verify.Report(difference=1.1e-3, scale=1.0, same_choice=1.0).passed
    assert not verify.Report(difference=float("nan"), scale=1.0, same_choice=1.0).passed


def _folders(tmp_path, config, dtype=np.float32):
    weights = random_folders.write(tmp_path / "hf", config)
    params = mapping.from_hf({k: v.astype(dtype) for k, v in weights.items()}, config)
    saver = checkpoint.Checkpointer(tmp_path / "run" / "checkpoints", keep_last=1, keep_best=0)
    saver.save(0, {"params": params}, {})
    return tmp_path / "hf", tmp_path / "run", params, saver


@pytest.mark.parity
@pytest.mark.parametrize("config", [SMALL, TINY], ids=["untied", "tied"])
def test_the_same_weights_pass_and_others_fail(tmp_path, config):
    pytest.importorskip("torch")
    hf, run, params, saver = _folders(tmp_path, config)
    report = verify.compare(hf, run, config)
    assert report.passed and report.same_choice == 1, report
    # Two matrices of one shape change places: every shape is right, and every value is there.
    attention = params["visual"]["blocks"]["mlp"]
    attention["gate_proj"], attention["up_proj"] = attention["up_proj"], attention["gate_proj"]
    saver.save(0, {"params": params}, {})
    assert not verify.compare(hf, run, config).passed


@pytest.mark.parity
def test_both_sides_are_rounded_alike(tmp_path):
    pytest.importorskip("torch")
    half = np.dtype(ml_dtypes.bfloat16)
    hf, run, _, _ = _folders(tmp_path, SMALL, half)
    assert verify.compare(hf, run, SMALL, half).passed
    assert not verify.compare(hf, run, SMALL).passed
