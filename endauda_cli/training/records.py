"""What a run leaves behind: ``metrics.jsonl``, TensorBoard events, checkpoints."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from endauda_cli import checkpoint
from endauda_cli.distributed import rank, total_over_ranks
from endauda_cli.errors import EndaudaError, WorkspaceError
from endauda_cli.files import RECORD_BYTES, read_bytes
from endauda_cli.workspace import LAST_FILE, METRICS_FILE, write_text

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from endauda_cli.config import TrainConfig
    from endauda_cli.training.run import TrainState


STEP_FILE = "earlier/step-{}.pt"
"""A checkpoint of a step, as ``last.pt`` was then."""


class Metrics:
    """``metrics.jsonl`` and TensorBoard events of a run; entries of steps that will be redone are dropped.

    Ranks but the first write nothing.
    """

    def __init__(self, out: Path, first: int) -> None:
        self.writes = rank() == 0
        if not self.writes:
            return
        from torch.utils.tensorboard import SummaryWriter

        path = out / METRICS_FILE
        write_text(path, "".join(f"{line}\n" for line in lines_before(path, first)))
        self.file = path.open("a", encoding="utf-8")
        self.board = SummaryWriter(str(out / "tensorboard"), purge_step=first or None)

    def add(self, step: int, scalars: dict[str, float]) -> None:
        """Scalars of a step; NaN is written as null."""
        if not self.writes:
            return
        plain = {key: None if math.isnan(value) else value for key, value in scalars.items()}
        self.file.write(json.dumps({"step": step, **plain}) + "\n")
        self.file.flush()
        for key, value in scalars.items():
            self.board.add_scalar(key, value, step)

    def close(self) -> None:
        """Also where nothing was written."""
        if self.writes:
            self.file.close()
            self.board.close()


def lines_before(path: Path, first: int) -> list[str]:
    """The lines of ``metrics.jsonl`` on steps before ``first``. What is no such line, as a kill or a full disk leaves
    them, is dropped.

    Raises:
        WorkspaceError: if the file cannot be read.
    """
    try:
        text = read_bytes(path, RECORD_BYTES).decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise WorkspaceError(
            f"{path}: cannot be read ({error.strerror or error}); move it away and run again"
        ) from error
    return [line for line in text.splitlines() if _step_of(line) < first]


def _step_of(line: str) -> float:
    """The step that a line is on; infinite if it is no line of ours."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return math.inf
    step = entry.get("step") if isinstance(entry, dict) else None
    return step if type(step) is int and step >= 0 else math.inf


def scalars(state: TrainState, loss: float, rate: float, labelled: float, speed: float) -> dict[str, float]:
    """What is logged of a step: its loss and rate, share of labelled pixels, images per second, mining."""
    told = {
        "loss": loss,
        "lr": rate,
        "labelled": labelled,
        "images_per_second": speed,
    }
    if state.loss.mining is not None:
        told["mining_threshold"] = float(state.loss.mining.threshold)
        told["kept"] = float(state.loss.mining.kept) / state.loss.mining.pixels
    return told


def diverged(what: str, step: int, saved: int, out: Path, config: TrainConfig) -> EndaudaError:
    """What ends a run whose loss or weights are no numbers any more.

    Args:
        what: became no number.
        step: when that was seen.
        saved: step of the newest checkpoint; 0 if there is none.
        out: the run's folder.
        config: its recipe.
    """
    lower = f"a lower --lr (now {config.learning_rate:g}) or --clip 10, and check the labels"
    if not saved:
        return EndaudaError(
            f"{what} at step {step}, before a checkpoint was written; start again with {lower}"
        )
    last = out / LAST_FILE
    return EndaudaError(
        f"{what} at step {step}; {last} holds step {saved}, when all was well: train on from it as a new run, with "
        f"--init {last}, another --name, {lower}"
    )


def all_finite(state: TrainState) -> bool:
    """Whether everything that a checkpoint would hold is a number, on every rank. Waits for the device."""
    held: list[Tensor] = []
    _collect(_content(state), held)
    floats = [tensor for tensor in held if tensor.is_floating_point()]
    mine = bool(torch.stack([tensor.isfinite().all().cpu() for tensor in floats]).all())
    return total_over_ranks(int(not mine)) == [0]


def _collect(value: Any, found: list[Tensor]) -> None:
    if isinstance(value, torch.Tensor):
        found.append(value)
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            _collect(part, found)


def _content(state: TrainState) -> dict[str, Any]:
    """All that it takes to go on, but for what is told of it. ``weights`` are what others take as the student."""
    content = {
        "weights": state.result.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "loss": state.loss.state_dict(),
    }
    if state.average is not None:
        content["student"] = state.student.state_dict()
    extra = state.method.state_dict()
    return content | ({"method": extra} if extra else {})


def save_last(out: Path, state: TrainState, meta: dict[str, Any], keep: int) -> None:
    """Write ``last.pt``, and let the ``keep`` newest stay as ``earlier/step-N.pt``; by the first rank."""
    if rank() > 0:
        return
    last, named = out / LAST_FILE, out / STEP_FILE.format(state.step)
    checkpoint.save(last, {**_content(state), "meta": meta})
    if keep > 1:
        named.parent.mkdir(exist_ok=True)
        named.unlink(missing_ok=True)
        try:
            named.hardlink_to(last)  # takes no room
        except OSError:  # a disk without links
            shutil.copyfile(last, named)
    steps = sorted(out.glob(STEP_FILE.format("*")), key=lambda path: int(path.stem.rpartition("-")[2]))
    for old in steps[: max(0, len(steps) - keep)] if keep > 1 else steps:
        old.unlink(missing_ok=True)


def save_best(path: Path, state: TrainState, meta: dict[str, Any]) -> None:
    """Write the weights alone; by the first rank."""
    if rank() == 0:
        checkpoint.save(path, {"weights": state.result.state_dict(), "meta": meta})
