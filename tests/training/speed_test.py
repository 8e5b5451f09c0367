# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Utilisation by hand, memory under the right name, a trace that stays within its steps."""

import threading
import types

import jax
import numpy as np
import pytest

from medloc_jax import devices
from medloc_jax.data import batching
from medloc_jax.model import config as model_config
from medloc_jax.model import flops, geometry
from medloc_jax.training import speed

CONFIG = model_config.preset("3b")


def _fake_devices(monkeypatch, kind, peak=None, count=1):
    """As if this process had some of `count` such devices."""
    stats = None if peak is None else {"peak_bytes_in_use": peak, "bytes_in_use": 1}
    device = types.SimpleNamespace(device_kind=kind, memory_stats=lambda: stats)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    monkeypatch.setattr(jax, "device_count", lambda: count)


def _inputs(prompts):
    segments = np.zeros((prompts, 1536), np.int32)
    segments[:, :1296] = 1
    rest = dict.fromkeys(geometry.ModelInputs._fields)
    lengths = np.full((prompts,), 424, np.int32)
    return geometry.ModelInputs(**rest | {"segment_ids": segments, "prompt_lengths": lengths})


SECONDS = {"speed/data_seconds": 0.5, "speed/sample_seconds": 1.0, "speed/update_seconds": 2.5}


def test_utilisation_is_flops_over_peak(monkeypatch):
    _fake_devices(monkeypatch, "NVIDIA H200", count=4)
    meter = speed.Meter(CONFIG, freeze_vision=False, reference=True)
    assert meter.peak_flops == 4 * 989e12
    lengths = np.full((8, 8), 256.0, np.float32)
    got = meter.grpo(_inputs(8), lengths, SECONDS)
    # 13.7 + 19.0 + 103.8 + 136.5 + 409.4 TFLOP, prompts shared.
    assert got["speed/mfu"] == pytest.approx(682.4e12 / (4.0 * 4 * 989e12), rel=0.002)
    assert got["speed/update_mfu"] == pytest.approx(409.4e12 / (2.5 * 4 * 989e12), rel=0.002)
    assert got["speed/tokens_per_second"] == 8 * 8 * 256 / 4.0
    assert SECONDS.items() <= got.items()
    # One of two processes sees half the prompts and all completions: the same figures.
    assert meter.grpo(_inputs(4), lengths, SECONDS) == pytest.approx(got)


def test_padding_is_no_work(monkeypatch):
    _fake_devices(monkeypatch, "NVIDIA H200")
    meter = speed.Meter(CONFIG, freeze_vision=True)
    padded = _inputs(2)
    lengths = np.full((2, 4), 100.0, np.float32)
    full = meter.grpo(padded, lengths, SECONDS)["speed/mfu"]
    padded.segment_ids[:] = 1
    assert meter.grpo(padded, lengths, SECONDS)["speed/mfu"] > full
    padded.segment_ids[:] = 0  # no image at all
    assert meter.grpo(padded, lengths, SECONDS)["speed/mfu"] < full


def test_sft_counts_what_is_learned(monkeypatch):
    _fake_devices(monkeypatch, "NVIDIA H200")
    meter = speed.Meter(CONFIG, freeze_vision=True)
    mask = np.zeros((4, 1, 64), bool)
    mask[..., :30] = True
    rest = dict.fromkeys(batching.Batch._fields)
    batch = batching.Batch(**rest | {"inputs": _inputs(4), "completion_mask": mask})
    got = meter.sft(batch, 8, SECONDS)
    assert got["speed/tokens_per_second"] == 8 * 30 / 4.0
    rows = flops.Rows.uniform(
        prompts=8, group_size=1, patches=1296, prompt_tokens=424, completion=30
    )
    done = flops.sft_step(CONFIG, rows, freeze_vision=True)
    assert got["speed/mfu"] == pytest.approx(sum(done.values()) / (4.0 * 989e12))


