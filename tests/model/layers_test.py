# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What the backward pass keeps: the gradient is the same, the number of products is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medloc_jax.model import layers

ROWS, WIDTH, DEPTH = 3, 4, 2


def loss_of(policy):
    def body(x, weight):
        up, down = weight
        mixed = jax.nn.softmax(jnp.einsum("btd,bsd->bts", x, x))  # a product of activations alone
        return x + jnp.einsum("bts,bsd->btd", mixed, jax.nn.silu(x @ up) @ down), None

    def loss(weights, x):
        return jnp.sum(jax.lax.scan(layers.remat(body, policy), x, weights)[0] ** 2)

    return loss


def draw():
    rng = np.random.default_rng(0)
    shapes = ((DEPTH, WIDTH, WIDTH), (DEPTH, WIDTH, WIDTH), (2, ROWS, WIDTH))
    up, down, x = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    return (up, down), x


def products(policy):
    """Matrix products of the gradient's program; a scan's body counts once."""
    return str(jax.make_jaxpr(jax.grad(loss_of(policy)))(*draw())).count("dot_general")


@pytest.mark.parametrize("policy", ["dots", "none"])
def test_the_gradient_is_the_same(policy):
    wanted = jax.grad(loss_of("layer"))(*draw())
    for found, want in zip(jax.grad(loss_of(policy))(*draw()), wanted, strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


def test_dots_recomputes_products_of_activations_alone():
    """Of the four products of a layer two are with weights."""
    assert products("none") < products("dots") < products("layer")


def test_another_policy_is_refused():
    with pytest.raises(ValueError, match=r"model\.remat='dot'"):
        layers.remat(lambda x: x, "dot")


@pytest.mark.parametrize("lead", [(5,), (2, 3), (2, 1, 3)])
def test_a_product_and_its_gradients_are_those_of_autodiff(lead):
    rng = np.random.default_rng(1)
    shapes = ((*lead, WIDTH), (WIDTH, 7), (*lead, 7))
    x, weight, pull = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    found, back = jax.vjp(layers.product, x, weight)
    want, plain = jax.vjp(lambda x, w: x @ w, x, weight)
    np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-6)
    for got, grad in zip(back(pull), plain(pull), strict=True):
        assert got.shape == grad.shape
        np.testing.assert_allclose(got, grad, rtol=1e-6, atol=1e-6)


def test_a_products_gradients_are_of_its_dtype():
    x, weight = jnp.ones((2, 3, WIDTH), jnp.bfloat16), jnp.ones((WIDTH, 7), jnp.bfloat16)
    found, back = jax.vjp(layers.product, x, weight)
    assert {part.dtype for part in (found, *back(found))} == {jnp.dtype(jnp.bfloat16)}


def _repeated(policy, *, unroll, shows):
    """What three layers give and show, and the gradient of both."""
    rng = np.random.default_rng(2)
    shapes = ((3, WIDTH, WIDTH), (3, WIDTH), (ROWS, WIDTH), (3, ROWS, WIDTH))
    kernel, bias, x, pull = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes)

    def body(x, one):
        y = x + jnp.tanh(layers.product(x, one["kernel"]) + one["bias"])
        return y, {"half": y / 2, "none": None} if shows else None

    def loss(weights, x):
        wrapped = layers.remat(body, policy, unroll=unroll)
        last, shown = layers.repeat(wrapped, x, weights, unroll=unroll)
        total = jnp.sum(last**2) + (jnp.sum(shown["half"] * pull) if shows else 0.0)
        return total, (last, shown)

    given = {"kernel": kernel, "bias": bias}
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(given, x)


@pytest.mark.parametrize("shows", [True, False])
@pytest.mark.parametrize("policy", ["layer", "none"])
def test_layers_written_out_are_the_loop(policy, shows):
    found = _repeated(policy, unroll=True, shows=shows)
    want = _repeated(policy, unroll=False, shows=shows)
    assert jax.tree.structure(found) == jax.tree.structure(want)
    (_, (_, shown)), (weights, _) = found
    assert float(jnp.abs(weights["kernel"]).max(axis=(1, 2)).min()) > 0.1  # of every layer
    assert (shown["half"].shape, shown["none"]) == ((3, ROWS, WIDTH), None) if shows else not shown
    for got, one in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        assert got.shape == one.shape
        np.testing.assert_allclose(got, one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("unroll", "loops"), [(True, 0), (False, 1)])
def test_layers_written_out_have_no_loop(unroll, loops):
    def run(weights, x):
        return layers.repeat(lambda x, one: (x @ one, None), x, weights, unroll=unroll)

    program = jax.make_jaxpr(run)(jnp.ones((3, WIDTH, WIDTH)), jnp.ones((ROWS, WIDTH)))
    assert str(program).count("scan[") == loops
