# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Executables by shape, and whose random numbers they use."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs

from medloc_jax import sharding
from medloc_jax.model import geometry
from medloc_jax.sampling import groups
from medloc_jax.training import programs

MODEL = small_runs.MODEL
BUCKET = geometry.Bucket(num_patches=32, num_windows=4, prompt_length=24)


@pytest.fixture(scope="module")
def mesh():
    return small_runs.one_device()


def _program(name="double", **options):
    def function(scale, rows):
        return jax.tree.map(lambda x: x * scale, rows)

    where = sharding.over_batch(small_runs.one_device())
    return programs.Program(name, function, out_shardings=where, **options)


def test_one_executable_a_shape_and_a_warning_for_one_that_was_not_prepared(caplog):
    program, one = _program(), np.float32(1)
    for rows in (2, 4, 2):
        program.compile(one, {"a": jax.ShapeDtypeStruct((rows, 3), jnp.float32)})
    assert program.num_compiled == 2
    with caplog.at_level(logging.WARNING):
        for scale, rows in [(2.0, 2), (3.0, 4), (4.0, 2)]:
            out = program(np.float32(scale), {"a": jnp.ones((rows, 3))})
            np.testing.assert_array_equal(out["a"], np.full((rows, 3), scale))
    assert program.num_compiled == 2 and not caplog.records
    with caplog.at_level(logging.WARNING):
        program(one, {"a": jnp.ones((8, 3))})
    assert program.num_compiled == 3
    assert "double was not compiled for these shapes" in caplog.text
    program(one, {"a": jnp.ones((8, 3), jnp.bfloat16)})  # weights may be stored in less
    assert program.num_compiled == 4


def test_donated_arguments_are_given_up():
    where = sharding.replicated(small_runs.one_device())
    program = programs.Program(
        "add", lambda x, rows: x + rows.sum(), out_shardings=where, donate=(0,)
    )
    state, rows = jnp.ones(4), jnp.ones((2, 2))
    program(state, rows)
    assert state.is_deleted() and not rows.is_deleted()


def test_everything_is_compiled_and_told():
    first, second = _program("first"), _program("second")
    structs = [jax.ShapeDtypeStruct((rows, 3), jnp.float32) for rows in (1, 2)]
    tasks = [(p, (np.float32(1), struct)) for struct in structs for p in (first, second)]
    line = programs.compile_all(tasks, [BUCKET, BUCKET])
    assert (first.num_compiled, second.num_compiled) == (2, 2)
    assert line.startswith("compiled first, second for patches/windows/prompt tokens of 32/4/24")

    def broken(scale, rows):
        raise ValueError("no such thing")

    program = programs.Program("broken", broken, out_shardings=None)
    with pytest.raises(ValueError, match="no such thing"):
        programs.compile_all([(program, (np.float32(1), structs[0]))], [BUCKET])


def test_planned_shapes_are_those_of_a_batch(mesh):
    want = programs.batch_struct(mesh, small_runs.SIZES, BUCKET, 3)
    got = small_runs.collate(small_runs.prompts(), BUCKET)
    for name, struct in want._asdict().items():
        array = getattr(got, name)
        assert (array.shape, array.dtype) == (struct.shape, struct.dtype), name
    features = programs.struct_of(MODEL.encode_images, mesh, MODEL.abstract_params(), want)
    assert features.shape == (3, 8, 32)
    assert features.sharding == sharding.over_batch(mesh)


def test_a_key_belongs_to_seed_step_and_purpose():
    numbers = [(0, 0, 1), (0, 1, 1), (1, 0, 1), (1, 1, 1), (0, 0, 2), (2**31, 1, 1)]
    keys = [programs.step_key(jnp.uint32(s), jnp.uint32(t), p) for s, t, p in numbers]
    assert len({tuple(np.asarray(key).tolist()) for key in keys}) == len(numbers)
    np.testing.assert_array_equal(programs.step_key(jnp.uint32(0), jnp.uint32(1), 1), keys[1])


def test_with_the_same_parameters_every_step_draws_anew_and_a_repeated_step_the_same(mesh):
    """As with a learning rate of 0, and as after a restart."""
    rules = groups.SamplingRules(2, 4, stop_ids=(330,), forbidden_ids=(330,), pad_id=330)
    params = jax.tree.map(jnp.asarray, small_runs.params())
    inputs = small_runs.collate(small_runs.prompts(), BUCKET)
    sample = programs.sample_program(MODEL, mesh, rules)
    features = jnp.zeros((3, 8, 32))

    def draw(seed, step):
        args = (params, inputs, features, np.uint32(seed), np.uint32(step), np.float32(1))
        return np.asarray(sample(*args).completions)

    first = draw(0, 1)
    np.testing.assert_array_equal(draw(0, 1), first)
    assert np.mean(draw(0, 2) == first) < 0.5
    assert np.mean(draw(1, 1) == first) < 0.5
    assert sample.num_compiled == 1
