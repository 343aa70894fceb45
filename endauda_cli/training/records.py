"""What a run leaves behind: ``metrics.jsonl``, TensorBoard events, checkpoints."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from endauda_cli import checkpoint
from endauda_cli.distributed import rank
from endauda_cli.domains import IGNORE
from endauda_cli.errors import EndaudaError, WorkspaceError
from endauda_cli.files import RECORD_BYTES, read_bytes
from endauda_cli.workspace import METRICS_FILE, write_text

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from endauda_cli.config import TrainConfig
    from endauda_cli.training.run import TrainState


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


def scalars(state: TrainState, loss: float, rate: float, labels: Tensor, speed: float) -> dict[str, float]:
    """What is logged of a step: its loss and rate, share of labelled pixels, images per second, mining."""
    told = {
        "loss": loss,
        "lr": rate,
        "labelled": float((labels != IGNORE).float().mean()),
        "images_per_second": speed,
    }
    if state.loss.mining is not None:
        told["mining_threshold"] = float(state.loss.mining.threshold)
        told["kept"] = float(state.loss.mining.kept) / labels.numel()
    return told


def refuse_divergence(loss: float, step: int, config: TrainConfig) -> None:
    """End a run whose loss is no number any more.

    Raises:
        EndaudaError: says at which step.
    """
    if not math.isfinite(loss):
        raise EndaudaError(
            f"the loss became {loss} at step {step}; checkpoints of earlier steps are kept; lower --lr "
            f"(now {config.learning_rate:g}) or check the labels"
        )


def save_last(path: Path, state: TrainState, meta: dict[str, Any]) -> None:
    """Write all that it takes to go on; by the first rank."""
    if rank() == 0:
        extra = state.method.state_dict()
        content = {
            "weights": state.student.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "loss": state.loss.state_dict(),
            "meta": meta,
        }
        checkpoint.save(path, content | ({"method": extra} if extra else {}))


def save_best(path: Path, state: TrainState, meta: dict[str, Any]) -> None:
    """Write the weights alone; by the first rank."""
    if rank() == 0:
        checkpoint.save(path, {"weights": state.student.state_dict(), "meta": meta})
