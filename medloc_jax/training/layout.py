# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What a run keeps on each device, as a table at its start and a warning where a split failed.

A matrix that its mesh axis does not divide stays whole on every device: that costs memory, and
nothing else would tell.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from medloc_jax import sharding
from medloc_jax.model import geometry, qwen2_5_vl
from medloc_jax.training import job as jobs
from medloc_jax.training import state as states

# Smaller arrays (biases, norm scales) may lie whole on every device without a word.
LARGE_BYTES = 16 << 20
_SMALL = ("bias", "scale")


class Row(NamedTuple):
    """Arrays that are laid out alike.

    Attributes:
        name: what they are.
        shape: of the array, or "" for several.
        spec: where they lie, such as "-, fsdp, tensor".
        dtype: of the values.
        num_bytes: of all of them, counted once.
        device_bytes: on the device that holds most.
        is_whole: an array on every device, though the mesh has axes to split it over.
    """

    name: str
    shape: str
    spec: str
    dtype: str
    num_bytes: int
    device_bytes: int
    is_whole: bool = False


def row(name: str, struct: Any) -> Row:
    """The row of one array, or of a struct that has a sharding."""
    itemsize = np.dtype(struct.dtype).itemsize
    mesh, spec = struct.sharding.mesh, struct.sharding.spec
    names = ["+".join((axis,) if isinstance(axis, str) else axis) if axis else "-" for axis in spec]
    names += ["-"] * (len(struct.shape) - len(names))
    here = math.prod(struct.sharding.shard_shape(struct.shape))
    return Row(
        name,
        " x ".join(map(str, struct.shape)),
        ", ".join(names),
        np.dtype(struct.dtype).name,
        math.prod(struct.shape) * itemsize,
        here * itemsize,
        is_whole=here == math.prod(struct.shape) and mesh.shape["fsdp"] * mesh.shape["tensor"] > 1,
    )


def parameter_rows(params: Any) -> list[Row]:
    """A row for each matrix; vectors, which are small, in one at the end.

    Args:
        params: nested dict of arrays or structs with shardings.
    """
    rows, vectors = [], []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)] or ["count"]
        (vectors if names[-1] in _SMALL else rows).append(row(".".join(names), leaf))
    return rows + ([_total("biases and norm scales", vectors)] if vectors else [])


def describe(job: jobs.Job, placement: states.Placement, reference: Any | None) -> tuple:
    """What a run keeps where, for its start.

    Args:
        job: the run.
        placement: of its parameters and moments.
        reference: the reference policy's own parameters, or None.

    Returns:
        (text, warnings): a table, one line where there is one device; and what should lie on
        several devices and does not.
    """
    rl, sft, is_sft = job.config.rl, job.config.sft, job.config.method == "sft"
    prompts = sft.batch_size if is_sft else rl.prompts_per_step
    moments = [
        one
        for one in parameter_rows(placement.opt_state)
        if one.num_bytes > 4  # Adam's count
    ]
    parts = {
        "policy": parameter_rows(placement.trainable),
        "frozen (policy and reference)": parameter_rows(placement.frozen),
        "Adam's moments": [_total("two for each, laid out like the policy", moments)],
        "reference": [_total("laid out like the policy", parameter_rows(reference))]
        if reference
        else [],
        "sampling and activations": activation_rows(
            job.model,
            job.mesh,
            max(job.buckets, key=lambda bucket: bucket.prompt_length),
            prompts=prompts,
            micro_batch=(sft.micro_batch if is_sft else rl.micro_batch_prompts) or prompts,
            group_size=1 if is_sft else rl.group_size,
            completion_length=rl.max_completion_tokens,
        ),
    }
    parts = {name: rows for name, rows in parts.items() if rows}
    text = summary(parts) if job.mesh.size == 1 else table(job.mesh, parts)
    return text, list(warnings(job.mesh, parts))


