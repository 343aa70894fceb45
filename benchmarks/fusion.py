"""Every fusion rule beside a plain dense implementation of its formulas, and the whole job beside the reference's.

    python benchmarks/fusion.py                       # kernels and the whole job; minutes on two cores
    python benchmarks/fusion.py --only kernels --size 512x1024 --json
    python benchmarks/fusion.py --cores 2 --images 12 --repeats 5

Kernels: the plain implementation is what a straightforward author writes in torch from the published formulas,
whole tensors at a time (torch may use all cores given). Both have the same teachers' maps in memory, each as its own
files give them: (H, W, C) arrays of ``.npy``, class planes of archives. They take turns; the best of the repeats
counts; labels are compared pixel by pixel. Where there is a CUDA device, the torch kernels run there too, and PLF's
time is put beside the time that reading its inputs once takes at the card's measured copy bandwidth.

Whole job: processes of their own over the same images, everything in the page cache, start-up included. The
reference's job loads ``.npy`` and PNG of each teacher, fuses densely (plf, threshold 90, window 5, a given policy)
and writes the label and colour PNG; ``endauda fuse`` reads archives, does the same, and writes its report besides.

Maps are generated (see ``maps``): 4 teachers, 19 classes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import maps
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from rich.table import Table

from endauda_cli.archive import CertaintyWriter
from endauda_cli.domains import CITYSCAPES, CITYSCAPES_CLASSES
from endauda_cli.fusion.rules import Planes, Recipe, consensus, fuse_image

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

TEACHERS, CLASSES = 4, len(CITYSCAPES_CLASSES)
OWNERS = tuple(c % TEACHERS for c in range(CLASSES))
WINDOW, THRESHOLD = (5, 5), 90.0


# The plain implementations: labels (T, H, W) and certainty (T, H, W, C), bytes


def dense_plf(labels: Tensor, certainty: Tensor, recipe: Recipe) -> Tensor:
    claims = torch.zeros(CLASSES, *labels.shape[1:])
    owned = torch.zeros_like(claims)
    painted = torch.zeros(labels.shape[1:], dtype=torch.long)
    for c, t in enumerate(recipe.owners):
        here = labels[t] == c
        claims[c] = here.float()
        owned[c] = certainty[t, ..., c].float()
        painted[here] = c
    kh, kw = recipe.window
    share = F.avg_pool2d(claims[None], (kh, kw), 1, (kh // 2, kw // 2))[0]
    around = F.avg_pool2d(owned[None], (kh, kw), 1, (kh // 2, kw // 2))[0]
    clear = claims.sum(0) == 1
    label = torch.where(clear, painted, share.argmax(0))
    sure = torch.where(clear, owned.gather(0, label[None])[0], around.gather(0, label[None])[0])
    return torch.where(sure >= recipe.threshold, label, 255).to(torch.uint8)


def dense_certainty(labels: Tensor, certainty: Tensor, recipe: Recipe) -> Tensor:
    best, label = certainty.float().mean(0).max(-1)
    return torch.where(best >= recipe.threshold, label, 255).to(torch.uint8)


def dense_majority(labels: Tensor, certainty: Tensor, recipe: Recipe) -> Tensor:
    classes = torch.arange(CLASSES)[None, :, None, None]
    return (labels[:, None] == classes).sum(0).argmax(0).to(torch.uint8)


def dense_soft_label(labels: Tensor, certainty: Tensor, recipe: Recipe) -> Tensor:
    delta = torch.tensor(recipe.delta)
    calibrated = []
    for teacher in certainty:
        ranks = teacher.float().argsort(dim=-1, stable=True).argsort(dim=-1)
        calibrated.append(delta[ranks])
    best, label = torch.stack(calibrated).mean(0).max(-1)
    return torch.where(best >= recipe.threshold, label, 255).to(torch.uint8)


def dense_consensus(labels: Tensor, certainty: Tensor, recipe: Recipe) -> Tensor:
    """In NumPy, by the functions that fit the rule."""
    model = recipe.model
    assert model is not None
    given, percent = labels.flatten(1).numpy(), certainty.flatten(1, 2).numpy()
    places = consensus.places_of(*labels.shape[1:]).ravel()
    belief = consensus.believe(given, percent, model, places)  # (S, C)
    named = (percent > 0).any(0) | (given[..., None] == np.arange(CLASSES)).any(0)
    rival = named & (belief >= consensus.RIVAL * np.where(named, belief, 0).max(1, keepdims=True))
    gain = (belief * (1 + model.tables.iou) - model.tables.iou) * model.tables.weight
    label = np.where(rival, gain, -np.inf).argmax(1)
    kept = np.where(100 * belief[np.arange(len(label)), label] >= recipe.threshold, label, 255)
    return torch.from_numpy(kept.astype(np.uint8).reshape(labels.shape[1:]))


DENSE: dict[str, Callable[[Tensor, Tensor, Recipe], Tensor]] = {
    "plf": dense_plf,
    "certainty": dense_certainty,
    "majority": dense_majority,
    "soft-label": dense_soft_label,
    "consensus": dense_consensus,
}
"""What each rule is compared with."""


# Kernels


def held(planes: np.ndarray[Any, Any]) -> Planes:
    """The planes as an archive's reader hands them over: each request is an array that lies there already."""
    found: dict[tuple[int, tuple[int, ...]], Any] = {}

    def ask(t: int, classes: Any) -> Any:
        key = (t, tuple(classes))
        if key not in found:
            found[key] = np.ascontiguousarray(planes[t, list(classes)])
        return found[key]

    return ask


