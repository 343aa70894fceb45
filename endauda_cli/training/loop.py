"""Engine: the distillation step of EnD-UDA, and the run around it.

``train`` reads as a page: build or resume, then per step load, step, log, save, validate. Sample order,
crops, augmentation and dropout are pure functions of (seed, step), so a resumed run is the same run, bit for
bit on the CPU, with any number of worker threads.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from endauda_cli import __version__, checkpoint, signals
from endauda_cli.distributed import barrier, rank, share_buffers, sum_over_ranks, world_size
from endauda_cli.domains import IGNORE
from endauda_cli.errors import CheckpointError, ConfigError, DataError, EndaudaError
from endauda_cli.inference import autocast
from endauda_cli.labels import read_image, read_train_ids, read_truth
from endauda_cli.losses import DistillationLoss
from endauda_cli.models import build_student, load_checkpoint, parameter_groups, read_state_dict
from endauda_cli.progress import Note, Reporter, Tick, phase
from endauda_cli.results import TrainResult
from endauda_cli.threads import ordered_map
from endauda_cli.training.cache import cached_rows
from endauda_cli.transforms import AUGMENTATIONS, STUDENT, cut, random_crop, resize
from endauda_cli.types import Arch, Method
from endauda_cli.workspace import write_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from endauda_cli.config import TrainConfig
    from endauda_cli.domains import Domain, Task
    from endauda_cli.models import Student
    from endauda_cli.results import EvalResult

    UInt8 = NDArray[np.uint8]

LOG_EVERY = 10
HISTOGRAM_IMAGES = 200


class Example(NamedTuple):
    """A training image and the file of its labels."""

    id: str
    image: Path
    label: Path


METHODS: dict[str, Callable[[Path, Domain], UInt8]] = {
    Method.DISTILL: lambda path, domain: read_train_ids(path, len(domain.classes)),
    Method.SOURCE: read_truth,
}
"""How each method reads a label file: fused labels hold train ids, ground truth holds label ids."""


@dataclass
class TrainState:
    """Everything that a checkpoint holds."""

    student: Student
    optimizer: torch.optim.Optimizer
    loss: DistillationLoss
    step: int = 0
    best_miou: float | None = None
    best_step: int | None = None
    last_miou: float | None = None
    initialised_from: str | None = None


def train(
    config: TrainConfig,
    task: Task,
    domain: Domain,
    examples: Sequence[Example],
    out: Path,
    cache: Path,
    init: Path | None,
    resume: bool,
    device: torch.device,
    validate: Callable[[nn.Module], EvalResult] | None,
    report: Reporter,
) -> TrainResult:
    """Train a network.

    Args:
        config: the recipe.
        task: source and target.
        domain: the class table of the label files: the target for fused labels, the source for its truth.
        examples: images and label files.
        out: folder of the run.
        cache: folder of decoded images.
        init: weights to start from; ``None`` is random.
        resume: insist on going on; without it, an unfinished run with the same options goes on too.
        device: where to train.
        validate: scores the network on labelled target images; ``None`` without them.
        report: told of progress.

    Raises:
        EndaudaError: if files are absent or wrong, the folder holds another run, or the loss diverges.
    """
    _check(config, examples)
    data = _data_record(domain, examples)
    with phase(report, "building the network"):
        state = _start(config, task, data, out, init, resume, device, report)
    images, labels = _load_examples(config, domain, examples, cache, report)
    _tell_histogram(labels, domain, report)
    with phase(report, "opening the run's records"):
        writer = _Metrics(out, state.step) if rank() == 0 else None
    model = _distribute(state, config.arch, device)
    first, started, loss = state.step, time.monotonic(), math.nan
    saved = first
    with (
        ThreadPoolExecutor(config.workers) as pool,
        closing(writer) if writer is not None else nullcontext(),
        signals.deferred() if world_size() == 1 else nullcontext(),  # ranks cannot agree on a step to stop at
    ):
        report(Tick("training", first, config.steps, unit="steps", kept=saved))
        for step, batch in _batches(config, images, labels, first, pool):
            # single training step
            loss_now = train_step(state, model, batch, config, device)
            last = step + 1 == config.steps

            # once in a while: log
            if step % LOG_EVERY == 0 or last:
                loss = float(loss_now)
                _refuse_divergence(loss, step, config)
                speed = (step + 1 - first) * config.batch_size / (time.monotonic() - started)
                if writer is not None:
                    writer.add(step, _scalars(state, config, loss, batch[1], speed))
                lr = learning_rate(config, step)
                report(
                    Tick(
                        "training",
                        step + 1,
                        config.steps,
                        f"loss {loss:.3f}  lr {lr:.2g}  {speed:.1f} img/s",
                        "steps",
                        kept=saved,
                    )
                )

            # once in a while: validate, save
            if (
                validate is not None
                and config.validate_every
                and (last or (step + 1) % config.validate_every == 0)
            ):
                _validate(state, validate, task, config, data, out, writer)
            if last or (step + 1) % config.save_every == 0:
                _refuse_divergence(float(loss_now), step, config)  # rather than overwrite a good checkpoint
                _save(state, task, config, data, out)
                saved = state.step
            elif signals.asked() and math.isfinite(float(loss_now)):
                _save(state, task, config, data, out)
                saved = state.step
            if (stopped := signals.asked()) and not last:
                report(Tick("training", state.step, config.steps, unit="steps", kept=saved))
                raise stopped
    seconds = time.monotonic() - started
    return TrainResult(
        run=out,
        arch=config.arch,
        backbone=config.backbone,
        steps=state.step,
        resumed_from=first,
        images=len(examples),
        seconds=seconds,
        images_per_second=(state.step - first) * config.batch_size / seconds if state.step > first else None,
        last_loss=None if math.isnan(loss) else loss,
        last_miou=state.last_miou,
        best_miou=state.best_miou,
        best_step=state.best_step,
        checkpoint=out / ("best.pt" if state.best_miou is not None else "last.pt"),
        initialised_from=state.initialised_from,
    )


def train_step(
    state: TrainState,
    model: nn.Module,
    batch: tuple[Tensor, Tensor],
    config: TrainConfig,
    device: torch.device,
) -> Tensor:
    """One optimiser step; returns the loss (a scalar on the device) and advances ``state.step``.

    Args:
        state: optimizer, loss and step.
        model: the student, possibly wrapped for several devices.
        batch: (B, h, w, 3) uint8 RGB crops and (B, h, w) uint8 labels, on the CPU.
        config: the recipe.
        device: where to compute.
    """
    pixels, labels = (t.pin_memory() if device.type == "cuda" else t for t in batch)
    x = STUDENT.normalise(pixels.to(device, non_blocking=True)).contiguous(memory_format=torch.channels_last)
    return optimise(state, model, x, labels, config)


def optimise(state: TrainState, model: nn.Module, x: Tensor, labels: Tensor, config: TrainConfig) -> Tensor:
    """:func:`train_step` from the network's input on: (B, 3, h, w) float32 on the device, labels on the CPU."""
    torch.manual_seed(_seed(config.seed, state.step, rank()))  # dropout
    lr = learning_rate(config, state.step)
    for group in state.optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    state.optimizer.zero_grad(set_to_none=True)
    with autocast(x.device, config.amp):
        logits = model(x)
    # Also without any label: class counts are summed over ranks, and each of them has to take part.
    loss: Tensor = state.loss(logits, labels.to(x.device, non_blocking=True))
    if not bool((labels != IGNORE).any()):
        loss = logits.sum() * 0  # nothing to learn: the mean over no pixel would be NaN and end the run
    loss.backward()  # type: ignore[no-untyped-call]
    state.optimizer.step()
    state.step += 1
    return loss.detach()


