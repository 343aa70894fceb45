"""The parts of a page, as HTML: every text that comes from outside is escaped here."""

from __future__ import annotations

import os
import re
from itertools import count
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np
from markupsafe import Markup

from endauda_cli.report.diagrams import reliability_diagram
from endauda_cli.report.pictures import data_url
from endauda_cli.report.sections import (
    BarRow,
    Bars,
    Confusion,
    Drawings,
    Gallery,
    PictureRow,
    Reliability,
    Row,
    Section,
    Table,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from endauda_cli.domains import Colour

    Int64 = NDArray[np.int64]

PICTURE_BYTES = 4_000_000
"""Of all pictures of a page together; cards beyond it are left out, and it is said."""
MATRIX_CLASSES = 30
"""Of more classes a matrix shows those with the most errors."""
MATRIX_CELLS = 15_000
"""Of all matrices of a page; rows beyond are left out, and it is said."""
NO_BREAK = "\N{NO-BREAK SPACE}"


class Budget:
    """What of a page's size is left, and numbers for its elements."""

    def __init__(self, pictures: int = PICTURE_BYTES) -> None:
        self.pictures = pictures
        self.numbers = count(1)


def draw(section: Section, budget: Budget) -> Markup:
    """The body of a section, without its title."""
    text = _joined(Markup("<p>{}</p>").format(line) for line in section.text)
    if isinstance(section, Table):
        return text + table(section)
    if isinstance(section, Gallery):
        return text + gallery(section, budget)
    if isinstance(section, Bars):
        return text + bars(section, budget)
    if isinstance(section, Confusion):
        return text + confusion(section)
    if isinstance(section, Reliability):
        return text + reliability(section)
    return text + drawings(section)


def slug(title: str) -> str:
    """A title as the place of a link."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"


def link(text: str, href: str) -> Markup:
    """To a place in this page, or to a file by a relative path.

    Raises:
        ValueError: if it would lead elsewhere.
    """
    if re.match(r"[^/?#]*:|//", href):
        raise ValueError(f"{href}: leads out of the workspace")
    return Markup('<a href="{}">{}</a>').format(href, text)


def file_link(text: str, path: Path, page: Path) -> Markup:
    """To a file, by its path from the folder of the page that the link stands in."""
    relative = os.path.relpath(path, page.parent).replace(os.sep, "/")
    return link(text, quote(os.fsencode(relative)))


def swatch(colour: Colour, name: str) -> Markup:
    """A class's colour, and its name."""
    return Markup('<span class="swatch"><i style="background:rgb({},{},{})"></i>{}</span>').format(
        *colour, name
    )


def legend(entries: Sequence[tuple[str, Colour]]) -> Markup:
    """Which colour means what; nothing without any."""
    items = _joined(Markup("<li>{}</li>").format(swatch(colour, name)) for name, colour in entries)
    return Markup('<ul class="legend" aria-label="Colours">{}</ul>').format(items) if items else items


def range_mark(
    low: float | None, value: float | None, high: float | None, axis: tuple[float, float]
) -> Markup:
    """An interval on an axis that all rows share; its figures stand beside it as text."""
    if low is None or value is None or high is None or axis[1] <= axis[0]:
        return Markup("")

    def at(figure: float) -> float:
        return 4 + 112 * min(1.0, max(0.0, (figure - axis[0]) / (axis[1] - axis[0])))

    return Markup(
        '<svg class="range" viewBox="0 0 120 14" width="120" height="14" aria-hidden="true">'
        '<path class="grid" d="M4 7H116"/><path class="line" d="M{:.1f} 7H{:.1f}"/>'
        '<circle cx="{:.1f}" cy="7" r="2.5"/></svg>'
    ).format(at(low), at(high), at(value))


# ---------------------------------------------------------------------------- tables


def table(section: Table) -> Markup:
    """A table that scrolls alone where it is too wide, also by keyboard."""
    if not section.rows:
        return Markup('<p class="soft">none</p>')
    head = ""
    if not section.left:
        names = _joined(_head(name, i in section.words) for i, name in enumerate(section.columns))
        head = Markup("<thead><tr>{}</tr></thead>").format(names)
    rows = _joined(_row(row, section.words) for row in section.rows)
    return _scrolled(
        section.title,
        Markup("<table{}>{}<tbody>{}</tbody></table>").format(
            Markup(' class="words"' if section.left else ""), head, rows
        ),
    )


def _head(name: str, words: bool) -> Markup:
    if not name:
        return Markup("<td></td>")
    return Markup('<th scope="col"{}>{}</th>').format(Markup(' class="word"' if words else ""), name)


def _row(row: Row, words: frozenset[int]) -> Markup:
    cells = [Markup('<th scope="row">{}</th>').format(row.cells[0])] if row.cells else []
    for i, cell in enumerate(row.cells[1:], 1):
        kinds = " ".join(kind for kind, there in (("best", i in row.best), ("word", i in words)) if there)
        heat = row.heat[i] if i < len(row.heat) else None
        attributes = Markup(' class="{}"').format(kinds) if kinds else Markup("")
        if heat is not None:
            attributes = Markup(' class="heat" style="--heat:{:.2f}"').format(heat)
        mark = Markup('<span class="unseen"> (best)</span>') if i in row.best else ""
        cells.append(Markup("<td{}>{}{}</td>").format(attributes, cell, mark))
    place = Markup(' id="{}"').format(row.name) if row.name else Markup("")
    strong = Markup(' class="strong"' if row.strong else "")
    return Markup("<tr{}{}>{}</tr>\n").format(place, strong, _joined(cells))


def _scrolled(title: str, content: Markup) -> Markup:
    return Markup('<div class="scroll" role="region" tabindex="0" aria-label="{}">{}</div>').format(
        title, content
    )


# ---------------------------------------------------------------------------- pictures


def gallery(section: Gallery, budget: Budget) -> Markup:
    """A card per row; the legend above."""
    if not section.rows:
        return Markup('<p class="soft">no pictures</p>')
    cards, left_out = [], 0
    for row in section.rows:
        urls = [data_url(picture) for picture in row.pictures]
        size = sum(map(len, urls))
        if left_out or size > budget.pictures:
            left_out += 1
            continue
        budget.pictures -= size
        cards.append(_card(row, section.columns, urls, next(budget.numbers)))
    told = (
        Markup('<p class="soft">{} more are left out, to keep the page small.</p>').format(left_out)
        if left_out
        else ""
    )
    return Markup(
        '{}<p class="choose" hidden><button type="button" class="aside" aria-pressed="{}">side by side</button></p>'
        '<div class="cards{}">{}</div>{}'
    ).format(
        legend(section.legend),
        "true" if section.side_by_side else "false",
        Markup(" beside" if section.side_by_side else ""),
        _joined(cards),
        told,
    )


def _card(row: PictureRow, columns: Sequence[str], urls: Sequence[str], number: int) -> Markup:
    layers, ticks = [], []
    for i, (column, url, picture) in enumerate(zip(columns, urls, row.pictures, strict=True)):
        flat = Markup(' class="flat"' if url.startswith("data:image/png") else "")
        alt = f"{column} of {row.name}" if row.name else column
        height, width = picture.shape[:2]
        layers.append(
            Markup(
                '<figure><img src="{}" alt="{}" width="{}" height="{}"{}><figcaption>{}</figcaption></figure>'
            ).format(url, alt, width, height, flat, column)
        )
        ticks.append(Markup('<button type="button" value="{}">{}</button>').format(100 * i, column))
    title = Markup("<h3>{}{}</h3>").format(
        row.name, Markup(' <span class="soft">{}</span>').format(row.note) if row.note else ""
    )
    control = ""
    if len(columns) > 1:
        control = Markup(
            '<div class="control" hidden><label for="slide-{}">Slide through {} pictures</label>'
            '<input type="range" id="slide-{}" min="0" max="{}" step="5" value="50">{}</div>'
        ).format(
            number, len(columns), number, 100 * (len(columns) - 1),
            Markup('<div class="ticks" role="group" aria-label="Show">{}</div>').format(_joined(ticks)),
        )  # fmt: skip
    return Markup('<article class="card">{}<div class="layers">{}</div>{}</article>\n').format(
        title if row.name else "", _joined(layers), control
    )


# ---------------------------------------------------------------------------- bars


def bars(section: Bars, budget: Budget) -> Markup:
    """A bar of the first row per name, below it one of the second; without script these are the first two."""
    if not section.rows or not section.names:
        return Markup('<p class="soft">none</p>')
    number = next(budget.numbers)
    several = len(section.rows) > 1
    choice = Markup("")
    if several:
        first, second = (_chosen(section.rows, number, i) for i in (0, 1))
        between = "against" if section.compared else "and"
        choice = Markup('<p class="choose">{} {} {}</p>').format(first, between, second)
    lines = _joined(_bar_line(section, i) for i in range(len(section.names)))
    head = _head("class", False) + _head(f"{section.what}, %", True)
    if several and section.compared:
        head += _head("difference", False)
    return choice + Markup(
        '<table class="bars" data-bars><thead><tr>{}</tr></thead><tbody>{}</tbody></table>'
    ).format(head, lines)


def _chosen(rows: Sequence[BarRow], number: int, which: int) -> Markup:
    options = _joined(
        Markup('<option value="{}"{}>{}</option>').format(
            i, Markup(" selected" if i == which else ""), row.name
        )
        for i, row in enumerate(rows)
    )
    name = ("Row", "Second row")[which]
    return Markup(
        '<label class="unseen" for="{}-{}">{}</label><span class="key {}"></span>'
        '<select id="{}-{}" data-which="{}">{}</select>'
    ).format(slug(name), number, name, ("first", "second")[which], slug(name), number, which, options)


def _bar_line(section: Bars, i: int) -> Markup:
    found = []
    for r, row in enumerate(section.rows):
        value = row.values[i]
        ends = row.ends[i] if i < len(row.ends) else None
        kind = ("first", "second")[r] if r < 2 else "other"
        mark = ""
        if ends is not None:
            low, high = (min(100.0, max(0.0, end)) for end in ends)
            mark = Markup('<s style="left:{:.1f}%;width:{:.1f}%"></s>').format(low, high - low)
        told = "n/a" if value is None else f"{value:.1f}"
        shown = 0.0 if value is None else min(100.0, max(0.0, value))
        found.append(
            Markup(
                '<div class="bar {}" data-row="{}" data-value="{}"{}><span class="unseen">{}: </span>'
                '<span class="track"><i style="width:{:.1f}%"></i>{}</span><b>{}</b></div>'
            ).format(
                kind, r, "" if value is None else f"{value:.2f}", Markup("" if r < 2 else " hidden"), row.name,
                shown, mark, told,
            )
        )  # fmt: skip
    difference: Markup | str = ""
    if len(section.rows) > 1 and section.compared:
        pair = [row.values[i] for row in section.rows[:2]]
        known = [value for value in pair if value is not None]
        difference = Markup('<td class="difference">{}</td>').format(
            f"{round(known[0] - known[1], 1) + 0:+.1f}" if len(known) == 2 else "n/a"
        )
    name = swatch(section.colours[i], section.names[i])
    return Markup('<tr><th scope="row">{}</th><td>{}</td>{}</tr>\n').format(name, _joined(found), difference)


# ---------------------------------------------------------------------------- confusion, reliability, drawings


def confusion(section: Confusion) -> Markup:
    """Matrices that fold; the first is open."""
    found: list[Markup] = []
    cells, left_out = MATRIX_CELLS, 0
    for name, matrix in section.matrices:
        shown = min(len(section.classes), MATRIX_CLASSES) ** 2
        if shown > cells and found:
            left_out += 1
            continue
        cells -= shown
        found.append(
            Markup("<details{}><summary>{}</summary>{}</details>\n").format(
                Markup("" if found else " open"), name, _matrix(name, section.classes, matrix)
            )
        )
    told = Markup('<p class="soft">{} more rows are left out.</p>').format(left_out) if left_out else ""
    return _joined(found) + told


def _matrix(name: str, classes: Sequence[str], matrix: Int64) -> Markup:
    wrong = matrix.sum(0) + matrix.sum(1) - 2 * matrix.diagonal()
    chosen = sorted(np.argsort(-wrong, kind="stable")[:MATRIX_CLASSES].tolist())
    told = ""
    if len(chosen) < len(classes):
        told = Markup('<p class="soft">The {} of {} classes with the most errors.</p>').format(
            len(chosen), len(classes)
        )
    of_truth = matrix.sum(1)
    shares = matrix / np.maximum(1, of_truth)[:, None]
    head = _joined(Markup('<th scope="col"><span>{}</span></th>').format(classes[c]) for c in chosen)
    rows = []
    for t in chosen:
        line = [Markup('<th scope="row">{}</th>').format(classes[t])]
        for p in chosen:
            share = float(shares[t, p])
            if share < 0.005:
                line.append(Markup("<td></td>"))
                continue
            kind = "right" if t == p else "wrong"
            line.append(
                Markup('<td class="{}" style="--heat:{:.2f}">{:.0f}</td>').format(kind, share, 100 * share)
            )
        rows.append(Markup("<tr>{}</tr>\n").format(_joined(line)))
    corner = Markup('<td class="corner">truth ↓ said →</td>')
    return told + _scrolled(
        f"Confusion of {name}",
        Markup('<table class="confusion"><thead><tr>{}{}</tr></thead><tbody>{}</tbody></table>').format(
            corner, head, _joined(rows)
        ),
    )


def reliability(section: Reliability) -> Markup:
    """A diagram each, and its figures as a table that unfolds."""
    found = []
    for diagram in section.diagrams:
        bins = [one for one in diagram.get("bins", ()) if one.get("count")]
        rows = [
            Row([f"{100 * b['confidence']:.1f}", f"{100 * b['accuracy']:.1f}", f"{b['count']:,}"])
            for b in bins
        ]
        title = f"{diagram['name']}: expected error {100 * diagram['ece']:.1f}{NO_BREAK}%"
        found.append(
            Markup(
                "<figure><figcaption>{}</figcaption>{}<details><summary>figures</summary>{}</details></figure>"
            ).format(
                title,
                reliability_diagram(diagram["name"], bins),
                table(Table(f"Reliability of {diagram['name']}", ["certain, %", "right, %", "pixels"], rows)),
            )
        )
    if not found:
        return Markup('<p class="soft">none</p>')
    return Markup('<div class="drawings">{}</div>').format(_joined(found))


def drawings(section: Drawings) -> Markup:
    """Each with its title."""
    if not section.drawings:
        return Markup('<p class="soft">none yet</p>')
    found = _joined(
        Markup("<figure><figcaption>{}</figcaption>{}</figure>\n").format(one.title, one.svg)
        for one in section.drawings
    )
    return Markup('<div class="drawings">{}</div>').format(found)


def _joined(parts: object) -> Markup:
    return Markup("").join(parts)  # type: ignore[arg-type]
