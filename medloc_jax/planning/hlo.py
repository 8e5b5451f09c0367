# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Reads the compiler's own listing of a program (optimized HLO): loops, collectives, calls.

The listing is of one device. Loops are counted by their trip counts: stated by the compiler (CPU,
GPU), or read off a condition `counter < constant` (TPU; scans count from 0 by 1). A loop that ends
on anything else is the sampler's, which ends when all rows have.

Reference: openxla.org/xla/operation_semantics for the operations.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
from jax.sharding import Mesh

from medloc_jax.planning import plan

COLLECTIVES = (
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all"),
    *("ragged-all-to-all", "collective-permute", "collective-broadcast"),
)

_BITS = {"pred": 8, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"([a-z]+[0-9a-z]*)\[([0-9,<=]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"([\w\-]+)\(")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_KNOWN_TRIPS = re.compile(r'"?known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_ALIAS = re.compile(r"\}: \((\d+), \{[^}]*\}, \w+-alias\)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line.

    Attributes:
        name: unique in the program.
        shape: of its result, layouts included.
        opcode: such as "fusion" or "all-gather-start".
        rest: operands and attributes.
        is_root: whether its result is its computation's.
    """

    name: str
    shape: str
    opcode: str
    rest: str
    is_root: bool

    @property
    def operands(self) -> list[str]:
        """Names of its operands."""
        return re.findall(r"%([\w.\-]+)", self.rest[: _closing(self.rest, 0)])

    @property
    def source(self) -> str:
        """What it was made for, in JAX's words."""
        found = _OP_NAME.search(self.rest)
        return found[1].replace("\\'", "'") if found else ""


@dataclasses.dataclass(frozen=True)
class Visit:
    """An instruction with how often it runs.

    Attributes:
        instruction: the line.
        computation: where it stands.
        count: times in one run of the program.
        in_loop: in any loop.
        in_decode_loop: in a loop whose trip count is not known.
    """

    instruction: Instruction
    computation: str
    count: int
    in_loop: bool
    in_decode_loop: bool


class Listing:
    """A program as its computations."""

    def __init__(self, text: str):
        """Parses what `Compiled.as_text()` gives."""
        self.header, _, body = text.partition("\n")
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        current: dict[str, Instruction] = {}
        for line in body.splitlines():
            header = _HEADER.match(line)
            if header:
                current = self.computations[header[2]] = {}
                self.entry = header[2] if header[1] else self.entry
                continue
            instruction = _parse(line)
            if instruction:
                current[instruction.name] = instruction
        if not self.entry:
            raise ValueError("the compiler's listing has no entry computation")

    def visits(self, unknown_trips: int = 1) -> Iterator[Visit]:
        """Every instruction that runs, each computation as often as it is called.

        Args:
            unknown_trips: what to count a loop of unknown length as.
        """
        yield from self._walk(self.entry, 1, False, False, unknown_trips)

    def _walk(
        self, name: str, count: int, in_loop: bool, in_decode: bool, unknown_trips: int
    ) -> Iterator[Visit]:
        for instruction in self.computations.get(name, {}).values():
            yield Visit(instruction, name, count, in_loop, in_decode)
            called = _CALLED.findall(instruction.rest)
            for branches in _BRANCHES.findall(instruction.rest):
                called += re.findall(r"%?([\w.\-]+)", branches)
            if instruction.opcode == "while":
                trips = self.trips(instruction)
                times = count * (unknown_trips if trips is None else trips)
                decode = in_decode or trips is None
                for inner in called:
                    yield from self._walk(inner, times, True, decode, unknown_trips)
            elif not instruction.opcode.endswith(("-done", "-update")):
                for inner in called:
                    yield from self._walk(inner, count, in_loop, in_decode, unknown_trips)

    def trips(self, loop: Instruction) -> int | None:
        """How often a while loop's body runs; None where that depends on data."""
        known = _KNOWN_TRIPS.search(loop.rest)
        if known:
            return int(known[1])
        condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
        lines = self.computations.get(condition[1], {}) if condition else {}
        root = next((line for line in lines.values() if line.is_root), None)
        given = {}  # what a fused condition is called with, by its parameters' names
        if root is not None and root.opcode == "fusion":
            called = re.search(r"calls=%?([\w.\-]+)", root.rest)
            outer, operands = lines, root.operands
            lines = self.computations.get(called[1], {}) if called else {}
            for name, line in lines.items():
                number = re.match(r"(\d+)\)", line.rest) if line.opcode == "parameter" else None
                if number and int(number[1]) < len(operands):
                    given[name] = outer.get(operands[int(number[1])])
            root = next((line for line in lines.values() if line.is_root), None)
        if root is None or root.opcode != "compare" or "direction=LT" not in root.rest:
            return None
        sides = [given.get(name) or lines[name] for name in root.operands if name in lines]
        bounds = [bound for bound in map(_constant, sides) if bound is not None]
        if len(bounds) != 1:
            return None
        counters = [re.search(r"index=(\d+)", one.rest) for one in sides if _constant(one) is None]
        step = self._step(loop, int(counters[0][1])) if counters and counters[0] else 1
        return -(-bounds[0] // step)

    def _step(self, loop: Instruction, counter: int) -> int:
        """What a loop's body adds to its counter: more than 1 where the compiler unrolled it."""
        body = re.search(r"body=%?([\w.\-]+)", loop.rest)
        lines = self.computations.get(body[1], {}) if body else {}
        root = next((line for line in lines.values() if line.is_root), None)
        if root is None or root.opcode != "tuple" or counter >= len(root.operands):
            return 1
        new = lines.get(root.operands[counter])
        if new is None or new.opcode != "add":
            return 1
        steps = [_constant(lines[name]) for name in new.operands if name in lines]
        return next((step for step in steps if step), 1)

    def aliased_parameters(self) -> set[int]:
        """Numbers of the arguments whose memory results take."""
        return {int(number) for number in _ALIAS.findall(self.header)}

    def parameters(self) -> dict[int, Instruction]:
        """The program's arguments by number; `source` is their name in JAX."""
        found = {}
        for instruction in self.computations[self.entry].values():
            if instruction.opcode == "parameter":
                found[int(instruction.rest.partition(")")[0])] = instruction
        return found


def _closing(text: str, start: int) -> int:
    """Place of the parenthesis that closes one that was opened before `start`."""
    depth = 1
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if not depth:
            return place
    return len(text)


def _constant(line: Instruction) -> int | None:
    found = re.match(r"(\d+)\)", line.rest) if line.opcode == "constant" else None
    return int(found[1]) if found else None


def _parse(line: str) -> Instruction | None:
    start = _INSTRUCTION.match(line)
    if not start:
        return None
    rest = line[start.end() :]
    if rest.startswith("("):  # a tuple, with tilings in parentheses of their own
        end = _closing(rest, 1)
        shape, rest = rest[: end + 1], rest[end + 2 :]
    else:
        shape, _, rest = rest.partition(" ")
    opcode = _OPCODE.match(rest)
    if not opcode:
        return None
    return Instruction(start[2], shape, opcode[1], rest[opcode.end() :], bool(start[1]))


def arrays(shape: str) -> list[tuple[str, int]]:
    """(such as "bf16[8,2048]", bytes) of every array of a shape, tuples flattened."""
    found = []
    for dtype, dims in _ARRAY.findall(shape):
        if dtype in _BITS:
            bits = _BITS[dtype]
        else:
            digits = re.match(r"[a-z]+(\d+)", dtype)
            if not digits:
                continue
            bits = int(digits[1])
        size = math.prod(int(dim.lstrip("<=")) for dim in dims.split(",") if dim)
        found.append((f"{dtype}[{dims}]", size * bits // 8))
    return found


def collectives(
    listing: Listing, mesh: Mesh, unknown_trips: int = 1
) -> tuple[plan.Collective, ...]:
    """What crosses devices, alike ones together, the most bytes first.

    Args:
        listing: the program.
        mesh: that it was partitioned over.
        unknown_trips: what the sampler's loop is counted as: the completion's length.
    """
    counts: Counter[plan.Collective] = Counter()
    seen = set()
    for visit in listing.visits(unknown_trips):
        line = visit.instruction
        kind = line.opcode.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        # A compiler may cut one into pieces that run beside arithmetic; they share a channel.
        channel = re.search(r"channel_id=(\d+)", line.rest)
        key = (kind, channel[1]) if channel else (kind, line.name)
        if key in seen:
            continue
        seen.add(key)
        if kind == "all-reduce" and "all-reduce-scatter" in visit.computation:
            kind = "reduce-scatter"
        shape, size = _larger_side(listing, visit)
        one = plan.Collective(
            kind=kind,
            axes=axes_of(line.rest, mesh),
            shape=shape,
            bytes=size,
            count=0,
            in_loop=visit.in_loop,
            in_decode_loop=visit.in_decode_loop,
            source=line.source,
            overlapped=line.opcode.endswith("-start") or "fusion" in visit.computation,
        )
        counts[one] += visit.count
    found = [dataclasses.replace(one, count=count) for one, count in counts.items()]
    return tuple(sorted(found, key=lambda one: -one.total_bytes))


def _larger_side(listing: Listing, visit: Visit) -> tuple[str, int]:
    """Shape and bytes of a collective's operands or results, whichever is more."""
    line, known = visit.instruction, listing.computations[visit.computation]
    results = arrays(line.shape)
    operands = [
        array for name in line.operands if name in known for array in arrays(known[name].shape)
    ]
    if line.opcode.endswith("-start") and operands:
        # Its result is a tuple of the operands, the results, and the runtime's own numbers.
        results = [
            array
            for array in results[len(operands) :]
            if not re.fullmatch(r"[su](32|64)\[\]", array[0])
        ]
    sides = [side for side in (results, operands) if side]
    larger = max(sides, key=lambda side: sum(size for _, size in side))
    return " ".join(name for name, _ in larger), sum(size for _, size in larger)


def axes_of(attributes: str, mesh: Mesh) -> str:
    """The mesh axes along which the members of a collective's groups differ; "?" if none is told.

    Args:
        attributes: of the instruction.
        mesh: devices are numbered in its order.
    """
    groups = _groups(attributes, mesh.size)
    if groups is None:
        return "?"
    places = np.array(np.unravel_index(np.arange(mesh.size), mesh.devices.shape)).T
    differ = np.zeros(places.shape[1], bool)
    for group in groups:
        differ |= (places[group] != places[group[0]]).any(axis=0)
    names = [name for name, moves in zip(mesh.axis_names, differ, strict=True) if moves]
    return "+".join(map(str, names)) or "none"


def _groups(attributes: str, size: int) -> list[list[int]] | None:
    """Groups of device numbers, in each of the ways in which the compiler writes them."""
    pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes)
    if pairs:
        return [list(map(int, pair.split(","))) for pair in re.findall(r"\{([^{}]+)\}", pairs[1])]
    listed = re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", attributes)
    if listed:
        groups = [g for g in re.findall(r"\{([\d,]+)\}", listed[1])]
        return [list(map(int, g.split(","))) for g in groups] or [list(range(size))]
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if iota:
        shape, source, order = (tuple(map(int, p.split(","))) if p else None for p in iota.groups())
        numbers = np.arange(math.prod(source or ())).reshape(source or ())
        numbers = numbers.transpose(order) if order else numbers
        return numbers.reshape(shape or ()).tolist()
    named = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, ?device_ids=\(([^{]*)\))? ?\{([^}]*)\}", attributes
    )
    return _named_groups(named[1], named[2], named[3], size) if named else None


def _named_groups(
    mesh: str, device_ids: str | None, chosen: str, size: int
) -> list[list[int]] | None:
    """Of `mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}`: devices that differ in b alone."""
    sizes = {name: int(n) for name, n in re.findall(r"'([\w.]+)'=(\d+)", mesh)}
    axes = re.findall(r"'([\w.]+)'", chosen)
    numbers = np.arange(size)
    if device_ids:
        order = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", device_ids)
        if not order:
            return None
        shape = tuple(map(int, order[1].split(",")))
        turned = tuple(map(int, order[2].split(","))) if order[2] else tuple(range(len(shape)))
        if math.prod(shape) != size:
            return None
        numbers = numbers.reshape(shape).transpose(turned).reshape(-1)
    if not set(axes) <= sizes.keys() or math.prod(sizes.values()) != size:
        return None
    kept = [list(sizes).index(name) for name in axes]
    others = [place for place in range(len(sizes)) if place not in kept]
    together = math.prod(sizes[name] for name in axes)
    grid = numbers.reshape(tuple(sizes.values()))
    return grid.transpose(others + kept).reshape(-1, together).tolist()


def custom_calls(listing: Listing) -> Mapping[str, int]:
    """Library calls and kernels of the program, each with the number of places that call it."""
    names = Counter(
        re.search(r'custom_call_target="([^"]+)"', visit.instruction.rest)[1]  # type: ignore
        for visit in listing.visits()
        if visit.instruction.opcode == "custom-call"
    )
    return dict(names.most_common())


def cycles(listing: Listing, unknown_trips: int = 1) -> int:
    """The TPU compiler's estimates of every instruction, loops multiplied; 0 where it gives none.

    `optimal_seconds` of its cost analysis counts a loop once, and each loop as minus one second.
    """
    total = 0
    for visit in listing.visits(unknown_trips):
        found = _CYCLES.search(visit.instruction.rest)
        total += int(found[1]) * visit.count if found else 0
    return total
