# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs
from jax.sharding import NamedSharding

from medloc_jax import sharding
from medloc_jax.training import job as jobs
from medloc_jax.training import layout
from medloc_jax.training import state as states


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
    job = small_runs.open_job(tmp_path_factory.mktemp("layout"), mesh=mesh)
    placement = jobs.place(job, jobs.make_optimizer(job.config))
    reference = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=x.sharding),
        placement.trainable,
    )
    return job, placement, *layout.describe(job, placement, reference)


def _device_bytes(tree):
    leaves = jax.tree.leaves(tree)
    parts = (np.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)
    return int(sum(parts))


def test_every_matrix_has_a_line_with_its_axes_and_its_bytes(described):
    _, placement, text, warnings = described
    assert not warnings
    lines = text.splitlines()
    assert "data 1 x fsdp 4 x tensor 2" in lines[0]
    (gate,) = [line for line in lines if "language_model.layers.mlp.gate_proj.kernel" in line]
    assert gate.split()[1:] == [
        *("2", "x", "32", "x", "64", "-,", "fsdp,", "tensor", "float32"),
        *("16.38", "kB", "2.05", "kB"),
    ]
    matrices = [
        path
        for path, _ in jax.tree_util.tree_leaves_with_path(placement.abstract()["params"])
        if path[-1].key in ("kernel", "embedding")
    ]
    for path in matrices:
        name = ".".join(key.key for key in path)
        assert sum(name in line for line in lines) == 1, name


def test_totals_are_those_of_the_arrays(described):
    _, placement, text, _ = described
    said = {line.split("  ")[0]: line.split()[-2:] for line in text.splitlines()}
    want = f"{_device_bytes(placement.trainable) / 1000:.2f}"
    assert said["policy"] == [want, "kB"]
    # Two moments in float32, a reference in bfloat16.
    assert float(said["Adam's moments"][0]) == pytest.approx(2 * float(want), abs=0.02)
    assert float(said["reference"][0]) == pytest.approx(float(want) / 2, abs=0.02)


def test_a_run_tells_where_its_caches_lie(described):
    job, _, text, _ = described
    (line,) = [line for line in text.splitlines() if "keys of the completions" in line]
    assert "-, data+fsdp, -, -, tensor, -" in line
    rl, sizes = job.config.rl, job.model.config.text
    tokens = rl.prompts_per_step * rl.group_size * (rl.max_completion_tokens - 1)
    total = 4 * tokens * sizes.num_hidden_layers * sizes.num_key_value_heads * sizes.head_dim
    assert f"{total / 1000:.2f} kB" in line


@pytest.mark.parametrize("micro_batch", [0, 4])
def test_what_a_layer_hands_on_is_that_of_a_micro_batch(described, micro_batch):
    job, placement, _, _ = described
    config = job.config.copy_and_resolve_references()
    config.rl.micro_batch_prompts = micro_batch
    rl, sizes, dtype = config.rl, job.model.config.text, np.dtype(job.model.compute_dtype)
    model = dataclasses.replace(job.model, vocab_chunk=2 * rl.group_size)
    changed = dataclasses.replace(job, config=config, model=model)
    lines = layout.describe(changed, placement, None)[0].splitlines()
    prompts = micro_batch or rl.prompts_per_step
    bucket = max(job.buckets, key=lambda one: one.prompt_length)
    tokens = bucket.prompt_length + rl.group_size * rl.max_completion_tokens
    (carry,) = [line for line in lines if "between layers" in line]
    assert f"  {prompts} x {tokens} x {sizes.hidden_size}  " in carry and str(dtype) in carry
    # Two tokens for each of a prompt's completions, over the prompts of one of four devices.
    part = max(1, 2 * 4 // prompts)
    (logits,) = [line for line in lines if "logits of a part" in line]
    shape = (prompts, rl.group_size, part, sizes.vocab_size)
    assert f"  {' x '.join(map(str, shape))}  " in logits


@pytest.mark.parametrize(("size", "whole"), [(4096, False), (4095, True)])
def test_a_large_array_that_cannot_be_split_is_named(size, whole):
    mesh = sharding.make_mesh(data=1, fsdp=8, tensor=1)
    shape, axes = (2000, size), ("mlp", "embed")
    where = NamedSharding(mesh, sharding.spec(mesh, shape, axes))
    struct = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where)
    rows = layout.parameter_rows({"head": {"kernel": struct}})
    told = list(layout.warnings(mesh, {"policy": rows}))
    assert len(told) == whole
    if whole:
        assert "policy: head.kernel (2000 x 4095, 32.76 MB) lies whole on every device" in told[0]


def test_on_one_device_a_line_is_enough(tmp_path):
    job = small_runs.open_job(tmp_path)
    placement = jobs.place(job, jobs.make_optimizer(job.config))
    text, warnings = layout.describe(job, placement, None)
    assert text.startswith("on the device: policy ") and "\n" not in text
    assert "reference" not in text.replace("policy and reference", "") and not warnings


def test_the_optimizer_state_is_where_the_table_says(described):
    """Laid out by `of_state`, not as the compiler would."""
    job, placement, _, _ = described
    chain = jobs.make_optimizer(job.config)
    state, _ = states.start(small_runs.params(job.model), placement, chain)
    for array, struct in zip(
        jax.tree.leaves(state.opt_state), jax.tree.leaves(placement.opt_state), strict=True
    ):
        assert array.sharding.is_equivalent_to(struct.sharding, array.ndim)
