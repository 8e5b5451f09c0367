# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""AOT.md from aot.json: what compilers said, the floors, and the prediction."""

from collections.abc import Iterable, Mapping
from typing import Any

import aot

Record = Mapping[str, Mapping[str, Any]]

INTRODUCTION = """# 3B without the devices: what the compilers say, and what a first run should find

{doc}

Nothing here ran on an accelerator. Memory, kernels and collectives are the compilers' own; floors
are `medloc plan`'s (planning/floor.py) on the real tokens; the prediction is a floor divided by a
stated share of it, and is there to be missed. Compile times are CPU seconds of lowering and
compiling on two cores shared with other work; where a program is compiled for devices that are not
there, JAX's persistent cache cannot be read, so that times from the cache are for
`benchmarks/gpu_run.py` to tell.
"""


def document(record: Record) -> str:
    """The whole of AOT.md."""
    parts = [INTRODUCTION.format(doc=(aot.__doc__ or "").partition("\n")[2].strip())]
    gpu = {name: one for name, one in record.items() if name.startswith(("h200", "h800"))}
    tpu = {name: one for name, one in record.items() if name not in gpu}
    if gpu:
        parts += ["## Prediction for GPUs", prediction(gpu)]
        parts += ["## GPUs: memory and kernels", memory(gpu)]
        parts += ["## GPUs: the decoding loop, bytes that one token only moves", decoding(gpu)]
        parts += ["## GPUs: between devices, one step", collectives(gpu)]
    if tpu:
        parts += ["## TPUs: the compiler's estimate against the floor", estimates(tpu)]
        parts += ["## TPUs: between devices, one step", collectives(tpu)]
    parts += ["## Where it was compiled", origin(record)]
    return "\n\n".join(parts) + "\n"


