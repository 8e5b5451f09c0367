# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A report as a list of blocks, written as Markdown and as one self-contained HTML page."""

import base64
import dataclasses
import html
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from medloc_jax.evaluation import page

# Sections from which on a page opens with a list of them.
_MANY_SECTIONS = 5
# Characters of a cell that is not broken into lines: numbers with their intervals, names.
_SHORT = 32
_SURROGATE = re.compile("[\ud800-\udfff]")  # a lone one, as JSON may hold: Python joins pairs


@dataclasses.dataclass(frozen=True)
class Heading:
    """A title (level 1) or a section's heading (level 2)."""

    text: str
    level: int = 2


@dataclasses.dataclass(frozen=True)
class Text:
    """One paragraph of plain text."""

    text: str


@dataclasses.dataclass(frozen=True)
class Bullets:
    """A list of plain texts."""

    items: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of plain texts; every row is as long as the header.

    `marks` names cells, by (row, column), that are "best" (bold) or "second" (underlined).
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    marks: Mapping[tuple[int, int], str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG in the report's folder; `caption` also serves readers who cannot see it."""

    file: str
    caption: str
    photo: bool = False  # holds photographs, whose colours a dark page must not turn round


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Predictions to page through, which only the HTML page can; made by `gallery.build`."""

    data: Mapping[str, Any]
    note: str  # what is in it, and what is left out


Block = Heading | Text | Bullets | Table | Picture | Gallery

# How a marked cell is written, in Markdown and in HTML: both know these tags.
_TAGS = {"best": "b", "second": "u"}


def to_markdown(blocks: Sequence[Block]) -> str:
    """The blocks as GitHub Markdown; pictures are linked by their file names."""
    parts = []
    for block in blocks:
        match block:
            case Heading(text, level):
                parts.append(f"{'#' * level} {_markdown(text)}")
            case Text(text):
                parts.append(_markdown(text))
            case Bullets(items):
                parts.append("\n".join(f"- {_markdown(item)}" for item in items))
            case Table(header, rows, marks):
                lines = [list(map(_markdown, header)), ["---"] * len(header)]
                lines += [_cells(row, index, marks, _markdown) for index, row in enumerate(rows)]
                parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
            case Picture(file, caption):
                alt = Path(file).stem.replace("_", " ")
                parts.append(f"![{alt}]({file})\n\n{_markdown(caption)}")
            case Gallery():
                parts.append("## Gallery\n\nreport.html pages through the predictions.")
    return "\n\n".join(parts) + "\n"


def to_html(blocks: Sequence[Block], folder: Path) -> str:
    """The blocks as one HTML page with the pictures of `folder` in it: it can be mailed as is."""
    title = next((block.text for block in blocks if isinstance(block, Heading)), "Report")
    parts, sections = [], []
    gallery = None
    for block in blocks:
        match block:
            case Heading(text, level):
                anchor = f"section-{len(sections) + 1}"
                if level == 2:
                    sections.append((anchor, text))
                identity = f' id="{anchor}"' if level == 2 else ""
                parts.append(f"<h{level}{identity}>{html.escape(text)}</h{level}>")
            case Text(text):
                parts.append(f"<p>{html.escape(text)}</p>")
            case Bullets(items):
                listed = "".join(f"<li>{html.escape(item)}</li>" for item in items)
                parts.append(f"<ul>{listed}</ul>")
            case Table(header, rows, marks):
                parts.append(_table(header, rows, marks, sections[-1][1] if sections else title))
            case Picture():
                parts.append(_figure(block, folder))
            case Gallery(data, note):
                gallery = data
                sections.append(("gallery", "Gallery"))
                parts.append(page.GALLERY % html.escape(note))
    if len(sections) >= _MANY_SECTIONS:
        parts.insert(1, _contents(sections))
    return page.fill(title, "\n".join(parts), gallery)


def _contents(sections: Sequence[tuple[str, str]]) -> str:
    links = "".join(
        f'<li><a href="#{anchor}">{html.escape(text)}</a></li>' for anchor, text in sections
    )
    return f"<nav><details><summary>Contents</summary><ul>{links}</ul></details></nav>"


def _table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    marks: Mapping[tuple[int, int], str],
    title: str,
) -> str:
    """A table in a scroller of its own, which the keyboard can reach."""
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in header)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{' class=short' if len(plain) <= _SHORT else ''}>{cell}</td>"
            for plain, cell in zip(row, _cells(row, index, marks, html.escape), strict=True)
        )
        + "</tr>"
        for index, row in enumerate(rows)
    )
    label = html.escape(f"Table: {title}")
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{label}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _figure(picture: Picture, folder: Path) -> str:
    """A picture no wider than its letters ask for; a press shows it at full size."""
    file = folder / picture.file
    with Image.open(file) as image:
        width, height = image.size
        dots_per_inch = float(image.info.get("dpi", (150.0, 150.0))[0])
    data = base64.b64encode(file.read_bytes()).decode("ascii")
    alt = html.escape(Path(picture.file).stem.replace("_", " ").capitalize())
    kind = "photo" if picture.photo else "plot"
    return (
        f'<figure class="{kind}" style="max-width: {100 * width / dots_per_inch:.0f}px">'
        f'<button type="button" class="zoom" aria-label="Enlarge: {alt}">'
        f'<img alt="{alt}" width="{width}" height="{height}" src="data:image/png;base64,{data}">'
        f"</button><figcaption>{html.escape(picture.caption)}</figcaption></figure>"
    )


def replace(path: Path, text: str) -> None:
    """Writes a file whole or not at all; a lone surrogate, which UTF-8 lacks, becomes U+FFFD."""
    text = _SURROGATE.sub("\ufffd", text)
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _cells(
    row: Sequence[str],
    index: int,
    marks: Mapping[tuple[int, int], str],
    escape: Callable[[str], str],
) -> list[str]:
    """The cells of one row, escaped, the marked ones between their tags."""
    tags = [_TAGS.get(marks.get((index, column), "")) for column in range(len(row))]
    return [
        f"<{tag}>{escape(cell)}</{tag}>" if tag else escape(cell)
        for cell, tag in zip(row, tags, strict=True)
    ]


def _markdown(text: str) -> str:
    """Plain text, safe inside a table cell and against being read as markup or HTML."""
    for mark in "\\`*|":
        text = text.replace(mark, "\\" + mark)
    # A lone [1, 2] is no link; only what may follow it makes it one.
    text = text.replace("](", "]\\(").replace("][", "]\\[")
    return " ".join(text.replace("&", "&amp;").replace("<", "&lt;").split())