def test_no_peak_no_utilisation(monkeypatch):
    meter = speed.Meter(CONFIG, freeze_vision=True)
    got = meter.grpo(_inputs(1), np.full((1, 2), 9.0, np.float32), SECONDS)
    assert meter.peak_flops is None and devices.of("cpu") is None
    assert not {"speed/mfu", "speed/update_mfu"} & got.keys()


def test_memory_of_a_device_and_of_a_host_are_not_confused(monkeypatch):
    (name,) = speed.memory_peak()
    assert name == "speed/host_memory_peak_gb"  # CPUs do not say
    assert 0.05 < speed.memory_peak()[name] < 1000
    _fake_devices(monkeypatch, "NVIDIA H200", peak=83_000_000_000)
    assert speed.memory_peak() == {"speed/memory_peak_gb": 83.0}


@pytest.fixture
def clock():
    made = speed.DeviceClock()
    yield made
    made.close()
    assert not made._thread.is_alive()


def test_what_devices_did_and_what_they_waited_for_add_up(clock):
    clock._add("sample", 1.0, 3.0)
    clock._add("reference", 1.5, 4.0)  # sent while the sampler runs
    clock._add("update", 6.0, 9.0)  # the host was reading answers until 6
    assert clock.lap().result(10) == {
        "speed/data_seconds": 0.0,
        "speed/sample_seconds": 2.0,
        "speed/score_seconds": 2.0,
        "speed/reference_seconds": 1.0,
        "speed/update_seconds": 3.0,
        "speed/device_idle_share": 0.25,
    }
    clock._add("sample", 7.0, 10.0)
    clock._add("update", 9.5, 11.0)
    got = clock.lap().result(10)
    assert got["speed/device_idle_share"] == 0 and got["speed/sample_seconds"] == 1.0
    clock._add("sample", 12.0, 13.0)
    assert clock.lap().result(10)["speed/data_seconds"] == 1.0


def test_an_evaluation_is_no_part_of_a_step(clock, monkeypatch):
    clock._add("update", 0.0, 1.0)
    monkeypatch.setattr(speed.time, "perf_counter", lambda: 50.0)
    clock.restart()
    clock.lap().result(10)
    clock._add("sample", 50.5, 51.0)
    got = clock.lap().result(10)
    assert got["speed/data_seconds"] == got["speed/sample_seconds"] == 0.5


def test_results_are_waited_for_in_the_background(clock):
    """A lap ends with what was sent before it; a program that fails ends, too."""
    gate = threading.Event()
    slow = types.SimpleNamespace(block_until_ready=lambda: gate.wait(10))
    broken = types.SimpleNamespace(block_until_ready=lambda: 1 / 0)
    clock.sent("sample", jax.numpy.ones(3))
    first = clock.lap()
    clock.sent("update", slow)
    clock.sent("update", broken)
    second = clock.lap()
    assert first.result(10)["speed/sample_seconds"] > 0
    assert not second.done()
    gate.set()
    assert second.result(10)["speed/update_seconds"] > 0


@pytest.fixture
def traced(monkeypatch, tmp_path):
    """(profile of steps 3 to 4, what the profiler was told)."""
    told = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda path: told.append(path))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: told.append("stop"))
    return lambda **kw: speed.Profile(tmp_path, (3, 4), **({"enabled": True} | kw)), told


def test_the_trace_starts_and_ends_with_its_steps(traced, tmp_path):
    make, told = traced
    profile, seen = make(), []
    for step in range(1, 7):
        profile.begin(step)
        seen.append(len(told))
    profile.close()
    assert told == [f"{tmp_path}/profile", "stop"]
    assert seen == [0, 0, 1, 1, 2, 2]


def test_a_run_that_ends_or_starts_within_the_trace(traced, tmp_path):
    make, told = traced
    profile = make()
    profile.begin(4)  # resumed there
    profile.close()
    profile.close()
    assert told == [f"{tmp_path}/profile", "stop"]
    make(enabled=False).begin(3)
    speed.Profile(tmp_path, (0, 0), enabled=True).begin(1)
    assert len(told) == 2
