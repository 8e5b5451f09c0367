# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""`medloc VERB ...`: finds the verb, and turns what a user can mend into one line.

Each verb is a module with `main(argv) -> int`, where argv is what follows the verb; it is imported
only when asked for, so that `medloc --help` does not wait for JAX.
"""

import difflib
import importlib
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from medloc_jax import xla_flags

# verb -> (module, what it does)
VERBS = {
    "prepare": ("medloc_jax.cli.prepare", "make a data set folder with a manifest"),
    "train": ("medloc_jax.cli.train", "SFT or GRPO, as the config says; goes on where it stopped"),
    "evaluate": ("medloc_jax.cli.evaluate", "score a checkpoint on a split"),
    "predict": ("medloc_jax.cli.predict", "one image and one sentence in, a box out"),
    "convert": ("medloc_jax.cli.convert", "Hugging Face folder to checkpoint, and back"),
    "report": ("medloc_jax.cli.report", "tables and plots of one or many runs"),
    "curriculum": ("medloc_jax.cli.curriculum", "replay a reward schedule over logged IoUs"),
    "diagnose": ("medloc_jax.cli.diagnose", "what a model could learn from, and settings to start"),
    "sweep": ("medloc_jax.cli.sweep", "a list of runs, one after another or as launch lines"),
    "plan": ("medloc_jax.cli.plan", "what a run takes, without its devices: memory, traffic, time"),
    "watch": ("medloc_jax.cli.watch", "a run on one screen, while it goes on"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code.

    Args:
      argv: what follows `medloc`; the process's own by default.

    Returns:
      0; 2 for what the user can mend, said in one line on stderr (`MEDLOC_DEBUG=1` shows the
      traceback instead); 130 after Ctrl-C.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    verb, rest = argv[0], argv[1:]
    if verb not in VERBS:
        (nearest,) = difflib.get_close_matches(verb, VERBS, n=1, cutoff=0.0)
        print(
            f"medloc: error: no verb {verb!r}; did you mean {nearest}? Verbs: {', '.join(VERBS)}",
            file=sys.stderr,
        )
        return 2
    try:
        xla_flags.apply()
        return _run(verb, rest)
    except KeyboardInterrupt:
        print(f"medloc {verb}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has left (`| head`). Python would complain once more while it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        message = _one_line(error, rest)
        if message is None or os.environ.get("MEDLOC_DEBUG"):
            raise
        print(f"medloc {verb}: error: {message}", file=sys.stderr)
        return 2


def _run(verb: str, rest: list[str]) -> int:
    module = importlib.import_module(VERBS[verb][0])
    if rest and rest[0] in ("-h", "--help"):
        # A verb may tell its flags, too.
        tell = getattr(module, "help_text", lambda: (module.__doc__ or "").strip())
        print(tell())
        return 0
    config_file = _config_file(rest)
    # A variant may follow the name: configs/x.py:variant.
    if config_file and not Path(re.sub(r"(\.py):.*", r"\1", config_file)).is_file():
        # ml_collections would only tell when the config is first read, and not its name.
        raise FileNotFoundError(f"--config={config_file}: there is no such file")
    return module.main(rest)


def _usage() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {line}" for verb, (_, line) in VERBS.items()]
    return "\n".join(
        ["usage: medloc VERB [FLAG...]", "", *lines, "", "`medloc VERB --help` tells more."]
    )


def _one_line(error: Exception, argv: Sequence[str]) -> str | None:
    """Returns what to tell the user, or None for an error of ours that needs its traceback."""
    from absl import flags

    if _while_parsing_config(error) and isinstance(error, (AttributeError, KeyError, TypeError)):
        return " ".join(_config_mistake(error, argv).split())
    if isinstance(error, (ValueError, OSError, flags.Error)):
        return " ".join(str(error).split()) or type(error).__name__
    return None


def _while_parsing_config(error: Exception) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return any(Path(frame.filename).name == "config_flags.py" for frame in frames)


def _config_mistake(error: Exception, argv: Sequence[str]) -> str:
    """Names the field that does not exist, and the nearest that does."""
    from medloc_jax import config

    fields = list(_field_names(config.default_config()))
    overrides = [re.match(r"--?(?:no)?config\.([\w.]+)", argument) for argument in argv]
    for name in [override[1] for override in overrides if override]:
        if name not in fields:
            return f"--config.{name}: no such field; did you mean {_nearest(name, fields)}?"
    # The name stands in quotes, in ConfigDict's message or in one that repeats that.
    known = {part for field in fields for part in field.split(".")}
    for name in re.findall(r"""['"\\]+(\w+)['"\\]+""", str(error)):
        if name not in known:
            near = _nearest(name, fields)
            return f"{_config_file(argv)}: no config field {name!r}; did you mean {near}?"
    return f"{_config_file(argv)}: {error}"


def _field_names(config: Any, prefix: str = "") -> Iterator[str]:
    """Yields the dotted name of every section and field of a ConfigDict."""
    for name, value in config.items():
        yield f"{prefix}{name}"
        if hasattr(value, "items"):
            yield from _field_names(value, f"{prefix}{name}.")


def _nearest(name: str, fields: Sequence[str]) -> str:
    """The most similar field, by its full name or by its last part, whichever is closer."""

    def likeness(field: str) -> float:
        last = field.rpartition(".")[2], name.rpartition(".")[2]
        full = field, name
        return sum(difflib.SequenceMatcher(None, *pair).ratio() for pair in (last, full))

    return max(fields, key=likeness)


def _config_file(argv: Sequence[str]) -> str:
    for i, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            return value if equals else "".join(argv[i + 1 : i + 2])
    return ""
