"""A training method is a file and a row: one with a second stream, a state of its own and other defaults."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch

from endauda_cli import checkpoint
from endauda_cli.labels import read_truth
from endauda_cli.progress import Note, Tick, silent
from endauda_cli.training.data import Example, Stream
from endauda_cli.training.loop import train
from endauda_cli.training.methods import MAIN, METHODS, Batch, Forward, Material, Method
from endauda_cli.training.run import Run
from endauda_cli.workspace import Workspace
from tests.support.training_runs import CONFIG, TinySet

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from endauda_cli.config import TrainConfig
    from endauda_cli.losses import DistillationLoss
    from endauda_cli.models import Student

CPU = torch.device("cpu")


class Averaged(Method):
    """Learns the truth, and to agree with its own average on images that have none."""

    defaults = {"hard_percentile": 0}  # noqa: RUF012

    def __init__(self, config: TrainConfig, criterion: DistillationLoss, student: Student) -> None:
        super().__init__(config, criterion, student)
        self.average = copy.deepcopy(student).eval().requires_grad_(False)

    @staticmethod
    def streams(material: Material) -> tuple[dict[str, Stream], str]:
        labelled, word = METHODS["source"].streams(material)
        unlabelled = [Example(e.id, e.image, None) for e in labelled[MAIN].examples]
        return labelled | {"target": Stream(unlabelled, material.task.target, read_truth)}, f"{word}-averaged"

    def loss(self, forward: Forward, batch: Batch, step: int) -> Tensor:
        images, nothing = batch["target"]
        assert bool((nothing == 255).all())
        return (
            super().loss(forward, batch, step) + (forward(images) - self.average(images)).abs().mean() / 100
        )

    def after_step(self, student: Student, step: int) -> None:
        mine, theirs = self.average.state_dict(), student.state_dict()
        for key in (key for key, value in mine.items() if value.is_floating_point()):
            mine[key].lerp_(theirs[key], 0.5)

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.average.load_state_dict(state["average"])


class Enough(Exception):
    """The run is stopped."""


def test_a_method_of_another_kind_runs_and_goes_on(
    tiny_set: TinySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "averaged", Averaged)
    roots = (tiny_set.root,)
    streams, word = Averaged.streams(Material(tiny_set.task, Workspace(tmp_path), roots, roots))
    assert (list(streams), word) == ([MAIN, "target"], "source-averaged")
    told = {"method": "averaged", "steps": 12, "validate_every": 0, **Averaged.defaults}
    config: TrainConfig = dataclasses.replace(CONFIG, **told)

    def go(name: str, stop: bool = False) -> dict[str, Any]:
        def report(event: Tick | Note) -> None:
            if stop and isinstance(event, Tick) and event.task == "training" and event.done == 11:
                raise Enough

        train(config, Run(tiny_set.task, streams, tmp_path / name, tmp_path / "cache", CPU), report)
        return checkpoint.load(tmp_path / name / "last.pt")

    whole = go("whole")
    with pytest.raises(Enough):
        go("stopped", stop=True)
    assert checkpoint.load(tmp_path / "stopped/last.pt")["meta"]["step"] == 8
    again = go("stopped")
    for key, weights in whole["weights"].items():
        assert torch.equal(weights, again["weights"][key])
        assert torch.equal(whole["method"]["average"][key], again["method"]["average"][key])
    assert not torch.equal(
        whole["weights"]["decoder.last_conv.8.weight"],
        whole["method"]["average"]["decoder.last_conv.8.weight"],
    )


def test_checkpoints_of_methods_without_a_state_have_no_more_than_before(
    tiny_set: TinySet, tmp_path: Path
) -> None:
    roots = (tiny_set.root,)
    streams, _ = METHODS["source"].streams(Material(tiny_set.task, Workspace(tmp_path), roots, roots))
    config = dataclasses.replace(CONFIG, method="source", steps=1, validate_every=0)
    train(config, Run(tiny_set.task, streams, tmp_path / "run", tmp_path / "cache", CPU), silent)
    assert set(checkpoint.load(tmp_path / "run/last.pt")) == {
        "format",
        "weights",
        "optimizer",
        "loss",
        "meta",
    }
