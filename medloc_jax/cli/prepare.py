# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`medloc prepare DATASET ...`: a folder with images and a manifest."""

import collections
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from medloc_jax.data import examples, synthetic


def prepare_synthetic(argv: Sequence[str]) -> Path:
    """Draws the synthetic data set; returns the path of its manifest.

    Args:
        argv: the command line, the name of the data set first, then its flags.
    """
    values = flags.FlagValues()
    flags.DEFINE_string("out", None, "folder to write, new or empty", flag_values=values)
    flags.DEFINE_string(
        "variant", "lesions", f"one of {', '.join(synthetic.VARIANTS)}", flag_values=values
    )
    flags.DEFINE_integer("num_train", 3000, "pictures of the train split", flag_values=values)
    flags.DEFINE_integer("num_test", 400, "pictures of the test split", flag_values=values)
    flags.DEFINE_integer("seed", 0, "of the pictures", flag_values=values)
    _parse(values, argv)
    return synthetic.write(
        values.out,
        variant=values.variant,
        num_train=values.num_train,
        num_test=values.num_test,
        seed=values.seed,
    )


# The data sets by name; each reads its own flags.
DATASETS = {"synthetic": prepare_synthetic}


def main(argv: Sequence[str]) -> int:
    """Runs the verb.

    Args:
        argv: what follows `medloc prepare`.

    Returns:
        The exit code.

    Raises:
        ValueError: a wrong command line or input; one line with the cure.
    """
    names = ", ".join(DATASETS)
    if not argv or argv[0] not in DATASETS:
        given = f"{argv[0]!r} is no data set" if argv else "no data set is named"
        raise ValueError(f"{given}: write `medloc prepare DATASET --out=DIR`, DATASET of {names}")
    manifest = DATASETS[argv[0]](argv)
    print(_summary(manifest))
    return 0


def _parse(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """Reads the flags; nothing may be left over, and --out must be there."""
    usage = f"the flags of `medloc prepare {argv[0]}` are " + ", ".join(
        f"--{name}" for name in sorted(values)
    )
    try:
        rest = values(list(argv))[1:]
    except flags.Error as error:
        raise ValueError(f"{error}: {usage}") from error
    if rest:
        raise ValueError(f"{rest[0]!r} is not understood: {usage}")
    if not values.out:
        raise ValueError("--out is missing: name the folder to write")


def _summary(manifest: Path) -> str:
    """What was written, in two lines."""
    rows = examples.load_manifest(manifest)
    counts = collections.Counter(row.split for row in rows)
    splits = ", ".join(f"{counts[name]} {name}" for name in examples.SPLITS if counts[name])
    boxes = np.array([row.box_px for row in rows])
    sizes = np.array([(row.width, row.height) for row in rows])
    shares = np.prod((boxes[:, 2:] - boxes[:, :2]) / sizes, axis=1)
    low, middle, high = np.percentile(100 * shares, [5, 50, 95])
    return (
        f"{manifest}: {splits}\n"
        f"box area, 5th / 50th / 95th percentile: {low:.0f} / {middle:.0f} / {high:.0f} % "
        "of the image"
    )
