# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of tokens against log_softmax and autodiff, whole and split over devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from medloc_jax import sharding
from medloc_jax.model import vocabulary

B, G, C, D, V = 2, 2, 3, 8, 24
TEMPERATURE = 0.7


def _draw(tied, dtype=jnp.float32):
    """Hidden vectors, head, tokens (the first and last of the vocabulary among them), gradient."""
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(B, G, C, D)), dtype)
    head = jnp.asarray(rng.normal(size=(V, D) if tied else (D, V)), dtype)
    tokens = rng.integers(0, V, (B, G, C)).astype(np.int32)
    tokens[0, 0, :2] = 0, V - 1
    return hidden, head, jnp.asarray(tokens), jnp.asarray(rng.normal(size=(B, G, C)), jnp.float32)


def _plain(hidden, head, tokens, temperature, *, tied):
    hidden, head = hidden.astype(jnp.float32), head.astype(jnp.float32)
    logprobs = jax.nn.log_softmax(hidden @ (head.T if tied else head) / temperature)
    return jnp.take_along_axis(logprobs, tokens[..., None], axis=-1)[..., 0]


@functools.partial(jax.jit, static_argnames=("function", "tied"))
def _with_gradients(hidden, head, tokens, pull, temperature, *, function, tied):
    def of(hidden, head, temperature):
        return function(hidden, head, tokens, temperature, tied=tied)

    found, back = jax.vjp(of, hidden, head, temperature)
    return found, *back(pull)


def _both(drawn, *, tied):
    functions = (vocabulary.token_logprobs, _plain)
    return [
        _with_gradients(*drawn, jnp.float32(TEMPERATURE), function=function, tied=tied)
        for function in functions
    ]


@pytest.mark.parametrize("tied", [True, False])
def test_values_and_gradients_are_those_of_log_softmax(tied):
    found, want = _both(_draw(tied), tied=tied)
    assert float(jnp.abs(want[3])) > 1  # autodiff gives the temperature a gradient; here it is none
    assert float(found[3]) == 0
    for got, one in zip(found[:3], want[:3], strict=True):
        assert got.shape == one.shape and got.dtype == jnp.float32
        np.testing.assert_allclose(got, one, rtol=1e-5, atol=5e-6)


def test_another_temperature_is_noticed():
    """The check above tells a gradient that is not divided by the temperature."""
    (_, by_hidden, _, _), _ = _both(_draw(True), tied=True)
    want = _with_gradients(*_draw(True), jnp.float32(1), function=_plain, tied=True)[1]
    assert float(jnp.abs(by_hidden - want).max()) > 0.1


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_in_bfloat16_are_near_those_in_float32(tied):
    drawn = _draw(tied, jnp.bfloat16)
    found, want = _both(drawn, tied=tied)  # the same rounded numbers, computed in float32
    assert found[0].dtype == jnp.float32
    np.testing.assert_allclose(found[0], want[0], atol=1e-5)  # logits are float32 whatever they are
    for got, one, given in zip(found[1:3], want[1:3], drawn[:2], strict=True):
        assert got.dtype == jnp.bfloat16 and got.shape == given.shape
        one = np.asarray(one, np.float32)
        error = np.linalg.norm(np.asarray(got, np.float32) - one)
        assert error < 2**-7 * np.linalg.norm(one)


def test_logits_are_float32_by_either_head():
    hidden, head, _, _ = _draw(True, jnp.bfloat16)
    whole = np.asarray(hidden, np.float32) @ np.asarray(head, np.float32).T
    for tied, stored in ((True, head), (False, head.T)):
        found = vocabulary.logits(hidden, stored, tied=tied)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, whole, atol=1e-5)


# ---- a vocabulary on several devices ----


def _mesh():
    return sharding.make_mesh(data=1, fsdp=2, tensor=4)


def test_chosen_logits_of_a_split_vocabulary():
    """Summed where it is split; where it does not divide it lies whole and is looked up."""
    _, _, tokens, _ = _draw(True)
    mesh = _mesh()
    for size in (V, V + 2):
        logits = np.random.default_rng(1).normal(size=(B, G, C, size)).astype(np.float32)
        want = np.take_along_axis(logits, np.asarray(tokens)[..., None], axis=-1)[..., 0]
        with sharding.on(mesh):
            assert sharding.ways("vocab", size) == (4 if size == V else 1)
            where = sharding.spec(mesh, logits.shape, ("batch", None, None, "vocab"))
            split = jax.device_put(logits, NamedSharding(mesh, where))
            compiled = jax.jit(vocabulary.chosen_logits).lower(split, tokens).compile()
        np.testing.assert_array_equal(compiled(split, tokens), want)
        assert "all-gather" not in compiled.as_text()


def test_an_infinite_logit_of_another_token_does_not_spoil_the_sum():
    logits = jnp.zeros((B, G, V)).at[..., 5].set(-jnp.inf)
    with sharding.on(_mesh()):
        found = jax.jit(vocabulary.chosen_logits)(logits, jnp.full((B, G), 6))
    np.testing.assert_array_equal(found, 0)


@pytest.mark.parametrize("tied", [True, False])
def test_split_over_devices_it_is_the_whole(tied):
    drawn, mesh = _draw(tied), _mesh()
    hidden, head, tokens, pull = drawn
    axes = PartitionSpec("tensor", "fsdp") if tied else PartitionSpec("fsdp", "tensor")

    def run(hidden, head, tokens, pull):
        head = sharding.gathered(head, ("vocab", "embed") if tied else ("embed", "vocab"))
        temperature = jnp.float32(TEMPERATURE)
        return _with_gradients.__wrapped__(
            hidden, head, tokens, pull, temperature, function=vocabulary.token_logprobs, tied=tied
        )

    rows = sharding.over_batch(mesh)
    with sharding.on(mesh):
        found = jax.jit(run)(
            jax.device_put(hidden, rows),
            jax.device_put(head, NamedSharding(mesh, axes)),
            jax.device_put(tokens, rows),
            jax.device_put(pull, rows),
        )
    for got, want in zip(found, _both(drawn, tied=tied)[0], strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=5e-6)
