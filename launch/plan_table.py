# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Writes launch/PLAN.md from what `medloc plan --json` found; no number is typed by hand.

python launch/plan_table.py FILE...

launch/plan.sh makes the files.
"""

import json
import sys
from pathlib import Path

OUT = Path(__file__).resolve().parent / "PLAN.md"

HEAD = """# What a run takes

Written by `bash launch/plan.sh`: the run's own programs, compiled for these machines by their real
compilers without the machines. Nothing here has been run on them. A device's memory is what its
datasheet says; a runtime keeps some of it for itself (JAX on GPUs takes three quarters unless
`XLA_PYTHON_CLIENT_MEM_FRACTION` says otherwise). The floor is what physics allows (formulas:
`medloc_jax/planning/floor.py`, rates: `medloc_jax/devices.py`); a real step takes longer.
"""

COLUMNS = ("run", "mesh", "memory a device", "floor of a step", "completions/s at most", "compiler")


def row(found: dict) -> str:
    """One line of the table over all plans."""
    plan, seconds = found["plan"], found["floor_seconds"]
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan["mesh"].items() if size > 1)
    answers = plan["shape"]["prompts"] * plan["shape"]["group_size"]
    cells = (
        found["headline"],
        mesh or "one device",
        found["verdict"],
        f"{seconds:.2f} s",
        f"{answers / seconds:.1f}",
        plan["compiled_by"],
    )
    return f"| {' | '.join(cells)} |"


def document(plans: list[dict]) -> str:
    """The whole file."""
    head = [f"| {' | '.join(COLUMNS)} |", f"| {' | '.join(['---'] * len(COLUMNS))} |"]
    table = "\n".join([*head, *map(row, plans)])
    return "\n".join([HEAD, table, "", *(found["markdown"] for found in plans)]).rstrip() + "\n"


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    OUT.write_text(document([json.loads(Path(path).read_text()) for path in sys.argv[1:]]))
    print(OUT)
