# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A plan as text for a terminal, as Markdown for a document, as an object for JSON.

Bytes are decimal: 1 GB is 1e9 bytes.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from medloc_jax import devices
from medloc_jax.planning import advice, floor, meshes
from medloc_jax.planning import plan as plans

_UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
_WIDE = 40  # characters of a shape
_BEST = 4  # arrangements that are listed


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that `medloc plan` tells.

    Attributes:
        plan: what the compiler found.
        phases: of the floor, on one device.
        device: its rates; None for a CPU, which has no floor in seconds.
        advice: what would save memory.
        meshes: the same devices arranged otherwise, the fastest first.
    """

    plan: plans.Plan
    phases: tuple[floor.Phase, ...]
    device: devices.Device | None
    advice: tuple[advice.Advice, ...]
    meshes: tuple[meshes.Arrangement, ...]

    @property
    def floor_seconds(self) -> float | None:
        """The least time of a step."""
        return None if self.device is None else floor.seconds(self.phases, self.device)


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows under a title, and lines below them."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    after: tuple[str, ...] = ()


def text(report: Report) -> str:
    """For a terminal."""
    took = sum(program.compile_seconds for program in report.plan.programs)
    parts = [headline(report), *_lines(report), f"(compiling took {took:.0f} s)"]
    for table in _tables(report):
        parts += ["", table.title, *_aligned(table), *table.after]
    return "\n".join(parts)


def markdown(report: Report, command: str) -> str:
    """For a document, with the command that makes it."""
    parts = [f"## {headline(report)}", "", f"    {command}", ""]
    parts += [f"- {line}" for line in _lines(report)]
    for table in _tables(report):
        parts += ["", f"**{table.title}**"]
        if table.rows:
            rule = ["---:" if is_number else "---" for is_number in _numbers(table)]
            parts += ["", _row(table.header), _row(rule), *map(_row, table.rows)]
        if table.after:
            parts += ["", *(f"- {line}" for line in table.after)]
    return "\n".join(parts) + "\n"


def as_json(report: Report, command: str) -> dict[str, Any]:
    """Every figure, in bytes, FLOPs and seconds; the command; its section of a document."""
    plan, device = report.plan, report.device
    out = {
        "command": command,
        "headline": headline(report),
        "verdict": verdict(report),
        "markdown": markdown(report, command),
        "plan": dataclasses.asdict(plan),
        "resident_bytes": plan.resident_bytes,
        "peak_bytes": plan.peak_bytes,
        "does_not_fit": plan.does_not_fit,
        "held_bytes": {program.name: plan.held_bytes(program) for program in plan.programs},
        "advice": [dataclasses.asdict(one) for one in report.advice],
        "floor": [dataclasses.asdict(phase) for phase in report.phases],
        "floor_seconds": report.floor_seconds,
        "meshes": [dataclasses.asdict(one) for one in report.meshes],
    }
    if device is not None:
        for phase, entry in zip(report.phases, out["floor"], strict=True):
            entry |= {"seconds": phase.seconds(device), "bound": phase.bound(device)}
    return out


def headline(report: Report) -> str:
    """Model, method and devices, such as `3b, grpo, 4 x h800`."""
    plan = report.plan
    _, _, slice_of = plan.topology.partition(":")
    where = f"{plan.device_kind} ({slice_of})" if slice_of else plan.device_kind
    return f"{plan.preset}, {plan.method}, {plan.num_devices} x {where}"


def verdict(report: Report) -> str:
    """Whether it fits, in a sentence."""
    plan = report.plan
    if not plan.device_bytes:
        return f"needs {size(plan.peak_bytes)} a device"
    room = f"of {size(plan.device_bytes)} a device"
    missing = plan.does_not_fit
    if missing is not None:
        return f"DOES NOT FIT by {size(missing)} {room}"
    spare = plan.device_bytes - plan.peak_bytes
    return f"fits: {size(plan.peak_bytes)} {room}, {size(spare)} to spare"


def _lines(report: Report) -> list[str]:
    plan, shape, count = report.plan, report.plan.shape, report.plan.parameters
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    hosts = f"{plan.processes} host" + ("s" if plan.processes > 1 else "")
    image = ""
    if shape.image_size:
        sizes = ["x".join(map(str, size)) for size in (shape.image_size, shape.fed_size)]
        image = f"image {sizes[0]} fed as {sizes[1]} px, {shape.num_image_tokens} image tokens; "
    answers = f" x {shape.group_size} completions" if plan.method == "grpo" else ""
    lines = [
        f"{hosts}, mesh {mesh}; compiled by {plan.compiled_by}",
        f"{_count(count.total)} parameters: language model {_count(count.text)} (token embedding "
        f"{_count(count.embedding)}), vision tower {_count(count.vision)}; trained "
        f"{_count(count.trainable)}, frozen {_count(count.frozen)}",
        f"{image}prompt {shape.prompt_tokens} tokens, compiled for {shape.bucket.prompt_length} "
        f"and {shape.bucket.num_patches} patches",
        f"{shape.prompts} prompts{answers} of {shape.completion_tokens} tokens a step, "
        f"{shape.micro_batch} prompts a backward pass",
    ]
    if plan.note:
        lines.append(f"note: {plan.note}")
    return [*lines, verdict(report)]


def _tables(report: Report) -> list[Table]:
    made = [_memory(report), _programs(report)]
    if report.advice:
        made.append(_advice(report))
    made += [_collectives(report), _floor(report)]
    return [*made, _by_mesh(report)] if len(report.meshes) > 1 else made


def _memory(report: Report) -> Table:
    rows = [
        (
            part.name,
            size(part.bytes),
            _while(part, report.plan),
            part.formula,
        )
        for part in report.plan.memory
    ]
    header = ("part", "size", "while", "how")
    return Table("Memory of one device by part", header, tuple(rows))


def _while(part: plans.Part, plan: plans.Plan) -> str:
    """The programs of this step that hold a part."""
    if "*" in part.programs:
        return "always"
    known = (program.name for program in plan.programs)
    return ", ".join(name for name in known if name in part.programs)


def _programs(report: Report) -> Table:
    plan = report.plan
    rows, after = [], []
    for program in plan.programs:
        fits = program.does_not_fit is None
        figures = (program.argument_bytes, program.temp_bytes, plan.held_bytes(program))
        best = program.optimal_seconds
        rows.append(
            (
                program.name,
                str(program.runs_per_step),
                *(size(figure) if fits else "-" for figure in figures),
                "-" if best is None else f"{best:.3g} s",
            )
        )
        if not fits:
            after.append(f"{program.name} was refused: {program.refusal}")
        gathered = [one for one in program.replicated if one.kind == "temporary"]
        if gathered:
            shapes = ", ".join(f"{one.shape} {size(one.bytes)}" for one in gathered)
            after.append(f"{program.name} gathers whole, for as long as it needs it: {shapes}")
        after += [
            f"WARNING: {program.name} holds {one.name} {one.shape} whole on every device: "
            f"{size(one.bytes)}"
            for one in program.replicated
            if one.kind != "temporary"
        ]
        if program.not_donated:
            names = ", ".join(program.not_donated)
            after.append(f"WARNING: {program.name} copies instead of reusing: {names}")
    header = ("program", "runs", "arguments", "temporary", "on the device")
    header += ("compiler's estimate, loops once",)
    return Table("Programs as compiled, one device", header, tuple(rows), tuple(after))


def _advice(report: Report) -> Table:
    rows = [
        (
            one.flags,
            f"-{size(one.saves)}",
            size(one.peak_bytes),
            "yes" if one.fits else "no",
            one.price,
        )
        for one in report.advice
    ]
    header = ("change", "saves", "then", "fits", "price")
    title = "What would save memory (estimated without compiling; check it by another plan)"
    return Table(title, header, tuple(rows))


def _collectives(report: Report) -> Table:
    """Collectives of a program that are alike but for their shape, as one row."""
    alike: dict[tuple[str, ...], list[tuple[int, plans.Collective]]] = {}
    for program in report.plan.programs:
        for one in program.collectives:
            place = "decoding" if one.in_decode_loop else "loop" if one.in_loop else "once"
            key = (program.name, one.kind, one.axes, place, "yes" if one.overlapped else "no")
            alike.setdefault(key, []).append((program.runs_per_step, one))
    rows = []
    for (name, kind, axes, place, overlapped), group in alike.items():
        total = sum(runs * one.total_bytes for runs, one in group)
        largest = max((one for _, one in group), key=lambda one: one.bytes)
        times = sum(runs * one.count for runs, one in group)
        shape = largest.shape if len(largest.shape) <= _WIDE else largest.shape[:_WIDE] + "..."
        cells = (name, kind, axes, place, str(times), size(total), overlapped, shape)
        rows.append((total, cells))
    rows.sort(key=lambda row: -row[0])
    header = ("program", "collective", "over", "where", "times", "size", "may overlap", "largest")
    after = (_against_floor(report),) if rows else ("none",)
    cells = tuple(row for _, row in rows)
    return Table("Collectives of a step, one device", header, cells, after)


def _against_floor(report: Report) -> str:
    """What the compiled programs move between devices, and what they would have to."""
    plan, device = report.plan, report.device
    moved = sum(
        program.runs_per_step * received_bytes(collective, plan.mesh)
        for program in plan.programs
        for collective in program.collectives
    )
    needed = sum(phase.link_bytes for phase in report.phases)
    line = f"a device receives {size(moved)} in a step; the floor counts {size(needed)}"
    if device is None:
        return line
    took = moved / (device.link_rate * devices.LINK_SHARE)
    return f"{line}. If nothing overlapped, {took:.3f} s over links alone"


def received_bytes(collective: plans.Collective, mesh: Mapping[str, int]) -> float:
    """What a device receives from others in a ring: (n - 1) / n of the shape, an all-reduce twice.

    Args:
        collective: of one program.
        mesh: devices along each axis; a collective over unknown axes counts as over all.
    """
    known = [mesh[axis] for axis in collective.axes.split("+") if axis in mesh]
    n = math.prod(known or mesh.values())
    times = {"all-reduce": 2.0, "collective-permute": n / max(1, n - 1)}
    return collective.total_bytes * (n - 1) / n * times.get(collective.kind, 1.0)


def _floor(report: Report) -> Table:
    device, shape = report.device, report.plan.shape
    rows = []
    for phase in report.phases:
        moved = (phase.memory_bytes, phase.link_bytes, phase.network_bytes)
        cells = [f"{phase.flops / 1e12:.2f}", *(size(one) if one else "-" for one in moved)]
        if device is not None:
            cells += [f"{phase.seconds(device):.3f} s", phase.bound(device)]
        rows.append((phase.name, *cells))
    header = ("phase", "TFLOP", "memory", "links", "network")
    title = "Floor of a step, one device (formulas: medloc_jax/planning/floor.py)"
    if device is None:
        return Table(title, header, tuple(rows), ("no rates are known for this device",))
    total = floor.seconds(report.phases, device)
    done = sum(phase.flops for phase in report.phases)
    rows.append(("sum", f"{done / 1e12:.2f}", "-", "-", "-", f"{total:.3f} s", ""))
    answers = shape.prompts * shape.group_size
    after = (
        f"at {device.usable_flops / 1e12:.0f} TFLOP/s, {device.usable_memory_rate / 1e12:.2f} TB/s "
        f"memory, {device.link_rate * devices.LINK_SHARE / 1e9:.0f} GB/s links"
        + (
            f", {device.network_rate * devices.LINK_SHARE / 1e9:.0f} GB/s network"
            if device.network_rate
            else ""
        ),
        f"no faster than {answers / total:.1f} completions/s, "
        f"{answers * shape.completion_tokens / total:,.0f} completion tokens/s over all devices",
    )
    return Table(title, (*header, "time", "bound by"), tuple(rows), after)


def _count(number: int) -> str:
    return f"{number / 1e9:.3f} B" if number >= 1e8 else f"{number / 1e6:.2f} M"


def _by_mesh(report: Report) -> Table:
    """The fastest arrangements whose state the devices can hold, and the one of the plan."""
    plan, own = report.plan, dict(report.plan.mesh)
    gradients = sum(part.bytes for part in plan.memory if part.name == "gradients")
    # Both are split over fsdp and tensor, and whole over data.
    state = (plan.resident_bytes + gradients) * own["fsdp"] * own["tensor"]
    rows = []
    for one in report.meshes:
        held = state / (one.mesh["fsdp"] * one.mesh["tensor"])
        if one.mesh == own or (len(rows) < _BEST and held < plan.device_bytes):
            times = (f"{one.seconds:.3f} s", f"{one.decode_seconds:.3f} s")
            note = "this plan" if one.mesh == own else ""
            rows.append((*(str(one.mesh[axis]) for axis in own), *times, size(held), note))
    title = "Floor by mesh (latency, and memory beside state and gradients, are not looked at)"
    header = (*own, "floor", "of it decoding", "state and gradients", "")
    return Table(title, header, tuple(rows))


def size(count: float | int) -> str:
    """Bytes, such as 83.1 GB; 1 GB is 1e9."""
    unit, scale = next(
        ((unit, scale) for unit, scale in _UNITS if abs(count) >= scale / 10), _UNITS[-1]
    )
    value = count / scale
    return f"{value:.2f} {unit}" if abs(value) < 10 else f"{value:.1f} {unit}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _aligned(table: Table) -> list[str]:
    """Columns of numbers end together, columns of words start together."""
    if not table.rows:
        return []
    lines = [table.header, *table.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.header))]
    numbers = _numbers(table)
    out = []
    for line in lines:
        cells = [
            cell.rjust(width) if is_number else cell.ljust(width)
            for cell, width, is_number in zip(line, widths, numbers, strict=True)
        ]
        out.append("  " + "  ".join(cells).rstrip())
    return out


def _numbers(table: Table) -> list[bool]:
    """Which columns hold numbers."""
    columns = range(len(table.header))
    return [all(_is_number(row[column]) for row in table.rows) for column in columns]


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"-|-?[\d.,]+(e[-+]\d+)?( [GMk]?B| s)?", cell) is not None
