"""Engine: reports, each one self-contained HTML file, its galleries also as PNG.

``sections`` says what a page is made of, ``components`` draws that, ``diagrams`` are its SVG, ``page`` is the document.
One design for all: ``templates/report.html`` with its style and script. Nothing is loaded from anywhere; a page without
script shows the same, pictures side by side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from endauda_cli.report.page import command_line, html, provenance, write_report
from endauda_cli.report.pictures import contact_sheet, thumbnail
from endauda_cli.report.sections import (
    BarRow,
    Bars,
    Confusion,
    Drawing,
    Drawings,
    Figure,
    Gallery,
    PictureRow,
    Reliability,
    Report,
    Row,
    Section,
    Table,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "BarRow", "Bars", "Confusion", "Drawing", "Drawings", "Figure", "Gallery", "PictureRow", "Reliability", "Report",
    "Row", "Section", "Table", "command_line", "contact_sheet", "html", "marked_best", "number", "percent",
    "provenance", "thumbnail", "write_report",
]  # fmt: skip


def percent(share: float | None) -> str:
    """A share 0..1 as percent with one digit."""
    return "n/a" if share is None else f"{100 * share:.1f}"


def number(value: float | None, digits: int = 2) -> str:
    """A figure with so many digits."""
    return "n/a" if value is None else f"{value:.{digits}f}"


def marked_best(name: str, values: Sequence[float | None], absent: str = "n/a", strong: bool = False) -> Row:
    """A line of figures, the highest of them marked as they are shown."""
    shown = [None if value is None else round(value, 2) for value in values]
    top = max((value for value in shown if value is not None), default=None)
    best = frozenset(i for i, value in enumerate(shown, 1) if value is not None and value == top)
    return Row([name, *(absent if v is None else f"{v:.2f}" for v in values)], best, strong)
