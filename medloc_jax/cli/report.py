# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Curves, tables and pictures of one run, or of several side by side.

    medloc report WORKDIR [WORKDIR ...] [--out=DIR] [--allow=budget,split] [--reference=METHOD]
        [--split=NAME] [--gallery_mb=6]

A WORKDIR is a run's folder, or a sweep's, which stands for its finished runs. Runs on different
test examples or with different budgets are refused unless --allow, or the sweep, names what may
differ; a sweep names its reference, too.
"""

from collections.abc import Sequence

from absl import flags

from medloc_jax import storage
from medloc_jax.cli import verb_flags

_USAGE = "write `medloc report WORKDIR [WORKDIR ...] [--out=DIR] [--allow=budget,split]`"


def main(argv: Sequence[str]) -> int:
    """Runs the verb.

    Args:
        argv: what follows `medloc report`.

    Returns:
        The exit code.

    Raises:
        ValueError: a wrong command line or input; one line with the cure.
    """
    values = _flags()
    try:
        workdirs = values(["report", *argv])[1:]
    except flags.Error as error:
        raise ValueError(f"{error}: {_USAGE}") from error
    if not workdirs:
        raise ValueError(f"no workdir is named: {_USAGE}")
    try:
        # Here: matplotlib and scipy are an extra, and slow to load.
        from medloc_jax.evaluation import report, result_tables
    except ModuleNotFoundError as error:
        if error.name not in ("matplotlib", "scipy"):
            raise
        raise ValueError(
            f"the report needs {error.name}: install it with `pip install medloc_jax[report]`"
        ) from error
    if any(storage.is_remote(path) for path in (*workdirs, values.out or "")):
        if values.out is None or storage.is_remote(values.out):
            raise ValueError("a report on a run of gs:// or s3:// is written here: give --out=DIR")
        # All but the weights: tables and curves need no more.
        workdirs = [
            str(storage.local_copy(path, lambda name: not name.startswith("checkpoints/")))
            for path in workdirs
        ]
    options = result_tables.Options(
        [name for name in values.allow if name], values.reference, values.split
    )
    for path in report.write_report(workdirs, values.out, options, values.gallery_mb):
        print(path)
    return 0


def help_text() -> str:
    """What the verb does, and every flag."""
    return f"{(__doc__ or '').strip()}\n\n{verb_flags.help_text(_flags())}"


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string(
        "out", None, "folder of the report; default: WORKDIR/report", flag_values=values
    )
    flags.DEFINE_list("allow", [], "budget, split: in what the runs may differ", flag_values=values)
    flags.DEFINE_string(
        "reference",
        "",
        "method less every other in the tests; default: the sweep's, else medloc",
        flag_values=values,
    )
    flags.DEFINE_string(
        "split", "", "that is compared; default: test where a run has it", flag_values=values
    )
    flags.DEFINE_float(
        "gallery_mb",
        6.0,
        "limit of the images in the page's gallery of predictions, in 10^6 bytes",
        flag_values=values,
    )
    return values
