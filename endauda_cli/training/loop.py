"""Engine: a training run.

``train`` reads as a page: build or resume, then per step load, step, log, validate, save. Sample order, crops,
augmentation and dropout are pure functions of (seed, step), so a resumed run is the same run, bit for bit on the CPU,
with any number of worker threads. What is learnt, and by which loss, is the method's (``methods``).
"""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from endauda_cli import signals
from endauda_cli.distributed import rank, share_buffers, sum_over_ranks, world_size
from endauda_cli.inference import autocast
from endauda_cli.progress import Reporter, Tick, phase
from endauda_cli.results import TrainResult
from endauda_cli.training import data, resume
from endauda_cli.training.contents import survey
from endauda_cli.training.methods import MAIN
from endauda_cli.training.records import Metrics, refuse_divergence, save_best, save_last, scalars
from endauda_cli.transforms import STUDENT
from endauda_cli.types import Arch
from endauda_cli.workspace import BEST_FILE, LAST_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from endauda_cli.config import TrainConfig
    from endauda_cli.training.methods import Batch
    from endauda_cli.training.run import Run, TrainState

LOG_EVERY = 10


def train(config: TrainConfig, run: Run, report: Reporter) -> TrainResult:
    """Train a network.

    Args:
        config: the recipe.
        run: where it learns from and where it goes.
        report: told of progress.

    Raises:
        EndaudaError: if files are absent or wrong, the folder holds another run, or the loss diverges.
    """
    resume.check(config, run)
    with resume.only_writer(run.out):
        return _train(config, run, report)


def _train(config: TrainConfig, run: Run, report: Reporter) -> TrainResult:
    # build or resume
    contents = {name: survey(stream, config.workers, report) for name, stream in run.streams.items()}
    record = resume.data_record(run, contents)
    with phase(report, "building the network"):
        state = resume.start(config, run, record, report)
    rows = {
        name: data.load_rows(config, stream, contents[name], run.cache, report, (run.out, name))
        for name, stream in run.streams.items()
    }
    data.tell_histogram(rows[MAIN].labels, run.streams[MAIN].domain, report)
    with phase(report, "opening the run's records"):
        metrics = Metrics(run.out, state.step)
    model = _distribute(state, config.arch, run.device)
    first, started, loss = state.step, time.monotonic(), math.nan
    saved = first

    def due(every: int) -> bool:
        return every > 0 and (state.step == config.steps or state.step % every == 0)

    # ranks cannot agree on a step to stop at
    stopping = signals.deferred() if world_size() == 1 else nullcontext()
    with ThreadPoolExecutor(config.workers) as pool, closing(metrics), stopping:
        report(Tick("training", first, config.steps, unit="steps", kept=saved))
        for step, batch in data.batches(config, rows, first, pool):
            # single training step
            loss_now = train_step(state, model, batch, config, run.device)

            # once in a while: log
            if step % LOG_EVERY == 0 or state.step == config.steps:
                loss, rate = float(loss_now), learning_rate(config, step)
                refuse_divergence(loss, step, config)
                speed = (state.step - first) * config.batch_size / (time.monotonic() - started)
                metrics.add(step, scalars(state, loss, rate, batch[MAIN][1], speed))
                note = f"loss {loss:.3f}  lr {rate:.2g}  {speed:.1f} img/s"
                report(Tick("training", state.step, config.steps, note, "steps", kept=saved))

            # once in a while: validate, save; also where a signal asked to stop
            if due(config.validate_every):
                _validate(state, config, run, record, metrics)
            stopped = signals.asked()
            if due(config.save_every):
                refuse_divergence(float(loss_now), step, config)  # rather than overwrite a good checkpoint
            if due(config.save_every) or (stopped and math.isfinite(float(loss_now))):
                save_last(run.out / LAST_FILE, state, resume.describe(config, run, record, state))
                saved = state.step
            if stopped and state.step < config.steps:
                report(Tick("training", state.step, config.steps, unit="steps", kept=saved))
                raise stopped
    seconds = time.monotonic() - started
    return TrainResult(
        run=run.out,
        arch=config.arch,
        backbone=config.backbone,
        steps=state.step,
        resumed_from=first,
        images=len(run.streams[MAIN].examples),
        seconds=seconds,
        images_per_second=(state.step - first) * config.batch_size / seconds if state.step > first else None,
        last_loss=None if math.isnan(loss) else loss,
        last_miou=state.last_miou,
        best_miou=state.best_miou,
        best_step=state.best_step,
        checkpoint=run.out / (BEST_FILE if state.best_miou is not None else LAST_FILE),
        initialised_from=state.initialised_from,
    )


