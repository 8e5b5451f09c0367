# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Which arrangements are considered, and that they are told in the order of their floors."""

import math

import made_plans
import pytest

from medloc_jax import devices
from medloc_jax.cli import plan as verb
from medloc_jax.model import config as model_config
from medloc_jax.model import flops
from medloc_jax.planning import floor, meshes, table

H800 = devices.DEVICES["h800"]


def _work(prompts=8, micro_batches=1):
    rows = flops.Rows.uniform(
        prompts=prompts, group_size=8, patches=1344, prompt_tokens=410, completion=256
    )
    return floor.Work("grpo", rows, micro_batches, 2, freeze_vision=True, reference=True)


def _found(size="3b", count=4, host_size=8, **changes):
    config = model_config.preset(size)
    return meshes.by_floor(config, _work(**changes), count, host_size=host_size, device=H800)


def test_every_mesh_has_all_devices_and_splits_no_key_head():
    found = _found()
    sizes = [tuple(one.mesh.values()) for one in found]
    assert all(math.prod(size) == 4 for size in sizes) and len(set(sizes)) == len(sizes)
    assert {tensor for _, _, tensor in sizes} == {1, 2}  # 3B has two key heads
    assert {tensor for *_, tensor in (one.mesh.values() for one in _found("7b", 8))} == {1, 2, 4}
    # Eight prompts in two passes do not divide over eight devices.
    assert all(one.mesh["tensor"] > 1 for one in _found("7b", 8, micro_batches=2))
    assert {one.mesh["tensor"] for one in _found("32b", 8, host_size=2)} == {1, 2}


def test_the_fastest_is_first_and_reads_fewer_weights_a_token():
    found = _found()
    assert [one.seconds for one in found] == sorted(one.seconds for one in found)
    by_mesh = {tuple(one.mesh.values()): one for one in found}
    halved, whole = by_mesh[1, 2, 2], by_mesh[1, 4, 1]
    assert halved.decode_seconds == pytest.approx(whole.decode_seconds / 2, rel=0.03)
    assert whole.seconds == pytest.approx(0.773, abs=0.001)


def test_the_report_shows_them_with_its_own_marked():
    made = made_plans.make([made_plans.program("grpo_step")])
    text = table.text(verb.report_of(made, made_plans.paper_config()))
    section = text.split("Floor by mesh", 1)[1].splitlines()
    (own,) = [line for line in section if "this plan" in line]
    assert own.split()[:3] == ["1", "4", "1"]
    heavy = made_plans.make(
        [made_plans.program("grpo_step")], memory=[made_plans.part("weights", 30.0)]
    )
    text = table.text(verb.report_of(heavy, made_plans.paper_config()))
    section = text.split("Floor by mesh", 1)[1].splitlines()[2:]
    # 120 GB in all: what is whole over `data` must be in two parts at least, of 60 GB.
    assert {line.split()[0] for line in section} == {"1", "2"}
    assert [line for line in section if line.split()[0] == "2"][0].split()[7:9] == ["60.0", "GB"]
    alone = made_plans.make([made_plans.program("grpo_step")], mesh=(1, 1, 1))
    assert "Floor by mesh" not in table.text(verb.report_of(alone, made_plans.paper_config()))