def learning_rate(config: TrainConfig, step: int) -> float:
    """The base group's rate: base * (1 - step/steps)^power, after a linear warm-up from a tenth of it."""
    if step < config.warm_up:
        return config.learning_rate * (0.1 + 0.9 * step / config.warm_up)
    return config.learning_rate * float((1 - step / config.steps) ** config.power)


def make_optimizer(student: Student, config: TrainConfig) -> torch.optim.SGD:
    """Nesterov SGD with the published groups: backbone at the base rate, the rest at ten times that."""
    base, tenfold = parameter_groups(student)
    groups = [{"params": base, "lr_scale": 1.0}, {"params": tenfold, "lr_scale": 10.0}]
    return torch.optim.SGD(
        groups,
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.momentum > 0,
    )


def make_loss(config: TrainConfig, num_classes: int) -> DistillationLoss:
    """The loss of a recipe."""
    return DistillationLoss(
        num_classes,
        class_balance=config.class_balance,
        often_balance=config.often_balance,
        hard_percentile=config.hard_percentile,
        max_value=config.max_value,
        balance_area=config.balance_area,
    )


# ---- start and resume ------------------------------------------------------------------------------------


def _check(config: TrainConfig, examples: Sequence[Example]) -> None:
    if not examples:
        raise DataError("there is no image to train on")
    if config.batch_size % world_size():
        raise ConfigError(f"--batch-size {config.batch_size} does not divide over {world_size()} processes")
    if config.batch_size // world_size() < 2:
        raise ConfigError(
            f"--batch-size {config.batch_size}: every one of {world_size()} processes needs 2 or more"
        )
    missing = [e for e in examples if not e.label.is_file()]
    if missing:
        raise DataError(
            f"{missing[0].label}: no such label file, needed for image {missing[0].id} "
            f"({len(missing)} of {len(examples)} are absent); fuse the train split, or name its labels with --labels"
        )


