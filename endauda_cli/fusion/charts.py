"""Kernels: the drawings of a report, (H, W, 3) uint8 RGB at twice the size they are shown at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from endauda_cli.domains import Colour

    UInt8 = NDArray[np.uint8]

INK, SOFT, LINE, PAPER = (28, 36, 48), (93, 104, 120), (223, 228, 234), (255, 255, 255)
FULL = (46, 139, 87)
GAP, BAR = 20, 34
BAR_WIDTH = 440


def bars(
    names: Sequence[str], colours: Sequence[Colour], columns: Sequence[tuple[str, Sequence[float | None]]]
) -> UInt8:
    """A row per name and a column of bars per (title, shares 0..1); each column's title says its unit."""
    font = ImageFont.load_default(24)
    left = GAP + max(_width(name, font) for name in names) + GAP
    step = BAR_WIDTH + 130
    image = Image.new("RGB", (left + step * len(columns), BAR * (len(names) + 1) + 2 * GAP), PAPER)
    draw = ImageDraw.Draw(image)
    for i, (title, values) in enumerate(columns):
        x = left + i * step
        draw.text((x, GAP // 2), title, SOFT, font)
        full = max((v for v in values if v is not None), default=1) or 1
        for row, value in enumerate(values):
            y = GAP + BAR * (row + 1)
            if value is None:
                draw.text((x, y - 2), "n/a", SOFT, font)
                continue
            end = x + max(1, round(BAR_WIDTH * value / full))
            draw.rectangle((x, y, end, y + BAR - 10), _visible(colours[row]))
            draw.text((end + 8, y - 2), f"{100 * value:.1f}", INK, font)
    for row, name in enumerate(names):
        draw.text((left - GAP, GAP + BAR * (row + 1) - 2), name, INK, font, anchor="ra")
    return np.asarray(image)


def matrix(names: Sequence[str], values: Sequence[Sequence[float | None]]) -> UInt8:
    """Shares 0..1 of pairs of names, the darker the more."""
    font = ImageFont.load_default(24)
    side = max(110, *(_width(name, font) + 16 for name in names))
    left = GAP + max(_width(name, font) for name in names) + GAP
    image = Image.new("RGB", (left + side * len(names) + GAP, 3 * GAP + 64 * len(names)), PAPER)
    draw = ImageDraw.Draw(image)
    heat = shades(values)
    for i, name in enumerate(names):
        draw.text((left - GAP, 2 * GAP + 64 * i + 32), name, INK, font, anchor="rm")
        draw.text((left + side * i + side // 2, GAP), name, INK, font, anchor="mm")
        for j, value in enumerate(values[i]):
            box = (left + side * j, 2 * GAP + 64 * i, left + side * (j + 1) - 3, 2 * GAP + 64 * (i + 1) - 3)
            draw.rectangle(box, LINE if i == j else _mixed(heat[i][j] or 0))
            text = "" if i == j else "n/a" if value is None else f"{100 * value:.1f}"
            draw.text((box[0] + side // 2, box[1] + 30), text, INK, font, anchor="mm")
    return np.asarray(image)


def shades(values: Sequence[Sequence[float | None]]) -> list[list[float | None]]:
    """How dark each cell of a square table is to be, 0.1 (its least) to 0.8 (its most); none on the diagonal."""
    known = [v for i, row in enumerate(values) for j, v in enumerate(row) if v is not None and i != j]
    low, high = min(known, default=0.0), max(known, default=1.0)
    return [
        [
            None if v is None or i == j else 0.1 + 0.7 * (v - low) / (high - low or 1)
            for j, v in enumerate(row)
        ]
        for i, row in enumerate(values)
    ]


def _mixed(share: float) -> Colour:
    r, g, b = (round(p + share * (f - p)) for p, f in zip(PAPER, FULL, strict=True))
    return r, g, b


def _visible(colour: Colour) -> Colour:
    """Class colours are chosen for dark pictures; on paper the lightest need a shade."""
    r, g, b = (min(v, 225) for v in colour)
    return r, g, b


def _width(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    return int(font.getlength(text))
