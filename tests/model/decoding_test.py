# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Token by token is the forward over the whole: on one device, and however the weights lie."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medloc_jax import sharding
from medloc_jax.model import attention, config, geometry, qwen2_5_vl

G, C = 2, 4
GRID = (1, 4, 6)
TINY = config.preset("tiny")
# Two layers, and a head of its own; 4 heads and 2 key heads as in "tiny".
SMALL = dataclasses.replace(
    TINY,
    text=dataclasses.replace(
        TINY.text,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        mrope_section=(1, 1, 2),
        tie_word_embeddings=False,
    ),
    vision=dataclasses.replace(TINY.vision, out_hidden_size=32),
)
CONFIGS = {"tiny": TINY, "untied": SMALL}


def _inputs(completions=None):
    """An image in front of some text, and text alone; or each completion behind its prompt."""
    pixels = np.zeros((GRID[1] * GRID[2], TINY.vision.patch_dim), np.float32)
    image = [TINY.image_token_id] * geometry.merged_tokens(GRID, TINY.vision)
    prompts = [([7, *image, *range(20, 31)], [(pixels, GRID)]), ([5, 6, 3, 9], [])]
    behind = [[[]], [[]]] if completions is None else np.asarray(completions).tolist()
    rows = [
        geometry.pack_row([*ids, *own], images, TINY)
        for (ids, images), group in zip(prompts, behind, strict=True)
        for own in group
    ]
    inputs = geometry.collate(rows, geometry.Bucket(24, 2, 24), TINY)
    return jax.tree.map(jnp.asarray, inputs)


def _drawn(model):
    """Parameters with biases and norms away from 0 and 1, image tokens, completions."""
    rng = np.random.default_rng(1)

    def one(path, leaf):
        values = rng.normal(size=leaf.shape).astype(np.float32)
        name = path[-1].key
        if name == "scale":
            return 1 + 0.1 * values
        if name == "bias":
            return values
        return values * leaf.shape[-1 if name == "embedding" else -2] ** -0.5

    params = jax.tree_util.tree_map_with_path(one, model.abstract_params())
    features = rng.normal(size=(2, 6, model.config.text.hidden_size)).astype(np.float32)
    completions = rng.integers(0, 256, (2, G, C)).astype(np.int32)
    return jax.tree.map(jnp.asarray, (params, features, completions))


def _forward(model, params, features, completions):
    """Logits at each completion token, every completion a prompt of its own."""
    inputs = _inputs(completions)
    logits = jax.jit(model.logits)(params, inputs, jnp.repeat(features, G, axis=0))
    at = inputs.prompt_lengths[:, None] - C + jnp.arange(C)
    picked = jnp.take_along_axis(logits, at[..., None], axis=1)
    return np.asarray(picked).reshape(2, G, C, -1)


def _decode(model, gather, params, features, completions, shift):
    """The same, of a prompt's one pass and C single tokens; `shift` is added to the positions."""
    weights = model.decoding_weights(params, gather=gather)
    _, prompts = model.prefill(params, _inputs(), features)
    prompts = prompts._replace(next_position=prompts.next_position + shift)

    def one(caches, step):
        logits, caches = model.decode_step(weights, completions[:, :, step], step, prompts, caches)
        return caches, logits

    _, logits = jax.lax.scan(one, model.empty_cache(2, G, C), jnp.arange(C))
    return jnp.moveaxis(logits, 0, 2)


def _decoded(model, drawn, *, gather=True, shift=0):
    return np.asarray(jax.jit(functools.partial(_decode, model, gather))(*drawn, shift))


@functools.cache
def _case(name):
    model = qwen2_5_vl.Model(CONFIGS[name])
    drawn = _drawn(model)
    return model, drawn, _forward(model, *drawn)


@pytest.mark.parametrize("name", CONFIGS)
def test_token_by_token_is_the_forward(name):
    model, drawn, want = _case(name)
    assert want.std() > 0.3
    np.testing.assert_allclose(_decoded(model, drawn), want, atol=1e-5)


def test_a_wrong_position_is_noticed():
    model, drawn, want = _case("untied")
    error = np.abs(_decoded(model, drawn, shift=1) - want).max(axis=(1, 2, 3))
    assert (error > 1e-2).all(), error  # of the row with an image and of that of text alone


def test_a_token_that_does_not_see_itself_is_noticed(monkeypatch):
    model, drawn, want = _case("untied")
    attend = attention.attend_token

    def blind(q, prompt_kv, prompt_mask, cache_kv, seen):
        return attend(q, prompt_kv, prompt_mask, cache_kv, jnp.append(seen[1:], False))

    monkeypatch.setattr(attention, "attend_token", blind)
    error = np.abs(_decoded(model, drawn) - want).max(axis=(0, 1, 3))
    assert (error > 1e-2).all(), error  # from the first token on


def test_a_cache_that_is_longer_than_needed_changes_nothing():
    """What is not yet written is not seen, whatever lies there."""
    model, (params, features, completions), want = _case("untied")

    @jax.jit
    def first_token(params, features):
        weights = model.decoding_weights(params)
        _, prompts = model.prefill(params, _inputs(), features)
        caches = jax.tree.map(lambda x: x + 7, model.empty_cache(2, G, C + 3))
        return model.decode_step(weights, completions[:, :, 0], jnp.int32(0), prompts, caches)[0]

    np.testing.assert_allclose(first_token(params, features), want[:, :, 0], atol=1e-5)


# ---- on eight devices ----

# 4 heads and 2 key heads: both are cut in two, or only the heads (in four), or neither is cut.
LAYOUTS = {
    "together": {"data": 2, "fsdp": 2, "tensor": 2},
    "apart": {"data": 1, "fsdp": 2, "tensor": 4},
    "whole": {"data": 1, "fsdp": 8, "tensor": 1},
}


def _placed(layout):
    model, (params, features, completions), want = _case("untied")
    mesh = sharding.make_mesh(**LAYOUTS[layout])
    model = dataclasses.replace(model, mesh=mesh)
    where = sharding.of_params(mesh, model.abstract_params(), model.logical_axes())
    return model, (jax.device_put(params, where), features, completions), want


@pytest.mark.parametrize("gather", [True, False])
@pytest.mark.parametrize("layout", ["together", "apart"])
def test_however_the_weights_lie_the_logits_are_the_same(layout, gather):
    model, drawn, want = _placed(layout)
    np.testing.assert_allclose(_decoded(model, drawn, gather=gather), want, atol=1e-5)


@pytest.mark.parametrize("gather", [True, False])
@pytest.mark.parametrize(
    ("layout", "joined"), [("together", True), ("apart", False), ("whole", True)]
)
def test_where_the_weights_lie(layout, joined, gather):
    model, (params, _, _), _ = _placed(layout)
    weights = jax.jit(functools.partial(model.decoding_weights, gather=gather))(params)
    assert len(weights.layers) == 2
    for layer in weights.layers:
        assert (layer.q is None, layer.q_bias is None) == (joined, joined)
        assert layer.kv.shape == (32, 2, (4 if joined else 2) * 8)
    found = {"table": weights.table, "head": weights.head, **weights.layers[0]._asdict()}
    tensor, fsdp = LAYOUTS[layout]["tensor"], 1 if gather else LAYOUTS[layout]["fsdp"]
    ways = {name: tensor * fsdp for name in ("table", "head", "q", "o", "gate_up", "down")}
    ways["kv"] = fsdp * (1 if layout == "apart" else tensor)
    for name, parts in ways.items():
        if found[name] is not None:
            piece = found[name].sharding.shard_shape(found[name].shape)
            assert np.prod(piece) * parts == found[name].size, name
