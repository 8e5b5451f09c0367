# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""AdamW with a traced learning rate, global-norm clipping, and updates that can be skipped whole.

The learning rate is not part of the optax chain: it is an argument of `apply`, so that its schedule
lives on the host in float64 and changing it compiles nothing.

Departure from torch's AdamW and clip_grad_norm_: the gradient is scaled by clip_norm / norm,
without the 1e-6 torch adds to the norm.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

Params = dict[str, Any]  # nested dict of arrays

# By name, not by rank: layers are stacked, so that a bias is 2-D and says nothing about its kind.
DECAYED = {"kernel": True, "embedding": True, "scale": False, "bias": False}


def make_optimizer(
    *, beta1: float, beta2: float, eps: float, weight_decay: float, clip_norm: float
) -> optax.GradientTransformation:
    """Chains clipping, Adam and decoupled weight decay; the result is yet to be scaled by -rate.

    Args:
        beta1: decay of the first moment, [0, 1).
        beta2: decay of the second moment, [0, 1).
        eps: added to the root of the second moment.
        weight_decay: of kernels and embeddings, not of biases and norm scales; 0 = none.
        clip_norm: largest global norm of the gradient; 0 = no clipping.

    Returns:
        A transformation whose moments are float32, whatever the dtype of the parameters.

    Raises:
        ValueError: a value out of range; when initialised with weight decay, a parameter whose name
            does not say whether it decays.

    Reference: Loshchilov and Hutter, arXiv 1711.05101.
    """
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        if not 0 <= beta < 1:
            raise ValueError(f"optim.{name} is {beta}: give a number in [0, 1)")
    for name, value in (("eps", eps), ("weight_decay", weight_decay), ("clip_norm", clip_norm)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"optim.{name} is {value}: give a number of 0 or more")
    chain = []
    if clip_norm > 0:
        chain.append(optax.clip_by_global_norm(clip_norm))
    chain.append(optax.scale_by_adam(b1=beta1, b2=beta2, eps=eps))
    if weight_decay > 0:
        chain.append(optax.add_decayed_weights(weight_decay, mask=decay_mask))
    inner = optax.chain(*chain)
    # Moments take the dtype of what they are made from; a bfloat16 second moment loses its updates.
    return optax.GradientTransformation(
        init=lambda params: inner.init(_float32(params)),
        update=lambda updates, state, params=None: inner.update(
            _float32(updates), state, None if params is None else _float32(params)
        ),
    )


def decay_mask(params: Params) -> Params:
    """Returns a tree of bools, true where weight decay applies, by the last name of the path.

    Raises:
        ValueError: a name that is not in DECAYED.
    """

    def decays(path, _) -> bool:
        if path[-1].key not in DECAYED:
            raise ValueError(
                f"parameter {jax.tree_util.keystr(path)}: name it one of {', '.join(DECAYED)}, or "
                "add its name to DECAYED in training/optimizer.py"
            )
        return DECAYED[path[-1].key]

    return jax.tree_util.tree_map_with_path(decays, params)


def apply(
    optimizer: optax.GradientTransformation,
    grads: Params,
    opt_state: optax.OptState,
    params: Params,
    learning_rate: ArrayLike,
    keep: ArrayLike,
) -> tuple[Params, optax.OptState, Float[Array, ""]]:
    """Takes one optimizer step, or none.

    Args:
        optimizer: from `make_optimizer`.
        grads: of the trainable parameters.
        opt_state: of the optimizer.
        params: the trainable parameters.
        learning_rate: scalar, may be traced.
        keep: bool scalar, may be traced. False = parameters, moments and Adam's count stay as they
            are. So they do, whatever `keep` says, when the gradient's norm is not finite.

    Returns:
        New parameters and optimizer state, and the global norm of the gradient before clipping
        (not finite = the step was skipped for that).
    """
    grad_norm = global_norm(grads)
    taken = jnp.asarray(keep) & jnp.isfinite(grad_norm)
    updates, new_state = optimizer.update(grads, opt_state, params)
    # Computed in float32 and rounded once, should a parameter be stored in less.
    new_params = jax.tree.map(
        lambda p, u: (p.astype(jnp.float32) - learning_rate * u).astype(p.dtype), params, updates
    )

    # Selecting, not multiplying by 0: 0 * NaN is NaN.
    def choose(new, old):
        return jnp.where(taken, new, old)

    return (
        jax.tree.map(choose, new_params, params),
        jax.tree.map(choose, new_state, opt_state),
        grad_norm,
    )


def global_norm(tree: Params) -> Float[Array, ""]:
    """Returns the Euclidean norm of all leaves as one vector, summed in float32."""
    return jnp.sqrt(sum(_squares(tree), start=jnp.float32(0)))


def leaf_norms(tree: Params) -> Float[Array, " leaves"]:
    """Returns the Euclidean norm of every leaf, in the order of the tree, summed in float32."""
    return jnp.sqrt(jnp.stack(_squares(tree)))


def _squares(tree: Params) -> list[Float[Array, ""]]:
    return [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(_float32(tree))]


def _float32(tree):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


def _linear(step: int, warmup_steps: int, total_steps: int) -> float:
    return max(0.0, (total_steps - step) / (total_steps - warmup_steps))


def _constant(step: int, warmup_steps: int, total_steps: int) -> float:
    del step, warmup_steps, total_steps
    return 1.0


SCHEDULES = {"linear": _linear, "constant": _constant}  # after the warm-up, as a share of the peak


def learning_rate_at(
    step: int, *, learning_rate: float, warmup_steps: int, schedule: str, total_steps: int
) -> float:
    """Returns the learning rate of a step, equal to Hugging Face's schedules of the same names.

    Args:
        step: optimizer steps taken so far, 0 or more. With a warm-up, step 0 has rate 0.
        learning_rate: the peak.
        warmup_steps: steps over which the rate rises linearly to the peak.
        schedule: "linear": falls to 0 at `total_steps` and stays there; "constant".
        total_steps: length of the schedule, warm-up included; not used by "constant".

    Raises:
        ValueError: a negative step or rate, an unknown schedule, or a warm-up as long as the run.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"optim.schedule is {schedule!r}: choose one of {', '.join(SCHEDULES)}")
    if not 0 <= learning_rate < float("inf"):
        raise ValueError(f"optim.learning_rate is {learning_rate}: give a number of 0 or more")
    if step < 0 or warmup_steps < 0:
        raise ValueError(f"step {step}, optim.warmup_steps {warmup_steps}: neither can be negative")
    if schedule == "linear" and warmup_steps >= total_steps:
        raise ValueError(
            f"optim.warmup_steps is {warmup_steps}: it must be below optim.total_steps "
            f"({total_steps})"
        )
    if step < warmup_steps:
        return learning_rate * (step / warmup_steps)
    return learning_rate * SCHEDULES[schedule](step, warmup_steps, total_steps)
