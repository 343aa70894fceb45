"""The door for files of weights: nothing runs, nothing that a file claims is believed, what it is is told."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import resource
import socket
import tarfile
import time
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from endauda_cli import checkpoint
from endauda_cli.errors import CheckpointError
from endauda_cli.models import read_state_dict
from endauda_cli.models.compat import peeled
from endauda_cli.models.reading import read_content
from endauda_cli.teachers import open_teacher

if TYPE_CHECKING:
    from pathlib import Path

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_content(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message.removeprefix(f"{path}: ")


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "module.module.",
        "model.",
        "model._orig_mod.",
    ],
)
@pytest.mark.parametrize("wrappers", [(), ("state_dict",), ("model", "state_dict"), ("model_state_dict",)])
def test_common_wrappings_are_peeled_and_told(prefix: str, wrappers: tuple[str, ...], tmp_path: Path) -> None:
    content: dict[str, Any] = {prefix + key: value for key, value in STATE.items()}
    for name in reversed(wrappers):
        content = {"epoch": 1, name: content}
    torch.save(content, tmp_path / "x.pth")
    found = read_state_dict(tmp_path / "x.pth")
    assert found.keys() == STATE.keys() and torch.equal(found["a.weight"], STATE["a.weight"])
    told = peeled(tmp_path / "x.pth", content)
    if prefix != "module.":
        assert told is not None and repr(prefix) in told
    elif len(wrappers) < 2:  # what files of this kind always were
        assert told is None


@pytest.mark.parametrize("old", [True, False])
def test_formats_that_torch_reads(old: bool, tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "x.pth", _use_new_zipfile_serialization=not old)
    assert read_state_dict(tmp_path / "x.pth").keys() == STATE.keys()
    pytest.importorskip("safetensors.torch").save_file(STATE, tmp_path / "x.safetensors")
    assert read_state_dict(tmp_path / "x.safetensors").keys() == STATE.keys()


def test_gigabytes_of_nothing_are_refused_at_once(tmp_path: Path) -> None:
    with (tmp_path / "x.pth").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="damaged, cut short or no PyTorch checkpoint"):
        read_content(tmp_path / "x.pth")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "value",
    [*(np.dtype(code).type(1) for code in "?bBhHiIlLqQefdFD"), np.arange(3), np.float64(0.5)],
    ids=lambda value: type(value).__name__ + str(value.dtype),
)
def test_numbers_of_numpy_are_data(value: object, zipped: bool, tmp_path: Path) -> None:
    torch.save(
        {"state_dict": STATE, "best": value}, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped
    )
    assert read_state_dict(tmp_path / "x.pth").keys() == STATE.keys()


def test_npz_is_read(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {key: value.numpy() for key, value in STATE.items()}
    np.savez(tmp_path / "x.npz", **arrays)
    assert torch.equal(read_state_dict(tmp_path / "x.npz")["a.weight"], STATE["a.weight"])
    np.savez(tmp_path / "y.npz", a=np.array([{}], dtype=object))
    assert refusal(tmp_path / "y.npz").startswith("NumPy arrays that cannot be read as tensors")


def test_intact_files_of_other_kinds_are_called_what_they_are(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(STATE, buffer)
    saved = buffer.getvalue()
    (tmp_path / "x.pth.tar").write_bytes(saved)  # ImageNet's example calls them so
    assert read_state_dict(tmp_path / "x.pth.tar").keys() == STATE.keys()
    (tmp_path / "x.pth.gz").write_bytes(gzip.compress(saved))
    assert refusal(tmp_path / "x.pth.gz").startswith("is packed with gzip; unpack it with gunzip")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("run/best.pth", saved)
    assert "a zip archive of 'run/best.pth', not a checkpoint; unpack it" in refusal(tmp_path / "x.zip")
    with tarfile.open(tmp_path / "real.pth.tar", "w") as tar:
        tar.add(tmp_path / "x.pth.tar", "best.pth")
    assert refusal(tmp_path / "real.pth.tar").startswith(
        "is a tar archive, not a checkpoint; unpack it with tar"
    )
    with (tmp_path / "x.pkl").open("wb") as file:
        pickle.dump({key: value.numpy() for key, value in STATE.items()}, file)
    assert "is a bare pickle" in refusal(tmp_path / "x.pkl") or "beside tensors" in refusal(
        tmp_path / "x.pkl"
    )
    (tmp_path / "x.onnx").write_bytes(b"\x08\x07\x12\x07pytorch")
    assert refusal(tmp_path / "x.onnx").startswith("is an ONNX program, not weights; run it with --program")


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "socket"])
def test_only_regular_files_are_read(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.pth"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as opened:
            monkeypatch.chdir(tmp_path)  # such paths are short
            opened.bind(path.name)
    assert refusal(path).startswith("cannot be read (")
    if kind != "folder":
        with pytest.raises(CheckpointError, match="cannot be read"):
            checkpoint.sha256(path)


def test_what_claims_to_unpack_to_gigabytes_is_not_unpacked(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "plain.pth")
    path, zeros = tmp_path / "x.pth", bytes(1 << 20)
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name in plain.namelist():
            archive.writestr(name, plain.read(name))
        with archive.open("plain/data/9", "w") as member:
            for _ in range(400):
                member.write(zeros)
    before, began = peak_mb(), time.monotonic()
    message = refusal(path)
    assert "that claim to hold 419" in message.replace(",", "") and "torch packs nothing" in message
    assert peak_mb() - before < 100 and time.monotonic() - began < 2


def test_packed_again_is_read(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name in plain.namelist():
            archive.writestr(name, plain.read(name))
    assert read_state_dict(tmp_path / "x.pth").keys() == STATE.keys()


def test_zip_of_very_many_members_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(70_000):
            archive.writestr(zipfile.ZipInfo(f"x/data/{number}"), b"")
    began = time.monotonic()
    assert "a checkpoint has at most 20,000" in refusal(path)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("zipped", [True, False])
def test_bytes_that_a_pickle_asks_for(zipped: bool, tmp_path: Path) -> None:
    class Many:
        def __reduce__(self) -> tuple[object, tuple[int]]:
            return bytearray, (400 << 20,)

    torch.save({**STATE, "x": Many()}, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    before = peak_mb()
    assert refusal(tmp_path / "x.pth").startswith("holds a bytearray beside tensors")
    assert peak_mb() - before < 100


@pytest.mark.parametrize("name", ["x.pt2", "x.pth", "x.bin"])
def test_a_program_named_as_weights_is_not_opened(name: str, tmp_path: Path) -> None:
    class Twice(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    path = tmp_path / name
    exported = torch.export.export(Twice(), (torch.zeros(1, 3, 8, 8),))
    torch.export.save(exported, tmp_path / "whole.pt2")
    (tmp_path / "whole.pt2").rename(path)
    (tmp_path / "x.toml").write_text("[input]\nmean = [0, 0, 0]\nstd = [1, 1, 1]\n")
    with pytest.raises(CheckpointError, match=r"is a .*program.*--program"):
        open_teacher(path, ("a", "b"))
    with pytest.raises(CheckpointError, match=r"is a torch\.export program, not weights"):
        checkpoint.load_student(path, ("a", "b"))


@pytest.mark.parametrize(
    "meta",
    [
        {"classes": 5},
        {"classes": [1, 2]},
        {"classes": ["x" * 20_000, "y"]},
        {"classes": []},
        {"arch": ["deeplabv2"]},
        {"arch": "other"},
        {"backbone": 3},
        {"size": 7},
        {"size": [0, 10]},
        {"size": [10**30, 10]},
        {"size": [torch.zeros(1), 10]},
        {"target": ["x"]},
        {"source": None},
        {"data": []},
        {"step": -1},
        {"step": "x"},
        {"best_miou": "x"},
    ],
)
def test_meta_of_other_types(meta: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    torch.save({"format": 1, "weights": STATE, "meta": meta}, path)
    for read in (
        checkpoint.load,
        checkpoint.read_meta,
        lambda path: checkpoint.load_student(path, ("a", "b")),
        lambda path: open_teacher(path, ("a", "b")),
    ):
        with pytest.raises(CheckpointError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: 'meta' says ") and len(str(caught.value)) < 500