def best_of(repeats: int, *actions: Callable[[], Any]) -> list[tuple[float, Any]]:
    """(seconds, result) of each action, in turn within each repeat; the best counts, the first is for warming up."""
    found = [[float("inf"), action()] for action in actions]
    for _ in range(repeats):
        for place, action in zip(found, actions, strict=True):
            start = time.perf_counter()
            place[1] = action()
            place[0] = min(place[0], time.perf_counter() - start)
    return [(seconds, result) for seconds, result in found]


def kernels(labels: Any, planes: Any, repeats: int) -> dict[str, Any]:
    """Seconds of every rule, and whether both give the same labels."""
    certainty = torch.from_numpy(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)))  # (T, H, W, C)
    sampled = np.sort(planes[:, :, ::8, ::8].reshape(TEACHERS, CLASSES, -1), axis=1)
    delta = tuple(float(value) for value in sampled.mean((0, 2)))
    spread = planes[:, :, ::8, ::8].reshape(TEACHERS, CLASSES, -1).transpose(0, 2, 1)
    model = consensus.fit(labels[:, ::8, ::8].reshape(TEACHERS, -1), np.ascontiguousarray(spread), CLASSES)
    rows = {}
    for rule in DENSE:
        recipe = Recipe(CLASSES, OWNERS, WINDOW, threshold=THRESHOLD, delta=delta, model=model)
        ask = held(planes)
        (dense, expected), (fast, found) = best_of(
            repeats,
            partial(DENSE[rule], torch.from_numpy(labels), certainty, recipe),
            partial(fuse_image, rule, labels, ask, recipe),
        )
        differ = int((expected.numpy() != found.label).sum())
        rows[rule] = {"dense_s": dense, "endauda_s": fast, "times": dense / fast, "pixels_differ": differ}
        if torch.cuda.is_available():
            rows[rule] |= on_cuda(rule, labels, planes, recipe, found.label, repeats)
    return rows


def on_cuda(
    rule: str, labels: Any, planes: Any, recipe: Recipe, expected: Any, repeats: int
) -> dict[str, Any]:
    """Seconds on the card with all inputs there, and how often they could be read in that time."""
    on_card = torch.from_numpy(labels).cuda()
    everything = torch.from_numpy(planes).cuda()

    def ask(t: int, classes: Any) -> Tensor:
        if len(classes) == 1:
            return everything[t, classes[0] : classes[0] + 1]
        return everything[t, list(classes)]

    def run() -> Tensor:
        label: Tensor = fuse_image(rule, on_card, ask, recipe).label
        torch.cuda.synchronize()
        return label

    ((seconds, found),) = best_of(max(10, repeats), run)
    read = labels.nbytes + (CLASSES if rule == "plf" else CLASSES * TEACHERS) * labels[0].nbytes
    if rule == "majority":
        read = labels.nbytes
    return {
        "cuda_s": seconds,
        "cuda_times_reading": seconds / (read / copy_bandwidth()),
        "cuda_pixels_differ": int((found.cpu().numpy() != expected).sum()),
    }


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of a copy within the card."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        torch.cuda.synchronize()

    ((seconds, _),) = best_of(10, copy)
    return 2 * source.numel() / seconds


