"""Speed of ``train``: images per second against the bare network, and against a research script's loop.

    python benchmarks/training.py [--network mobilenet] [--crop 512x256] [--batch-size 10] [--precision auto]

Three ways over the same generated street scenes, in the same process on the same device, rounds in turn, medians:

- bare: forward, plain cross entropy, backward and SGD step of the network, again and again on one batch that is on the
  device already: what no training loop can beat;
- train: files to checkpoint, as ``endauda train`` does it by the published recipe, its cache filled; the steps alone
  are timed, after a warm-up, by the progress that it reports;
- loop: Pillow decodes and resizes each item (bicubic) in a DataLoader of one worker, class weights are counted class by
  class, and the percentile for hard-label mining is NumPy's, on the host.

All have the same network in the same memory format and precision. On a CPU whose cores the network keeps busy anyway,
the CPU seconds say the same as the clock, and say it too where others use the machine (those of the loop's worker are
not counted).
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from endauda_cli.augmentation import AUGMENTATIONS
from endauda_cli.config import TrainConfig
from endauda_cli.demo.street import TARGET_LOOK, draw_scene, paint
from endauda_cli.distributed import pick_device
from endauda_cli.domains import CITYSCAPES, GTA5, IGNORE, make_task
from endauda_cli.inference import autocast
from endauda_cli.models import build_student
from endauda_cli.options import parse_size
from endauda_cli.progress import Note, Tick
from endauda_cli.training.data import Example, Stream
from endauda_cli.training.loop import train
from endauda_cli.training.methods import MAIN
from endauda_cli.training.methods.distill import read_fused
from endauda_cli.training.optimizers import make_optimizer
from endauda_cli.training.precision import chosen_precision, set_precision
from endauda_cli.training.run import Run
from endauda_cli.transforms import STUDENT
from endauda_cli.types import Arch, Backbone, Precision

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

CLASSES = len(CITYSCAPES.classes)


def in_precision(config: TrainConfig, device: torch.device) -> Any:
    """What the bare network and the plain loop run their forward pass in, as the run does."""
    precision = chosen_precision(config.precision, device)
    set_precision(precision, device)
    return autocast(device, precision == Precision.BF16)


# ---------------------------------------------------------------------------- the three ways


class Timed(NamedTuple):
    """Of some steps: seconds by the clock, and of all cores of this process."""

    clock: float
    work: float

    @classmethod
    def now(cls) -> Timed:
        return cls(time.perf_counter(), time.process_time())

    def since(self, begin: Timed) -> Timed:
        return Timed(self.clock - begin.clock, self.work - begin.work)


def make_student(config: TrainConfig, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    student = build_student(config.arch, config.backbone, CLASSES)
    return student.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def input_of(pixels: Tensor, device: torch.device) -> Tensor:
    return STUDENT.normalise(pixels.to(device)).contiguous(memory_format=torch.channels_last)


def enlarged(logits: Tensor, labels: Tensor) -> Tensor:
    return F.interpolate(logits.float(), labels.shape[-2:], mode="bilinear", align_corners=True)


def bare(config: TrainConfig, device: torch.device, compiled: bool, warm_up: int, steps: int) -> Timed:
    """The network over a batch that is there; nothing is fetched, counted or mined."""
    student = make_student(config, device).train()
    optimizer = make_optimizer(student, config)  # type: ignore[arg-type]
    model: Any = torch.compile(student) if compiled else student
    generator = torch.Generator().manual_seed(0)
    width, height = config.crop
    pixels = torch.randint(0, 256, (config.batch_size, height, width, 3), generator=generator)
    x = input_of(pixels.to(torch.uint8), device)
    labels = torch.randint(0, CLASSES, (config.batch_size, height, width), generator=generator).to(device)
    begin = Timed.now()
    for step in range(warm_up + steps):
        if step == warm_up:
            wait_for(device)
            begin = Timed.now()
        optimizer.zero_grad(set_to_none=True)
        with in_precision(config, device):
            logits = model(x)
        loss = F.cross_entropy(enlarged(logits, labels), labels, ignore_index=IGNORE)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    wait_for(device)
    return Timed.now().since(begin)


def endauda(config: TrainConfig, run: Run, warm_up: int) -> tuple[Timed, int]:
    """The engine; from the first progress after the warm-up to that of the last step, which wait for the device."""
    begin, end, first = None, Timed.now(), 0

    def report(event: Tick | Note) -> None:
        nonlocal begin, end, first
        if isinstance(event, Tick) and event.task == "training" and event.done:
            if begin is None and event.done >= warm_up:
                begin, first = Timed.now(), event.done
            end = Timed.now()

    train(config, run, report)
    assert begin is not None
    return end.since(begin), config.steps - first


class Items(Dataset[tuple["Tensor", "Tensor"]]):
    """A data set as research scripts have it: each item decoded, resized and cropped when it is asked for."""

    def __init__(self, examples: list[Example], config: TrainConfig, length: int) -> None:
        self.examples, self.config, self.length = examples, config, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        example, (width, height) = self.examples[index % len(self.examples)], self.config.crop
        assert example.label is not None
        image = Image.open(example.image).convert("RGB").resize(self.config.size, Image.Resampling.BICUBIC)
        label = Image.open(example.label).resize(self.config.size, Image.Resampling.NEAREST)
        left = random.randint(0, self.config.size[0] - width)
        top = random.randint(0, self.config.size[1] - height)
        box = (left, top, left + width, top + height)
        return torch.from_numpy(np.array(image.crop(box))), torch.from_numpy(np.array(label.crop(box))).long()


def plain_loss(logits: Tensor, labels: Tensor, config: TrainConfig) -> Tensor:
    """The recipe's loss as one writes it down first: classes in a loop, the percentile by NumPy."""
    weights = torch.ones(CLASSES, device=logits.device)
    for c in range(CLASSES):
        if (labels == c).sum().item() < config.balance_area * len(labels):
            weights[c] = config.max_value
    losses = F.cross_entropy(logits, labels, weight=weights, ignore_index=IGNORE, reduction="none")
    threshold = np.percentile(losses.detach().cpu().numpy(), config.hard_percentile)
    kept = (losses >= float(threshold)) & (labels != IGNORE)
    return (losses * kept).sum() / (weights[labels.clamp(max=CLASSES - 1)] * kept).sum()


