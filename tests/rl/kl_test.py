# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np

from medloc_jax.rl import kl


def test_hand_values():
    got = kl.k3(jnp.array([0.0, 1.0, -1.0, np.log(2.0)], jnp.float32))
    np.testing.assert_allclose(got, [0, np.e - 2, 1 / np.e, 1 - np.log(2)], rtol=1e-6)


def test_close_distributions_keep_their_digits():
    x = np.array([1e-3, -1e-3, 1e-4], np.float32)
    want = np.expm1(x.astype(np.float64)) - x.astype(np.float64)
    np.testing.assert_allclose(kl.k3(jnp.asarray(x)), want, rtol=2e-3)
    assert np.abs((np.exp(x) - x - 1) / want - 1).max() > 0.5  # the plain form has none left
    assert (kl.k3(jnp.linspace(-0.01, 0.01, 2001)) >= 0).all()


def test_clamped_and_finite_with_zero_gradient_outside():
    x = jnp.array([-1e4, -20.5, 20.5, 1e4], jnp.float32)
    np.testing.assert_allclose(kl.k3(x)[2:], np.exp(20) - 21, rtol=1e-5)
    np.testing.assert_allclose(kl.k3(x)[:2], 19, rtol=1e-5)
    np.testing.assert_array_equal(jax.grad(lambda y: kl.k3(y).sum())(x), np.zeros(4))


def test_unbiased_over_the_policy():
    policy = np.array([0.5, 0.3, 0.2])
    reference = np.array([0.2, 0.5, 0.3])
    estimate = (policy * np.asarray(kl.k3(jnp.asarray(np.log(reference / policy))))).sum()
    np.testing.assert_allclose(estimate, (policy * np.log(policy / reference)).sum(), rtol=1e-5)
