"""Some steps of a tiny student of another family, alone or as one of several ranks, and alone in parts of its batches.

usage: family_steps.py OUT NAME          (with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT: one of several)
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from endauda_cli.distributed import process_group, rank, world_size
from endauda_cli.training.loop import _distribute, optimise
from endauda_cli.training.methods import MAIN
from endauda_cli.training.run import make_state
from tests.support.training_runs import CONFIG
from tests.training.test_students import student_of

if TYPE_CHECKING:
    from endauda_cli.models import Student

CPU = torch.device("cpu")
IMAGES, SIDE, CLASSES, STEPS = 4, 64, 3, 4
PLAIN: dict[str, Any] = {"hard_percentile": 0, "class_balance": False}
"""Without what looks at a whole batch: parts of it have its gradient."""
_DROPPING = ("p", "drop_prob", "dropout", "attention_dropout", "activation_dropout", "layerdrop")


def still(student: Student) -> Student:
    """The student without what depends on the batch or on chance."""
    for module in student.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
        for name in _DROPPING:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return student


def learnt(
    student: Student, side: int, accumulate: int = 1, loss: dict[str, Any] | None = None
) -> tuple[dict[str, Any], bool | None]:
    """Its weights after the steps, and whether ranks searched for parameters without a gradient."""
    config = dataclasses.replace(
        CONFIG, batch_size=IMAGES, steps=100, size=(side, side), crop=(side, side), learning_rate=1e-3, ramp=0,
        accumulate=accumulate, balance_area=200, **(loss or {}),
    )  # fmt: skip
    torch.manual_seed(0)
    state = make_state(copy.deepcopy(student), config, CLASSES, CPU)
    model = _distribute(state, config, CPU)
    still(state.student)
    mine = slice(rank() * IMAGES // world_size(), (rank() + 1) * IMAGES // world_size())
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(IMAGES, 3, side, side, generator=generator)
        labels = torch.randint(0, CLASSES, (IMAGES, side, side), generator=generator).to(torch.uint8)
        optimise(state, model, {MAIN: (x[mine], labels[mine])}, config)
    return dict(state.student.state_dict()), getattr(model, "find_unused_parameters", None)


def main(out: str, name: str) -> None:
    with process_group(CPU):
        torch.manual_seed(0)
        student, side = student_of(name), 32 if name == "eomt" else SIDE
        whole, searches = learnt(student, side)
        made = {"whole": whole, "searches": searches, "before": dict(student.state_dict())}
        if world_size() == 1:
            made |= {"plain": learnt(student, side, 1, PLAIN)[0], "parts": learnt(student, side, 2, PLAIN)[0]}
        if rank() == 0:
            torch.save(made, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
