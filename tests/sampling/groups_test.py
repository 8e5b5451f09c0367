# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Groups of completions against a loop that runs the whole prompt again for every token."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs

from medloc_jax.model import geometry, qwen2_5_vl
from medloc_jax.sampling import choose, groups

G, C, PAD = 2, 6, 330
MODEL = small_runs.MODEL
VOCAB = small_runs.SIZES.text.vocab_size
BUCKET = geometry.Bucket(num_patches=32, num_windows=4, prompt_length=32)
SEED = jax.random.PRNGKey(7)
ONE = np.float32(1)
SPECIAL = tuple(range(PAD, VOCAB))  # image placeholders among them
FREE = groups.SamplingRules(G, C, stop_ids=(PAD,), forbidden_ids=SPECIAL, pad_id=PAD)
GREEDY = dataclasses.replace(FREE, greedy=True)

_encode = jax.jit(MODEL.encode_images)
_sample = jax.jit(groups.sample_groups, static_argnums=(0, 6))
_group_logprobs = jax.jit(MODEL.group_logprobs)


@functools.partial(jax.jit, static_argnames="greedy")
def _pick(logits, key, rows, step, *, greedy):
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)[:, None]
    allowed = jnp.asarray(choose.allowed_tokens(VOCAB, SPECIAL))
    tokens, _ = choose.choose(logits[:, None], keys, step, jnp.float32(1), allowed, greedy=greedy)
    return tokens[:, 0]


@jax.jit
def _logits(params, inputs):
    return MODEL.logits(params, inputs, MODEL.encode_images(params, inputs))


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(jnp.asarray, small_runs.params())


def _run(params, rules=FREE, *, rows=None, key=SEED, temperature=ONE, model=MODEL):
    inputs = small_runs.collate(small_runs.prompts() if rows is None else rows, BUCKET)
    features = _encode(params, inputs)
    return _sample(model, params, inputs, features, key, np.float32(temperature), rules)


@pytest.fixture(scope="module")
def sampled(params):
    return _run(params)


def _grown(params, *, greedy):
    """Completions by appending to the prompt: no cache, no group, positions made by the host."""
    prompts = small_runs.prompts()
    out = np.zeros((len(prompts), G, C), np.int32)
    for g in range(G):
        rows = small_runs.prompts()
        for step in range(C):
            logits = _logits(params, small_runs.collate(rows, BUCKET))
            last = np.array([len(ids) for ids, _ in rows]) - 1
            numbers = jnp.arange(len(rows)) * G + g
            tokens = _pick(
                logits[np.arange(len(rows)), last], SEED, numbers, jnp.int32(step), greedy=greedy
            )
            out[:, g, step] = tokens
            rows = [
                (ids + [int(token)], images)
                for (ids, images), token in zip(rows, tokens, strict=True)
            ]
    return out


def test_greedy_equals_the_loop_over_growing_prompts(params):
    got = _run(params, GREEDY)
    want = _grown(params, greedy=True)
    assert len(np.unique(want[:, 0], axis=0)) == 3 and len(np.unique(want)) > 6  # not degenerate
    np.testing.assert_array_equal(got.completions, want)
    assert got.completion_mask.all()
    wrong = small_runs.collate(small_runs.prompts(), BUCKET)
    wrong = wrong._replace(rope_delta=wrong.rope_delta + 3)
    other = _sample(MODEL, params, wrong, _encode(params, wrong), SEED, ONE, GREEDY)
    assert not np.array_equal(other.completions, want)  # the check can fail


def test_draws_equal_the_loop_over_growing_prompts(params, sampled):
    np.testing.assert_array_equal(sampled.completions, _grown(params, greedy=False))


