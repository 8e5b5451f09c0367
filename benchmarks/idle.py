# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What share of a GRPO step the device waits for the host, and what the schedule costs.

    python benchmarks/idle.py [--config=configs/demo.py] [--steps=40] [--config.FIELD=VALUE ...]

Trains random weights with the real loop, on-policy and one step ahead, with and without a
reference, and prints the phases of `metrics.jsonl` (medians after the first five steps). A phase
begins when its program is sent and the one before it has ended; what lies between is waiting:
`data` before sampling, `score` before the update. On a CPU the programs run on threads of the
process, so that the host's work shares the cores with them: waiting is seen, slowing down is not.
An end is noted when Python's lock is free: the switch interval is set to 0.2 ms for that.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from medloc_jax.cli import job as jobs
from medloc_jax.curriculum import make_schedule
from medloc_jax.training import grpo

PHASES = ("data", "sample", "score", "reference", "update")
CASES = {
    "on-policy": {},
    "on-policy, kl_weight 0": {"rl.kl_weight": 0.0},
    "one step ahead": {"rl.sample_ahead": True},
    "one step ahead, kl_weight 0": {"rl.sample_ahead": True, "rl.kl_weight": 0.0},
}
WARM_UP = 5


def main() -> None:
    """Runs the cases and prints two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/demo.py")
    parser.add_argument("--steps", type=int, default=40)
    given, overrides = parser.parse_known_args()
    sys.setswitchinterval(2e-4)
    jobs.use_compilation_cache()
    print("| case | step, ms | " + " | ".join(f"{name}, ms" for name in PHASES) + " | idle |")
    print("|---" * (len(PHASES) + 3) + "|")
    for name, changes in CASES.items():
        seconds = _train(given.config, given.steps, overrides, changes)
        step = sum(seconds[phase] for phase in PHASES)
        cells = " | ".join(f"{1e3 * seconds[phase]:.1f}" for phase in PHASES)
        print(f"| {name} | {1e3 * step:.0f} | {cells} | {seconds['idle']:.2%} |", flush=True)
    print()
    for prompts, group_size in ((8, 8), (64, 16)):
        print(
            f"schedule.update and .threshold, window 30, B = {prompts}, G = {group_size}: "
            f"{1e6 * schedule_seconds(prompts, group_size):.0f} us of processor time a step"
        )


def schedule_seconds(prompts: int, group_size: int, rounds: int = 300) -> float:
    """Processor seconds of the schedule a step, its window full; the median of five."""
    rng = np.random.default_rng(0)
    ious = rng.uniform(size=(64, prompts, group_size)).astype(np.float32)
    taken = []
    for _ in range(5):
        # Nothing is ever good enough, so that every criterion is looked at with a full window.
        schedule = make_schedule("medloc", num_steps=1000, window=30, margin=2.0)
        for step in range(40):
            schedule.update(ious[step])
        start = time.process_time()
        for step in range(rounds):
            _ = schedule.threshold
            schedule.update(ious[step % 64])
        taken.append((time.process_time() - start) / rounds)
    return statistics.median(taken)


def _train(config: str, steps: int, overrides: list[str], changes: dict) -> dict[str, float]:
    """Medians of a step's phases, in seconds, and of the idle share."""
    settings = {
        "num_steps": steps,
        "eval.every": 0,
        "eval.at_start": False,
        "eval.final_split": "",
        "eval.num_examples": 8,
        "checkpoint.every": 10 * steps,
        "log.rollouts_every": 0,
    }
    argv = [f"--config={config}", *(f"--config.{k}={v}" for k, v in (settings | changes).items())]
    values = jobs.parse([*argv, *overrides], "train", lambda flag_values: None)
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        workdir.mkdir()
        jobs.resolve(values.config)
        grpo.train(jobs.open_job(values.config, workdir))
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
    jax.clear_caches()
    rows = [json.loads(line) for line in lines][WARM_UP:-1]  # the last one is evaluated and saved
    median = lambda name: statistics.median(row.get(name, 0.0) for row in rows)  # noqa: E731
    seconds = {phase: median(f"speed/{phase}_seconds") for phase in PHASES}
    return seconds | {"idle": median("speed/device_idle_share")}


if __name__ == "__main__":
    main()
