# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Our side, beside its torch twin, and the measures of how far apart the two are.

A measure takes the model and the inputs as arguments, so that a sabotage test can pass altered ones
and ask the same question.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import parity_cases
import parity_torch
from parity_cases import Prompt

from medloc_jax.convert import mapping
from medloc_jax.model import config as model_config
from medloc_jax.model import geometry, qwen2_5_vl
from medloc_jax.sampling import groups

# Completion lengths of the two prompts of a batch; one ends at its first token.
ONE_COMPLETION = ((6,), (4,))
THREE_COMPLETIONS = ((7, 4, 1), (3, 6, 2))

LOGITS_TOLERANCE = 1e-4  # also of hidden states and log-probabilities
GRADIENT_TOLERANCE = 1e-3

# ||difference|| may be 1e-3 of ||gradient||; norms below this are taken for this. The loss is of
# order 10, a tensor's gradient of order 1 and none below 0.04, so that the floor is only a guard.
GRADIENT_FLOOR = 1e-4


class Twin:
    """One shape on both sides, with the same random weights.

    Attributes:
        torch: transformers' model.
        model: ours; `params` are its weights.
        prompts: {batch name: prompts}; `inputs` are those packed for our model, all batches padded
            to one shape, so that they share programs.
    """

    def __init__(self, name: str):
        json = parity_cases.CASES[name]
        self.json = json
        self.torch = parity_torch.build(json)
        self.model = qwen2_5_vl.Model(model_config.from_hf(json))
        params = mapping.from_hf(parity_torch.weights(self.torch), self.model.config)
        self.params = jax.tree.map(jnp.asarray, params)
        self.prompts = parity_cases.make_prompts(json)
        rows = {
            batch: [self._pack(prompt) for prompt in prompts]
            for batch, prompts in self.prompts.items()
        }
        shapes = [row.shape for batch in rows.values() for row in batch]
        (bucket,) = geometry.plan_buckets(shapes, max_buckets=1)
        self.inputs = {
            batch: jax.tree.map(jnp.asarray, geometry.collate(packed, bucket, self.model.config))
            for batch, packed in rows.items()
        }
        self._expected: dict[tuple, Any] = {}

    def _pack(self, prompt: Prompt) -> geometry.Row:
        return geometry.pack_row(prompt.ids, prompt.images, self.model.config)

    def expected(self, function, *args) -> Any:
        """What the torch side says, computed once for the parity test and its sabotage twins."""
        key = (function.__name__, *args)
        if key not in self._expected:
            self._expected[key] = function(*args)
        return self._expected[key]

    # ---- the torch side, by batch name ----

    def torch_logits(self, batch: str) -> list[np.ndarray]:
        return parity_torch.logits(self.torch, self.prompts[batch])

    def torch_greedy(self, batch: str, num_tokens: int) -> list[tuple[list[int], float]]:
        rows = self.prompts[batch]
        return [parity_torch.greedy(self.torch, prompt, num_tokens) for prompt in rows]

    def torch_logprobs(self, batch: str, lengths: tuple[tuple[int, ...], ...]) -> list[np.ndarray]:
        completions = parity_cases.make_completions(self.json, lengths)
        rows = parity_torch.token_logprobs(self.torch, self.prompts[batch], completions)
        return [row.detach().numpy() for row in rows]

    def torch_gradients(self, batch: str, lengths: tuple[tuple[int, ...], ...]):
        completions = parity_cases.make_completions(self.json, lengths)
        return parity_torch.gradients(self.torch, self.prompts[batch], completions)


@functools.cache
def twin(name: str) -> Twin:
    """A small twin, kept for all tests of the session."""
    return Twin(name)


# ---- programs ----

# Half the compile time, which is most of this tier's.
_FAST_COMPILE = {"xla_backend_optimization_level": 0}


@functools.partial(jax.jit, static_argnums=0, compiler_options=_FAST_COMPILE)
def _forward(model, params, inputs):
    logits = model.logits(params, inputs, model.encode_images(params, inputs))
    return logits, model.hidden_states(params, inputs)


def _loss_and_logprobs(model, params, inputs, tokens, mask):
    features = model.encode_images(params, inputs)
    logprobs = model.group_logprobs(params, inputs, features, tokens, mask, 1.0)
    return -logprobs.sum() / mask.sum(), logprobs


@functools.partial(jax.jit, static_argnums=0, compiler_options=_FAST_COMPILE)
def _logprobs(model, params, inputs, tokens, mask):
    return _loss_and_logprobs(model, params, inputs, tokens, mask)[1]


@functools.partial(jax.jit, static_argnums=0, compiler_options=_FAST_COMPILE)
def _loss_and_gradients(model, params, inputs, tokens, mask):
    def loss(params):
        return _loss_and_logprobs(model, params, inputs, tokens, mask)[0]

    return jax.value_and_grad(loss)(params)


@functools.partial(jax.jit, static_argnums=(0, 3), compiler_options=_FAST_COMPILE)
def _sample(model, params, inputs, rules):
    features = model.encode_images(params, inputs)
    key, temperature = jax.random.PRNGKey(0), jnp.float32(1.0)
    return groups.sample_groups(model, params, inputs, features, key, temperature, rules)


