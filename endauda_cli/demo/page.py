"""The demo's page: who labels how well, as tables and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from endauda_cli.fusion.policy_files import POLICY_FILE
from endauda_cli.labels import colourise, read_image, read_train_ids, read_truth
from endauda_cli.report import Gallery, PictureRow, Report, Row, Table, number, provenance, write_report
from endauda_cli.types import FusionRule
from endauda_cli.workspace import read_json

if TYPE_CHECKING:
    from endauda_cli.demo.parts import Demo, Ensemble
    from endauda_cli.domains import Colour
    from endauda_cli.results import Score
    from endauda_cli.score_results import EvalResult


def write_page(
    demo: Demo,
    ensemble: Ensemble,
    page: Path,
    intro: list[str],
    scores: tuple[Score, ...],
    results: dict[str, EvalResult],
    scenes: int,
) -> None:
    """The report: mIoU table, IoU per class with the policy, and scenes as everybody labels them."""
    classes, palette = demo.task.classes, demo.task.target.palette
    owners = {c: t for c, t in _policy_pairs(demo)}
    best = max(range(len(scores)), key=lambda i: scores[i].miou or 0)
    summary = [Row([s.name, number(s.miou), number(s.coverage, 1)], frozenset([1] if i == best else []), s.ours)
               for i, s in enumerate(scores)]  # fmt: skip
    per_class = []
    for name in classes:
        values = [s.iou[name] for s in scores]
        top = max((v for v in values if v is not None), default=None)
        marked = frozenset(i + 1 for i, v in enumerate(values) if v is not None and v == top)
        per_class.append(Row([name, *(number(v, 1) for v in values), owners[name]], marked))
    report = Report(
        title="endauda demo",
        intro=intro,
        sections=[
            Table("mIoU in percent", ["", "mIoU", "coverage"], summary),
            _looks(demo, ensemble),
            _gallery(demo, ensemble, results, palette, scenes),
            Table("IoU in percent per class", ["class", *(s.name for s in scores), "owner"], per_class),
            provenance({"workspace": str(demo.workspace.root), "device": str(demo.device)}),
        ],
    )
    write_report(page, report)


def _policy_pairs(demo: Demo) -> list[tuple[str, str]]:
    record = read_json(demo.workspace.labels(demo.task.target, FusionRule.PLF) / POLICY_FILE)
    assert record is not None
    return [(c, t) for c, t in record["pairs"]]


def _looks(demo: Demo, ensemble: Ensemble) -> Gallery:
    """Source images, as translated for each teacher if they are, and target images."""
    folders = {
        "noon (source)": "noon",
        **{f"for {name}": f"noon-{name}" for name in ensemble.translations},
        "dusk (target)": "dusk",
    }
    rows = []
    for i in range(2):
        files = [
            demo.workspace.root / "Warehouse" / folder / "images" / "train" /
            f"{'dusk' if folder == 'dusk' else 'noon'}_train_{i:03}.png" for folder in folders.values()
        ]  # fmt: skip
        rows.append(PictureRow(f"street {i}", [read_image(file) for file in files]))
    translated = ", and the source as translated for each teacher" if ensemble.translations else ""
    return Gallery(f"The two looks of the world{translated}", list(folders), rows, side_by_side=True)


def _gallery(
    demo: Demo,
    ensemble: Ensemble,
    results: dict[str, EvalResult],
    palette: tuple[Colour, ...],
    scenes: int,
) -> Gallery:
    """Scenes as everybody labels them: the story from left to right, then the rules that were not trained on."""
    folders = {name.removesuffix(" labels"): r.pictures or Path(r.scored) for name, r in results.items()}
    others = [rule.value for rule in FusionRule if rule != ensemble.rule]
    story = [name for name in folders if name not in others]
    rows = []
    for sample in demo.samples("val")[:scenes]:
        assert sample.label is not None
        maps = {
            name: read_train_ids(folder / f"{sample.id}.png", len(demo.task.classes))
            for name, folder in folders.items()
        }
        shown = [*(maps[name] for name in story), read_truth(sample.label, demo.task.target)]
        shown += [maps[name] for name in others]
        pictures = [read_image(sample.image), *(colourise(one, palette) for one in shown)]
        rows.append(PictureRow(sample.id, pictures))
    legend = list(zip(demo.task.classes, palette, strict=True))
    return Gallery("Target scenes", ["image", *story, "truth", *others], rows, legend, side_by_side=True)
