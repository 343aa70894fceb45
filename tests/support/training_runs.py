"""A data set of six tiny images and short runs on it, and a program that can be killed in the middle.

usage: training_runs.py SET OUT WORKERS [KILL_AT [OPTIONS]]      (with torchrun: as many processes as it starts)

KILL_AT is a step that is reported, or seconds of training, such as 0.3, or a task, which is then half done; OPTIONS are
fields of the recipe as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from endauda_cli.config import InferenceConfig, TrainConfig
from endauda_cli.datasets import find_samples, load_domain
from endauda_cli.distributed import process_group, world_size
from endauda_cli.domains import Task, make_task
from endauda_cli.evaluation import PROCEDURE, Scoring, evaluate
from endauda_cli.labels import read_truth
from endauda_cli.progress import Note, Reporter, Tick, silent
from endauda_cli.segmenter import Segmenter
from endauda_cli.training.data import Example, Stream
from endauda_cli.training.loop import train
from endauda_cli.training.methods import MAIN, METHODS, Material
from endauda_cli.training.methods.distill import read_fused
from endauda_cli.training.run import Run
from endauda_cli.transforms import Preprocessing
from endauda_cli.types import Arch, Backbone, Method
from endauda_cli.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Iterable

    from endauda_cli.domains import Domain
    from endauda_cli.results import TrainResult
    from endauda_cli.score_results import EvalResult

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("road", "car", "sky")
LABEL_IDS = (7, 26, 23)
SIZE = (64, 32)  # width, height
TOML = """
name = "tiny"
classes = ["road", "car", "sky"]
label_ids = { "7" = "road", "26" = "car", "23" = "sky" }
[train]
images = "images/train/*.png"
labels = "truth/train/*.png"
[val]
images = "images/val/*.png"
labels = "truth/val/*.png"
"""


@dataclass(frozen=True)
class TinySet:
    """Four images to train on and two to validate on, 64x32; sky above, road below, a car in most."""

    root: Path

    @property
    def toml(self) -> Path:
        return self.root / "tiny.toml"

    @property
    def domain(self) -> Domain:
        return load_domain(str(self.toml))

    @property
    def task(self) -> Task:
        return make_task(None, self.domain)

    def examples(self) -> list[Example]:
        """The images to train on with their fused labels (train ids, some 255)."""
        samples = find_samples(self.domain, [self.root], "train")
        return [Example(s.id, s.image, self.root / "fused" / f"{s.id}.png") for s in samples]

    def source_examples(self) -> list[Example]:
        """The images to train on with their ground truth (label ids)."""
        samples = find_samples(self.domain, [self.root], "train", need_labels=True)
        return [Example(s.id, s.image, s.label) for s in samples if s.label is not None]

    def validate(self, model: torch.nn.Module) -> EvalResult:
        samples = find_samples(self.domain, [self.root], "val", need_labels=True)
        device, inference = torch.device("cpu"), InferenceConfig()
        segmenter = Segmenter(model, Preprocessing(SIZE), PROCEDURE)
        return evaluate(segmenter, samples, Scoring(self.domain, "it"), inference, device, silent)


def make_set(root: Path) -> TinySet:
    """Write the data set."""
    generator = np.random.default_rng(0)
    for folder in ("images/train", "images/val", "truth/train", "truth/val", "fused"):
        (root / folder).mkdir(parents=True)
    for i in range(6):
        split = "train" if i < 4 else "val"
        label = np.zeros((32, 64), np.uint8)
        label[:14] = 2
        top, left = generator.integers(8, 18), generator.integers(0, 40)
        if i not in (1, 2):  # so that some batches show no car
            label[top : top + 8, left : left + 20] = 1
        colours = np.array([(90, 60, 90), (200, 40, 30), (120, 170, 230)])
        image = (colours[label] + generator.normal(0, 12, (32, 64, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / split / f"{i}.png")
        Image.fromarray(np.array(LABEL_IDS, np.uint8)[label]).save(root / "truth" / split / f"{i}.png")
        label[generator.random(label.shape) < 0.2] = 255
        if split == "train":
            Image.fromarray(label).save(root / "fused" / f"{i}.png")
    (root / "tiny.toml").write_text(TOML)
    return TinySet(root)


CONFIG = TrainConfig(
    backbone=Backbone.TINY,
    arch=Arch.DEEPLABV3PLUS,
    steps=15,
    batch_size=2,
    learning_rate=1e-3,
    size=SIZE,
    crop=(32, 16),  # small enough to miss a class now and then
    mirror=True,
    augment=("colour", "light", "texture"),
    balance_area=16,
    save_every=4,
    validate_every=5,
    workers=1,
)


def run(
    data: TinySet, out: Path, report: Reporter = silent, resume: bool = False, **changes: Any
) -> TrainResult:
    """A run with ``CONFIG``, or with some of it changed."""
    config = dataclasses.replace(CONFIG, **changes)
    validate = data.validate if config.validate_every else None
    cpu = torch.device("cpu")
    whole = Run(data.task, _streams(data, config), out, out.parent / "cache", cpu, None, resume, validate)
    return train(config, whole, report)


def _streams(data: TinySet, config: TrainConfig) -> dict[str, Stream]:
    """Of a method that adapts: from the set to itself, whose labels are then not looked at."""
    if config.method == Method.DISTILL:
        return {MAIN: Stream(data.examples(), data.domain, read_fused)}
    if config.method == Method.SOURCE:
        return {MAIN: Stream(data.source_examples(), data.domain, read_truth)}
    method, roots = METHODS[config.method], (data.root,)
    streams, _ = method.streams(Material(data.task, Workspace(data.root), roots, roots))
    return method.narrowed(streams, config)


def after(step: int, act: Any) -> Reporter:
    """A reporter that acts once ``step`` steps are done. Every tenth is reported, and the beginning; 0 is never."""

    def report(event: Tick | Note) -> None:
        if isinstance(event, Tick) and event.task == "training" and event.done == step > 0:
            act()

    return report


def halfway(task: str, act: Any) -> Reporter:
    """A reporter that acts once half of a task so called is done."""

    def report(event: Tick | Note) -> None:
        if isinstance(event, Tick) and event.task == task and event.total and 2 * event.done >= event.total:
            act()

    return report


def in_the_midst(seconds: float, act: Any) -> Reporter:
    """A reporter that acts so long after training has begun, whatever is done then."""
    timer = threading.Timer(seconds, act)
    timer.daemon = True

    def report(event: Tick | Note) -> None:
        if isinstance(event, Tick) and event.task == "training" and timer.ident is None:
            timer.start()

    return report


def program(*arguments: object, launcher: Iterable[str] = ()) -> subprocess.CompletedProcess[str]:
    """This program in a process of its own, with as many threads as this one: sums depend on their number."""
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *launcher, "-m", "tests.support.training_runs", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=150, check=False
    )


def main(data: str, out: str, workers: str, kill_at: str = "0", options: str = "{}") -> None:
    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if kill_at.isdecimal():
        report = after(int(kill_at), kill)
    else:
        report = halfway(kill_at, kill) if kill_at[0].isalpha() else in_the_midst(float(kill_at), kill)
    with process_group(torch.device("cpu")):
        given = {"workers": int(workers), "batch_size": 2 * world_size(), **json.loads(options)}
        run(TinySet(Path(data)), Path(out), report, **given)


if __name__ == "__main__":
    main(*sys.argv[1:])
