# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""RESULTS.md from results.json: a pure function of what was measured, and the goals."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import bench_plots


class Goal(NamedTuple):
    """A ratio to reach.

    Attributes:
        section: of results.json.
        item: in it.
        against: the side whose seconds are divided by ours.
        least: the goal.
        probe: what a throwaway JAX model of the same maths reached; None where there was none.
        what: for the reader.
    """

    section: str
    item: str
    against: str
    least: float
    probe: float | None
    what: str


GOALS = (
    Goal("short", "generate_b8", "transformers", 4.5, 3.8, "generate, 8 rows"),
    Goal("short", "generate_b32", "transformers", 4.0, 3.25, "generate, 32 rows"),
    Goal("short", "logprob_b8", "transformers", 1.4, 1.29, "log-probabilities, 8 rows"),
    Goal("short", "train_step_b8", "transformers", 1.2, 0.93, "train step, 8 rows, no sharing"),
    Goal("short", "grpo_step_g8p4", "transformers", 3.5, 2.73, "GRPO step"),
    Goal("short", "grpo_step_g8p4", "TRL", 4.0, 3.14, "GRPO step"),
    Goal("long", "grpo_step_g8p2", "transformers", 5.0, 4.2, "GRPO step, 504 px"),
    Goal("unshared", "grpo_step_g8p4", "transformers", 1.2, 1.05, "GRPO step, sharing off"),
    Goal("tunix", "tunix_step", "tunix", 3.0, None, "GRPO step on text"),
)

COMPARED = {
    "short": (
        "224 px",
        "Tiny preset (text 4 x 256, vision 4 x 128, vocabulary 2048, 4.7 M parameters, all of them "
        "trained), 224-px images (64 tokens), prompts of 98 tokens, 64 new tokens, lengths forced; "
        "a GRPO step is 4 prompts of 8 completions with a reference and AdamW.",
    ),
    "long": (
        "504 px",
        "The same with 504-px images (324 tokens) and 100 tokens of text, 2 prompts of 8.",
    ),
    "unshared": (
        "224 px, sharing off",
        "The GRPO step with our group forward given up: 32 rows, each with its own prompt, as the "
        "peer has them. A slow core could hide behind sharing; here it cannot.",
    ),
    "tunix": (
        "tunix, text only",
        "4 layers of width 256, vocabulary 4096, 4 prompts of 128 tokens, 8 completions of 128, a "
        "reference, AdamW. What is not the same on the two sides stands in "
        "`benchmarks/tunix_item.py`.",
    ),
}

SWEPT = {
    "group": ("Group size", "completions per prompt", "4 prompts of 98 tokens (224 px), 64 new."),
    "prompt": ("Prompt length", "prompt tokens", "2 prompts with a 56-px image, groups of 8."),
    "image": ("Image size", "image side, px", "1 prompt, 32 tokens of text, a group of 8."),
    "batch": ("Batch", "prompts per step", "224 px, groups of 8, 64 new tokens."),
}
PROGRAMS = ("sample_groups", "reference_logprobs", "grpo_step")


def dump(results: Mapping[str, Any]) -> str:
    """JSON with one line for each of a section's fields: small, and its changes can be read."""
    sections = []
    for name, section in results.items():
        fields = ",\n".join(f"  {json.dumps(k)}: {_field(v)}" for k, v in section.items())
        sections.append(f" {json.dumps(name)}: {{\n{fields}\n }}")
    return "{\n" + ",\n".join(sections) + "\n}\n"


