# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Reading a verb's flags, so that a mistake is one line that names the cure."""

import difflib
import re
from collections.abc import Sequence

from absl import flags


def wants_help(argv: Sequence[str]) -> bool:
    """Whether help is asked for, wherever it stands."""
    return any(argument in ("-h", "--help", "-help") for argument in argv)


def help_text(values: flags.FlagValues) -> str:
    """Every flag with its default and what it is for, a line each."""
    lines = []
    for name in values:
        flag = values[name]
        default = "" if flag.default in (None, "", []) else f" ({flag.default})"
        # absl adds a line of its own to flags that may be repeated.
        what = flag.help.splitlines()[0].rstrip(";")
        lines.append(f"  --{name}{default}: {what}")
    return "\n".join(lines)


def parse(
    verb: str, values: flags.FlagValues, argv: Sequence[str], required: Sequence[str] = ()
) -> list[str]:
    """Reads the flags.

    Args:
        verb: its name, for messages.
        values: the flags, which take the values.
        argv: what follows the verb.
        required: flags that must be given.

    Returns:
        What is left over: arguments that are no flags.

    Raises:
        ValueError: an unknown flag (with the nearest that exists), a wrong value, or a missing one.
    """
    more = f"`medloc {verb} --help` lists all"
    try:
        rest = values([verb, *argv])[1:]
    except flags.UnrecognizedFlagError as error:
        given = re.sub(r"^--?", "", str(error.flagname))
        near = difflib.get_close_matches(given, list(values), n=1)
        hint = f"did you mean --{near[0]}? " if near else ""
        raise ValueError(f"unknown flag --{given}: {hint}{more}") from error
    except flags.Error as error:
        raise ValueError(f"{' '.join(str(error).split())}: {more}") from error
    missing = [f"--{name}" for name in required if not values[name].value]
    if missing:
        raise ValueError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing: {more}"
        )
    return rest
