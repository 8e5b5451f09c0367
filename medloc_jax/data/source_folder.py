# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""What lies in a published folder: images by the names that annotations use, files, splits."""

import collections
import itertools
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from medloc_jax.data import annotated, picture

_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def split_of(*names: str) -> str | None:
    """The split that a folder or file name tells of; the last name that tells one wins.

    Names that hold words of two splits, and words such as trainval, tell nothing.
    """
    for name in reversed(names):
        words = re.findall("[a-z]+", name.lower())
        splits = {_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS}
        if len(splits) == 1:
            return splits.pop()
    return None


def split_of_image(path: Path, root: Path) -> str | None:
    """The split that an image's folders below `root` tell of; its own name may be anything."""
    return split_of(*path.relative_to(root).parts[:-1])


def split_of_file(path: Path, root: Path) -> str | None:
    """The split that an annotation file's name, or its folders below `root`, tell of."""
    return split_of(*(path.relative_to(root).parts if root in path.parents else (path.name,)))


class ImageFinder:
    """Finds the images that annotation files name, below one folder and nowhere else."""

    def __init__(self, root: Path):
        self.root = root
        self.paths = picture.list_images(root)
        self._named: set[Path] = set()
        self._by_name: dict[str, list[Path]] = collections.defaultdict(list)
        for path in self.paths:
            # A set, because the stem of a name without suffix is the name.
            for key in {path.name.lower(), path.stem.lower()}:
                self._by_name[key].append(path)

    def find(self, name: str, *, near: Path, split: str | None = None) -> Path:
        """The image of a name, as written in an annotation file.

        The folders in the name decide first, then nearness to the file, then its split. Folders
        of another machine (/home/me/set/1.jpg) do no harm where the file name is unique.

        Args:
            name: a path or a bare file name, with or without its suffix.
            near: the annotation file.
            split: the split of the annotation.

        Raises:
            ValueError: there is none, or the choice between several is not clear.
        """
        parts = [part for part in re.split(r"[/\\]+", name.strip()) if part not in ("", ".", "..")]
        candidates = self._by_name.get(parts[-1].lower(), []) if parts else []
        # Each rule narrows what the rules before it left.
        candidates = _narrowed(candidates, lambda path: path.name == parts[-1])
        longest = max((_same_tail(path, parts) for path in candidates), default=0)
        candidates = _narrowed(candidates, lambda path: _same_tail(path, parts) == longest)
        candidates = _narrowed(candidates, lambda path: path.parent == near.parent)
        nearest = max((_shared(path, near) for path in candidates), default=0)
        candidates = _narrowed(candidates, lambda path: _shared(path, near) == nearest)
        if split is not None:
            candidates = _narrowed(
                candidates, lambda path: split_of_image(path, self.root) == split
            )
        self._named.update(candidates)
        if not candidates:
            raise ValueError(f"image {name!r} is not below {self.root}: put it there")
        if len(candidates) > 1:
            raise ValueError(
                f"image {name!r} may be {candidates[0]} or {candidates[1]}: name its folder, too"
            )
        said, found = split_of(*parts[:-1]), split_of_image(candidates[0], self.root)
        if said and found and said != found:
            raise ValueError(
                f"image {name!r} is not below {self.root} (there is {candidates[0]}, of another "
                "split): put it there"
            )
        return candidates[0]

    def refuse_unnamed(self, refused: annotated.Refusals) -> None:
        """Refuses the images below the folder that nobody has asked for."""
        for path in self.paths:
            if path not in self._named:
                refused.add(path, "no annotation file names it: annotate it, or leave it out")


def _narrowed(paths: list[Path], fits: Callable[[Path], bool]) -> list[Path]:
    """The paths that fit; all of them, where none does or there is no choice."""
    return ([path for path in paths if fits(path)] or paths) if len(paths) > 1 else paths


def _same_tail(path: Path, parts: list[str]) -> int:
    """How many folders above the file are called the same, the nearest first."""
    pairs = zip(reversed(path.parts[:-1]), reversed(parts[:-1]), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _shared(path: Path, near: Path) -> int:
    """How far down the folders of two paths are the same; only good for comparing."""
    return len(os.path.commonpath([path.absolute(), near.absolute()]))


def load_json(path: Path) -> object:
    """The content of a JSON file.

    Raises:
        ValueError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"cannot be read as JSON ({error}): replace the file") from error


def folder_of(source: Path) -> Path:
    """The folder to look for images in: the source, or what an annotation file lies in.

    A file in a folder without images, such as `annotations`, stands for the folder above.

    Raises:
        ValueError: there is no such file or folder.
    """
    if source.is_dir():
        return source
    if not source.is_file():
        raise ValueError(f"{source}: no such file or folder: give --source")
    return source.parent if picture.list_images(source.parent) else source.parent.parent


def annotation_files(
    source: Path,
    root: Path,
    annotations: str,
    find: Callable[[Path], Mapping[Path, str | None]],
    *,
    looked_for: str,
) -> dict[Path, str | None]:
    """The annotation files to read, with the split that the name of each tells.

    Args:
        source: the folder, or the annotation file itself.
        root: as `folder_of(source)`.
        annotations: files that the user chose, separated by commas, from `root` or absolute; "":
            `find` chooses, one file alone or one for each split.
        find: gives the files of the right kind below a folder, with their splits.
        looked_for: what those are, for the message.

    Raises:
        ValueError: there is none, a chosen one is not there, or several and no way to choose.
    """
    if source.is_file():
        return {source: split_of_file(source, root)}
    if annotations:
        chosen = [_existing(name.strip(), root) for name in annotations.split(",")]
        return {path: split_of_file(path, root) for path in chosen}
    found = find(root)
    if not found:
        raise ValueError(
            f"{root}: no annotation file: looked for {looked_for}: give --annotations=FILE"
        )
    splits = list(found.values())
    if len(found) > 1 and (None in splits or len(set(splits)) < len(splits)):
        names = ", ".join(str(path.relative_to(root)) for path in found)
        raise ValueError(
            f"{root}: several annotation files ({names}): choose with --annotations=FILE"
        )
    return dict(found)


def _existing(name: str, root: Path) -> Path:
    for path in (root / name, Path(name)):
        if path.is_file():
            return path
    raise ValueError(f"{root / name}: no such file: correct --annotations")