def _pad_completions(
    completions: Sequence[Sequence[Sequence[int]]],
) -> tuple[jax.Array, jax.Array]:
    """[B][G] lists -> tokens i32[B, G, C] and their mask."""
    longest = max(len(row) for group in completions for row in group)
    tokens = np.zeros((len(completions), len(completions[0]), longest), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for b, group in enumerate(completions):
        for g, row in enumerate(group):
            tokens[b, g, : len(row)] = row
            mask[b, g, : len(row)] = True
    return jnp.asarray(tokens), jnp.asarray(mask)


# ---- measures ----


def _max_diff(ours: Any, theirs: np.ndarray) -> float:
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape and np.isfinite(ours).all()
    return float(np.abs(ours - theirs).max())


def logits_diff(pair: Twin, batch: str, model=None, inputs=None) -> float:
    """Largest difference of a logit over the real prompt positions."""
    inputs = pair.inputs[batch] if inputs is None else inputs
    expected = pair.expected(pair.torch_logits, batch)
    ours, _ = _forward(model or pair.model, pair.params, inputs)
    return max(_max_diff(ours[b, : len(row)], row) for b, row in enumerate(expected))


def block_diffs(pair: Twin, batch: str) -> dict[str, float]:
    """Largest difference of each vision block, the merger and each decoder layer."""
    theirs = parity_torch.hidden_states(pair.torch, pair.prompts[batch])
    _, hidden = _forward(pair.model, pair.params, pair.inputs[batch])
    ours = jax.tree.map(np.asarray, hidden)
    unit = pair.model.config.vision.merge_unit
    # Both sides keep patches in window order; theirs joins all images, ours pads each row.
    real = np.asarray(pair.inputs[batch].segment_ids) > 0
    lengths = [len(prompt.ids) for prompt in pair.prompts[batch]]
    diffs = {}
    for i, block in enumerate(theirs["visual.blocks"]):
        diffs[f"visual.blocks.{i}"] = _max_diff(ours["visual.blocks"][i][real], block)
    (merger,) = theirs["visual.merger"]
    diffs["visual.merger"] = _max_diff(ours["visual.merger"][real[:, ::unit]], merger)
    for i, layer in enumerate(theirs["language_model.layers"]):
        diffs[f"language_model.layers.{i}"] = max(
            _max_diff(ours["language_model.layers"][i, b, :n], layer[b, :n])
            for b, n in enumerate(lengths)
        )
    assert len(ours["visual.blocks"]) == len(theirs["visual.blocks"])
    assert len(ours["language_model.layers"]) == len(theirs["language_model.layers"])
    return diffs


def logprobs_diff(
    pair: Twin, batch: str, lengths: tuple, model=None, inputs=None, first_token: int = 0
) -> float:
    """Largest difference of a completion token's log-probability, from `first_token` on."""
    inputs = pair.inputs[batch] if inputs is None else inputs
    expected = pair.expected(pair.torch_logprobs, batch, lengths)
    tokens, mask = _pad_completions(parity_cases.make_completions(pair.json, lengths))
    ours = np.asarray(_logprobs(model or pair.model, pair.params, inputs, tokens, mask))
    rows = ours.reshape(-1, ours.shape[-1])
    assert (ours[~np.asarray(mask)] == 0).all()
    diffs = [
        _max_diff(row[first_token : len(theirs)], theirs[first_token:])
        for row, theirs in zip(rows, expected, strict=True)
        if len(theirs) > first_token
    ]
    return max(diffs)


def gradient_errors(
    pair: Twin, batch: str, lengths: tuple, model=None, inputs=None
) -> dict[str, float]:
    """||difference|| / max(||gradient||, floor) of every tensor of every layer, and of the loss."""
    inputs = pair.inputs[batch] if inputs is None else inputs
    loss, theirs = pair.expected(pair.torch_gradients, batch, lengths)
    tokens, mask = _pad_completions(parity_cases.make_completions(pair.json, lengths))
    model = model or pair.model
    our_loss, grads = _loss_and_gradients(model, pair.params, inputs, tokens, mask)
    ours = mapping.to_hf(grads, pair.model.config)
    assert ours.keys() == theirs.keys()
    errors = {"loss": abs(float(our_loss) - loss)}
    for name, expected in theirs.items():
        assert np.isfinite(ours[name]).all(), name
        difference = np.linalg.norm(ours[name] - expected)
        errors[name] = float(difference / max(np.linalg.norm(expected), GRADIENT_FLOOR))
    return errors


def generation_mismatches(
    pair: Twin, batch: str, num_tokens: int, model=None, inputs=None, group_size: int = 2
) -> int:
    """How many greedy tokens differ, over all completions of all groups."""
    inputs = pair.inputs[batch] if inputs is None else inputs
    rules = groups.SamplingRules(
        group_size=group_size,
        max_completion_tokens=num_tokens,
        stop_ids=(),
        forbidden_ids=(),
        pad_id=pair.model.config.pad_token_id,
        greedy=True,
    )
    sampled = _sample(model or pair.model, pair.params, inputs, rules)
    assert np.asarray(sampled.completion_mask).all()
    expected = [ids for ids, _ in pair.expected(pair.torch_greedy, batch, num_tokens)]
    return int((np.asarray(sampled.completions) != np.asarray(expected)[:, None]).sum())
