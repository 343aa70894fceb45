"""Engine: what a page says of scores: a table with intervals, bars per class, who is taken for whom, and pictures."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from endauda_cli.domains import IGNORE
from endauda_cli.errors import EndaudaError
from endauda_cli.labels import colourise, read_image
from endauda_cli.report import (
    BarRow,
    Bars,
    Confusion,
    Gallery,
    PictureRow,
    Reliability,
    Row,
    Table,
    marked_best,
    number,
    thumbnail,
)
from endauda_cli.report.components import file_link, range_mark
from endauda_cli.scoring import further_figures, truth_of
from endauda_cli.significance import iou_of, mean_over
from endauda_cli.workspace import REPORT_FILE, read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from endauda_cli.datasets import Sample
    from endauda_cli.domains import Colour, Domain
    from endauda_cli.image_counts import ImageCounts
    from endauda_cli.report import Section
    from endauda_cli.score_results import EvalResult, Interval

    UInt8 = NDArray[np.uint8]

Kind = Literal["teacher", "labels", "run", "predictions"]

PICTURED = 4
"""Of the worst images, and of the best."""
CLASSES_IN_TABLE = 12
"""Rows; of more the per-class table would be a wall of figures, and the bars have them all."""
RIGHT, WRONG, NO_TRUTH, NO_PREDICTION = (225, 228, 232), (213, 94, 0), (40, 44, 52), (0, 114, 178)
"""Colours of an error map; told apart also by the colour-blind."""
ERRORS: tuple[tuple[str, Colour], ...] = (
    ("right", RIGHT), ("wrong", WRONG), ("no prediction", NO_PREDICTION), ("no truth", NO_TRUTH),
)  # fmt: skip


@dataclass(frozen=True)
class Scored:
    """A row: what each image adds, and what that comes to."""

    name: str
    kind: Kind
    counts: ImageCounts
    score: EvalResult
    labels: Callable[[Sample], UInt8] | None = None
    """Its (H, W) train ids of an image, where these can be had again for a picture."""

    @property
    def title(self) -> str:
        """With what it is."""
        return f"{self.kind} {self.name}"


def between(one: Interval, signed: bool = False) -> str:
    """``57.1 to 62.3``."""
    if one.low is None or one.high is None:
        return "n/a"
    return f"{one.low:+.2f} to {one.high:+.2f}" if signed else f"{one.low:.2f} to {one.high:.2f}"


def scores_table(rows: Sequence[Scored], page: Path) -> Table:
    """A line per row, best first as they come, with the interval as figures and as a mark on an axis of all.

    Args:
        rows: at least one.
        page: where the table will stand, for links to the pages of runs.
    """
    first = rows[0].score
    titles = [title for title, _ in further_figures(first)]
    partly = any(row.score.coverage < 100 for row in rows)
    ends = [(one.low, one.high) for row in rows for one in row.score.intervals[:1]]
    lows, highs = (
        ([end for end in side if end is not None] for side in zip(*ends, strict=True)) if ends else ([], [])
    )
    known = [row.score.miou for row in rows if row.score.miou is not None]
    axis = (min([*lows, *known], default=0.0), max([*highs, *known], default=1.0))
    axis = axis if len(rows) > 1 else (0.0, 100.0)
    lines = []
    for row in rows:
        score = row.score
        interval = score.intervals[0] if score.intervals else None
        low, high = (interval.low, interval.high) if interval else (None, None)
        cells = [
            _linked(row, page),
            number(score.miou),
            between(interval) if interval else "n/a",
            range_mark(low, score.miou, high, axis),
            *(value for _, value in further_figures(score)),
        ]
        if partly:
            cells += [f"{score.coverage:.2f}", number(score.strict_miou)]
        lines.append(Row(cells))
    columns = ["scored", "mIoU", "95 % interval", "", *titles]
    columns += ["coverage", "255 counted as wrong"] if partly else []
    lists = [f"{m.title}: {', '.join(m.classes)}" for m in first.means if len(m.classes) < len(first.iou)]
    if not partly:
        lists.append("Every pixel has a prediction.")
    return Table("Scores in percent", columns, lines, lists)


def _linked(row: Scored, page: Path) -> str:
    folder = None if row.score.counts is None else row.score.counts.parent
    if folder is None or folder == page.parent or not (folder / REPORT_FILE).is_file():
        return row.title
    return file_link(row.title, folder / REPORT_FILE, page)


def per_class(rows: Sequence[Scored], domain: Domain) -> list[Section]:
    """IoU of each class: as bars, and as a table where that can be read."""
    names = list(domain.classes)
    sections: list[Section] = [iou_bars([_bar_row(row.title, row.score) for row in rows], domain)]
    if len(rows) <= CLASSES_IN_TABLE:
        lines = [marked_best(c, [row.score.iou[c] for row in rows]) for c in names]
        lines.append(Row(["mIoU", *(number(row.score.miou) for row in rows)], strong=True))
        sections.append(Table("IoU per class, all rows", ["class", *(row.name for row in rows)], lines))
    return sections


def iou_bars(rows: Sequence[BarRow], domain: Domain) -> Bars:
    """The rows' IoUs, the first two of them shown at first."""
    text = ["A dark line is the 95 % interval over images."] if any(any(row.ends) for row in rows) else []
    return Bars("IoU per class", domain.classes, domain.palette, rows, text)


