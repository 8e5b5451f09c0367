# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face folder to an orbax checkpoint, or a checkpoint to a Hugging Face folder.

    medloc convert --source=DIR --target=DIR [--dtype=keep|float32|bfloat16|float16]
                   [--max_shard_size=5GB] [--base=DIR] [--verify]

The direction is found from the source: a folder with safetensors files becomes an orbax checkpoint;
the workdir of a run, one of its steps, or a converted folder becomes a folder that transformers and
vLLM read. The target must be new or empty, and gets its name when all of it is written. --base is
the folder of the base model, where the run's configuration names one that is not here. --verify
compares a forward pass with transformers and needs torch.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from medloc_jax.cli import verb_flags
from medloc_jax.convert import interrupts, staging

DTYPES = ("keep", "float32", "bfloat16", "float16")


def main(argv: Sequence[str]) -> int:
    """Runs the verb.

    Args:
        argv: what follows `medloc convert`.

    Returns:
        The exit code; 1 where --verify finds a difference.

    Raises:
        ValueError: a wrong command line or source; one line with the cure.
        KeyboardInterrupt: after Ctrl-C, when what was being written is written and removed.
    """
    values = _flags()
    if verb_flags.wants_help(argv):
        print(help_text())
        return 0
    rest = verb_flags.parse("convert", values, argv, required=["source", "target"])
    if rest:
        raise ValueError(f"{rest[0]!r} is not understood: `medloc convert --help` lists the flags")
    if values.dtype not in DTYPES:
        raise ValueError(f"--dtype={values.dtype} is none of {', '.join(DTYPES)}")
    source, target = Path(values.source), Path(values.target)
    if not source.is_dir():
        raise ValueError(f"--source={source}: there is no such folder")
    if values.base and not Path(values.base).is_dir():
        raise ValueError(f"--base={values.base}: there is no such folder")
    staging.check_apart(source, target)
    staging.check_target(target)
    with interrupts.deferred() as check:
        # Imports JAX: seconds, in which Ctrl-C could get lost.
        from medloc_jax.cli import conversion

        check()
        done = conversion.run(
            conversion.Request(
                source=source,
                target=target,
                dtype=values.dtype,
                max_shard_size=values.max_shard_size,
                base=values.base,
                verify=values.verify,
            ),
            check,
        )
        if values.verify:
            check()
    if values.verify and not conversion.verified(done):
        return 1
    return 0


def help_text() -> str:
    """What --help says."""
    return f"{(__doc__ or '').strip()}\n\n{verb_flags.help_text(_flags())}"


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()

    def text(name: str, default: str, what: str) -> None:
        flags.DEFINE_string(name, default, what, flag_values=values)

    text("source", "", "Hugging Face folder, or a run, one of its steps, or a converted folder")
    text("target", "", "folder to write, new or empty, outside the source")
    text("dtype", "keep", f"of the weights: {', '.join(DTYPES)}")
    text("max_shard_size", "5GB", "of a safetensors file, like 5GB or 500MB")
    text("base", "", "the base model's folder, where the run names one that is not here")
    flags.DEFINE_bool("verify", False, "compare with transformers on torch", flag_values=values)
    return values
