# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Bytes of one device by what they are for.

What lies there all the time (weights, moments, reference, batch) is exact: the arrays' own shapes
and shardings. What comes and goes inside a program (gradients, caches, activations, logits) is by
formula, beside the compiler's own total of it (`plan.Program.temp_bytes`): it says what that is
made of and which knob changes it, not what it is. A compiler reuses memory between parts that are
never alive together, and may keep copies in other layouts.

Letters as in the model: rows b of one device, prompt p, completions g x c, width d, layers l.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from medloc_jax.model import qwen2_5_vl
from medloc_jax.planning import abstract, plan

ALWAYS = ("*",)
UPDATES = ("grpo_step", "sft_step")
_FORWARD = ("reference_logprobs", "old_logprobs")


def parts(made: abstract.AbstractJob) -> tuple[plan.Part, ...]:
    """The parts of a job's memory, those that are always there first."""
    return (*_resident(made), *_transient(made))


def _resident(made: abstract.AbstractJob) -> list[plan.Part]:
    placement, config = made.placement, made.job.config

    def part(name: str, tree: Any, formula: str, *knobs: str) -> plan.Part:
        return plan.Part(name, plan.bytes_of(tree), True, formula, ALWAYS, knobs)

    found = [
        part("weights", placement.trainable, "float32 trainable parameters", "mesh.fsdp"),
        part(
            "frozen weights",
            placement.frozen,
            f"{config.model.frozen_dtype} frozen parameters",
            *("model.frozen_dtype", "mesh.fsdp"),
        ),
        part("moments", placement.opt_state, "two float32 per trainable parameter", "mesh.fsdp"),
        part(
            "reference",
            made.reference,
            f"{config.model.frozen_dtype} copy of the trainable parameters at step 0",
            *("model.frozen_dtype", "rl.kl_weight", "mesh.fsdp"),
        ),
        part(
            "batch",
            _batch(made),
            "pixels, prompts, image features, completions and their log-probabilities",
            *("rl.prompts_per_step", "data.max_pixels"),
        ),
    ]
    return [one for one in found if one.bytes]


def _batch(made: abstract.AbstractJob) -> Any:
    """Every argument of the step's programs that is no parameter and no moment, once each."""
    update = next(made.tasks[name] for name in UPDATES if name in made.tasks)
    return jax.tree.leaves(update[1][2:])


def _transient(made: abstract.AbstractJob) -> list[plan.Part]:
    update = next(name for name in UPDATES if name in made.tasks)
    sizes = _sizes(made)
    found = [_gradients(made, update), *_gathered(made, sizes, update)]
    if "sample_groups" in made.tasks:
        found.append(_kv_cache(made, sizes))
    return [*found, _activations(made, sizes, update), _logits(made, sizes, update)]


class _Sizes(NamedTuple):
    """Of one device. b: rows of the step, m: of one backward pass; the rest as above."""

    b: int
    m: int
    p: int
    g: int
    c: int
    compute_bytes: int
    tensor: int
    fsdp: int

    @property
    def tokens(self) -> int:
        """Of one row, prompt and completions together."""
        return self.p + self.g * self.c


def _sizes(made: abstract.AbstractJob) -> _Sizes:
    shape, mesh = made.shape, made.job.mesh
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    return _Sizes(
        b=shape.prompts // ways,
        m=shape.micro_batch // ways,
        p=shape.bucket.prompt_length,
        g=shape.group_size,
        c=shape.completion_tokens,
        compute_bytes=jnp.dtype(made.job.model.compute_dtype).itemsize,
        tensor=mesh.shape["tensor"],
        fsdp=mesh.shape["fsdp"],
    )


def _gradients(made: abstract.AbstractJob, update: str) -> plan.Part:
    twice = made.shape.micro_batch < made.shape.prompts
    return plan.Part(
        "gradients",
        plan.bytes_of(made.placement.trainable) * (2 if twice else 1),
        False,
        "float32, split as the weights" + (", a sum and a part of it" if twice else ""),
        (update,),
        ("mesh.fsdp",),
    )


