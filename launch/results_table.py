# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Rewrites the results in README.md from the files of runs; no number is typed by hand.

python launch/results_table.py HAM_RUNS DEMO_RUNS...

HAM_RUNS is the folder that launch/ham10000.sh filled, DEMO_RUNS those of `make demo` with several
seeds.
"""

import json
import statistics
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"
MARKS = ("<!-- results -->\n", "<!-- end of results -->\n")
MEASURES = ("a50", "a80", "map", "miou")


def read_run(workdir: Path) -> dict:
    """What one GRPO run reached: schedule, seed, test metrics before and after, thresholds."""
    config = json.loads((workdir / "config.json").read_text())
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]

    def test(step: int) -> dict:
        return json.loads((workdir / "eval" / f"test-{step}" / "metrics.json").read_text())

    thresholds = [line["curriculum/threshold"] for line in lines if "curriculum/threshold" in line]
    trained = [line for line in lines if "group/zero_advantage_rate" in line]
    return {
        "schedule": config["curriculum"]["schedule"],
        "seed": config["seed"],
        "steps": config["num_steps"],
        "before": test(0),
        "after": test(config["num_steps"]),
        "thresholds": list(dict.fromkeys(thresholds)),
        "no_signal": statistics.mean(line["group/zero_advantage_rate"] for line in trained),
    }


def row(name: str, tests: list[dict], extra: str) -> str:
    """One line of the table: means over seeds in per cent, with the sample deviation."""
    cells = []
    for measure in MEASURES:
        values = [100 * test[measure] for test in tests]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.1f}{spread}")
    return f"| {name} | {len(tests)} | {' | '.join(cells)} | {extra} |"


def climb(run: dict) -> str:
    """The thresholds a run went through."""
    return " → ".join(f"{threshold:.2f}" for threshold in run["thresholds"])


def ham_table(folder: Path) -> str:
    """The table on real dermoscopy."""
    runs = [read_run(path.parent) for path in sorted(folder.glob("*-4?/config.json"))]
    before, count = runs[0]["before"], runs[0]["after"]["num_examples"]
    lines = [
        f"Real dermoscopy: HAM10000 at 200 x 150 px, {count} test images of lesions that training "
        f"did not see, a model of 0.9 M parameters from random weights, {runs[0]['steps']} GRPO "
        "steps after one shared SFT warm start whose boxes are 1.5 times too large. Greedy "
        "decoding at the last step, per cent; ± is the sample standard deviation over GRPO seeds.",
        "",
        "| | seeds | A@0.5 | A@0.8 | mAP | mIoU | threshold; groups without signal |",
        "|---|---|---|---|---|---|---|",
        row("always the median training box", [before["floor"]], ""),
        row("after the SFT warm start", [before], ""),
    ]
    for schedule in ("medloc", "fixed", "raw_iou", "v_triune"):
        chosen = [run for run in runs if run["schedule"] == schedule]
        if chosen:
            climbs = "; ".join(dict.fromkeys(climb(run) for run in chosen))
            silent = 100 * statistics.mean(run["no_signal"] for run in chosen)
            tests = [run["after"] for run in chosen]
            lines.append(row(f"GRPO, {schedule}", tests, f"{climbs}; {silent:.0f} %"))
    return "\n".join(lines)


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


def main(arguments: list[str]) -> None:
    """Puts both tables between the marks in README.md."""
    ham, *demos = map(Path, arguments)
    text = README.read_text()
    head, rest = text.split(MARKS[0])
    tail = rest.split(MARKS[1])[1]
    tables = f"{ham_table(ham)}\n\n{demo_table(demos)}\n"
    README.write_text(head + MARKS[0] + tables + MARKS[1] + tail)


if __name__ == "__main__":
    main(sys.argv[1:])
