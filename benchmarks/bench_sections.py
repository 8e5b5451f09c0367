# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The sections of the benchmark: what each runs, and how its samples are read."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from peer_environments import Places

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent

# Flags that both sides are given, by section; TRL or not; flags of ours alone.
COMPARISONS: dict[str, tuple[str, bool, str]] = {
    "short": (
        "--items vision,prefill,generate,logprob,train,grpo --gen-batches 8,32",
        True,
        "",
    ),
    "long": (
        "--image-size 504 --text-tokens 100 --prompts 2 --items generate,grpo --gen-batches 16",
        True,
        "",
    ),
    "unshared": ("--items grpo", False, "--share 0"),
}
# What a side of a comparison may take, its warm-up and compilation included.
TIMEOUT_S = 900


def samples_of(document: Mapping[str, Any], where: str) -> dict[str, list[float]]:
    """Samples by item of what one side wrote.

    Raises:
        ValueError: no results, or an item without samples, or with one that is not a time.
    """
    results = document.get("results")
    if not isinstance(results, Mapping) or not results:
        raise ValueError(f"{where} wrote no results: run it by hand to see why")
    found = {}
    for item, result in results.items():
        samples = result.get("samples_s")
        if not samples or not all(isinstance(x, int | float) and x > 0 for x in samples):
            raise ValueError(f"{where}: {item} has no samples_s above 0, but {samples!r}")
        found[item] = [round(float(x), 5) for x in samples]
    return found


def pool(sides: Mapping[str, Sequence[Mapping[str, Any]]], rounds: int) -> dict[str, Any]:
    """From the documents of each side, one a round, to item -> side -> [round][sample].

    Raises:
        ValueError: a side is missing in a round, or has no samples.
    """
    items: dict[str, dict[str, list[list[float]]]] = {}
    for side, documents in sides.items():
        if len(documents) != rounds:
            raise ValueError(
                f"{side} answered in {len(documents)} of {rounds} rounds: its own message stands "
                "above"
            )
        for document in documents:
            for item, samples in samples_of(document, side).items():
                items.setdefault(item, {}).setdefault(side, []).append(samples)
    return items


