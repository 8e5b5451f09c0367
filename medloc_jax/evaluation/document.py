# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A report as a list of blocks, written as Markdown and as one self-contained HTML page."""

import base64
import dataclasses
import html
from collections.abc import Sequence
from pathlib import Path

_CSS = """
body { font: 16px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; color: #1b1b1b;
       background: #fff; max-width: 1000px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .25rem; }
h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; padding-bottom: .2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top;
         border-bottom: 1px solid #e5e5e5; }
th { border-bottom: 1px solid #888; white-space: nowrap; }
figure { margin: 1rem 0; }
img { width: 100%; height: auto; }
figcaption, .note { color: #555; font-size: .9rem; }
"""


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
    """A table of plain texts; every row is as long as the header."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG in the report's folder; `caption` also serves readers who cannot see it."""

    file: str
    caption: str


Block = Heading | Text | Bullets | Table | Picture


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
            case Table(header, rows):
                lines = [header, ["---"] * len(header), *rows]
                parts.append("\n".join(f"| {' | '.join(map(_markdown, line))} |" for line in lines))
            case Picture(file, caption):
                alt = Path(file).stem.replace("_", " ")
                parts.append(f"![{alt}]({file})\n\n{_markdown(caption)}")
    return "\n\n".join(parts) + "\n"


def to_html(blocks: Sequence[Block], folder: Path) -> str:
    """The blocks as one HTML page with the pictures of `folder` in it: it can be mailed as is."""
    title = next((block.text for block in blocks if isinstance(block, Heading)), "Report")
    parts = []
    for block in blocks:
        match block:
            case Heading(text, level):
                parts.append(f"<h{level}>{html.escape(text)}</h{level}>")
            case Text(text):
                parts.append(f"<p>{html.escape(text)}</p>")
            case Bullets(items):
                listed = "".join(f"<li>{html.escape(item)}</li>" for item in items)
                parts.append(f"<ul>{listed}</ul>")
            case Table(header, rows):
                head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
                body = "".join(
                    "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
                    for row in rows
                )
                parts.append(
                    f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
                    f"<tbody>{body}</tbody></table></div>"
                )
            case Picture(file, caption):
                data = base64.b64encode((folder / file).read_bytes()).decode("ascii")
                text = html.escape(caption)
                parts.append(
                    f'<figure><img alt="{text}" src="data:image/png;base64,{data}">'
                    f"<figcaption>{text}</figcaption></figure>"
                )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_CSS}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _markdown(text: str) -> str:
    """Plain text, safe inside a table cell and against being read as markup or HTML."""
    for mark in "\\`*|":
        text = text.replace(mark, "\\" + mark)
    # A lone [1, 2] is no link; only what may follow it makes it one.
    text = text.replace("](", "]\\(").replace("][", "]\\[")
    return " ".join(text.replace("&", "&amp;").replace("<", "&lt;").split())