def _field(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(f"   {json.dumps(one)}" for one in value) + "\n  ]"
    return json.dumps(value)


def median(rounds: Sequence[Sequence[float]]) -> float:
    """Of the samples of all rounds.

    Raises:
        ValueError: there are none.
    """
    samples = [x for one in rounds for x in one]
    if not samples:
        raise ValueError("an item without samples: measure its section again")
    return statistics.median(samples)


def ratio(item: Mapping[str, Any], against: str) -> tuple[float, list[float]] | None:
    """The peer's seconds over ours: of the medians, and round by round; None without the peer."""
    if against not in item or "ours" not in item:
        return None
    each = [
        median([theirs]) / median([own])
        for theirs, own in zip(item[against], item["ours"], strict=True)
    ]
    return median(item[against]) / median(item["ours"]), each


def render(results: Mapping[str, Any]) -> str:
    """The whole of RESULTS.md."""
    parts = [
        "# Benchmarks",
        "`make bench` measures everything below and writes this file; `make bench BENCH='--only "
        "short'` measures one section again, `--quick` takes a look. It is rendered from "
        "`benchmarks/results.json`, which holds every sample. What was tried and did not pay "
        "stands in `benchmarks/NOTES.md`.",
        "One thread (each side alone on one core), the clock of the process's CPU seconds, "
        "float32. A ratio is the peer's median over ours, above 1 where we are faster; sides run "
        "in turn, and the spread of a ratio is over rounds, that of a time from the fastest to the "
        "slowest sample.",
        _goals(results),
    ]
    for section, (title, about) in COMPARED.items():
        if section in results:
            parts.append(f"## {title}\n\n{about}\n\n{_compared(results[section])}")
    for section, (title, unit, about) in SWEPT.items():
        if section in results:
            parts.append(_swept(section, title, unit, about, results[section]))
    if "depth" in results:
        parts.append(_depth(results["depth"]))
    if "devices" in results:
        parts.append(_devices(results["devices"]))
    if "group_forward" in results:
        parts.append(_group_forward(results["group_forward"]))
    return "\n\n".join(parts) + "\n"


def write(results: Mapping[str, Any], path: Path) -> None:
    """Writes RESULTS.md and its pictures beside it."""
    path.write_text(render(results), encoding="utf-8")
    bench_plots.draw(results, path.parent)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _goals(results: Mapping[str, Any]) -> str:
    rows = []
    for goal in GOALS:
        item = results.get(goal.section, {}).get("items", {}).get(goal.item, {})
        found = ratio(item, goal.against)
        probe = "" if goal.probe is None else f"{goal.probe:g}"
        name = f"{goal.what} (`{goal.item}`)"
        if found is None:
            own = _times(item["ours"]) if "ours" in item else "not run"
            rows.append([name, goal.against, "not run", own, "", "", f"{goal.least:g}", "", probe])
            continue
        value, each = found
        met = value >= goal.least
        ahead = "" if goal.probe is None else (" (ahead)" if value > goal.probe else " (behind)")
        rows.append(
            [
                name,
                goal.against,
                _times(item[goal.against]),
                _times(item["ours"]),
                f"**{value:.2f}**",
                _span(each),
                f"{goal.least:g}",
                "yes" if met else "no, see NOTES.md",
                probe + ahead,
            ]
        )
    head = ["what", "peer", "peer, ms", "ours, ms", "ratio", "rounds", "goal", "met", "probe"]
    said = (
        '"probe" is what a throwaway JAX model of the same maths reached on the same kind of '
        "machine, and whether the real path is ahead of it."
    )
    return f"## Goals\n\n{table(head, rows)}\n\n{said}"


def _times(rounds: Sequence[Sequence[float]]) -> str:
    samples = [x for one in rounds for x in one]
    low, high = 1e3 * min(samples), 1e3 * max(samples)
    return f"{_ms(1e3 * median(rounds))} [{_ms(low)} to {_ms(high)}]"


def _ms(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _span(values: Sequence[float]) -> str:
    if len(values) == 1:
        return "one"
    return f"{min(values):.2f} to {max(values):.2f}"


def _compared(section: Mapping[str, Any]) -> str:
    items = section["items"]
    sides = list(dict.fromkeys(side for item in items.values() for side in item))
    peers = [side for side in sides if side != "ours"]
    rows = []
    for name, item in items.items():
        row = [f"`{name}`", *(_times(item[side]) if side in item else "" for side in peers)]
        row.append(_times(item["ours"]) if "ours" in item else "")
        for peer in peers:
            found = ratio(item, peer)
            row.append(f"{found[0]:.2f} ({_span(found[1])})" if found else "")
        rows.append(row)
    head = ["item", *(f"{peer}, ms" for peer in peers), "ours, ms"]
    head += [f"{peer} / ours" for peer in peers]
    lines = [table(head, rows)]
    if "not_run" in section:
        lines.append(f"The peers ({section['not_run']}) were not run: they were not there.")
    return "\n\n".join([*lines, _provenance(section)])


def _provenance(section: Mapping[str, Any]) -> str:
    """Where the numbers of a section come from."""
    sides: dict[str, list[str]] = {}  # of the same environment
    for side, found in section["versions"].items():
        packages = ", ".join(f"{name} {version}" for name, version in found.items())
        sides.setdefault(packages, []).append(side)
    known = [f"{' and '.join(names)}: {packages}" for packages, names in sides.items()]
    before, after = section["load"]
    look = "A look (`--quick`), not a measurement. " if section["quick"] else ""
    return (
        f"{look}`{section['command']}` at {section['commit']}; {section['machine']}, load "
        f"{before:.1f} before and {after:.1f} after; {'; '.join(known)}."
    )


def _swept(name: str, title: str, unit: str, about: str, section: Mapping[str, Any]) -> str:
    head = [unit, "generate, ms", "tokens/s", "step, ms", "rollout", "reference", "update"]
    head += ["compile, s", *(f"{one}, MB" for one in ("sampling", "reference", "update"))]
    rows = []
    for point in section["points"]:
        seconds = statistics.median(point["generate_s"])
        step, programs = point["step"], point["programs"]
        phases = step["phases_s"]
        rows.append(
            [
                str(point["at"]),
                _ms(1e3 * seconds),
                f"{point['new_tokens'] / seconds:.0f}",
                _times([step["samples_s"]]),
                *(_ms(1e3 * phases[one]) for one in ("rollout", "reference", "update")),
                f"{sum(one['compile_s'] for one in programs.values()):.0f}",
                *(_peak(programs.get(one)) for one in PROGRAMS),
            ]
        )
    said = "Phases in ms; compiling all programs of the step, CPU seconds; peak memory by XLA's "
    said += "plan (arguments, results and temporaries) of each program."
    picture = f"![Cost against {unit}]({bench_plots.name_of(name)})"
    return f"## {title}\n\n{about} {said}\n\n{table(head, rows)}\n\n{picture}\n\n" + _provenance(
        section
    )


def _peak(program: Mapping[str, Any] | None) -> str:
    return "" if program is None else f"{bench_plots.peak_bytes(program) / 1e6:.0f}"


def _depth(section: Mapping[str, Any]) -> str:
    names = list(section["points"][0]["programs"])
    rows = []
    for point in section["points"]:
        programs = point["programs"]
        row = [str(point["at"]), *(f"{programs[one]['compile_s']:.1f}" for one in names)]
        row.append(f"{sum(programs[one]['compile_s'] for one in names):.1f}")
        rows.append([*row, *(_peak(programs.get(one)) for one in PROGRAMS)])
    head = ["text layers", *(f"`{one}`, s" for one in names), "all, s"]
    head += [f"{one}, MB" for one in ("sampling", "reference", "update")]
    about = (
        "CPU seconds to trace, lower and compile each program, and its peak memory by XLA's plan. "
        "Width 64, vocabulary 512; training's own settings: tower frozen, layers recomputed in the "
        "backward pass."
    )
    picture = f"![Compile time against depth]({bench_plots.name_of('depth')})"
    return (
        f"## Compile time and memory against depth\n\n{about}\n\n{table(head, rows)}\n\n{picture}"
        f"\n\n{_provenance(section)}"
    )


def _devices(section: Mapping[str, Any]) -> str:
    head = ["mesh", "tower", "sampling", "reference", "update", "update by kind", "memory, MB"]
    rows = []
    for point in section["points"]:
        programs = point["programs"]
        crossing = [
            sum(programs[one]["collective_bytes"].values()) for one in ("encode_images", *PROGRAMS)
        ]
        kinds = programs["grpo_step"]["collective_bytes"]
        told = ", ".join(
            f"{kind} {size / 1e6:.1f}" for kind, size in sorted(kinds.items()) if size >= 5e4
        )
        axis, _, ways = str(point["at"]).partition(" x")
        mesh = "one device" if axis == "none" else f"{axis} = {ways}"
        moved = [f"{size / 1e6:.1f}" for size in crossing]
        rows.append([mesh, *moved, told, _peak(programs["grpo_step"])])
    about = (
        "MB that a device hands to collectives in one step, counted in the partitioned programs "
        "(the larger of operand and result, loops multiplied, the decoding loop at its full "
        "length), for pretended CPU devices; the tiny preset with 8 key heads, 8 prompts of 8 "
        "completions in all, so that more devices have fewer prompts each. Memory is the update's "
        "on one device. Nothing is run: pretended devices share the cores, and their time would "
        "say nothing."
    )
    picture = f"![Bytes moved against devices]({bench_plots.name_of('devices')})"
    return (
        f"## Scaling over devices\n\n{about}\n\n{table(head, rows)}\n\n{picture}\n\n"
        f"{_provenance(section)}"
    )


def _group_forward(section: Mapping[str, Any]) -> str:
    rows = []
    for name, (once, many) in section["programs"].items():
        each = [b / a for a, b in zip(once, many, strict=True)]
        value = median([many]) / median([once])
        times = [f"{median([one]):.3f}" for one in (once, many)]
        rows.append([name, *times, f"{value:.2f}", f"{min(each):.2f} to {max(each):.2f}"])
    head = ["program (vision tower included)", "prompt once, s", "repeated, s", "ratio", "spread"]
    return (
        "## What the group forward saves\n\n"
        f"{section['about']} The same programs with a group size of one on 8 copies of each prompt "
        f"stand against them, in turn.\n\n{table(head, rows)}\n\n{_provenance(section)}"
    )
