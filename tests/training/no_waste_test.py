# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What the compiled step does not do: copy its state, make logits of prompts."""

import dataclasses
import math
import re

import jax
import pytest
import small_runs

from medloc_jax.planning import plan
from medloc_jax.training import grpo, grpo_programs, programs
from medloc_jax.training import job as jobs

B, G, C = 2, 2, 2  # few completions, so that an array of all prompt tokens stands out
VOCAB = 30_000  # many parameters for few activations
_FLOATS = re.compile(r"\b(?:f16|bf16|f32|f64)\[([\d,]+)\]")


@pytest.fixture(scope="module")
def made(open_job):
    """(job, programs, their arguments by name) of a step."""
    job = open_job(
        rl__group_size=G,
        rl__max_completion_tokens=C,
        rl__kl_weight=0.04,
        model__vocab_chunk=4,
    )
    job.config.rl.prompts_per_step = B  # fewer than the test run has devices
    sizes = dataclasses.replace(
        small_runs.SIZES,
        text=dataclasses.replace(small_runs.SIZES.text, vocab_size=VOCAB),
    )
    job = dataclasses.replace(job, model=dataclasses.replace(job.model, config=sizes))
    chain = jobs.make_optimizer(job.config)
    placement = jobs.place(job, chain)
    grpo_step = grpo.make_update(job, chain, "hit")
    made = grpo_programs.make_programs(job, grpo_step, placement)
    state = grpo_programs.states.TrainState(placement.trainable, placement.opt_state)
    args = (state, placement.frozen, placement.trainable, job.buckets[0])
    return job, made, grpo_programs.compile_tasks(job, made, *args)


def copies_of_the_state(program, args):
    """Bytes of new state that do not take the place of the old."""
    memory = program.compile(*args).memory_analysis()
    return plan.bytes_of(args[0]) - memory.alias_size_in_bytes


def test_the_state_is_updated_in_place(made):
    _, _, tasks = made
    update, args = tasks["grpo_step"]
    assert copies_of_the_state(update, args) <= 0
    state, memory = plan.bytes_of(args[0]), update.compile(*args).memory_analysis()
    # What is returned beside it are metrics and rewards. What is made on the way is the gradient, a
    # third of the state, and 1.5 times that again; another copy of the parameters would show.
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes < state / 100
    assert memory.temp_size_in_bytes < state


def test_a_state_that_is_not_given_away_is_seen(made):
    _, update_programs, tasks = made
    _, args = tasks["grpo_step"]
    kept = programs.Program(
        "grpo_step",
        update_programs.update._jitted.__wrapped__,
        out_shardings=None,
    )
    assert copies_of_the_state(kept, args) == plan.bytes_of(args[0])


def tokens_with_logits(text, vocab):
    """The most tokens that an array over the whole vocabulary holds in a compiled program."""
    shapes = [tuple(map(int, dims.split(","))) for dims in set(_FLOATS.findall(text))]
    return max(math.prod(shape) // vocab for shape in shapes if vocab in shape)


def test_logits_of_a_prompt_are_never_made(made):
    """Not in the optimized program: no array over the vocabulary has as many rows as a prompt."""
    job, _, tasks = made
    vocab, length = job.model.config.text.vocab_size, job.buckets[0].prompt_length
    width = job.model.config.text.hidden_size  # the embedding is such an array, too
    assert max(width, B * G * C) < length
    for name in ("reference_logprobs", "grpo_step"):
        program, args = tasks[name]
        tokens = tokens_with_logits(program.compile(*args).as_text(), vocab)
        assert width <= tokens < length, name
    # The function that is for tests alone does make them.
    _, (params, inputs, features, *_) = tasks["reference_logprobs"]
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (params, inputs, features)
    )
    text = jax.jit(job.model.logits).lower(*shapes).compile().as_text()
    assert tokens_with_logits(text, vocab) == B * length


def test_the_counting_of_logits_reads_shapes():
    text = "a = f32[2,48,300]{2,1,0} fusion(), b = bf16[300,32] p(), c = s32[99,300] iota()"
    assert tokens_with_logits(text, 300) == 96
    assert tokens_with_logits(text, 32) == 300
