"""Engine: one checkpoint from the weights of several runs of one network.

Runs that began from the same weights end in one valley of the loss, and the mean of their weights is often better than
each (Wortsman et al., Model soups, 2022). Statistics of batch norms do not average: they are measured anew.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from endauda_cli import __version__, checkpoint
from endauda_cli.errors import CheckpointError, WorkspaceError
from endauda_cli.evaluation import PROCEDURE
from endauda_cli.inference import load, run_network
from endauda_cli.progress import Note, Tick, phase
from endauda_cli.results import MergedRun, MergeResult
from endauda_cli.segmenter import Segmenter, label_map
from endauda_cli.workspace import BEST_FILE, ORDER, RUN_FILE, make_folder, next_order, read_json, write_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from endauda_cli.checkpoint import LoadedStudent
    from endauda_cli.config import InferenceConfig
    from endauda_cli.progress import Reporter
    from endauda_cli.types import MergeBy

    Score = Callable[[Segmenter], float]

MERGED = "merged"
"""In ``RUN_FILE`` and a checkpoint's ``meta``: what it was averaged of. By it a folder is known as a merge's."""
_COMPARED = 8
"""Images on which runs and merge are compared."""
_BATCH = 8
"""Images whose statistics are measured together."""


@dataclass(frozen=True)
class Merging:
    """What is merged, by what, to where.

    Attributes:
        checkpoints: at least two, of one network.
        classes: the task's class names.
        out: the run's folder.
        by: see ``types``.
        images: of the target, for batch statistics; none averages these too.
        compared: images of the target on which runs and merge are compared.
        score: percent that a network reaches, where that chooses.
        scored: ids of the images that it looks at.
    """

    checkpoints: Sequence[Path]
    classes: tuple[str, ...]
    out: Path
    by: MergeBy
    images: Sequence[Path]
    compared: Sequence[Path]
    score: Score | None = None
    scored: tuple[str, ...] = ()


def merge(wanted: Merging, inference: InferenceConfig, device: torch.device, report: Reporter) -> MergeResult:
    """Average the weights of runs and write ``best.pt`` of a new run.

    Raises:
        EndaudaError: if the runs are of unlike networks or classes, or the folder holds something else.
    """
    refuse_other_run(wanted.out)
    with phase(report, f"opening {len(wanted.checkpoints)} checkpoints"):
        students = [
            checkpoint.load_student(path, wanted.classes, report=report) for path in wanted.checkpoints
        ]
    _refuse_unlike(wanted.checkpoints, students)
    pot = _Pot(wanted, students, device, report)
    each, compared = range(len(students)), wanted.compared[:_COMPARED]
    alone = [None if wanted.score is None else wanted.score(pot.segmenter([i])) for i in each]
    used = pot.chosen(alone)
    # With statistics measured alike, so that the weights alone make the difference.
    runs = [_labels(pot.segmenter([i], measured=True), compared, inference, device) for i in each]
    merged = pot.segmenter(used)  # the last that is asked for, so this is what is saved
    final = None if wanted.score is None else wanted.score(merged)
    last = _labels(merged, compared, inference, device)
    pairs = [_alike(one, other) for one, other in combinations(runs, 2)]
    likeness = [_alike(one, last) for one in runs]
    result = MergeResult(
        checkpoint=wanted.out / BEST_FILE,
        by=wanted.by,
        runs=tuple(
            MergedRun(path, i in used, alone[i], likeness[i]) for i, path in enumerate(wanted.checkpoints)
        ),
        score=final,
        scored_images=wanted.scored,
        statistics_images=len(wanted.images) if pot.norms else 0,
        alike=float(np.mean(pairs)),
    )
    _warn_of_valleys(result, used, report)
    _save(wanted, students[used[0]], merged.network, result)
    return result


def refuse_other_run(out: Path) -> None:
    """Refuse the folder of a run that was trained; that of an earlier merge is written anew.

    Raises:
        WorkspaceError: names it.
    """
    if out.exists() and any(out.iterdir()) and MERGED not in (read_json(out / RUN_FILE) or {}):
        raise WorkspaceError(f"{out}: is there already and no merge; name another run with --into")


def _refuse_unlike(paths: Sequence[Path], students: Sequence[LoadedStudent]) -> None:
    """``load_student`` has compared the classes already."""
    first = students[0]
    for path, other in zip(paths[1:], students[1:], strict=True):
        names = [f"{one.arch} on {one.backbone}" for one in (first, other)]
        shapes = [{k: v.shape for k, v in one.model.state_dict().items()} for one in (first, other)]
        if names[0] != names[1] or shapes[0] != shapes[1]:
            raise CheckpointError(
                f"{path}: a network of {names[1]}, but {paths[0]} is one of {names[0]}, and weights of unlike networks "
                "have no mean; merge runs of one network"
            )
        if first.preprocessing != other.preprocessing:
            raise CheckpointError(
                f"{path}: trained on other input ({_input(other)}) than {paths[0]} ({_input(first)}); merge runs of "
                "one --size"
            )


def _input(student: LoadedStudent) -> str:
    size = student.preprocessing.size
    return f"{size[0]}x{size[1]}" if size else "images of their own size"


class _Pot:
    """The runs' weights, of which any may be averaged."""

    def __init__(
        self, wanted: Merging, students: Sequence[LoadedStudent], device: torch.device, report: Reporter
    ) -> None:
        self._wanted, self._device, self._report = wanted, device, report
        self._states = [
            {key: value.clone() for key, value in one.model.state_dict().items()} for one in students
        ]
        self._model, self._preprocessing = students[0].model.to(device), students[0].preprocessing
        self.norms = (
            [
                module
                for module in self._model.modules()
                if isinstance(module, _BatchNorm) and module.track_running_stats
            ]
            if wanted.images
            else []
        )

    def segmenter(self, chosen: Sequence[int], measured: bool = False) -> Segmenter:
        """The mean of those runs; valid until the next is asked for. A single one is what it is, unless its
        statistics are to be ``measured``, too."""
        self._model.load_state_dict(mean_of([self._states[i] for i in chosen]))
        segmenter = Segmenter(self._model.eval(), self._preprocessing, PROCEDURE, batches=True)
        if (measured or len(chosen) > 1) and self.norms:
            measure_statistics(segmenter, self.norms, self._wanted.images, self._device, self._report)
        return segmenter

    def chosen(self, alone: Sequence[float | None]) -> list[int]:
        """Which runs are averaged: all, or, from the best on, each that does not lower the score."""
        if self._wanted.score is None:
            return list(range(len(self._states)))
        best, *others = sorted(range(len(alone)), key=lambda i: -(alone[i] or 0.0))
        used, reached = [best], alone[best] or 0.0
        for i in others:
            score = self._wanted.score(self.segmenter([*used, i]))
            self._report(Note(f"with {self._wanted.checkpoints[i]}: {score:.2f} after {reached:.2f}"))
            if score >= reached:
                used, reached = [*used, i], score
        return used


