"""Engine: the report of a fusion: what became of each class, who agrees with whom, and where nobody agrees."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from endauda_cli.domains import IGNORE
from endauda_cli.fusion.charts import bars, matrix, shades
from endauda_cli.fusion.choosing import policy_of_all_rules
from endauda_cli.fusion.image import planes_of, run_rule
from endauda_cli.fusion.inputs import archive_record
from endauda_cli.fusion.rules import RULES
from endauda_cli.labels import colourise, read_image, read_train_ids
from endauda_cli.report import (
    BarRow,
    Bars,
    Figure,
    Gallery,
    PictureRow,
    Report,
    Row,
    Section,
    Table,
    marked_best,
    number,
    percent,
    provenance,
    thumbnail,
    write_report,
)
from endauda_cli.types import PolicyKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from endauda_cli.domains import Colour
    from endauda_cli.fusion.image import Fusion
    from endauda_cli.fusion.journal import Line
    from endauda_cli.results import FusionResult

    UInt8 = NDArray[np.uint8]

PICTURED_IMAGES = 8
TEACHER_COLOURS: tuple[Colour, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
)  # fmt: skip
"""Of the winner map; told apart also by the colour-blind (Okabe and Ito)."""
SEVERAL: Colour = (150, 150, 150)
BLACK: Colour = (0, 0, 0)


def write_fusion_report(
    fusion: Fusion, result: FusionResult, lines: Sequence[Line], images: Mapping[str, Path]
) -> None:
    """``report.html`` beside the labels, its figures as PNG in a folder.

    Args:
        fusion: what was fused, and how.
        result: figures of the whole set.
        lines: of the journal.
        images: id -> photograph, where there are any.
    """
    sections: list[Section] = []
    if result.scores:
        sections += [_scores(result), _score_bars(fusion, result)]
    disputed = sorted(lines, key=lambda line: (-line["disputed"] / max(1, line["pixels"]), line["id"]))
    sections += _galleries(fusion, result, disputed[:PICTURED_IMAGES], images)
    sections += [_classes(result), _class_bars(fusion, result)]
    figures = [_class_figure(fusion, result)]
    if len(result.teachers) > 1:
        sections.append(_agreement(result))
        figures.append(Figure("agreement", matrix(result.teachers, result.agreement)))
    sections.append(provenance(_inputs(fusion, result, [line["id"] for line in lines])))
    title = f"{result.rule} of {', '.join(result.teachers)}"
    report = Report(title, _intro(fusion, result), sections, figures, _headline(result))
    write_report(result.labels / "report.html", report, {line["id"] for line in lines})


def _headline(result: FusionResult) -> list[tuple[str, str]]:
    told = [
        ("images", f"{result.images:,}"),
        ("coverage", f"{percent(result.coverage)} %"),
        ("disputed", f"{percent(result.disputed)} %"),
    ]
    own = next((score for score in result.scores if score.is_rule and score.name == result.rule), None)
    if own is not None and own.miou is not None:
        told.append(("mIoU, all pixels", f"{number(own.miou)} %"))
    return told


def _inputs(fusion: Fusion, result: FusionResult, images: Sequence[str]) -> dict[str, str | None]:
    """What was fused, with the digests by which a rerun knows it."""
    told: dict[str, str | None] = {}
    for name, reader in fusion.readers.items():
        record = archive_record(reader, getattr(reader, "attributes", {}), images)
        told[f"teacher {name}"] = ", ".join(f"{key} {value}" for key, value in record.items() if value)
    options = fusion.config
    told["labels"] = str(result.labels)
    told["options"] = (
        f"rule {options.rule}, policy {options.policy}, threshold {options.threshold:g}, window "
        f"{options.window[0]}x{options.window[1]}"
    )
    return told


def _intro(fusion: Fusion, result: FusionResult) -> list[str]:
    policy = f"policy {result.policy}" if result.policy else "no policy"
    labels_used = "no label of the target was used"
    if result.used_labels:
        some = ", ".join(result.labelled_images[:10]) + (", ..." if len(result.labelled_images) > 10 else "")
        count = len(result.labelled_images)
        labels_used = f"labels of {count} target images were used, do not score on these: {some}"
    threshold = "no threshold" if result.threshold is None else f"threshold {result.threshold:g} %"
    return [
        f"{result.images} images of {fusion.task.target.name}; {policy}, {labels_used}; {threshold}.",
        f"Coverage {percent(result.coverage)} %; claimed by several classes {percent(result.overlap)} %, by none "
        f"{percent(result.unclaimed)} % of the pixels. On {percent(result.disputed)} % not all teachers agree.",
    ]


def _classes(result: FusionResult) -> Table:
    owned = result.policy is not None
    head = [
        "class",
        *([result.leader, "margin", "sure %"] if owned else []),
        "share of labels %",
        "kept %",
        "claimed by several %",
    ]
    rows = [
        Row(
            [
                c.name,
                *([c.owner or "", number(c.margin, 3), percent(c.sureness)] if owned else []),
                *(percent(v) for v in (c.share, c.kept, c.overlap)),
            ]
        )
        for c in result.classes
    ]
    text = []
    if owned:
        text = [
            "Margin: by how much the teacher's score exceeds the next one's. Sure: in how many of 200 random "
            "draws of the images the same teacher comes first."
        ]
    return Table("Classes", head, rows, text)


def _columns(result: FusionResult) -> list[tuple[str, list[float | None]]]:
    return [
        ("share of labels", [c.share for c in result.classes]),
        ("kept by the threshold", [c.kept for c in result.classes]),
    ]


def _class_bars(fusion: Fusion, result: FusionResult) -> Bars:
    rows = [
        BarRow(name, [None if v is None else 100 * v for v in values]) for name, values in _columns(result)
    ]
    names = [c.name for c in result.classes]
    return Bars(
        "Share and coverage per class", names, fusion.task.target.palette, rows, what="share", compared=False
    )


def _class_figure(fusion: Fusion, result: FusionResult) -> Figure:
    names = [c.name for c in result.classes]
    columns = [(f"{name}, %", values) for name, values in _columns(result)]
    return Figure("classes", bars(names, fusion.task.target.palette, columns))


def _score_bars(fusion: Fusion, result: FusionResult) -> Bars:
    """IoU per class, first of the rule that was used and of the best teacher."""
    scored = [score for score in result.scores if score.miou is not None] or list(result.scores)
    ordered = sorted(scored, key=lambda score: -(score.miou or 0))
    ordered.sort(key=lambda score: (score.name != result.rule or not score.is_rule, score.is_rule))
    names = [c.name for c in result.classes]
    rows = [BarRow(score.name, [score.iou[name] for name in names]) for score in ordered]
    return Bars("IoU per class", names, fusion.task.target.palette, rows)


def _agreement(result: FusionResult) -> Table:
    rows, heat = [], shades(result.agreement)
    for t, (name, shares) in enumerate(zip(result.teachers, result.agreement, strict=True)):
        others = [share for u, share in enumerate(shares) if u != t and share is not None]
        cells = [percent(share) if u != t else "" for u, share in enumerate(shares)]
        mean = sum(others) / len(others) if others else None
        rows.append(Row([name, *cells, percent(mean)], heat=[None, *heat[t], None]))
    text = [
        "Share of pixels, in percent, to which two teachers give the same class, of those to which both give one. "
        "Who stands apart may be the best or the worst; agreement alone does not tell."
    ]
    return Table("Agreement of the teachers", ["", *result.teachers, "mean"], rows, text)


def _policies(result: FusionResult) -> str:
    """By which policies the rules that are scored side by side go."""
    shared = policy_of_all_rules(result.policy or PolicyKind.AUTO)
    if result.policy in (None, shared):
        return f", and goes by policy {shared} if it needs one"
    return f"; {result.rule} goes by policy {result.policy}, another that needs one by {shared}"


def _scores(result: FusionResult) -> Table:
    """IoU per class of teachers and rules side by side, the best of each line marked."""

    scores = result.scores
    rows = [marked_best(c.name, [score.iou[c.name] for score in scores], "") for c in result.classes]
    rows.append(marked_best("mIoU, all pixels", [score.miou for score in scores], "", strong=True))
    if result.threshold:
        kept = [score.kept_miou for score in scores]
        rows.append(marked_best("mIoU, kept pixels", kept, "", strong=True))
        rows.append(
            Row(
                [
                    "kept, % of pixels",
                    *(number(score.coverage, 1) if score.is_rule else "" for score in scores),
                ]
            )
        )
    text = [
        "IoU in percent on the labels that the target has for these images. They only score: nothing above was "
        f"chosen by them{', but the policy was: it is ' + str(result.policy) if result.used_labels else ''}. "
        f"Every rule has the same teachers, window and threshold{_policies(result)}."
    ]
    return Table("Teachers and rules, scored", ["class", *(score.name for score in scores)], rows, text)


def _galleries(
    fusion: Fusion, result: FusionResult, lines: Sequence[Line], images: Mapping[str, Path]
) -> list[Section]:
    """The images with the greatest disagreement, as everybody sees them; and who won them."""
    with ThreadPoolExecutor(fusion.config.workers) as pool:
        rows = list(pool.map(lambda line: _row(fusion, result, line, images.get(line["id"])), lines))
    photographs = any(line["id"] in images for line in lines)
    columns = [*(["image"] if photographs else []), result.rule, "winner", "certainty", *result.teachers]
    owned = RULES[result.rule].owned
    winners = [f"won by {name}{'' if owned else ' alone'}" for name in result.teachers]
    teachers = list(zip(winners, _teacher_colours(len(winners)), strict=True))
    others = (
        [("no label", BLACK)] if owned else [("given by several", SEVERAL), ("by nobody, or no label", BLACK)]
    )
    won_by = (
        "The winner map shows from whom each label was taken (black: nobody, no label was kept)."
        if owned
        else "The winner map shows who alone gave the label (grey: several did; black: no label was "
        "kept, or one that none of them has there)."
    )
    text = [
        "The images on which the teachers disagree most, most first.",
        f"{won_by} Certainty, before the threshold, is white at 100 % and black at 0: "
        + ("the owner's." if owned else "the teachers' mean for the label."),
    ]
    legend = [*zip(fusion.task.classes, fusion.task.target.palette, strict=True), *teachers, *others]
    return [Gallery("Greatest disagreement", columns, rows, legend, text)] if rows else []


def _row(fusion: Fusion, result: FusionResult, line: Line, photograph: Path | None) -> PictureRow:
    """Label maps are made small first (each small pixel is one of the large ones), and coloured then."""
    image = line["id"]
    labels = np.stack([reader.labels(image) for reader in fusion.readers.values()])
    fused = _small(read_train_ids(result.labels / f"{image}.png", fusion.recipe.num_classes))
    given = np.stack([_small(label) for label in labels])
    palette = fusion.task.target.palette
    certainty = np.repeat(_certainty(fusion, image, labels)[..., None], 3, 2)
    pictures = [colourise(fused, palette), _winners(fusion, given, fused), certainty]
    pictures += [colourise(label, palette) for label in given]
    if photograph is not None:
        pictures.insert(0, thumbnail(read_image(photograph)))
    share = percent(line["disputed"] / max(1, line["pixels"]))
    return PictureRow(image, pictures, f"{share}\N{NO-BREAK SPACE}% disputed")


def _small(values: UInt8) -> UInt8:
    return thumbnail(values, flat=True)


def _winners(fusion: Fusion, labels: UInt8, fused: UInt8) -> UInt8:
    """(H, W, 3): the colour of the teacher whose label each pixel carries."""
    colours = np.array([*_teacher_colours(len(labels)), SEVERAL, BLACK], np.uint8)
    several, nobody = len(labels), len(labels) + 1
    if RULES[fusion.config.rule].owned:
        owner = np.full(256, nobody, np.uint8)
        owner[: fusion.recipe.num_classes] = fusion.recipe.owners
        return colours[owner[fused]]
    winner = np.full(fused.shape, nobody, np.uint8)
    for t, label in enumerate(labels):
        mine = (label == fused) & (fused != IGNORE)
        winner[mine] = np.where(winner[mine] == nobody, t, several)
    return colours[winner]


def _certainty(fusion: Fusion, image: str, labels: UInt8) -> UInt8:
    """(h, w) uint8 0..255, small: how certain the owner is of the label before the threshold, or the teachers are."""
    planes = planes_of(fusion, image, fusion.config.rule)
    label = _small(run_rule(fusion, fusion.config.rule, image, labels, threshold=0).candidate)
    sure = np.zeros(label.shape, np.float32)
    present = [int(c) for c in np.unique(label) if c != IGNORE]
    for t in range(len(labels)):
        owned = RULES[fusion.config.rule].owned
        asked = [c for c in present if not owned or fusion.recipe.owners[c] == t]
        for c, plane in zip(asked, planes(t, asked) if asked else (), strict=True):
            here = label == c
            sure[here] += _small(plane)[here] / (1 if owned else len(labels))
    return (np.nan_to_num(sure).clip(0, 100) * 2.55).astype(np.uint8)


def _teacher_colours(teachers: int) -> list[Colour]:
    return [TEACHER_COLOURS[t % len(TEACHER_COLOURS)] for t in range(teachers)]
