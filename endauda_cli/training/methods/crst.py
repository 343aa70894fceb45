"""CRST (Zou et al., 2019, arXiv 1908.09822): CBST whose confidence is held back, in the network or in its labels.

What each constant is and where it is from: docs/methods.md. Legend of shapes: B batch, C class, H, W.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from endauda_cli.domains import IGNORE
from endauda_cli.training.methods.arrays import Array, float_array, like, tensor
from endauda_cli.training.methods.cbst import Cbst
from endauda_cli.training.methods.method import MAIN, Batch, Forward, Material
from endauda_cli.training.rounds import Rules
from endauda_cli.types import Regulariser

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from endauda_cli.losses import Ranks
    from endauda_cli.training.data import Stream
    from endauda_cli.training.rounds import Maps


class Crst(Cbst):
    """CBST with a regulariser of the network's confidence in the target, or of its labels'."""

    network = "crst"
    defaults: ClassVar[Mapping[str, Any]] = Cbst.defaults

    @staticmethod
    def streams(material: Material) -> tuple[dict[str, Stream], str]:
        """The labelled source and the unlabelled target."""
        return Cbst.streams(material)[0], "crst"

    def rules(self, thresholds: Callable[[Maps], NDArray[np.float32]]) -> Rules:
        """With lrent, soft labels; of the hard ones those where these are."""
        if self.config.regulariser != Regulariser.LRENT:
            return super().rules(thresholds)
        soft = partial(lrent_soft_labels, weight=self._weight)
        return Rules(thresholds, lambda said, least: hardened(soft(said, least)), soft)

    def loss(self, forward: Forward, batch: Batch, step: int) -> Tensor:
        """Cross entropy with labels and pseudo labels, and the regulariser where the latter are."""
        x, labels, target = batch[MAIN]
        logits, ranks = forward(x), self.criterion.ranks
        if self.config.regulariser == Regulariser.LRENT:
            soft = softened(target, labels)
            return lrent_loss(
                logits, soft, 0.0, ranks=ranks
            )  # the labels' own entropy is no news to the network
        weights = self._weight * (target.flatten(1).amax(1) > 0)
        return regularised_loss(logits, labels, weights, self.config.regulariser, ranks=ranks)

    @property
    def _weight(self) -> float:
        lrent = self.config.regulariser == Regulariser.LRENT
        weight = self.config.regulariser_weight
        if weight is None:
            weight = 0.25 if lrent else 0.1
        return weight * weight if self.config.as_published and not lrent else weight


# ---------------------------------------------------------------------------- regularisers of the network


def _kld(log_p: Tensor) -> Tensor:
    """Cross entropy of the uniform distribution; its divergence is that less ln C, which no gradient sees."""
    return -log_p.mean(1)


def _negative_entropy(log_p: Tensor) -> Tensor:
    return (log_p.exp() * log_p).sum(1)


def _square(log_p: Tensor) -> Tensor:
    return (2 * log_p).exp().sum(1)


MODEL_REGULARISERS: dict[str, Callable[[Tensor], Tensor]] = {
    Regulariser.MRKLD: _kld,
    Regulariser.MRENT: _negative_entropy,
    Regulariser.MRL2: _square,
}
"""Log probabilities (B, C, H, W) to what is added to each pixel's loss, (B, H, W)."""


def mrkld_loss(
    logits: Tensor, labels: Array, weight: float | Tensor, *, ranks: Ranks | None = None
) -> Tensor:
    """Cross entropy, and the divergence of the network's word from the uniform one: see :func:`regularised_loss`."""
    return regularised_loss(logits, labels, weight, "mrkld", ranks=ranks)


def regularised_loss(
    logits: Tensor, labels: Array, weight: float | Tensor, regulariser: str, *, ranks: Ranks | None = None
) -> Tensor:
    """Cross entropy with pseudo labels, and a regulariser of the network's confidence where there is a label.

    Args:
        logits: (B, C, h, w), resized to the labels' size if they differ (bilinear, align_corners).
        labels: (B, H, W) integer train ids, 255 = none.
        weight: of the regulariser; or of each image's, (B,): those of weight 0 are not regularised.
        regulariser: key of ``MODEL_REGULARISERS``.
        ranks: those that share the batch; see ``losses.DistillationLoss.forward``.

    Returns:
        A scalar: the mean cross entropy of the labelled pixels, plus the weighted mean of the regulariser over those of
        the regularised images. 0 without a labelled pixel.
    """
    truth = tensor(labels).to(logits.device).long()
    log_p = _log_probabilities(logits, (truth.shape[-2], truth.shape[-1]))
    entropy = F.nll_loss(log_p, truth, ignore_index=IGNORE, reduction="none")
    weights = torch.as_tensor(weight, dtype=log_p.dtype, device=log_p.device).expand(len(truth))
    known = truth != IGNORE
    counted = known & (weights != 0)[:, None, None]
    added = MODEL_REGULARISERS[regulariser](log_p) * weights[:, None, None] * counted
    return entropy.sum() / _count(known, ranks) + added.sum() / _count(counted, ranks)


