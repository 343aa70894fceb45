"""Folders of libraries: all tensors from the file, all settings honoured or refused, nothing from elsewhere."""

from __future__ import annotations

import json
import shutil
import socket
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from endauda_cli.config import InferenceConfig
from endauda_cli.errors import CheckpointError
from endauda_cli.exporting import teacher_maps
from endauda_cli.progress import silent
from endauda_cli.teachers import open_teacher
from endauda_cli.teachers.libraries import open_folder

if TYPE_CHECKING:
    from pathlib import Path

CLASSES = ("road", "car", "person")
transformers: Any = pytest.importorskip("transformers")
safetensors: Any = pytest.importorskip("safetensors.torch")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "segformer"
    torch.manual_seed(0)
    config = transformers.SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1, 1, 1, 1],
        decoder_hidden_size=16, id2label=dict(enumerate(CLASSES)),
    )  # fmt: skip
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(folder)
    transformers.SegformerImageProcessor(size={"height": 64, "width": 96}).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "network")
    return tmp_path / "network"


def change(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({key: v for key, v in {**content, **values}.items() if v is not ...}))


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_teacher(folder, CLASSES, **options)
    message = str(caught.value)
    assert message.startswith(str(folder)) and "\n" not in message and len(message) < 700
    return message


# ---------------------------------------------------------------------------- every tensor


def test_tensors_that_are_missing_left_over_or_of_another_shape(folder: Path) -> None:
    path = folder / "model.safetensors"
    state = safetensors.load_file(path)
    head = {key: value for key, value in state.items() if not key.startswith("decode_head.")}
    safetensors.save_file(head, path, metadata={"format": "pt"})
    assert "have no 'decode_head." in refusal(folder) and "more)" in refusal(folder)
    safetensors.save_file({**state, "other.weight": torch.zeros(2)}, path, metadata={"format": "pt"})
    assert "its weights have 'other.weight', which the network does not know" in refusal(folder)
    key = "decode_head.classifier.weight"
    safetensors.save_file(
        {**state, key: torch.zeros(7, *state[key].shape[1:])}, path, metadata={"format": "pt"}
    )
    assert key in refusal(folder)
    safetensors.save_file(state, path, metadata={"format": "pt"})
    open_teacher(folder, CLASSES)


def test_shards_of_both_kinds(folder: Path) -> None:
    state = safetensors.load_file(folder / "model.safetensors")
    whole = open_teacher(folder, CLASSES).segmenter.network.state_dict()
    (folder / "model.safetensors").unlink()
    keys = list(state)
    table: dict[str, str] = {}
    for number, part in enumerate((keys[::2], keys[1::2]), 1):
        name = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({key: state[key] for key in part}, folder / name)
        table |= dict.fromkeys(part, name)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": table}))
    found = open_teacher(folder, CLASSES).segmenter.network.state_dict()
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[key], value) for key, value in whole.items())
    index.write_text(json.dumps({"weight_map": dict.fromkeys(table, "../x.bin")}))
    assert "'../x.bin'" in refusal(folder)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(table, "absent.bin")}))
    assert "absent.bin: no such file, but" in refusal(folder)


# ---------------------------------------------------------------------------- the library's own processor

PROCESSORS: list[tuple[str, dict[str, Any], bool]] = [
    ("SegformerImageProcessor", {"size": {"height": 64, "width": 96}}, True),
    ("SegformerImageProcessor", {"do_resize": False}, True),
    ("SegformerImageProcessor", {"do_resize": False, "do_normalize": False}, True),
    ("SegformerImageProcessor", {"do_resize": False, "do_rescale": False, "do_normalize": False}, True),
    ("SegformerImageProcessor", {"size": {"height": 64, "width": 96}, "resample": 3}, True),
    ("SegformerImageProcessor", {"size": {"height": 64, "width": 96}, "resample": 1}, False),
    ("SegformerImageProcessor", {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.3, 0.2, 0.1]}, True),
    ("MobileViTImageProcessor", {}, False),
    ("MobileViTImageProcessor", {"size": {"height": 64, "width": 64}}, False),
    ("MobileViTImageProcessor", {"size": {"height": 64, "width": 64}, "do_center_crop": False}, True),
    (
        "MobileViTImageProcessor",
        {"size": {"height": 64, "width": 64}, "crop_size": {"height": 64, "width": 64}},
        True,
    ),
    (
        "MobileViTImageProcessor",
        {"do_resize": False, "do_center_crop": False, "do_flip_channel_order": False},
        True,
    ),
    ("BeitImageProcessor", {"size": {"height": 64, "width": 64}}, True),
    ("DPTImageProcessor", {"size": {"height": 64, "width": 64}}, True),
    ("DPTImageProcessor", {"size": {"height": 64, "width": 64}, "keep_aspect_ratio": True}, False),
    ("DPTImageProcessor", {"do_resize": False, "do_pad": True, "size_divisor": 32}, False),
    ("MobileNetV2ImageProcessor", {}, False),
]


@pytest.mark.parametrize(("name", "settings", "honoured"), PROCESSORS)
def test_settings_mean_what_the_library_says(
    name: str, settings: dict[str, Any], honoured: bool, folder: Path
) -> None:
    processor = getattr(transformers, name)(**settings)
    processor.save_pretrained(folder)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8))
    pixels = np.asarray(image.resize((80, 60), Image.Resampling.BICUBIC))
    own = {} if honoured else {"do_resize": False, "do_center_crop": False, "do_pad": False}
    if not honoured:
        assert "--size" in refusal(folder)  # and that helps:
    preprocessing = open_folder(folder, own_size=honoured).preprocessing
    if not honoured:
        open_teacher(folder, CLASSES, size=(64, 64))
    theirs = processor(images=pixels, return_tensors="pt", **own)["pixel_values"]
    ours = preprocessing.normalise(torch.from_numpy(preprocessing.resize(pixels).copy())[None])
    assert ours.shape == theirs.shape
    scale = torch.tensor(preprocessing.std)[:, None, None] * preprocessing.divisor
    assert ((ours - theirs).abs() * scale).mean() < 2  # of 255; resizing is not the same to the last digit


