"""Networks as programs, from libraries' folders, and the TOML that describes them."""

from __future__ import annotations

import json
import os
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from endauda_cli.config import InferenceConfig
from endauda_cli.errors import CheckpointError, ConfigError
from endauda_cli.exporting import teacher_maps
from endauda_cli.models import build_student
from endauda_cli.progress import silent
from endauda_cli.segmenter import Segmenter
from endauda_cli.teachers import Teacher
from endauda_cli.teachers import open_teacher as open_any
from endauda_cli.teachers.descriptions import read_description
from endauda_cli.teachers.programs import program_kind
from endauda_cli.transforms import Preprocessing
from tests.support.command_lines import make_cityscapes, result_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CLASSES = ("road", "car", "person", "sky", "tree")
DESCRIPTION = """
[input]
size = [64, 32]
filter = "bicubic"
channels = "bgr"
divisor = 1
mean = [104.00698793, 116.66876762, 122.67891434]
std = [1, 1, 1]
"""
IMAGENET = "[input]\nmean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]\n"

Maps = list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]


def open_teacher(path: Path, *args: Any, **options: Any) -> Teacher:
    """Programs as ``--program`` opens them, all else as ``--weights``."""
    return open_any(path, *args, **{"program": path.suffix == ".onnx"} | options)


class Colours(nn.Module):
    """Two outputs at full size: red, and all else; as logits or probabilities."""

    def __init__(self, probabilities: bool = False) -> None:
        super().__init__()
        self.probabilities = probabilities

    def forward(self, images: Tensor) -> Tensor:
        red = images[:, :1]
        logits = torch.cat([red, -red], 1)
        return logits.softmax(1) if self.probabilities else logits


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return build_student("deeplabv3plus", "tiny", len(CLASSES)).eval()


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path in paths:
        coarse = Image.fromarray(rng.integers(0, 256, (8, 16, 3), dtype=np.uint8))
        coarse.resize((128, 64), Image.Resampling.BICUBIC).save(path)
    return paths


def maps(teacher: Teacher, images: list[Path], batch_size: int = 2) -> Maps:
    return list(
        teacher_maps(teacher, images, InferenceConfig(batch_size=batch_size), torch.device("cpu"), silent)
    )


def save_exported(module: nn.Module, path: Path, batch: int | None = None) -> None:
    example = torch.zeros(batch or 2, 3, 32, 64)
    shapes = None if batch else ({0: torch.export.Dim("batch")},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(module, (example,), dynamic_shapes=shapes), path)


