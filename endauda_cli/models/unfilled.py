"""Networks whose weights come from a file: no time for random ones that are overwritten.

``torch.device("meta")`` would do the same, but drawing on it imports torch._dynamo, 2 CPU seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_DRAWING = (init.kaiming_uniform_, init.normal_, init.uniform_, Tensor.normal_, Tensor.uniform_)


class Unfilled(TorchFunctionMode):
    """While open, tensors that would be filled with random numbers keep what is in their memory."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if func in _DRAWING:
            return args[0] if args else given["tensor"]
        return func(*args, **given)
