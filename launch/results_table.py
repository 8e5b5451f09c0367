# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The demo's table in README.md, from the files of its runs; no number is typed by hand.

benchmarks/replica/write.py --readme puts it there; by itself, this prints it:

python launch/results_table.py DEMO_RUNS...

DEMO_RUNS are the folders of `make demo` with several seeds.
"""

import json
import sys
from pathlib import Path


def read_run(workdir: Path) -> dict:
    """What one GRPO run reached: schedule, seed, test metrics before and after, thresholds."""
    config = json.loads((workdir / "config.json").read_text())
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]

    def test(step: int) -> dict:
        return json.loads((workdir / "eval" / f"test-{step}" / "metrics.json").read_text())

    thresholds = [line["curriculum/threshold"] for line in lines if "curriculum/threshold" in line]
    return {
        "schedule": config["curriculum"]["schedule"],
        "seed": config["seed"],
        "steps": config["num_steps"],
        "before": test(0),
        "after": test(config["num_steps"]),
        "thresholds": list(dict.fromkeys(thresholds)),
    }


def climb(run: dict) -> str:
    """The thresholds a run went through."""
    return " → ".join(f"{threshold:.2f}" for threshold in run["thresholds"])


def demo_table(folders: list[Path]) -> str:
    """The table of the demo: SFT start and GRPO of each seed."""
    runs = [read_run(folder / "grpo") for folder in folders]
    lines = [
        f"The demo: synthetic lesions, {runs[0]['after']['num_examples']} held-out images, SFT and "
        "GRPO anew for each seed.",
        "",
        "| seed | A@0.5 before → after | A@0.8 | mAP | floor A@0.5 | threshold |",
        "|---|---|---|---|---|---|",
    ]
    for run in runs:
        pairs = [
            f"{100 * run['before'][name]:.1f} → {100 * run['after'][name]:.1f}"
            for name in ("a50", "a80", "map")
        ]
        floor = 100 * run["after"]["floor"]["a50"]
        lines.append(f"| {run['seed']} | {' | '.join(pairs)} | {floor:.1f} | {climb(run)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(demo_table([Path(folder) for folder in sys.argv[1:]]))