def _gathered(made: abstract.AbstractJob, sizes: _Sizes, update: str) -> list[plan.Part]:
    """Weights in the compute dtype, whole along fsdp."""
    text = made.job.model.config.text
    d, f, keys = text.hidden_size, text.intermediate_size, text.num_key_value_heads * text.head_dim
    if sizes.fsdp == 1 and sizes.compute_bytes == 4:  # used where they are stored
        return []
    each = sizes.compute_bytes / sizes.tensor
    layer = (2 * d * d + 2 * d * keys + 3 * d * f) * each
    vocabulary = (1 if text.tie_word_embeddings else 2) * text.vocab_size * d * each
    found = [
        plan.Part(
            "gathered weights",
            round(2 * layer + vocabulary),
            False,
            "two layers and the vocabulary in compute_dtype, whole along fsdp",
            (*_FORWARD, update),
            ("mesh.tensor",),
        )
    ]
    if "sample_groups" in made.tasks and made.job.config.rl.gather_weights:
        found.append(
            plan.Part(
                "sampler's weights",
                round(text.num_hidden_layers * layer + vocabulary),
                False,
                "all text weights in compute_dtype, whole along fsdp",
                ("sample_groups",),
                ("rl.gather_weights", "mesh.tensor"),
            )
        )
    return found


def _kv_cache(made: abstract.AbstractJob, sizes: _Sizes) -> plan.Part:
    text = made.job.model.config.text
    heads = text.num_key_value_heads
    heads = heads // sizes.tensor if heads % sizes.tensor == 0 else heads
    token = 2 * text.num_hidden_layers * heads * text.head_dim * sizes.compute_bytes
    return plan.Part(
        "KV cache",
        token * sizes.b * (sizes.p + sizes.g * max(1, sizes.c - 1)),
        False,
        "2 l k h b (p + g (c - 1)) in compute_dtype",
        ("sample_groups",),
        ("rl.prompts_per_step", "rl.max_completion_tokens", "rl.group_size"),
    )


def _activations(made: abstract.AbstractJob, sizes: _Sizes, update: str) -> plan.Part:
    config, model = made.job.config, made.job.model.config
    text, vision = model.text, model.vision
    heads = -(-text.num_attention_heads // sizes.tensor)
    own = sizes.c
    # Float32 scores and weights of attention, and what the projections and the MLP make.
    scores = 2 * 4 * heads * (sizes.p**2 + sizes.g * own * (sizes.p + own))
    wide = 8 * text.hidden_size + 3 * text.intermediate_size // sizes.tensor
    working = scores + sizes.tokens * wide * sizes.compute_bytes
    kept = text.num_hidden_layers * sizes.tokens * text.hidden_size * sizes.compute_bytes
    # Beside the input: queries, keys and values, the heads joined, gate and up, down.
    products = text.num_attention_heads * text.head_dim + 2 * text.hidden_size
    products += 2 * text.num_key_value_heads * text.head_dim + 2 * text.intermediate_size
    dots = text.num_hidden_layers * sizes.tokens * products * sizes.compute_bytes // sizes.tensor
    total, formula = {
        "layer": (
            kept + working,
            "l (p + g c) d b kept between layers, and one layer's scores and MLP",
        ),
        "dots": (kept + dots + working, "every layer's products with weights, and one's scores"),
        "none": (text.num_hidden_layers * working, "every layer's scores and MLP"),
    }[config.model.remat]
    if not config.model.freeze_vision:
        patches = made.shape.bucket.num_patches
        total += vision.depth * patches * vision.hidden_size * sizes.compute_bytes
        formula += "; the tower's blocks"
    knob = "sft.micro_batch" if update == "sft_step" else "rl.micro_batch_prompts"
    knobs = (knob,) if config.model.remat == "layer" else (knob, "model.remat")
    return plan.Part("activations", total * sizes.m, False, formula, (update,), knobs)


def _logits(made: abstract.AbstractJob, sizes: _Sizes, update: str) -> plan.Part:
    rows = sizes.m * sizes.g
    length = qwen2_5_vl.chunk_length(made.job.model.vocab_chunk, rows, sizes.c)
    columns = made.job.model.config.text.vocab_size // sizes.tensor
    return plan.Part(
        "logits chunk",
        3 * 4 * rows * length * columns,
        False,
        "float32 logits, softmax and gradient of model.vocab_chunk completion tokens",
        (update,),
        ("model.vocab_chunk", "mesh.tensor"),
    )
