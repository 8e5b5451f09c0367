# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Runs a tunix GRPO script and times its steps from outside; for tunix's own environment.

    PYTHON benchmarks/tunix_peer.py --script tunix_grpo_m.py --clock cpu --out tunix.json

The script is not changed: the learner that it makes gets a reward function that looks at the clock
and then calls the script's. From one reward to the next is one step: the update, then the next
rollout and the reference's log-probabilities. The first gap is dropped, since the update compiles
in it.
"""

import argparse
import importlib.metadata
import json
import platform
import runpy
import time
from pathlib import Path

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def main() -> None:
    """Runs the script, and writes the samples."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--script", required=True)
    parser.add_argument("--clock", default="cpu", choices=sorted(CLOCKS))
    parser.add_argument("--out", required=True)
    given = parser.parse_args()

    from tunix.rl.grpo import grpo_learner

    now, stamps, lengths = CLOCKS[given.clock], [], []
    plain = grpo_learner.GRPOLearner

    class Watched(plain):
        """The learner, whose rewards are seen."""

        def __init__(self, *args, reward_fns, **options):
            def watched(prompts, completions, **more):
                stamps.append(now())
                lengths.append([len(one.split()) for one in completions])
                return reward_fns(prompts, completions, **more)

            super().__init__(*args, reward_fns=watched, **options)

    grpo_learner.GRPOLearner = Watched
    runpy.run_path(given.script, run_name="__main__")
    gaps = [after - before for before, after in zip(stamps, stamps[1:], strict=False)]
    if len(gaps) < 2:
        raise SystemExit(f"{given.script} called its reward {len(stamps)} times: 3 are needed")
    versions = {"python": platform.python_version()}
    for name in ("google-tunix", "jax", "jaxlib", "flax", "optax"):
        versions[name] = importlib.metadata.version(name)
    document = {
        "framework": "tunix",
        "versions": versions,
        "first_gap_s": round(gaps[0], 3),
        "rows": len(lengths[0]),
        "mean_length": sum(map(sum, lengths)) / sum(map(len, lengths)),
        "results": {"tunix_step": {"samples_s": [round(gap, 4) for gap in gaps[1:]]}},
    }
    Path(given.out).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
