# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""One picture with the boxes of its answers, at the picture's own proportions."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

# Blue and orange differ in brightness as well as in hue; the dark rim keeps both visible on pale
# skin as on black ultrasound.
ANSWER_COLOR = (255, 140, 26)
OTHERS_COLOR = (86, 180, 233)
RIM_COLOR = (0, 0, 0)
# Small pictures are enlarged, so that lines and letters are not as coarse as their pixels.
SHORTEST_SIDE = 480
LONGEST_SIDE = 1600


def draw(
    picture: Image.Image,
    answer_px: Sequence[float] | None,
    others_px: Sequence[Sequence[float]] = (),
    *,
    caption: str = "",
) -> Image.Image:
    """Draws the boxes on a copy.

    Args:
        picture: RGB, in the pixels that the boxes are in.
        answer_px: xyxy; a thick orange line. None: there is none.
        others_px: xyxy each; thin blue lines below it.
        caption: one line in a strip below the picture; shortened where it is too long.

    Returns:
        The picture, enlarged or reduced where it is very small or large, on white where it is
        narrower than a caption.
    """
    longest = LONGEST_SIDE / max(picture.size)
    scale = min(max(1.0, SHORTEST_SIDE / min(picture.size)), longest)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    # The sheet of a very narrow picture is wide enough for words.
    sheet_width = max(width, SHORTEST_SIDE)
    font_size = max(13, round(min(sheet_width, max(height, SHORTEST_SIDE)) / 32))
    strip = round(font_size * 1.9) if caption else 0
    sheet = Image.new("RGB", (sheet_width, height + strip), (255, 255, 255))
    sheet.paste(picture.resize((width, height), Image.Resampling.LANCZOS), (0, 0))
    brush = ImageDraw.Draw(sheet)
    line = min(max(2, round(min(width, height) / 160)), max(1, min(width, height) // 8))
    for box in others_px:
        _outline(brush, box, scale, OTHERS_COLOR, max(2, round(line * 0.6)))
    if answer_px is not None:
        _outline(brush, answer_px, scale, ANSWER_COLOR, line)
    if caption:
        brush.rectangle((0, height, sheet_width, height + strip), fill=(255, 255, 255))
        font = ImageFont.load_default(size=font_size)
        text = _shortened(caption, font, sheet_width - 2 * font_size)
        brush.text((font_size, height + strip // 2), text, (30, 30, 30), font, anchor="lm")
    return sheet


def write(path: Path, sheet: Image.Image) -> None:
    """Writes a PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    sheet.save(partial, format="PNG")
    partial.replace(path)


def _outline(
    brush: ImageDraw.ImageDraw,
    box: Sequence[float],
    scale: float,
    color: tuple[int, int, int],
    line: int,
) -> None:
    """A box of `line` pixels with a one-pixel rim on both sides; half-open boxes end before x2."""
    x1, y1, x2, y2 = (round(side * scale) for side in box)
    x2, y2 = max(x1, x2 - 1), max(y1, y2 - 1)
    brush.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=RIM_COLOR, width=line + 2)
    brush.rectangle((x1, y1, x2, y2), outline=color, width=line)


def _shortened(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + " ...") > width:
        text = text[:-1]
    return text + " ..."
