# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What is trained and what is not, and where both lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from medloc_jax import sharding
from medloc_jax.model import qwen2_5_vl
from medloc_jax.training import optimizer, state

MODEL = small_runs.MODEL
CHAIN = optimizer.make_optimizer(beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.1, clip_norm=1.0)


def _paths(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _place(mesh, *, freeze_vision=True, frozen_dtype="float32"):
    return state.place(MODEL, mesh, CHAIN, freeze_vision=freeze_vision, frozen_dtype=frozen_dtype)


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(data=1, fsdp=4, tensor=2)


names = st.sampled_from(["a", "b", "c"])
trees = st.recursive(st.integers(), lambda inner: st.dictionaries(names, inner, min_size=1))


@given(st.dictionaries(names, trees, min_size=1), st.sets(names))
def test_merge_undoes_split(tree, kept):
    first, second = state.split(tree, lambda path: path[-1] in kept)
    merged = state.merge(first, second)
    assert _paths(merged) == _paths(tree)
    assert not _paths(first).keys() & _paths(second).keys()


def test_a_frozen_tower_is_the_tower_with_its_merger_and_nothing_else(mesh):
    frozen = _place(mesh)
    names = _paths(MODEL.abstract_params()).keys()
    assert _paths(frozen.frozen).keys() == {name for name in names if name.startswith("visual.")}
    assert any(name.startswith("visual.merger") for name in _paths(frozen.frozen))
    assert _paths(frozen.trainable).keys() == names - _paths(frozen.frozen).keys()
    assert not any("visual" in name for name in _paths(frozen.opt_state))
    assert any("visual" in name for name in _paths(_place(mesh, freeze_vision=False).opt_state))
    assert _place(mesh, freeze_vision=False).frozen == {}


def test_a_moment_lies_like_its_parameter(mesh):
    placement = _place(mesh, freeze_vision=False)
    by_name = {name: leaf.sharding.spec for name, leaf in _paths(placement.trainable).items()}
    moments = 0
    for name, leaf in _paths(placement.opt_state).items():
        owner = name.partition("mu.")[2] or name.partition("nu.")[2]
        if owner:
            moments += 1
            assert leaf.sharding.spec == by_name[owner], name
        else:
            assert leaf.sharding.spec == PartitionSpec(), name
    assert moments == 2 * len(by_name)
    # The point of it: most of the bytes are split.
    split = [name for name, spec in by_name.items() if any(spec)]
    assert len(split) > len(by_name) / 2
    assert "fsdp" in by_name["language_model.layers.mlp.up_proj.kernel"]
    assert "tensor" in by_name["language_model.layers.mlp.up_proj.kernel"]


def test_what_start_makes_lies_as_planned(mesh):
    placement = _place(mesh, frozen_dtype="bfloat16")
    run, frozen = state.start(small_runs.params(), placement, CHAIN)
    planned = (placement.trainable, placement.opt_state, placement.frozen)
    for got, want in zip(
        jax.tree.leaves((run.trainable, run.opt_state, frozen)),
        jax.tree.leaves(planned),
        strict=True,
    ):
        assert (got.shape, got.dtype, got.sharding) == (want.shape, want.dtype, want.sharding)
    assert {leaf.dtype for leaf in jax.tree.leaves(frozen)} == {jnp.dtype("bfloat16")}
    assert all(leaf.dtype != jnp.bfloat16 for leaf in jax.tree.leaves(run))
    # jit alone would leave the moments whole on every device: this test can fail.
    carelessly = jax.jit(CHAIN.init)(run.trainable)
    layouts = [
        got.sharding.is_equivalent_to(want.sharding, got.ndim)
        for got, want in zip(
            jax.tree.leaves(carelessly), jax.tree.leaves(placement.opt_state), strict=True
        )
    ]
    assert not all(layouts)


def test_another_shape_is_refused_by_name(mesh):
    placement = _place(mesh)
    params = small_runs.params()
    params["language_model"]["norm"]["scale"] = np.ones(31, np.float32)
    with pytest.raises(ValueError, match=r"language_model.norm.scale has shape \(31,\)"):
        state.start(params, placement, CHAIN)


def test_a_copy_has_memory_of_its_own():
    params = {"a": jnp.arange(4.0), "b": {"c": jnp.ones(3)}}
    kept = state.copy(params, "float32")
    used = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    used(params)
    assert params["a"].is_deleted()
    np.testing.assert_array_equal(kept["a"], np.arange(4.0))
    assert state.copy(kept, "bfloat16")["a"].dtype == jnp.bfloat16


def test_a_fingerprint_tells_parameters_apart():
    params = small_runs.params()
    same = state.fingerprint(params)
    assert same == state.fingerprint(small_runs.params())
    params["language_model"]["norm"]["scale"][3] += 1.0
    assert not np.isclose(state.fingerprint(params), same, rtol=1e-5)


class _OneLayer(qwen2_5_vl.Model):
    """Drawing a whole model compiles for ten seconds."""

    def init(self, key):
        return {"kernel": jax.random.normal(key, (16, 8))}

    def abstract_params(self):
        return jax.eval_shape(self.init, jax.random.key(0))

    def logical_axes(self):
        return {"kernel": ("embed", "mlp")}


def test_fresh_parameters_are_drawn_in_place_and_alike_on_any_mesh(mesh):
    sharded = state.fresh(_OneLayer(small_runs.SIZES), mesh, 5)["kernel"]
    assert sharded.sharding.spec == PartitionSpec("fsdp", "tensor")
    assert sharded.addressable_shards[0].data.shape == (4, 4)
    alone = state.fresh(_OneLayer(small_runs.SIZES), small_runs.one_device(), 5)["kernel"]
    np.testing.assert_array_equal(sharded, alone)
    assert not np.array_equal(
        alone, state.fresh(_OneLayer(small_runs.SIZES), small_runs.one_device(), 6)["kernel"]
    )
