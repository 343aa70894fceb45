"""Engine: reports, each one self-contained HTML file, its gallery also as a PNG."""

from __future__ import annotations

import base64
import io
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader
from PIL import Image, ImageDraw, ImageFont

from endauda_cli import __version__
from endauda_cli.labels import write_png
from endauda_cli.workspace import make_folder, write_text

if TYPE_CHECKING:
    from collections.abc import Container, Sequence
    from pathlib import Path

    from markupsafe import Markup
    from numpy.typing import NDArray

    from endauda_cli.domains import Colour

    UInt8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Row:
    """A line of a table. ``best`` are the positions of cells to mark; ``strong`` sets the line in bold; ``heat``
    are shades 0..1 of the cells."""

    cells: Sequence[str]
    best: frozenset[int] = frozenset()
    strong: bool = False
    heat: Sequence[float | None] = ()


@dataclass(frozen=True)
class Table:
    """A section with a table."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Row]
    text: Sequence[str] = ()
    kind: str = "table"
    left: bool = False
    """Words rather than figures: set to the left, without a head."""


@dataclass(frozen=True)
class PictureRow:
    """A line of a gallery: (H, W, 3) uint8 RGB pictures, one per column."""

    name: str
    pictures: Sequence[UInt8]


@dataclass(frozen=True)
class Gallery:
    """A section with pictures side by side, and the classes' colours."""

    title: str
    columns: Sequence[str]
    rows: Sequence[PictureRow]
    legend: Sequence[tuple[str, Colour]] = ()
    text: Sequence[str] = ()
    kind: str = "gallery"


@dataclass(frozen=True)
class Figure:
    """A section with one drawing, (H, W, 3) uint8 RGB; in the page's folder it is ``<name>.png``. Not ``shown``, it is
    there alone, because the page has its figures as a table."""

    title: str
    name: str
    picture: UInt8
    text: Sequence[str] = ()
    shown: bool = True
    kind: str = "figure"


@dataclass(frozen=True)
class Drawing:
    """A title, and SVG that may stand in a page as it is."""

    title: str
    svg: Markup


@dataclass(frozen=True)
class Drawings:
    """A section with drawings side by side, as many as there is room for."""

    title: str
    drawings: Sequence[Drawing]
    text: Sequence[str] = ()
    kind: str = "drawings"


Section = Table | Gallery | Figure | Drawings


@dataclass(frozen=True)
class Report:
    """A page."""

    title: str
    intro: Sequence[str] = ()
    sections: Sequence[Section] = field(default_factory=tuple)
    picture_width: int = 200


def write_report(path: Path, report: Report, images: Container[str] = ()) -> None:
    """Write the page to ``path``, and its pictures to a folder beside it that is called as the page: a folder of
    labels or predictions holds no other PNGs than these.

    Args:
        path: ``report.html``.
        report: the page. Each gallery becomes ``report/gallery[-n].png``, each figure ``report/<name>.png``.
        images: ids of images with a PNG of their own beside the page, which is left alone; other pictures there that
            earlier versions called ``report.png`` and ``report-<name>.png`` are removed.
    """
    environment = Environment(loader=PackageLoader("endauda_cli"), autoescape=True, trim_blocks=True)
    galleries = [section for section in report.sections if isinstance(section, Gallery)]
    page = environment.get_template("report.html").render(
        title=report.title,
        intro=report.intro,
        sections=[
            _embedded(section)
            for section in report.sections
            if not isinstance(section, Figure) or section.shown
        ],
        picture_width=report.picture_width,
        version=__version__,
    )
    write_text(path, page)
    folder, earlier = path.with_suffix(""), []
    pictures: dict[str, UInt8] = {}
    for number, gallery in enumerate(galleries, 1):
        suffix = f"-{number}" if len(galleries) > 1 else ""
        pictures[f"gallery{suffix}"] = contact_sheet(gallery)
        earlier.append(f"{path.stem}{suffix}")
    for figure in report.sections:
        if isinstance(figure, Figure):
            pictures[figure.name] = figure.picture
            earlier.append(f"{path.stem}-{figure.name}")
    if pictures:
        make_folder(folder)
    for name, picture in pictures.items():
        if f"{folder.name}/{name}" not in images:
            write_png(folder / f"{name}.png", picture)
    for name in earlier:
        if name not in images:
            with suppress(OSError):
                path.with_name(f"{name}.png").unlink()


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


def thumbnail(picture: NDArray[Any], width: int = 320, flat: bool = False) -> NDArray[Any]:
    """An (H, W, 3) uint8 picture, scaled down to at most that width; ``flat`` keeps label colours pure."""
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    if width >= picture.shape[1]:
        return picture
    how = Image.Resampling.NEAREST if flat else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(picture).resize((width, height), how))


def percent(share: float | None) -> str:
    """A share 0..1 as percent with one digit."""
    return "n/a" if share is None else f"{100 * share:.1f}"


def number(value: float | None, digits: int = 2) -> str:
    """A figure with so many digits."""
    return "n/a" if value is None else f"{value:.{digits}f}"


@dataclass(frozen=True)
class _EmbeddedRow:
    name: str
    pictures: list[str]


@dataclass(frozen=True)
class _EmbeddedFigure:
    title: str
    picture: str
    width: int
    text: Sequence[str]
    kind: str = "figure"


def _embedded(section: Section) -> Table | Gallery | Drawings | _EmbeddedFigure:
    if isinstance(section, Table | Drawings):
        return section
    if isinstance(section, Figure):
        # Drawn at twice the size it is shown at, for sharp letters on any screen.
        return _EmbeddedFigure(
            section.title, _data_url(section.picture), section.picture.shape[1] // 2, section.text
        )
    rows = [_EmbeddedRow(row.name, [_data_url(p) for p in row.pictures]) for row in section.rows]
    return Gallery(section.title, section.columns, rows, section.legend, section.text)  # type: ignore[arg-type]


def _data_url(picture: UInt8) -> str:
    """Flat pictures (label maps) as PNG, photographs as JPEG: each is smallest that way."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    buffer = io.BytesIO()
    if image.getcolors(256) is not None:
        image.convert("P", palette=Image.Palette.ADAPTIVE, colors=256).save(buffer, "PNG")
        kind = "png"
    else:
        image.save(buffer, "JPEG", quality=88)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