def test_absent_settings_are_the_classs_own(folder: Path) -> None:
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({"image_processor_type": "MobileViTImageProcessor", "do_resize": False,
                                "do_center_crop": False}))  # fmt: skip
    found = open_folder(folder).preprocessing
    assert found.bgr and (found.mean, found.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    "settings",
    [
        {"size": 0},
        {"size": {"height": 0, "width": 5}},
        {"size": {"height": 10**12, "width": 5}},
        {"size": -4},
        {"rescale_factor": 0},
        {"rescale_factor": float("nan")},
        {"image_std": [0, 1, 1]},
        {"image_mean": [0.5]},
        {"image_mean": ["a", "b", "c"]},
        {"size": "large"},
        {"resample": "x"},
    ],
)
def test_settings_without_sense(settings: dict[str, Any], folder: Path) -> None:
    change(folder / "preprocessor_config.json", **settings)
    refusal(folder)


# ---------------------------------------------------------------------------- claims, and what leads elsewhere


@pytest.mark.parametrize(
    "settings",
    [
        {"num_labels": 10**9, "id2label": ..., "label2id": ...},
        {"depths": [10**6, 1, 1, 1]},
        {"hidden_sizes": [10**9, 16, 24, 32]},
        {"hidden_sizes": [8, 16, 24, 1 << 15]},
        {"decoder_hidden_size": int("9" * 300)},
        {"id2label": {"0": "x" * 20_000, "1": "b", "2": "c"}},
        {"id2label": {"-1": "a"}},
        {"id2label": [1, 2]},
        {"id2label": {"9" * 5000: "a"}},
        {"model_type": "x\0y"},
        {"model_type": 3},
        {"use_pretrained_backbone": True, "backbone": "somebody/network"},
        {"num_channels": 1},
    ],
)
def test_claims_of_a_configuration(settings: dict[str, Any], folder: Path) -> None:
    change(folder / "config.json", **settings)
    began = time.monotonic()
    refusal(folder)
    assert time.monotonic() - began < 8


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' + "9" * 5000 + "}", "{", "\0", '{"a":' * 5000])
def test_broken_json(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    assert "cannot be read as JSON" in refusal(folder)


def smp_folder(folder: Path, **settings: Any) -> Path:
    smp = pytest.importorskip("segmentation_models_pytorch")
    smp.Unet("resnet18", encoder_weights=None, classes=3).save_pretrained(str(folder))
    change(folder / "config.json", **settings)
    return folder


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"encoder_name": "tu-hf-hub:somebody/network"}, "leads to a hub"),
        ({"encoder_name": "tu-hf_hub:somebody/network"}, "leads to a hub"),
        ({"encoder_name": "tu-local-dir:/tmp/x"}, "leads to a hub"),
        ({"encoder_name": "tu-resnet18", "checkpoint_path": "x.pth"}, "has 'checkpoint_path'"),
        (
            {"encoder_name": "tu-resnet18", "pretrained_cfg": {"url": "http://127.0.0.1:9/x"}},
            "has 'pretrained_cfg'",
        ),
        ({"encoder_name": "tu-resnet18", "pretrained": True}, "has 'pretrained'"),
        ({"in_channels": 1}, "takes images of 1 channels, but 3"),
        ({"in_channels": 4}, "takes images of 4 channels, but 3"),
        ({"classes": 10**9}, "classes"),
        ({"_model_class": "encoders"}, "is no model of"),
        ({"_model_class": 5}, "is no model of"),
        ({"encoder_name": "resnet34"}, "do not fit the network"),
        ({"encoder_name": "nothing"}, "cannot open it"),
    ],
)
def test_folders_of_smp_that_lead_elsewhere(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    assert words in refusal(smp_folder(tmp_path / "unet", **settings))


def test_pretrained_encoders_are_not_asked_of_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As smp writes it for everybody who began with ImageNet's weights."""

    def connect(*_: object) -> None:
        raise AssertionError("a connection")

    folder = smp_folder(tmp_path / "unet", encoder_weights="imagenet")
    monkeypatch.setattr(socket.socket, "connect", connect)
    found = open_folder(folder).preprocessing
    assert found.mean == (0.485, 0.456, 0.406) and found.divisor == 255


def test_nothing_opens_a_connection() -> None:
    from endauda_cli.students.offline import offline

    with offline(), pytest.raises(CheckpointError, match="would have to be downloaded"):
        socket.create_connection(("127.0.0.1", 9))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", 9))


def test_a_size_that_the_network_does_not_take(tmp_path: Path) -> None:
    folder = tmp_path / "beit"
    config = transformers.BeitConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16, image_size=64, patch_size=16,
        out_indices=[1, 2, 3, 4], id2label=dict(enumerate(CLASSES)), use_auxiliary_head=False,
    )  # fmt: skip
    transformers.BeitForSemanticSegmentation(config).save_pretrained(folder)
    transformers.BeitImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    Image.new("RGB", (80, 60)).save(tmp_path / "i.png")

    def run(**options: Any) -> None:
        teacher = open_teacher(folder, CLASSES, **options)
        list(teacher_maps(teacher, [tmp_path / "i.png"], InferenceConfig(), torch.device("cpu"), silent))

    run()
    with pytest.raises(CheckpointError, match=r"the network does not take an input of 8x8 \("):
        run(size=(8, 8))
