# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What is written down when a run ends for gradients that are not finite.

`WORKDIR/diagnostics/<step>.json` holds the rows of all processes (ids, prompts, completions,
rewards, advantages), the gradient's norm of every tensor and of every group of them, and which
tensors, of gradient and parameters, are not finite; `<step>.npz` the arrays behind it.
"""

import io
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medloc_jax import distributed, metric_writer, sharding, watchdog
from medloc_jax.data import batching
from medloc_jax.rl import advantages, rollout
from medloc_jax.training import job as jobs

FOLDER = "diagnostics"  # in the run's folder
LEAF_NORMS = "optimizer/leaf_norms"  # what an update returns beside its scalars


class NonFiniteError(RuntimeError):
    """Updates were skipped too often in a row."""

    exit_code = watchdog.NONFINITE


class Rows(NamedTuple):
    """This process's part of a batch: one dict and one row of each array an example."""

    records: list[dict[str, Any]]
    arrays: dict[str, np.ndarray]


def of_rollout(
    batch: batching.Batch,
    texts: list[list[str]],
    taken: rollout.Rollout,
    rewards: jax.Array,
    advantage_std: str,
) -> Rows:
    """What a GRPO step did with its rows."""
    reward = sharding.local_rows(rewards)
    advantage = np.asarray(advantages.group_advantages(jnp.asarray(reward), std=advantage_std))
    arrays = {"rewards": reward, "advantages": advantage}
    arrays |= {
        name: sharding.local_rows(value)
        for name, value in taken._asdict().items()
        if value is not None
    }
    records = [
        {
            "id": example.id,
            "image": example.image,
            "query": example.query,
            "completions": group,
            "rewards": reward[row].tolist(),
            "advantages": advantage[row].tolist(),
        }
        for row, (example, group) in enumerate(zip(batch.examples, texts, strict=True))
    ]
    return Rows(records, arrays)


def of_targets(batch: batching.Batch, job: jobs.Job) -> Rows:
    """What an SFT step did with its rows."""
    texts = job.texts(np.asarray(batch.completions))
    records = [
        {"id": example.id, "image": example.image, "query": example.query, "completions": group}
        for example, group in zip(batch.examples, texts, strict=True)
    ]
    arrays = {"completions": batch.completions, "completion_mask": batch.completion_mask}
    return Rows(records, {name: x for name, x in arrays.items() if x is not None})


def stop(
    job: jobs.Job,
    step: int,
    trainable: Any,
    metrics: Mapping[str, jax.Array],
    rows: Rows,
    limit: int,
) -> None:
    """Writes the two files and ends the run; every process calls it.

    Args:
        job: what is trained.
        step: under way.
        trainable: parameters that the gradient is of.
        metrics: what the update returned: scalars, and `LEAF_NORMS` in the order of the leaves.
        rows: of this process.
        limit: `optim.max_nonfinite`, for the message.

    Raises:
        NonFiniteError: always.
    """
    leaves = jax.tree_util.tree_leaves_with_path(trainable)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    norms = sharding.local_rows(metrics[LEAF_NORMS])
    finite = jax.jit(lambda tree: jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]))
    finite_parameters = sharding.local_rows(finite(trainable))
    nonfinite = [name for name, norm in zip(names, norms, strict=True) if not np.isfinite(norm)]
    arrays = {name: job.all_rows(rows.arrays[name]) for name in sorted(rows.arrays)}
    records = job.all_records(rows.records)
    path = job.workdir / FOLDER / f"{step}.json"
    if distributed.is_primary():
        told = {
            "step": step,
            "metrics": {
                name: metric_writer.json_number(sharding.local_rows(value))
                for name, value in metrics.items()
                if not value.ndim
            },
            "nonfinite_gradients": nonfinite,
            "nonfinite_parameters": [
                name for name, ok in zip(names, finite_parameters, strict=True) if not ok
            ],
            "gradient_norm_of_group": _norm_of_groups(names, norms),
            "gradient_norm": {
                name: metric_writer.json_number(norm)
                for name, norm in zip(names, norms, strict=True)
            },
            "rows": metric_writer.json_value(records),
        }
        with metric_writer.full_disk_is_a_warning(f"{path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            packed = io.BytesIO()
            arrays["gradient_norm"] = norms
            np.savez(packed, **arrays)  # type: ignore[arg-type]
            path.with_suffix(".npz").write_bytes(packed.getvalue())
            path.write_text(json.dumps(told, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    distributed.barrier("diagnostics_written")
    raise NonFiniteError(
        f"step {step}: the gradient was not finite {limit} steps in a row, so nothing is learnt "
        f"(optim.max_nonfinite={limit}); {len(nonfinite)} of {len(names)} tensors are concerned, "
        f"{nonfinite[0] if nonfinite else 'none by itself'} first; see {path}; then lower "
        "optim.learning_rate or take an earlier checkpoint"
    )


def _norm_of_groups(names: list[str], norms: np.ndarray) -> dict[str, float | None]:
    """Norms over all tensors whose paths begin with the same two names."""
    squares: dict[str, float] = {}
    for name, norm in zip(names, norms.astype(np.float64), strict=True):
        group = "/".join(name.split("/")[:2])
        squares[group] = squares.get(group, 0.0) + float(norm) ** 2
    return {
        group: metric_writer.json_number(math.sqrt(square)) for group, square in squares.items()
    }
