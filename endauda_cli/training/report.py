"""``report.html`` of a run: its curves, what it says of a few crops, where it comes from, and its recipe."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from endauda_cli.config import TrainConfig
from endauda_cli.report import (
    Drawing,
    Drawings,
    Gallery,
    PictureRow,
    Report,
    Row,
    Section,
    Table,
    number,
    provenance,
    write_report,
)
from endauda_cli.report.diagrams import curve
from endauda_cli.training.data import of_sources
from endauda_cli.training.methods import MAIN
from endauda_cli.workspace import REPORT_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from endauda_cli.report.diagrams import Point
    from endauda_cli.training.pictures import Seen
    from endauda_cli.training.run import Run, TrainState

CURVES = {
    "loss": "loss",
    "val_miou": "mIoU on labelled target images, %",
    "lr": "learning rate of the backbone",
    "kept": "share of pixels kept by mining",
    "mining_threshold": "loss from which pixels are kept",
    "labelled": "share of pixels with a label",
    "images_per_second": "images per second",
}
"""What is logged, in the order and words of the page; other figures follow under their own names."""


def write_run_report(
    config: TrainConfig, run: Run, state: TrainState, log: Mapping[str, Sequence[Point]], seen: Sequence[Seen]
) -> None:
    """Write the page into the run's folder, with its pictures beside it.

    Args:
        config: the recipe.
        run: where it goes.
        state: where it stands.
        log: what was logged: per key (step, value), ascending.
        seen: what the student says of some crops.

    Raises:
        EndaudaError: if it cannot be written.
    """
    sections: list[Section] = [_curves(log), _gallery(run, state, seen)]
    sections += [*_parents(state.origin), _recipe(config), provenance({})]
    title = f"{run.trained(config).title}: {run.out.name}"
    page = Report(title, _intro(config, run, state), sections, headline=_headline(config, state, log))
    write_report(run.out / REPORT_FILE, page)


def _headline(
    config: TrainConfig, state: TrainState, log: Mapping[str, Sequence[Point]]
) -> list[tuple[str, str]]:
    told = [("step", f"{state.step:,} of {config.steps:,}")]
    if log.get("loss"):
        told.append(("last loss", f"{log['loss'][-1][1]:.3f}"))
    if state.best_miou is not None:
        told.append((f"best mIoU, step {state.best_step:,}", f"{number(state.best_miou)} %"))
    return told


def _intro(config: TrainConfig, run: Run, state: TrainState) -> list[str]:
    done = (
        f"Step {state.step:,} of {config.steps:,}, method {config.method}, {config.batch_size} images a step"
    )
    learnt = [run.streams[name] for name in of_sources(run.streams)]
    images = " and ".join(f"{len(stream.examples):,}" for stream in learnt)
    sources = " and ".join([run.task.source.name, *(stream.domain.name for stream in learnt[1:])])
    told = [f"{done} of {images}; source {sources}, target {run.task.target.name}."]
    if state.best_miou is not None:
        told.append(
            f"mIoU on labelled target images: last {number(state.last_miou)}, best {number(state.best_miou)} at step "
            f"{state.best_step:,}; the best checkpoint was chosen with those labels."
        )
    return told


def _curves(log: Mapping[str, Sequence[Point]]) -> Drawings:
    order = [*(key for key in CURVES if key in log), *(key for key in log if key not in CURVES)]
    drawings, still = [], []
    for key in order:
        title, (_, last) = CURVES.get(key, key), log[key][-1]
        if len(log[key]) > 2 and all(value == last for _, value in log[key]):
            still.append(f"{title} {last:.4g}")
            continue
        drawings.append(Drawing(f"{title}, last {last:.4g}", curve(f"{title} over the steps", log[key])))
    text = [
        "Over the steps of the run. Of too many points the line is the mean, and the band what they span."
    ]
    if still:
        text.append(f"The same at every step: {', '.join(still)}.")
    return Drawings("Curves", drawings, text)


def _gallery(run: Run, state: TrainState, seen: Sequence[Seen]) -> Gallery:
    domain = run.streams[MAIN].domain
    rows = [PictureRow(one.id, [one.image, one.labels, one.prediction]) for one in seen]
    legend = list(zip(domain.classes, domain.palette, strict=True))
    text = ["Always the same crops of training images, before their colours are changed; black is no label."]
    columns = ["crop", "labels it learns", f"student at step {state.step:,}"]
    return Gallery("What it sees and says", columns, rows, legend, text)


def _parents(origin: Mapping[str, Any]) -> Iterator[Table]:
    for title, name in (("Where it comes from", "parents"), ("What it was made by", "made_by")):
        rows = [Row([key, text]) for key, text in lines(origin.get(name, {}))]
        if rows:
            yield Table(title, ["", ""], rows, left=True)


def lines(record: object, key: str = "") -> Iterator[tuple[str, str]]:
    """A nested record as lines: ``labels rule``, ``plf``; lists of plain values with commas, nothing for ``None``."""
    if isinstance(record, dict):
        for name, value in record.items():
            yield from lines(value, f"{key} {name}".strip())
    elif isinstance(record, list) and not any(isinstance(value, dict | list) for value in record):
        yield key, ", ".join(map(str, record))
    elif record is not None:
        yield key, f"{record:.6g}" if isinstance(record, float) else str(record)


def _recipe(config: TrainConfig) -> Table:
    rows = []
    for field in fields(TrainConfig):
        value = getattr(config, field.name)
        rows.append(Row([f"--{field.metadata['option'].name}", _said(value)], strong=value != field.default))
    return Table("Recipe", ["", ""], rows, ["Bold is what differs from the program's own values."], left=True)


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple | list):
        return ("x" if all(isinstance(part, int) for part in value) else " ").join(map(str, value)) or "none"
    return "none" if value is None else str(value)
