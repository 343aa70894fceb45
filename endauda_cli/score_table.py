"""Engine: several scores on the same images in one table, how sure each is, and whether they differ."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from endauda_cli.domains import means_of
from endauda_cli.report import Report, Row, Table, number, provenance, write_report
from endauda_cli.score_page import Scored, between, further_sections, per_class, pictures, scores_table
from endauda_cli.score_results import Comparison, Interval, PublishedScore, ScoredRow, ScoreTable
from endauda_cli.scoring import COUNTS_FILE, write_counts
from endauda_cli.significance import groups_of, intervals, iou_of, mean_over, sign_test, summed
from endauda_cli.workspace import write_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from endauda_cli.datasets import Sample
    from endauda_cli.domains import Domain
    from endauda_cli.image_counts import ImageCounts
    from endauda_cli.report import Section
    from endauda_cli.score_results import EvalResult
    from endauda_cli.weights.manifest import Artefact

    Int64 = NDArray[np.int64]

TABLE_FILE = "scores.json"
PUBLISHED_ON = ("cityscapes", "val")
"""Where the published figures were measured: target and split."""
_CLASSES_OF = {"gta5": 19, "synthia": 16}
"""Over how many classes figures of a source are,"""
_OTHER_CLASSES = {"synthia/ours/drn": 13, "synthia/source/resnet": None}
"""but for these; ``None`` is not known, so it is left out."""


@dataclass(frozen=True)
class PaperScore:
    """A figure of a paper that is none of a file to download."""

    name: str
    what: str
    page: str
    source: str
    classes: int
    miou: float


PAPERS = (
    PaperScore(
        "EnD-UDA (paper)", "the paper's student of three teachers", "https://arxiv.org/abs/2104.14203",
        "synthia", 16, 52.58,
    ),
)  # fmt: skip


def with_intervals(result: EvalResult, counts: ImageCounts, domain: Domain) -> EvalResult:
    """The result with the intervals of its figures."""
    parts, images = counts.parts(), counts.images
    every, means = range(len(domain.classes)), means_of(domain)
    sets = [[domain.classes.index(name) for name in names] for names in means.values()]
    ends = intervals([parts], [*sets, *([c] for c in every)])
    found = [_interval("images", len(images), *pair) for pair in ends]
    return replace(
        result,
        intervals=_over_all([parts], images),
        means=tuple(replace(mean, interval=one) for mean, one in zip(result.means, found, strict=False)),
        iou_intervals=dict(zip(domain.classes, found[len(sets) :], strict=True)),
    )


def compare(a: Scored, b: Scored) -> list[Comparison]:
    """How a differs from b: by mIoU, and by the mIoU that counts pixels without a prediction as wrong where one of
    them has such pixels."""
    parts = a.counts.parts(), b.counts.parts()
    assert a.counts.images == b.counts.images
    uncovered = any(row[:, 3].any() for row in parts)
    return [_comparison(a, b, parts, strict) for strict in ((False, True) if uncovered else (False,))]


def _comparison(a: Scored, b: Scored, parts: tuple[Int64, Int64], strict: bool) -> Comparison:
    iou_a, iou_b = (iou_of(row.sum(0), strict) for row in parts)
    per_image = [mean_over(iou_of(row, strict)) for row in parts]
    ahead = per_image[0] - per_image[1]  # NaN where an image shows no class at all
    wins, losses = int((ahead > 0).sum()), int((ahead < 0).sum())
    over = _over_all(list(parts), a.counts.images, strict)
    ends = over[0].low, over[0].high
    real = None if ends[0] is None or ends[1] is None else not ends[0] <= 0 <= ends[1]
    return Comparison(
        a=a.name,
        b=b.name,
        measure="strict mIoU" if strict else "mIoU",
        difference=_points(float(mean_over(iou_a) - mean_over(iou_b))),
        intervals=over,
        real=real,
        wins=wins,
        losses=losses,
        ties=len(ahead) - wins - losses,
        sign_p=sign_test(wins, losses),
        iou={name: _points(float(value)) for name, value in zip(a.score.iou, iou_a - iou_b, strict=True)},
    )


def _over_all(rows: list[Int64], images: Sequence[str], strict: bool = False) -> tuple[Interval, ...]:
    """Over images, and over what groups their names tell of."""
    every = [range(rows[0].shape[-1])]
    found = [_interval("images", len(images), *intervals(rows, every, strict)[0])]
    for kind, groups in groups_of(images).items():
        units = [summed(row, groups) for row in rows]
        found.append(_interval(kind, len(units[0]), *intervals(units, every, strict)[0]))
    return tuple(found)


def _interval(over: str, units: int, low: float, high: float) -> Interval:
    return Interval(over, units, _points(float(low)), _points(float(high)))


def _points(value: float) -> float | None:
    return None if np.isnan(value) else 100 * value


def table_of(
    rows: Sequence[Scored],
    against: Sequence[tuple[str, str]],
    domain: Domain,
    split: str,
    out: Path,
    published: Sequence[PublishedScore] = (),
    samples: Sequence[Sample] = (),
) -> ScoreTable:
    """The rows, best first, with the comparisons of pairs of their names and the published figures; written to ``out``:
    ``scores.json``, ``report.html``, and the counts of each row in a folder of its name. The page has pictures of
    ``samples``."""
    by_name = {row.name: row for row in rows}
    ordered = []
    for row in sorted(rows, key=lambda row: -(row.score.miou or 0)):
        score = row.score
        if score.counts is None:
            score = replace(
                score, counts=out / row.kind / row.name.strip("/").replace("/", "-") / COUNTS_FILE
            )
            assert score.counts is not None
            write_counts(score.counts, row.counts, domain)
        ordered.append(replace(row, score=score))
    told = [ScoredRow(row.name, row.kind, row.score) for row in ordered]
    comparisons = tuple(one for a, b in against for one in compare(by_name[a], by_name[b]))
    images = len(rows[0].counts.images)
    table = ScoreTable(
        domain.name, split, images, tuple(told), comparisons, out / "report.html", tuple(published)
    )
    write_text(out / TABLE_FILE, json.dumps(asdict(table), indent=1, default=str) + "\n")
    write_report(table.report, _page(table, ordered, samples, domain))
    return table


def published_scores(
    rows: Sequence[Scored], artefacts: Iterable[Artefact], source: str
) -> list[PublishedScore]:
    """What was published for the source on ``PUBLISHED_ON``, best first, and how far the rows are from it.

    Args:
        rows: that are held against it.
        artefacts: of ``download-weights``; figures of papers alone come beside them.
        source: name of the source domain.
    """
    known = [paper for paper in PAPERS if paper.source == source]
    for one in artefacts:
        classes = _OTHER_CLASSES.get(one.name, _CLASSES_OF.get(source))
        if one.miou is not None and one.source == source and classes is not None:
            known.append(PaperScore(one.name, one.what, one.page, source, classes, one.miou))
    found = [_beside(rows, one) for one in known]
    return sorted(found, key=lambda one: (-one.classes, -one.miou))


def _beside(rows: Sequence[Scored], one: PaperScore) -> PublishedScore:
    differences: dict[str, float | None] = {}
    within: dict[str, bool | None] = {}
    for row in rows:
        mean = next((mean for mean in row.score.means if len(mean.classes) == one.classes), None)
        ends = None if mean is None else mean.interval
        differences[row.name] = None if mean is None or mean.miou is None else mean.miou - one.miou
        if ends is None or ends.low is None or ends.high is None:
            within[row.name] = None
        else:
            within[row.name] = ends.low <= one.miou <= ends.high
    return PublishedScore(one.name, one.what, one.page, one.classes, one.miou, differences, within)


def _published(published: Sequence[PublishedScore]) -> Table:
    rows = []
    for one in published:
        cells = []
        for row, difference in one.differences.items():
            inside = " (in its interval)" if one.within[row] else ""
            cells.append("n/a" if difference is None else f"{difference:+.2f}{inside}")
        rows.append(Row([one.name, str(one.classes), number(one.miou), *cells]))
    text = [f"{one.name}: {one.what}; {one.page}" for one in published]
    names = [f"{name} - it" for name in published[0].differences]
    return Table("Beside published figures", ["published", "classes", "mIoU", *names], rows, text)


def _page(table: ScoreTable, rows: Sequence[Scored], samples: Sequence[Sample], domain: Domain) -> Report:
    best = rows[0]
    sections: list[Section] = [scores_table(rows, table.report)]
    if table.comparisons:
        sections.append(_differences(table.comparisons))
    if table.published:
        sections.append(_published(table.published))
    sections += [
        *per_class(rows, domain),
        *pictures(rows, samples, domain),
        *further_sections(rows, domain),
        provenance({"scored": "\n".join(f"{row.title}: {row.score.scored}" for row in rows)}),
    ]
    others = [one for one in best.score.intervals[1:] if one.low is not None]
    intro = [
        f"{len(rows)} scored on {table.images} images of {table.target} {table.split}; {best.score.truth:.2f} % "
        "of their pixels have a class in the truth, and only these are scored.",
        *(f"Over {one.units} {one.over} the best has {between(one)}." for one in others),
    ]
    headline = [("best mIoU", f"{number(best.score.miou)} %"), ("of", best.title)]
    return Report(f"mIoU of {len(rows)} on {table.target} {table.split}", intro, sections, headline=headline)


def _differences(comparisons: Sequence[Comparison]) -> Table:
    rows = [
        Row(
            [
                f"{one.a} - {one.b}",
                one.measure,
                "n/a" if one.difference is None else f"{one.difference:+.2f}",
                *(between(over, signed=True) for over in one.intervals),
                {True: "yes", False: "not shown", None: "n/a"}[one.real],
                f"{one.wins} / {one.losses} / {one.ties}",
                f"{one.sign_p:.2g}",
            ]
        )
        for one in comparisons
    ]
    over = [f"95 % over {one.units} {one.over}" for one in comparisons[0].intervals]
    columns = ["difference", "of", "points", *over, "real", "images won / lost / even", "p of the sign test"]
    text = ["Real: the interval over images does not hold 0. Images are won by their own mIoU."]
    return Table("Are the differences real?", columns, rows, text)
