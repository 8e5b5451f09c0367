# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Sampling one step ahead: killed, stopped and continued runs, and what keeps devices in order."""

import copy
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
import small_runs

from medloc_jax.rewards import scores
from medloc_jax.training import grpo, programs

pytestmark = pytest.mark.resume

STEPS = 7
SETTINGS = {
    "num_steps": STEPS,
    "rl__sample_ahead": True,
    "rl__group_size": 4,
    "rl__max_completion_tokens": 6,
    "optim__warmup_steps": 0,
    "optim__learning_rate": 5e-3,  # so that one update is seen in the weights
    "model__remat": "none",
    "eval__every": 4,
    "checkpoint__every": 2,
    "log__rollouts_every": 1,
}


class _Killed(Exception):
    pass


def _killed():
    raise _Killed


def _stopped():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Trains in a folder; `hits` are done when the completions of a step have been scored.

    All runs of a test are of one configuration, and share what the first has compiled.
    """
    pictures = tmp_path / "pictures"
    manifest = small_runs.write_manifest(pictures, [(32, 32), (48, 32), (40, 40)] * 6)
    compile_programs, compiled = grpo._programs, []

    def compile_once(job, *args):
        if not compiled:
            compiled.extend(compile_programs(job, *args))
        *made, evaluate = compiled
        evaluate = copy.copy(evaluate)
        evaluate._job = job
        return *made, evaluate

    monkeypatch.setattr(grpo, "_programs", compile_once)

    def start(name, hits=None, **changes):
        job = small_runs.open_job(
            tmp_path / name, **SETTINGS | {"data__manifest": manifest} | changes
        )
        scored, score = [], scores.score_completions

        def score_and_hit(*args):
            texts, result = args[0], score(*args)
            # Random weights never answer with a box; something has to differ within a group.
            formats = np.array([[sum(map(ord, text)) % 2 for text in group] for group in texts])
            result.scores["format"][:] = formats
            scored.append(1)
            (hits or {}).get(len(scored), lambda: None)()
            return result

        with monkeypatch.context() as patch:
            patch.setattr(scores, "score_completions", score_and_hit)
            return grpo.train(job)

    return start


def _lines(folder):
    return [small_runs.lines(folder / name) for name in ("metrics.jsonl", "rollouts.jsonl")]


def test_killed_stopped_and_continued_gives_the_same_lines(train, tmp_path, monkeypatch):
    assert train("whole") == 0
    whole = _lines(tmp_path / "whole")
    metrics = whole[0][1:]
    assert [line["step"] for line in metrics] == list(range(1, STEPS + 1))
    # The first two steps are drawn with the first parameters: on-policy, then one update behind.
    assert metrics[0]["grpo/importance_mean"] == pytest.approx(1, abs=1e-4)
    assert all(abs(line["grpo/importance_mean"] - 1) > 1e-3 for line in metrics[1:])

    with pytest.raises(_Killed):  # step 2 is saved, step 3 is not
        train("hit", {4: _killed})
    assert train("hit", {3: _stopped}) == 143  # the first that is scored is of step 3
    saved = max(int(p.name) for p in (tmp_path / "hit/checkpoints").iterdir() if p.name.isdigit())
    assert 3 < saved < STEPS and saved % 2  # not where a checkpoint was due
    shutil.copytree(tmp_path / "hit", tmp_path / "lost")
    assert train("hit") == 0
    assert _lines(tmp_path / "hit") == whole

    # Without what was drawn ahead the run goes on, and differs from the next step on.
    host = tmp_path / f"lost/checkpoints/{saved}/host/metadata"
    record = json.loads(host.read_text())
    assert record["host_state"].pop("ahead")
    host.write_text(json.dumps(record))
    assert train("lost") == 0
    want, lost = whole[0], _lines(tmp_path / "lost")[0]
    assert lost[: saved + 1] == want[: saved + 1] and lost[saved + 1] != want[saved + 1]


def test_waiting_for_every_program_changes_nothing(train, tmp_path, monkeypatch):
    """Nothing is read after its memory was given away, and no update overtakes a draw."""
    changes = {"num_steps": 4, "rl__num_updates": 2, "model__freeze_vision": False}
    assert train("free", **changes) == 0
    call = programs.Program.__call__
    monkeypatch.setattr(
        programs.Program, "__call__", lambda self, *args: jax.block_until_ready(call(self, *args))
    )
    assert train("waited", **changes) == 0
    assert _lines(tmp_path / "free") == _lines(tmp_path / "waited")
