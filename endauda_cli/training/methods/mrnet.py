"""R-MRNet (Zheng and Yang, 2020, 2021; arXiv 1912.11164, 2003.03773): two heads that remember for each other.

What each constant is and where it is from: docs/methods.md. Legend of shapes: B batch, C class, H, W.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from endauda_cli.distributed import sum_over_ranks, world_size
from endauda_cli.domains import IGNORE
from endauda_cli.errors import ConfigError
from endauda_cli.models.foreign import Foreign, HeadSum
from endauda_cli.training.methods.arrays import Array, tensor
from endauda_cli.training.methods.distill import Distill
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
    from collections.abc import Mapping, Sequence

    from endauda_cli.config import TrainConfig
    from endauda_cli.losses import DistillationLoss
    from endauda_cli.models import Student
    from endauda_cli.training.data import Stream


class TwoHeaded(Method):
    """A method of a network whose heads' logits are an auxiliary one's and the main one's."""

    network = "mrnet"

    def __init__(self, config: TrainConfig, criterion: DistillationLoss, student: Student) -> None:
        super().__init__(config, criterion, student)
        reader = student.reader if isinstance(student, Foreign) else None
        if not isinstance(reader, HeadSum) or len(reader.weights) != 2:
            raise ConfigError(
                f"--method {config.method}: a network of two heads is needed; say --network mrnet, or leave --network, "
                "--backbone and --arch out"
            )
        reader.remembers, self._reader = True, reader
        for module in student.modules():
            if isinstance(module, nn.Dropout2d):
                module.p = config.head_dropout

    def heads(self, forward: Forward, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Logits of the auxiliary and of the main head, (B, C, H, W) float32."""
        forward(x)
        auxiliary, main = (
            F.interpolate(said.float(), size, mode="bilinear", align_corners=True)
            for said in self._reader.said
        )
        return auxiliary, main


class MrNet(TwoHeaded):
    """Learn the source with both heads, which are to agree on the target and to look there as on the source.

    A discriminator for each head learns to tell its target maps from what both say together of the source.
    """

    defaults: ClassVar[Mapping[str, Any]] = {
        "steps": 100_000,
        "batch_size": 2,
        "learning_rate": 2e-4,
        "warm_up": 5000,
        "size": (1024, 512),
        "source_size": (1280, 720),
        "crop": (1024, 512),
        "mirror": True,
        "scale_jitter": (0.8, 1.2),
        "crop_tries": 10,
        "balance_area": 64 * 64,
    }

    def __init__(self, config: TrainConfig, criterion: DistillationLoss, student: Student) -> None:
        super().__init__(config, criterion, student)
        device = next(student.parameters()).device
        self.judges = nn.ModuleList(discriminator(criterion.num_classes) for _ in range(2)).to(device)
        self._optimizer = torch.optim.Adam(self.judges.parameters(), lr=config.judge_rate, betas=(0.9, 0.99))
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []

    @staticmethod
    def streams(material: Material) -> tuple[dict[str, Stream], str]:
        """The labelled source and the unlabelled target, whose images are shown as they are."""
        streams = adaptation(material)
        return {**streams, TARGET: replace(streams[TARGET], still=True)}, "mrnet"

    def loss(self, forward: Forward, batch: Batch, step: int) -> Tensor:
        """Of both heads on the source; deceiving the discriminators, and memory, on the target."""
        config, (source, labels), (target, _) = self.config, batch[MAIN], batch[TARGET]
        size = (labels.shape[1], labels.shape[2])
        auxiliary, main = self.heads(forward, source, size)
        loss: Tensor = self.criterion(main, labels)
        balanced, self.criterion.class_balance = self.criterion.class_balance, False
        loss = loss + config.auxiliary_weight * self.criterion(auxiliary, labels)  # by the same class weights
        self.criterion.class_balance = balanced
        both = (AUXILIARY * auxiliary + main).detach().softmax(1)
        auxiliary, main = self.heads(forward, target, size)
        said = auxiliary.softmax(1), main.softmax(1)
        if self._deceives:
            weights = config.deceive_auxiliary, config.deceive_main
            for judge, weight, probabilities in zip(self.judges, weights, said, strict=True):
                loss = loss + weight * deceiving_loss(judge(probabilities))
            self._seen.append((both, said[0].detach(), said[1].detach()))
        if step >= config.memory_from:
            loss = loss + config.memory_weight * memory_regularisation(main, auxiliary)
        return loss

    def after_step(self, student: Student, step: int) -> None:
        """The discriminators learn from what the step has seen."""
        if not self._seen:
            return
        self._optimizer.zero_grad(set_to_none=True)
        for source, *targets in self._seen:
            for judge, target in zip(self.judges, targets, strict=True):
                (telling_loss(judge, source, target) / len(self._seen)).backward()  # type: ignore[no-untyped-call]
        self._seen.clear()
        if world_size() > 1:
            for parameter in self.judges.parameters():
                if parameter.grad is not None:
                    parameter.grad = sum_over_ranks(parameter.grad) / world_size()
        rate = self.config.judge_rate * (1 - step / self.config.steps) ** self.config.power
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {"judges": self.judges.state_dict(), "judges_optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.judges.load_state_dict(state["judges"])
        self._optimizer.load_state_dict(state["judges_optimizer"])

    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        return (self._optimizer,) if self._deceives else ()

    @property
    def _deceives(self) -> bool:
        return self.config.deceive_auxiliary > 0 or self.config.deceive_main > 0


class Rectify(TwoHeaded):
    """The second stage: learn pseudo labels of the target, less where the heads disagree.

    Batch norms' weights and biases learn too, which the first stage keeps.
    """

    defaults: ClassVar[Mapping[str, Any]] = {
        "steps": 100_000,
        "batch_size": 9,
        "learning_rate": 1e-4,
        "warm_up": 5000,
        "size": (1280, 640),
        "crop": (512, 256),
        "mirror": True,
        "scale_jitter": (0.8, 1.2),
        "crop_tries": 10,
        "hard_percentile": 0.0,
        "balance_area": 64 * 64,
        "head_dropout": 0.2,
    }

    def __init__(self, config: TrainConfig, criterion: DistillationLoss, student: Student) -> None:
        super().__init__(config, criterion, student)
        for module in student.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_()

    @staticmethod
    def streams(material: Material) -> tuple[dict[str, Stream], str]:
        """The target with a label set."""
        streams, word = Distill.streams(material)
        return streams, f"{word}-rectified"

    def loss(self, forward: Forward, batch: Batch, step: int) -> Tensor:
        """Rectified, of both heads."""
        x, labels = batch[MAIN]
        auxiliary, main = self.heads(forward, x, (labels.shape[1], labels.shape[2]))
        if self.criterion.class_balance:
            self.criterion.update_weights(labels.long())
        weight = self.criterion.class_weight
        return rectified_loss(main, auxiliary, labels, class_weight=weight) + (
            self.config.auxiliary_weight * rectified_loss(auxiliary, main, labels, class_weight=weight)
        )


# ---------------------------------------------------------------------------- kernels

AUXILIARY = 0.5
"""Weight of the auxiliary head beside the main one, in what both say together."""


def memory_regularisation(main: Tensor, auxiliary: Tensor, *, mutual: bool = False) -> Tensor:
    """How far the two heads are from each other on images without labels.

    Args:
        main, auxiliary: logits (B, C, H, W).
        mutual: both cross entropies between the heads, through which both learn; else as the project has it, both
            divergences from what they say together, softmax(0.5 auxiliary + main), which is a constant to the
            gradient.

    Returns:
        The sum of both, per pixel, on average: a scalar.
    """
    log_main, log_auxiliary = main.log_softmax(1), auxiliary.log_softmax(1)
    if mutual:
        crossed = log_main.exp() * log_auxiliary + log_auxiliary.exp() * log_main
        return -crossed.sum(1).mean()
    both = (AUXILIARY * auxiliary + main).detach().log_softmax(1)
    return (both.exp() * (2 * both - log_main - log_auxiliary)).sum(1).mean()


def rectified_loss(
    main: Tensor,
    auxiliary: Tensor,
    labels: Array,
    *,
    class_weight: Tensor | None = None,
    reverse: bool = False,
) -> Tensor:
    """Cross entropy with pseudo labels, less where the heads disagree; and their disagreement.

    exp(-D) cross entropy + D, where D is the divergence of the main head from the auxiliary one.

    Args:
        main: logits (B, C, H, W) that are taught.
        auxiliary: logits that they are compared with.
        labels: (B, H, W) integer train ids, 255 = none: there the cross entropy is 0, and D counts.
        class_weight: (C,), multiplies the cross entropy.
        reverse: D the other way round, sum main ln(main / auxiliary); else as the project computes it, sum
            auxiliary ln(auxiliary / main).

    Returns:
        The mean over all pixels, labelled or not: a scalar.
    """
    truth = tensor(labels).to(main.device).long()
    entropy = F.cross_entropy(main, truth, weight=class_weight, ignore_index=IGNORE, reduction="none")
    log_main, log_auxiliary = main.log_softmax(1), auxiliary.log_softmax(1)
    one, other = (log_main, log_auxiliary) if reverse else (log_auxiliary, log_main)
    variance = (one.exp() * (one - other)).sum(1)
    loss: Tensor = (entropy * (-variance).exp() + variance).mean()
    return loss


# ---------------------------------------------------------------------------- the discriminators

SCALES = 3
"""Sizes at which a map is judged, each half of the one before."""
WIDTH = 32
"""Channels of the first convolutions."""


class Conv(nn.Module):
    """3x3, then a leaky ReLU, or none."""

    def __init__(self, channels: int, width: int, stride: int = 1, *, leaky: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, stride, padding=1)
        self.leaky = leaky

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return F.leaky_relu(x, 0.2) if self.leaky else x


class Residual(nn.Module):
    """Two convolutions beside nothing."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(Conv(channels, channels), Conv(channels, channels, leaky=False))

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.model(x)
        return changed + x


class Discriminator(nn.Module):
    """Tells by (B, C, H, W) probabilities whether an image is of the source, patch by patch and at three sizes.

    Its keys are those of the published files.

    Args:
        num_classes: C.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.cnns = nn.ModuleList(_judge(num_classes) for _ in range(SCALES))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, probabilities: Tensor) -> list[Tensor]:
        """Of each scale (B, 1, h, w): 1 for the source, 0 for the target."""
        said = []
        for cnn in self.cnns:
            said.append(cnn(probabilities))
            probabilities = F.avg_pool2d(probabilities, 3, 2, padding=1, count_include_pad=False)
        return said


def _judge(num_classes: int) -> nn.Sequential:
    """To an eighth of the size."""
    wide = 2 * WIDTH
    return nn.Sequential(
        Conv(num_classes, WIDTH, 2),
        Conv(WIDTH, WIDTH),
        Conv(WIDTH, WIDTH, 2),
        Conv(WIDTH, WIDTH),
        Conv(WIDTH, wide, 2),
        *(Residual(wide) for _ in range(4)),
        nn.Conv2d(wide, 1, 1),
    )


def discriminator(num_classes: int) -> Discriminator:
    """A fresh one, with weights of torch's generator."""
    return Discriminator(num_classes)


def deceiving_loss(said: Sequence[Tensor]) -> Tensor:
    """How far the discriminator is from taking target images for source ones: a scalar, for the network to lower."""
    terms = [2 * (1 - patch).square().mean() for patch in said]
    loss: Tensor = sum(terms[1:], terms[0])
    return loss


PENALTY = 0.01
"""Of the discriminator's gradient on source images."""


def telling_loss(judge: nn.Module, source: Tensor, target: Tensor) -> Tensor:
    """How badly the discriminator tells the domains apart, and how steep it is: a scalar, for it to lower.

    Args:
        judge: of :func:`discriminator`.
        source, target: probabilities (B, C, H, W), detached.
    """
    source = source.detach().requires_grad_()
    real, fake = judge(source), judge(target.detach())
    loss = source.new_zeros(())
    for one, other in zip(real, fake, strict=True):
        (slope,) = torch.autograd.grad(one.sum(), source, create_graph=True)
        steep = slope.square().flatten(1).sum(1).mean()
        loss = loss + other.square().mean() + (1 - one).square().mean() + PENALTY * steep
    return loss
