# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Many shapes of the reward in a toy of the grounding task, each against raw IoU; writes TOY.md.

    python benchmarks/replica/toy.py [--seeds=16] [--steps=200] [--only=a,b] [--jobs=1] [--out=FILE]

A shape is tried on every task at every learning rate, with all seeds at once as an axis of the
arrays, and is paired with raw IoU by seed: the same examples, warm start, order of prompts and
random numbers of the sampling. The shapes are the table in toy_shapes.py; --only names some of
them. Set OMP_NUM_THREADS=1 and OPENBLAS_NUM_THREADS=1: its matrices are small.
"""

import argparse
import concurrent.futures
import functools
import itertools
import multiprocessing
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import toy_page
import toy_policy
import toy_shapes
from jaxtyping import Float
from toy_page import MEASURES, Cell, Result
from toy_shapes import REFERENCE, SHAPES

from medloc_jax.cli.sweep_process import commit
from medloc_jax.evaluation import document, metrics
from medloc_jax.grounding import boxes

PAGE = Path(__file__).resolve().parent / "TOY.md"
TASKS = {"normal": 0.5, "hard": 1.0}  # name -> noise of the views
RATES = (3e-3, 6e-3)  # learning rates at the end of their warm-up; they fall to 0 in a line
WARM_UP = 10  # steps
PROMPTS, GROUP_SIZE = 16, 8  # a step


def train(
    task: toy_policy.Task, shape: toy_shapes.Shape, rate: float, steps: int
) -> tuple[toy_policy.Parameters, float]:
    """GRPO from the warm start.

    Returns:
        The trained parameters, and the share of groups without a signal.
    """
    num_seeds, num_examples = task.train.boxes_px.shape[:2]
    parameters = dict(task.start)
    adam = toy_policy.Adam(parameters)
    history = toy_shapes.History(num_seeds, num_examples, shape.criteria)
    no_signal = []
    for step in range(steps):
        rngs = [np.random.default_rng([toy_policy.TRAINING, seed, step]) for seed in task.seeds]
        drawn = PROMPTS * shape.times_prompts
        rows = np.stack([rng.permutation(num_examples)[:drawn] for rng in rngs])
        uniform = np.stack([rng.random((drawn, 4, GROUP_SIZE), np.float32) for rng in rngs])

        prompts = task.train.take(rows)
        tokens = toy_policy.sample(parameters, prompts.features, uniform)  # [S, B, 4, G]
        said = tokens.swapaxes(2, 3)  # [S, B, G, 4]
        ious = np.asarray(boxes.iou(said, prompts.boxes_px[:, :, None]))
        rewards = shape.reward(history.seen(ious, rows, step / steps))
        history.update(ious, rows)

        # All prompts unless more were drawn than are trained on: then those with a signal first.
        signal = toy_shapes.has_signal(rewards)
        kept = np.argsort(~signal, axis=1, kind="stable")[:, :PROMPTS, None]
        rewards, ious = (np.take_along_axis(array, kept, axis=1) for array in (rewards, ious))
        signal = np.take_along_axis(signal, kept[..., 0], axis=1)

        _, gradient = toy_policy.loss_and_gradient(
            parameters,
            task.start,
            np.take_along_axis(prompts.features, kept, axis=1),
            np.take_along_axis(tokens, kept[..., None], axis=1),
            shape.advantages(rewards, ious),
            shape.kl_weight,
        )
        scale = min(1.0, (step + 1) / WARM_UP) * (1 - step / steps)
        # Without any signal there is the KL term alone: such a step is skipped, as in training.
        adam.step(parameters, gradient, rate * scale, np.asarray(signal.any(axis=1)))
        no_signal.append(1 - signal.mean())
    return parameters, float(np.mean(no_signal)) if no_signal else 0.0


def evaluate(
    task: toy_policy.Task, parameters: toy_policy.Parameters
) -> dict[str, Float[np.ndarray, " S"]]:
    """Measures the greedy answers on the test examples."""
    said = toy_policy.greedy_boxes(parameters, task.test.features)
    ious = np.asarray(boxes.iou(said, task.test.boxes_px))
    return {
        measure: np.array([metrics.per_example(of_seed, measure).mean() for of_seed in ious])
        for measure in MEASURES
    }


# A process makes the warm starts of a task once.
cached_task = functools.lru_cache(maxsize=len(TASKS))(toy_policy.make_task)


def run_cell(cell: Cell, seeds: int, steps: int) -> Result:
    """Trains and evaluates one shape on one task at one learning rate, for all seeds."""
    task = cached_task(TASKS[cell.task], tuple(range(seeds)))
    started = time.perf_counter()
    if cell.shape:
        parameters, no_signal = train(task, SHAPES[cell.shape], cell.rate, steps)
    else:
        parameters, no_signal = task.start, 0.0
    return Result(evaluate(task, parameters), no_signal, time.perf_counter() - started)


def run_all(
    names: Sequence[str], seeds: int, steps: int, jobs: int
) -> Iterator[tuple[Cell, Result]]:
    """Runs every shape on every task at every rate, and looks at the warm starts."""
    cells = [Cell(task, 0.0, "") for task in TASKS]
    cells += [Cell(*parts) for parts in itertools.product(TASKS, RATES, names)]
    run = functools.partial(run_cell, seeds=seeds, steps=steps)
    if jobs == 1:
        yield from zip(cells, map(run, cells), strict=True)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context) as pool:
        yield from zip(cells, pool.map(run, cells), strict=True)


def _made_with(command: str, seeds: int, steps: int) -> list[str]:
    policy = toy_policy
    noises = ", ".join(f"{noise:g} on the {name} task" for name, noise in TASKS.items())
    return [
        f"Command: {command}",
        f"Commit: {commit() or 'unknown'} (+: with changes that were not committed)",
        f"Seeds: {', '.join(map(str, range(seeds)))}; each has its own examples, warm start and "
        "sampling",
        f"Python {platform.python_version()}, numpy {np.__version__}",
        f"Training: {steps} steps of {PROMPTS} prompts x {GROUP_SIZE} completions at temperature "
        f"{policy.TEMPERATURE}; KL weight {toy_shapes.KL_WEIGHT}; Adam, learning rate "
        f"{' or '.join(f'{rate:g}' for rate in RATES)}, up over {WARM_UP} steps and down to 0 in "
        "a line; gradients clipped at norm 1",
        f"Examples: {policy.TRAIN} to train on, {policy.TEST} to test; the test is greedy, once, "
        "after the last step",
        f"Noise of the view of a box: {noises}",
    ]


def main(arguments: Sequence[str]) -> None:
    """Runs the table and writes the page."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", default="", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, default=PAGE)
    given = parser.parse_args(arguments)
    if min(given.seeds, given.steps, given.jobs) < 1:
        raise ValueError("--seeds, --steps and --jobs must be 1 or more")
    asked = given.only.split(",") if given.only else list(SHAPES)
    unknown = [name for name in asked if name not in SHAPES]
    if unknown:
        raise ValueError(f"--only names {', '.join(unknown)}: choose of {', '.join(SHAPES)}")
    names = [name for name in SHAPES if name == REFERENCE or name in asked]
    results = {}
    for cell, result in run_all(names, given.seeds, given.steps, given.jobs):
        results[cell] = result
        print(
            f"{cell.task} {cell.rate:g} {cell.shape or 'warm start'}: "
            f"mAP {100 * result.measures['map'].mean():.1f} in {result.seconds:.1f} s",
            flush=True,
        )
    command = shlex.join(["python", "benchmarks/replica/toy.py", *arguments])
    blocks = toy_page.page(results, _made_with(command, given.seeds, given.steps))
    document.replace(given.out, document.to_markdown(blocks))
    print(given.out)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"error: {error}")
