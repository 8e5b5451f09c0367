# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The group forward equals the repeated forward, on every kind of row that can occur."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medloc_jax.model import config, geometry, qwen2_5_vl, vision

G, C = 3, 5
TINY = config.preset("tiny")
MODEL = qwen2_5_vl.Model(TINY)


def _ids(rng, grids, length):
    """A prompt of `length` tokens, images in front."""
    ids = [5]
    for grid in grids:
        count = geometry.merged_tokens(grid, TINY.vision)
        ids += [TINY.vision_start_token_id] + [TINY.image_token_id] * count
        ids += [TINY.vision_end_token_id]
    return ids + rng.integers(0, 256, length - len(ids)).tolist()


def _rows(seed=0):
    """Unequal lengths; one image; two images in one row; no image."""
    rng = np.random.default_rng(seed)
    rows = []
    for grids, length in [([(1, 8, 12)], 40), ([(1, 6, 10), (1, 8, 4)], 47), ([], 11)]:
        patches = [rng.normal(size=(h * w, TINY.vision.patch_dim)) for _, h, w in grids]
        images = [(p.astype(np.float32), g) for p, g in zip(patches, grids, strict=True)]
        rows.append((_ids(rng, grids, length), images))
    return rows


def _collate(rows, bucket=None):
    packed = [geometry.pack_row(ids, images, TINY) for ids, images in rows]
    if bucket is None:
        (bucket,) = geometry.plan_buckets([row.shape for row in packed], 1)
    return jax.tree.map(jnp.asarray, geometry.collate(packed, bucket, TINY))


@pytest.fixture(scope="module")
def params():
    drawn = MODEL.init(jax.random.key(0))
    # Biases and norms away from 0 and 1, or a wrong one would not show.
    keys = iter(jax.random.split(jax.random.key(1), 1000))
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), drawn)


@pytest.fixture(scope="module")
def completions():
    ids = jax.random.randint(jax.random.key(2), (3, G, C), 0, 256)
    lengths = jnp.array([[C, 3, 1], [1, C, 2], [C, C, 1]])  # some end at their first token
    return ids, jnp.arange(C) < lengths[..., None]


@functools.partial(jax.jit, static_argnums=0)
def _logprobs(model, params, inputs, completions, temperature=0.9):
    features = model.encode_images(params, inputs)
    return model.group_logprobs(params, inputs, features, *completions, temperature)


@jax.jit
def _logits(params, inputs):
    return MODEL.logits(params, inputs, MODEL.encode_images(params, inputs))


def _shared(params, completions):
    return _logprobs(MODEL, params, _collate(_rows()), completions)


def _repeated(params, completions):
    """Every completion appended to its own copy of the prompt, positions made by the host."""
    ids, mask = completions
    out = []
    for g in range(G):
        rows = [
            (prompt + np.asarray(ids[b, g]).tolist(), images)
            for b, (prompt, images) in enumerate(_rows())
        ]
        inputs = _collate(rows)
        logprobs = jax.nn.log_softmax(_logits(params, inputs) / 0.9)
        starts = jnp.array([len(prompt) for prompt, _ in _rows()])
        at = starts[:, None] - 1 + jnp.arange(C)
        picked = jnp.take_along_axis(logprobs, at[..., None], axis=1)
        out.append(jnp.take_along_axis(picked, ids[:, g, :, None], axis=2)[..., 0])
    return jnp.where(mask, jnp.stack(out, axis=1), 0.0)


def test_group_forward_equals_repeated_forward(params, completions):
    shared, repeated = _shared(params, completions), _repeated(params, completions)
    assert float(jnp.abs(repeated).max()) > 1  # there is something to compare
    np.testing.assert_allclose(shared, repeated, atol=1e-5)


def test_group_gradients_equal_repeated_gradients(params, completions):
    weights = jax.random.normal(jax.random.key(3), (3, G, C))
    shared = jax.grad(lambda p: jnp.sum(_shared(p, completions) * weights))(params)
    repeated = jax.grad(lambda p: jnp.sum(_repeated(p, completions) * weights))(params)
    paths = jax.tree_util.tree_leaves_with_path(repeated)
    for (path, want), got in zip(paths, jax.tree.leaves(shared), strict=True):
        norm = float(jnp.linalg.norm(want))
        error = float(jnp.linalg.norm(got - want))
        # k_proj's bias moves all scores of a query alike: its gradient is rounding error alone.
        assert error <= max(1e-4 * norm, 1e-4), (jax.tree_util.keystr(path), error, norm)
        assert np.isfinite(norm)


