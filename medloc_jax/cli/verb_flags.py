# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Reading a verb's flags, so that a mistake is one line that names the cure."""

import difflib
import re
from collections.abc import Callable, Sequence

from absl import flags
from ml_collections import config_flags


def is_given(argv: Sequence[str], name: str) -> bool:
    """Whether a flag stands among the arguments, before they are parsed.

    Args:
        argv: what follows the verb.
        name: of the flag, without dashes; a word without them is another flag's value.
    """
    return any(
        argument.startswith("-") and re.sub(r"^--?", "", argument).partition("=")[0] == name
        for argument in argv
    )


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


def verb_help(doc: str | None, define: Callable[[flags.FlagValues], None]) -> str:
    """The help of a verb that takes an experiment.

    Args:
        doc: what the verb does.
        define: adds the verb's own flags.
    """
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config",
        None,
        "the experiment file; --config.FIELD=VALUE sets one of its fields",
        flag_values=values,
        sys_argv=[],
    )
    define(values)
    return f"{(doc or '').strip()}\n\n{help_text(values)}"


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
