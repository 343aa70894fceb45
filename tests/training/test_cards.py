"""What only a graphics card shows: a step that waits for nothing, and its precisions."""

from __future__ import annotations

import dataclasses
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch

from endauda_cli.losses import DistillationLoss
from endauda_cli.models import build_student
from endauda_cli.training.feeding import Crops, Fed, feed
from endauda_cli.training.loop import train_step
from endauda_cli.training.methods import MAIN
from endauda_cli.training.precision import chosen_precision, set_precision
from endauda_cli.training.run import make_state
from endauda_cli.types import Precision
from tests.support.training_runs import CONFIG

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no card")

CLASSES = 19


def batches(number: int) -> Iterator[Fed]:
    generator = torch.Generator().manual_seed(0)
    for step in range(number):
        pixels = torch.randint(0, 256, (4, 64, 128, 3), generator=generator).to(torch.uint8)
        labels = torch.randint(0, CLASSES, (4, 64, 128), generator=generator).to(torch.uint8)
        yield Fed(step, {MAIN: Crops(pixels, labels, torch.zeros(4, 0))}, labels.numel())


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature:UserWarning")
def test_a_step_does_not_wait_for_the_card() -> None:
    device = torch.device("cuda")
    options: dict[str, Any] = {"augment": (), "ema": 0.99, "clip": 10.0, "steps": 100, "batch_size": 4}
    config = dataclasses.replace(CONFIG, **options)
    set_precision(chosen_precision("auto", device), device)
    state = make_state(build_student("deeplabv3plus", "tiny", CLASSES), config, CLASSES, device)
    told = []
    try:
        for step, batch, _ in feed(batches(12), device):
            torch.cuda.set_sync_debug_mode("warn" if step > 1 else "default")
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                train_step(state, state.student, batch, config)
            told += [str(warning.message) for warning in found if "synchroniz" in str(warning.message)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not told, told


def test_batches_arrive_as_they_left() -> None:
    for sent, came in zip(batches(5), feed(batches(5), torch.device("cuda")), strict=True):
        assert sent.step == came.step and sent.labelled == came.labelled
        for one, other in zip(sent.streams[MAIN][:3], came.streams[MAIN][:3], strict=True):
            assert other is not None and other.is_cuda and torch.equal(one, other.cpu())


def test_the_loss_is_that_of_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, CLASSES, 40, 80, generator=generator)
    labels = torch.randint(0, CLASSES, (2, 40, 80), generator=generator).to(torch.uint8)
    found = []
    for device in ("cpu", "cuda"):
        criterion = DistillationLoss(CLASSES, class_balance=True, often_balance=True).to(device)
        loss = criterion(logits.to(device), labels.to(device))
        assert criterion.mining is not None
        found.append((float(loss), float(criterion.mining.threshold), criterion.class_weight.tolist()))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-5)
    assert found[1][2] == found[0][2]


def test_what_auto_is() -> None:
    device = torch.device("cuda")
    modern = torch.cuda.get_device_capability() >= (8, 0)
    assert chosen_precision("auto", device) == (Precision.BF16 if modern else Precision.FP32)
