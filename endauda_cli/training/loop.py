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
from endauda_cli.augmentation import augment
from endauda_cli.distributed import (
    gather_over_ranks,
    mean_over_ranks,
    rank,
    share_buffers,
    sum_over_ranks,
    total_over_ranks,
    world_size,
)
from endauda_cli.inference import autocast
from endauda_cli.losses import Ranks
from endauda_cli.models.grouping import unreached
from endauda_cli.models.layers import freeze_norms, synchronised
from endauda_cli.progress import Note, Reporter, Tick, phase
from endauda_cli.results import TrainResult
from endauda_cli.signals import Stopped
from endauda_cli.training import data, resume
from endauda_cli.training.contents import survey
from endauda_cli.training.feeding import feed
from endauda_cli.training.methods import MAIN
from endauda_cli.training.precision import chosen_precision, set_precision
from endauda_cli.training.records import Records, all_finite, diverged, save_best, save_last, scalars
from endauda_cli.types import BestBy, Precision
from endauda_cli.workspace import BEST_FILE, LAST_FILE, PRETRAINED_FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from endauda_cli.config import TrainConfig
    from endauda_cli.training.data import Rows
    from endauda_cli.training.feeding import Crops, Fed
    from endauda_cli.training.methods import Batch
    from endauda_cli.training.run import Run, TrainState

LOG_EVERY = 10
SAVE_SECONDS = 600.0
"""A checkpoint is written after so long, whatever ``save_every`` says: on a CPU a thousand steps can take hours."""


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
    precision = chosen_precision(config.precision, run.device)
    set_precision(precision, run.device)
    # build or resume
    contents = {name: survey(stream, config.workers, report) for name, stream in run.streams.items()}
    record = resume.data_record(run, contents)
    with phase(report, "building the network"):
        state = resume.start(config, run, record, report)
    state.half = precision == Precision.BF16
    rows = {
        name: data.load_rows(
            config, stream, contents[name], run.cache, report, (run.out, name), state.preprocessing
        )
        for name, stream in run.streams.items()
    }
    true = rows[data.LABELLED].labels if data.LABELLED in rows else None
    learnt = data.of_sources(run.streams)
    labels = data.Joined(*((rows[name].labels, range(len(rows[name].labels))) for name in learnt))
    data.tell_histogram(labels, run.streams[MAIN].domain, report, true)
    with phase(report, "opening the run's records"):
        records = Records(config, run, state, rows[MAIN], report)
    model = _distribute(state, config, run.device)
    first, started, loss = state.step, time.monotonic(), math.nan
    saved, saved_at, loss_now = first, started, None

    def ended() -> bool:
        return state.step >= config.steps or 0 < config.patience <= state.idle

    def due(every: int) -> bool:
        return every > 0 and (ended() or state.step % every == 0)

    with ThreadPoolExecutor(config.workers) as pool, closing(records), signals.deferred():
        report(Tick("training", first, config.steps, unit="steps", kept=saved))
        start = config.steps if ended() else first
        for step, batch, labelled in _batches(config, run, state, rows, start, pool, report):
            overdue = time.monotonic() - saved_at >= SAVE_SECONDS
            labelled, overdue, stopped = _agree(labelled, overdue, signals.asked())

            # single training step, if there is something to learn
            if labelled:
                loss_now = train_step(state, model, batch, config)
            else:
                state.step, state.empty = state.step + 1, state.empty + 1
            records.stepped()

            # once in a while: log
            if (step % LOG_EVERY == 0 or state.step == config.steps) and loss_now is not None:
                loss, rate = float(mean_over_ranks(loss_now)), learning_rate(config, step)
                if not math.isfinite(loss):
                    raise diverged(f"the loss became {loss}", step, saved, run.out, config)
                speed = (state.step - first) * config.batch_size / (time.monotonic() - started)
                pixels = world_size() * sum(crops.labels.numel() for crops in batch.values())
                records.logged(step, scalars(state, loss, rate, labelled / pixels, speed))
                note = f"loss {loss:.3f}  lr {rate:.2g}  {speed:.1f} img/s"
                report(Tick("training", state.step, config.steps, note, "steps", kept=saved))

            # once in a while: validate, save; also where a signal asked to stop
            if due(config.validate_every):
                _validate(state, config, run, record, records)
            if world_size() == 1:  # others have to agree, which they do before a step
                stopped = signals.asked()
            if due(config.save_every) or overdue or stopped:
                if all_finite(state):
                    save_last(run.out, state, resume.describe(config, run, record, state), config.keep)
                    saved, saved_at = state.step, time.monotonic()
                    records.saved()
                elif not stopped:  # rather than overwrite a good checkpoint
                    raise diverged("the weights became infinite or no numbers", step, saved, run.out, config)
            if stopped and not ended():
                report(Tick("training", state.step, config.steps, unit="steps", kept=saved))
                raise stopped
            if ended():
                break
    stopped_early = state.step < config.steps
    if stopped_early:
        report(Note(f"ended after step {state.step} of {config.steps}: {state.idle} tests without a gain"))
    seconds = time.monotonic() - started
    checkpoint = run.out / (BEST_FILE if state.best_step is not None else LAST_FILE)
    return TrainResult(
        run=run.out,
        arch=run.trained(config).arch,
        backbone=run.trained(config).backbone,
        steps=state.step,
        resumed_from=first,
        images=sum(len(run.streams[name].examples) for name in learnt),
        held_out_images=config.hold_out,
        last_agreement=state.last_agreement,
        best_agreement=state.best_agreement,
        best_by=config.best_by,
        stopped_early=stopped_early,
        labelled_images=len(run.streams[data.LABELLED].examples) if data.LABELLED in run.streams else 0,
        seconds=seconds,
        images_per_second=(state.step - first) * config.batch_size / seconds if state.step > first else None,
        last_loss=None if math.isnan(loss) else loss,
        last_miou=state.last_miou,
        best_miou=state.best_miou,
        best_step=state.best_step,
        checkpoint=checkpoint,
        folder=_keep(run, checkpoint, report),
        initialised_from=state.initialised_from,
        precision=precision,
        empty_steps=state.empty,
    )


