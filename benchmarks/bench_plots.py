# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The pictures of RESULTS.md, from results.json."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import ticker

from medloc_jax.evaluation import plot_style

SWEPT = {
    "group": "completions per prompt",
    "prompt": "prompt tokens",
    "image": "image side, px",
    "batch": "prompts per step",
}
PROGRAMS = {
    "sample_groups": ("sampling", plot_style.BLUE, "o"),
    "reference_logprobs": ("reference", plot_style.GREEN, "s"),
    "grpo_step": ("update", plot_style.VERMILLION, "^"),
}
PHASES = {"rollout": "sample_groups", "reference": "reference_logprobs", "update": "grpo_step"}


def name_of(section: str) -> str:
    """The file of a section's picture."""
    return f"bench_{section}.png"


def peak_bytes(program: Mapping[str, Any]) -> int:
    """Of a program, by XLA's plan."""
    return program["argument_bytes"] + program["output_bytes"] + program["temp_bytes"]


def draw(results: Mapping[str, Any], folder: Path) -> None:
    """Draws what there is."""
    for section, unit in SWEPT.items():
        if section in results:
            _swept(folder / name_of(section), unit, results[section]["points"])
    if "depth" in results:
        _depth(folder / name_of("depth"), results["depth"]["points"])
    if "devices" in results:
        _devices(folder / name_of("devices"), results["devices"]["points"])


def _swept(path: Path, unit: str, points: list[dict[str, Any]]) -> None:
    at = [point["at"] for point in points]
    with plot_style.figure_file(path, height=3.6) as figure:
        speed, time, memory = figure.subplots(1, 3)
        rates = [p["new_tokens"] / statistics.median(p["generate_s"]) for p in points]
        speed.plot(at, rates, color=plot_style.BLUE, marker="o")
        speed.set_title("generated tokens/s")
        for phase, program in PHASES.items():
            label, color, marker = PROGRAMS[program]
            seconds = [p["step"]["phases_s"][phase] for p in points]
            time.plot(at, seconds, color=color, marker=marker, label=label)
        whole = [statistics.median(p["step"]["samples_s"]) for p in points]
        time.plot(at, whole, color=plot_style.BLACK, linestyle="--", label="whole step")
        time.set_title("step, CPU seconds")
        _memory(memory, at, points)
        for axes in (speed, time, memory):
            axes.set_xlabel(unit)
            _sizes_axis(axes, at, log=axes is not speed)
        plot_style.legend_above(figure)


def _memory(axes: Any, at: list[Any], points: list[dict[str, Any]]) -> None:
    for program, (label, color, marker) in PROGRAMS.items():
        sizes = [peak_bytes(p["programs"][program]) / 1e6 for p in points]
        axes.plot(at, sizes, color=color, marker=marker, label=label)
    axes.set_title("planned peak memory, MB")


def _sizes_axis(axes: Any, at: list[int], *, log: bool = True) -> None:
    """Every size that was measured is a tick, one factor after another; so is the cost if `log`."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(at, [str(one) for one in at])
    axes.tick_params(axis="x", labelrotation=45 if max(at) > 99 else 0)
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(ticker.NullFormatter())
    else:
        axes.set_ylim(bottom=0)


def _depth(path: Path, points: list[dict[str, Any]]) -> None:
    at = [point["at"] for point in points]
    with plot_style.figure_file(path, height=3.6) as figure:
        compile_time, memory = figure.subplots(1, 2)
        for program, (label, color, marker) in PROGRAMS.items():
            seconds = [p["programs"][program]["compile_s"] for p in points]
            compile_time.plot(at, seconds, color=color, marker=marker, label=label)
        compile_time.set_title("compile time, CPU seconds")
        _memory(memory, at, points)
        for axes in (compile_time, memory):
            axes.set_xlabel("text layers")
            _sizes_axis(axes, at, log=axes is memory)
        plot_style.legend_above(figure)


def _devices(path: Path, points: list[dict[str, Any]]) -> None:
    axes_of = {
        "data": (plot_style.BLUE, "o"),
        "fsdp": (plot_style.VERMILLION, "^"),
        "tensor": (plot_style.GREEN, "s"),
    }
    single = next((p for p in points if str(p["at"]).startswith("none")), None)
    with plot_style.figure_file(path, height=3.6) as figure:
        moved, memory = figure.subplots(1, 2)
        for axis, (color, marker) in axes_of.items():
            mine = [p for p in points if str(p["at"]).startswith(f"{axis} ")]
            mine = ([single] if single else []) + mine
            ways = [int(str(p["at"]).partition(" x")[2]) for p in mine]
            crossing = [
                sum(sum(one["collective_bytes"].values()) for one in p["programs"].values()) / 1e6
                for p in mine
            ]
            sizes = [peak_bytes(p["programs"]["grpo_step"]) / 1e6 for p in mine]
            moved.plot(ways, crossing, color=color, marker=marker, label=axis)
            memory.plot(ways, sizes, color=color, marker=marker, label=axis)
        moved.set_title("bytes in collectives a step, MB a device")
        memory.set_title("planned peak memory of the update, MB a device")
        for axes in (moved, memory):
            axes.set_xlabel("devices along the axis")
            _sizes_axis(axes, [1, 2, 4, 8], log=False)
        plot_style.legend_above(figure)