def our_environment(cache: Path | None = None) -> dict[str, str]:
    """For our side: one thread, on the CPU, this checkout.

    Args:
        cache: a folder of compiled programs, so that a later round need not compile; the peers'
            first calls are not timed either.
    """
    kept = {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return {
        "JAX_PLATFORMS": "cpu",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        **(kept if cache else {}),
    }


def pinned(core: int, *words: str) -> list[str]:
    """On one core, which is how XLA is told to use one thread."""
    cores = sorted(os.sched_getaffinity(0))
    return ["taskset", "-c", str(cores[core % len(cores)]), *words]


def call(words: Sequence[str], out: Path, cache: Path | None = None) -> dict[str, Any]:
    """Runs a side that writes JSON to `out`, its messages passed on.

    Raises:
        ValueError: it failed.
    """
    done = subprocess.run(
        [*words, "--out", str(out)],
        env={**os.environ, **our_environment(cache)},
        stdout=subprocess.DEVNULL,
        timeout=2 * TIMEOUT_S,
    )
    if done.returncode or not out.is_file():
        raise ValueError(f"{shlex.join(words)} ended with status {done.returncode}")
    return json.loads(out.read_text(encoding="utf-8"))


def ours(script: str) -> list[str]:
    """A script of this folder."""
    return [sys.executable, str(FOLDER / script)]


def compare(section: str, places: Places, quick: bool, folder: Path) -> dict[str, Any]:
    """Ours beside transformers and TRL, by the peers' own side_by_side.py; or ours alone."""
    flags, trl, own = COMPARISONS[section]
    # The long section's steps are long: two of them a round do.
    rounds, reps = (1, 2) if quick else (2, 2 if section == "long" else 3)
    timing = f"--preset tiny --threads 1 --clock cpu --reps {reps} --max-seconds 60"
    told = f"python benchmarks/peer_items.py {{flags}} {own}".rstrip() + " --out {out}"
    if places.peerbench is None or places.peers is None:
        command = f"python benchmarks/peer_items.py {timing} {flags} {own}".rstrip()
        words = [*ours("peer_items.py"), *shlex.split(f"{timing} {flags} {own}")]
        documents = [
            call(pinned(0, *words), folder / f"{i}.json", folder / "compiled")
            for i in range(rounds)
        ]
        return {
            "command": command,
            "versions": {"ours": documents[0].get("versions", {})},
            "items": pool({"ours": documents}, rounds),
            "not_run": "transformers, TRL",
        }
    more = f"--rounds {rounds} --timeout {TIMEOUT_S}"
    more += f" --trl 1 --trl-steps {reps + 1}" if trl else ""
    known = [f"{name}={value}" for name, value in our_environment(folder / "compiled").items()]
    run = (
        f"env {shlex.join(known)} {shlex.join(ours('peer_items.py'))} {{flags}} {own} --out {{out}}"
    )
    out = folder / "side_by_side.json"
    words = [places.peers, str(places.peerbench / "side_by_side.py"), "--jax-cmd", run]
    words += shlex.split(f"{timing} {flags} {more}") + ["--out", str(out)]
    done = subprocess.run(words, cwd=places.peerbench, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if not out.is_file():
        raise ValueError(f"side_by_side.py ended with status {done.returncode} and wrote nothing")
    document = json.loads(out.read_text(encoding="utf-8"))
    names = {"torch": "transformers", "jax": "ours", "trl": "TRL"}
    sides = {names[side]: found for side, found in document["runs"].items()}
    return {
        "command": f"$PEERS $PEERBENCH/side_by_side.py --jax-cmd '{told}' {timing} {flags} {more}",
        "versions": {names[side]: found for side, found in document["versions"].items()},
        "items": pool(sides, rounds),
    }


def compare_tunix(places: Places, quick: bool, folder: Path) -> dict[str, Any]:
    """Ours beside tunix, on text."""
    rounds = 1 if quick else 2
    script = "tunix_grpo_m.py"
    theirs = [f"$TUNIX benchmarks/tunix_peer.py --script $PEERBENCH/{script} --clock cpu"]
    command = "python benchmarks/tunix_item.py --clock cpu"
    sides: dict[str, list[Any]] = {"ours": []}
    both = places.peerbench is not None and places.tunix is not None
    if both:
        sides["tunix"] = []
    for number in range(rounds):
        for side in list(sides) if number % 2 else list(sides)[::-1]:
            print(f"## tunix, round {number + 1} of {rounds}: {side}", flush=True)
            words = [*ours("tunix_item.py"), "--clock", "cpu", "--reps", "2" if quick else "4"]
            if side == "tunix":
                script_path = str(places.peerbench / script)  # type: ignore[operator]
                words = [str(places.tunix), str(FOLDER / "tunix_peer.py"), "--script", script_path]
            cache = folder / "compiled" if side == "ours" else None
            sides[side].append(call(pinned(0, *words), folder / f"{side}{number}.json", cache))
    return {
        "command": "; ".join([command, *(theirs if both else [])]),
        "versions": {side: found[0].get("versions", {}) for side, found in sides.items()},
        "items": pool(sides, rounds),
        **({} if both else {"not_run": "tunix"}),
    }


def sweep(
    names: Sequence[str], quick: bool, folder: Path
) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Our sweeps, as many at a time as there are cores up to two, each on a core of its own.

    Yields:
        Name and section of each as it ends; None for one that failed.
    """
    waiting, running = list(names), {}
    lanes = min(2, len(os.sched_getaffinity(0)))
    while waiting or running:
        for lane in range(lanes):
            if lane not in running and waiting:
                name = waiting.pop(0)
                words = [*ours("sweeps.py"), "--sweep", name, *(["--quick"] if quick else [])]
                words += ["--out", str(folder / f"{name}.json")]
                process = subprocess.Popen(
                    pinned(lane, *words), env={**os.environ, **our_environment()}
                )
                running[lane] = (name, process)
        time.sleep(0.2)
        for lane, (name, process) in list(running.items()):
            if process.poll() is None:
                continue
            del running[lane]
            if process.returncode:
                print(f"error: the sweep {name} ended with status {process.returncode}")
                yield name, None
                continue
            document = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
            more = " --quick" if quick else ""
            command = f"python benchmarks/sweeps.py --sweep {name}{more}"
            yield name, {"command": command, "points": document["points"]}


def group_forward(quick: bool, folder: Path) -> dict[str, Any]:
    """What the group forward saves."""
    flags = ["--clock", "cpu", "--rounds", "2" if quick else "5"]
    words = [*ours("group_forward.py"), *flags]
    document = call(pinned(0, *words), folder / "group_forward.json")
    return {"command": f"python benchmarks/group_forward.py {shlex.join(flags)}", **document}
