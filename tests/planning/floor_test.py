# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The floor of a step, against a table computed elsewhere for the 3B model on one device."""

import dataclasses

import pytest

from medloc_jax import config as configuration
from medloc_jax import devices
from medloc_jax.model import config as model_config
from medloc_jax.model import flops
from medloc_jax.planning import floor

CONFIG = model_config.preset("3b")
H200, H800 = devices.DEVICES["h200"], devices.DEVICES["h800"]
ALONE = floor.Layout({"data": 1, "fsdp": 1, "tensor": 1})


def _work(prompts=8, **changes):
    rows = flops.Rows.uniform(
        prompts=prompts, group_size=8, patches=1296, prompt_tokens=424, completion=256
    )
    known = {"freeze_vision": False, "reference": True, "micro_batches": 1, "compute_bytes": 2}
    return floor.Work(method="grpo", rows=rows, **(known | changes))


def _seconds(work, device, layout=ALONE):
    return {p.name: p.seconds(device) for p in floor.phases(CONFIG, work, layout)}


def test_the_paper_step_on_one_h200():
    got = _seconds(_work(), H200)
    # Prompts shared, tower trained, full recomputation, 790 TFLOP/s and 4.3 TB/s.
    expected = {
        "vision": 0.017,
        "prefill": 0.024,
        "decode": 0.398,
        "reference": 0.173,
        "update": 0.691,
        "optimizer": 0.026,
    }
    assert got == pytest.approx(expected, abs=0.0006)
    assert sum(got.values()) == pytest.approx(1.33, abs=0.005)
    assert _seconds(_work(remat=False), H200)["update"] == pytest.approx(0.518, abs=0.0006)
    bound = {p.name: p.bound(H200) for p in floor.phases(CONFIG, _work(), ALONE)}
    assert bound["decode"] == bound["optimizer"] == "memory"
    assert bound["update"] == bound["vision"] == "compute"


def test_the_bytes_of_that_table():
    phases = {p.name: p for p in floor.phases(CONFIG, _work(), ALONE)}
    gigabytes = {name: phase.memory_bytes / 1e9 for name, phase in phases.items()}
    expected = {"vision": 12, "prefill": 13, "decode": 1709, "reference": 59, "update": 183}
    assert gigabytes == pytest.approx(expected | {"optimizer": 113}, rel=0.02, abs=0.5)


def test_one_h800():
    got = _seconds(_work(), H800)
    assert got["vision"] + got["prefill"] == pytest.approx(0.041, abs=0.001)
    assert got["decode"] == pytest.approx(0.570, abs=0.001)
    assert sum(got.values()) == pytest.approx(1.51, abs=0.005)
    part = _seconds(_work(prompts=2), H800)
    assert part["decode"] == pytest.approx(0.537, abs=0.001)
    assert sum(part.values()) == pytest.approx(0.80, abs=0.005)


def test_devices_share_arithmetic_but_each_reads_the_weights():
    layout = floor.Layout({"data": 1, "fsdp": 4, "tensor": 1}, host_size=8)
    alone, shared = (
        {p.name: p for p in floor.phases(CONFIG, _work(), at)} for at in (ALONE, layout)
    )
    for name in alone:
        assert shared[name].flops == pytest.approx(alone[name].flops / 4)
    assert shared["decode"].memory_bytes > 0.9 * alone["decode"].memory_bytes
    assert shared["optimizer"].memory_bytes == alone["optimizer"].memory_bytes / 4
    # A pass gathers three quarters of 2 bytes for each of 3.09e9 weights (the tower is apart).
    assert shared["prefill"].link_bytes == pytest.approx(0.75 * 6.17e9, rel=0.01)
    assert shared["decode"].link_bytes == 0
    every = _work(gather_weights=False)
    decode = {p.name: p for p in floor.phases(CONFIG, every, layout)}["decode"]
    assert decode.link_bytes == pytest.approx(256 * 0.75 * 6.17e9, rel=0.01)
    assert decode.bound(H800) == "links"
    assert all(phase.network_bytes == 0 for phase in shared.values())


def test_tensor_parts_read_less_and_sum_activations():
    layout = floor.Layout({"data": 1, "fsdp": 1, "tensor": 2}, host_size=8)
    alone, split = (
        {p.name: p for p in floor.phases(CONFIG, _work(), at)} for at in (ALONE, layout)
    )
    assert split["decode"].memory_bytes == pytest.approx(alone["decode"].memory_bytes / 2)
    # 36 layers, two sums each, twice half of it: 8 x 8 x 256 tokens of 2048 numbers of 2 bytes.
    assert split["decode"].link_bytes == pytest.approx(2 * 36 * 8 * 8 * 256 * 2048 * 2)
    micro = {p.name: p for p in floor.phases(CONFIG, _work(micro_batches=4), layout)}
    assert micro["update"].link_bytes == split["update"].link_bytes
    assert micro["update"].memory_bytes > split["update"].memory_bytes


def test_what_crosses_hosts():
    mesh = {"data": 1, "fsdp": 8, "tensor": 4}
    inside, across = floor.Layout(mesh), floor.Layout(mesh, host_size=8)
    # Two of each fsdp group of eight stand on each of four hosts.
    assert across.gather("fsdp", 800.0) == (700.0, 300.0)
    assert inside.gather("fsdp", 800.0) == (700.0, 0.0)
    assert across.gather("tensor", 800.0) == (600.0, 0.0)
    assert across.gather("data", 800.0) == (0.0, 0.0)
    far = floor.Layout({"data": 4, "fsdp": 8, "tensor": 1}, host_size=8)
    assert far.gather("data", 800.0) == (600.0, 600.0)
    assert far.gather("fsdp", 800.0) == (700.0, 0.0)


def test_a_run_says_what_it_does():
    config = configuration.paper_config("grpo")
    config.rl.micro_batch_prompts = 4
    rows = _work().rows
    work = floor.work_of(config, rows)
    expected = _work(freeze_vision=True, micro_batches=2)
    assert dataclasses.replace(work, rows=expected.rows) == expected
    phases = floor.phases(CONFIG, work, ALONE)
    assert [p.name for p in phases] == [
        *("vision", "prefill", "decode", "reference", "update", "optimizer")
    ]
    config.method = "sft"
    sft = floor.phases(CONFIG, floor.work_of(config, rows), ALONE)
    assert [p.name for p in sft] == ["vision", "update", "optimizer"]
    assert 0 < floor.seconds(sft, H200) < floor.seconds(phases, H200)