def _data_record(domain: Domain, examples: Sequence[Example]) -> dict[str, str]:
    """What a run learns from. The digest takes names and sizes: a changed label PNG nearly always has another
    size, and reading all of them at each start would take minutes on a network share."""
    digest = hashlib.sha256(domain.name.encode())
    for example in examples:
        sizes = example.image.stat().st_size, example.label.stat().st_size
        digest.update(f"{example.id}\0{sizes}\n".encode())
    return {"labels": str(examples[0].label.parent), "digest": digest.hexdigest()[:32]}


def _start(
    config: TrainConfig,
    task: Task,
    data: dict[str, str],
    out: Path,
    init: Path | None,
    resume: bool,
    device: torch.device,
    report: Reporter,
) -> TrainState:
    """A fresh state, or that of ``last.pt`` if the folder holds a run with these options."""
    torch.manual_seed(config.seed)
    student = build_student(config.arch, config.backbone, len(task.classes))
    last = out / "last.pt"
    content = checkpoint.load(last) if last.exists() else None
    if content is None:
        if resume:
            raise CheckpointError(f"{last}: no such checkpoint to resume; run without --resume to start")
        if init is not None:
            initialise(student, init)
            data |= {"init": str(init), "init_sha256": checkpoint.sha256(init)}
        else:
            report(
                Note("no --init: the network starts from random weights, not from a source model", "warning")
            )
        write_text(
            out / "config.json", json.dumps(_meta(config, task, data, None), indent=1, default=str) + "\n"
        )
    else:
        _refuse_other_run(config, task, data, init, content["meta"], out)
        data |= content["meta"]["data"]
        load_checkpoint(student, last)
    student = student.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    state = TrainState(
        student, make_optimizer(student, config), make_loss(config, len(task.classes)).to(device)
    )
    state.initialised_from = str(init) if init is not None else None
    if content is not None:
        meta = content["meta"]
        state.optimizer.load_state_dict(content["optimizer"])
        state.loss.load_state_dict(content["loss"])
        state.step, state.best_miou, state.best_step = meta["step"], meta["best_miou"], meta["best_step"]
        state.last_miou, state.initialised_from = meta["miou"], meta["initialised_from"]
        report(Note(f"{out} goes on at step {state.step} of {config.steps}"))
    return state


def initialise(student: Student, path: Path) -> None:
    """Start from a checkpoint of the whole network, or of its backbone alone (ImageNet).

    Raises:
        CheckpointError: if it is neither.
    """
    whole = set(student.state_dict())
    backbone = {key.removeprefix("backbone.") for key in whole if key.startswith("backbone.")}
    found = set(read_state_dict(path))
    load_checkpoint(student.backbone if found & backbone and not found & whole else student, path)


VOLATILE = ("save_every", "validate_every", "workers")
"""Options that may differ when a run goes on: they do not change what is learnt."""
FLAGS = {"learning_rate": "lr"}
"""Options whose flag is not called as the field of ``TrainConfig``."""


def _refuse_other_run(
    config: TrainConfig, task: Task, data: dict[str, str], init: Path | None, meta: dict[str, Any], out: Path
) -> None:
    other = "; name another with --name, or delete that folder"
    before, now = meta["config"], _plain(asdict(config))
    for key in now:
        if key not in VOLATILE and before.get(key) != now[key]:
            flag = FLAGS.get(key, key.replace("_", "-"))
            raise ConfigError(f"{out} holds a run with --{flag} {before.get(key)}, not {now[key]}{other}")
    for key, value in (("classes", list(task.classes)), ("target", task.target.name)):
        if meta[key] != value:
            raise ConfigError(f"{out} holds a run with {key} {meta[key]}, not {value}{other}")
    if meta["data"]["digest"] != data["digest"]:
        raise ConfigError(
            f"{out} holds a run on other images or labels ({meta['data']['labels']}, now {data['labels']}, or its "
            f"files have changed){other}"
        )
    if init is not None and checkpoint.sha256(init) != meta["data"].get("init_sha256"):
        raise ConfigError(
            f"{out} holds a run from {meta['data'].get('init', 'random weights')}, not {init}{other}"
        )


