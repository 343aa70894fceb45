"""The pipeline that runs networks over images: order, sizes, memory, precision, several processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from endauda_cli.archive import CertaintyReader
from endauda_cli.config import InferenceConfig
from endauda_cli.errors import ConfigError, DataError
from endauda_cli.inference import autocast, images_at_once, run_network
from endauda_cli.progress import Note, Tick, silent
from endauda_cli.segmenter import Procedure, Segmenter, certainty_maps
from endauda_cli.transforms import Preprocessing
from tests.support.command_lines import (
    CITIES,
    TRAIN,
    contents,
    make_cityscapes,
    make_workspace,
    refused,
    result_of,
    succeed,
)

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from endauda_cli.progress import Reporter

CPU = torch.device("cpu")
OWN_SIZE = Preprocessing(size=None, bgr=False, divisor=255, mean=(0.5, 0.5, 0.5))


class Small(nn.Module):
    """Three classes at half the size; runs out of memory above ``limit`` images."""

    def __init__(self, limit: int = 99, error: type[RuntimeError] = torch.OutOfMemoryError) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 3, 3, stride=2, padding=1)
        self.limit, self.error = limit, error
        self.batches: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.batches.append(tuple(images.shape))
        if len(images) > self.limit:
            raise self.error("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
        logits: Tensor = self.conv(images) * 5
        return logits


def put_images(folder: Path, sizes: list[tuple[int, int]]) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [folder / f"{i}.png" for i in range(len(sizes))]
    for path, (width, height) in zip(paths, sizes, strict=True):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return paths


def run(
    network: nn.Module, images: list[Path], report: Reporter = silent, **config: Any
) -> list[tuple[NDArray[Any], ...]]:
    segmenter = Segmenter(network, OWN_SIZE, batches=True)
    return list(run_network(segmenter, images, certainty_maps, InferenceConfig(**config), CPU, report))


def same(found: list[tuple[NDArray[Any], ...]], expected: list[tuple[NDArray[Any], ...]]) -> bool:
    return len(found) == len(expected) and all(
        np.abs(a.astype(int) - b.astype(int)).max() <= (i > 0)
        for one, other in zip(found, expected, strict=True)
        for i, (a, b) in enumerate(zip(one, other, strict=True))
    )


def test_images_of_any_size_come_in_order(tmp_path: Path) -> None:
    images = put_images(tmp_path, [(32, 24), (32, 24), (40, 24), (40, 24), (40, 24), (32, 24)])
    network = Small()
    found = run(network, images, batch_size=2)
    assert [labels.shape for labels, _ in found] == [(24, 32)] * 2 + [(24, 40)] * 3 + [(24, 32)]
    assert [(shape[0], shape[3]) for shape in network.batches] == [(2, 32), (2, 40), (1, 40), (1, 32)]
    assert same(found, run(Small(), images))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_memory_that_does_not_suffice_halves_the_batch(error: type[RuntimeError], tmp_path: Path) -> None:
    images = put_images(tmp_path, [(32, 24)] * 11)
    told: list[Tick | Note] = []
    network = Small(limit=2, error=error)
    found = run(network, images, told.append, batch_size=8)
    assert same(found, run(Small(), images))
    assert [shape[0] for shape in network.batches] == [8, 4, 2, 2, 2, 2, 2, 1]
    assert [note.level for note in told if isinstance(note, Note)] == ["warning", "warning"]
    assert "8 images of 32x24 do not fit into the memory of cpu; going on with 4 at once" in str(told[0])


GIB = 1 << 30


@pytest.mark.parametrize(
    ("asked", "kind", "free", "batches", "expected"),
    [
        (None, "cpu", 64 * GIB, True, 1),
        (None, "cuda", 139 * GIB, True, 8),
        (None, "cuda", 16 * GIB, True, 8),
        (None, "cuda", 7 * GIB, True, 3),
        (None, "cuda", GIB // 2, True, 1),
        (None, "cuda", 139 * GIB, False, 1),
        (16, "cuda", GIB // 2, False, 16),
        (3, "cpu", 0, True, 3),
    ],
)
def test_how_many_images_at_once(
    asked: int | None, kind: str, free: int, batches: bool, expected: int
) -> None:
    assert images_at_once(asked, kind, free, batches) == expected


def test_a_card_takes_what_fits_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begun with eight, images of one size together; halved without a warning, for nobody asked for eight."""
    monkeypatch.setattr("endauda_cli.inference._free_memory", lambda _: 24 * GIB)
    monkeypatch.setattr(
        "endauda_cli.inference.images_at_once",
        lambda asked, kind, free, batches: images_at_once(asked, "cuda", free, batches),
    )
    images = put_images(tmp_path, [(32, 24)] * 9 + [(40, 24)])
    told: list[Tick | Note] = []
    network = Small(limit=4)
    found = run(network, images, told.append)
    assert [shape[0] for shape in network.batches] == [8, 4, 4, 1, 1]
    assert [note.level for note in told if isinstance(note, Note)] == ["info"]
    assert same(found, run(Small(), images, batch_size=1))


