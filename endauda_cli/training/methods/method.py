"""What a training method may say; what it does not say is as in EnD-UDA's distillation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from endauda_cli.datasets import find_samples
from endauda_cli.labels import read_truth
from endauda_cli.losses import soft_divergence, soft_targets
from endauda_cli.training.data import MAIN, TARGET, Example, Stream
from endauda_cli.transforms import STUDENT, Preprocessing
from endauda_cli.types import Loss

if TYPE_CHECKING:
    from pathlib import Path

    from torch.optim import Optimizer

    from endauda_cli.config import TrainConfig
    from endauda_cli.domains import Domain, Task
    from endauda_cli.losses import DistillationLoss
    from endauda_cli.models import Student
    from endauda_cli.progress import Reporter
    from endauda_cli.training.data import Rows
    from endauda_cli.workspace import Workspace

__all__ = ["MAIN", "TARGET", "Batch", "Forward", "Material", "Method"]

Batch = Mapping[str, tuple[Tensor, ...]]
"""Per stream the network's input, (B, 3, h, w) float32 on the device, and labels, (B, h, w) uint8, there too; where the
loss asks for them, then certainties, see ``data.Rows``."""
Forward = Callable[[Tensor], Tensor]
"""The student under autocast, over all devices: input to logits (B, C, h', w')."""


@dataclass(frozen=True)
class Material:
    """What the user has.

    Attributes:
        task: source and target.
        workspace: where label sets lie.
        source_roots, target_roots: folders of images and truth.
        labels: label set or folder that was asked for, if one was.
        further: more labelled sources among the task's classes, each with its folders.
    """

    task: Task
    workspace: Workspace
    source_roots: tuple[Path, ...]
    target_roots: tuple[Path, ...]
    labels: str | None = None
    further: tuple[tuple[Domain, tuple[Path, ...]], ...] = ()


class Method:
    """A training method; one is made for each run.

    Args:
        config: the recipe.
        criterion: the recipe's loss, on the device.
        student: on the device; as it is before the first step or as a checkpoint has it.
    """

    defaults: ClassVar[Mapping[str, Any]] = {}
    """Fields of ``TrainConfig`` that are something else with this method, unless the user says otherwise."""
    network: ClassVar[str | None] = None
    """Its project's network, as ``--network`` names it: trained unless the user says otherwise."""
    flip: ClassVar[bool] = False
    """Whether its project's tests average each image with its mirror image."""
    preprocessing: Preprocessing = STUDENT
    """What made crops the network's input."""

    def __init__(self, config: TrainConfig, criterion: DistillationLoss, student: Student) -> None:
        self.config, self.criterion = config, criterion

    @staticmethod
    def streams(material: Material) -> tuple[dict[str, Stream], str]:
        """Images to draw from by name, one of them ``MAIN``; and a word for the run's name.

        Raises:
            EndaudaError: if something is not there.
        """
        raise NotImplementedError

    def loss(self, forward: Forward, batch: Batch, step: int) -> Tensor:
        """The loss of a batch, a scalar on the device.

        A batch has labels somewhere, or it is left out; but this rank's part of it need not have any.
        """
        x, labels, *certainties = batch[MAIN]
        logits = forward(x)
        if self.config.loss == Loss.SOFT:
            return soft_divergence(logits, soft_targets(certainties[0], labels))
        loss: Tensor = self.criterion(logits, labels, *(c.clamp(max=100) / 100 for c in certainties))
        return loss

    def until(self, step: int) -> int:
        """The step before which batches are drawn from what :meth:`begin` returned for ``step``: here, the end."""
        return self.config.steps

    def begin(
        self, student: Student, rows: Mapping[str, Rows], rounds: tuple[int, ...], folder: Path, step: int,
        report: Reporter,
    ) -> Mapping[str, Rows]:  # fmt: skip
        """What batches are drawn from, from a step on: in a method of rounds other pseudo labels in each.

        Args:
            student: as it is before that step.
            rows: of the streams.
            rounds: of the main stream, see ``data.Stream``.
            folder: of the run.
            step: at which a round begins, or within it when a run is gone on with.
            report: told of progress.
        """
        return rows

    @staticmethod
    def narrowed(streams: Mapping[str, Stream], config: TrainConfig) -> dict[str, Stream]:
        """The streams without the images that a run of this recipe never draws."""
        return dict(streams)

    def after_step(self, student: Student, step: int) -> None:
        """What follows an optimiser step, such as moving an averaged teacher."""
        return

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to keep beside student, optimizer and class weights: tensors and plain values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave."""
        return

    def optimizers(self) -> Sequence[Optimizer]:
        """Its own beside the run's, as far as they will step; their state is in ``state_dict``."""
        return ()

    def file_bytes(self, images: Mapping[str, int], folder: Path, step: int) -> int:
        """By how much what it keeps in the run's folder, beside checkpoints, will grow from a step on.

        Args:
            images: how many each stream has.
            folder: of the run.
            step: the next one.
        """
        return 0


def labelled_source(material: Material) -> Stream:
    """All labelled images of the source's train split; their files hold label ids."""
    return labelled_train(material.task.source, material.source_roots)


def labelled_train(domain: Domain, roots: tuple[Path, ...]) -> Stream:
    """The same of any domain."""
    samples = find_samples(domain, roots, "train", need_labels=True)
    examples = [Example(s.id, s.image, s.label) for s in samples if s.label is not None]
    return Stream(examples, domain, read_truth)


def unlabelled_target(material: Material) -> Stream:
    """All images of the target's train split; labels that they may have are not looked at."""
    target = material.task.target
    samples = find_samples(target, material.target_roots, "train")
    return Stream([Example(s.id, s.image, None) for s in samples], target, read_truth)


def adaptation(material: Material) -> dict[str, Stream]:
    """The labelled source, which a run counts its images by, and the unlabelled target."""
    return {MAIN: replace(labelled_source(material), of_source=True), TARGET: unlabelled_target(material)}
