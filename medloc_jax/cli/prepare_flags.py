# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The flags of `medloc prepare DATASET`: those of every data set, and its reader's own."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags

from medloc_jax.cli import verb_flags
from medloc_jax.data import importing, questions, splits, synthetic


def of_reader(
    read: Callable[..., Any], options: Mapping[str, str], *, query: str, split: str
) -> flags.FlagValues:
    """The flags of a published data set.

    Args:
        read: the reader, whose keyword arguments have the defaults of its own flags.
        options: help for each of those.
        query: what is asked without --query.
        split: the rule without --split.
    """
    values = flags.FlagValues()
    text, whole, switch = flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_bool
    choice = flags.DEFINE_enum
    text("source", None, "the data set as it was published", flag_values=values)
    text("out", None, "folder to write, beside the source", flag_values=values)
    text(
        "query",
        None,
        "what is asked of an image, {label} standing for the class; "
        + (f"{query!r} if left away" if query else "needed"),
        flag_values=values,
    )
    choice(
        "one_box",
        "refuse",
        list(questions.ONE_BOX),
        "several boxes for one question: refuse the question, take the largest, the box round all "
        "(union), or make an example of each (split)",
        flag_values=values,
    )
    choice(
        "split",
        None,
        list(splits.RULES),
        f"which image is train or test; {split} if left away; auto: official where every "
        "image is in a published split, else group",
        flag_values=values,
    )
    whole("seed", 42, "of the split and of the sheet", flag_values=values)
    flags.DEFINE_float("test_fraction", None, "share of test; 0.2 if empty", flag_values=values)
    choice(
        "images",
        "copy",
        list(importing.PLACEMENTS),
        "copy the images, link to them, or refer to them where they are",
        flag_values=values,
    )
    text("name", None, "the manifest's `source`; the data set's name if empty", flag_values=values)
    text("label_pattern", "", "regular expression: label in an image's path", flag_values=values)
    text("group_pattern", "", "regular expression: patient in the path", flag_values=values)
    switch("strict", False, "stop at the first file that is refused", flag_values=values)
    switch("overwrite", False, "replace a folder that prepare has written", flag_values=values)
    parameters = inspect.signature(read).parameters
    for option, what in options.items():
        default = parameters[option].default
        define: Callable[..., Any] = whole if isinstance(default, int) else text
        define(option, default, what, flag_values=values)
    return values


def help_text(name: str, values: flags.FlagValues) -> str:
    """Every flag with its default and what it is for."""
    source = " --source=DIR" if "source" in values else ""
    usage = f"medloc prepare {name}{source} --out=DIR [FLAG...]"
    return f"{usage}\n\n{verb_flags.help_text(values)}"


def of_synthetic() -> flags.FlagValues:
    """The flags of the data set that is drawn."""
    values = flags.FlagValues()
    flags.DEFINE_string("out", None, "folder to write, new or empty", flag_values=values)
    flags.DEFINE_string(
        "variant", "lesions", f"one of {', '.join(synthetic.VARIANTS)}", flag_values=values
    )
    flags.DEFINE_integer("num_train", 3000, "pictures of the train split", flag_values=values)
    flags.DEFINE_integer("num_test", 400, "pictures of the test split", flag_values=values)
    flags.DEFINE_integer("seed", 0, "of the pictures", flag_values=values)
    return values


def parse(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """Reads the flags.

    Args:
        values: the flags, which take the values.
        argv: the data set's name, then the flags.

    Raises:
        ValueError: an unknown flag, a wrong value, something left over, or --out, or --source
            where there is that flag, is missing.
    """
    usage = f"the flags of `medloc prepare {argv[0]}` are " + ", ".join(
        f"--{name}" for name in sorted(values)
    )
    try:
        rest = values(list(argv))[1:]
    except flags.Error as error:
        raise ValueError(f"{error}: {usage}") from error
    if rest:
        raise ValueError(f"{rest[0]!r} is not understood: {usage}")
    if "source" in values and not values.source:
        raise ValueError("--source is missing: name the folder of the data set")
    if not values.out:
        raise ValueError("--out is missing: name the folder to write")