def loop(
    config: TrainConfig, examples: list[Example], device: torch.device, warm_up: int, steps: int
) -> Timed:
    """What a research script does."""
    student = make_student(config, device).train()
    optimizer = make_optimizer(student, config)  # type: ignore[arg-type]
    items = Items(examples, config, (warm_up + steps) * config.batch_size)
    begin = Timed.now()
    for step, (pixels, truth) in enumerate(DataLoader(items, config.batch_size, num_workers=1)):
        if step == warm_up:
            wait_for(device)
            begin = Timed.now()
        labels = truth.to(device)
        optimizer.zero_grad(set_to_none=True)
        with in_precision(config, device):
            logits = student(input_of(pixels, device))
        loss = plain_loss(enlarged(logits, labels), labels, config)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    wait_for(device)
    return Timed.now().since(begin)


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# ---------------------------------------------------------------------------- around them


def draw(folder: Path, count: int, size: tuple[int, int]) -> list[Example]:
    """PNG files of street scenes, a little noisy, as photographs are, and their labels, a fifth of them absent."""
    examples = []
    for i in range(count):
        rng = np.random.default_rng(i)
        scene = draw_scene(rng, 512, 256)
        picture = Image.fromarray(paint(scene, TARGET_LOOK, rng)).resize(size)
        noisy = np.asarray(picture) + rng.normal(0, 2, (size[1], size[0], 3))
        label = np.where(rng.random(scene.label.shape) < 0.2, np.uint8(IGNORE), scene.label)
        example = Example(f"{i:04}", folder / f"{i:04}.png", folder / f"{i:04}-label.png")
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(example.image)
        assert example.label is not None
        Image.fromarray(label).resize(size, Image.Resampling.NEAREST).save(example.label)
        examples.append(example)
    return examples


