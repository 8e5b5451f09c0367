# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Every claim of MedLoc-R1, what would decide it, and the verdict of finished runs.

python benchmarks/replica/claims.py RUNS...

RUNS are folders of `medloc sweep`: those of configs/sweeps/replica.py and of
configs/sweeps/ablations.py; any of them may be absent. What stands between the marks in CLAIMS.md
is written anew. The rules are in verdicts.py.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from claims_page import ABLATIONS, HEAD, MARKS, REPLICA, Claim, blocks, put
from readings import accuracy, by_run, early, no_drop, steady, with_signal
from verdicts import MIN_FAILURES, Better, Cheap, Close, Imprecise, read

from medloc_jax.evaluation import document

PAGE = Path(__file__).resolve().parents[2] / "CLAIMS.md"

ALL = tuple(accuracy(measure) for measure in ("a50", "a80", "map"))
MAP = (accuracy("map"),)
GRPO = ("fixed", "raw_iou", "v_triune", "medground_released")
BASELINES = ("zero_shot", "sft", *GRPO)
UNITS = {"a window entry is a step": "step", "a window entry is a prompt": "prompt"}
POINTS = "a difference of 1 point counts"


CLAIMS = (
    Claim(
        "denser reward",
        "The reward is denser than that of a fixed threshold: fewer groups are without a signal.",
        "Section 3.1.2, Figure 1",
        "share of groups with a signal, mean over the run; 5 points count",
        REPLICA,
        {
            title: Better("medloc", (name,), (by_run("groups with a signal", 0.05, with_signal),))
            for title, name in {
                "against fixed 0.5": "fixed",
                "against fixed 0.8": "fixed_80",
                "against V-Triune": "v_triune",
                "against raw IoU": "raw_iou",
            }.items()
        },
        beside=(
            "Dividing by the group's deviation gives raw IoU a signal in nearly every group, "
            "however small the differences are: a dense reward is no achievement of its own.",
        ),
    ),
    Claim(
        "more stable training",
        "Training is more stable than with the other rewards.",
        "the text; Figures 1 and 3 draw rewards and accuracy over steps",
        "jitter of the gradient's norm and of the sampled IoU (a tenth counts); the largest fall "
        "of val mAP between evaluations (1 point counts)",
        REPLICA,
        {
            title: Better("medloc", ("fixed", "raw_iou", "v_triune"), (reading,))
            for title, reading in {
                "gradient norm": by_run(
                    "steadiness", 0.095, steady("optimizer/grad_norm"), ratio=True
                ),
                "sampled IoU": by_run("steadiness", 0.095, steady("iou/raw_mean"), ratio=True),
                "largest fall": by_run("val mAP kept", 0.01, no_drop),
            }.items()
        },
        beside=("The deviation over seeds, which no pair of runs has, is in RESULTS.md.",),
    ),
    Claim(
        "faster convergence",
        "It converges faster than the other rewards.",
        "the text; Figure 3 draws accuracy over steps",
        f"mean val mAP over the course of training, from the first evaluation on; {POINTS}",
        REPLICA,
        {"": Better("medloc", GRPO, (by_run("val mAP over the course", 0.01, early),))},
        beside=("RESULTS.md has the steps to given accuracies, as coarse as evaluations are.",),
    ),
    Claim(
        "beats each baseline",
        "It beats every baseline in every metric.",
        'Table 1; "consistently outperforms all baselines under all evaluation metrics"',
        f"A@0.5, A@0.8 and mAP on test at the last step; {POINTS}",
        REPLICA,
        {"": Better("medloc", BASELINES, ALL)},
        beside=(
            "BoxMed-RL is raw IoU with a prompt of its own; the tiny base reads one prompt alone, "
            "so that raw IoU stands for both.",
            "The paper's own Table 1 has HAM10000 linear (A@0.8 55.67, mAP 60.86) below SFT, raw "
            "IoU and V-Triune; HAM10000 cosine, HEEL linear and TN3K linear lose to SFT.",
            "A@0.5 on HAM10000 is 94.46 in Tables 1 and 7, 94.96 in Tables 2 to 4, 94.26 in "
            'Table 6; the 93.96 of "MedLoc-3B (Qwen)" in Table 8 is the cosine row of Table 1.',
            "TN3K A@0.8 against raw IoU: +6.72 is printed, 29.60 - 21.88 is 7.72.",
            "Five of its stars cannot be: with three seeds a paired test on the printed deviations "
            "does not reach them (HAM10000 against raw IoU, all three; HEEL against V-Triune; TN3K "
            "against raw IoU).",
            "Its VLM-R1 is that of before 2025-03-24 (fixed 0.5); since then VLM-R1 is raw IoU.",
        ),
    ),
    Claim(
        "scales from 3B to 32B",
        "The gains are consistent across 3B, 7B and 32B.",
        'the text: "consistent gains across 3B, 7B, and 32B"',
        "A@0.5, A@0.8 and mAP by size",
        why_not="it needs the published weights and accelerators: "
        "configs/sweeps/model_size.py lists the runs",
        beside=(
            "The paper's TN3K A@0.8 falls with size: 29.60, 27.02, 27.52; HEEL A@0.5 is 96.34, "
            "then 96.27.",
        ),
    ),
    Claim(
        "forms of the step size are close",
        "Linear and cosine step sizes end close to the piecewise one.",
        'Tables 1 and 4, Figure 5: "similar final performance"',
        "A@0.5, A@0.8 and mAP on test: the intervals lie within 2 points of piecewise",
        REPLICA,
        {
            "": Close(
                "medloc",
                ("medloc_linear", "medloc_cosine"),
                tuple(accuracy(measure, 0.02) for measure in ("a50", "a80", "map")),
            )
        },
        beside=(
            "The paper's HAM10000 mAP is 60.86 for linear and 73.91 for piecewise. HEEL A@0.8 of "
            "cosine, 47.67, is above piecewise, 47.35.",
            'Eq. 12 is geometric; the text says that linear tightens "at a roughly constant pace".',
        ),
    ),
    Claim(
        "all three criteria are needed",
        "Without any one of reward, margin and stability it gets worse.",
        "Table 2",
        f"mAP on test against each row that lacks one; {POINTS}",
        ABLATIONS,
        {
            title: Better(
                "default" if unit == "step" else "all_prompt",
                tuple(f"no_{name}_{unit}" for name in ("reward", "margin", "stability")),
                MAP,
            )
            for title, unit in UNITS.items()
        },
        beside=(
            'Single criteria "fail to match" pairs, says the text; in Table 2 all three single '
            "ones beat the pair without the reward, 82.33.",
            "With the mean of a step's prompts as a window entry the stability check cannot bind: "
            "its row is the full method by construction. The paper does not say what an entry is.",
            "Figure 2's caption calls m the mean IoU; Eq. 8 has a margin.",
        ),
    ),
    Claim(
        "half refresh is best",
        "Keeping half of the window after an update is better than a full or a quarter refresh.",
        "Figure 7",
        f"mAP on test; {POINTS}. Keeping all is ours",
        ABLATIONS,
        {"": Better("default", ("refresh_none", "refresh_quarter", "refresh_full"), MAP)},
    ),
    Claim(
        "N = 30 is best",
        "A window of 30 steps is better than shorter and longer ones.",
        "Figure 7",
        f"mAP on test; {POINTS}. The grid is ours",
        ABLATIONS,
        {"": Better("default", tuple(f"window_{n:03d}" for n in (5, 10, 20, 60, 120)), MAP)},
        beside=("The best window goes with the number of steps, which is smaller here.",),
    ),
    Claim(
        "staged P and S are better than fixed",
        "Criteria that change with the threshold are better than one regime throughout.",
        "Table 3, Appendix B",
        f"mAP on test; {POINTS}",
        ABLATIONS,
        {"": Better("default", ("conservative", "moderate", "aggressive"), MAP)},
        beside=(
            'Appendix B calls S = 0.40 "a small stability margin", though it is the loosest.',
            "Eq. 11 puts the boundaries at 0.55 and 0.75, Appendix B at 0.60, 0.75 and 0.80; the "
            "ladder is the same.",
            "In Table 6, TN3K row 3 (66.31) beats the default (66.18).",
        ),
    ),
    Claim(
        "G = 8",
        "Groups of 8 are the best choice.",
        "Table 7, right",
        f"mAP on test after as many steps; {POINTS}",
        ABLATIONS,
        {
            "": Better(
                "default",
                tuple(f"medloc_g{size}" for size in (4, 6, 10)),
                MAP,
                allow=("budget",),
            )
        },
        beside=("A group of 10 is a quarter more completions a step, and of 4 half as many.",),
    ),
    Claim(
        "negligible cost",
        "The schedule costs next to nothing.",
        "the text; we do not know where",
        "processor time of schedule.update, timed at the run's batch and group, against the run's "
        "own median step; under 1 % of every seed's step counts as negligible",
        REPLICA,
        {"": Cheap("medloc", 0.01)},
        beside=(
            "A step of a 3B model takes longer and the schedule does not: benchmarks/NOTES.md has "
            "0.27 ms an update at 8 prompts and groups of 8.",
        ),
    ),
    Claim(
        "better explanations",
        "The reasoning text gets better, too.",
        "Figure 4 shows examples",
        "people's judgement of the text; we can only tell its share, its length and whether the "
        "box it names is the one that is answered",
        why_not="the tiny model answers with a box and no reasoning; a run of "
        "configs/grpo/ham10000_3b.py and the reasoning table of its report would tell the "
        "little that can be counted",
    ),
    Claim(
        "failures are imprecise boxes",
        "What still fails are imprecise boxes rather than wrong targets.",
        "Figure 8",
        "of the answers below IoU 0.5: too large, too small or shifted, less those centred off the "
        f"target, by the rule of medloc_jax/evaluation/failures.py; 10 points count, and a run "
        f"needs {MIN_FAILURES} failures",
        REPLICA,
        {"": Imprecise("medloc", 0.10)},
        beside=("The paper gives no rule, only pictures; one lesion an image leaves few targets.",),
    ),
)


def main(arguments: Sequence[str]) -> None:
    """Writes CLAIMS.md from the folders of sweeps."""
    sweeps = [sweep for folder in arguments for sweep in read(Path(folder))]
    put(PAGE, MARKS, document.to_markdown(blocks(CLAIMS, sweeps)), HEAD)
    print(PAGE)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"error: {error}")
