"""Curves and diagrams as SVG that stands in a page: no scripts, colours of the page."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

POINTS = 300
"""A curve of more is thinned: each point is then the mean of some neighbours, in a band of what they span."""
WIDTH, HEIGHT = 440, 210
LEFT, RIGHT, TOP, BOTTOM = 58, 24, 12, 26
MARKED = 40
"""Up to so many points are marked, and say their value when pointed at."""

GRID, TEXT = 'fill="none" stroke="#dfe4ea"', 'font-size="12" fill="#5d6878"'
LINE = 'fill="none" stroke="#2e6fb7" stroke-width="1.6" stroke-linejoin="round"'
BAND, DOT = 'fill="#2e6fb7" opacity="0.2"', 'fill="#2e6fb7"'
"""Looks of what stands alone; the page's style sheet has its own, for light and dark."""

Point = tuple[float, float]


def curve(title: str, points: Sequence[Point]) -> Markup:
    """A drawing.

    Args:
        title: said to those who do not see it.
        points: (step, value), ascending by step, at least one; what is not finite is left out.
    """
    known = [(x, y) for x, y in points if math.isfinite(y)]
    if not known:
        return Markup('<svg viewBox="0 0 {} {}" role="img"><title>{}: no value</title></svg>').format(
            WIDTH, HEIGHT, title
        )
    shown, band = thinned(known)
    across = _Axis(known[0][0], known[-1][0], LEFT, WIDTH - RIGHT)
    up = _Axis(min(y for _, y in known), max(y for _, y in known), HEIGHT - BOTTOM, TOP)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(title)}</title>']
    for tick in up.ticks(4):
        y = up.at(tick)
        parts.append(f'<path class="grid" {GRID} d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text {TEXT} x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.6g}</text>')
    for tick in across.ticks(5):
        parts.append(
            f'<text {TEXT} x="{across.at(tick):.1f}" y="{HEIGHT - 6}" text-anchor="middle">{tick:.10g}</text>'
        )
    if band:
        there = [f"{across.at(x):.1f} {up.at(high):.1f}" for x, _, high in band]
        back = [f"{across.at(x):.1f} {up.at(low):.1f}" for x, low, _ in reversed(band)]
        parts.append(f'<path class="band" {BAND} d="M{"L".join(there + back)}Z"/>')
    line = "L".join(f"{across.at(x):.1f} {up.at(y):.1f}" for x, y in shown)
    parts.append(f'<path class="line" {LINE} d="M{line}"/>')
    if len(shown) <= MARKED:
        for x, y in shown:
            said = f"<title>step {x:.10g}: {y:.5g}</title>"
            parts.append(f'<circle cx="{across.at(x):.1f}" cy="{up.at(y):.1f}" r="3" {DOT}>{said}</circle>')
    return Markup("".join([*parts, "</svg>"]))


def reliability_diagram(name: str, bins: Sequence[Mapping[str, Any]]) -> Markup:
    """How often a certainty is right, beside how often it says so; the more pixels of it, the darker.

    Args:
        name: whose.
        bins: of one certainty each: ``confidence`` and ``accuracy`` 0..1, and its ``count``.
    """
    side, left, top = 240, 40, 8
    most = max((b["count"] for b in bins), default=1)

    def at(confidence: float, accuracy: float) -> tuple[float, float]:
        x, y = (min(1.0, max(0.0, float(value))) for value in (confidence, accuracy))
        return left + side * x, top + side * (1 - y)

    parts = [
        f'<svg viewBox="0 0 {left + side + 12} {top + side + 40}" role="img" class="square">',
        f"<title>{escape(name)}: share that is right over how certain</title>",
    ]
    for tick in (0, 25, 50, 75, 100):
        x, y = at(tick / 100, tick / 100)
        parts.append(f'<path class="grid" {GRID} d="M{left} {y:.1f}H{left + side}"/>')
        parts.append(f'<text {TEXT} x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick}</text>')
        parts.append(f'<text {TEXT} x="{x:.1f}" y="{top + side + 16}" text-anchor="middle">{tick}</text>')
    parts.append(
        f'<text {TEXT} x="{left + side / 2}" y="{top + side + 34}" text-anchor="middle">certain, %</text>'
    )
    parts.append(
        f'<path class="even" {GRID} stroke-dasharray="4 4" d="M{left} {top + side}L{left + side} {top}"/>'
    )
    known = [b for b in bins if math.isfinite(b["confidence"]) and math.isfinite(b["accuracy"])]
    line = "L".join("{:.1f} {:.1f}".format(*at(b["confidence"], b["accuracy"])) for b in known)
    if line:
        parts.append(f'<path class="line" {LINE} d="M{line}"/>')
    for b in known:
        x, y = at(b["confidence"], b["accuracy"])
        said = f"certain {100 * b['confidence']:.0f} %: right {100 * b['accuracy']:.1f} % of {b['count']:,}"
        shade = 0.25 + 0.75 * (b["count"] / most) ** 0.5
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" {DOT} opacity="{shade:.2f}"><title>{said}</title></circle>'
        )
    return Markup("".join([*parts, "</svg>"]))


def thinned(
    points: Sequence[Point], most: int = POINTS
) -> tuple[list[Point], list[tuple[float, float, float]]]:
    """At most so many of them: means of neighbours, and (step, least, most) of each; no band where nothing is left
    out."""
    if len(points) <= most:
        return list(points), []
    means, band = [], []
    for i in range(most):
        some = points[i * len(points) // most : (i + 1) * len(points) // most]
        values = [y for _, y in some]
        step = sum(x for x, _ in some) / len(some)
        means.append((step, sum(values) / len(values)))
        band.append((step, min(values), max(values)))
    return means, band


class _Axis:
    """Values from ``low`` to ``high`` along a side from pixel ``begin`` to pixel ``end``."""

    def __init__(self, low: float, high: float, begin: float, end: float) -> None:
        room = (high - low) or abs(high) or 1.0
        self.low, self.high = (low, high) if high > low else (low - room / 2, high + room / 2)
        self.begin, self.scale = begin, (end - begin) / (self.high - self.low)

    def at(self, value: float) -> float:
        """The pixel of a value."""
        return self.begin + (value - self.low) * self.scale

    def ticks(self, about: int) -> list[float]:
        """Round values, about so many."""
        rough = (self.high - self.low) / about
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [number * step for number in range(first, last + 1)]
