# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Where the peers of the benchmark are; their environments are made where they are missing."""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

BESIDE = Path(__file__).resolve().parents[2] / "shared" / "peerbench"


class Environment(NamedTuple):
    """A Python with a peer in it.

    Attributes:
        python: its version.
        steps: what pip installs, call by call: a plain "torch" that another package asks for may
            bring gigabytes of CUDA libraries, so it comes first and by version.
        what: for messages.
    """

    python: str
    steps: tuple[tuple[str, ...], ...]
    what: str


ENVIRONMENTS = {
    "peers": Environment(
        "3.11",
        (
            ("torch==2.13.0",),
            ("transformers", "trl", "accelerate", "datasets", "pillow", "peft"),
        ),
        "transformers and TRL",
    ),
    "tunix": Environment("3.12", (("google-tunix==0.1.7",),), "tunix"),
}


class Places(NamedTuple):
    """Where the peers are; None for what is not there."""

    peerbench: Path | None
    peers: str | None
    tunix: str | None


def find_places(given: argparse.Namespace, environment: Mapping[str, str]) -> Places:
    """The peers' scripts and Pythons.

    Raises:
        ValueError: one was named, and is not there.
    """
    folder = given.peerbench or environment.get("PEERBENCH", "")
    peerbench = Path(folder).expanduser().resolve() if folder else BESIDE
    if not (peerbench / "side_by_side.py").is_file():
        if folder:
            raise ValueError(
                f"PEERBENCH is {folder}: there is no side_by_side.py in it; name the folder with "
                "the peers' scripts"
            )
        peerbench = None
    pythons = []
    for name, flag in (("PEERS", given.peers), ("TUNIX", given.tunix)):
        path = flag or environment.get(name, "")
        if path and not Path(path).is_file():
            raise ValueError(
                f"{name} is {path}: there is no such file; name the python of the environment that "
                "has the peer, or leave it to `make bench` to make one"
            )
        pythons.append(os.path.abspath(path) if path else None)
    return Places(peerbench, *pythons)


def find_python(version: str) -> str | None:
    """An interpreter of that version, on the path or among pyenv's."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    candidates = [shutil.which(f"python{version}")]
    candidates += sorted(map(str, (root / "versions").glob(f"{version}.*/bin/python{version}")))
    for candidate in filter(None, candidates):
        # pyenv puts one on the path that fails unless its version is selected.
        if not subprocess.run([candidate, "-c", ""], capture_output=True).returncode:
            return candidate
    return None


def make(name: str, prefix: str) -> str:
    """Makes `PREFIX-NAME` unless it is there as wanted; returns its Python.

    Raises:
        ValueError: no such Python, or pip failed.
    """
    wanted, folder = ENVIRONMENTS[name], Path(f"{prefix}-{name}")
    python, marker = folder / "bin" / "python", folder / ".installed"
    told = repr(wanted.steps)
    if python.exists() and marker.is_file() and marker.read_text() == told:
        return str(python)
    found = find_python(wanted.python)
    if found is None:
        raise ValueError(
            f"no Python {wanted.python} for {wanted.what}: install one, or name a Python that has "
            f"{wanted.what} with {name.upper()}=/path/to/python"
        )
    print(f"Installing {wanted.what} into {folder}: a few minutes", flush=True)
    pip = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    commands = [[found, "-m", "venv", "--clear", str(folder)], *([*pip, *s] for s in wanted.steps)]
    for command in commands:
        if subprocess.run(command).returncode:
            raise ValueError(f"{' '.join(command)} failed: its own message stands above")
    marker.write_text(told)
    return str(python)


def complete(places: Places, prefix: str) -> Places:
    """The same with the Pythons that were not named, made; what cannot be made is told and left."""
    if places.peerbench is None:
        return places
    for name in ENVIRONMENTS:
        if getattr(places, name) is None:
            try:
                places = places._replace(**{name: make(name, prefix)})
            except ValueError as error:
                print(f"note: {error}", file=sys.stderr, flush=True)
    return places


def cures(places: Places, *, compared: bool, tunix: bool) -> list[str]:
    """What to say of peers that will not be run.

    Args:
        places: where the peers are.
        compared: whether transformers and TRL are wanted.
        tunix: whether tunix is.
    """
    said = []
    if (compared or tunix) and places.peerbench is None:
        said.append(
            "the peers' scripts were not found, so our side alone is measured: name their folder "
            "with PEERBENCH=/path/to/peerbench"
        )
    else:
        if places.peers is None and compared:
            said.append(
                "no Python with transformers and TRL, so our side alone is measured: `make bench` "
                "makes one, or name it with PEERS=/path/to/python"
            )
        if places.tunix is None and tunix:
            said.append(
                "no Python with tunix, so our side alone is measured: `make bench` makes one, or "
                "name it with TUNIX=/path/to/python"
            )
    return said