def _plain(value: Any) -> Any:
    """Tuples as lists and enums as strings, as JSON has them."""
    return json.loads(json.dumps(value))


def _meta(config: TrainConfig, task: Task, data: dict[str, str], state: TrainState | None) -> dict[str, Any]:
    """What a checkpoint says of itself: plain values only."""
    meta: dict[str, Any] = {
        "endauda": __version__,
        "torch": torch.__version__,
        "arch": config.arch,
        "backbone": config.backbone,
        "classes": task.classes,
        "size": config.size,
        "source": task.source.name,
        "target": task.target.name,
        "data": data,
        "config": asdict(config),
    }
    if state is not None:
        meta |= {
            "step": state.step,
            "miou": state.last_miou,
            "best_miou": state.best_miou,
            "best_step": state.best_step,
            "initialised_from": state.initialised_from,
        }
    plain: dict[str, Any] = _plain(meta)
    return plain


def _distribute(state: TrainState, arch: str, device: torch.device) -> nn.Module:
    if world_size() == 1:
        return state.student
    state.loss.reduce_counts = sum_over_ranks
    model: nn.Module = state.student
    if device.type == "cuda":  # the CPU has no synchronised batch norm
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    # DeepLabv2 has parameters that the output does not depend on.
    return DistributedDataParallel(model, find_unused_parameters=arch == Arch.DEEPLABV2)


# ---- data ------------------------------------------------------------------------------------------------


def _load_examples(
    config: TrainConfig, domain: Domain, examples: Sequence[Example], cache: Path, report: Reporter
) -> tuple[UInt8, UInt8]:
    """(N, h, w, 3) uint8 RGB and (N, h, w) uint8 train ids, resized, memory mapped."""
    width, height = config.size

    def image(i: int) -> UInt8:
        return resize(read_image(examples[i].image), config.size, STUDENT.filter)

    def label(i: int) -> UInt8:
        return resize(METHODS[config.method](examples[i].label, domain), config.size, "nearest")

    if rank() > 0:
        barrier()  # the first rank fills the cache
    images = cached_rows(
        cache, "caching images", [e.image for e in examples], f"{config.size}", (height, width, 3), image,
        config.workers, report,
    )  # fmt: skip
    labels = cached_rows(
        cache, "caching labels", [e.label for e in examples], _label_recipe(config, domain), (height, width), label,
        config.workers, report,
    )  # fmt: skip
    if rank() == 0:
        barrier()
    return images, labels


def _label_recipe(config: TrainConfig, domain: Domain) -> str:
    """What a cached label depends on beside its file. A user may correct the table of a TOML file."""
    train_ids = [(i, domain.train_id(i)) for i in sorted(domain.label_ids)]
    return f"{config.size} {config.method} {domain.classes} {train_ids} {domain.others_ignored}"


def _batches(
    config: TrainConfig, images: UInt8, labels: UInt8, first: int, pool: ThreadPoolExecutor
) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
    """This rank's part of each batch from step ``first`` on, prepared ahead in threads."""
    share = config.batch_size // world_size()

    def prepare(step: int) -> tuple[int, tuple[Tensor, Tensor]]:
        start = step * config.batch_size + rank() * share
        crops = [_example(config, images, labels, position) for position in range(start, start + share)]
        pixels, classes = zip(*crops, strict=True)
        return step, (torch.stack(pixels), torch.stack(classes))

    return ordered_map(pool, prepare, range(first, config.steps), 2 * config.workers)


def _example(config: TrainConfig, images: UInt8, labels: UInt8, position: int) -> tuple[Tensor, Tensor]:
    """The crop at a position of the run's endless sequence: (h, w, 3) and (h, w) uint8."""
    epoch, place = divmod(position, len(images))
    index = int(_order(config.seed, epoch, len(images))[place])
    rng = random.Random(f"{config.seed} {position}")
    width, height = config.crop
    crop = random_crop((images.shape[1], images.shape[2]), (height, width), rng, config.mirror)
    pixels = torch.from_numpy(np.array(cut(images[index], crop, (height, width))))  # a copy: rows are shared
    for name in config.augment:
        pixels = AUGMENTATIONS[name](pixels.permute(2, 0, 1), rng).permute(1, 2, 0)
    return pixels.contiguous(), torch.from_numpy(np.array(cut(labels[index], crop, (height, width))))


