# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Writes the demo's summary.json and prints what was reached: before, after, and the floor.

python launch/demo_summary.py RUNS     # the folder that holds sft/ and grpo/
"""

import json
import sys
from pathlib import Path


def main(runs: Path) -> None:
    """Reads the files of both runs; the SFT start is the GRPO run's evaluation at step 0."""
    workdir = runs / "grpo"
    config = json.loads((workdir / "config.json").read_text())
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    split = config["eval"]["final_split"]

    def read(step: int) -> dict:
        return json.loads((workdir / "eval" / f"{split}-{step}" / "metrics.json").read_text())

    before, after = read(0), read(config["num_steps"])
    thresholds = [line["curriculum/threshold"] for line in lines if "curriculum/threshold" in line]
    # From the first configuration written to the last checkpoint: starting Python is not in it.
    files = [runs / "sft" / "data" / "manifest.jsonl", workdir / "metrics.jsonl"]
    seconds = files[1].stat().st_mtime - files[0].stat().st_mtime
    summary = {
        "sft": before,
        "grpo": after,
        "floor": after["floor"],
        "thresholds": list(dict.fromkeys(thresholds)),
        "seconds": seconds,
        "seed": config["seed"],
    }
    out = runs / "summary.json"
    out.write_text(json.dumps(summary, indent=2) + "\n")

    print(f"\n{'':24}{'A@0.5':>8}{'A@0.8':>8}{'mAP':>8}{'mIoU':>8}")
    rows = {"constant box (floor)": summary["floor"], "after SFT": before, "after GRPO": after}
    for name, row in rows.items():
        print(f"{name:24}" + "".join(f"{100 * row[k]:8.1f}" for k in ("a50", "a80", "map", "miou")))
    print(f"\nthreshold: {' -> '.join(f'{t:.2f}' for t in summary['thresholds'])}")
    print(f"{after['num_examples']} held-out images, seed {config['seed']}, {seconds:.0f} s")
    print(f"pictures: {workdir / 'report' / 'report.html'}\nsummary:  {out}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
