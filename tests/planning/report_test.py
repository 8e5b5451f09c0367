# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A plan of a small job on eight pretended devices, against the job as it runs on them."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
import small_plans
import small_runs

from medloc_jax import sharding
from medloc_jax.planning import abstract, compiled, memory, plan, report, topology
from medloc_jax.training import programs
from medloc_jax.training import state as states

MESH = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return small_plans.small_config(tmp_path_factory.mktemp("plan"), **MESH)


@pytest.fixture(scope="module")
def found(config):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topology, "_installed", lambda *modules: False)
        return report.report(config, "h800", 8)


def test_it_says_what_was_compiled_and_by_whom(found, config):
    assert found.mesh == {"data": 2, "fsdp": 2, "tensor": 2} and found.num_devices == 8
    assert found.compiled_by == plan.PRETENDED and "H800" in found.note.upper()
    assert found.parameters.total == found.parameters.trainable + found.parameters.frozen
    assert found.parameters.vision == found.parameters.frozen
    assert [one.name for one in found.programs][-1] == "grpo_step"
    assert found.does_not_fit is None and 0 < found.resident_bytes < found.peak_bytes


def test_a_state_that_is_given_up_is_reused(found):
    update = found.program("grpo_step")
    assert update.donated > 20 and update.not_donated == ()
    assert update.alias_bytes > 0.9 * update.output_bytes


def test_memory_agrees_with_what_lies_on_a_device(found, config):
    """The exact parts are the bytes of the run's own arrays, and XLA counts the same arguments."""
    mesh = abstract.make_mesh(config)
    made = abstract.make(config, mesh)
    params = small_runs.params(made.job.model)
    state, frozen = states.start(params, made.placement, made_chain(made))
    reference = states.copy(state.trainable, config.model.frozen_dtype)

    def on_first_device(tree):
        first = mesh.devices.flat[0]
        shards = [shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards]
        return sum(shard.data.nbytes for shard in shards if shard.device == first)

    parts = {part.name: part for part in found.memory}
    assert all(parts[name].exact for name in ("weights", "moments", "frozen weights", "reference"))
    assert parts["weights"].bytes == on_first_device(state.trainable)
    assert parts["moments"].bytes == on_first_device(state.opt_state)
    assert parts["frozen weights"].bytes == on_first_device(frozen)
    assert parts["reference"].bytes == on_first_device(reference)
    # The program that runs, compiled for these very arrays.
    program, args = made.tasks["grpo_step"]
    running = program.compile(state, frozen, *args[2:])
    theirs, update = running.memory_analysis(), found.program("grpo_step")
    assert update.argument_bytes == theirs.argument_size_in_bytes
    assert update.temp_bytes == theirs.temp_size_in_bytes
    held = parts["weights"].bytes + parts["moments"].bytes + parts["batch"].bytes
    # The tower is frozen: neither its weights nor the pixels are arguments of the update.
    unread = plan.bytes_of([args[2].pixel_values, args[2].patch_hw, args[2].window_index])
    unread += plan.bytes_of([args[2].segment_ids, args[2].window_slot])
    assert held - unread == pytest.approx(theirs.argument_size_in_bytes, rel=0.01)


def made_chain(made):
    from medloc_jax.training import job as jobs

    return jobs.make_optimizer(made.job.config)


def test_formulas_follow_their_knobs(config):
    mesh = abstract.make_mesh(config)

    def bytes_of(name, **changes):
        other = config.copy_and_resolve_references()
        other.update_from_flattened_dict(changes)
        made = abstract.make(other, mesh)
        return {part.name: part.bytes for part in memory.parts(made)}.get(name, 0)

    half = {"rl.micro_batch_prompts": 4}
    assert bytes_of("activations", **half) == bytes_of("activations") / 2
    assert bytes_of("gradients", **half) == 2 * bytes_of("gradients")
    assert bytes_of("reference", **{"rl.kl_weight": 0.0}) == 0 < bytes_of("reference")
    assert bytes_of("KV cache", **{"rl.max_completion_tokens": 7}) > bytes_of("KV cache")
    assert bytes_of("sampler's weights", **{"rl.gather_weights": False}) == 0
    assert bytes_of("activations", **{"model.remat": "layer"}) < bytes_of(
        "activations", **{"model.remat": "none"}
    )


def test_the_cache_is_counted_as_the_sampler_makes_it(config):
    made = abstract.make(config, abstract.make_mesh(config))
    shape, model = made.shape, made.job.model
    params, inputs, features, *_ = made.tasks["sample_groups"][1]
    _, prompts = jax.eval_shape(model.prefill, params, inputs, features)
    # A completion's last token is never fed.
    size = (shape.prompts, shape.group_size, shape.completion_tokens - 1)
    completions = jax.eval_shape(lambda: model.empty_cache(*size))
    arrays = (*prompts.k, *prompts.v, *completions.k, *completions.v)
    total = sum(one.size * one.dtype.itemsize for one in arrays)
    (part,) = [one for one in memory.parts(made) if one.name == "KV cache"]
    assert part.bytes == total // made.job.mesh.size  # rows over data and fsdp, heads over tensor


def test_large_whole_arrays_are_named():
    mesh = sharding.make_mesh(data=1, fsdp=8, tensor=1)
    where = sharding.replicated(mesh)
    program = programs.Program("double", lambda x: {"twice": x["w"] * 2}, out_shardings=where)
    args = ({"w": jax.ShapeDtypeStruct((64, 8), jnp.float32, sharding=where)},)
    seen = compiled.compile_program("double", program, args, mesh, large_bytes=2048)
    assert {(one.name, one.kind, one.bytes) for one in seen.replicated} == {
        ("0.w", "argument", 2048),
        ("twice", "output", 2048),
    }
    assert not compiled.compile_program("d", program, args, mesh, large_bytes=4096).replicated


@pytest.mark.parametrize(
    ("message", "missing"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (16.75G) exceeds available HBM (15.75G).",
            2**30,
        ),
        ("RESOURCE_EXHAUSTED: Used 18.00G of 15.50G hbm. Exceeded hbm capacity", 5 * 2**29),
        ("RESOURCE_EXHAUSTED: something else", 0),
        ("INVALID_ARGUMENT: Used 3G of 2G", None),
    ],
)
def test_a_refusal_becomes_a_number(message, missing):
    assert compiled.missing_bytes(message) == missing


def test_a_refused_program_does_not_fit_by_what_else_lies_there(found):
    def refuse(*args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 3G of 2G hbm")

    program = programs.Program("step", lambda x: x, out_shardings=None)
    program.compile = refuse
    where = sharding.replicated(sharding.make_mesh(data=8, fsdp=1, tensor=1))
    args = (jax.ShapeDtypeStruct((1000,), jnp.float32, sharding=where),)
    seen = compiled.compile_program("step", program, args, where.mesh)
    assert seen.does_not_fit == 2**30 and seen.argument_bytes == 4000 and "3G" in seen.refusal
    whole = dataclasses.replace(found, programs=(seen,))
    assert whole.does_not_fit == 2**30 + found.resident_bytes - 4000
    program.compile = lambda *args: (_ for _ in ()).throw(jax.errors.JaxRuntimeError("INTERNAL"))
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        compiled.compile_program("step", program, args, where.mesh)


def test_what_is_missing_counts_what_lies_beside_the_program(found):
    small = dataclasses.replace(found, device_bytes=found.peak_bytes - 1000)
    assert small.does_not_fit == 1000
    sampler = found.program("sample_groups")
    assert found.held_bytes(sampler) >= found.resident_bytes
    assert dataclasses.replace(found, device_bytes=0).does_not_fit is None
