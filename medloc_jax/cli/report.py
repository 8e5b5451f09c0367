# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`medloc report WORKDIR... [--out=DIR]`: curves, tables and pictures of one run, or of several."""

from collections.abc import Sequence

from absl import flags

from medloc_jax import storage

_USAGE = "write `medloc report WORKDIR [WORKDIR ...] [--out=DIR]`"


def main(argv: Sequence[str]) -> int:
    """Runs the verb.

    Args:
        argv: what follows `medloc report`.

    Returns:
        The exit code.

    Raises:
        ValueError: a wrong command line or input; one line with the cure.
    """
    values = flags.FlagValues()
    flags.DEFINE_string(
        "out", None, "folder of the report; default: WORKDIR/report", flag_values=values
    )
    try:
        workdirs = values(["report", *argv])[1:]
    except flags.Error as error:
        raise ValueError(f"{error}: {_USAGE}") from error
    if not workdirs:
        raise ValueError(f"no workdir is named: {_USAGE}")
    try:
        from medloc_jax.evaluation import report  # here: matplotlib is an extra, and slow to load
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise ValueError(
            "the report needs matplotlib: install it with `pip install medloc_jax[report]`"
        ) from error
    if any(storage.is_remote(path) for path in (*workdirs, values.out or "")):
        if values.out is None or storage.is_remote(values.out):
            raise ValueError("a report on a run of gs:// or s3:// is written here: give --out=DIR")
        # All but the weights: tables and curves need no more.
        workdirs = [
            str(storage.local_copy(path, lambda name: not name.startswith("checkpoints/")))
            for path in workdirs
        ]
    for path in report.write_report(workdirs, values.out):
        print(path)
    return 0