# The whole job


def reference_job(folder: Path, out: Path) -> None:
    """What the reference does image by image, in this process."""
    out.mkdir()
    recipe = Recipe(CLASSES, OWNERS, WINDOW, threshold=THRESHOLD)
    palette = np.zeros((256, 3), np.uint8)
    palette[:CLASSES] = CITYSCAPES.palette
    for path in sorted((folder / "teacher0").glob("*.png")):
        labels, certainties = [], []
        for t in range(TEACHERS):
            teacher = folder / f"teacher{t}"
            labels.append(np.asarray(Image.open(teacher / path.name)))
            certainties.append(np.load(teacher / f"{path.stem}.npy"))
        stacked = torch.from_numpy(np.stack(labels)), torch.from_numpy(np.stack(certainties))
        image = Image.fromarray(dense_plf(*stacked, recipe).numpy())
        image.save(out / path.name)
        image.putpalette(palette.tobytes())
        image.save(out / f"{path.stem}_color.png")


def make_inputs(root: Path, size: tuple[int, int], images: int, say: Callable[[str], None]) -> None:
    """The teachers' outputs, once as the reference lays them out, once as archives in a workspace."""
    for t in range(TEACHERS):
        folder = root / "outputs" / f"teacher{t}"
        folder.mkdir(parents=True)
        archive = root / "workspace/certainty/gta5" / f"teacher{t}"
        with CertaintyWriter(archive, classes=CITYSCAPES_CLASSES) as writer:
            for i in range(images):
                say(f"generating image {i + 1}/{images} of teacher {t + 1}/{TEACHERS}")
                label, certainty = maps.generate(*size, CLASSES, image=i, teacher=t)
                np.save(folder / f"{i:06}.npy", certainty.transpose(1, 2, 0))
                Image.fromarray(label).save(folder / f"{i:06}.png")
                writer.write(f"{i:06}", label, certainty)
    pairs = [[c, t] for c, t in enumerate(OWNERS)]
    (root / "policy.json").write_text(json.dumps(pairs))


MEASURED = """
import atexit, os, runpy, sys
def tell():
    lines = open("/proc/self/status").read().splitlines()
    peak = next(line.split()[1] for line in lines if line.startswith("VmHWM"))
    open(sys.argv[-1], "w").write(peak)
figures = sys.argv.pop(1)
atexit.register(lambda: (sys.argv.append(figures), tell()))
del sys.argv[0]
kind, name = sys.argv[0].split(":", 1)
sys.path.insert(0, os.path.dirname(name) if kind == "path" else os.getcwd())
(runpy.run_path if kind == "path" else runpy.run_module)(name, run_name="__main__")
"""
"""A program that runs another in its own process and then tells its peak memory. (What ``wait`` tells counts the
parent's too.)"""


def process(words: list[str], environment: dict[str, str]) -> dict[str, float]:
    """Wall and processor seconds, and peak MB, of a process that must end well."""
    with tempfile.NamedTemporaryFile() as figures:
        start = time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, "-c", MEASURED, figures.name, *words],
            env=os.environ | environment,
            stdout=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise SystemExit(f"{' '.join(words)}: exit code {child.returncode}")
        peak = float(Path(figures.name).read_text()) * 1024 / 1e6
    return {"seconds": seconds, "cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_mb": peak}


