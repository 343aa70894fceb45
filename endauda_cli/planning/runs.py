"""What ``train`` would do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from endauda_cli.plan_results import Expected, PlannedWork
from endauda_cli.planning import NOTHING, expected
from endauda_cli.training import data, resume
from endauda_cli.training.contents import survey
from endauda_cli.training.records import STEP_FILE
from endauda_cli.workspace import LAST_FILE

if TYPE_CHECKING:
    from pathlib import Path

    from endauda_cli.config import TrainConfig
    from endauda_cli.plan_results import Plan
    from endauda_cli.progress import Reporter
    from endauda_cli.training.run import Run, TrainState

MOMENTS = {"sgd": 1, "adamw": 2}
"""Numbers that an optimiser keeps per weight."""


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
    """Decoded images that are not cached yet, and checkpoints where there are none."""
    last = run.out / LAST_FILE
    weights = sum(t.numel() * t.element_size() for t in state.result.state_dict().values())
    each = weights * (1 + MOMENTS.get(config.optimizer, 2) + (state.average is not None))
    before = max(int(last.exists()), len(list(run.out.glob(STEP_FILE.format("*")))))
    saves = -(-(config.steps - state.step) // (config.save_every or config.steps))
    checkpoints = each * max(0, min(max(1, config.keep), before + saves) - before)
    checkpoints += weights if config.validate_every and state.best_step is None else 0
    return Expected(
        uncached + checkpoints,
        f"{uncached / 1e6:.3g} MB of decoded images that are not cached yet, {checkpoints / 1e6:.3g} MB of checkpoints",
    )
