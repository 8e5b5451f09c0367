# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The paper's ablations at the size of a laptop: one change each against the method as it is.

medloc sweep --config=configs/sweeps/ablations.py:ham10000 --jobs=2 \
    --workdir=runs/replica/ablations-ham10000 --set=data.manifest=ham10000/manifest.jsonl

It follows configs/sweeps/replica.py, whose sizes and warm start it takes (given another --workdir
there, --set=model.init_from=ITS/warm_start here). Nothing is tuned: every arm has one learning
rate, best the one that the replica chose for medloc, --set=optim.learning_rate=VALUE.

The arms are those of Tables 2 and 3, Figure 7 and Table 7 that a claim hangs on; what each of those
files has as the default is here once, `default`. About 45 CPU seconds a run.

Report, with default less every other arm:

medloc report runs/replica/ablations-ham10000 --allow=budget --reference=default
"""

import importlib.util
from pathlib import Path

from medloc_jax.config import arm, default_sweep

SEEDS = (42, 43, 44)
LEARNING_RATE = 6e-4  # the middle one of the replica's
REPLICA = "runs/replica"  # where the replica's sweeps are

# sweep file -> (what it calls the default, arms that are taken from it)
TABLES = {
    "table2": (
        "all_step",
        ("no_reward_step", "no_margin_step", "no_stability_step")
        + ("all_prompt", "no_reward_prompt", "no_margin_prompt", "no_stability_prompt"),
    ),
    "table3": ("piecewise", ("conservative", "moderate", "aggressive")),
    "figure7": (
        "window_030",
        ("window_005", "window_010", "window_020", "window_060", "window_120")
        + ("refresh_none", "refresh_quarter", "refresh_full"),
    ),
    "table7": ("medloc_g8", ("medloc_g4", "medloc_g6", "medloc_g10")),
}


def get_config(data: str = "synthetic"):
    """Returns the sweep.

    Args:
        data: synthetic or ham10000, as in replica.py.
    """
    replica = _sweep("replica", data)
    arms = [arm("default")]
    for table, (_, names) in TABLES.items():
        there = {one.name: one for one in _sweep(table).arms}
        arms += [there[name] for name in names]
    sweep = default_sweep(arms, replica.base)
    sweep.seeds = SEEDS
    sweep.changes = (
        *replica.changes,
        ("model.init_from", f"{REPLICA}/{data}/warm_start"),
        ("optim.learning_rate", LEARNING_RATE),
    )
    sweep.note = "Ablations at the size of a laptop, one learning rate for all."
    sweep.allow = ("budget",)  # the group size is one of the things compared
    sweep.reference = "default"
    return sweep


def _sweep(name: str, *variant: str):
    """Another sweep of this folder; configs are files, no package."""
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*variant)
