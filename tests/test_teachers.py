"""Teachers opened from published-style files, and what is done around their networks."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from endauda_cli.config import InferenceConfig
from endauda_cli.domains import CITYSCAPES_CLASSES, DOMAINS
from endauda_cli.errors import CheckpointError, ConfigError
from endauda_cli.exporting import teacher_maps
from endauda_cli.models import build_student, build_teacher, load_checkpoint
from endauda_cli.progress import silent
from endauda_cli.segmenter import Segmenter
from endauda_cli.teachers import TEACHERS, Teacher, at_temperature, open_teacher, teacher_names, with_passes
from endauda_cli.types import TeacherName
from tests.support.command_lines import TRAIN, make_cityscapes, refused, result_of
from tests.support.networks import Net, large

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SYNTHIA = DOMAINS["synthia"].classes
CPU = torch.device("cpu")


def unfilled(network: str, num_classes: int) -> nn.Module:
    """The network with whatever the memory holds: a checkpoint is going to fill it."""
    with torch.device("meta"):
        model = build_teacher(network, num_classes)
    return model.to_empty(device="cpu")


def numbered(network: str, num_classes: int) -> dict[str, Tensor]:
    """A state dict whose tensors all differ."""
    with torch.device("meta"):
        state = build_teacher(network, num_classes).state_dict()
    return {
        key: torch.full(value.shape, i % 251, dtype=value.dtype)
        for i, (key, value) in enumerate(state.items())
    }


def maps(teacher: Teacher, *images: Path, **config: Any) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    return list(teacher_maps(teacher, images, InferenceConfig(**config), CPU, silent))


def test_table_has_the_names_of_the_command_line() -> None:
    assert set(TEACHERS) == set(TeacherName)
    assert teacher_names()[: len(TEACHERS)] == list(TEACHERS)


# ---------------------------------------------------------------------------- published layouts


def dacs_layout(state: dict[str, Tensor]) -> dict[str, Any]:
    mean = {key: torch.zeros_like(value) for key, value in state.items()}
    return {
        "iteration": 250000,
        "optimizer": {"state": {}, "param_groups": [{"lr": 2.5e-4, "params": [0, 1]}]},
        "config": {"dataset": "cityscapes", "ignore_label": 250, "training": {"data": {"split": "train"}}},
        "model": state,
        "ema_model": mean,
    }


def data_parallel(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{key}": value for key, value in state.items()}


LAYOUTS: dict[str, Any] = {
    "plain": lambda state: state,
    "module.": data_parallel,
    "dacs": dacs_layout,
    "dacs module.": lambda state: dacs_layout(data_parallel(state)),
}


@pytest.mark.slow
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("network", "classes", "layout"),
    [
        ("dacs", 19, "dacs"),
        ("dacs", 19, "dacs module."),
        ("crst", 19, "plain"),
        ("crst", 16, "plain"),
        ("mrnet", 19, "module."),
        ("mrnet", 16, "plain"),
        ("mrnet-bn", 19, "plain"),
    ],
)
def test_published_layouts_load(
    network: str, classes: int, layout: str, zipped: bool, tmp_path: Path
) -> None:
    state = numbered(network, classes)
    torch.save(LAYOUTS[layout](state), tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    (tmp_path / "opts.yaml").write_text("model: DeepLab\nnorm_style: gn\nuse_se: true\n")
    module = unfilled(network, classes)
    load_checkpoint(module, tmp_path / "x.pth")
    for key, value in module.state_dict().items():
        assert torch.equal(value, state[key]), key


@pytest.mark.slow
def test_kind_of_mrnet_is_seen_from_its_keys(tmp_path: Path) -> None:
    for network, title in (("mrnet", "mrnet"), ("mrnet-bn", "mrnet-bn"), ("mrnet-bn-se", "mrnet-bn-se")):
        torch.save(data_parallel(numbered(network, 19)), tmp_path / "model.pth")
        named = "mrnet" if network == "mrnet" else None
        teacher = open_teacher(tmp_path / "model.pth", CITYSCAPES_CLASSES, named)
        assert teacher.facts["network"] == title
        assert teacher.segmenter.procedure == TEACHERS["mrnet"].procedure


@pytest.mark.slow
def test_opened_teachers_say_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save(dacs_layout(numbered("dacs", 19)), path)
    teacher = open_teacher(path, CITYSCAPES_CLASSES)  # DACS tells by its wrapper
    assert teacher.segmenter.batches
    assert teacher.facts["teacher_of"] == "DACS" and not teacher.segmenter.network.training
    facts = teacher.attributes(CITYSCAPES_CLASSES)
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["network_size"], facts["resize_filter"], facts["channels"]) == (
        [1024, 512],
        "bilinear",
        "bgr",
    )
    assert (facts["scales"], facts["flip"], facts["softmax"]) == ([1.0], False, "after upsampling")
    smaller = open_teacher(path, CITYSCAPES_CLASSES, "dacs", size=(64, 32))
    assert smaller.segmenter.preprocessing.size == (64, 32)


# ---------------------------------------------------------------------------- each project's test time, naively


@pytest.fixture
def photograph(tmp_path: Path) -> tuple[Path, NDArray[np.uint8]]:
    coarse = np.random.default_rng(1).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((120, 72), Image.Resampling.BICUBIC)
    image.save(tmp_path / "image.png")
    return tmp_path / "image.png", np.asarray(image)


def small(name: str, heads: int = 1) -> Teacher:
    """The published teacher around a small network; sizes are a sixteenth."""
    spec = TEACHERS[name]
    size = spec.preprocessing.size
    side = spec.preprocessing.longer_side
    preprocessing = replace(
        spec.preprocessing,
        size=size and (size[0] // 16, size[1] // 16),
        longer_side=side and side // 16,
    )
    return Teacher(Segmenter(Net(7, heads).eval(), preprocessing, spec.procedure))


def pil(image: NDArray[np.uint8], size: tuple[int, int], kind: Image.Resampling) -> Tensor:
    return (
        torch.from_numpy(np.array(Image.fromarray(image).resize(size, kind))).permute(2, 0, 1).float()[None]
    )


def caffe(rgb: Tensor) -> Tensor:
    """BGR without the mean of the Caffe models."""
    return rgb[:, [2, 1, 0]] - torch.tensor([104.00698793, 116.66876762, 122.67891434])[:, None, None]


def imagenet(rgb: Tensor) -> Tensor:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (rgb / 255 - mean[:, None, None]) / std[:, None, None]


def same_archive(found: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]], probabilities: Tensor) -> None:
    """One image, bytes equal but for at most 0.1 % that are off by one."""
    ((labels, certainty),) = found
    expected = (probabilities * 100).to(torch.uint8).numpy().astype(int)
    difference = np.abs(certainty.astype(int) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() <= 1e-3
    assert (labels != probabilities.argmax(0).numpy()).mean() <= 1e-3
    assert len(np.unique(labels)) > 1


@torch.inference_mode()
def test_dacs(photograph: tuple[Path, NDArray[np.uint8]]) -> None:
    path, image = photograph
    teacher = small("dacs")
    x = caffe(pil(image, (64, 32), Image.Resampling.BILINEAR))
    same_archive(maps(teacher, path), large(teacher.segmenter.network(x), (72, 120))[0].softmax(0))


@torch.inference_mode()
@pytest.mark.parametrize("name", ["crst", "mrkld", "lrent", "cbst"])
def test_crst(name: str, photograph: tuple[Path, NDArray[np.uint8]]) -> None:
    path, image = photograph
    teacher = small(name)
    x = imagenet(torch.from_numpy(image.copy()).permute(2, 0, 1).float()[None])
    network = teacher.segmenter.network
    plain, mirrored = network(x), network(x.flip(-1))
    logits = 0.5 * large(plain, (72, 120)) + 0.5 * large(mirrored, (72, 120)).flip(-1)
    same_archive(maps(teacher, path), logits[0].softmax(0))


@torch.inference_mode()
def test_crst_at_several_scales(photograph: tuple[Path, NDArray[np.uint8]]) -> None:
    """Of the normalised input, each from the original."""
    path, image = photograph
    teacher = with_passes(small("crst"), (0.75, 1.0), False)
    x = imagenet(torch.from_numpy(image.copy()).permute(2, 0, 1).float()[None])
    logits = [large(teacher.segmenter.network(s), (72, 120)) for s in (large(x, (54, 90)), x)]
    same_archive(maps(teacher, path), torch.stack(logits).mean(0)[0].softmax(0))


@torch.inference_mode()
def test_mrnet(photograph: tuple[Path, NDArray[np.uint8]]) -> None:
    path, image = photograph
    teacher = small("mrnet", heads=2)
    total = torch.zeros(1, 7, 72, 120)
    for size in ((64, 32), (80, 40)):
        x = caffe(pil(image, size, Image.Resampling.BICUBIC))
        for flip in (False, True):
            auxiliary, main = teacher.segmenter.network(x.flip(-1) if flip else x)
            logits = 0.5 * auxiliary + main
            total += large((logits.flip(-1) if flip else logits).softmax(1), (72, 120))
    same_archive(maps(teacher, path), total[0] / 4)


@torch.inference_mode()
def test_original_cbst(tmp_path: Path) -> None:
    """Longer side 128 here, 125 high: padded to 128 at the bottom, planes enlarged by Pillow, cut, averaged."""
    pixels = np.random.default_rng(2).integers(0, 256, (25, 26, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((128, 125), Image.Resampling.BICUBIC)
    image.save(tmp_path / "image.png")
    teacher = small("cbst-mxnet")
    x = imagenet(torch.from_numpy(np.array(image)).permute(2, 0, 1).float()[None])
    x, total = F.pad(x, (0, 0, 0, 3)), torch.zeros(7, 125, 128)
    for flip in (False, True):
        output = teacher.segmenter.network(x.flip(-1) if flip else x).softmax(1)[0]
        for c, plane in enumerate(output.flip(-1) if flip else output):
            enlarged = Image.fromarray(plane.numpy()).resize((128, 128), Image.Resampling.BICUBIC)
            total[c] += torch.from_numpy(np.array(enlarged))[:125] / 2
    same_archive(maps(teacher, tmp_path / "image.png"), total.clamp(0, 1))


def test_published_numbers() -> None:
    """What the small versions above do not show."""
    mrnet, cbst = TEACHERS["mrnet"], TEACHERS["cbst-mxnet"]
    assert [mrnet.preprocessing.input_size(2048, 1024, s) for s in mrnet.procedure.scales] == [
        (1024, 512),
        (1280, 640),
    ]
    assert TEACHERS["dacs"].preprocessing.input_size(2048, 1024) == (1024, 512)
    for name in ("crst", "cbst"):
        assert TEACHERS[name].preprocessing.input_size(2048, 1024) == (2048, 1024)
    assert cbst.preprocessing.input_size(2048, 1024) == (2048, 1024)
    assert cbst.preprocessing.input_size(480, 360) == (2048, 1536)


def test_temperature_and_passes_are_changed_alone(photograph: tuple[Path, NDArray[np.uint8]]) -> None:
    teacher = small("mrnet", heads=2)
    changed = at_temperature(with_passes(teacher, (1.0,), None), 2.0, {"on": "x"})
    assert (changed.segmenter.procedure.scales, changed.segmenter.procedure.flip) == ((1.0,), True)
    facts = changed.attributes(CITYSCAPES_CLASSES)
    assert (facts["temperature"], facts["temperature_fit"]) == (2.0, {"on": "x"})
    assert "temperature" not in teacher.attributes(CITYSCAPES_CLASSES)
    (plain,), (soft,) = maps(with_passes(teacher, (1.0,), None), photograph[0]), maps(changed, photograph[0])
    assert np.array_equal(plain[0], soft[0]) and soft[1].max() < plain[1].max()


# ---------------------------------------------------------------------------- refused, in one sentence


def refusal(
    path: Path, network: str | None, classes: tuple[str, ...] = CITYSCAPES_CLASSES, **options: Any
) -> str:
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        open_teacher(path, classes, network, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.mark.slow
def test_what_does_not_fit_is_told_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save(numbered("crst", 16), path)
    assert refusal(path, "crst").startswith(
        "has 16 classes, but 19 were expected; choose the source data set"
    )
    assert refusal(path, None).startswith(
        "DACS, CRST and its CBST have the same keys, but read them differently"
    )
    torch.save(numbered("dacs", 19), path)
    assert refusal(path, "crst", SYNTHIA).startswith("has 19 classes, but 16 were expected")
    message = refusal(path, "mrnet")
    assert message.startswith(
        "holds the DeepLabv2 of DACS and CRST, but R-MRNet with group norm and SE was expected;"
    )
    assert message.endswith("first: missing 'layer5.conv2d_list.0.0.weight'")
    message = refusal(path, None, arch="deeplabv2", backbone="drn")  # a ResNet into a DRN
    assert message.startswith(
        "holds the DeepLabv2 of DACS and CRST, but deeplabv2 with backbone drn was expected"
    )
    torch.save(dacs_layout(numbered("dacs", 19)), path)
    assert "a checkpoint of DACS (it has its training configuration), but crst was named" in refusal(
        path, "crst"
    )
    resnet = build_student("deeplabv2", "resnet", 19).state_dict()
    torch.save(resnet, path)
    assert refusal(path, "dacs").startswith(
        "holds deeplabv2 with backbone resnet, but the DeepLabv2 of DACS and CRST was expected"
    )
    with pytest.raises(ConfigError, match="--network dasc: known are dacs, crst, mrkld, lrent, cbst, mrnet"):
        open_teacher(path, CITYSCAPES_CLASSES, "dasc")


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        (
            ["backbone.patch_embed1.proj.weight", "decode_head.conv_seg.weight"],
            "an mmsegmentation network (DAFormer",
        ),
        (
            ["layer5.conv2d_list.3.weight", "layer6.conv2d_list.3.weight"],
            "a two-headed DeepLabv2 as AdaptSegNet has",
        ),
        (["backbone.layer4.2.conv3.weight", "classifier.4.weight"], "a torchvision network"),
    ],
)
def test_other_projects_are_named(keys: list[str], name: str, tmp_path: Path) -> None:
    torch.save({"state_dict": {key: torch.zeros(1) for key in keys}}, tmp_path / "x.pth")
    assert refusal(tmp_path / "x.pth", "dacs").startswith(f"holds {name}")


class Hostile:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("network", ["dacs", "mrnet", "cbst-mxnet", None])
def test_pickles_that_would_run_code_are_refused(network: str | None, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    content = {
        "model": {"layer5.conv2d_list.3.weight": torch.zeros(1)},
        "config": Hostile(tmp_path / "trace"),
    }
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert "was not opened, because such a file can run code" in refusal(path, network)
    assert not (tmp_path / "trace").exists()


# ---------------------------------------------------------------------------- other packages' teachers


def test_entry_points_add_teachers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package/somebodys_teacher.py").write_text(
        "from endauda_cli.segmenter import Segmenter\n"
        "from endauda_cli.teachers import Teacher\n"
        "from endauda_cli.transforms import Preprocessing\n"
        "import torch\n"
        "class Red(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return torch.cat([x[:, :1] - 0.5, 0.5 - x[:, :1], x[:, 1:2] - 9], 1) * 8\n"
        "def open_red(path, classes):\n"
        "    assert path.read_bytes() == b'red' and classes == ('a', 'b', 'c')\n"
        "    return Teacher(Segmenter(Red(), Preprocessing(None, bgr=False, divisor=255, mean=(0, 0, 0))))\n"
        "def open_nothing(path, classes):\n"
        "    return None\n"
    )
    info = tmp_path / "package/somebodys_teacher-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys-teacher\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[endauda.teachers]\nred = somebodys_teacher:open_red\nnothing = somebodys_teacher:open_nothing\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "package")
    monkeypatch.setattr(sys, "modules", {k: v for k, v in sys.modules.items() if k != "somebodys_teacher"})
    assert teacher_names()[-2:] == ["nothing", "red"]
    (tmp_path / "weights.bin").write_bytes(b"red")
    teacher = open_teacher(tmp_path / "weights.bin", ("a", "b", "c"), "red")
    assert not teacher.segmenter.batches, "others' code may take one image at a time"
    assert teacher.facts["network"] == "red" and len(teacher.facts["weights_sha256"]) == 64
    image = np.zeros((4, 6, 3), np.uint8)
    image[:, :3, 0] = 255
    Image.fromarray(image).save(tmp_path / "i.png")
    ((labels, _),) = maps(teacher, tmp_path / "i.png")
    assert labels[0].tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(CheckpointError, match=r"open_nothing returned a NoneType, but a teachers\.Teacher"):
        open_teacher(tmp_path / "weights.bin", ("a", "b", "c"), "nothing")
    with pytest.raises(CheckpointError, match="somebodys_teacher:open_red cannot open it"):
        open_teacher(tmp_path / "weights.bin", ("a", "b"), "red")


# ---------------------------------------------------------------------------- on the command line


@pytest.mark.slow
def test_export_of_a_published_checkpoint(tmp_path: Path) -> None:
    make_cityscapes(tmp_path)
    state = {key: torch.zeros_like(value) for key, value in numbered("dacs", 19).items()}
    state["layer5.conv2d_list.0.bias"] = torch.arange(19.0)
    torch.save(dacs_layout(state), tmp_path / "iter250000.pth")
    line = (
        "export-teacher",
        "dacs",
        "--weights",
        "iter250000.pth",
        "--size",
        "64x32",
        "--workspace",
        tmp_path,
    )
    result = result_of(*line, "--shard", "1/3")
    assert (result["images"], result["skipped"]) == (2, 0)
    from endauda_cli.archive import CertaintyReader

    with CertaintyReader(tmp_path / "certainty/gta5/dacs") as reader:
        assert set(reader.ids) <= set(TRAIN)
        assert reader.attributes["teacher_of"] == "DACS"
        assert reader.attributes["network_size"] == [64, 32]
        certainty = (torch.arange(19.0).softmax(0) * 100).int().tolist()
        assert reader.certainty(reader.ids[0])[:, 5, 7].tolist() == certainty
    message = refused(*line, "--flip")
    assert "made with flip False, but this run has True" in message
    torch.save({"layer5.conv2d_list.3.weight": torch.zeros(3)}, tmp_path / "bad.pth")
    assert "has no 'conv1.weight', which" in refused(
        "export-teacher", "crst", "--weights", "bad.pth", "--workspace", tmp_path
    )
    assert "say what the teacher is: --weights FILE, --program FILE" in refused(
        "export-teacher", "x", "--weights", "bad.pth", "--program", "x.onnx", "--workspace", tmp_path
    )
