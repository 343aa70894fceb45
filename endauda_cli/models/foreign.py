"""Networks of other libraries and projects as students: their own keys, their own way of enlarging logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from endauda_cli.models.deeplab import Student

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Foreign(Student):
    """Images (B, 3, H, W) to logits (B, C, h, w); of the images' size while it is trained.

    Its state dict is the network's, without a word before the keys: other programs read it.

    Args:
        reader: images to logits; ``reader.model`` is the network whose weights are kept.
        encoder_parts: modules of the network that learn at the base rate; empty is all of it.
        align_corners: convention by which its family enlarges logits.
        varies: what the logits depend on may be another at each step.
    """

    def __init__(
        self, reader: nn.Module, encoder_parts: Sequence[str], align_corners: bool, varies: bool = False
    ) -> None:
        nn.Module.__init__(self)
        self.reader = reader
        self.encoder_parts = tuple(encoder_parts)
        self.align_corners = align_corners
        self.varies = varies

    @property
    def network(self) -> nn.Module:
        return self.reader.get_submodule("model")

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.reader(images)
        if self.training and logits.shape[-2:] != images.shape[-2:]:
            size = (images.shape[2], images.shape[3])
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=self.align_corners)
        return logits

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The network's own."""
        return self.network.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Into the network."""
        return self.network.load_state_dict(state_dict, *args, **kwargs)


class Logits(nn.Module):
    """A transformers model as images to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values=images).logits
        return logits


class Mask(nn.Module):
    """A segmentation-models-pytorch model without the image label that some give beside the mask."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        output = self.model(images)
        mask: Tensor = output if isinstance(output, Tensor) else output[0]
        return mask


class HeadSum(nn.Module):
    """A network of one or several heads as the weighted sum of their logits."""

    def __init__(self, model: nn.Module, weights: Sequence[float] = (1.0,)) -> None:
        super().__init__()
        self.model = model
        self.weights = tuple(weights)
        self.remembers = False
        """Whether the heads' own logits of the last call are kept."""
        self.said: tuple[Tensor, ...] = ()

    def forward(self, images: Tensor) -> Tensor:
        output = self.model(images)
        heads = [output] if isinstance(output, Tensor) else list(output)
        self.said = tuple(heads) if self.remembers else ()
        summed: Tensor | None = None
        for weight, head in zip(self.weights, heads, strict=True):
            if weight:
                part = head if weight == 1 else weight * head
                summed = part if summed is None else summed + part
        assert summed is not None
        return summed
