"""Whether each method that trains teachers beats training on the source alone, in the demo's world.

    OMP_NUM_THREADS=1 python benchmarks/methods.py FOLDER [--seeds 1 2 3] [--only dacs cbst]

For each seed, the demo's world is drawn anew (96 labelled images of noon, 96 unlabelled ones and 32 val images of
dusk), and every method learns by ``endauda train`` with the settings of the demo's table (``RUNS`` of
``endauda_cli/demo/full.py``); mIoU is that of the last step's network on val, whose labels nothing else reads. A method
begins with the weights of its row ``after``, whose steps and CPU seconds are not counted again. ``source-norms`` learns
nothing: the source's network with the batch norms' statistics of dusk, to see what of a method's gain these are.
``source-longer`` is the source alone, for as many steps more as the longest of the methods. What is done is not done
again: FOLDER keeps the worlds and the runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from realdata import endauda
from rich.console import Console
from rich.table import Table
from torch.nn.modules.batchnorm import _BatchNorm

from endauda_cli.checkpoint import load, load_student, save
from endauda_cli.demo.full import RUNS, SOURCE, TWO_HEADS, Adapted, command_line
from endauda_cli.demo.story import write_defaults, write_world
from endauda_cli.domains import CITYSCAPES_CLASSES
from endauda_cli.evaluation import PROCEDURE
from endauda_cli.merging import measure_statistics
from endauda_cli.progress import silent
from endauda_cli.segmenter import Segmenter
from endauda_cli.workspace import Workspace

RUN_FOLDER = Path("runs/noon")


class Row(NamedTuple):
    """How one method is trained.

    Attributes:
        run: its settings; ``None`` learns nothing: batch norms' statistics are measured anew on the target's images.
        after: the row whose weights it begins with, and that it is compared with; ``None`` is random ones.
    """

    run: Adapted | None
    after: str | None = None


ALONE = {SOURCE: "source", TWO_HEADS: "source-two-heads"}
"""What networks of the source alone are called here."""
LONGER = 280
"""Steps of ``source-longer``."""


def _rows() -> dict[str, Row]:
    """The demo's table, and what its source network comes to without a method."""
    alone, rest = Row(RUNS[SOURCE]), {}
    longer = replace(RUNS[SOURCE], changes={**RUNS[SOURCE].changes, "steps": LONGER})
    for name, run in RUNS.items():
        rest[ALONE.get(name, name)] = Row(run, ALONE[run.after] if run.after else None)
    return {
        "source": alone,
        "source-norms": Row(None, "source"),
        "source-longer": Row(longer, "source"),
        **rest,
    }


METHODS = _rows()
"""Rows name rows above them. The settings were chosen on seed 0, which takes no part in the figures."""


class Found(NamedTuple):
    """Of one run: mIoU in percent, and CPU seconds."""

    miou: float
    seconds: float


def measured(folder: Path, name: str, seed: int) -> Found:
    """Trains and tests one method, or reads what that gave before."""
    kept = folder / f"{name}.json"
    if kept.exists():
        return Found(**json.loads(kept.read_text()))
    with chdir(folder):  # where the world's defaults are read
        begin = time.process_time()
        checkpoint = trained(name, seed)
        seconds = time.process_time() - begin
        found = Found(endauda("test", "--weights", str(checkpoint), "--device", "cpu")["miou"], seconds)
    kept.write_text(json.dumps(found._asdict()))
    return found


def trained(name: str, seed: int) -> Path:
    """The last step's weights of a method, in the current folder's world."""
    row, out = METHODS[name], RUN_FOLDER / name / "last.pt"
    if row.run is None:
        measure_norms(RUN_FOLDER / str(row.after) / "last.pt", out)
        return out
    words = command_line(row.run)
    if row.after is not None:
        words += ["--init", str(RUN_FOLDER / row.after / "last.pt")]
    endauda("train", *words, "--seed", str(seed), "--name", name, "--device", "cpu")
    return out


def measure_norms(begin: Path, out: Path) -> None:
    """Writes a checkpoint whose batch norms know the target's train images, but no label of them."""
    images = sorted(Path("Warehouse/dusk/images/train").glob("*.png"))
    student = load_student(begin, CITYSCAPES_CLASSES)
    norms = [module for module in student.model.modules() if isinstance(module, _BatchNorm)]
    segmenter = Segmenter(student.model, student.preprocessing, PROCEDURE)
    measure_statistics(segmenter, norms, images, torch.device("cpu"), silent)
    out.parent.mkdir(parents=True, exist_ok=True)
    save(out, {**load(begin), "weights": student.model.state_dict()})


def world(folder: Path, seed: int) -> None:
    """The demo's, without its teachers."""
    if not (folder / "drawn").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_world(Workspace(folder), seed, silent, {})
        write_defaults(Workspace(folder), ())
        (folder / "drawn").touch()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    given = parser.parse_args()
    wanted = _with_what_they_need(given.only)
    results: dict[str, list[Found]] = {name: [] for name in wanted}
    for seed in given.seeds:
        folder = given.folder.resolve() / f"seed-{seed}"
        world(folder, seed)
        for name in wanted:
            results[name].append(measured(folder, name, seed))
    Console(width=100).print(_table(results, given.seeds))


def _with_what_they_need(names: list[str]) -> list[str]:
    """In the order of the table, with the rows that they begin with."""
    needed = set(names)
    for name in reversed(METHODS):
        if name in needed:
            needed.add(METHODS[name].after or name)
    return [name for name in METHODS if name in needed]


def _table(results: dict[str, list[Found]], seeds: list[int]) -> Table:
    table = Table("mIoU", *(f"seed {seed}" for seed in seeds), "mean", "difference", "CPU s")
    means = {name: statistics.mean(run.miou for run in runs) for name, runs in results.items()}
    for name, runs in results.items():
        against = METHODS[name].after
        difference = "" if against is None else f"{means[name] - means[against]:+.1f} to {against}"
        scores = [f"{run.miou:.1f}" for run in runs]
        seconds = statistics.mean(run.seconds for run in runs)
        table.add_row(name, *scores, f"{means[name]:.1f}", difference, f"{seconds:.0f}")
    return table


if __name__ == "__main__":
    main()
