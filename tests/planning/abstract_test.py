# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
import dataclasses
from pathlib import Path

import jax
import pytest
import small_plans

from medloc_jax import sharding
from medloc_jax.curriculum import make_schedule
from medloc_jax.grounding import prompts
from medloc_jax.model import config as model_config
from medloc_jax.model import tokenizer
from medloc_jax.planning import abstract
from medloc_jax.training import grpo, programs, session
from medloc_jax.training import job as jobs

PROCESSOR = Path(__file__).resolve().parents[3] / "shared" / "processor"


def test_the_papers_prompt():
    """600 x 450 px are fed as 588 x 448, which are 336 image tokens."""
    config = small_plans.config_of("3b", **{"data.template": "vlm_r1", "data.max_pixels": 401408})
    shape = abstract.make(config, abstract.make_mesh(config)).shape
    assert shape.fed_size == (588, 448) and shape.num_patches == 42 * 32
    assert shape.num_image_tokens == 336 and shape.prompt_tokens == 336 + 74
    # No more than this one row needs: its rungs are 512 and 1536.
    assert shape.bucket.prompt_length == 416 and shape.bucket.num_patches == 1344


@pytest.mark.skipif(not PROCESSOR.exists(), reason="Qwen2.5-VL's tokenizer files are not there")
def test_text_tokens_are_those_of_the_real_tokenizer():
    coder = tokenizer.load(PROCESSOR, model_config.preset("3b"))
    asked = (("skin lesion", "ham10000"), ("thyroid nodule", "tn3k"), ("calcaneus", "heel"))
    for name, template in prompts.TEMPLATES.items():
        lengths = [len(coder.encode_prompt(template.user_text(*one), [1])) - 1 for one in asked]
        assert abstract.TEXT_TOKENS[name] == max(lengths)


def test_image_and_prompt_may_be_stated(tmp_path):
    config = small_plans.small_config(tmp_path)
    mesh = abstract.make_mesh(config)
    wide = abstract.make(config, mesh, image_size=(640, 64), prompt_tokens=300).shape
    assert wide.image_size == (640, 64) and wide.fed_size[0] > 5 * wide.fed_size[1]
    assert wide.prompt_tokens == 300 and wide.bucket.prompt_length >= 300
    with pytest.raises(ValueError, match="no room for its image"):
        abstract.make(config, mesh, prompt_tokens=3)


def test_a_batch_that_does_not_split_is_refused(tmp_path):
    config = small_plans.small_config(tmp_path, **{"rl.prompts_per_step": 12})
    with pytest.raises(ValueError, match="rl.prompts_per_step=12 does not divide"):
        abstract.make(config, abstract.make_mesh(config))


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, ["encode_images", "sample_groups", "reference_logprobs", "grpo_step"]),
        ({"rl.kl_weight": 0.0}, ["encode_images", "sample_groups", "grpo_step"]),
        (
            {"rl.num_updates": 2, "model.freeze_vision": False},
            ["encode_images", "sample_groups", "encode_reference", "reference_logprobs"]
            + ["old_logprobs", "grpo_step"],
        ),
        ({"method": "sft"}, ["sft_step"]),
    ],
)
def test_a_step_is_its_programs(changes, names, tmp_path):
    config = small_plans.small_config(tmp_path, **changes)
    made = abstract.make(config, abstract.make_mesh(config))
    assert list(made.tasks) == names
    assert made.runs[names[-1]] == config.rl.num_updates
    assert (made.reference is None) == ("reference_logprobs" not in names)


def test_training_compiles_the_very_same_programs(open_job, monkeypatch):
    """What a plan compiles is what the loop looks up, down to where every argument lies."""
    job = open_job(mesh=sharding.make_mesh(data=2, fsdp=2, tensor=2), rl__num_updates=2)
    made = abstract.make(job.config, job.mesh)
    job = dataclasses.replace(job, buckets=made.job.buckets)
    compiled = {}

    def record(tasks, buckets):
        compiled.update({(program.name, program.key(args)): args for program, args in tasks})
        return ""

    monkeypatch.setattr(programs, "compile_all", record)
    chain = jobs.make_optimizer(job.config)
    run = session.open_session(job, chain, batch_size=8, needs_reference=True)
    grpo._programs(job, run, chain, make_schedule("medloc", num_steps=8))
    run.close()
    for name, (program, args) in made.tasks.items():
        theirs = jax.tree.leaves(compiled[program.name, program.key(args)])
        for mine, other in zip(jax.tree.leaves(args), theirs, strict=True):
            if isinstance(mine, jax.ShapeDtypeStruct):  # the others are numbers
                same = mine.sharding.is_equivalent_to(other.sharding, len(mine.shape))
                assert same, (name, mine, other.sharding)
