"""Command lines run in this process, and a workspace with the usual tree for them to run in.

The world is made of real files: 64x32 street scenes of five classes, Cityscapes' own folders and label ids,
and teachers that err in their own ways and tell how certain they are.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from endauda_cli.archive import CertaintyReader, CertaintyWriter
from endauda_cli.cli import main
from endauda_cli.domains import CITYSCAPES, CITYSCAPES_CLASSES, CITYSCAPES_LABEL_IDS

UInt8 = NDArray[np.uint8]

CITIES = Path("Warehouse/Cityscapes/data")
HEIGHT, WIDTH = 32, 64
TRAIN = tuple(f"aachen_{i:06}_000019_leftImg8bit" for i in range(3)) + tuple(
    f"bremen_{i:06}_000019_leftImg8bit" for i in range(2)
)
VAL = tuple(f"lindau_{i:06}_000019_leftImg8bit" for i in range(2))
TEACHERS = ("dacs", "crst", "cbst")
SIZE_FLAGS = ("--backbone", "tiny", "--size", "64x32", "--crop", "32x16", "--batch-size", "2")


@dataclass(frozen=True)
class Outcome:
    """What a command line came to."""

    code: int
    out: str
    err: str

    @property
    def result(self) -> Any:
        """Of ``--json``."""
        return json.loads(self.out)["result"]

    @property
    def error(self) -> Any:
        """Of ``--json``: kind and message."""
        return json.loads(self.out)["error"]


def endauda(*words: str | Path) -> Outcome:
    """Run a command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return Outcome(code, out.getvalue(), err.getvalue())


def succeed(*words: str | Path) -> Outcome:
    """Run a command line that must end well."""
    outcome = endauda(*words)
    assert outcome.code == 0, outcome.err
    return outcome


def result_of(*words: str | Path) -> Any:
    """The ``--json`` result of a command line that must end well."""
    return succeed(*words, "--json", "--quiet").result


def refused(*words: str | Path) -> str:
    """The sentence that a command line is refused with: exit 1, one line on stderr, nothing on stdout."""
    outcome = endauda(*words, "--quiet")
    lines = [line for line in outcome.err.splitlines() if not line.startswith("warning: ")]
    assert (outcome.code, outcome.out, len(lines)) == (1, "", 1), outcome
    assert lines[0].startswith("endauda: ")
    return lines[0].removeprefix("endauda: ")


