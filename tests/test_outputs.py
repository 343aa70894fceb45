"""Outputs that a teacher's own code wrote: arrays read with a bound, held to their labels, and known again."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from endauda_cli.errors import DataError
from endauda_cli.outputs import Sources, agreement, likely_cause, read_certainty
from tests.support.command_lines import TRAIN, VAL, make_cityscapes, put_outputs, refused, result_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

SIZE = (6, 8)


def softmax(classes: int = 3, size: tuple[int, int] = SIZE) -> NDArray[np.float32]:
    values = np.random.default_rng(0).random((*size, classes)).astype(np.float32) + 0.1
    return np.asarray(values / values.sum(2, keepdims=True))


def npy(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4", ">f8"])
@pytest.mark.parametrize("kind", ["npy", "npz", "fortran", "leading axis", "percent"])
def test_arrays_of_all_kinds(dtype: str, kind: str, tmp_path: Path) -> None:
    array = softmax().astype(dtype)
    expected = (array.astype(np.float32) * 100).transpose(2, 0, 1)
    path = tmp_path / ("a.npz" if kind == "npz" else "a.npy")
    if kind == "npz":
        np.savez_compressed(path, some_key=array)
    elif kind == "fortran":
        np.save(path, np.asfortranarray(array))
    elif kind == "leading axis":
        np.save(path, array[None])
    else:
        np.save(path, array * np.asarray(100, dtype) if kind == "percent" else array)
    assert np.abs(read_certainty(path, 3, SIZE) - expected).max() <= 1.1


def test_foreign_members_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, image=np.zeros((*SIZE, 4)), softmax=softmax(), score=np.float32(1))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("readme.txt", "x")
    assert read_certainty(path, 3, SIZE).shape == (3, *SIZE)
    np.savez(path, one=softmax(), two=softmax())
    with pytest.raises(DataError, match="holds arrays one, two, but one is expected, several"):
        read_certainty(path, 3, SIZE)


def test_noise_below_zero_is_no_logit(tmp_path: Path) -> None:
    array = softmax()
    array[0, 0] = (-1e-7, 0.5, 0.5)
    np.save(tmp_path / "a.npy", array)
    assert read_certainty(tmp_path / "a.npy", 3, SIZE)[0, 0, 0] == 0


def test_what_would_take_memory_is_not_read(tmp_path: Path) -> None:
    """A few kB that unpack to gigabytes: the header tells."""
    header = npy(np.zeros(0, np.uint8))[:128].replace(b"(0,), ", b"(9999999999, 3), ")
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", header + bytes(50_000_000))
    with pytest.raises(DataError, match=r"certainties of shape|not a NumPy file"):
        read_certainty(tmp_path / "a.npz", 3, SIZE)


def test_objects_and_pipes_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(DataError, match="holds pickled objects"):
        read_certainty(tmp_path / "a.npy", 3, SIZE)
    os.mkfifo(tmp_path / "b.npy")
    with pytest.raises(DataError, match="a named pipe"):
        read_certainty(tmp_path / "b.npy", 3, SIZE)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a * 0.5, "a sigmoid of each class is no softmax"),
        (lambda a: a * 40, "write the softmax over the classes"),
        (lambda a: a - 5, "are these logits"),
    ],
)
def test_advice_for_values_that_do_not_sum_to_one(
    change: Callable[[NDArray[np.float32]], NDArray[np.float32]], said: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "a.npy", change(softmax()))
    with pytest.raises(DataError, match=said) as caught:
        read_certainty(tmp_path / "a.npy", 3, SIZE)
    assert ("logits" in str(caught.value)) == ("logits" in said)


WAYS: dict[str, tuple[Callable[[NDArray[np.uint8]], NDArray[np.uint8]], str]] = {
    "shifted": (lambda q: np.roll(q, -1, 0), "the class axis is shifted by one, the first class missing"),
    "shifted back": (lambda q: np.roll(q, 1, 0), "the class axis is shifted by one, as if there were"),
    "reversed": (lambda q: q[::-1], "the class axis is reversed"),
    "mirrored": (lambda q: q[:, :, ::-1], "mirrored left to right"),
    "upside down": (lambda q: q[:, ::-1], "upside down"),
    "swapped": (lambda q: q.transpose(0, 2, 1), "width and height are swapped"),
}


@pytest.mark.parametrize("way", WAYS)
def test_cause_of_a_contradiction(way: str) -> None:
    certainty = (softmax(5, (16, 16)).transpose(2, 0, 1) * 100).astype(np.uint8)
    label = certainty.argmax(0).astype(np.uint8)
    label[0] = 255
    assert agreement(label, certainty) == (15 * 16, 15 * 16)
    change, said = WAYS[way]
    assert agreement(label, change(certainty))[0] < 0.9 * 15 * 16
    assert (likely_cause(label, change(certainty)) or "").startswith(said)


@pytest.mark.slow
def test_labels_that_contradict_their_certainties_are_refused(tmp_path: Path) -> None:
    make_cityscapes(tmp_path)
    folder = put_outputs(tmp_path / "outputs", "dacs", TRAIN)
    for path in folder.glob("*.npy"):
        np.save(path, np.load(path)[:, ::-1])
    line = ("export-teacher", "dacs", "--import", folder, "--workspace", tmp_path)
    found = refused(*line)
    assert (
        "the label map beside it gives the likeliest class on" in found and "mirrored left to right" in found
    )


@pytest.mark.slow
def test_outputs_and_images_written_anew(tmp_path: Path) -> None:
    make_cityscapes(tmp_path)
    folder = put_outputs(tmp_path / "outputs", "dacs", VAL)
    line = ("export-teacher", "dacs", "--import", folder, "--split", "val", "--workspace", tmp_path)
    result_of(*line)
    assert result_of(*line)["skipped"] == len(VAL)
    for path in folder.iterdir():
        os.utime(path)  # another time is no other content
    assert result_of(*line)["skipped"] == len(VAL)
    path = folder / f"{VAL[0]}.npy"
    np.save(path, np.load(path) // 2)
    found = refused(*line)
    assert "1 of its images were made of files that changed since" in found and "remove the archive" in found


def test_records_of_sources_that_are_damaged(tmp_path: Path) -> None:
    sources = Sources(tmp_path, "1-of-1")
    (tmp_path / "x").write_bytes(b"1")
    sources.add(sources.line("x", [tmp_path / "x"]))
    assert sources.changed({"x": [tmp_path / "x"]}) == []
    (tmp_path / "x").write_bytes(b"22")
    assert sources.changed({"x": [tmp_path / "x"]}) == ["x"]
    (tmp_path / "sources-1-of-1.jsonl").write_text('[]\n{"id": "x", "files": [1]}\n{"id": 3}\n\x00{')
    assert sources.changed({"x": [tmp_path / "x"]}) == []


@pytest.mark.slow
def test_two_imports_of_one_name_at_once(tmp_path: Path) -> None:
    """One is right, the other is told; the archive is never of both."""
    make_cityscapes(tmp_path)
    folders = [put_outputs(tmp_path / name, "dacs", TRAIN) for name in "ab"]
    for path in folders[1].glob("*.npy"):
        np.save(path, np.load(path) // 2)
    words = [
        sys.executable,
        "-m",
        "endauda_cli",
        "export-teacher",
        "x",
        "--workspace",
        str(tmp_path),
        "--import",
    ]
    both = [
        subprocess.Popen([*words, str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for folder in folders
    ]
    said = [process.communicate(timeout=100)[1] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 1]
    assert "files that changed since" in said[codes.index(1)] or "another process" in said[codes.index(1)]
