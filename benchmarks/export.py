"""Speed of ``export-teacher``: images per second against the bare forward pass, and against a research script's loop.

    python benchmarks/export.py [--network student] [--images 8] [--codec grid] [--device auto]

Ways over the same generated street scenes, in the same process on the same device, rounds in turn, best of each:

- forward: the network alone, on an input that is on the device already;
- export: files to archive, as ``endauda export-teacher`` does it;
- beside: the same, but the network's outputs are there already: what an export costs beside the forward pass. Of
  that, decode: files to inputs;
- test: files and their truth to mIoU, as ``endauda test`` does it;
- loop: decode, resize, forward, upsample, softmax, ``.cpu()``, ``np.save`` of (H, W, C) bytes, one after another.

On a CPU whose cores the forward pass keeps busy anyway, the CPU seconds say the same as the clock, and say it too
where others use the machine.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from endauda_cli.archive import stored_bytes
from endauda_cli.config import ExportConfig, InferenceConfig
from endauda_cli.datasets import Sample
from endauda_cli.demo.street import TARGET_LOOK, draw_scene, paint
from endauda_cli.distributed import pick_device
from endauda_cli.domains import CITYSCAPES, GTA5, make_task
from endauda_cli.evaluation import Scoring, evaluate
from endauda_cli.exporting import export_network
from endauda_cli.inference import load
from endauda_cli.models import build_student, build_teacher
from endauda_cli.options import parse_size
from endauda_cli.progress import silent
from endauda_cli.segmenter import Procedure, Segmenter, run_passes
from endauda_cli.teachers import TEACHERS, Teacher
from endauda_cli.transforms import Preprocessing
from endauda_cli.types import Codec

POOL = 16
ID_OF = {CITYSCAPES.train_id(i): i for i in sorted(CITYSCAPES.label_ids)}

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor


def make_teacher(name: str, size: tuple[int, int]) -> Teacher:
    """A network with random weights, its preprocessing at ``size``, one pass: a pass is what is compared."""
    torch.manual_seed(0)
    network: torch.nn.Module
    if name == "student":
        network, preprocessing = build_student("deeplabv3plus", "drn", 19), Preprocessing()
        procedure = Procedure()
    else:
        spec = TEACHERS[name]
        network, preprocessing = build_teacher(spec.network, 19), spec.preprocessing
        procedure = replace(spec.procedure, scales=(1.0,), flip=False)
    return Teacher(Segmenter(network, preprocessing.resized_to(size), procedure))


class Replay(torch.nn.Module):
    """Gives outputs that are there already, in the order of the images, again and again."""

    def __init__(self, outputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.outputs, self.given = outputs, 0

    def forward(self, x: Tensor) -> Tensor:
        first, self.given = self.given, self.given + len(x)
        return torch.cat([self.outputs[i % len(self.outputs)] for i in range(first, self.given)])


def draw_images(folder: Path, count: int, size: tuple[int, int]) -> list[Sample]:
    """PNG files of street scenes, a little noisy, as photographs are, and label ids; 16 of them under many names."""
    samples = []
    table = np.array([ID_OF.get(c, 0) for c in range(256)], np.uint8)
    for i in range(count):
        image, label = folder / f"{i:04}.png", folder / f"{i:04}_truth.png"
        samples.append(Sample(f"{i:04}", image, label))
        if i >= POOL:
            for file in (image, label):
                os.link(file.with_name(file.name.replace(f"{i:04}", f"{i % POOL:04}")), file)
            continue
        rng = np.random.default_rng(i)
        scene = draw_scene(rng, 512, 256)
        picture = Image.fromarray(paint(scene, TARGET_LOOK, rng)).resize(size)
        noisy = np.asarray(picture) + rng.normal(0, 2, (size[1], size[0], 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(image)
        truth = Image.fromarray(table[scene.label])
        truth.resize(size, Image.Resampling.NEAREST).save(label)
    return samples


def forward(teacher: Teacher, inputs: Sequence[Tensor], device: torch.device, batch: int, amp: bool) -> None:
    """The network over inputs that are there; nothing is fetched."""
    network = teacher.segmenter.network
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=amp):
        for first in range(0, len(inputs), batch):
            network(torch.cat(list(inputs[first : first + batch])))
    wait_for(device)


def loop(teacher: Teacher, samples: Sequence[Sample], folder: Path, device: torch.device, amp: bool) -> None:
    """What a research script does."""
    segmenter = teacher.segmenter
    for sample in samples:
        loaded = load(sample.image, segmenter)
        inputs = [loaded.pixels[0][None].to(device)]
        with torch.inference_mode():
            with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                (logits,) = run_passes(segmenter, inputs)
            large = F.interpolate(logits, loaded.size, mode="bilinear", align_corners=True)[0]
            certainty = (large.softmax(0) * 100).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
            label = large.argmax(0).to(torch.uint8).cpu().numpy()
        np.save(folder / f"{sample.id}.npy", np.ascontiguousarray(certainty))
        Image.fromarray(label).save(folder / f"{sample.id}.png")


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def idle_share(run: Callable[[], object], device: torch.device) -> float:
    """Share of a run's time in which no kernel ran on the CUDA device."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        begin = time.perf_counter()
        run()
        wait_for(device)
        seconds = time.perf_counter() - begin
    busy: float = sum(event.self_device_time_total for event in profile.key_averages()) / 1e6
    return 1 - busy / seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="student", choices=["student", *TEACHERS])
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", default="1024x512", help="of the network's input")
    parser.add_argument("--image-size", default="2048x1024")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="+", help="some of the ways, such as forward export")
    parser.add_argument("--amp", action="store_true")
    parser.add_argument("--codec", default=ExportConfig(teacher="x").codec, choices=list(Codec))
    parser.add_argument(
        "--strength", type=float, default=1, help="factor on the logits of --network's random weights"
    )
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    size, image_size = parse_size("--size")(given.size), parse_size("--image-size")(given.image_size)
    device, task = pick_device(given.device), make_task(GTA5, CITYSCAPES)
    teacher = make_teacher(given.network, size)
    network = teacher.segmenter.network.eval().to(device)
    network = network.to(memory_format=torch.channels_last)
    teacher = replace(teacher, segmenter=replace(teacher.segmenter, network=network))
    config = ExportConfig(
        teacher="bench",
        codec=given.codec,
        inference=InferenceConfig(batch_size=given.batch_size, amp=given.amp, workers=given.workers),
    )

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "loop").mkdir()
        samples = draw_images(root, given.images, image_size)
        preprocessing = teacher.segmenter.preprocessing
        raw = [load(s.image, teacher.segmenter).pixels[0][None].to(device) for s in samples]
        inputs = [preprocessing.normalise(i).contiguous(memory_format=torch.channels_last) for i in raw]

        with torch.inference_mode():
            said = [given.strength * run_passes(teacher.segmenter, [i])[0] for i in raw]
        replayed = replace(teacher, segmenter=replace(teacher.segmenter, network=Replay(said)))

        def export(teacher: Teacher) -> None:
            shutil.rmtree(root / "archive", ignore_errors=True)
            export_network(config, task, teacher, samples, root / "archive", device, silent)

        def score(teacher: Teacher) -> None:
            scoring = Scoring(CITYSCAPES, "bench")
            evaluate(teacher.segmenter, samples, scoring, config.inference, device, silent)

        def decode() -> None:
            for sample in samples:
                load(sample.image, teacher.segmenter)

        ways: dict[str, Callable[[], None]] = {
            "forward": lambda: forward(teacher, inputs, device, given.batch_size, given.amp),
            "export": lambda: export(teacher),
            "beside": lambda: export(replayed),
            "decode": decode,
            "test": lambda: score(teacher),
            "loop": lambda: loop(teacher, samples, root / "loop", device, given.amp),
        }
        export(replayed)  # warm-up; loops are compiled
        forward(teacher, inputs[: given.batch_size], device, given.batch_size, given.amp)
        ways = {way: run for way, run in ways.items() if given.only is None or way in given.only}
        best = dict.fromkeys(ways, float("inf"))
        work = dict(best)
        for _ in range(given.rounds):
            for way, run in ways.items():
                begin, begin_work = time.perf_counter(), time.process_time()
                run()
                best[way] = min(best[way], time.perf_counter() - begin)
                work[way] = min(work[way], time.process_time() - begin_work)
        if (root / "archive").exists():
            print(f"{given.codec}: {stored_bytes(root / 'archive') / given.images / 1000:.0f} KB/image")
        print(f"{given.network}, input {size}, images {image_size}, batch {given.batch_size}, {device}, "
              f"{torch.get_num_threads()} threads, best of {given.rounds} rounds of {given.images} images")  # fmt: skip
        for way, seconds in best.items():
            print(f"{way:8} {given.images / seconds:8.3f} images/s {_ratio(best, 'forward', way)} of forward "
                  f"{_ratio(best, 'loop', way)} of loop;  CPU {work[way] / given.images:7.4f} s/image "
                  f"{_ratio(work, 'forward', way)} of forward")  # fmt: skip
        if device.type == "cuda" and "export" in ways:
            print(f"idle share of the device during export: {100 * idle_share(ways['export'], device):.1f} %")


def _ratio(seconds: dict[str, float], baseline: str, way: str) -> str:
    return f"{seconds[baseline] / seconds[way]:6.2f}" if baseline in seconds else "     -"


if __name__ == "__main__":
    main()
