# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The formulas, against XLA's count of small programs and against numbers of the 3B model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medloc_jax import sharding
from medloc_jax.model import config as model_config
from medloc_jax.model import flops, geometry, qwen2_5_vl
from medloc_jax.training import programs

# One of each layer: XLA counts the body of a loop once. Wide enough for products to dominate.
_TINY = model_config.preset("tiny")
SIZES = dataclasses.replace(
    _TINY,
    text=dataclasses.replace(
        _TINY.text,
        vocab_size=1024,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=1,
        num_attention_heads=8,
        num_key_value_heads=2,
    ),
    vision=dataclasses.replace(
        _TINY.vision,
        depth=2,
        hidden_size=256,
        intermediate_size=768,
        fullatt_block_indexes=(1,),
        out_hidden_size=256,
    ),
)
MODEL = qwen2_5_vl.Model(SIZES, remat="none", vocab_chunk=10**6)
ROWS, GROUP, PATCHES, WINDOWS, PROMPT, LENGTH = 2, 3, 64, 4, 48, 17
# Softmax, norms and the like are in XLA's count, not in ours.
TOLERANCE = 0.04


def _inputs():
    mesh = sharding.make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    bucket = geometry.Bucket(num_patches=PATCHES, num_windows=WINDOWS, prompt_length=PROMPT)
    return programs.batch_struct(mesh, SIZES, bucket, ROWS)


def _counted(function, *args):
    """XLA's FLOPs of a program before it is optimised."""
    cost = jax.jit(function).lower(MODEL.abstract_params(), _inputs(), *args).cost_analysis()
    return cost["flops"]


def _features():
    shape = (ROWS, PATCHES // SIZES.vision.merge_unit, SIZES.text.hidden_size)
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _completions(dtype):
    return jax.ShapeDtypeStruct((ROWS, GROUP, LENGTH), dtype)


def test_vision_is_what_xla_counts():
    slots = WINDOWS * SIZES.vision.window_patches
    ours = ROWS * flops.vision(SIZES.vision, PATCHES, slots)
    theirs = _counted(MODEL.encode_images)
    assert ours == pytest.approx(theirs, rel=TOLERANCE)
    assert flops.vision(SIZES.vision, PATCHES + 16, slots) != pytest.approx(theirs, rel=TOLERANCE)


def test_prefill_is_what_xla_counts():
    text = SIZES.text
    ours = ROWS * (flops.prompt(text, PROMPT, causal_share=1.0) + flops.logits(text, 1))
    assert ours == pytest.approx(_counted(MODEL.prefill, _features()), rel=TOLERANCE)


def _group(prompts=ROWS):
    """What `group_logprobs` executes: the last token of a completion is never fed."""
    text = SIZES.text
    own = flops.completion(text, PROMPT, LENGTH - 1, causal_share=1.0) + flops.logits(text, LENGTH)
    # Own scores are a square of the fed tokens.
    return prompts * flops.prompt(text, PROMPT, causal_share=1.0) + ROWS * GROUP * own


def test_the_group_forward_is_what_xla_counts():
    args = (_features(), _completions(jnp.int32), _completions(jnp.bool_))
    theirs = _counted(lambda *a: MODEL.group_logprobs(*a, 1.0), *args)
    assert _group() == pytest.approx(theirs, rel=TOLERANCE)
    # The prompt once for each completion would be seen.
    assert _group(prompts=ROWS * GROUP) > 1.2 * theirs


def test_a_gradient_is_three_times_the_forward():
    args = (_features(), _completions(jnp.int32), _completions(jnp.bool_))

    def loss(params, *rest):
        return jnp.sum(MODEL.group_logprobs(params, *rest, 1.0))

    theirs = _counted(jax.grad(loss), *args)
    # Logits are recomputed in the backward pass, chunk by chunk, whatever `remat` says.
    again = ROWS * GROUP * flops.logits(SIZES.text, LENGTH)
    assert 3 * _group() + again == pytest.approx(theirs, rel=0.06)


def test_the_published_model():
    """Qwen2.5-VL-3B: an image of 1296 patches, 324 + 100 prompt tokens, 256 tokens of answer."""
    config = model_config.preset("3b")
    assert flops.vision(config.vision, 1296) == pytest.approx(1.71e12, rel=0.005)
    assert flops.prompt(config.text, 424) == pytest.approx(2.38e12, rel=0.005)
    assert flops.completion(config.text, 424, 256) == pytest.approx(1.46e12, rel=0.005)
    assert flops.logits(config.text, 256) == pytest.approx(0.16e12, rel=0.01)


def test_a_step_adds_up():
    config = model_config.preset("3b")
    rows = flops.Rows.uniform(
        prompts=8, group_size=8, patches=1296, prompt_tokens=424, completion=256
    )
    trained = flops.grpo_step(config, rows, freeze_vision=False, reference=True, num_updates=1)
    # TFLOP of a step of 8 prompts x 8 completions, forward and backward 3 x 136.5.
    assert trained["vision"] == pytest.approx(13.7e12, rel=0.005)
    assert trained["prefill"] == pytest.approx(19.0e12, rel=0.005)
    assert trained["decode"] == pytest.approx(103.8e12, rel=0.005)
    assert trained["reference"] == pytest.approx(136.5e12, rel=0.005)
    assert trained["update"] == pytest.approx(409.4e12, rel=0.005)
    frozen = flops.grpo_step(config, rows, freeze_vision=True, reference=False, num_updates=2)
    assert frozen["vision"] == trained["vision"]
    text = trained["reference"] - trained["vision"]
    assert frozen["reference"] == pytest.approx(text)  # of the policy before its first update
    assert frozen["update"] == pytest.approx(6 * text)
    ragged = dataclasses.replace(
        rows, completion_tokens=np.full((8, 1), 128.0), prompt_tokens=rows.prompt_tokens / 2
    )
    assert flops.group_forward(config, ragged) == pytest.approx(text / 2, rel=0.015)
    images = flops.encode_images(config, rows)
    sft = flops.sft_step(config, rows, freeze_vision=True)
    assert sft == {"vision": images, "update": pytest.approx(3 * text)}
    assert flops.sft_step(config, rows, freeze_vision=False)["vision"] == 3 * images
