"""Programs: which outputs count, whether they say the same twice, and what is in their files."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from endauda_cli.checkpoint import files_sha256
from endauda_cli.errors import CheckpointError, ConfigError
from endauda_cli.teachers import open_teacher
from endauda_cli.teachers.exported import is_arithmetic, refuse_code
from endauda_cli.teachers.onnx_files import external_files
from endauda_cli.teachers.outputs import Wanted
from endauda_cli.teachers.programs import Input, Program, input_of, program_files
from tests.test_programs import IMAGENET, maps, save_exported, save_script

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGES = torch.rand(3, 3, 8, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
PATH = Path("p.onnx")


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def logits(images: Tensor) -> Tensor:
    return torch.stack([images[:, 0], images[:, 1], -images[:, 2]], 1) * 3


def program(run: Any, takes: Input | None = None, **wanted: Any) -> Program:
    return Program(run, takes or Input(), Wanted(PATH, 3, **wanted))


# ---------------------------------------------------------------------------- which outputs


@pytest.mark.parametrize(
    "pack", [lambda a, o: (a, o), lambda a, o: {"aux": a, "out": o}, lambda a, o: ([a], o)]
)
def test_one_of_several_outputs_is_not_taken_in_silence(pack: Any) -> None:
    def run(images: Tensor) -> Any:
        return pack(logits(images).flip(1), logits(images))

    with pytest.raises(
        CheckpointError, match=r"has 2 outputs that may be the labels' .*3x3x8x12.* heads = \["
    ):
        program(run)(IMAGES)
    assert len(program(run, heads=(0.0, 1.0))(IMAGES)) == 2


def test_the_only_output_of_fitting_shape_is_taken() -> None:
    def run(images: Tensor) -> Any:
        return {
            "loss": torch.tensor(1.0),
            "features": torch.rand(len(images), 64, 8, 12),
            "out": logits(images),
        }

    (found,) = program(run)(IMAGES)
    assert torch.equal(found, logits(IMAGES))


def test_one_output_for_two_classes() -> None:
    def run(images: Tensor) -> Tensor:
        return images[:, :1].sigmoid()

    with pytest.raises(
        CheckpointError, match=r"if it tells one class from another .* list these two as classes"
    ):
        Program(run, Input(), Wanted(PATH, 2, says="probabilities"))(IMAGES)
    (found,) = Program(run, Input(), Wanted(PATH, 2, says="probabilities", pair=True))(IMAGES)
    assert torch.allclose(found[:, 1:], run(IMAGES)) and torch.allclose(found.sum(1), torch.ones(3, 8, 12))


# ---------------------------------------------------------------------------- the same twice


@pytest.mark.parametrize("count", [1, 3])
def test_statistics_of_the_batch(count: int) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).train()
    with pytest.raises(CheckpointError, match="exported in training mode"):
        program(network.forward)(IMAGES[:count])
    program(network.eval().forward)(IMAGES[:count])


def test_dropout() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Dropout(0.3))
    with pytest.raises(CheckpointError, match="the same batch is run again"):
        program(network.train().forward)(IMAGES)
    program(network.eval().forward)(IMAGES)


def test_noise_of_half_precision_is_none() -> None:
    def run(images: Tensor) -> Tensor:
        return (logits(images) + torch.randn(len(images), 3, 8, 12) * 1e-3).half()

    program(run)(IMAGES)


# ---------------------------------------------------------------------------- advice


@pytest.mark.parametrize(
    ("make", "declared", "said", "unsaid"),
    [
        (lambda x: x.softmax(1) * 100, "probabilities", "divide by 100", "logits"),
        (lambda x: x.sigmoid(), "probabilities", "a sigmoid of each class is no softmax", "logits"),
        (lambda x: x.sigmoid() * 100, "probabilities", "export the network with a softmax", "logits"),
        (lambda x: x.log_softmax(1), "probabilities", "say 'logits'", "divide"),
        (lambda x: x.softmax(1), "logits", "say kind = 'probabilities'", "divide"),
        (lambda x: x.softmax(1) * 100, "logits", "divide by 100", "sigmoid"),
        (lambda x: x.sigmoid(), "logits", "as a sigmoid's do", "divide"),
        (lambda x: x, "scores", "say 'logits'", "divide"),
    ],
)
def test_advice(make: Any, declared: str, said: str, unsaid: str) -> None:
    with pytest.raises(CheckpointError, match=said) as caught:
        program(lambda images: make(logits(images)), says=declared)(IMAGES)
    assert unsaid not in str(caught.value)


def test_what_is_right_passes() -> None:
    program(lambda images: logits(images).log_softmax(1))(IMAGES)
    program(lambda images: logits(images).softmax(1) - 1e-7, says="probabilities")(IMAGES)


# ---------------------------------------------------------------------------- inputs


def test_axes_last_fixed_batch_and_none() -> None:
    def last(images: Tensor) -> Tensor:
        return logits(images.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def four(images: Tensor) -> Tensor:
        assert len(images) == 4
        return logits(images)

    takes = input_of((None, 8, 12, 3), torch.float32)
    assert (takes.last, takes.size) == (True, (12, 8))
    for run, of in (
        (last, takes),
        (four, input_of((4, 3, None, None), torch.float32)),
        (lambda image: logits(image[None])[0], input_of((3, 8, 12), torch.float32)),
    ):
        found = Program(run, of, Wanted(PATH, 3, last=of.last))(IMAGES)
        assert torch.allclose(found[0], logits(IMAGES))
    with pytest.raises(ValueError, match="it takes an input of shape"):
        input_of((1, 4, 8, 8), torch.float32)


def test_programs_of_bytes() -> None:
    takes = input_of((None, 3, 8, 12), torch.uint8)
    with pytest.raises(CheckpointError, match=r"say divisor = 1, mean = \[0, 0, 0\]"):
        Program(lambda x: logits(x.float()), takes, Wanted(PATH, 3))(IMAGES)
    pixels = (IMAGES.abs() * 255).round()
    (found,) = Program(lambda x: logits(x.float()), takes, Wanted(PATH, 3))(pixels)
    assert torch.equal(found, logits(pixels))


# ---------------------------------------------------------------------------- files


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("ran",)


@pytest.fixture
def pt2(tmp_path: Path) -> Path:
    save_exported(nn.Conv2d(3, 2, 1), tmp_path / "p.pt2")
    (tmp_path / "p.toml").write_text(IMAGENET)
    return tmp_path / "p.pt2"


def rewrite(path: Path, change: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(members)).split("/")[0]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (members | {f"{root}/{name}": data for name, data in change.items()}).items():
            archive.writestr(name, data)


def trap() -> bytes:
    stream = io.BytesIO()
    torch.save(Trap(), stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("member", "said"),
    [
        ("data/sample_inputs/model.pt", "holds print beside tensors"),
        ("data/constants/opaque_obj_0", "neither tensors nor a graph"),
        ("data/aotinductor/model/x.so", "neither tensors nor a graph"),
        ("data/weights/model.pt", "holds print beside tensors"),
    ],
)
def test_exported_programs_that_would_run_code(
    member: str, said: str, pt2: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    refuse_code(pt2)
    rewrite(pt2, {member: trap()})
    with pytest.raises(CheckpointError, match=said):
        open_teacher(pt2, ("a", "b"), program=True)
    assert "ran" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("target", "torch.os.system"),
        ("target", "torch.ops.aten.from_file.default"),
        ("expr_str", "__import__('os').system('true')"),
        ("guards_code", "print('x')"),
        ("in_spec", '{"__enum__": true}'),
    ],
)
def test_graphs_that_would_run_code(key: str, text: str, pt2: Path) -> None:
    rewrite(pt2, {"models/model.json": json.dumps({"graph": [{key: text}]}).encode()})
    with pytest.raises(CheckpointError, match=r"cannot be opened as torch\.export: its"):
        open_teacher(pt2, ("a", "b"), program=True)


def test_arithmetic_of_sizes() -> None:
    for text in (
        "Add(FloorDiv(Add(Symbol('s0', positive=True, integer=True), Integer(-1)), Integer(2)), Integer(1))",
        "L['x'].size()[1] == 3",
        "s0*2 + 1 <= 8",
    ):
        assert is_arithmetic(text), text
    for text in (
        "x.__class__",
        "().__class__",
        "eval('x')",
        "lambda: 0",
        "[x for x in y]",
        "9**9**9",
        "f(1)",
    ):
        assert not is_arithmetic(text), text


def test_programs_are_not_opened_as_weights(pt2: Path) -> None:
    save_script(nn.Conv2d(3, 2, 1), pt2.with_suffix(".ts"))
    for path in (pt2, pt2.with_suffix(".ts")):
        with pytest.raises(CheckpointError, match="program, not weights; run it with --program"):
            open_teacher(path, ("a", "b"))


def test_broken_program_says_one_sentence(pt2: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rewrite(pt2, {"models/model.json": b"{}"})
    with pytest.raises(CheckpointError, match=r"cannot be opened as torch\.export"):
        open_teacher(pt2, ("a", "b"), program=True)
    assert capfd.readouterr().err == ""


def field(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2, len(data)]) + data


def graph_with(location: str) -> bytes:
    entry = field(13, field(1, b"location") + field(2, location.encode()))
    return b"\x08\x08" + field(7, field(5, field(8, b"w") + entry))


def test_external_data_is_part_of_the_digest(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(graph_with("m.onnx_data"))
    (tmp_path / "m.onnx_data").write_bytes(b"1")
    files = program_files(tmp_path / "m.onnx")
    assert [file.name for file in files] == ["m.onnx", "m.onnx_data"]
    before = files_sha256(files)
    (tmp_path / "m.onnx_data").write_bytes(b"2")
    assert files_sha256(files) != before
    (tmp_path / "m.onnx_data").unlink()
    with pytest.raises(CheckpointError, match=r"m\.onnx_data: cannot be read .* copy it too"):
        program_files(tmp_path / "m.onnx")


@pytest.mark.parametrize("location", ["../m.data", "/etc/passwd", "a/../../b", "c:\\x", "..\\x", ""])
def test_external_data_stays_in_its_folder(location: str, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(graph_with(location))
    with pytest.raises(ValueError, match="which is not in its folder and was not opened"):
        external_files(tmp_path / "m.onnx")


def test_heads_of_probabilities_sum_to_one(tmp_path: Path) -> None:
    save_script(nn.Conv2d(3, 2, 1), tmp_path / "p.ts")
    (tmp_path / "p.toml").write_text(IMAGENET + '[output]\nkind = "probabilities"\nheads = [1, 1]\n')
    with pytest.raises(ConfigError, match=r"must sum to 1, so say heads = \[0.5, 0.5\]"):
        open_teacher(tmp_path / "p.ts", ("a", "b"), program=True)


@pytest.mark.parametrize(
    "text",
    [
        "x = " + "[" * 5000,
        f"[input]\ndivisor = {'9' * 5000}",
        f"[input]\nmean = [{'9' * 400}, 0, 0]\nstd = [1, 1, 1]",
        "[input]\nmean = [nan, 0, 0]\nstd = [1, 1, 1]",
        "[input]\nsize = [1e8, 1e8]\nmean = [0, 0, 0]\nstd = [1, 1, 1]",
        f'classes = ["{"a" * 20000}"]',
        f"[input]\n{'k' * 20000} = 1",
    ],
)
def test_descriptions_out_of_bounds(text: str, tmp_path: Path) -> None:
    save_script(nn.Conv2d(3, 2, 1), tmp_path / "p.ts")
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        open_teacher(tmp_path / "p.ts", ("a", "b"), program=True)
    assert len(str(caught.value)) < 800


def test_onnx_of_bytes_and_axes_last(tmp_path: Path) -> None:
    """With onnxruntime: what a converter of TensorFlow makes."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, types = onnx.helper, onnx.TensorProto
    graph = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["y"], to=types.FLOAT)],
        "g",
        [helper.make_tensor_value_info("x", types.UINT8, [4, 8, 16, 3])],
        [helper.make_tensor_value_info("y", types.FLOAT, [4, 8, 16, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(tmp_path / "m.onnx"))
    (tmp_path / "m.toml").write_text("[input]\ndivisor = 1\nmean = [0, 0, 0]\nstd = [1, 1, 1]\n")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path in paths:
        Image.fromarray(pixels).save(path)
    found = maps(open_teacher(tmp_path / "m.onnx", ("r", "g", "b"), program=True), paths, batch_size=4)
    assert len(found) == 3
    assert all((labels == pixels.argmax(2)).all() for labels, _ in found)
