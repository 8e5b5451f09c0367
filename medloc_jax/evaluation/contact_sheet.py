# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""A sheet of images with true and predicted boxes: which ones to show, and the picture of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from matplotlib import patches, patheffects
from matplotlib.axes import Axes
from PIL import Image

from medloc_jax.evaluation import plot_style
from medloc_jax.evaluation.plot_style import GREEN, ORANGE
from medloc_jax.model import processor


class Cell(NamedTuple):
    """One image of the contact sheet."""

    image_path: Path
    caption: str
    target_box_px: Sequence[float]
    box_px: Sequence[float] | None  # None: the completion held no box
    view_px: tuple[int, int, int, int] | None = None  # the part to show, xyxy; None: all of it


def choose(
    ious: Float[np.ndarray, " n"], *, columns: int, seed: int
) -> dict[str, Int[np.ndarray, " k"]]:
    """Which examples a contact sheet shows: no example twice, fewer of each where there are few.

    Returns:
        "best", "median" and "worst" by IoU, and "random" from the others (seeded), as indices.
    """
    order = np.argsort(-ious, kind="stable")
    each = min(columns, max(1, len(ious) // 4))
    best, worst = order[:each], order[each:][::-1][:each]
    rest = order[each : max(each, len(order) - each)]
    first = max(0, (len(rest) - each) // 2)
    median = rest[first : first + each]
    others = np.concatenate([rest[:first], rest[first + each :]])
    random = np.random.default_rng(seed).permutation(others)[:each]
    chosen = {"best": best, "median": median, "worst": worst, "random": random}
    return {name: indices for name, indices in chosen.items() if len(indices)}


def draw(path: Path, rows: Mapping[str, Sequence[Cell]]) -> None:
    """Images with the true box (green) and the predicted one (orange, dashed), a row a kind."""
    cells = [cell for row in rows.values() for cell in row]
    columns = max(map(len, rows.values()))
    line_width = 2.0 if columns <= 4 else 1.3  # small boxes in small pictures stay visible
    caption_lines = max(cell.caption.count("\n") + 1 for cell in cells)
    # All cells have the shape of the tallest image, within reason: the rows line up, and wide
    # images leave no empty bands.
    tallest = max(_height_per_width(cell.image_path) for cell in cells)
    shape = min(max(tallest, 0.5), 1.2)
    row_inches = 0.33 + 0.17 * caption_lines + 8.2 / columns * shape
    with plot_style.figure_file(path, height=0.5 + row_inches * len(rows)) as figure:
        figure.set_layout_engine("constrained", rect=(0.035, 0, 0.965, 1))
        grid = figure.subplots(len(rows), columns, squeeze=False)
        for panels, (title, row) in zip(grid, rows.items(), strict=True):
            for axes in panels:
                axes.set_axis_off()
            for axes, cell in zip(panels, row, strict=False):
                _draw_cell(axes, cell, shape, line_width)
            # An axis that is off shows no label, so that the row's name is a text of its own; were
            # it part of the layout, every column would get as wide a margin as the first.
            name = panels[0].annotate(
                title,
                (0, 0.5),
                xycoords="axes fraction",
                xytext=(-10, 0),
                fontsize=12,
                textcoords="offset points",
                rotation=90,
                ha="right",
                va="center",
            )
            name.set_in_layout(False)
        handles = [patches.Patch(fill=False, edgecolor=GREEN, linewidth=2, label="true box")]
        if any(cell.box_px is not None for cell in cells):
            handles.append(
                patches.Patch(
                    fill=False,
                    edgecolor=ORANGE,
                    linewidth=2,
                    linestyle="--",
                    label="predicted box",
                )
            )
        figure.legend(handles=handles, loc="outside upper center", ncols=2)


def can_be_drawn(image_path: Path) -> bool:
    """Whether an image file is whole and fit to be shown."""
    try:
        processor.open_image(image_path)
    except ValueError:
        return False
    return True


def _height_per_width(image_path: Path) -> float:
    with Image.open(image_path) as image:
        return image.height / image.width


def _draw_cell(axes: Axes, cell: Cell, shape: float, line_width: float) -> None:
    """Draws one image, centred at the top of a cell that is `shape` times as high as wide."""
    image = processor.open_image(cell.image_path)
    left, top, right, bottom = cell.view_px or (0, 0, *image.size)
    if cell.view_px:
        _note_zoom(axes, image.width / (right - left))
        image = image.crop(cell.view_px)
    width, height = image.size
    image.thumbnail((480, 480))
    # Boxes are in pixels of the stored image, whatever the thumbnail's size.
    axes.imshow(np.asarray(image), extent=(left, right, bottom, top))
    cell_width = max(width, height / shape)
    margin = (cell_width - width) / 2
    axes.set(xlim=(left - margin, right + margin), ylim=(top + cell_width * shape, top))
    for box, color, dashes in (
        (cell.target_box_px, GREEN, "-"),
        (cell.box_px, ORANGE, (0, (4, 2))),
    ):
        if box is None:
            continue
        x1, y1, x2, y2 = box
        outline = patches.Rectangle(
            (x1, y1),
            x2 - x1,
            y2 - y1,
            fill=False,
            edgecolor=color,
            linewidth=line_width,
            linestyle=dashes,
            clip_on=False,
        )
        # A dark rim keeps the line visible on skin as on black ultrasound.
        rim = patheffects.withStroke(linewidth=line_width + 1.4, foreground="#00000099")
        outline.set_path_effects([rim])
        axes.add_patch(outline)
    axes.set_title(cell.caption, fontsize=9.5, loc="center", pad=4)


def _note_zoom(axes: Axes, zoom: float) -> None:
    """Writes into the picture's corner that it is a part of the image."""
    text = axes.text(
        *(0.03, 0.95, f"zoomed {zoom:.1f}x"),
        transform=axes.transAxes,
        va="top",
        fontsize=8.5,
        color="white",
    )
    text.set_path_effects([patheffects.withStroke(linewidth=2, foreground="#000000cc")])
