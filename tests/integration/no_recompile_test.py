# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Nothing compiles after the start, whatever moves and whichever size an image has."""

import logging

import jax
import numpy as np
import pytest
import small_runs

from medloc_jax.rl import rollout
from medloc_jax.training import grpo, programs

COMPILED = "/jax/core/compile/backend_compile_duration"
STEPS = 50


class _Compilations:
    """Counts what XLA compiles, or reads from the compile cache, while it is listening."""

    def __init__(self):
        self.count = None

    def __call__(self, event, duration, **details):
        if event == COMPILED and self.count is not None:
            self.count += 1


@pytest.fixture(scope="module")
def compilations():
    listener = _Compilations()
    jax.monitoring.register_event_duration_secs_listener(listener)
    yield listener
    listener.count = None  # listeners stay registered


def test_compilations_are_counted(compilations):
    """Also those that come from the cache on disk: the check below can fail on a warm machine."""
    program = programs.Program("negate", lambda _, x: -x, out_shardings=None)
    one = np.float32(1)
    program.compile(one, np.zeros((3, 5), np.float32))
    compilations.count = 0
    program(one, np.ones((3, 5), np.float32))
    assert compilations.count == 0
    program(one, np.ones((3, 6), np.float32))
    jax.jit(lambda x: x * 3)(np.ones((3, 7), np.float32))
    assert compilations.count == 2
    compilations.count = None


@pytest.mark.parametrize("ahead", [False, True])
def test_nothing_compiles_after_the_start(tmp_path, monkeypatch, caplog, compilations, ahead):
    # Most batches hold small pictures only.
    sizes = [(32, 32), (48, 32)] * 15 + [(96, 80)] * 3
    job = small_runs.open_job(
        tmp_path,
        num_steps=STEPS,
        data__manifest=small_runs.write_manifest(tmp_path / "pictures", sizes),
        data__max_buckets=2,
        rl__num_updates=2,
        rl__sample_ahead=ahead,
        model__frozen_dtype="bfloat16",  # the reference is then another program than the policy
        rl__kl_weight=0.04,
        checkpoint__every=20,
        eval__every=20,
        model__remat="none",
    )
    assert len(job.buckets) == 2
    compile_all, make, used, moved = programs.compile_all, rollout.hyper, [], []

    def compile_and_count(*args):
        line = compile_all(*args)
        compilations.count = 0
        return line

    def moving(**values):
        if any(isinstance(value, jax.ShapeDtypeStruct) for value in values.values()):
            return make(**values)
        if compilations.count is None:  # the one that is compiled for
            return make(**values)
        share = len(moved) / STEPS
        values |= {
            "threshold": 0.3 + 0.5 * share,
            "temperature": 0.9 + 0.2 * share,
            "kl_weight": 0.04 * (1 - share),
            "clip_low": 0.2 - 0.1 * share,
            "clip_high": 0.2 + 0.1 * share,
            "learning_rate": 1e-3 * (1 - share),
            "rivals": 1 + 5 * share,
        }
        moved.append(values)
        return make(**values)

    encode = programs.encode_program

    def watched_encode(model, mesh):
        program = encode(model, mesh)
        call = program.__call__

        class Watched(programs.Program):
            def __call__(self, params, inputs):
                used.append(inputs.pixel_values.shape)
                return call(params, inputs)

        program.__class__ = Watched
        return program

    monkeypatch.setattr(programs, "compile_all", compile_and_count)
    monkeypatch.setattr(programs, "encode_program", watched_encode)
    monkeypatch.setattr(rollout, "hyper", moving)
    with caplog.at_level(logging.WARNING, logger="medloc_jax"):
        assert grpo.train(job) == 0
    compiled, compilations.count = compilations.count, None
    assert len(moved) == STEPS and len(set(used)) > 1
    for name in ("threshold", "temperature", "kl_weight", "clip_low", "clip_high", "rivals"):
        assert len({values[name] for values in moved}) == STEPS
    assert "was not compiled for" not in caplog.text
    assert compiled == 0
    lines = small_runs.lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(STEPS + 1))