# ---------------------------------------------------------------------------- regularised labels


def lrent_loss(logits: Tensor, labels: Array, weight: float, *, ranks: Ranks | None = None) -> Tensor:
    """Cross entropy with soft pseudo labels, and the negative entropy of these.

    The second part is a constant to the network: it makes the value the paper's objective, which labels and weights
    lower in turn. With hard labels it is 0.

    Args:
        logits: (B, C, h, w), resized to the labels' size if they differ (bilinear, align_corners).
        labels: (B, C, H, W) of :func:`lrent_soft_labels`, all 0 where there is none; or (B, H, W) integer train ids,
            255 = none.
        weight: of the labels' negative entropy.
        ranks: those that share the batch.

    Returns:
        A scalar: the mean over the labelled pixels, 0 without one.
    """
    soft = tensor(labels).to(logits.device)
    if soft.ndim == 3:
        soft = one_hot(soft, logits.shape[1])
    soft = soft.to(torch.promote_types(logits.dtype, torch.float32))
    log_p = _log_probabilities(logits, (soft.shape[-2], soft.shape[-1]))
    pixels = (weight * torch.xlogy(soft, soft) - soft * log_p).sum(1)
    return pixels.sum() / _count(soft.sum(1) != 0, ranks)


def hardened(soft: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(C, H, W) soft labels as (H, W) train ids, 255 where there is none."""
    return np.where(soft.any(0), soft.argmax(0), IGNORE).astype(np.uint8)


def softened(soft: Tensor, labels: Tensor) -> Tensor:
    """(B, C, H, W) soft labels in 255ths, and (B, H, W) train ids where these are 0, as float32 labels."""
    total = soft.sum(1, keepdim=True, dtype=torch.float32)
    return torch.where(total > 0, soft / total.clamp(min=1), one_hot(labels, soft.shape[1]).float())


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """(B, H, W) train ids as (B, C, H, W) bool, nothing where they are 255."""
    classes = torch.arange(num_classes, device=labels.device)[:, None, None]
    return labels[:, None] == classes


def lrent_soft_labels(probabilities: Array, thresholds: Array, weight: float) -> Any:
    """The labels that LRENT's objective is least for, in closed form: a softmax of weighed certainty.

    ``(p / threshold) ** (1 / weight)``, scaled to a sum of 1; nothing where that sum is 1 or less before, for there no
    label is better than this one.

    Args:
        probabilities: (C, H, W), 0..1.
        thresholds: (C,), above 0, of ``cbst.class_thresholds``.
        weight: of the labels' negative entropy, above 0: at 0 they would be ``cbst.pseudo_labels``.

    Returns:
        (C, H, W) float32, of a sum of 1 or all 0. A tensor for a tensor.
    """
    if not weight > 0:
        raise ValueError(f"weight {weight}: must be above 0")
    values, least = float_array(probabilities), float_array(thresholds)
    if values.ndim != 3 or least.shape != values.shape[:1]:
        raise ValueError(f"probabilities {values.shape} and thresholds {least.shape}: (C, H, W) and (C,)")
    with np.errstate(divide="ignore"):  # the logarithm of 0 is the lowest there is, as it should be
        power = np.log(values.astype(np.float64) / least[:, None, None]) / weight
    highest = power.max(0)
    shifted = np.exp(power - np.where(np.isfinite(highest), highest, 0))  # a small weight makes large powers
    total = shifted.sum(0)
    with np.errstate(divide="ignore"):
        chosen = highest + np.log(total) > 0
    soft = np.where(chosen, shifted / np.where(total > 0, total, 1), 0).astype(np.float32)
    return like(torch.from_numpy(soft), probabilities)


# ---------------------------------------------------------------------------- both


def _log_probabilities(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W), in float32 at least."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if logits.shape[-2:] != size:
        logits = F.interpolate(logits, size, mode="bilinear", align_corners=True)
    return logits.log_softmax(1)


def _count(pixels: Tensor, ranks: Ranks | None) -> Tensor:
    """How many there are, 1 at least; of several ranks' pixels the mean, as their losses are averaged."""
    count = pixels.sum()
    if ranks is None:
        return count.clamp(min=1)
    return ranks.sum(count).clamp(min=1) / ranks.size
