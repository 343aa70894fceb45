"""Pictures of a page: as data in it, and as a sheet beside it."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from endauda_cli.report.sections import Gallery

    UInt8 = NDArray[np.uint8]

WIDTH = 480
"""Of a picture in a page, at most."""


def contact_sheet(gallery: Gallery, gap: int = 4) -> UInt8:
    """The gallery as one (H, W, 3) uint8 picture with the columns' names on top."""
    height = max(p.shape[0] for row in gallery.rows for p in row.pictures)
    width = max(p.shape[1] for row in gallery.rows for p in row.pictures)
    font = _heading(gallery.columns, width)
    head = round(font.size) + 4
    size = (len(gallery.columns) * (width + gap) + gap, len(gallery.rows) * (height + gap) + head + gap)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for x, column in enumerate(gallery.columns):
        draw.text((gap + x * (width + gap), 1), column, fill="black", font=font)
    for y, row in enumerate(gallery.rows):
        for x, picture in enumerate(row.pictures):
            place = (gap + x * (width + gap), head + gap + y * (height + gap))
            sheet.paste(Image.fromarray(np.ascontiguousarray(picture)), place)
    return np.asarray(sheet)


def _heading(columns: Sequence[str], width: int) -> ImageFont.FreeTypeFont:
    """Letters that can still be read where a wide sheet is shown small, but no larger than the names fit."""
    longest = max(ImageFont.load_default(100).getlength(column) for column in columns) / 100
    font = ImageFont.load_default(max(12, min(width // 12, int(width / max(longest, 1)))))
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def thumbnail(picture: NDArray[Any], width: int = WIDTH, flat: bool = False) -> NDArray[Any]:
    """An (H, W, 3) uint8 picture, scaled down to at most that width; ``flat`` keeps label colours pure."""
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    if width >= picture.shape[1]:
        return picture
    how = Image.Resampling.NEAREST if flat else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(picture).resize((width, height), how))


def data_url(picture: UInt8) -> str:
    """Flat pictures (label maps) as PNG, photographs as JPEG: each is smallest that way."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    buffer = io.BytesIO()
    if image.getcolors(256) is not None:
        image.convert("P", palette=Image.Palette.ADAPTIVE, colors=256).save(buffer, "PNG")
        kind = "png"
    else:
        image.save(buffer, "JPEG", quality=86)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