def test_memory_that_a_program_runs_out_of_halves_the_batch_too(tmp_path: Path) -> None:
    from endauda_cli.teachers.outputs import Wanted
    from endauda_cli.teachers.programs import Input, Program

    network = Small(limit=2)
    found = run(
        Program(network, Input(), Wanted(tmp_path / "p.onnx")),
        put_images(tmp_path, [(32, 24)] * 4),
        batch_size=4,
    )
    # in between, the first batch once more, and each of its images alone
    assert [shape[0] for shape in network.batches] == [4, 2, 2, 1, 1, 2] and len(found) == 4


def test_memory_for_not_even_one_image_asks_for_tiles(tmp_path: Path) -> None:
    images = put_images(tmp_path, [(320, 240)])
    with pytest.raises(
        ConfigError, match=r"0\.png: one image of 320x240 does not fit .* such as --tile 160x120"
    ):
        run(Small(limit=0), images, batch_size=4)


def test_other_errors_of_a_network_are_its_own(tmp_path: Path) -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run(Broken(), put_images(tmp_path, [(32, 24)]))


def test_output_that_is_no_number_is_refused(tmp_path: Path) -> None:
    network = Small()
    with torch.no_grad():
        assert network.conv.bias is not None
        network.conv.bias[0] = float("nan")
    with pytest.raises(DataError, match=r"0\.png: the network's output is not finite"):
        run(network, put_images(tmp_path, [(32, 24)]))


def test_tiles_bound_the_input(tmp_path: Path) -> None:
    network = Small()
    ((labels, _),) = run(network, put_images(tmp_path, [(100, 70)]), tile=(32, 48))
    assert labels.shape == (70, 100)
    assert {shape[2:] for shape in network.batches} == {(32, 48)}


def test_half_precision(tmp_path: Path) -> None:
    images = put_images(tmp_path, [(64, 48)])
    ((_, half),), ((_, full),) = run(Small(), images, amp=True), run(Small(), images)
    difference = np.abs(half.astype(int) - full)
    assert 0 < difference.max() <= 5
    with autocast(CPU, False):
        assert not torch.is_autocast_enabled("cpu")


def test_images_are_decoded_no_further_ahead_than_needed(tmp_path: Path) -> None:
    """The pipeline streams: an unreadable image far behind is not met before its turn."""
    images = put_images(tmp_path, [(32, 24)] * 12)
    images[11].write_bytes(b"no image")
    results = run_network(
        Segmenter(Small(), OWN_SIZE, Procedure()), images, certainty_maps, InferenceConfig(), CPU
    )
    for _ in range(11):
        next(results)
    with pytest.raises(DataError, match=r"11\.png: truncated or not an image"):
        next(results)


# ---------------------------------------------------------------------------- on the command line


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_workspace(tmp_path_factory.mktemp("trained"))
    succeed("fuse", "--workspace", root, "--teachers", "dacs", "--threshold", "0")
    flags = ("--backbone", "tiny", "--size", "64x32", "--crop", "32x16", "--batch-size", "2")
    succeed("train", "--workspace", root, *flags, "--steps", "2", "--name", "student")
    return root / "runs/gta5/student/last.pt"


@pytest.mark.slow
def test_torchrun_splits_the_images(weights: Path, tmp_path: Path) -> None:
    make_cityscapes(tmp_path)
    succeed("export-teacher", "alone", "--weights", weights, "--workspace", tmp_path)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    words = [
        "export-teacher",
        "both",
        "--weights",
        str(weights),
        "--workspace",
        str(tmp_path),
        "--json",
        "--quiet",
    ]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "endauda_cli", *words], stdout=subprocess.PIPE, text=True,
            env=os.environ
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost",
               "MASTER_PORT": port, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=120)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0]
    result = json.loads(next(output for output in outputs if output))["result"]
    assert result["images"] == len(TRAIN)
    assert contents(tmp_path / "certainty/gta5/both") == contents(tmp_path / "certainty/gta5/alone")
    shards = [path.name for path in (tmp_path / "certainty/gta5/both").glob("*.h5")]
    assert len(shards) == 2


def test_scales_and_flip_of_exports_and_tests(weights: Path, tmp_path: Path) -> None:
    make_cityscapes(tmp_path)
    line = ("export-teacher", "mine", "--weights", weights, "--workspace", tmp_path)
    passes = ("--scales", "0.5,1", "--flip")
    archive = result_of(*line, *passes, "--split", "val")["archive"]
    with CertaintyReader(archive) as reader:
        assert (reader.attributes["scales"], reader.attributes["flip"]) == ([0.5, 1], True)
    assert "made with flip True, but this run has False" in refused(*line, "--scales", "0.5,1")
    score = ("test", "--weights", weights, "--workspace", tmp_path, "--no-save-images")
    assert result_of(*score)["miou"] != result_of(*score, *passes)["miou"]
    assert (tmp_path / CITIES).is_dir()