def test_broken_prompt_sharing_is_noticed(params, completions):
    """The check above goes red when completions do not see the prompt's last tokens."""
    inputs = _collate(_rows())
    broken = inputs._replace(rope_delta=inputs.rope_delta + 1)
    got = _logprobs(MODEL, params, broken, completions)
    assert float(jnp.abs(got - _repeated(params, completions)).max()) > 1e-3


def test_padding_changes_nothing(params, completions):
    bucket = geometry.Bucket(num_patches=256, num_windows=32, prompt_length=96)
    narrow, wide = _collate(_rows()), _collate(_rows(), bucket)
    encode, logprobs = jax.jit(MODEL.encode_images), jax.jit(MODEL.group_logprobs)
    features, padded = encode(params, narrow), encode(params, wide)
    length = features.shape[1]
    real = jnp.arange(length) <= narrow.image_index.max(axis=1, keepdims=True)
    assert int(real.sum()) == 24 + 23
    np.testing.assert_allclose(padded[:, :length][real], features[real], atol=1e-5)
    want, got = (logprobs(params, x, features, *completions, 0.9) for x in (narrow, wide))
    np.testing.assert_allclose(got, want, atol=1e-5)
    # Both after each other: sums of other lengths are rounded otherwise in the tower, which the
    # language model makes larger (one bit of each pixel: 1.4e-5). 2e-6 of values near 10.
    padded = _logprobs(MODEL, params, wide, completions)
    np.testing.assert_allclose(padded, _shared(params, completions), atol=2e-5)


def test_padding_gets_no_gradient_and_everything_is_finite(params, completions):
    inputs = _collate(_rows())

    def loss(p, pixels):
        batch = inputs._replace(pixel_values=pixels)
        return jnp.sum(_logprobs(MODEL, p, batch, completions))

    grads, pixels = jax.grad(loss, argnums=(0, 1))(params, inputs.pixel_values)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))
    padding = inputs.segment_ids == 0
    assert float(jnp.abs(jnp.where(padding[..., None], pixels, 0)).max()) == 0
    assert float(jnp.abs(jnp.where(padding[..., None], 0, pixels)).max()) > 0


def test_rows_of_text_alone(params, completions):
    ids, mask = completions
    got = _logprobs(MODEL, params, _collate(_rows()[2:]), (ids[2:], mask[2:]))
    np.testing.assert_allclose(got, _shared(params, completions)[2:], atol=1e-5)


@pytest.mark.parametrize("remat", ["layer", "none"])
@pytest.mark.parametrize("vocab_chunk", [1, 20, 1024])
def test_chunks_and_remat_change_nothing(params, completions, remat, vocab_chunk):
    model = dataclasses.replace(MODEL, remat=remat, vocab_chunk=vocab_chunk)
    got = _logprobs(model, params, _collate(_rows()), completions)
    np.testing.assert_allclose(got, _shared(params, completions), atol=1e-5)


@pytest.mark.parametrize(
    ("vocab_chunk", "rows", "length", "want"),
    [(1024, 64, 256, 16), (1024, 64, 10, 10), (1000, 64, 256, 15), (63, 64, 256, 1)],
)
def test_a_chunk_is_of_so_many_tokens(vocab_chunk, rows, length, want):
    assert qwen2_5_vl.chunk_length(vocab_chunk, rows, length) == want


@pytest.mark.parametrize(
    ("depth", "full", "unit"),
    [(32, (7, 15, 23, 31), 8), (4, (1, 3), 2), (4, (3,), 4), (5, (0, 4), 5), (3, (), 1)],
)
def test_repeating_unit(depth, full, unit):
    got, pattern = vision.repeating_unit(depth, full)
    assert got == unit
    assert (pattern * (depth // unit)) == [i in full for i in range(depth)]


def test_permute_gradient_is_that_of_a_plain_gather():
    index = jnp.array([[2, -1, 0, 1]])
    inverse = jnp.array([[2, 3, 0]])
    x = jax.random.normal(jax.random.key(0), (1, 3, 2))
    weights = jax.random.normal(jax.random.key(1), (1, 4, 2))

    def plain(x):
        rows = jnp.take_along_axis(x, jnp.maximum(index, 0)[..., None], axis=1)
        return jnp.sum(jnp.where((index >= 0)[..., None], rows, 0) * weights)

    ours = jax.grad(lambda x: jnp.sum(vision.permute(x, index, inverse) * weights))(x)
    np.testing.assert_allclose(ours, jax.grad(plain)(x))


def test_every_parameter_names_its_axes():
    shapes, axes = MODEL.abstract_params(), MODEL.logical_axes()
    is_axes = lambda x: isinstance(x, tuple)  # noqa: E731
    pairs = zip(jax.tree.leaves(shapes), jax.tree.leaves(axes, is_leaf=is_axes), strict=True)
    for shape, names in pairs:
        assert len(shape.shape) == len(names)