def activation_rows(
    model: qwen2_5_vl.Model,
    mesh: Mesh,
    bucket: geometry.Bucket,
    *,
    prompts: int,
    micro_batch: int,
    group_size: int,
    completion_length: int,
) -> list[Row]:
    """What sampling keeps, and what one layer of the update hands to the next.

    Args:
        model: the model.
        mesh: the mesh.
        bucket: static shape of the batch.
        prompts: B.
        micro_batch: prompts of one backward pass.
        group_size: G.
        completion_length: C.
    """
    text = model.config.text
    heads = (text.num_key_value_heads, text.head_dim)
    b, m, g, c, p = prompts, micro_batch, group_size, completion_length, bucket.prompt_length
    layers, width, merged = text.num_hidden_layers, text.hidden_size, bucket.num_patches
    merged //= model.config.vision.merge_unit
    rows_here = m * g // sharding.num_parts(mesh, "batch", m)
    part = qwen2_5_vl.chunk_length(model.vocab_chunk, rows_here, c)
    sizes: dict[str, tuple[tuple[int, ...], sharding.Axes, Any]] = {
        "keys of the prompts (values alike)": (
            (layers, b, p, *heads),
            ("layers", "batch", None, "kv_heads", None),
            model.compute_dtype,
        ),
        "keys of the completions (values alike)": (
            (layers, b, g, max(1, c - 1), *heads),
            ("layers", "batch", None, None, "kv_heads", None),
            model.compute_dtype,
        ),
        "image tokens": ((b, merged, width), ("batch", None, None), model.compute_dtype),
        "prompts and completions between layers": (
            (m, p + g * c, width),
            ("batch", None, None),
            model.compute_dtype,
        ),
        "logits of a part": (
            (m, g, part, text.vocab_size),
            ("batch", None, None, "vocab"),
            np.float32,
        ),
    }
    rows = []
    for name, (shape, axes, dtype) in sizes.items():
        where = NamedSharding(mesh, sharding.spec(mesh, shape, axes))
        rows.append(row(name, jax.ShapeDtypeStruct(shape, dtype, sharding=where)))
    return rows


def table(mesh: Mesh, parts: Mapping[str, Sequence[Row]]) -> str:
    """The start-up table.

    Args:
        mesh: the mesh.
        parts: rows by what they belong to, such as "policy, trained".
    """
    sizes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    lines = [("", "shape", f"over {sizes}", "dtype", "bytes", "on a device")]
    for name, rows in parts.items():
        total = _total(name, rows)
        lines.append((name, "", "", "", _bytes(total.num_bytes), _bytes(total.device_bytes)))
        for one in rows:
            sizes = (_bytes(one.num_bytes), _bytes(one.device_bytes))
            lines.append((f"  {one.name}", one.shape, one.spec, one.dtype, *sizes))
    widths = [max(len(line[column]) for line in lines) for column in range(6)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column > 3 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def warnings(mesh: Mesh, parts: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    """Names every large array that lies whole on each device."""
    for part, rows in parts.items():
        for one in rows:
            if one.is_whole and one.num_bytes >= LARGE_BYTES:
                yield (
                    f"{part}: {one.name} ({one.shape}, {_bytes(one.num_bytes)}) lies whole on "
                    f"every device: its sizes do not divide over mesh.fsdp={mesh.shape['fsdp']} or "
                    f"mesh.tensor={mesh.shape['tensor']}; choose sizes that do"
                )


def summary(parts: Mapping[str, Sequence[Row]]) -> str:
    """One line, for a run on one device."""
    totals = [_total(name, rows) for name, rows in parts.items()]
    return "on the device: " + ", ".join(f"{t.name} {_bytes(t.device_bytes)}" for t in totals)


def _total(name: str, rows: Sequence[Row]) -> Row:
    """Several rows as one."""

    def common(values: list[str]) -> str:
        return values[0] if len(set(values)) == 1 else "" if values else "-"

    return Row(
        name,
        "",
        common([one.spec for one in rows]),
        common([one.dtype for one in rows]),
        sum(one.num_bytes for one in rows),
        sum(one.device_bytes for one in rows),
    )


def _bytes(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"