def _rows(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = list(header)
    lines = [header, ["---"] * len(header), *map(list, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def prediction(record: Record) -> str:
    """Floor, share and predicted seconds by phase, once for each set of devices."""
    seen: dict[str, Mapping[str, float]] = {}
    for one in record.values():
        case = one["case"]
        if case["remat"] == "layer" and not case["layers"]:
            seen.setdefault(f"{case['kind']} x {case['devices']}", one["floors"])
    names = list(aot.EFFICIENCY)
    rows = []
    for devices, floors in seen.items():
        seconds = aot.predicted(dict(floors))
        total = sum(seconds.values()) + aot.HOST_SECONDS
        rows.append([devices, "floor", *(f"{floors[n]:.3f}" for n in names), _sum(floors)])
        cells = (f"**{seconds[n]:.3f}**" for n in names)
        rows.append([devices, "predicted", *cells, f"**{total:.2f}**"])
    shares = ["", "share of the floor", *(f"{aot.EFFICIENCY[n][0]:.2f}" for n in names), ""]
    table = _rows(["devices", "seconds", *names, "step"], [shares, *rows])
    why = "; ".join(f"{name}: {reason}" for name, (_, reason) in aot.EFFICIENCY.items())
    return (
        f"{table}\n\nPredicted steps have {aot.HOST_SECONDS} s of the host in them. Shares: {why}."
    )


def _sum(floors: Mapping[str, float]) -> str:
    return f"{sum(floors.values()):.2f}"


def memory(record: Record) -> str:
    """Peak, temporaries, kernels and compile seconds of every program."""
    rows = []
    for name, one in record.items():
        for program, seen in one["programs"].items():
            calls = ", ".join(f"{k} x{v}" for k, v in seen["custom_calls"].items()) or "-"
            rows.append(
                [
                    name,
                    program,
                    f"{seen['argument_bytes'] / 1e9:.2f}",
                    f"{seen['temp_bytes'] / 1e9:.2f}",
                    _peak(seen),
                    f"{seen['compile_seconds']:.0f} ({seen['compile_cpu_seconds']:.0f})",
                    calls,
                ]
            )
    header = ("case", "program", "arguments GB", "temporaries GB", "peak GB", "compile s (CPU)")
    return _rows((*header, "kernels called"), rows)


def _peak(seen: Mapping[str, Any]) -> str:
    missing = seen["does_not_fit"]
    return f"{seen['peak_bytes'] / 1e9:.2f}" if missing is None else f"{missing / 1e9:.1f} missing"


def decoding(record: Record) -> str:
    """What the sampler's loop copies beside what it must read."""
    rows = []
    for name, one in record.items():
        seen = one["programs"].get("sample_groups")
        if seen:
            kinds = ", ".join(f"{k} {v / 1e9:.2f}" for k, v in sorted(seen["copied"].items()))
            total = sum(seen["copied"].values()) / 1e9
            rows.append([name, f"{total:.2f}", kinds or "-", str(seen["kernels"] or "-")])
    text = _rows(("case", "GB written by moves alone", "by kind", "kernels a token"), rows)
    return f"{text}\n\nOne token at batch 64 must read 6.6 GB; what is moved is read besides."


def collectives(record: Record) -> str:
    """Number and bytes of every kind, over the programs of a step."""
    rows = []
    for name, one in record.items():
        if one["case"]["layers"] or one["case"]["remat"] != "layer":
            continue
        for program, seen in one["programs"].items():
            if seen["collectives"]:
                cells = ", ".join(
                    f"{kind} {count} ({size / 1e9:.2f} GB)"
                    for kind, (count, size) in sorted(seen["collectives"].items())
                )
                rows.append([name, program, cells])
    return _rows(("case", "program", "collectives (times in a run, bytes in all)"), rows)


def estimates(record: Record) -> str:
    """The TPU compiler's cycles as seconds, kernels by formula, and the floor."""
    rows = []
    for name, one in record.items():
        kind = one["case"]["kind"].partition(":")[0]
        floors, total = one["floors"], 0.0
        for program, seen in one["programs"].items():
            if seen["does_not_fit"] is not None:
                rows.append([name, program, "-", "-", "-", "-", _peak(seen)])
                total = float("nan")
                continue
            own = (seen["cycles"] or 0) / aot.TPU_CLOCK[kind]
            added = _kernel_seconds(one, program) if seen["custom_calls"] else 0.0
            floor = sum(floors[phase] for phase in aot.PHASES[program])
            total += own + added
            optimal = seen["optimal_seconds"]
            cells = [f"{own:.3f}", f"{added:.3f}", f"{floor:.3f}", f"{(own + added) / floor:.2f}"]
            cells.append(_peak(seen))
            cells.append("-" if optimal is None else f"{optimal:.4f}")
            rows.append([name, program, *cells])
        if set(one["programs"]) != set(aot.PROGRAMS):
            continue  # no step without all of it
        ratio = total / sum(floors.values())
        cells = [f"**{total:.3f}**", "", _sum(floors), f"**{ratio:.2f}**", "", ""]
        rows.append([name, "**step**", *cells])
    header = ("case", "program", "cycles as s", "splash s", "floor s", "ratio", "peak GB")
    text = _rows((*header, "optimal_seconds"), rows)
    return (
        f"{text}\n\nCycles are the compiler's of every operation, loops multiplied by their trips "
        "(`optimal_seconds` counts a loop once), without waiting for other devices. It has no "
        "estimate of Pallas kernels: those are the blocks of the mask that are computed, at "
        f"{aot.KERNEL_SHARE:.0%} of peak, and are in the sums."
    )


def _kernel_seconds(one: Mapping[str, Any], program: str) -> float:
    return aot.splash_seconds(one["case"], one["bucket"], program)


def origin(record: Record) -> str:
    """Versions, commits and options."""
    rows = [
        [
            name,
            str(one["bucket"]["prompt_length"]),
            one["jax"],
            one["commit"],
            f"`{' '.join(one['flags'])}`" if one["flags"] else "none",
        ]
        for name, one in record.items()
    ]
    header = ("case", "prompt's bucket, tokens", "jax", "commit (+ = with changes)", "options")
    return _rows(header, rows)