def save_script(module: nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(module, torch.zeros(1, 3, 32, 64)).save(str(path))  # type: ignore[no-untyped-call]


def save_onnx(module: nn.Module, path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (torch.zeros(2, 3, 32, 64),), str(path), dynamo=True, verbose=False, external_data=False,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )  # fmt: skip


SAVERS: dict[str, Any] = {
    "model.pt2": save_exported,
    "fixed.pt2": lambda module, path: save_exported(module, path, batch=1),
    "model.ts": save_script,
    "model.onnx": save_onnx,
}


@pytest.fixture(scope="module")
def saved(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    """What is in a file of ``SAVERS``; each is made once."""
    folder = tmp_path_factory.mktemp("saved")

    def content(file: str) -> bytes:
        if not (folder / file).exists():
            SAVERS[file](network, folder / file)
        return (folder / file).read_bytes()

    return content


@pytest.mark.slow
@pytest.mark.parametrize("file", SAVERS)
def test_program_gives_the_archive_of_its_module(
    file: str,
    network: nn.Module,
    saved: Callable[[str], bytes],
    images: list[Path],
    tmp_path: Path,
) -> None:
    (tmp_path / file).write_bytes(saved(file))
    (tmp_path / file).with_suffix(".toml").write_text(DESCRIPTION)
    found = maps(open_teacher(tmp_path / file, CLASSES, program=True), images)
    expected = maps(Teacher(Segmenter(network, Preprocessing(size=(64, 32)))), images)
    for (labels, certainty), (other_labels, other_certainty) in zip(found, expected, strict=True):
        difference = np.abs(certainty.astype(int) - other_certainty)
        assert difference.max() <= 1 and (difference > 0).mean() <= 1e-3
        assert (labels != other_labels).mean() <= 1e-3
        assert certainty.shape == (len(CLASSES), 64, 128)


def test_program_of_one_size_needs_no_size_and_takes_no_other(
    network: nn.Module, images: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "fixed.pt2"
    save_exported(network, path, batch=1)
    described = tmp_path / "fixed.toml"
    described.write_text(DESCRIPTION.replace("size = [64, 32]\n", ""))
    assert open_teacher(path, CLASSES, program=True).segmenter.preprocessing.size == (64, 32)
    described.write_text(DESCRIPTION.replace("[64, 32]", "[128, 64]"))
    with pytest.raises(ConfigError, match=r"size is \(128, 64\), but the program takes 64x32 alone"):
        open_teacher(path, CLASSES, program=True)


def test_programs_are_told_by_content(network: nn.Module, tmp_path: Path) -> None:
    save_script(network, tmp_path / "a.pth")
    save_exported(network, tmp_path / "b.bin")
    torch.save(network.state_dict(), tmp_path / "c.pt2")
    kinds = [program_kind(tmp_path / name) for name in ("a.pth", "b.bin", "c.pt2")]
    assert kinds == ["TorchScript", "torch.export", None]
    with pytest.raises(
        CheckpointError, match=r"a\.pth: is a TorchScript program, not weights; run it with --program"
    ):
        open_teacher(tmp_path / "a.pth", CLASSES, "dacs")
    (tmp_path / "c.toml").write_text(DESCRIPTION)
    with pytest.raises(CheckpointError, match=r"c\.pt2: neither torch\.export .* named with --weights"):
        open_teacher(tmp_path / "c.pt2", CLASSES, program=True)


@pytest.mark.parametrize("file", ["x.pt2", "x.ts", "x.onnx"])
@pytest.mark.parametrize("kept", [0.0, 0.4, 0.98])
def test_damaged_programs(file: str, kept: float, saved: Callable[[str], bytes], tmp_path: Path) -> None:
    content = saved(f"model.{file[2:]}")
    (tmp_path / file).write_bytes(content[: int(kept * len(content))])
    (tmp_path / "x.toml").write_text(DESCRIPTION)
    with pytest.raises(CheckpointError) as caught:
        open_teacher(tmp_path / file, CLASSES, program=True)
    assert str(caught.value).startswith(f"{tmp_path / file}: ") and "\n" not in str(caught.value)


def test_what_a_program_says_is_checked(images: list[Path], tmp_path: Path) -> None:
    path, toml = tmp_path / "p.ts", tmp_path / "p.toml"
    for probabilities, kind in ((True, "logits"), (False, "probabilities")):
        save_script(Colours(probabilities), path)
        toml.write_text(IMAGENET + f'[output]\nkind = "{kind}"\n')
        other = "probabilities" if probabilities else "logits"
        with pytest.raises(CheckpointError, match=f"say (kind = )?'{other}'"):
            maps(open_teacher(path, ("red", "else"), program=True), images)
    toml.write_text(IMAGENET)
    with pytest.raises(CheckpointError, match="has 2 outputs, but 5 class names; list the names"):
        maps(open_teacher(path, CLASSES, program=True), images)
    save_script(nn.Flatten(), path)
    with pytest.raises(CheckpointError, match=r"floats \(batch, classes, height, width\) were expected"):
        maps(open_teacher(path, CLASSES, program=True), images)
    save_exported(Colours(), tmp_path / "q.pt2", batch=1)
    (tmp_path / "q.toml").write_text(IMAGENET)
    teacher = open_teacher(tmp_path / "q.pt2", ("red", "else"), size=(32, 32), program=True)
    with pytest.raises(CheckpointError, match="does not take an input of 1x3x32x32"):
        maps(teacher, images)


def test_class_names_join_outputs_with_the_task(images: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "p.ts"
    save_script(Colours(), path)
    (tmp_path / "p.toml").write_text(
        'classes = ["red", "other"]\n[map]\nred = "car"\nother = ""\n' + IMAGENET
    )
    with pytest.raises(
        ConfigError, match="no output stands for road, person, sky, tree; its outputs are red, other"
    ):
        open_teacher(path, CLASSES, program=True)
    (tmp_path / "p.toml").write_text(
        'classes = ["red", "other"]\nabsent = ["road", "person", "sky", "tree"]\n[map]\nred = "car"\nother = ""\n'
        + IMAGENET
    )
    teacher = open_teacher(path, CLASSES, program=True)
    assert teacher.attributes(CLASSES)["class_map"] == {"red": "car", "other": ""}
    for labels, certainty in maps(teacher, images):
        assert set(np.unique(labels)) == {1, 255}
        assert (certainty[1][labels == 1] >= 49).all() and not certainty[[0, 2, 3, 4]].any()


def test_probabilities_and_merged_classes_on_the_command_line(tmp_path: Path) -> None:
    """The same program on a TOML data set of two classes, once as it is and once merged into one and the other."""
    from endauda_cli.archive import CertaintyReader

    make_cityscapes(tmp_path)
    (tmp_path / "two.toml").write_text(
        'name = "two"\nclasses = ["warm", "cold"]\n[train]\n'
        'images = "Warehouse/Cityscapes/data/leftImg8bit/train/*/*.png"\n'
    )
    save_script(Colours(probabilities=True), tmp_path / "p.pt")
    (tmp_path / "d.toml").write_text(
        'classes = ["red", "else"]\n[map]\nred = "warm"\nelse = "cold"\n' + IMAGENET
        + '[output]\nkind = "probabilities"\n'
    )  # fmt: skip
    line = ("export-teacher", "p", "--program", "p.pt", "--description", "d.toml", "--target", "two.toml")
    result = result_of(*line, "--workspace", tmp_path, "--tile", "32x32")
    assert result["images"] == 5
    with CertaintyReader(result["archive"]) as reader:
        assert reader.attributes["class_map"] == {"red": "warm", "else": "cold"}
        assert reader.attributes["softmax"] == "by the network"
        sums = reader.certainty(reader.ids[0]).sum(0)
        assert sums.min() >= 99 and sums.max() <= 100


# ---------------------------------------------------------------------------- descriptions


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[input", "no TOML"),
        ("[imput]\nmean = [0, 0, 0]", "imput has no meaning; did you mean input?"),
        ("[input]\nmeen = [0, 0, 0]", r"\[input\] meen has no meaning; did you mean mean\?"),
        ('[input]\nchannels = "gbr"', r"channels = 'gbr': one of rgb, bgr"),
        ("[input]\nsize = 512", "size = 512 is of another type than expected"),
        ("[input]\nlonger_side = true", "longer_side = True is of another type"),
        ('[output]\nkind = "votes"', "kind = 'votes': one of logits, probabilities, scores"),
        ("classes = [1, 2]", r"classes, absent and \[map\] hold names of classes, so strings"),
        (
            'classes = ["a"]\n[map]\nb = "a"',
            r"\[map\] names an output 'b', but classes lists none of that name",
        ),
    ],
)
def test_descriptions_that_say_nothing(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "d.toml").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_description(tmp_path / "d.toml")
    assert str(caught.value).startswith(f"{tmp_path / 'd.toml'}: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[input]\nmean = [0, 0]", r"mean = \[0, 0\]: expected 3 numbers"),
        ('[input]\nmean = [0, 0, "x"]', "expected 3 numbers"),
        ("[input]\nstd = [1, 0, 1]", r"\[input\] has 0 where only numbers above 0 make sense"),
        ("[input]\nsize = [0, 5]", "only numbers above 0"),
        ("[passes]\nscales = []", r"scales = \[\]: expected one or more numbers"),
        ('[output]\nkind = "probabilities"\nsoftmax = "after"', "softmax: there is none after probabilities"),
    ],
)
def test_descriptions_with_impossible_values(text: str, message: str, tmp_path: Path) -> None:
    from endauda_cli.segmenter import Procedure

    (tmp_path / "d.toml").write_text(text)
    described = read_description(tmp_path / "d.toml")
    with pytest.raises(ConfigError, match=message):
        described.preprocessing(Preprocessing())
        described.procedure(Procedure())


def test_programs_need_a_description(network: nn.Module, tmp_path: Path) -> None:
    save_script(network, tmp_path / "p.ts")
    with pytest.raises(ConfigError, match=r"a program does not say what it wants; write p\.toml beside it"):
        open_teacher(tmp_path / "p.ts", CLASSES, program=True)
    (tmp_path / "p.toml").write_text("[input]\nmean = [0, 0, 0]\n")
    with pytest.raises(ConfigError, match=r"\[input\] std must be given"):
        open_teacher(tmp_path / "p.ts", CLASSES, program=True)


def test_description_changes_what_a_checkpoint_does(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from tests.support.training_runs import CLASSES as TINY

    text = (
        '[input]\nsize = [48, 24]\nfilter = "nearest"\n[output]\nsoftmax = "before"\n[passes]\nflip = true\n'
    )
    (tmp_path / "d.toml").write_text(text)
    plain = open_teacher(tiny_checkpoint, TINY).segmenter
    changed = open_teacher(tiny_checkpoint, TINY, description=tmp_path / "d.toml").segmenter
    assert (changed.preprocessing.size, changed.preprocessing.filter) == ((48, 24), "nearest")
    assert changed.preprocessing.mean == plain.preprocessing.mean
    assert (changed.procedure.softmax, changed.procedure.flip) == ("first", True)


# ---------------------------------------------------------------------------- libraries


def test_unet_of_segmentation_models_pytorch(images: list[Path], tmp_path: Path) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    model = smp.Unet("resnet18", encoder_weights=None, classes=len(CLASSES)).eval()
    model.save_pretrained(str(tmp_path / "unet"))
    teacher = open_teacher(tmp_path / "unet", CLASSES)
    network = nn.Sequential(model)
    preprocessing = Preprocessing(
        size=None, bgr=False, divisor=255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    expected = maps(Teacher(Segmenter(network, preprocessing)), images)
    for found, other in zip(maps(teacher, images), expected, strict=True):
        assert np.array_equal(found[0], other[0]) and np.array_equal(found[1], other[1])
    with pytest.raises(CheckpointError, match="5 outputs, but 2 class names"):
        maps(open_teacher(tmp_path / "unet", ("a", "b")), images)
    odd = tmp_path / "odd.png"
    Image.fromarray(np.zeros((45, 70, 3), np.uint8)).save(odd)
    ((labels, _),) = maps(teacher, [odd])  # padded to multiples of 32, and cut again
    assert labels.shape == (45, 70)


def test_segformer_of_transformers(images: list[Path], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "segformer"
    torch.manual_seed(0)
    names = {i: name for i, name in enumerate(["tree", "sky", "car", "walker", "road", "moon"])}
    config = transformers.SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1, 1, 1, 1],
        decoder_hidden_size=16, id2label=names,
    )  # fmt: skip
    model = transformers.SegformerForSemanticSegmentation(config).eval()
    nn.init.normal_(model.decode_head.classifier.weight, std=2)
    model.save_pretrained(folder)
    processor = transformers.SegformerImageProcessor(size={"height": 64, "width": 96})
    processor.save_pretrained(folder)
    (tmp_path / "d.toml").write_text('[map]\nwalker = "person"\n')
    teacher = open_teacher(folder, CLASSES, description=tmp_path / "d.toml")
    facts = teacher.attributes(CLASSES)
    assert facts["class_map"]["walker"] == "person" and facts["class_map"]["moon"] == ""
    (labels, certainty), *_ = maps(teacher, images)

    with Image.open(images[0]) as image:
        inputs = processor(images=image, return_tensors="pt")
        with torch.inference_mode():
            logits = model(**inputs).logits
    large = nn.functional.interpolate(logits, (64, 128), mode="bilinear", align_corners=False)[0]
    probabilities = large.softmax(0)[[4, 2, 3, 1, 0]]
    difference = np.abs(certainty.astype(int) - (probabilities * 100).int().numpy())
    assert np.percentile(difference, 99) <= 1  # its own resizing is not Pillow's to the last digit
    assert len(np.unique(labels)) > 1
    with pytest.raises(
        ConfigError, match="no output stands for person; its outputs are tree, sky, car, walker"
    ):
        open_teacher(folder, CLASSES)


def test_folders_that_hold_no_network(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a folder without config\.json"):
        open_teacher(tmp_path, CLASSES)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="holds no table"):
        open_teacher(tmp_path, CLASSES)
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "segformer"}))
    with pytest.raises(CheckpointError, match=r"no pytorch_model\.bin beside config\.json"):
        open_teacher(tmp_path, CLASSES)
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="transformers cannot open it"):
        open_teacher(tmp_path, CLASSES)


class Hostile:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


def test_folders_whose_weights_would_run_code_are_refused(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.SegformerConfig(num_labels=5).save_pretrained(tmp_path)
    torch.save({"a": torch.zeros(1), "b": Hostile(tmp_path / "trace")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="was not opened, because such a file can run code"):
        open_teacher(tmp_path, CLASSES)
    assert not (tmp_path / "trace").exists()