def mean_of(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of state dicts of equal keys and shapes, summed in float64; whole numbers are the first's."""
    mean = dict(states[0])
    for key, value in mean.items():
        if value.is_floating_point() and len(states) > 1:
            mean[key] = torch.stack([state[key].double() for state in states]).mean(0).to(value.dtype)
    return mean


@torch.no_grad()
def measure_statistics(
    segmenter: Segmenter,
    norms: Sequence[_BatchNorm],
    images: Sequence[Path],
    device: torch.device,
    report: Reporter,
) -> None:
    """Set the batch norms' running statistics to the mean over all images, two or more; all else stays."""
    network = segmenter.network.eval()
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
    seen = 0
    for part in np.array_split(np.arange(len(images)), -(-len(images) // _BATCH)):  # none of one image alone
        seen += len(part)
        for norm in norms:
            norm.momentum = len(part) / seen  # so the first replaces what was there
        network(_batch(segmenter, [images[i] for i in part], device))
        report(Tick("batch statistics", seen, len(images)))
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    network.eval()


def _batch(segmenter: Segmenter, images: Sequence[Path], device: torch.device) -> Tensor:
    """(B, 3, h, w); images of their own size that differ are cut to the smallest sides."""
    pixels = [load(path, segmenter).pixels[0] for path in images]
    height, width = (min(one.shape[axis] for one in pixels) for axis in (0, 1))
    stacked = torch.stack([one[:height, :width] for one in pixels]).to(device)
    return segmenter.preprocessing.pad(segmenter.preprocessing.normalise(stacked))


def _labels(
    segmenter: Segmenter, images: Sequence[Path], inference: InferenceConfig, device: torch.device
) -> list[NDArray[Any]]:
    return [labels for (labels,) in run_network(segmenter, images, label_map, inference, device)]


def _alike(one: Sequence[NDArray[Any]], other: Sequence[NDArray[Any]]) -> float:
    """Percent of the pixels."""
    equal = sum(int((a == b).sum()) for a, b in zip(one, other, strict=True))
    return 100 * equal / sum(a.size for a in one)


def _warn_of_valleys(result: MergeResult, used: Sequence[int], report: Reporter) -> None:
    """The mean of weights in one valley lies between them, nearer to each than they are to each other."""
    likeness = float(np.mean([result.runs[i].alike for i in used]))
    if len(used) > 1 and likeness < result.alike:
        report(
            Note(
                f"the merge labels {likeness:.1f} % of the pixels as its runs do, which agree with each other on "
                f"{result.alike:.1f} %: such weights have no useful mean; merge runs that began from one --init",
                "warning",
            )
        )


def _save(wanted: Merging, first: LoadedStudent, network: nn.Module, result: MergeResult) -> None:
    of = [
        {"checkpoint": str(one.checkpoint), "sha256": checkpoint.sha256(one.checkpoint), "used": one.used}
        for one in result.runs
    ]
    kept = {key: value for key, value in first.meta.items() if key not in _OF_TRAINING}
    named = {"arch": str(first.arch), "backbone": str(first.backbone)}  # of others, ``kept`` says all
    own = {
        "endauda": __version__, **({} if "network" in first.meta else named), "classes": list(wanted.classes),
    }  # fmt: skip
    size = first.preprocessing.size
    meta = own | kept | ({"size": list(size)} if size else {}) | {
        MERGED: {"by": str(wanted.by), "runs": of, "statistics_images": result.statistics_images}
    }  # fmt: skip
    make_folder(wanted.out)
    told = {ORDER: next_order(wanted.out, RUN_FILE), **meta}
    write_text(wanted.out / RUN_FILE, json.dumps(told, indent=1, default=str) + "\n")
    weights = {key: value.cpu() for key, value in network.state_dict().items()}
    checkpoint.save(wanted.out / BEST_FILE, {"weights": weights, "meta": meta})


_OF_TRAINING = (
    "step", "miou", "best_miou", "best_step", "agreement", "best_agreement", "idle", "initialised_from", "ramp",
    "empty", "processes",
)  # fmt: skip
"""What a checkpoint says of its run alone."""
