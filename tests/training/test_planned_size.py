"""The disk that ``train --dry-run`` expects is what the run takes: methods' own state, labels of rounds, averages."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch

from endauda_cli.models import build_student
from endauda_cli.planning.runs import plan_train
from endauda_cli.progress import silent
from endauda_cli.teachers.starting import named
from endauda_cli.training.loop import train
from endauda_cli.training.methods import METHODS, Material
from endauda_cli.training.run import Run, make_state
from endauda_cli.types import Method
from endauda_cli.workspace import Workspace
from tests.support.training_runs import CLASSES, CONFIG, TinySet

if TYPE_CHECKING:
    from pathlib import Path

    from endauda_cli.config import TrainConfig

TINY: dict[str, Any] = {
    "steps": 6,
    "batch_size": 2,
    "learning_rate": 1e-3,
    "size": (64, 32),
    "crop": (32, 16),
    "save_every": 2,
    "validate_every": 0,
    "keep": 2,
    "freeze_norms": False,
    "source_portion": 1.0,
    "source_portion_most": 1.0,
}


def run_of(data: TinySet, out: Path, method: str, **changes: Any) -> tuple[TrainConfig, Run]:
    kind = METHODS[method]
    config = dataclasses.replace(
        CONFIG, method=method, **{**kind.defaults, "source_size": None, **TINY, **changes}
    )
    labels = str(data.root / "fused") if method == Method.DISTILL else None
    streams, _ = kind.streams(Material(data.task, Workspace(out), (data.root,), (data.root,), labels))
    start = named("mrnet-tiny", None, CLASSES, out.joinpath) if method == Method.MRNET else None
    network = None if start is None else start.network
    streams = kind.narrowed(streams, config)
    run = Run(data.task, streams, out / "run", out / "cache", torch.device("cpu"), network=network)
    return config, run


def taken(out: Path) -> int:
    """Bytes of checkpoints, caches and labels of rounds; a file of two names is one."""
    files = [path for kind in ("*.pt", "*.npy", "cache/**/*") for path in out.rglob(kind) if path.is_file()]
    return sum({path.stat().st_ino: path.stat().st_size for path in files}.values())


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        (Method.DISTILL, {}),
        (Method.DISTILL, {"ema": 0.9, "keep": 1}),
        (Method.DISTILL, {"optimizer": "adamw"}),
        (Method.DISTILL, {"momentum": 0.0, "nesterov": False}),
        (Method.DACS, {"ema": 0.9}),
        (Method.CBST, {"rounds": 3}),
        (Method.CRST, {"rounds": 2, "regulariser": "lrent"}),
        (Method.MRNET, {}),
        (Method.MRNET, {"deceive_main": 0.0, "deceive_auxiliary": 0.0}),
    ],
)  # fmt: skip
def test_a_plan_says_what_a_run_takes(
    tiny_set: TinySet, tmp_path: Path, method: str, changes: dict[str, Any]
) -> None:
    config, run = run_of(tiny_set, tmp_path, method, **changes)

    def planned() -> tuple[float, str]:
        disk = plan_train(config, run, tmp_path, "it", silent).disk
        assert disk.value is not None
        return disk.value, disk.source

    expected, told = planned()
    assert taken(tmp_path) == 0
    train(config, run, silent)
    assert expected == pytest.approx(taken(tmp_path), rel=0.04), told
    assert ("of pseudo labels" in told) == (method in (Method.CBST, Method.CRST))


@pytest.mark.parametrize(("regulariser", "planes"), [("mrkld", 1), ("lrent", 1 + len(CLASSES))])
def test_labels_of_two_rounds_stay(tmp_path: Path, regulariser: str, planes: int) -> None:
    """Of three rounds of two steps; what lies there is not written once more, but what a stop left half is."""
    config = dataclasses.replace(CONFIG, method=Method.CRST, **{**TINY, "regulariser": regulariser})
    method = make_state(build_student("deeplabv3plus", "tiny", 3), config, 3, torch.device("cpu")).method
    each = 5 * 64 * 32 * planes
    found = []
    for step, there in ((0, []), (0, [0]), (1, [0]), (2, [0]), (2, [0, 1]), (4, [0, 1]), (5, [1, 2])):
        folder = tmp_path / f"{step}-{len(there)}"
        for number in there:
            (folder / f"rounds/{number}").mkdir(parents=True)
            (folder / f"rounds/{number}/labels.npy").touch()
        found.append(method.file_bytes({"main": 9, "target": 5}, folder, step) / each)
    assert found == [2, 1, 1, 1, 0, 0, 0]
