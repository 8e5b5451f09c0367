# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Every implementation against plain attention: outputs and gradients, on lengths that differ.

Kernels do not run here: splash is interpreted, and cuDNN's call is made with the same arguments by
XLA, its backward pass with the same formula in plain operations.
"""

import dataclasses
import inspect
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs

from medloc_jax.model import attention, cudnn_attention, splash_attention

KERNELS = ("cudnn", "splash")
B, N, K, H = 3, 4, 2, 8
LENGTHS = jnp.array([5, 1, 11])  # of 11


def draw(*shapes):
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)


def prompts(length=11):
    mask = jnp.arange(length) < LENGTHS[:, None]
    return *draw((B, length, N, H), (B, length, K, H), (B, length, K, H)), mask


def images():
    """Two images in one row; one; none at all."""
    segments = jnp.array([[1] * 4 + [2] * 5 + [0] * 2, [1] * 8 + [0] * 3, [0] * 11])
    q, k, v = draw((B, 11, N, H), (B, 11, N, H), (B, 11, N, H))
    return q, k, v, attention.within_images(segments), segments > 0


def windows():
    used = jnp.arange(8) < jnp.array([8, 3, 0])[:, None]
    q, k, v = draw(*[(B, 8, N, H)] * 3)
    return q, k, v, attention.first_ones(used), used


def both(function, counts, arrays, wrt):
    """Outputs where they count, and gradients of them, jitted once."""

    def loss(*arrays):
        out = jnp.where(counts[..., None, None], function(*arrays), 0)
        return jnp.sum(jnp.sin(out) * (1 + jnp.arange(out.size).reshape(out.shape) % 7)), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, argnums=wrt, has_aux=True))(*arrays)
    return out, *grads


def furthest(found, wanted):
    """The largest difference, in units of each array's largest value."""
    pairs = zip(found, wanted, strict=True)
    return max(float(jnp.max(jnp.abs(a - b)) / (1e-6 + jnp.max(jnp.abs(b)))) for a, b in pairs)


def attended(case, implementation):
    q, k, v, seen, counts = case

    def run(q, k, v):
        return attention.attend(q, k, v, seen, implementation=implementation)

    return both(run, counts, (q, k, v), (0, 1, 2))


def causal_case():
    q, k, v, mask = prompts()
    return q, k, v, attention.causal(mask), mask


@pytest.mark.parametrize("implementation", KERNELS)
@pytest.mark.parametrize("make", [causal_case, images, windows], ids=lambda f: f.__name__)
def test_a_kernel_agrees_with_plain_attention(make, implementation):
    case = make()
    assert furthest(attended(case, implementation), attended(case, "xla")) < 1e-5


def test_what_a_kernel_is_told_matters():
    """The twin: other lengths, no causality, other segments are seen."""
    q, k, v, seen, counts = causal_case()
    right = attended((q, k, v, seen, counts), "xla")
    assert furthest(attended((q, k, v, seen._replace(causal=False), counts), "cudnn"), right) > 1e-2
    q, k, v, seen, counts = windows()
    right = attended((q, k, v, seen, counts), "xla")
    longer = seen._replace(lengths=seen.lengths + 1)
    assert furthest(attended((q, k, v, longer, counts), "cudnn"), right) > 1e-2
    q, k, v, seen, counts = images()
    right = attended((q, k, v, seen, counts), "xla")
    mixed = attention.within_images(jnp.minimum(seen.segments, 1))
    for implementation in KERNELS:
        assert furthest(attended((q, k, v, mixed, counts), implementation), right) > 1e-2


def group(length=11, size=2, own=5):
    """Prompts of unequal lengths and their completions; what counts of both."""
    total = length + size * own
    q, k, v = draw((B, total, N, H), (B, total, K, H), (B, total, K, H))
    mask = jnp.arange(length) < LENGTHS[:, None]
    return q, k, v, mask, jnp.concatenate([mask, jnp.ones((B, size * own), bool)], axis=1)


def grouped(case, implementation, size=2):
    q, k, v, mask, counts = case

    def run(q, k, v):
        seen = attention.causal(mask)
        return attention.attend_joined(q, k, v, seen, mask, size, implementation=implementation)

    return both(run, counts, (q, k, v), (0, 1, 2))


@pytest.mark.parametrize("implementation", KERNELS)
def test_a_group_agrees_with_plain_attention(implementation):
    case = group()
    assert furthest(grouped(case, implementation), grouped(case, "xla")) < 1e-5


def test_groups_longer_than_a_block_of_splash():
    case = group(length=11, size=3, own=120)
    assert furthest(grouped(case, "splash", 3), grouped(case, "xla", 3)) < 1e-5


