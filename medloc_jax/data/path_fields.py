# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Label and group from a file's path, for data sets that say them there and nowhere else."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from medloc_jax.data import annotated


def add_path_fields(
    images: Sequence[annotated.AnnotatedImage],
    source: Path,
    refused: annotated.Refusals,
    *,
    label_pattern: str,
    group_pattern: str,
) -> list[annotated.AnnotatedImage]:
    """Takes the label or the group of every image from its path below `source`.

    Args:
        images: as a reader gives them.
        source: the data set's folder.
        refused: gets the images whose path does not match.
        label_pattern: a regular expression that is searched for in the path; its first bracket,
            else all it matches, is the label of image and targets. "": labels stay as they are.
        group_pattern: the same for the group.

    Returns:
        The images whose paths match, in order.

    Raises:
        ValueError: a pattern is no regular expression.
    """
    result = []
    for image in images:
        path = _below(image.image_path, source)
        try:
            label = _find(label_pattern, path, "label_pattern")
            group = _find(group_pattern, path, "group_pattern")
        except LookupError as error:
            refused.add(image.image_path, str(error.args[0]))
            continue
        if label:
            targets = tuple(target._replace(label=label) for target in image.targets)
            image = dataclasses.replace(image, label=label, targets=targets)
        result.append(dataclasses.replace(image, group=group) if group else image)
    return result


def _below(path: Path, source: Path) -> str:
    return (path.relative_to(source) if path.is_relative_to(source) else path).as_posix()


def _find(pattern: str, path: str, flag: str) -> str:
    if not pattern:
        return ""
    try:
        match = re.search(pattern, path)
    except re.error as error:
        raise ValueError(f"--{flag}={pattern!r}: is no regular expression: {error}") from error
    found = match[1 if match.re.groups else 0] if match else ""
    if not found:
        raise LookupError(f"--{flag}={pattern!r} finds nothing in this path: widen it")
    return found
