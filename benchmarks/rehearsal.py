"""Full size on one machine: export, fuse and score N images of 1024x2048 with four teachers of 19 classes.

    python benchmarks/rehearsal.py FOLDER [--images 300] [--pool 24]

Every step is a command as a user types it, in a process of its own; steps that are done are not done again, so a
run that was stopped goes on. Images are street scenes drawn at 512x256, enlarged and made noisy, ``--pool`` of them,
hard-linked under N names: files of their real size and cost, of which there are few. Teachers are programs that look
at the scenes' colours on an eighth of an input of 1024x512, as published networks do, each with another view and
calibration, and cost next to nothing to run: so the figures are what the program costs beside networks.

Printed, and written to FOLDER/rehearsal.json: seconds by the clock, CPU seconds, peak memory of the largest process,
most files open at once, bytes on disk; per image too, so that two runs can be compared. CPU seconds hold where others
use the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from endauda_cli.demo.street import draw_scene
from endauda_cli.domains import CITYSCAPES

SIZE = (2048, 1024)
TEACHERS = {"north": (0.0, 6.0), "east": (0.25, 12.0), "south": (0.35, 4.0), "west": (0.5, 20.0)}
"""By name: how far its view of the colours is off, and how sure it is."""
_SAMPLE_S = 0.5


@dataclass
class Step:
    """What a command took."""

    name: str
    images: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    open_files: int
    disk_bytes: int
    status: int


class Look(torch.nn.Module):
    """Classes by colour, on an eighth of the input: logits are -|colour - class|^2, times how sure it is."""

    def __init__(self, off: float, sure: float, seed: int) -> None:
        super().__init__()
        colours = torch.tensor(CITYSCAPES.palette).float() / 255
        colours = colours + off * 0.3 * torch.randn(
            colours.shape, generator=torch.Generator().manual_seed(seed)
        )
        self.pool = torch.nn.AvgPool2d(8)
        self.weight = torch.nn.Parameter(6 * sure * colours[:, :, None, None])
        self.bias = torch.nn.Parameter(-3 * sure * colours.square().sum(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(self.pool(x), self.weight, self.bias)


def make(folder: Path, images: int, pool: int) -> None:
    """Images, truth, teachers, the data set's file."""
    for part in ("pool", "images", "truth", "models", "ws"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    palette = np.array(CITYSCAPES.palette, np.float32)
    for i in range(pool):
        if (folder / f"pool/{i:03}.png").exists():
            continue
        rng = np.random.default_rng(i)
        label = Image.fromarray(draw_scene(rng, 512, 256).label).resize(SIZE, Image.Resampling.NEAREST)
        label.save(folder / f"pool/{i:03}_truth.png")
        noisy = palette[np.asarray(label)] + rng.normal(0, 14, (SIZE[1], SIZE[0], 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"pool/{i:03}.png")
    for i in range(images):
        for part, ending in (("images", ""), ("truth", "_truth")):
            link = folder / f"{part}/street_{i:06}.png"
            if not link.exists():
                os.link(folder / f"pool/{i % pool:03}{ending}.png", link)
    known = f'name = "city"\nclasses = {json.dumps(list(CITYSCAPES.classes))}\n'
    train = '[train]\nimages = "images/*.png"\n'
    truth = '[val]\nimages = "images/*.png"\nlabels = "truth/*.png"\n'
    (folder / "city.toml").write_text(known + train)
    (folder / "scored.toml").write_text(known + truth)  # of its own, or fusing would score every rule
    for seed, (name, (off, sure)) in enumerate(TEACHERS.items()):
        torch.jit.trace(  # type: ignore[no-untyped-call]
            Look(off, sure, seed), torch.zeros(1, 3, 512, 1024)
        ).save(folder / f"models/{name}.pt2")
        (folder / f"models/{name}.toml").write_text(
            '[input]\nsize = [1024, 512]\ndivisor = 255\nmean = [0, 0, 0]\nstd = [1, 1, 1]\n[output]\nkind = "logits"\n'
        )


def run(name: str, images: int, folder: Path, *arguments: str) -> Step:
    """One command; its processes are looked at while it runs."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "endauda_cli", *arguments, "--workspace", str(folder / "ws")]
    process = os.posix_spawn(sys.executable, command, dict(os.environ))
    files, memory, done = [0], [0], threading.Event()

    def watch() -> None:
        while not done.wait(_SAMPLE_S):
            try:
                files.append(len(os.listdir(f"/proc/{process}/fd")))
                status = Path(f"/proc/{process}/status").read_text()
            except OSError:
                return
            memory.extend(
                1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")
            )

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, status, usage = os.wait4(process, 0)
    done.set()
    watcher.join()
    return Step(
        name, images, time.perf_counter() - began, usage.ru_utime + usage.ru_stime, max(memory), max(files),
        disk_bytes(folder / "ws"), os.waitstatus_to_exitcode(status),
    )  # fmt: skip


def disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def steps(folder: Path) -> dict[str, list[str]]:
    """By name, what is typed."""
    target = ["--target", str(folder / "city.toml")]
    names = ["--teachers", *TEACHERS]
    exports = {
        f"export {name}": ["export-teacher", name, "--program", str(folder / f"models/{name}.pt2"), *target]
        for name in TEACHERS
    }
    return exports | {
        "fuse plf": ["fuse", *names, "--rule", "plf", "--policy", "auto", "--name", "plf", *target],
        "fuse consensus": ["fuse", *names, "--rule", "consensus", "--name", "consensus", *target],
        "score": [
            *("test", "--predictions", str(folder / "ws/labels/city/consensus")),
            *("--target", str(folder / "scored.toml")),
        ],
    }


def show(found: list[Step]) -> None:
    table = Table(
        "step",
        "images",
        "s",
        "CPU s",
        "CPU s/image",
        "peak MB",
        "open files",
        "workspace MB",
        "KB/image more",
    )
    disk = 0
    for step in found:
        table.add_row(
            step.name, f"{step.images}", f"{step.seconds:.0f}", f"{step.cpu_seconds:.0f}",
            f"{step.cpu_seconds / step.images:.3f}", f"{step.peak_bytes / 1e6:.0f}", f"{step.open_files}",
            f"{step.disk_bytes / 1e6:.0f}", f"{(step.disk_bytes - disk) / step.images / 1e3:.0f}",
        )  # fmt: skip
        disk = step.disk_bytes
    Console(width=140).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--pool", type=int, default=24)
    given = parser.parse_args()
    folder, record = given.folder.resolve(), given.folder.resolve() / "rehearsal.json"
    make(folder, given.images, given.pool)
    found = [Step(**step) for step in json.loads(record.read_text())] if record.exists() else []
    for name, arguments in steps(folder).items():
        if name in {step.name for step in found}:
            continue
        step = run(name, given.images, folder, *arguments)
        if step.status:
            sys.exit(f"{name}: ended with {step.status}; run this again, it goes on from there")
        found.append(step)
        record.write_text(json.dumps([asdict(step) for step in found], indent=1))
        show(found)


if __name__ == "__main__":
    main()
