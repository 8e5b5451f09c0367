# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Measures this project beside its peers and writes RESULTS.md: what `make bench` runs.

    python benchmarks/bench.py [--quick] [--only short,tunix,sweeps] [--peerbench FOLDER]
        [--peers PYTHON] [--tunix PYTHON]

One thread, CPU clock, float32, the peers' tiny preset. Where a comparison has two sides, they are
run in turn, each in a process of its own on one core. Sections can be measured one by one: what was
measured is kept in results.json with its command, commit, versions and machine, and RESULTS.md is
rendered from that file alone (`--render` does only that).

The peers' scripts are found by --peerbench or PEERBENCH, or in ../shared/peerbench beside the
checkout; Pythons that have the peers installed by --peers or PEERS (torch, transformers, trl) and
--tunix or TUNIX. Without them our side is measured alone, and the tables say so.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import bench_report
import bench_sections
import peer_environments
from bench_sections import COMPARISONS, FOLDER, ROOT

RESULTS, REPORT = FOLDER / "results.json", FOLDER / "RESULTS.md"
LOOK = ROOT / "runs" / "bench_quick" / RESULTS.name

SWEEPS = ("image", "group", "batch", "prompt", "devices", "depth")  # the longest first
SECTIONS = (*COMPARISONS, "tunix", *SWEEPS, "group_forward")
ALIASES = {"peers": tuple(COMPARISONS), "sweeps": SWEEPS, "all": SECTIONS}


def commit() -> str:
    """The commit that was measured, and whether files differ from it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if not done.returncode else ""

    head = git("rev-parse", "--short", "HEAD") or "no commit"
    changed = git("status", "--porcelain", "--", "medloc_jax", "benchmarks/*.py")
    return f"{head} with uncommitted changes" if changed else head


def machine() -> str:
    """The processor, its cores and the memory."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return f"{model}, {os.cpu_count()} cores, {pages / 2**30:.0f} GiB"


def versions() -> dict[str, str]:
    """Of our side."""
    found = {"python": platform.python_version()}
    for name in ("jax", "jaxlib", "flax", "optax", "numpy"):
        found[name] = importlib.metadata.version(name)
    return found


def measure(
    names: Sequence[str],
    places: peer_environments.Places,
    quick: bool,
    keep: Callable[[str, dict[str, Any]], None],
) -> list[str]:
    """Measures sections, hands each over as soon as it is there; returns the names that failed."""
    failed = []
    with tempfile.TemporaryDirectory(prefix="bench_") as temporary:
        for name in [one for one in names if one not in SWEEPS]:
            folder = Path(temporary) / name
            folder.mkdir()
            load = os.getloadavg()[0]
            print(f"## {name}", flush=True)
            try:
                if name in COMPARISONS:
                    found = bench_sections.compare(name, places, quick, folder)
                elif name == "tunix":
                    found = bench_sections.compare_tunix(places, quick, folder)
                else:
                    found = bench_sections.group_forward(quick, folder)
            except (ValueError, subprocess.TimeoutExpired) as error:
                print(f"error: {name}: {error}", file=sys.stderr, flush=True)
                failed.append(name)
                continue
            keep(name, found | {"load": [load, os.getloadavg()[0]]})
        chosen = [one for one in SWEEPS if one in names]
        if chosen:
            load = os.getloadavg()[0]
            for name, found in bench_sections.sweep(chosen, quick, Path(temporary)):
                if found is None:
                    failed.append(name)
                else:
                    keep(name, found | {"load": [load, os.getloadavg()[0]]})
    return failed


def names_of(only: str) -> list[str]:
    """Sections in their order.

    Raises:
        ValueError: there is no such section.
    """
    asked: set[str] = set()
    for name in only.split(","):
        if name not in SECTIONS and name not in ALIASES:
            raise ValueError(f"--only {name}: choose of {', '.join((*ALIASES, *SECTIONS))}")
        asked |= set(ALIASES.get(name, (name,)))
    return [name for name in SECTIONS if name in asked]


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and renders; 1 when a section failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="all", help=f"of {', '.join((*ALIASES, *SECTIONS))}")
    parser.add_argument("--quick", action="store_true", help="few points and samples: a look")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    for name in ("peerbench", "peers", "tunix"):
        parser.add_argument(f"--{name}", default="", help=f"as {name.upper()}=")
    parser.add_argument(
        "--environments",
        default="",
        help="make PREFIX-peers and PREFIX-tunix where no Python is named",
        metavar="PREFIX",
    )
    parser.add_argument("--results", type=Path, help="where results are kept, RESULTS.md beside it")
    given = parser.parse_args(argv)
    if given.results is None:  # a look overwrites no measurement
        given.results = LOOK if given.quick else RESULTS
    failed: list[str] = []
    known: dict[str, Any] = {}
    if given.results.is_file():
        known = json.loads(given.results.read_text(encoding="utf-8"))
    try:
        if not given.render:
            names = names_of(given.only)
            places = peer_environments.find_places(given, os.environ)
            compared, tunix = any(name in COMPARISONS for name in names), "tunix" in names
            if given.environments and (compared or tunix):
                places = peer_environments.complete(places, given.environments)
            for line in peer_environments.cures(places, compared=compared, tunix=tunix):
                print(f"note: {line}", file=sys.stderr, flush=True)
            given.results.parent.mkdir(parents=True, exist_ok=True)
            about = {"commit": commit(), "machine": machine(), "quick": given.quick}

            def keep(name: str, found: dict[str, Any]) -> None:
                found.setdefault("versions", {"ours": versions()})
                found["load"] = [round(x, 2) for x in found["load"]]
                known[name] = about | found
                ordered = {one: known[one] for one in SECTIONS if one in known}
                given.results.write_text(bench_report.dump(ordered), encoding="utf-8")

            failed = measure(names, places, given.quick, keep)
        report = given.results.with_name(REPORT.name)
        bench_report.write(known, report)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"written: {report}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
