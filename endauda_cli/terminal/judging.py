"""Calibrations and advice in words: rows of tables, and lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from endauda_cli.results import Advice
    from endauda_cli.score_results import Calibration, Comparison, Interval


class Rows(NamedTuple):
    """A table."""

    columns: Sequence[str]
    cells: Sequence[Sequence[str]]
    left: int = 1
    """So many first columns hold words."""


def reliability_table(c: Calibration) -> Rows:
    """How often labels are right, by how certain they are."""
    cells = []
    for number, one in enumerate(c.bins):
        if one.confidence is not None and one.accuracy is not None:
            low, high = (100 * edge / len(c.bins) for edge in (number, number + 1))
            shares = one.confidence, one.accuracy, one.count / c.pixels
            cells.append([f"{low:.0f} to {high:.0f}", *(f"{100 * share:.1f}" for share in shares)])
    return Rows(["certainty %", "mean %", "right %", "pixels %"], cells)


def calibration_table(found: Mapping[str, Calibration]) -> Rows:
    """Errors of certainties, each before and after its temperature."""
    cells = []
    for name, c in found.items():
        for title, one in (("as they are", c), (f"at T {c.temperature:g}", c.after)):
            classwise = "n/a" if one.classwise_mean is None else f"{100 * one.classwise_mean:.2f}"
            errors = f"{100 * one.ece:.2f}", f"{100 * one.mce:.2f}", classwise
            cells.append([f"{name} {title}".strip(), *errors, f"{one.log_loss:.3f}", f"{one.brier:.3f}"])
    return Rows(["certainties", "ECE %", "MCE %", "classwise ECE %", "log loss", "Brier"], cells)


def calibration_lines(found: Iterable[Calibration]) -> list[str]:
    """On what temperatures were fitted."""
    kinds = sorted({c.fitted_on for c in found} - {"given"})
    return [
        f"T is fitted to all images; what is judged at it had the T of the other half of the {kind}"
        for kind in kinds
    ]


def advice_tables(r: Advice) -> list[Rows]:
    """What each teacher is worth, and the ensembles that matter."""
    figure = "mIoU %" if r.by == "labels" else "expected %"
    teachers = [
        [
            t.name,
            f"{t.alone:.2f}",
            f"as {t.copy_of}" if t.copy_of else f"{t.adds:+.2f}",
            f"{t.witnesses:.2f}",
        ]
        for t in r.teachers
    ]
    named = [("advised", r.advised)]
    if len(r.smaller.teachers) < len(r.advised.teachers):
        named.append(("fewer", r.smaller))
    if (r.best.teachers, r.best.rule) != (r.advised.teachers, r.advised.rule):
        named.append(("highest seen", r.best))
    named += [("all", one) for one in r.rules if one != r.advised]
    every = r.rules[0].teachers
    cells = []
    for title, one in named:
        value = one.expected if one.miou is None else one.miou
        who = "all" if one.teachers == every else " ".join(one.teachers)
        ends = "n/a" if one.low is None or one.high is None else f"{one.low:.2f} to {one.high:.2f}"
        cells.append([title if title != who else "", who, one.rule, f"{value:.2f}", ends])
    return [
        Rows(["teacher", f"alone, {figure}", "adds to the others", "witnesses"], teachers),
        Rows(["", "teachers", "rule", figure, "95 % interval"], cells, left=3),
    ]


def advice_lines(r: Advice) -> list[str]:
    """What an advice rests on, and how sure it is."""
    seen = f"{r.tried} ensembles, each by {len(r.rules)} rules, on {r.images} images thinned out"
    if r.by == "labels":
        some = ", ".join(r.labelled_images[:8]) + (", ..." if len(r.labelled_images) > 8 else "")
        lines = [
            f"{seen}; mIoU is on {len(r.labelled_images)} labelled images, do not score on them: {some}",
            "another than all by consensus is advised only where it is better by two standard errors; what is highest "
            "of so many is so by chance, too",
        ]
    else:
        lines = [
            f"{seen}; expected is the mIoU with what all teachers together believe: it compares ensembles, and is no "
            "score",
            "without labels all by consensus is advised: on real teachers nothing that was found without labels did "
            "better (docs/policies.md)",
        ]
    if len(r.smaller.teachers) < len(r.rules[0].teachers):
        lines.append(
            f"fewer teachers expected within {r.tolerance:g} points of all: {' '.join(r.smaller.teachers)}, by "
            f"{r.smaller.rule}; the same in {100 * r.smaller_sureness:.0f} % of draws of the images"
        )
    else:
        lines.append(f"no fewer teachers are expected within {r.tolerance:g} points of all")
    return [*lines, f"advised, and the same in {100 * r.sureness:.0f} % of draws: {r.command}"]


def between(one: Interval, form: str = ".2f") -> str:
    """``57.10 to 62.30``."""
    return "n/a" if one.low is None or one.high is None else f"{one.low:{form}} to {one.high:{form}}"


def compared(c: Comparison) -> str:
    """A difference in a sentence."""
    if c.difference is None:
        return f"{c.a} against {c.b}: n/a"
    over = [
        f"{between(one, '+.2f')} over {one.units} {one.over}" for one in c.intervals if one.low is not None
    ]
    real = {True: ", real", False: ", may be chance", None: ""}[c.real]
    images = f"better in {c.wins} images, worse in {c.losses}, even in {c.ties} (p {c.sign_p:.2g})"
    sure = f" (95 %: {'; '.join(over)}{real})" if over else ""
    return f"{c.a} against {c.b}: {c.measure} {c.difference:+.2f}{sure}, {images}"