def _bar_row(name: str, score: EvalResult) -> BarRow:
    ends = []
    for c in score.iou:
        one = score.iou_intervals.get(c)
        ends.append(None if one is None or one.low is None or one.high is None else (one.low, one.high))
    return BarRow(name, list(score.iou.values()), ends)


def bars_beside(name: str, result: EvalResult, stored: Path, domain: Domain) -> Bars:
    """A score's bars, beside those of the rows that a table of scores on the same images has.

    Args:
        name: of the score.
        result: the score.
        stored: ``scores.json``; nothing is beside it where that is absent, damaged or of other images.
        domain: class table.
    """
    rows = [_bar_row(name, result)]
    for other in stored_rows(stored, result.target, result.split, result.images):
        score = other["score"]
        iou = score.get("iou")
        itself = os.path.realpath(str(score.get("scored"))) == os.path.realpath(result.scored)
        if itself or not isinstance(iou, dict) or list(iou) != list(domain.classes):
            continue
        values = [float(v) if isinstance(v, int | float) else None for v in iou.values()]
        ends = score.get("iou_intervals")
        known = [_stored_ends(ends.get(c)) for c in iou] if isinstance(ends, dict) else ()
        rows.append(BarRow(f"{other['kind']} {other['name']}", values, known))
    return iou_bars(rows, domain)


def _stored_ends(interval: object) -> tuple[float, float] | None:
    if not isinstance(interval, dict):
        return None
    low, high = interval.get("low"), interval.get("high")
    return (low, high) if isinstance(low, int | float) and isinstance(high, int | float) else None


def stored_rows(stored: Path, target: str, split: str, images: int) -> Iterator[dict[str, Any]]:
    """The rows of a ``scores.json`` that is of these images; none of another."""
    table = read_json(stored) or {}
    if (table.get("target"), table.get("split"), table.get("images")) != (target, split, images):
        return
    rows = table.get("rows")
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict) and isinstance(row.get("score"), dict) and {"kind", "name"} <= row.keys():
            yield row


def further_sections(rows: Sequence[Scored], domain: Domain) -> list[Section]:
    """Confusion; outlines and reliability where they were counted."""
    matrices = [(row.title, row.counts.confusion.matrix) for row in rows]
    text = [
        "Of the pixels of each true class, in percent, what they were said to be; less than 0.5 % is left blank."
    ]
    sections: list[Section] = [Confusion("What is taken for what", domain.classes, matrices, text)]
    if outlines := _outlines(rows, domain):
        sections.append(outlines)
    diagrams = [one for row in rows for one in _diagrams(row.title, getattr(row.score, "calibration", None))]
    if diagrams:
        sections.append(Reliability("How reliable certainties are", diagrams))
    return sections