def make_config(given: argparse.Namespace) -> TrainConfig:
    width, height = parse_size("--crop")(given.crop)
    every = {"mirror": True, "scale_jitter": (0.5, 2.0), "augment": tuple(AUGMENTATIONS)}
    augmented: dict[str, Any] = every if given.augment else {}
    return TrainConfig(
        backbone=given.network,
        arch=given.arch,
        size=parse_size("--size")(given.size),
        crop=(width, height),
        batch_size=given.batch_size,
        workers=given.workers,
        # Progress comes every tenth step: at least two of them lie in what is timed.
        steps=max(given.warm_up, 1) + max(given.steps, 11),
        save_every=1_000_000,
        balance_area=max(1, width * height // 32),
        ramp=0,
        precision=given.precision,
        compile=given.compile,
        **augmented,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default=Backbone.MOBILENET.value, choices=[b.value for b in Backbone])
    parser.add_argument("--arch", default=Arch.DEEPLABV3PLUS.value, choices=[a.value for a in Arch])
    parser.add_argument("--size", default="1024x512", help="images are resized to this")
    parser.add_argument("--crop", default="512x256")
    parser.add_argument("--image-size", default="2048x1024", help="of the files")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--warm-up", type=int, default=5, help="steps before those that are timed")
    parser.add_argument(
        "--steps", type=int, default=20, help="steps that are timed, a round; train's at least 11"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default=Precision.AUTO.value, choices=[p.value for p in Precision])
    parser.add_argument("--augment", action="store_true", help="all of train's augmentations, in train alone")
    parser.add_argument("--compile", action="store_true", help="train's and the bare network's")
    parser.add_argument("--without-loop", action="store_true", help="leave the plain loop out")
    given = parser.parse_args()
    device, config = pick_device(given.device), make_config(given)

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        examples = draw(root, given.images, parse_size("--image-size")(given.image_size))
        streams = {MAIN: Stream(examples, CITYSCAPES, read_fused, label_ids=False)}

        def of_train(number: int) -> tuple[Timed, int]:
            task = make_task(GTA5, CITYSCAPES)
            run = Run(task, streams, root / "runs" / str(number), root / "cache", device)
            return endauda(config, run, given.warm_up)

        ways: dict[str, Callable[[int], tuple[Timed, int]]] = {
            "bare": lambda _: (bare(config, device, given.compile, given.warm_up, given.steps), given.steps),
            "train": of_train,
            "loop": lambda _: (loop(config, examples, device, given.warm_up, given.steps), given.steps),
        }
        if given.without_loop:
            del ways["loop"]
        clock: dict[str, list[float]] = {way: [] for way in ways}
        work: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(given.rounds):  # in turn, so that what else the machine does meets them alike
            for way, timed in ways.items():
                seconds, steps = timed(number)
                clock[way].append(seconds.clock / steps)
                work[way].append(seconds.work / steps)

    card = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    )
    precision = chosen_precision(given.precision, device)
    compiled, augmented = ", compiled" if given.compile else "", "all" if given.augment else "no"
    print(f"{given.arch} on {given.network}, {precision}{compiled}, crop {given.crop} of {given.size}, files "
          f"{given.image_size}, batch {given.batch_size}, {augmented} augmentations, {given.workers} workers, {device} "
          f"({card}), torch {torch.__version__}; medians of {given.rounds} rounds of {given.steps} steps")  # fmt: skip
    step, used = ({way: statistics.median(times) for way, times in of.items()} for of in (clock, work))
    print(
        f"{'':6} {'images/s':>9} {'ms/step':>9} {'of bare':>8} {'of loop':>8} {'CPU s/step':>11} {'of bare':>8}"
    )
    for way in ways:
        of_loop = f"{step['loop'] / step[way]:8.2f}" if "loop" in step else f"{'':8}"
        print(f"{way:6} {given.batch_size / step[way]:9.2f} {1000 * step[way]:9.1f} {step['bare'] / step[way]:8.3f} "
              f"{of_loop} {used[way]:11.3f} {used['bare'] / used[way]:8.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