def _order(seed: int, epoch: int, length: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(length)


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def _tell_histogram(labels: UInt8, domain: Domain, report: Reporter) -> None:
    """Say what the labels hold, before hours are spent on them."""
    step = max(1, len(labels) // HISTOGRAM_IMAGES)
    counts = np.bincount(labels[::step].ravel(), minlength=256)
    classes = counts[: len(domain.classes)]
    if not classes.any():
        raise DataError("the labels hold no class at all, only 255; lower --threshold when fusing")
    shares = ", ".join(
        f"{name} {100 * n / counts.sum():.1f}" for name, n in zip(domain.classes, classes, strict=True)
    )
    report(Note(f"labels in percent of pixels: {shares}, none {100 * counts[IGNORE] / counts.sum():.1f}"))
    absent = [name for name, n in zip(domain.classes, classes, strict=True) if n == 0]
    if absent:
        report(Note(f"the labels never show {', '.join(absent)}; the student cannot learn them", "warning"))


# ---- records ---------------------------------------------------------------------------------------------


def _scalars(
    state: TrainState, config: TrainConfig, loss: float, labels: Tensor, speed: float
) -> dict[str, float]:
    scalars = {
        "loss": loss,
        "lr": learning_rate(config, state.step - 1),
        "labelled": float((labels != IGNORE).float().mean()),
        "images_per_second": speed,
    }
    if state.loss.mining is not None:
        scalars["mining_threshold"] = float(state.loss.mining.threshold)
        scalars["kept"] = float(state.loss.mining.kept) / labels.numel()
    return scalars


def _refuse_divergence(loss: float, step: int, config: TrainConfig) -> None:
    if not math.isfinite(loss):
        raise EndaudaError(
            f"the loss became {loss} at step {step}; checkpoints of earlier steps are kept; lower --lr "
            f"(now {config.learning_rate:g}) or check the labels"
        )


def _validate(
    state: TrainState,
    validate: Callable[[nn.Module], EvalResult],
    task: Task,
    config: TrainConfig,
    data: dict[str, str],
    out: Path,
    writer: _Metrics | None,
) -> None:
    share_buffers(state.student)
    result = validate(state.student)
    state.student.train()
    state.last_miou = result.miou
    # Rounded as the reference rounds it: "best" is a strict gain in printed digits.
    better = result.miou is not None and (
        state.best_miou is None or round(result.miou, 2) > round(state.best_miou, 2)
    )
    if better:
        state.best_miou, state.best_step = result.miou, state.step
    if writer is not None:
        writer.add(state.step - 1, {"val_miou": math.nan if result.miou is None else result.miou})
        if better:
            content = {"weights": state.student.state_dict(), "meta": _meta(config, task, data, state)}
            checkpoint.save(out / "best.pt", content)


def _save(state: TrainState, task: Task, config: TrainConfig, data: dict[str, str], out: Path) -> None:
    if rank() == 0:
        content = {
            "weights": state.student.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "loss": state.loss.state_dict(),
            "meta": _meta(config, task, data, state),
        }
        checkpoint.save(out / "last.pt", content)


class _Metrics:
    """``metrics.jsonl`` and TensorBoard events of a run; entries of steps that will be redone are dropped."""

    def __init__(self, out: Path, first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = out / "metrics.jsonl"
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                if json.loads(line)["step"] < first:
                    kept.append(line + "\n")
            except (ValueError, KeyError):  # half a line, left by a kill
                continue
        write_text(path, "".join(kept))
        self.file = path.open("a", encoding="utf-8")
        self.board = SummaryWriter(str(out / "tensorboard"), purge_step=first or None)

    def add(self, step: int, scalars: dict[str, float]) -> None:
        plain = {key: None if math.isnan(value) else value for key, value in scalars.items()}
        self.file.write(json.dumps({"step": step, **plain}) + "\n")
        self.file.flush()
        for key, value in scalars.items():
            self.board.add_scalar(key, value, step)

    def close(self) -> None:
        self.file.close()
        self.board.close()