def _diagrams(name: str, calibration: Any) -> list[dict[str, Any]]:
    """What ``Reliability`` draws of a row's calibration: as it is, and after a temperature where that was judged."""
    if calibration is None:
        return []
    after = getattr(calibration, "after", None)
    judged = [(name, calibration)]
    judged += [] if after is None else [(f"{name}, temperature {calibration.temperature:.3g}", after)]
    return [
        {
            "name": title,
            "bins": [{key: getattr(b, key) for key in ("confidence", "accuracy", "count")} for b in one.bins],
            "ece": one.ece,
        }
        for title, one in judged
    ]


def _outlines(rows: Sequence[Scored], domain: Domain) -> Table | None:
    scored = [(row, one) for row in rows for one in row.score.boundary]
    if not scored:
        return None
    lines = [marked_best(c, [one.f[c] for _, one in scored]) for c in domain.classes]
    lines.append(Row(["mean", *(number(one.mean) for _, one in scored)], strong=True))
    columns = ["class", *(f"{row.name}, {one.tolerance}" for row, one in scored)]
    return Table("Boundary F per class in percent", columns, lines)


# ---------------------------------------------------------------------------- pictures


def pictures(rows: Sequence[Scored], samples: Sequence[Sample], domain: Domain) -> list[Section]:
    """The worst and best images of the first row that can be pictured, by their own mIoU; and what the next one that
    can says of them.

    Args:
        rows: best first.
        samples: the images; all that rows counted.
        domain: class table and colours.
    """
    shown = [row for row in rows if row.labels is not None][:2]
    if not shown:
        return []
    first, by_id = shown[0], {sample.id: sample for sample in samples}
    own = mean_over(iou_of(first.counts.parts()))
    order = [i for i in np.argsort(own, kind="stable").tolist() if not np.isnan(own[i])]
    worst = order[: min(PICTURED, -(-len(order) // 2))]
    best = order[len(worst) :][::-1][:PICTURED]
    columns = ["image", "truth"]
    for row in shown:
        columns += [row.name, f"errors of {row.name}"] if len(shown) > 1 else ["prediction", "errors"]
    legend = [*zip(domain.classes, domain.palette, strict=True), *ERRORS]
    sections: list[Section] = []
    for title, chosen in (("Worst images", worst), ("Best images", best)):
        cards = []
        for i in chosen:
            sample = by_id.get(first.counts.images[i])
            if sample is not None:
                cards.append(_card(sample, shown, domain, f"mIoU {100 * own[i]:.1f}\N{NO-BREAK SPACE}% here"))
        text = [f"By the mIoU that {first.title} has on the image alone, over the classes that occur there."]
        if cards:
            sections.append(Gallery(title, columns, cards, legend, text))
            legend = []  # once is enough
    return sections


def _card(sample: Sample, rows: Sequence[Scored], domain: Domain, note: str) -> PictureRow:
    truth = thumbnail(truth_of(sample, domain), flat=True)
    found = [_photograph(sample, truth), colourise(truth, domain.palette)]
    for row in rows:
        assert row.labels is not None
        said = thumbnail(row.labels(sample), flat=True)
        found += [colourise(said, domain.palette), error_map(truth, said)]
    return PictureRow(sample.id, found, note)


def _photograph(sample: Sample, truth: UInt8) -> UInt8:
    """Scoring needs no photograph, so one that cannot be read is no reason to end."""
    try:
        return thumbnail(read_image(sample.image))
    except (EndaudaError, OSError):
        return np.full((*truth.shape, 3), 128, np.uint8)


def error_map(truth: UInt8, said: UInt8) -> UInt8:
    """(H, W, 3): where two (H, W) maps of train ids agree, differ, or one of them says nothing."""
    colours = np.array([RIGHT, WRONG, NO_TRUTH, NO_PREDICTION], np.uint8)
    kind = (truth != said).astype(np.uint8)
    kind[said == IGNORE] = 3
    kind[truth == IGNORE] = 2
    found: UInt8 = colours[kind]
    return found


def inputs_of(score: EvalResult, truth: str | None = None) -> Mapping[str, str | None]:
    """What a page says a score is of."""
    return {
        "scored": score.scored,
        "images": f"{score.images} of {score.target} {score.split}",
        "truth": truth,
        "counts": None if score.counts is None else str(score.counts),
    }