def _batches(
    config: TrainConfig,
    run: Run,
    state: TrainState,
    rows: Mapping[str, Rows],
    first: int,
    pool: ThreadPoolExecutor,
    report: Reporter,
) -> Iterator[Fed]:
    """Batches on the device from step ``first`` on; a method of rounds draws from other rows in each."""
    while first < config.steps:
        until = state.method.until(first)
        drawn = state.method.begin(state.student, rows, run.streams[MAIN].rounds, run.out, first, report)
        yield from feed(data.batches(config, drawn, first, pool, until), run.device)
        first = until


def _keep(run: Run, checkpoint: Path, report: Reporter) -> Path | None:
    """The student as its library keeps it, if it is of one; by the first rank."""
    if run.network is None or rank() > 0:
        return None
    from endauda_cli.teachers.keeping import KEPT, keep

    if run.network.family not in KEPT:
        return None
    folder = run.out / PRETRAINED_FOLDER
    with phase(report, f"writing {folder.name}"):
        keep(checkpoint, run.task.classes, folder)
    return folder


def _agree(labelled: int, overdue: bool, asked: Stopped | None) -> tuple[int, bool, Stopped | None]:
    """Pixels with a label over all ranks; whether any of them finds that a checkpoint is overdue, and whether any was
    asked to stop: then all save, or stop, after this step."""
    if world_size() == 1:
        return labelled, overdue, asked
    numbers = [int(asked is not None and asked.number == number) for number in signals.SIGNALS]
    labelled, late, *came = total_over_ranks(labelled, int(overdue), *numbers)
    for number, n in zip(signals.SIGNALS, came, strict=True):
        if n:
            signals.heed(Stopped(number))
            return labelled, late > 0, Stopped(number)
    return labelled, late > 0, None


def train_step(
    state: TrainState, model: nn.Module, batch: Mapping[str, Crops], config: TrainConfig
) -> Tensor:
    """One optimiser step; returns the loss (a scalar on the device) and advances ``state.step``.

    Args:
        state: optimizer, method and step.
        model: the student, possibly wrapped for several devices.
        batch: crops per stream, on the device.
        config: the recipe.
    """

    def shown(crops: Crops) -> Tensor:
        pixels = crops.pixels
        if config.augment:
            planes = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
            pixels = augment(planes, config.augment, crops.changes).permute(0, 2, 3, 1)
        return state.preprocessing.normalise(pixels).contiguous(memory_format=torch.channels_last)

    inputs: dict[str, tuple[Tensor, ...]] = {}
    for name, crops in batch.items():
        known = () if crops.certainties is None else (crops.certainties,)
        inputs[name] = shown(crops), crops.labels, *known
    return optimise(state, model, inputs, config)