def shell(*words: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command line in a process of its own, without a terminal."""
    return subprocess.run(
        [sys.executable, "-m", "endauda_cli", *map(str, words)],
        cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def broken_module(folder: Path, name: str, error: str) -> None:
    """A package whose import raises that error, for processes that find the folder first."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(f"raise {error}\n")


# ---------------------------------------------------------------------------- the world


def scene(seed: int) -> UInt8:
    """(H, W) uint8 Cityscapes train ids: sky, buildings, a road, two cars, a tree."""
    rng = np.random.default_rng(seed)
    truth = np.full((HEIGHT, WIDTH), CITYSCAPES_CLASSES.index("building"), np.uint8)
    truth[: rng.integers(6, 10)] = CITYSCAPES_CLASSES.index("sky")
    truth[rng.integers(18, 22) :] = CITYSCAPES_CLASSES.index("road")
    for name, top, size in (("car", 16, 8), ("car", 20, 6), ("vegetation", 8, 10)):
        left = int(rng.integers(0, WIDTH - size))
        truth[top : top + size, left : left + size] = CITYSCAPES_CLASSES.index(name)
    return truth


def seed_of(image: str) -> int:
    return [*TRAIN, *VAL].index(image)


def put_image(path: Path, truth: UInt8, seed: int) -> None:
    """An RGB photograph of the scene: the classes' colours under some noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(-20, 20, (*truth.shape, 3))
    colours = np.array(CITYSCAPES.palette)[truth]
    Image.fromarray((colours + noise).clip(0, 255).astype(np.uint8)).save(path)


def put_label(path: Path, label: UInt8) -> None:
    """A grey PNG of exactly these values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(label).save(path)


def read_png(path: Path) -> UInt8:
    with Image.open(path) as image:
        return np.asarray(image)


def make_cityscapes(root: Path) -> Path:
    """The target's images, and its labels for val, where users of the reference have them."""
    ids_of = {
        CITYSCAPES_CLASSES.index(n): i for i, n in CITYSCAPES_LABEL_IDS.items() if n in CITYSCAPES_CLASSES
    }
    table = np.array([ids_of[c] for c in range(len(CITYSCAPES_CLASSES))], np.uint8)
    for split, images in (("train", TRAIN), ("val", VAL)):
        for image in images:
            truth, city = scene(seed_of(image)), image.partition("_")[0]
            put_image(root / CITIES / "leftImg8bit" / split / city / f"{image}.png", truth, seed_of(image))
            if split == "val":
                stem = image.replace("leftImg8bit", "gtFine_labelIds")
                put_label(root / CITIES / "gtFine" / split / city / f"{stem}.png", table[truth])
    return root


def opinion(teacher: str, truth: UInt8, seed: int, num_classes: int = 19) -> tuple[UInt8, UInt8]:
    """What a teacher says of a scene: (H, W) train ids and (H, W, C) percent.

    ``dacs`` knows cars, ``crst`` buildings and sky, ``cbst`` everything else, each surely; elsewhere they
    mistake a third of the pixels, in blocks, and are nearly as sure.
    """
    rng = np.random.default_rng([seed, sum(teacher.encode())])
    knows = {"dacs": ("car",), "crst": ("building", "sky")}.get(teacher, ("road", "vegetation"))
    good = np.isin(truth, [CITYSCAPES_CLASSES.index(name) for name in knows])
    blocks = rng.random((truth.shape[0] // 4, truth.shape[1] // 4)).repeat(4, 0).repeat(4, 1)
    wrong = ~good & (blocks < 0.33)
    label = np.where(wrong, rng.integers(0, num_classes), truth % num_classes).astype(np.uint8)
    sure = np.where(good, rng.integers(92, 99, truth.shape), rng.integers(60, 96, truth.shape))
    certainty = np.zeros((*truth.shape, num_classes), np.uint8)
    np.put_along_axis(certainty, ((label + 1) % num_classes)[..., None], (100 - sure)[..., None], 2)
    np.put_along_axis(certainty, label[..., None], sure[..., None], 2)
    return label, certainty


def put_outputs(folder: Path, teacher: str, images: tuple[str, ...], kind: str = "npy") -> Path:
    """The teacher's outputs as its own code would leave them: PNGs with ``.npy`` or ``.npz``."""
    folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        label, certainty = opinion(teacher, scene(seed_of(image)), seed_of(image))
        put_label(folder / f"{image}.png", label)
        if kind == "npy":
            np.save(folder / f"{image}.npy", certainty)
        else:
            np.savez_compressed(folder / f"{image}.npz", arr_0=certainty)
    return folder


def make_archive(root: Path, teacher: str, images: tuple[str, ...], source: str = "gta5") -> Path:
    """The teacher's archive, without the detour over files."""
    folder = root / "certainty" / source / teacher
    with CertaintyWriter(folder, classes=CITYSCAPES_CLASSES, attributes={"teacher": teacher}) as writer:
        for image in images:
            label, certainty = opinion(teacher, scene(seed_of(image)), seed_of(image))
            writer.write(image, label, np.ascontiguousarray(certainty.transpose(2, 0, 1)))
    return folder


def make_workspace(root: Path) -> Path:
    """Cityscapes and three archives of both its splits."""
    make_cityscapes(root)
    for teacher in TEACHERS:
        make_archive(root, teacher, TRAIN + VAL)
    return root


def contents(archive: Path) -> dict[str, tuple[bytes, bytes]]:
    """Everything an archive says, by image."""
    with CertaintyReader(archive) as reader:
        return {id: (reader.labels(id).tobytes(), reader.certainty(id).tobytes()) for id in reader.ids}


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def without_superpowers() -> list[str]:
    """What to put before a command so that permissions hold for root, too."""
    if sys.platform == "win32":
        pytest.skip("permissions of another kind")
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root may read everything")
    return ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
