"""The optimiser of a run: torch's SGD, which here does not load the compiler.

Adding a group of parameters to any optimiser of torch's, and each of its steps, import torch._dynamo to tell it to keep
out: 2 CPU seconds, nearly as long as torch itself takes, for a compiler that no step of ours uses (``--compile``
compiles the network alone, which loads it then).
"""

from __future__ import annotations

from inspect import unwrap

import torch


class SGD(torch.optim.SGD):
    """``torch.optim.SGD``, its methods as they are below what marks them for the compiler."""

    add_param_group = unwrap(torch.optim.SGD.add_param_group)
    load_state_dict = unwrap(torch.optim.SGD.load_state_dict)
    state_dict = unwrap(torch.optim.SGD.state_dict)
    zero_grad = unwrap(torch.optim.SGD.zero_grad)
    step = torch.no_grad()(unwrap(torch.optim.SGD.step))