def whole_job(
    inputs: Path | None,
    size: tuple[int, int],
    images: int,
    cores: int,
    repeats: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        folder, root = inputs or Path(temporary) / "inputs", Path(temporary)
        if not (folder / "policy.json").exists():
            make_inputs(folder, size, images, say)
        for name in ("outputs", "workspace", "policy.json"):
            (root / name).symlink_to((folder / name).resolve())
        for path in folder.rglob("*"):  # into the page cache
            if path.is_file():
                path.read_bytes()
        here = str(Path(__file__).resolve())
        found: dict[str, list[dict[str, float]]] = {"reference": [], "endauda": []}
        for n in range(repeats):
            say(f"whole job, repeat {n + 1}/{repeats}")
            words = [f"path:{here}", "--reference-job", str(root / "outputs"), str(root / f"reference{n}")]
            found["reference"].append(process(words, {"OMP_NUM_THREADS": str(cores)}))
            shutil.rmtree(root / f"workspace/Warehouse/Cityscapes/data/gtFine/it{n}", ignore_errors=True)
            words = ["module:endauda_cli", "fuse", "--quiet", "--workspace", str(root / "workspace")]
            words += ["--policy", str(root / "policy.json"), "--name", f"it{n}", "--workers", str(cores)]
            found["endauda"].append(process(words, {}))
        made = root / "workspace/Warehouse/Cityscapes/data/gtFine/it0"
        images = len(list((root / "outputs/teacher0").glob("*.png")))
        differ = 0
        for path in sorted((root / "reference0").glob("*.png")):
            pictures = [np.asarray(Image.open(p).convert("RGB")) for p in (path, made / path.name)]
            differ += int((pictures[0] != pictures[1]).any(-1).sum())
    result: dict[str, Any] = {}
    for name, runs in found.items():
        best = {key: min(run[key] for run in runs) for key in ("seconds", "cpu_seconds")}
        peak = max(run["peak_mb"] for run in runs)
        result[name] = best | {"s_per_image": best["seconds"] / images, "peak_mb": peak}
    times = result["reference"]["seconds"] / result["endauda"]["seconds"]
    return result | {"images": images, "times": times, "pixels_differ": differ}


# The command line


def show(result: dict[str, Any]) -> None:
    console = Console(width=110)
    if "kernels" in result:
        table = Table(
            "rule", "dense ms", "endauda ms", "times", "pixels that differ", "CUDA ms", "x reading once"
        )
        for rule, row in result["kernels"].items():
            table.add_row(
                rule,
                f"{1e3 * row['dense_s']:.0f}",
                f"{1e3 * row['endauda_s']:.1f}",
                f"{row['times']:.1f}",
                str(row["pixels_differ"]),
                f"{1e3 * row['cuda_s']:.2f}" if "cuda_s" in row else "",
                f"{row['cuda_times_reading']:.1f}" if "cuda_s" in row else "",
            )
        console.print(table)
    if "whole_job" in result:
        job = result["whole_job"]
        table = Table("whole job", "s per image", "processor s per image", "peak MB", "times")
        for name in ("reference", "endauda"):
            times = f"{job['times']:.1f}" if name == "endauda" else ""
            cpu = job[name]["cpu_seconds"] / job["images"]
            cells = f"{job[name]['s_per_image']:.3f}", f"{cpu:.3f}", f"{job[name]['peak_mb']:.0f}", times
            table.add_row(name, *cells)
        console.print(table)
        console.print(f"{job['images']} images, start-up included; {job['pixels_differ']} pixels differ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--size", default="1024x2048", help="HEIGHTxWIDTH")
    parser.add_argument("--images", type=int, default=12, help="of the whole job")
    parser.add_argument(
        "--inputs", type=Path, help="folder to keep the whole job's inputs in, for another run"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--only", choices=["kernels", "job"])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--reference-job", nargs=2, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.reference_job:
        reference_job(*given.reference_job)
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])
    torch.set_num_threads(given.cores)
    height, width = (int(part) for part in given.size.split("x"))
    errors = Console(stderr=True)

    def say(text: str) -> None:
        errors.print(text, style="dim")

    result: dict[str, Any] = {
        "size": [height, width], "classes": CLASSES, "teachers": TEACHERS, "cores": given.cores,
        "machine": platform.processor() or platform.machine(), "torch": torch.__version__,
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }  # fmt: skip
    if given.only != "job":
        say("generating an image of each teacher")
        made = [maps.generate(height, width, CLASSES, image=0, teacher=t) for t in range(TEACHERS)]
        labels, planes = (np.stack(arrays) for arrays in zip(*made, strict=True))
        result["kernels"] = kernels(labels, planes, given.repeats)
    if given.only != "kernels":
        result["whole_job"] = whole_job(
            given.inputs, (height, width), given.images, given.cores, given.repeats, say
        )
    if given.json:
        print(json.dumps(result, indent=1))
    else:
        show(result)


if __name__ == "__main__":
    main()