def optimise(state: TrainState, model: nn.Module, batch: Batch, config: TrainConfig) -> Tensor:
    """:func:`train_step` from the network's input on."""
    device = batch[MAIN][0].device
    torch.manual_seed(_seed(config.seed, state.step, rank()))  # dropout
    if config.freeze_norms:
        freeze_norms(state.student)
    rate = learning_rate(config, state.step)
    for group in state.optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    state.optimizer.zero_grad(set_to_none=True)

    def forward(x: Tensor) -> Tensor:
        with autocast(device, state.half):
            logits: Tensor = model(x)
        return logits

    state.loss.strength = min(1.0, state.step / state.ramp) if state.ramp else 1.0
    parts = _parts(batch, config.accumulate) if config.accumulate > 1 else [batch]
    losses = []
    for number, part in enumerate(parts, 1):
        # Gradients are summed over ranks once, with the last part.
        waits = isinstance(model, DistributedDataParallel) and number < len(parts)
        with model.no_sync() if waits else nullcontext():  # type: ignore[operator]
            loss = state.method.loss(forward, part, state.step) / len(parts)
            loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
    if config.clip:
        torch.nn.utils.clip_grad_norm_(state.student.parameters(), config.clip)
    state.optimizer.step()
    state.method.after_step(state.student, state.step)
    state.step += 1
    if state.average is not None:
        state.average.update(state.step)
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


def _parts(batch: Batch, number: int) -> list[Batch]:
    """The batch in parts of every ``number``-th image: each has some of all kinds."""
    return [
        {name: tuple(tensor[first::number] for tensor in tensors) for name, tensors in batch.items()}
        for first in range(number)
    ]


def learning_rate(config: TrainConfig, step: int) -> float:
    """The base group's rate: base * (1 - step/steps)^power, after a linear warm-up from a tenth of it."""
    if step < config.warm_up:
        return config.learning_rate * (0.1 + 0.9 * step / config.warm_up)
    return config.learning_rate * float((1 - step / config.steps) ** config.power)


def _validate(
    state: TrainState, config: TrainConfig, run: Run, record: dict[str, str], records: Records
) -> None:
    tests = {"val_miou": run.validate, "agreement": run.agree}
    asked = {name: test for name, test in tests.items() if test is not None}
    if not asked:
        return
    share_buffers(state.result)
    scores = {name: test(state.result).miou for name, test in asked.items()}
    state.student.train()
    state.last_miou = scores.get("val_miou", state.last_miou)
    state.last_agreement = scores.get("agreement", state.last_agreement)
    now, best = state.last_miou, state.best_miou
    if config.best_by == BestBy.AGREEMENT:
        now, best = state.last_agreement, state.best_agreement
    # Rounded as the reference rounds it: "best" is a strict gain in printed digits.
    better = now is not None and (best is None or round(now, 2) > round(best, 2))
    state.idle = 0 if better else state.idle + 1
    if better:
        state.best_miou, state.best_agreement = state.last_miou, state.last_agreement
        state.best_step = state.step
        save_best(run.out / BEST_FILE, state, resume.describe(config, run, record, state))
    records.validated({name: math.nan if score is None else score for name, score in scores.items()})


def _distribute(state: TrainState, config: TrainConfig, device: torch.device) -> nn.Module:
    """The student over all devices, and compiled if that was asked for."""
    model: nn.Module = state.student
    if world_size() > 1:
        state.loss.ranks = Ranks(world_size(), sum_over_ranks, gather_over_ranks)
        some = _leaves_some_out(state, config, device)
        if device.type == "cuda":  # the CPU has no synchronised batch norm
            model = synchronised(model)
        model = DistributedDataParallel(model, find_unused_parameters=some)
    return torch.compile(model) if config.compile else model  # type: ignore[return-value]


def _leaves_some_out(state: TrainState, config: TrainConfig, device: torch.device) -> bool:
    """Whether ranks have to look, at each step, which parameters got no gradient: as those of DeepLabv2 that its output
    does not depend on, or of a folder's second head."""
    width, height = config.crop
    images = torch.zeros(2, 3, height, width, device=device).contiguous(memory_format=torch.channels_last)
    with autocast(device, state.half):
        return state.student.varies or bool(unreached(state.student, images))


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