def train_step(
    state: TrainState,
    model: nn.Module,
    batch: Mapping[str, tuple[Tensor, Tensor]],
    config: TrainConfig,
    device: torch.device,
) -> Tensor:
    """One optimiser step; returns the loss (a scalar on the device) and advances ``state.step``.

    Args:
        state: optimizer, method and step.
        model: the student, possibly wrapped for several devices.
        batch: per stream (B, h, w, 3) uint8 RGB crops and (B, h, w) uint8 labels, on the CPU.
        config: the recipe.
        device: where to compute.
    """

    def shown(pixels: Tensor) -> Tensor:
        x = STUDENT.normalise(_pinned(pixels, device).to(device, non_blocking=True))
        return x.contiguous(memory_format=torch.channels_last)

    inputs = {name: (shown(pixels), _pinned(labels, device)) for name, (pixels, labels) in batch.items()}
    return optimise(state, model, inputs, config)


def optimise(state: TrainState, model: nn.Module, batch: Batch, config: TrainConfig) -> Tensor:
    """:func:`train_step` from the network's input on."""
    device = batch[MAIN][0].device
    torch.manual_seed(_seed(config.seed, state.step, rank()))  # dropout
    rate = learning_rate(config, state.step)
    for group in state.optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    state.optimizer.zero_grad(set_to_none=True)

    def forward(x: Tensor) -> Tensor:
        with autocast(device, config.amp):
            logits: Tensor = model(x)
        return logits

    loss = state.method.loss(forward, batch, state.step)
    loss.backward()  # type: ignore[no-untyped-call]
    state.optimizer.step()
    state.method.after_step(state.student, state.step)
    state.step += 1
    return loss.detach()


def learning_rate(config: TrainConfig, step: int) -> float:
    """The base group's rate: base * (1 - step/steps)^power, after a linear warm-up from a tenth of it."""
    if step < config.warm_up:
        return config.learning_rate * (0.1 + 0.9 * step / config.warm_up)
    return config.learning_rate * float((1 - step / config.steps) ** config.power)


def _validate(
    state: TrainState, config: TrainConfig, run: Run, record: dict[str, str], metrics: Metrics
) -> None:
    if run.validate is None:
        return
    share_buffers(state.student)
    result = run.validate(state.student)
    state.student.train()
    state.last_miou = result.miou
    # Rounded as the reference rounds it: "best" is a strict gain in printed digits.
    better = result.miou is not None and (
        state.best_miou is None or round(result.miou, 2) > round(state.best_miou, 2)
    )
    metrics.add(state.step - 1, {"val_miou": math.nan if result.miou is None else result.miou})
    if better:
        state.best_miou, state.best_step = result.miou, state.step
        save_best(run.out / BEST_FILE, state, resume.describe(config, run, record, state))


def _distribute(state: TrainState, arch: str, device: torch.device) -> nn.Module:
    if world_size() == 1:
        return state.student
    state.loss.reduce_counts = sum_over_ranks
    model: nn.Module = state.student
    if device.type == "cuda":  # the CPU has no synchronised batch norm
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    # DeepLabv2 has parameters that the output does not depend on.
    return DistributedDataParallel(model, find_unused_parameters=arch == Arch.DEEPLABV2)


def _pinned(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.pin_memory() if device.type == "cuda" else tensor


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
