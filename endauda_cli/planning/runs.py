"""What ``train`` would do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from endauda_cli.plan_results import Expected, PlannedWork
from endauda_cli.planning import NOTHING, expected
from endauda_cli.training import data, resume
from endauda_cli.training.contents import survey
from endauda_cli.training.records import STEP_FILE, checkpoint_bytes
from endauda_cli.workspace import LAST_FILE

if TYPE_CHECKING:
    from pathlib import Path

    from endauda_cli.config import TrainConfig
    from endauda_cli.plan_results import Plan
    from endauda_cli.progress import Reporter
    from endauda_cli.training.run import Run, TrainState


def plan_train(config: TrainConfig, run: Run, root: Path, what: str, report: Reporter) -> Plan:
    """Of a run; see ``training.loop.train``.

    Raises:
        EndaudaError: as that one, before the first step.
    """
    resume.check(config, run)
    contents = {name: survey(stream, config.workers, report) for name, stream in run.streams.items()}
    state = resume.start(config, run, resume.data_record(run, contents), report, write=False)
    left = max(0, config.steps - state.step)
    if state.step >= config.steps:
        why = "the run has all its steps"
    elif state.step:
        why = f"the run goes on from its checkpoint at step {state.step:,}"
    else:
        why = "no checkpoint yet"
    work = PlannedWork(f"run {run.out.name}", "steps", config.steps - left, left, 0, why)
    uncached = sum(
        data.uncached_bytes(config, stream, contents[name], run.cache, state.preprocessing)
        for name, stream in run.streams.items()
    )
    disk = _disk(config, run, state, uncached) if left else NOTHING
    device = run.device.type
    return expected(root, "train", run.out, device, [work], disk, [(what, left * config.batch_size)])


def _disk(config: TrainConfig, run: Run, state: TrainState, uncached: int) -> Expected:
    """Decoded images that are not cached yet, checkpoints where there are none, and what the method keeps beside."""
    last = run.out / LAST_FILE
    weights = sum(t.numel() * t.element_size() for t in state.result.state_dict().values())
    before = max(int(last.exists()), len(list(run.out.glob(STEP_FILE.format("*")))))
    saves = -(-(config.steps - state.step) // (config.save_every or config.steps))
    checkpoints = checkpoint_bytes(state) * max(0, min(max(1, config.keep), before + saves) - before)
    checkpoints += weights if config.validate_every and state.best_step is None else 0
    images = {name: len(stream.examples) for name, stream in run.streams.items()}
    beside = state.method.file_bytes(images, run.out, state.step)
    told = [
        f"{uncached / 1e6:.3g} MB of decoded images that are not cached yet",
        f"{checkpoints / 1e6:.3g} MB of checkpoints",
    ]
    if beside:
        told.append(f"{beside / 1e6:.3g} MB of pseudo labels")
    return Expected(uncached + checkpoints + beside, ", ".join(told))
