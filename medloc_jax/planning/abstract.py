# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""From a configuration and a mesh to the job's real programs with arguments that hold nothing.

The programs and the shapes of their arguments come from the functions that training calls; nothing
of the data set, the tokenizer's files or the weights is read.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from medloc_jax import sharding
from medloc_jax.curriculum import make_schedule
from medloc_jax.data import batching
from medloc_jax.grounding import prompts
from medloc_jax.model import config as model_config
from medloc_jax.model import geometry, processor, tokenizer
from medloc_jax.planning import plan
from medloc_jax.training import grpo, grpo_programs, programs, sft
from medloc_jax.training import job as jobs
from medloc_jax.training import state as states

# Tokens of a prompt beside its image, chat template included, in Qwen2.5-VL's own tokenizer: the
# longest of the paper's three questions.
TEXT_TOKENS = {"vlm_r1": 74, "medloc": 101, "boxmed": 30, "chain_of_box": 103, "box": 25}
_QUESTION, _SOURCE = "skin lesion", "ham10000"


class AbstractJob(NamedTuple):
    """A job without data or weights.

    Attributes:
        job: as training knows it; `examples` is empty and `initial` must not be called. Its
            tokenizer stands in for the model's: of it the programs know three sets of ids.
        shape: what is compiled.
        placement: every array of a run.
        reference: structs of the reference's trainable parameters; None without one.
        tasks: program and arguments by name, in the order of a step.
        runs: how often a step runs each of them.
    """

    job: jobs.Job
    shape: plan.Shape
    placement: states.Placement
    reference: states.Params | None
    tasks: Mapping[str, tuple[programs.Program, tuple]]
    runs: Mapping[str, int]


def make_mesh(config: Any, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of the configuration over those devices; None: over this program's own."""
    return sharding.make_mesh(**config.mesh.to_dict(), devices=devices)


def make(
    config: Any,
    mesh: Mesh,
    *,
    image_size: tuple[int, int] = (600, 450),
    prompt_tokens: int = 0,
) -> AbstractJob:
    """Builds the job.

    Args:
        config: a checked configuration.
        mesh: of `make_mesh`.
        image_size: (width, height) of the picture in every prompt, px.
        prompt_tokens: of the whole prompt; 0 = the image's and those of the template with one of
            the paper's questions.

    Raises:
        ValueError: the batch does not split over the mesh, or the prompt is shorter than its image.
    """
    supervised = config.method == "sft"
    rows = config.sft.batch_size if supervised else config.rl.prompts_per_step
    name = "sft.batch_size" if supervised else "rl.prompts_per_step"
    micro = config.sft.micro_batch if supervised else config.rl.micro_batch_prompts
    sharding.check_batch(mesh, rows, name)
    if micro:
        sharding.check_batch(mesh, micro, "the micro-batch of " + name)
    sizes = model_config.preset(config.model.preset)
    shape = _shape(config, sizes, image_size, prompt_tokens)
    job = _job(config, sizes, mesh, shape.bucket)
    chain = jobs.make_optimizer(config)
    placement = jobs.place(job, chain)
    state = states.TrainState(placement.trainable, placement.opt_state)
    if supervised:
        step = sft.make_program(job, chain, placement)
        args = sft.compile_args(job, state, placement.frozen, shape.bucket)
        tasks = {"sft_step": (step, args)}
        return AbstractJob(job, shape, placement, None, tasks, dict.fromkeys(tasks, 1))
    reference = _reference(config, placement) if config.rl.kl_weight > 0 else None
    schedule = make_schedule(
        config.curriculum.schedule, num_steps=config.num_steps, **config.curriculum.to_dict()
    )
    made = grpo_programs.make_programs(
        job, grpo.make_update(job, chain, schedule.reward_shape), placement
    )
    tasks = grpo_programs.compile_tasks(job, made, state, placement.frozen, reference, shape.bucket)
    runs = dict.fromkeys(tasks, 1) | {"grpo_step": config.rl.num_updates}
    return AbstractJob(job, shape, placement, reference, tasks, runs)


def _job(
    config: Any, sizes: model_config.ModelConfig, mesh: Mesh, bucket: geometry.Bucket
) -> jobs.Job:
    loader = batching.RowLoader(
        config=sizes,
        processor=_processor(config, sizes),
        tokenizer=_stand_in(),
        template=config.data.template,
    )

    def no_weights() -> Any:
        raise AssertionError("a plan has no weights")

    return jobs.Job(
        config=config,
        workdir=Path("plan"),  # nothing is written
        mesh=mesh,
        model=jobs.make_model(config, sizes, mesh),
        tokenizer=loader.tokenizer,
        loader=loader,
        examples={},
        buckets=(bucket,),
        initial=no_weights,
    )


def _stand_in() -> tokenizer.Tokenizer:
    return tokenizer.load("", model_config.preset("tiny"))


def _processor(config: Any, sizes: model_config.ModelConfig) -> processor.ImageProcessor:
    return processor.ImageProcessor.for_model(
        sizes.vision, min_pixels=config.data.min_pixels, max_pixels=config.data.max_pixels
    )


def _shape(
    config: Any,
    sizes: model_config.ModelConfig,
    image_size: tuple[int, int],
    prompt_tokens: int,
) -> plan.Shape:
    """Sizes of a prompt with one such image, and the bucket that is compiled for it."""
    width, height = image_size
    pixels = _processor(config, sizes)
    grid = pixels.grid_thw(height, width)
    image_tokens = geometry.merged_tokens(grid, sizes.vision)
    if not prompt_tokens:
        prompt_tokens = image_tokens + _text_tokens(config.data.template, sizes)
    elif prompt_tokens <= image_tokens:
        raise ValueError(
            f"a prompt of {prompt_tokens} tokens has no room for its image's {image_tokens}: give "
            "more tokens, a smaller image, or a smaller data.max_pixels"
        )
    row = geometry.row_shape([grid], prompt_tokens, sizes.vision)
    (bucket,) = geometry.tighten(geometry.plan_buckets([row], 1), [row])
    supervised = config.method == "sft"
    prompts_a_step = config.sft.batch_size if supervised else config.rl.prompts_per_step
    micro = config.sft.micro_batch if supervised else config.rl.micro_batch_prompts
    fed_height, fed_width = pixels.resized_size(height, width)
    return plan.Shape(
        image_size=(width, height),
        fed_size=(fed_width, fed_height),
        num_patches=math.prod(grid),
        num_image_tokens=image_tokens,
        prompt_tokens=prompt_tokens,
        bucket=bucket,
        prompts=prompts_a_step,
        micro_batch=micro or prompts_a_step,
        group_size=1 if supervised else config.rl.group_size,
        completion_tokens=config.rl.max_completion_tokens,
    )


def _text_tokens(template: str, sizes: model_config.ModelConfig) -> int:
    own = _stand_in()
    if sizes.image_token_id != own.image_token_id:
        return TEXT_TOKENS[template]
    text = prompts.TEMPLATES[template].user_text(_QUESTION, _SOURCE)
    return len(own.encode_prompt(text, [1])) - 1


def _reference(config: Any, placement: states.Placement) -> states.Params:
    """As `states.copy` makes it of the trainable parameters at step 0."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, config.model.frozen_dtype, sharding=leaf.sharding
        ),
        placement.trainable,
    )
