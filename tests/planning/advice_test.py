# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What would save memory, and by how much: against plain arithmetic."""

import dataclasses
import math

import jax
import made_plans
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from medloc_jax.model import config as model_config
from medloc_jax.planning import abstract, advice, memory

TRAINED = model_config.num_parameters(model_config.preset("3b")) - 668_000_000


def _plan(config, missing=20e9, mesh=(1, 4, 1), **changes):
    """A plan whose update is refused; its memory by part is that of the configuration."""
    grid = np.array(jax.devices()[: math.prod(mesh)]).reshape(mesh)
    axes = (AxisType.Auto,) * 3
    made = abstract.make(config, Mesh(grid, ("data", "fsdp", "tensor"), axis_types=axes))
    refused = made_plans.program("grpo_step", does_not_fit=int(missing), refusal="ran out")
    sampler = made_plans.program("sample_groups")
    shape, parts = made.shape, memory.parts(made)
    # Everything that lies there all the time is among its arguments.
    resident = sum(part.bytes for part in parts if "*" in part.programs)
    refused = dataclasses.replace(refused, argument_bytes=resident)
    return made_plans.make([sampler, refused], mesh=mesh, shape=shape, memory=parts, **changes)


def _only(monkeypatch, field):
    """Considers the changes of one config field alone: each is a second of work."""
    every = advice._changes

    def some(plan, config):
        return (change for change in every(plan, config) if field in change.knobs)

    monkeypatch.setattr(advice, "_changes", some)


def _by_flags(config, plan):
    return {one.flags: one for one in advice.advise(plan, config)}


@pytest.fixture(scope="module")
def generous():
    """(config, plan, advice) of a run that leaves much room for savings."""
    config = made_plans.paper_config(model__frozen_dtype="float32", model__remat="none")
    plan = _plan(config, missing=20e9)
    return config, plan, _by_flags(config, plan)


def test_a_step_that_fits_needs_no_advice():
    made = made_plans.make([made_plans.program("grpo_step")])
    assert advice.advise(made, made_plans.paper_config()) == ()


def test_more_devices_hold_less_each(generous):
    _, plan, found = generous
    twice = found["--devices=8 --config.mesh.fsdp=8"]
    # Weights, two moments, gradients and the reference in float32: half of a quarter.
    assert twice.saves > 0.95 * TRAINED * (4 + 8 + 4 + 4) / 8
    assert twice.peak_bytes == plan.device_bytes + int(20e9) - twice.saves


def test_knobs_of_the_run_alone(generous):
    _, _, found = generous
    rounded = found["--config.model.frozen_dtype=bfloat16"]
    assert rounded.saves == pytest.approx(2 * (TRAINED + 668e6) / 4, rel=0.02)
    assert found["--config.model.remat=layer"].saves > 10e9
    assert "no KL term" in found["--config.rl.kl_weight=0.0"].price


def test_what_is_enough_is_told(generous):
    _, plan, found = generous
    assert all(one.fits == (one.peak_bytes <= plan.device_bytes) for one in found.values())
    assert {one.fits for one in found.values()} == {True, False}


def test_what_is_set_already_is_not_advised():
    config = made_plans.paper_config()
    plan = made_plans.make([made_plans.program("grpo_step", does_not_fit=1, refusal="ran out")])
    left = {name for change in advice._changes(plan, config) for name in change.knobs}
    assert not {"model.frozen_dtype", "model.remat", "model.compute_dtype"} & left


def test_what_no_knob_alone_cures_is_cured_by_several(generous, monkeypatch):
    config, _, found = generous
    names = ("model.frozen_dtype", "model.remat")
    alone = ("model.frozen_dtype=bfloat16", "model.remat=layer")
    most = max(found[f"--config.{flag}"].saves for flag in alone)
    every = advice._changes
    monkeypatch.setattr(
        advice, "_changes", lambda *a: (c for c in every(*a) if c.knobs.keys() & set(names))
    )
    *alone, together = advice.advise(_plan(config, missing=most + 1e9), config)
    assert len(alone) == 2 and not any(one.fits for one in alone)
    assert together.fits and together.price == "together" and together.saves > most
    assert together.flags == "--config.model.frozen_dtype=bfloat16 --config.model.remat=layer"


def test_smaller_backward_passes_pay_with_a_second_gradient(monkeypatch):
    _only(monkeypatch, "rl.micro_batch_prompts")
    config = made_plans.paper_config(model__remat="none")
    # Activations of 8 prompts on one device are larger than the gradients that are kept.
    found = _by_flags(config, _plan(config, mesh=(1, 1, 1), missing=200e9, num_devices=1))
    saved = [found[f"--config.rl.micro_batch_prompts={size}"].saves for size in (4, 2, 1)]
    assert 0 < saved[0] < saved[1] < saved[2]


def test_weights_may_cross_the_links_for_every_token(monkeypatch):
    _only(monkeypatch, "rl.gather_weights")
    config = made_plans.paper_config()
    sampler = made_plans.program("sample_groups", does_not_fit=int(1e9), refusal="ran out")
    plan = _plan(config)
    sampler = dataclasses.replace(sampler, argument_bytes=plan.resident_bytes)
    made = made_plans.make([sampler], mesh=(1, 4, 1), shape=plan.shape, memory=plan.memory)
    found = _by_flags(config, made)["--config.rl.gather_weights=False"]
    # All text weights in bfloat16.
    assert found.saves == pytest.approx(2 * 3.086e9, rel=0.1) and found.fits