def test_logprobs_are_those_that_the_loss_computes(params):
    temperature = 0.8
    got = _run(params, temperature=temperature)
    inputs = small_runs.collate(small_runs.prompts(), BUCKET)
    args = (params, inputs, _encode(params, inputs), got.completions, got.completion_mask)
    want = _group_logprobs(*args, np.float32(temperature))
    assert float(jnp.abs(want).max()) > 1
    np.testing.assert_allclose(got.logprobs, want, atol=1e-5)
    hotter = _group_logprobs(*args, np.float32(1.0))
    assert float(jnp.abs(got.logprobs - hotter).max()) > 1e-2


def test_steps_differ_and_the_same_key_repeats(params, sampled):
    again = _run(params)
    np.testing.assert_array_equal(again.completions, sampled.completions)
    other = _run(params, key=jax.random.PRNGKey(8))  # with the very same parameters
    assert np.mean(np.asarray(other.completions) == np.asarray(sampled.completions)) < 0.5


def test_completions_of_a_group_differ(params, sampled):
    for group in np.asarray(sampled.completions):
        assert len(np.unique(group, axis=0)) == G
    one_prompt = _run(params, rows=[small_runs.prompts()[0]] * 3)
    assert len(np.unique(np.asarray(one_prompt.completions).reshape(-1, C), axis=0)) == 3 * G


def test_a_draw_depends_on_the_row_and_not_on_its_neighbours(params, sampled):
    first, second, third = small_runs.prompts()
    beside = small_runs.prompts(seed=1)
    got = _run(params, rows=[beside[2], second, beside[0]])
    np.testing.assert_array_equal(got.completions[1], sampled.completions[1])
    moved = _run(params, rows=[second, first, third])
    assert not np.array_equal(moved.completions[0], sampled.completions[1])


def test_a_temperature_near_0_is_greedy(params, sampled):
    greedy = _run(params, GREEDY).completions
    np.testing.assert_array_equal(_run(params, temperature=1e-3).completions, greedy)
    assert not np.array_equal(sampled.completions, greedy)


_steps = []


@dataclasses.dataclass(frozen=True)
class _Counting(qwen2_5_vl.Model):
    """Notes every token that is fed back."""

    def decode_step(self, params, tokens, step, prompts, completions):
        jax.debug.callback(lambda step: _steps.append(int(step)), step)
        return super().decode_step(params, tokens, step, prompts, completions)


def test_an_end_token_ends_its_row_and_the_loop_ends_with_the_last_row(params, sampled):
    free = np.asarray(sampled.completions)
    # One token of each row, none of the last place: every row ends, at places of their own.
    places = [(b, g, (b + g) % 3) for b in range(3) for g in range(G)]
    stops = tuple(sorted({int(free[place]) for place in places}))
    ends = np.isin(free, stops).argmax(-1)
    assert len(np.unique(ends)) > 1 and ends.max() < C - 1
    _steps.clear()
    rules = dataclasses.replace(FREE, stop_ids=stops)
    got = _run(params, rules, model=_Counting(small_runs.SIZES))
    jax.effects_barrier()
    want = np.arange(C) <= ends[..., None]  # the end token counts
    np.testing.assert_array_equal(got.completion_mask, want)
    np.testing.assert_array_equal(got.completions, np.where(want, free, PAD))
    np.testing.assert_allclose(got.logprobs, np.where(want, sampled.logprobs, 0), atol=1e-6)
    assert sorted(_steps) == list(range(ends.max()))


def test_what_is_forbidden_is_not_said_even_where_it_was_likeliest(params, sampled):
    favourites = tuple(int(t) for t in np.unique(_run(params, GREEDY).completions[:, :, :2]))
    assert np.isin(sampled.completions, favourites).any()
    rules = dataclasses.replace(FREE, forbidden_ids=(*SPECIAL, *favourites), greedy=True)
    got = np.asarray(_run(params, rules).completions)
    assert not np.isin(got, favourites).any()


def test_a_completion_of_one_token(params, sampled):
    got = _run(params, dataclasses.replace(FREE, max_completion_tokens=1))
    np.testing.assert_array_equal(got.completions, sampled.completions[..., :1])
