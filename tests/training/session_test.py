# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Opening, saving and continuing a run's folder. Whole runs: tests/integration/resume_test.py."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs

from medloc_jax import distributed
from medloc_jax.curriculum import make_schedule
from medloc_jax.training import diagnostics, session
from medloc_jax.training import job as jobs

LINES = ("metrics.jsonl", "rollouts.jsonl")
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


@pytest.mark.parametrize("processes", [1, 2])
def test_the_schedule_is_written_down_where_others_must_hold_the_same(
    opened, monkeypatch, processes
):
    schedule, told, written = make_schedule("medloc", num_steps=9, **OPTIONS), [], []
    run = opened(schedule=schedule)
    state = schedule.state_dict()
    monkeypatch.setattr(schedule, "state_dict", lambda: written.append(1) or state)
    monkeypatch.setattr(jax, "process_count", lambda: processes)

    def agree(same, *, asked, count):
        told.append(set(same))
        return distributed.Agreed(asked, count)

    monkeypatch.setattr(distributed, "agree", agree)
    run.stop.asked = True
    assert run._agree(3) == distributed.Agreed(True, 3)
    alone = processes == 1
    assert told == [{"step"} if alone else {"step", "threshold", "schedule checksum"}]
    assert len(written) == (0 if alone else 1)


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


class _Evaluator(jobs.Evaluator):
    """Scores every second step; an answer `stopped` is SIGTERM in the middle of it."""

    def __init__(self, *answers):
        self.answers, self.steps = list(answers), []

    def scheduled(self, params, step, stop=None):
        if step % 2:
            return {}
        self.steps.append(step)
        answer = self.answers.pop(0)
        if answer == "stopped":
            raise jobs.InterruptedByStop
        return {"eval/val/map": answer}


def _do(run, steps, evaluate):
    """Whether the steps ended by a stop."""
    for step in steps:
        run.state = _shifted(run.state)
        run.log_rollouts(step, {"ids": []})
        metrics = {"sft/loss": np.float32(0.1) * step, "group/skipped_updates": step}
        if run.end_step(step, metrics, evaluate):
            return True
    return False


def test_an_evaluation_that_was_cut_short_is_made_up_for_and_appears_once(opened, job):
    whole = opened(workdir=job.workdir.with_name("whole"))
    evaluate = _Evaluator(0.1, 0.2, 0.3)
    assert not whole.begin(evaluate) and not _do(whole, range(1, 6), evaluate)
    want = [small_runs.lines(whole.job.workdir / name) for name in LINES]

    run, evaluate = opened(), _Evaluator(0.1, 0.2, "stopped")
    assert not run.begin(evaluate) and _do(run, range(1, 6), evaluate)
    assert run.close() == 143 and run.checkpointer.steps()[-1] == 4
    assert [line["step"] for line in small_runs.lines(job.workdir / LINES[0])] == [0, 1, 2, 3]
    # Stopped again while it is made up for: nothing has changed.
    again, evaluate = opened(), _Evaluator("stopped")
    assert again.step == 4 and again.begin(evaluate) and again.close() == 143
    # Killed right after its line was written, before the checkpoint without it.
    again = opened()
    again.log(4, {"sft/loss": 0.4, "eval/val/map": 0.3})
    again, evaluate = opened(), _Evaluator(0.3)
    assert not again.begin(evaluate) and evaluate.steps == [4]
    assert not _do(again, [5], evaluate)
    again.close()
    assert [small_runs.lines(job.workdir / name) for name in LINES] == want
    host = json.loads((job.workdir / "checkpoints/4/host/metadata").read_text())
    assert host["metrics"] == {"best": 0.3}
    assert opened().pending is None


def test_a_run_whose_last_evaluation_was_cut_short_is_not_finished(opened, job):
    last = job.config.num_steps
    run = opened()
    run.step = last - 1
    assert run.end_step(last, {"sft/loss": 1.0}, _Evaluator("stopped"))
    assert not run.finished and run.close() == 143
    again = opened()
    assert again.step == last and not again.finished
    assert not again.begin(_Evaluator(0.5)) and again.finished and again.close() == 0
    assert opened().finished


def test_sigterm_before_the_first_step_saves_nothing(opened, job):
    run = opened()
    run.stop.asked = True
    assert run.begin(_Evaluator(0.1)) and run.close() == 143
    assert run.checkpointer.steps() == []


def test_gradients_that_stay_non_finite_end_the_run(opened, job, monkeypatch):
    run, told = opened(), []
    run.job.config.optim.max_nonfinite = 2
    monkeypatch.setattr(diagnostics, "stop", lambda *args: told.append(args[1]))
    for step, skipped in enumerate([1.0, 0.0, 1.0, 1.0], start=1):
        run.check_finite(step, {"optimizer/skipped_nonfinite": jnp.float32(skipped)}, lambda: None)
    assert told == [4]  # two in a row, not two in all
    run.job.config.optim.max_nonfinite = 0
    run.check_finite(5, {"optimizer/skipped_nonfinite": jnp.float32(1)}, lambda: None)
    assert told == [4]


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
