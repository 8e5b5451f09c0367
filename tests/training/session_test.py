# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Opening, saving and continuing a run's folder. Whole runs: tests/integration/resume_test.py."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import small_runs

from medloc_jax.curriculum import make_schedule
from medloc_jax.training import job as jobs
from medloc_jax.training import session

OPTIONS = {"threshold_start": 0.2, "window": 2, "min_fill": 1, "criteria": ("reward",)}


@pytest.fixture
def job(open_job, tmp_path):
    """Random weights would be drawn by a program that compiles for seconds."""
    return dataclasses.replace(open_job(), workdir=tmp_path / "run")


@pytest.fixture
def opened(job):
    """Opens a session of the job; `changes` are of the job."""
    runs = []

    def start(*, batch_size=8, needs_reference=False, schedule=None, **changes):
        chain = jobs.make_optimizer(job.config)
        run = session.open_session(
            dataclasses.replace(job, **changes),
            chain,
            batch_size=batch_size,
            schedule=schedule,
            needs_reference=needs_reference,
        )
        runs.append(run)
        return run

    yield start
    for run in runs:
        run.close()


def _assert_same(got, want):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(one, other)


def _shifted(tree):
    return jax.tree.map(lambda x: x + 1 if x.dtype == np.float32 else x + 5, tree)


def _save(run, step=4, metrics=None):
    run.state = _shifted(run.state)
    run.step = step
    for number in range(1, step + 1):
        run.log(number, {"sft/loss": 1.0})
        run.log_rollouts(number, {"ids": []})
    run.save(step, metrics or {}, final=True)


def test_a_new_run_starts_from_the_initial_parameters(opened, job):
    run = opened(needs_reference=True)
    assert run.step == 0 and run.counters == {}
    _assert_same(run.params, small_runs.params())
    _assert_same(run.reference, run.state.trainable)
    assert opened(needs_reference=False).reference is None


def test_everything_comes_back(opened, job):
    schedule = make_schedule("medloc", num_steps=9, **OPTIONS)
    run = opened(schedule=schedule, needs_reference=True)
    schedule.update(np.ones((2, 2)))
    run.counters["group/skipped_updates"] = 3
    assert schedule.threshold > 0.2
    _save(run)

    other = make_schedule("medloc", num_steps=9, **OPTIONS)
    again = opened(schedule=other, needs_reference=True)
    assert again.step == 4 and again.counters == {"group/skipped_updates": 3}
    assert other.state_dict() == schedule.state_dict()
    _assert_same(again.state, run.state)
    _assert_same(again.params, run.params)
    # The reference is what the run started from, not what it had become.
    _assert_same(again.reference, run.reference)
    assert not np.array_equal(
        again.reference["lm_head"]["kernel"], again.state.trainable["lm_head"]["kernel"]
    )
    for got, want in zip(jax.tree.leaves(again.state), jax.tree.leaves(run.state), strict=True):
        assert got.sharding.is_equivalent_to(want.sharding, got.ndim)


def test_lines_after_the_checkpoint_are_cut(opened, job):
    run = opened()
    _save(run)
    for number in (5, 6):
        run.log(number, {"sft/loss": 1.0})
        run.log_rollouts(number, {"ids": []})
    with (job.workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "sft/lo')
    opened()
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        lines = small_runs.lines(job.workdir / name)
        assert [line["step"] for line in lines] == [1, 2, 3, 4]


def test_lines_without_a_checkpoint_are_cut_too(opened, job):
    run = opened()
    for number in (0, 1):
        run.log(number, {"sft/loss": 1.0})
        run.log_rollouts(number, {"ids": []})
    opened()
    assert (job.workdir / "metrics.jsonl").read_text() == ""
    assert (job.workdir / "rollouts.jsonl").read_text() == ""


def test_another_place_in_the_data_is_refused(opened, job):
    _save(opened())
    before = (job.workdir / "metrics.jsonl").read_text()
    with pytest.raises(ValueError, match=r"was trained with batch_size 8, not 16: .*set it back"):
        opened(batch_size=16)
    config = job.config.copy_and_resolve_references()
    config.seed = 7
    with pytest.raises(ValueError, match="was trained with seed 42, not 7"):
        opened(config=config)
    assert (job.workdir / "metrics.jsonl").read_text() == before


def test_another_reference_is_refused(opened, job):
    _save(opened(needs_reference=True))
    opened(needs_reference=True)
    with pytest.raises(ValueError, match="the reference policy of .* bring that checkpoint back"):
        opened(needs_reference=True, initial=lambda: small_runs.params(seed=1))


def test_the_best_step_is_that_of_the_highest_map(opened, job):
    run = opened()
    for step, best in [(1, 0.2), (2, 0.9), (3, 0.4), (4, 0.1), (5, 0.3)]:
        run.save(step, {"eval/val/map": best}, final=False)
    kept = {int(path.name) for path in (job.workdir / "checkpoints").iterdir()}
    assert kept == {2, 3, 4, 5}  # keep_last is 3, keep_best 1
    host = json.loads((job.workdir / "checkpoints/2/host/metadata").read_text())
    assert host["metrics"] == {"best": 0.9} and host["host_state"]["batches"] == 2
