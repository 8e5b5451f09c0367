# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Cutting a batch: parts add up. With the real losses: sft_test.py and grpo_test.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medloc_jax.training import micro_batches


def _loss(params, batch):
    share = jnp.sum(jnp.tanh(batch["x"] @ params["w"]) * batch["y"])
    return share, {"share": share, "rows": batch["y"]}


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    batch = {"x": rng.normal(size=(12, 3)), "y": rng.normal(size=(12,))}
    return {"w": jnp.asarray(rng.normal(size=3))}, jax.tree.map(jnp.asarray, batch)


@pytest.mark.parametrize("num_parts", [1, 2, 4, 12])
def test_parts_add_up_to_the_whole(case, num_parts):
    (want, _), grads = jax.value_and_grad(_loss, has_aux=True)(*case)
    seen, got = micro_batches.value_and_grad(_loss, *case, num_parts)
    assert seen["share"].shape == (num_parts,)
    np.testing.assert_allclose(jnp.sum(seen["share"]), want, rtol=1e-5)
    np.testing.assert_allclose(got["w"], grads["w"], rtol=1e-5)
    # Every row is in one part, and only there.
    np.testing.assert_array_equal(np.sort(seen["rows"].ravel()), np.sort(case[1]["y"]))


def test_a_part_takes_its_share_of_every_stretch_of_rows(case):
    seen, _ = micro_batches.value_and_grad(_loss, *case, 3)
    np.testing.assert_array_equal(seen["rows"][1], case[1]["y"][1::3])


def test_a_loss_that_divides_by_its_own_rows_would_not_add_up(case):
    def wrong(params, batch):
        share, seen = _loss(params, batch)
        return share / batch["y"].shape[0], seen

    _, whole = micro_batches.value_and_grad(wrong, *case, 1)
    _, parts = micro_batches.value_and_grad(wrong, *case, 3)
    assert not np.allclose(whole["w"], parts["w"])


def test_the_number_of_parts():
    assert micro_batches.num_parts(12, 0, "sft.micro_batch") == 1
    assert micro_batches.num_parts(12, 4, "sft.micro_batch") == 3
    assert micro_batches.num_parts(12, 12, "sft.micro_batch") == 1
    for bad in (5, 24, -1):
        with pytest.raises(ValueError, match=f"sft.micro_batch={bad} does not divide the 12 rows"):
            micro_batches.num_parts(12, bad, "sft.micro_batch")