def test_a_block_of_the_group_needs_the_joint_log_sum_exp(monkeypatch):
    """The twin: with each block's own log-sum-exp the gradients are wrong, the outputs right."""
    case = group()
    right = grouped(case, "xla")
    true = cudnn_attention._plain_backward

    def alone(q, k, v, lengths, causal, out, lse, grad):
        out, lse = cudnn_attention._plain_forward(q, k, v, lengths, causal)
        return true(q, k, v, lengths, causal, out, lse, grad)

    monkeypatch.setattr(cudnn_attention, "_plain_backward", alone)
    wrong = grouped(case, "cudnn")
    assert furthest(wrong[:1], right[:1]) < 1e-5
    assert furthest(wrong[1:], right[1:]) > 1e-2


@pytest.mark.parametrize("implementation", KERNELS)
def test_a_completion_sees_no_padding_of_its_prompt(implementation):
    """The twin: prompts that are told to be longer than they are."""
    q, k, v, mask, counts = group()
    longer = jnp.arange(mask.shape[1]) < LENGTHS[:, None] + 1
    wrong = grouped((q, k, v, longer, counts), implementation)
    assert furthest(wrong, grouped((q, k, v, mask, counts), "xla")) > 1e-2


def test_a_completion_does_not_see_its_neighbour(monkeypatch):
    """The twin of splash's mask: one that is causal alone is seen."""
    case = group()
    right = grouped(case, "xla")
    mask = splash_attention.splash_mask

    def plain(padded, *_):
        return mask.NumpyMask(np.tri(padded, dtype=bool))

    monkeypatch.setattr(splash_attention, "_group_mask", plain)
    assert furthest(grouped(case, "splash"), right) > 1e-2


def test_cudnns_backward_rule_takes_what_it_is_given():
    """JAX keeps it to itself and has changed it before: every argument must be one we know."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    wanted = set(inspect.signature(cudnn._dot_product_attention_bwd_rule).parameters)
    known = {
        *("scale", "seed", "dropout_rate", "variadic_args", "mask_type", "layout"),
        *("sliding_window_length", "is_training", "score_mod", "cudnn_version"),
        *("return_residual", "res", "grad_output"),
    }
    assert wanted <= known
    forward = inspect.signature(cudnn.dot_product_attention).parameters
    assert {"q_seqlen", "kv_seqlen", "scale", "mask_type", "return_residual"} <= set(forward)
    rule = inspect.getsource(cudnn._dot_product_attention_bwd_rule)
    saved = rule[rule.index("(query") : rule.index(") = res")]
    names = [name.strip() for name in saved.strip("(").replace("\n", " ").split(",")]
    assert names[:6] == ["query", "key", "value", "bias", "q_seqlen", "kv_seqlen"]
    assert names[-2:] == ["activation", "fwd_output"]
    assert len(names) == 12 + ("score_mod" in wanted)


def device(platform, capability=None):
    return types.SimpleNamespace(platform=platform, compute_capability=capability)


@pytest.mark.parametrize(
    ("where", "dtype", "wanted"),
    [
        (device("gpu", "9.0"), jnp.bfloat16, "cudnn"),
        (device("cuda", "8.0"), jnp.bfloat16, "cudnn"),
        (device("gpu", "9.0"), jnp.float32, "xla"),
        (device("gpu", "7.0"), jnp.bfloat16, "xla"),
        (device("tpu"), jnp.float32, "splash"),
        (device("cpu"), jnp.bfloat16, "xla"),
    ],
)
def test_auto_takes_what_the_device_has(where, dtype, wanted):
    assert attention.choose("auto", where, dtype) == wanted
    assert attention.choose("xla", where, dtype) == "xla"


@pytest.mark.parametrize(
    ("name", "where", "dtype", "message"),
    [
        ("cudnn", device("gpu", "9.0"), jnp.float32, "model.compute_dtype"),
        ("cudnn", device("cpu"), jnp.bfloat16, "needs an NVIDIA GPU"),
        ("splash", device("gpu", "9.0"), jnp.bfloat16, "needs a TPU"),
    ],
)
def test_what_cannot_run_is_refused(name, where, dtype, message):
    with pytest.raises(ValueError, match=message):
        attention.choose(name, where, dtype)


@pytest.mark.parametrize("implementation", KERNELS)
def test_the_model_gives_the_same_log_probabilities(implementation):
    """All of it at once: towers with two images in a row, prompts without one, groups."""
    inputs = small_runs.collate(small_runs.prompts())
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 2, 5)))
    mask = jnp.ones((3, 2, 5), bool).at[0, 0, 1:].set(False)  # one ends at once

    @jax.jit
    def run(params):
        features = model.encode_images(params, inputs)
        return model.group_logprobs(params, inputs, features, tokens, mask, 0.9)

    found = []
    for name in ("xla", implementation):
        model = dataclasses.replace(small_runs.MODEL, attention=name, remat="none")
        found.append(run(small_runs.params()))
        run.clear_cache()
    assert float(jnp.max(jnp.abs(found[0] - found[1]))) < 1e-4
