# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""With which parameters completions are drawn, and how those drawn ahead are kept."""

import types

import numpy as np
import pytest

from medloc_jax import sharding
from medloc_jax.sampling import groups
from medloc_jax.training import rollouts


class _Draw:
    """Notes which parameters were asked for which step."""

    def __init__(self):
        self.seen = []

    def __call__(self, step, params, ahead):
        self.seen.append((step, params))
        sampled = ahead.get(step) or _with(params)
        return rollouts.Drawn(step, None, None, None, sampled, None)


def _with(params):
    """Completions that tell which parameters drew them."""
    return groups.Sampled(f"drawn with {params}", None, None)


def _run(stream, steps, ahead=None, updates=0):
    """What a loop sees that makes one update a step; (drawn, steps kept while a step is had)."""
    made, draw, ahead = [updates], _Draw(), {} if ahead is None else ahead
    got, kept = [], []
    for drawn in stream(draw, steps, lambda: made[0], ahead):
        got.append((drawn.step, drawn.sampled))
        kept.append(sorted(ahead))
        made[0] += 1
    return got, kept, draw.seen


def test_on_policy_every_step_is_drawn_with_the_newest_parameters():
    got, kept, seen = _run(rollouts.on_policy, range(1, 5))
    assert seen == [(1, 0), (2, 1), (3, 2), (4, 3)]
    assert [step for step, _ in got] == [1, 2, 3, 4]
    assert kept == [[]] * 4  # nothing that a save would have to hold


def test_one_ahead_is_drawn_before_the_update_of_the_step_before():
    got, kept, seen = _run(rollouts.one_ahead, range(1, 5))
    assert seen == [(1, 0), (2, 0), (3, 1), (4, 2)]
    assert [step for step, _ in got] == [1, 2, 3, 4]
    assert kept == [[1, 2], [2, 3], [3, 4], [4]]


def test_one_ahead_goes_on_with_what_was_saved():
    # Two updates are made; step 3 was drawn with the parameters of before the second.
    whole, _, _ = _run(rollouts.one_ahead, range(1, 6))
    again, _, seen = _run(rollouts.one_ahead, range(3, 6), {3: _with(1)}, updates=2)
    assert again == whole[2:]
    assert seen == [(3, 2), (4, 2), (5, 3)]  # of step 3 only what belongs to it is made again
    lost, _, _ = _run(rollouts.one_ahead, range(3, 6), {}, updates=2)
    assert lost != whole[2:]


def test_there_may_be_one_step_or_none():
    assert _run(rollouts.one_ahead, range(4, 5))[0] == [(4, _with(0))]
    assert _run(rollouts.one_ahead, range(4, 4))[0] == []


@pytest.fixture
def job(open_job):
    return open_job(rl__group_size=3, rl__max_completion_tokens=4)


def _sampled(job, group_size=3):
    rng = np.random.default_rng(0)
    shape = (8, group_size, 4)
    tokens = rng.integers(0, 200, shape).astype(np.int32)
    logprobs = rng.normal(size=shape).astype(np.float32)
    return sharding.shard_batch(job.mesh, groups.Sampled(tokens, tokens > 50, logprobs))


def test_completions_survive_as_text_bit_by_bit(job):
    sampled = _sampled(job)
    got = rollouts.unpack(job, rollouts.pack(job, sampled))
    for one, other in zip(got, sampled, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype and one.sharding.is_equivalent_to(other.sharding, 3)


def test_damaged_completions_and_those_of_another_run_are_refused(job):
    text = rollouts.pack(job, _sampled(job))
    middle = len(text) // 2
    with pytest.raises(ValueError, match="are damaged .*remove the newest step"):
        rollouts.unpack(job, text[:middle] + ("0" if text[middle] != "0" else "1") + text[middle:])
    with pytest.raises(ValueError, match=r"of other sizes than \(8, 3, 4\)"):
        rollouts.unpack(job, rollouts.pack(job, _sampled(job, group_size=2)))


def test_each_process_takes_its_rows(job, monkeypatch):
    text = rollouts.pack(job, _sampled(job))
    taken = []
    share = types.SimpleNamespace(index=1, count=2)
    whole = np.asarray(_sampled(job).completions)
    monkeypatch.setattr(sharding, "row_share", lambda mesh: share)
    monkeypatch.setattr(sharding, "shard_batch", lambda mesh, local: taken.append(local) or local)
    rollouts.unpack(job, text)
    np.testing.assert_array_equal(taken[0].completions, whole[4:])
