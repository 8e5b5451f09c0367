# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What every data set reader gives: images with their boxes, and the files that were refused.

A reader is `read(source, refused, *, options...) -> list[AnnotatedImage]`. It decides what the
files mean; queries, splits, the one-box rule and the manifest come after it and are the same for
all.
"""

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import tqdm

Box = tuple[float, float, float, float]
Item = TypeVar("Item")
Result = TypeVar("Result")


class Target(NamedTuple):
    """One box of an image.

    Attributes:
        box_px: xyxy, half-open, pixels of the stored image; inside it and not empty.
        label: class of the target, where the data set names one.
    """

    box_px: Box
    label: str | None = None


@dataclasses.dataclass(frozen=True)
class AnnotatedImage:
    """One image of a published data set, as its files describe it.

    Attributes:
        id: unique in the data set; the file's name without suffix where that is unique.
        image_path: the image file.
        width: px of the stored image.
        height: px of the stored image.
        targets: one or more boxes, in the order of the file.
        label: class of the whole image, such as a diagnosis.
        group: patient or lesion, where the data set tells.
        split: the data set's own split: "train", "val", "test" or None.
        query: the data set's own question, where it asks one; None: the user's `--query`.
    """

    id: str
    image_path: Path
    width: int
    height: int
    targets: tuple[Target, ...]
    label: str | None = None
    group: str | None = None
    split: str | None = None
    query: str | None = None


class Refusal(NamedTuple):
    """One file, one line of it, or one question on an image that is not in the manifest, and why.

    Attributes:
        path: the file.
        reason: what is wrong, and the cure.
        line: of the file, from 1; None where the whole file is meant.
        what: "file", "line" or "question"; the other questions on its image stay.
    """

    path: str
    reason: str
    line: int | None = None
    what: str = "file"

    def __str__(self) -> str:
        """`path:line: reason`, as a compiler would say it."""
        where = self.path if self.line is None else f"{self.path}:{self.line}"
        return f"{where}: {self.reason}"


class Refusals:
    """Collects what does not get into the manifest, and what a user should know of the rest.

    Attributes:
        all: files and lines that are wrong, and questions; with `strict` the first one is raised.
        left_out: good files that a rule the user can choose leaves out.
        warnings: files that are taken and should be looked at.
        notes: facts about the whole data set, one sentence each, such as a format that was found.
    """

    def __init__(self, *, strict: bool = False):
        self._strict = strict
        self.all: list[Refusal] = []
        self.left_out: list[Refusal] = []
        self.warnings: list[Refusal] = []
        self.notes: list[str] = []

    def add(self, path: str | os.PathLike[str], reason: str, line: int | None = None) -> None:
        """Notes that a file, or a line of one, is refused.

        Raises:
            ValueError: when strict.
        """
        self._add(_file_or_line(path, reason, line))

    def add_question(self, path: str | os.PathLike[str], reason: str) -> None:
        """Notes that a question on an image is refused; other questions on it are not.

        Raises:
            ValueError: when strict.
        """
        self._add(Refusal(str(path), reason, what="question"))

    def _add(self, refusal: Refusal) -> None:
        if self._strict:
            raise ValueError(f"{refusal} (--strict stops at the first)")
        self.all.append(refusal)

    def leave_out(self, path: str | os.PathLike[str], reason: str, line: int | None = None) -> None:
        """Notes that a rule leaves a good file out; the reason names the rule's flag."""
        self.left_out.append(_file_or_line(path, reason, line))

    def warn(self, path: str | os.PathLike[str], reason: str, line: int | None = None) -> None:
        """Notes that a file is taken and should be looked at."""
        self.warnings.append(_file_or_line(path, reason, line))

    def note(self, sentence: str) -> None:
        """Notes a fact about the whole data set."""
        self.notes.append(sentence)


def _file_or_line(path: str | os.PathLike[str], reason: str, line: int | None) -> Refusal:
    return Refusal(str(path), reason, line, "file" if line is None else "line")


def for_each(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    refused: Refusals,
    *,
    path_of: Callable[[Item], str | os.PathLike[str]],
    what: str,
) -> list[Result]:
    """Calls `function` on every item, in threads and with a progress bar; order is kept.

    Args:
        function: raises ValueError for a file that has to be refused.
        items: one a file.
        refused: gets the ValueErrors' messages.
        path_of: the file that an item stands for, for the refusal.
        what: the progress bar's name.

    Returns:
        The results of the items that were not refused.

    Raises:
        ValueError: the first refusal, when strict.
    """
    results: list[Result] = []
    # Pillow decodes without the interpreter lock, so threads use all cores.
    with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            for item, future in tqdm.tqdm(
                zip(items, futures, strict=True), total=len(items), desc=what, disable=None
            ):
                try:
                    results.append(future.result())
                except ValueError as error:
                    path = str(path_of(item))
                    refused.add(path, str(error).removeprefix(f"{path}: "))
        finally:
            for future in futures:
                future.cancel()
    return results
