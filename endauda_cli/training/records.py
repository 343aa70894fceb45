"""What a run leaves behind: ``config.toml``, ``metrics.jsonl``, TensorBoard events, ``report.html``, checkpoints."""

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
from endauda_cli.files import RECORD_BYTES, read_bytes, toml_line
from endauda_cli.progress import Note, Reporter
from endauda_cli.training.pictures import FixedCrops
from endauda_cli.training.profiling import Profile
from endauda_cli.training.report import write_run_report
from endauda_cli.workspace import LAST_FILE, METRICS_FILE, RECIPE_FILE, write_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from endauda_cli.config import TrainConfig
    from endauda_cli.training.data import Rows
    from endauda_cli.training.pictures import Seen
    from endauda_cli.training.run import Run, TrainState


STEP_FILE = "earlier/step-{}.pt"
"""A checkpoint of a step, as ``last.pt`` was then."""


class Records:
    """What a run leaves behind beside its checkpoints, while it lasts: the loop tells, and this writes.

    Ranks but the first write nothing. Only figures are worth ending a run for: a page that cannot be written is told,
    once.

    Args:
        config: the recipe.
        run: where it goes.
        state: where it stands, now and whenever this is told of something.
        rows: images and labels of its main stream.
        report: told of what is written, or cannot be.
    """

    def __init__(
        self, config: TrainConfig, run: Run, state: TrainState, rows: Rows, report: Reporter
    ) -> None:
        self.config, self.run, self.state, self.report = config, run, state, report
        self.writes = rank() == 0
        if not self.writes:
            return
        self.metrics = Metrics(run.out, state.step)
        left = config.steps - state.step
        if run.options and left:
            write_text(run.out / RECIPE_FILE, recipe_text(run.options))
        self.crops = FixedCrops(config, run, rows)
        self.profile = (
            Profile(run.out, run.profile, left, run.device, report) if run.profile and left else None
        )
        self.shown_at, self.failed = state.step, False

    def stepped(self) -> None:
        """After each step."""
        if self.writes and self.profile is not None:
            self.profile.stepped()

    def logged(self, step: int, scalars: dict[str, float]) -> None:
        """Figures of a step; NaN is written as null."""
        if self.writes:
            self.metrics.add(step, scalars)

    def validated(self, scalars: dict[str, float]) -> None:
        """Figures of the state as it is now."""
        self.logged(self.state.step - 1, scalars)
        self.show()

    def saved(self) -> None:
        """A checkpoint was written."""
        self.show()

    def show(self) -> None:
        """Write ``report.html`` and TensorBoard's pictures, once per step."""
        if not self.writes or self.shown_at == self.state.step:
            return
        self.shown_at = self.state.step
        try:
            seen = self.crops.look(self.state.result, self.state.half, self.state.preprocessing)
            self.metrics.show(self.state.step - 1, seen)
            write_run_report(self.config, self.run, self.state, self.metrics.log, seen)
        except (EndaudaError, OSError, RuntimeError) as error:  # torch's want of memory is a RuntimeError
            if not self.failed:
                self.report(Note(f"{error}; the run goes on without its page", "warning"))
            self.failed = True

    def close(self) -> None:
        """At the end, whatever it was."""
        if self.writes:
            if self.profile is not None:
                self.profile.close()
            self.metrics.close()


def recipe_text(options: Mapping[str, str | float | bool | list[str]]) -> str:
    """The options as a file that ``train --config`` takes."""
    lines = ["# endauda train --config THIS-FILE --name OTHER trains by this recipe again.", "[train]"]
    for key, value in options.items():
        line = toml_line(key, value)
        # A path may hold bytes that are no text.
        lines.append(line if line.isprintable() else f"# {key} cannot be written here")
    return "\n".join(lines) + "\n"


class Metrics:
    """``metrics.jsonl`` and TensorBoard events of a run; entries of steps that will be redone are dropped."""

    def __init__(self, out: Path, first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path, before = out / METRICS_FILE, lines_before(out / METRICS_FILE, first)
        self.log: dict[str, list[tuple[float, float]]] = {}
        """What was logged, by key: (step, value), without what is no number."""
        for line in before:
            self._keep(json.loads(line))
        write_text(path, "".join(f"{line}\n" for line in before))
        self.file = path.open("a", encoding="utf-8")
        self.board = SummaryWriter(str(out / "tensorboard"), purge_step=first or None)
        self.pictured: set[str] = set()

    def add(self, step: int, scalars: dict[str, float]) -> None:
        """Scalars of a step; NaN is written as null."""
        plain = {key: None if math.isnan(value) else value for key, value in scalars.items()}
        self.file.write(json.dumps({"step": step, **plain}) + "\n")
        self.file.flush()
        self._keep({"step": step, **plain})
        for key, value in scalars.items():
            self.board.add_scalar(key, value, step)

    def show(self, step: int, seen: Sequence[Seen]) -> None:
        """Pictures for TensorBoard. Image and labels stay what they are, so they are written once."""
        for one in seen:
            if one.id not in self.pictured:
                self.board.add_image(f"{one.id}/1 image", one.image, step, dataformats="HWC")
                self.board.add_image(f"{one.id}/2 labels", one.labels, step, dataformats="HWC")
                self.pictured.add(one.id)
            self.board.add_image(f"{one.id}/3 student", one.prediction, step, dataformats="HWC")

    def close(self) -> None:
        """At the end."""
        self.file.close()
        self.board.close()

    def _keep(self, entry: dict[str, Any]) -> None:
        for key, value in entry.items():
            if key != "step" and type(value) in (int, float) and math.isfinite(value):
                self.log.setdefault(key, []).append((entry["step"], value))


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


def checkpoint_bytes(state: TrainState) -> int:
    """What ``save_last`` writes from the first step on: also what optimisers that have not stepped will keep."""
    held: list[Tensor] = []
    _collect(_content(state), held)
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}
    to_come = 0
    for optimizer in (state.optimizer, *state.method.optimizers()):
        for group in optimizer.param_groups if not optimizer.state else ():
            moments = int(group["momentum"] > 0) if "momentum" in group else 2  # of SGD, of Adam
            to_come += moments * sum(p.numel() * p.element_size() for p in group["params"])
    return sum(storages.values()) + to_come


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
