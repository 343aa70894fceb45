"""Less memory for more time: activations within a backbone's blocks are computed again in the backward pass.

Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016 (arXiv 1604.06174).
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from endauda_cli.models.grouping import blocks_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from endauda_cli.models.deeplab import Student
    from endauda_cli.models.layers import FeatureExtractor


def recompute_encoder(student: Student) -> int:
    """Change the student so that it keeps what goes into its encoder's blocks alone; returns how many there are.

    What is learnt stays the same, bit for bit.
    """
    if student.network is student:
        return recompute_blocks(student.backbone)
    blocks = blocks_of(student.network, student.encoder_parts)
    for block in blocks:
        _recompute(block)
    return len(blocks)


def recompute_blocks(backbone: FeatureExtractor) -> int:
    """The same of a backbone of ours. A block is an element of a sequence that has several layers."""
    blocks = {  # each once: a sequence may be a part of another
        block
        for sequence in backbone.modules()
        if isinstance(sequence, nn.Sequential)
        for block in sequence
        if not isinstance(block, nn.Sequential) and next(block.children(), None) is not None
    }
    for block in blocks:
        _recompute(block)
    return len(blocks)


def _recompute(block: nn.Module) -> None:
    forward = block.forward

    def again(x: Tensor, *more: Any, **named: Any) -> Any:
        if not (block.training and x.requires_grad):
            return forward(x, *more, **named)
        return checkpoint(
            forward,
            x,
            *more,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), _statistics_kept(block)),
            **named,
        )

    block.forward = again


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """While open, batch norms see their batch but do not count it: it is the second time."""
    norms = [module for module in block.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    before = [
        (norm, norm.momentum, None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone())
        for norm in norms
    ]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, counted in before:
            norm.momentum = momentum
            if counted is not None and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(counted)
