"""DACS (Tranheden et al., 2021, arXiv 2007.08702): classes of source images pasted into target ones.

What each constant is and where it is from: docs/methods.md.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from endauda_cli.augmentation import augment, drawn
from endauda_cli.distributed import rank, world_size
from endauda_cli.domains import IGNORE
from endauda_cli.training.methods.arrays import Array, like, tensor
from endauda_cli.training.methods.method import (
    MAIN,
    TARGET,
    Batch,
    Forward,
    Material,
    Method,
    adaptation,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from endauda_cli.config import TrainConfig
    from endauda_cli.losses import DistillationLoss
    from endauda_cli.models import Student
    from endauda_cli.training.data import Stream


class Dacs(Method):
    """Learn the source, and target images that half of a source image's classes are pasted into.

    What the target shows is taken from an averaged teacher, which sees the unchanged image; what is pasted has its true
    label. The mixed image is then changed in colour and sharpness.
    """

    network = "dacs"
    defaults: ClassVar[Mapping[str, Any]] = {
        "steps": 250_000,
        "batch_size": 2,
        "learning_rate": 2.5e-4,
        "nesterov": False,
        "size": (1024, 512),
        "source_size": (1280, 720),
        "crop": (512, 512),
        "class_balance": False,
        "often_balance": False,
        "hard_percentile": 0.0,
    }

    def __init__(self, config: TrainConfig, criterion: DistillationLoss, student: Student) -> None:
        super().__init__(config, criterion, student)
        self.teacher = copy.deepcopy(student).requires_grad_(False)
        for module in self.teacher.modules():
            # Its norms go by what it sees, as published; its word is not to be noisy.
            module.train(not isinstance(module, nn.modules.dropout._DropoutNd))

    @staticmethod
    def streams(material: Material) -> tuple[dict[str, Stream], str]:
        """The labelled source and the unlabelled target."""
        return adaptation(material), "dacs"

    def loss(self, forward: Forward, batch: Batch, step: int) -> Tensor:
        """Cross entropy on the source, and on mixed images, weighed by how sure the teacher is."""
        (source, labels), (target, _) = batch[MAIN], batch[TARGET]
        size = (labels.shape[1], labels.shape[2])
        learnt: Tensor = self.criterion(forward(source), labels)
        with torch.no_grad():
            said = _enlarged(self.teacher(target), size).softmax(1)
            weight = self._over_ranks(pixel_weight(said, self.config.sure))
            positions = self._positions(len(source), step)
            masks = torch.stack(
                [
                    classmix_mask(truth, self._chosen(truth, position))
                    for truth, position in zip(labels, positions, strict=True)
                ]
            )
            mixed = self._changed(mix(masks, source, target), positions)
            truth = mix(masks, labels.long(), said.argmax(1))
            weights = mix(masks, torch.ones_like(said[:, 0]), weight.expand_as(said[:, 0]))
        logits = _enlarged(forward(mixed), size)
        entropy = F.cross_entropy(logits, truth, ignore_index=IGNORE, reduction="none")
        loss: Tensor = learnt + self.config.mixed_weight * (entropy * weights).mean()
        return loss

    def after_step(self, student: Student, step: int) -> None:
        """The teacher moves towards the student; its norms' statistics are its own."""
        decay = ema_decay(step, self.config.teacher_decay)
        with torch.no_grad():
            for mine, theirs in zip(self.teacher.parameters(), student.parameters(), strict=True):
                mine.lerp_(theirs, 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        return {"teacher": self.teacher.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.teacher.load_state_dict(state["teacher"])

    def _positions(self, images: int, step: int) -> range:
        """Numbers of this rank's images in the run's sequence: what is drawn by them is drawn so on any rank."""
        first = (step * world_size() + rank()) * images
        return range(first, first + images)

    def _chosen(self, labels: Tensor, position: int) -> Tensor:
        """Half of the classes that an image shows, 255 among them."""
        classes = labels.unique()  # type: ignore[no-untyped-call]
        rng = np.random.default_rng([self.config.seed, position])
        number = (len(classes) + 1) // 2
        chosen: Tensor = classes[torch.from_numpy(rng.permutation(len(classes))[:number]).to(classes.device)]
        return chosen

    def _changed(self, images: Tensor, positions: range) -> Tensor:
        """Network inputs after the strong photometric changes."""
        names = self.config.strong
        if not names:
            return images
        numbers = torch.tensor(
            [drawn(names, self.config.seed, f"mixed {position}") for position in positions]
        )
        changed = augment(self.preprocessing.pixels(images), names, numbers.to(images.device))
        again = self.preprocessing.normalise(changed.permute(0, 2, 3, 1))
        return again.contiguous(memory_format=torch.channels_last)

    def _over_ranks(self, share: Tensor) -> Tensor:
        """The mean of equal parts of a batch."""
        ranks = self.criterion.ranks
        return share if ranks is None else ranks.sum(share) / ranks.size


def _enlarged(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) float32."""
    logits = logits.float()
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits, size, mode="bilinear", align_corners=True)


# ---------------------------------------------------------------------------- kernels


def classmix_mask(labels: Array, classes: Array) -> Any:
    """Where an image shows one of the classes, which is what is taken from it.

    Args:
        labels: (H, W) or (B, H, W) integer; 255 is a class like others, if it is among ``classes``.
        classes: (n,) integer, the chosen half of the image's classes.

    Returns:
        The labels' shape, int64, 1 and 0. A tensor for a tensor.
    """
    truth = tensor(labels)
    chosen = torch.as_tensor(classes, device=truth.device).reshape(-1)
    return like(torch.isin(truth.long(), chosen.long()).long(), labels)


def mix(mask: Array, first: Array, second: Array) -> Any:
    """``first`` where the mask is 1, ``second`` where it is 0: of images, labels or weights.

    Args:
        mask: (H, W) or (B, H, W).
        first, second: of one shape that ends with (H, W); batches of images (B, C, H, W) take a mask per image.
    """
    taken, one, other = tensor(mask).bool(), tensor(first), tensor(second)
    taken, other = taken.to(one.device), other.to(one.device)
    if taken.ndim == 3 and one.ndim == 4:
        taken = taken[:, None]
    return like(torch.where(taken, one, other), first)


def pixel_weight(probabilities: Array, threshold: float) -> Any:
    """The share of pixels that the teacher is sure of, which its word is weighed by.

    Args:
        probabilities: (C, H, W), or (B, C, H, W), of which it is the share over all images.
        threshold: 0..1; what reaches it is sure.

    Returns:
        A scalar, 0..1, float32. A tensor for a tensor.
    """
    highest = tensor(probabilities).amax(-3)
    return like((highest >= threshold).float().mean(), probabilities)


def ema_decay(step: int, decay: float) -> float:
    """How much the averaged teacher keeps of itself after a step, counted from 0: the plain mean of all students
    until that moves slower than ``decay``."""
    return min(1 - 1 / (step + 1), decay)
