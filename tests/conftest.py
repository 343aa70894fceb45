"""Small things that several test modules need."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import hypothesis
import pytest
import torch

from endauda_cli import checkpoint
from endauda_cli.models import build_student
from endauda_cli.types import Arch, Backbone
from tests.support.training_runs import CLASSES, SIZE, TinySet, make_set

if TYPE_CHECKING:
    from pathlib import Path

# The same examples each time: a test that fails is one that the last change broke. To look for new ones, now and then:
# pytest --hypothesis-profile=search
# Machines are shared: how long an example takes says nothing of the program.
ANY_SPEED = hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("same", ANY_SPEED, derandomize=True)
hypothesis.settings.register_profile("search", ANY_SPEED, derandomize=False)
hypothesis.settings.load_profile("same")

# Small tensors gain nothing from threads, and where cores are shared their waiting costs ten times the work.
torch.set_num_threads(1)


@pytest.fixture
def tiny_set(tmp_path: Path) -> TinySet:
    """A data set of six images of this test's own."""
    return make_set(tmp_path / "set")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of ``tiny_set``'s classes with random weights, as a run leaves it."""
    path = tmp_path_factory.mktemp("student") / "last.pt"
    torch.manual_seed(0)
    student = build_student(Arch.DEEPLABV3PLUS, Backbone.TINY, len(CLASSES))
    meta = {"arch": "deeplabv3plus", "backbone": "tiny", "classes": list(CLASSES), "size": list(SIZE)}
    checkpoint.save(path, {"weights": student.state_dict(), "meta": meta})
    return path


def pytest_configure() -> None:
    """A job in the background ignores Ctrl-C or a hang-up, and its children would with it: these are told to stop."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: lambda _number, _frame: None}
    for number, handler in handlers.items():
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)  # a child gets the default instead
