"""Outputs to import, descriptions, and what lies in the files of programs."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from typing import TYPE_CHECKING

import numpy as np

from endauda_cli.outputs import Sources, read_certainty
from endauda_cli.segmenter import Procedure
from endauda_cli.teachers.descriptions import join_classes, read_description
from endauda_cli.teachers.exported import is_arithmetic, refuse_code
from endauda_cli.teachers.onnx_files import external_files
from endauda_cli.transforms import Preprocessing
from tests.fuzz.target import Target

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def read_array(data: bytes, folder: Path) -> None:
    path = folder / "a.npy"
    path.write_bytes(data)
    read_certainty(path, 3, (4, 4))


def arrays() -> Sequence[bytes]:
    softmax = np.full((4, 4, 3), 1 / 3, np.float32)
    plain, packed, several = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(plain, softmax)
    np.savez_compressed(packed, arr_0=softmax)
    np.savez(several, a=softmax, b=np.zeros(3))
    return [plain.getvalue(), packed.getvalue(), several.getvalue()]


def read_toml(data: bytes, folder: Path) -> None:
    path = folder / "d.toml"
    path.write_bytes(data)
    said = read_description(path)
    said.preprocessing(Preprocessing())
    said.procedure(Procedure())
    join_classes(path, None, ("a", "b"), said)


def tomls() -> Sequence[bytes]:
    return [
        b'classes = ["a", "b"]\nabsent = ["b"]\n[map]\na = "b"\n[passes]\nscales = [1.0]\nflip = true\n',
        b'[input]\nsize = [64, 32]\nfilter = "bilinear"\nchannels = "rgb"\ndivisor = 255\nmean = [0.4, 0.4, 0.4]\n',
        b'[input]\nstd = [0.2, 0.2, 0.2]\nmultiple_of = 32\n[output]\nkind = "logits"\nheads = [0.5, 1.0]\n',
    ]


def read_onnx(data: bytes, folder: Path) -> None:
    path = folder / "m.onnx"
    path.write_bytes(data)
    try:
        found = external_files(path)
    except ValueError:
        return
    for location in found:
        assert folder.resolve() in (folder / location).resolve().parents


def graphs() -> Sequence[bytes]:
    return [
        bytes.fromhex("0808") + b"\x3a\x1b\x2a\x19\x42\x01w\x6a\x14\x0a\x08location\x12\x08m.weight",
        b"\x08\x08\x3a\x07\x0a\x05\x2a\x03\x32\x01x",
    ]


def read_exported(data: bytes, folder: Path) -> None:
    path = folder / "p.pt2"
    path.write_bytes(data)
    try:
        refuse_code(path)
    except (ValueError, zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError, zlib.error):
        return


def packages() -> Sequence[bytes]:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("p/archive_format", "pt2")
        archive.writestr("p/models/model.json", json.dumps({"target": "torch.ops.aten.add.Tensor"}))
        archive.writestr("p/data/weights/model_weights_config.json", json.dumps({"config": {"a": {}}}))
    return [stream.getvalue()]


def read_expression(data: bytes, folder: Path) -> None:
    """What passes calls nothing but arithmetic."""
    text = data.decode(errors="replace")
    if is_arithmetic(text):
        assert "._" not in text and "lambda" not in text


def expressions() -> Sequence[bytes]:
    return [b"Add(Symbol('s0', integer=True), Integer(-1))", b"L['x'].size()[1] == 3", b"s0*2 + 1"]


def read_sources(data: bytes, folder: Path) -> None:
    (folder / "sources-1-of-1.jsonl").write_bytes(data)
    Sources(folder, "1-of-1").changed({"x": [folder / "sources-1-of-1.jsonl"]})


def records() -> Sequence[bytes]:
    return [b'{"id": "x", "files": [[3, 4, "ab"]]}\n{"id": "y", "files": []}\n']


TARGETS = (
    Target("outputs", read_array, arrays),
    Target("description", read_toml, tomls),
    Target("onnx", read_onnx, graphs),
    Target("pt2", read_exported, packages, tries=100),
    Target("pt2-sizes", read_expression, expressions),
    Target("sources", read_sources, records),
)
