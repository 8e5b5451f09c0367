# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of given tokens, with the gradient of the vocabulary projection stated.

The gradient of a logit is (1 if it is the token's, else 0) minus its probability: one pass over the
logits. What autodiff makes of a look-up and a log-sum-exp is an array of zeros as large as the
logits, a scatter into it, and a sum of the two. It is rounded to the compute dtype before the two
products that follow, as every other layer's is: in float32 they would miss the matrix units.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from medloc_jax import sharding

# Products with the head, by whether it is stored as token vectors [v, d] or as a matrix [d, v].
_LOGITS = {True: "...d,vd->...v", False: "...d,dv->...v"}
_HIDDEN = {True: "rv,vd->rd", False: "rv,dv->rd"}
_HEAD = {True: "rv,rd->vd", False: "rd,rv->dv"}


def logits(hidden: Float[Array, "*b d"], head: Array, *, tied: bool) -> Float[Array, "*b v"]:
    """Float32 logits.

    Args:
        hidden: the last layer's output after the final norm.
        head: [v, d] if it is the token vectors, else [d, v]; in hidden's dtype.
        tied: which of them.
    """
    found = jnp.einsum(_LOGITS[tied], hidden, head, preferred_element_type=jnp.float32)
    return sharding.constrain(found, "batch", *(None,) * (found.ndim - 2), "vocab")


def chosen_logits(
    logits: Float[Array, "b g *c v"], tokens: Int[Array, "b g *c"]
) -> Float[Array, "b g *c"]:
    """The logit of each token. A vocabulary that lies on several devices is summed, not moved."""
    if sharding.ways("vocab", logits.shape[-1]) == 1:
        return jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return jnp.sum(jnp.where(_is_token(logits, tokens), logits, 0.0), axis=-1)


def token_logprobs(
    hidden: Float[Array, "b g c d"],
    head: Array,
    tokens: Int[Array, "b g c"],
    temperature: Float[Array, ""],
    *,
    tied: bool,
) -> Float[Array, "b g c"]:
    """Float32 log-probability of each token over the whole vocabulary.

    Args:
        hidden: as for `logits`.
        head: as for `logits`.
        tokens: one a position.
        temperature: the logits are divided by it; it gets no gradient.
        tied: as for `logits`.
    """
    found: Any = _token_logprobs(hidden, head, tokens, temperature, tied)
    return found


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _token_logprobs(hidden: Array, head: Array, tokens: Array, temperature: Array, tied: bool):
    return _forward(hidden, head, tokens, temperature, tied)[0]


def _forward(hidden: Array, head: Array, tokens: Array, temperature: Array, tied: bool):
    scaled = logits(hidden, head, tied=tied) / temperature
    total = jax.nn.logsumexp(scaled, axis=-1)
    found = chosen_logits(scaled, tokens) - total
    return found, (hidden, head, tokens, temperature, scaled, total)


def _backward(tied: bool, saved: tuple, grad: Float[Array, "b g c"]):
    hidden, head, tokens, temperature, scaled, total = saved
    share = _is_token(scaled, tokens).astype(scaled.dtype) - jnp.exp(scaled - total[..., None])
    share = (share * (grad / temperature)[..., None]).astype(hidden.dtype)
    share = sharding.constrain(share, "batch", None, None, "vocab")
    rows = share.reshape(-1, share.shape[-1])
    by_hidden = jnp.einsum(_HIDDEN[tied], rows, head).reshape(hidden.shape)
    operands = (rows, hidden.reshape(-1, hidden.shape[-1]))
    by_head = jnp.einsum(_HEAD[tied], *(operands if tied else operands[::-1]))
    return by_hidden, by_head, None, jnp.zeros_like(temperature)


_token_logprobs.defvjp(_forward, _backward)


def _is_token(logits: Float[Array, "*b v"], tokens: Int[Array, "*b"]) -> Array:
    ids = jax.lax.broadcasted_iota(tokens.dtype, logits.shape, logits.ndim - 1)
    return ids == tokens[..., None]
