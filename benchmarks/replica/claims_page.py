# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""CLAIMS.md from claims and sweeps: a table of verdicts, and a section a claim with its numbers."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from verdicts import LEVEL, MIN_PAIRS, NO_RUN, UNTESTABLE, Finding, Rule, Sweep

from medloc_jax.evaluation import document
from medloc_jax.evaluation.document import Block, Bullets, Heading, Table, Text

MARKS = ("<!-- claims -->\n", "<!-- end of claims -->\n")
REPLICA, ABLATIONS = "configs/sweeps/replica.py", "configs/sweeps/ablations.py"
WORKDIRS = {REPLICA: "runs/replica/DATA", ABLATIONS: "runs/replica/ablations-DATA"}


@dataclasses.dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        name: short, unique.
        text: the claim in a sentence.
        where: it is made, as far as we know.
        metric: that decides it.
        sweep: the file whose runs test it at the size of a laptop; "": none does.
        cases: what is judged by itself -> its rule.
        why_not: it cannot be tested here, and what could.
        beside: where the paper contradicts itself on it, or what else a reader should know.
    """

    name: str
    text: str
    where: str
    metric: str
    sweep: str = ""
    cases: Mapping[str, Rule] = dataclasses.field(default_factory=dict)
    why_not: str = ""
    beside: tuple[str, ...] = ()


def findings(claim: Claim, sweeps: Sequence[Sweep]) -> list[tuple[str, Finding, Sweep | None]]:
    """The verdicts on a claim: (data set and case, finding, the sweep), one at the least."""
    if claim.why_not:
        return [("", Finding(UNTESTABLE, claim.why_not), None)]
    found = []
    for sweep in sweeps:
        if sweep.file != claim.sweep:
            continue
        for case, rule in claim.cases.items():
            label = f"{sweep.data_set}, {case}" if case else sweep.data_set
            found.append((label, rule.judge(sweep), sweep))
    return found or [("", Finding(NO_RUN), None)]


def command(sweep: str) -> str:
    """What runs a sweep on data set DATA."""
    return f"medloc sweep --config={sweep}:DATA --workdir={WORKDIRS[sweep]} --jobs=2"


def blocks(claims: Sequence[Claim], sweeps: Sequence[Sweep]) -> list[Block]:
    """Everything between the marks."""
    judged = [(claim, findings(claim, sweeps)) for claim in claims]
    made: list[Block] = [
        Heading("Verdicts"),
        Table(
            ["", "claim", "verdict"],
            [
                [str(number), claim.text, "; ".join(_verdict(*one[:2]) for one in found)]
                for number, (claim, found) in enumerate(judged, start=1)
            ],
        ),
        Heading("Runs"),
        *_runs(sweeps),
    ]
    for number, (claim, found) in enumerate(judged, start=1):
        made += _section(number, claim, found)
    return made


def _verdict(label: str, finding: Finding) -> str:
    return f"{label}: {finding.verdict}" if label else finding.verdict


def _runs(sweeps: Sequence[Sweep]) -> list[Block]:
    if not sweeps:
        return [Text("None yet: no verdict has been taken from a run.")]
    rows = [
        [
            str(sweep.folder),
            sweep.data_set,
            sweep.file,
            ", ".join(commit[:7] + commit[40:] for commit in sweep.commits),
            str(sum(len(one.finals) for one in sweep.arms.values())),
            str(len(sweep.lacking)),
        ]
        for sweep in sweeps
    ]
    header = ["folder", "data", "sweep", "commit", "finished runs", "lacking"]
    return [Table(header, rows), Text("A commit with + had changes that were not committed.")]


def _section(
    number: int, claim: Claim, found: Sequence[tuple[str, Finding, Sweep | None]]
) -> list[Block]:
    facts = [f"Made: {claim.where}", f"Decided by: {claim.metric}"]
    if claim.sweep:
        arms = dict.fromkeys(name for rule in claim.cases.values() for name in rule.arms)
        facts += [f"Runs: {command(claim.sweep)}", f"Arms: {', '.join(arms)}"]
    facts += [f"Beside it: {line}" for line in claim.beside]
    made: list[Block] = [Heading(f"{number}. {claim.name}"), Text(claim.text), Bullets(facts)]
    for label, finding, _ in found:
        why = f" ({finding.why})" if finding.why else ""
        made.append(Text(f"{_verdict(label, finding)}{why}."))
        if finding.parts:
            header = ["against", "reading", "effect", "over seeds", "over examples"]
            rows = [
                [part.against, part.reading, part.effect, part.over_seeds, part.over_examples]
                + [str(part.seeds), part.verdict]
                for part in finding.parts
            ]
            made.append(Table([*header, "seeds", "part"], rows))
    folders = dict.fromkeys(str(sweep.folder) for _, _, sweep in found if sweep)
    return [*made, Text(f"From {', '.join(folders)}.")] if folders else made


HEAD = f"""# Claims of MedLoc-R1, and what our runs say

Each claim of the paper (arXiv 2603.28120v1), where it is made, what decides it, and the verdict
of finished runs at the size of a laptop: a model of about a million parameters from a short warm
start, not a pretrained one of 3 billion. A verdict speaks of that size alone.

- **holds**: the difference is as large as what counts, and its {100 * LEVEL:g} % intervals over
  seeds (paired, Student's t) and over test examples (paired bootstrap) are above 0. What is read
  from a run's own log has no examples: there, the interval over seeds alone.
- **does not hold**: the interval over seeds excludes a difference that counts (for a claim of
  several parts: of one part, at a level corrected for their number).
- **not decided**: neither, or fewer than {MIN_PAIRS} seeds. One seed never decides anything.
- **no run yet**: nothing finished that could tell. **not testable here**: no laptop can.

Differences are ours less theirs, in points unless it says %, larger being better for the claim.
The rules are in `benchmarks/replica/verdicts.py`, and `benchmarks/replica/README.md` tells how to
run it all. `python benchmarks/replica/claims.py RUNS...` writes what follows.

"""


def put(page: Path, marks: tuple[str, str], body: str, head: str = "") -> None:
    """Writes a text between two marks of a page, and leaves the rest as it is.

    Args:
        page: the file; where it is absent, `head` and the marks make it.
        marks: the lines before and after.
        body: the text between them.
        head: of a new page.

    Raises:
        ValueError: a mark is missing in the page, or there twice.
    """
    old = page.read_text(encoding="utf-8") if page.is_file() else head + "".join(marks)
    if any(old.count(mark) != 1 for mark in marks):
        raise ValueError(f"{page}: the marks {marks[0].strip()} and {marks[1].strip()}: one each")
    before, rest = old.split(marks[0])
    document.replace(page, before + marks[0] + body.strip("\n") + "\n" + marks[1]
                     + rest.split(marks[1])[1])  # fmt: skip
