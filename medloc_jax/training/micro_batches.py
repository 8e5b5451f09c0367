# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The gradient of a batch, one part of its prompts at a time.

Losses divide by counts of the whole batch (made before the parts are), so that the parts' losses
and gradients add up to the batch's. A group is never split.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LossFunction = Callable[[Any, Any], tuple[Float[Array, ""], Any]]


def value_and_grad(loss: LossFunction, params: Any, batch: Any, num_parts: int) -> tuple[Any, Any]:
    """Sums gradients over parts of the batch.

    Args:
        loss: (params, part) -> (this part's share of the loss, what it saw).
        params: what to differentiate by.
        batch: tree of arrays with the prompts leading.
        num_parts: how many parts; divides the prompts.

    Returns:
        What the parts saw, stacked along a new leading axis, and the summed gradient.
    """
    grad = jax.value_and_grad(loss, has_aux=True)
    if num_parts == 1:
        (_, seen), grads = grad(params, batch)
        return jax.tree.map(lambda x: x[None], seen), grads

    def cut(x: Array) -> Array:
        # Every part takes one of each `num_parts` neighbours, so that each device has its share
        # of every part and nothing moves between devices.
        return jnp.swapaxes(x.reshape(-1, num_parts, *x.shape[1:]), 0, 1)

    def add(total: Any, part: Any) -> tuple[Any, Any]:
        (_, seen), grads = grad(params, part)
        return jax.tree.map(jnp.add, total, grads), seen

    zeros = jax.tree.map(jnp.zeros_like, params)
    grads, seen = jax.lax.scan(add, zeros, jax.tree.map(cut, batch))
    return seen, grads


def num_parts(rows: int, rows_per_part: int, what: str) -> int:
    """How many parts a batch is cut into; 0 rows a part = one part.

    Raises:
        ValueError: if it does not divide, naming the config field.
    """
    if rows_per_part == 0:
        return 1
    if rows_per_part < 0 or rows % rows_per_part:
        raise ValueError(f"{what}={rows_per_part} does not divide the {rows} rows of a batch")
    return rows // rows_per_part
