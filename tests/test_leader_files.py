"""DAFormer, HRDA, MIC and SegFormer opened from published-style files, and run as their projects test them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from endauda_cli.archive import CertaintyReader
from endauda_cli.config import InferenceConfig
from endauda_cli.domains import CITYSCAPES_CLASSES, DOMAINS
from endauda_cli.errors import CheckpointError
from endauda_cli.exporting import teacher_maps
from endauda_cli.gridding import has_grid
from endauda_cli.models import build_teacher
from endauda_cli.models.mit import MIT_SIZES, MiTSize
from endauda_cli.segmenter import Windows
from endauda_cli.teachers import TEACHERS, open_teacher
from endauda_cli.transforms import window_starts
from tests import support
from tests.support.command_lines import make_cityscapes, refused, result_of
from tests.support.recipes import recipe_weights

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

    from endauda_cli.teachers import Teacher

    State = dict[str, Tensor]

TINY = support.DATA / "models" / "leader_checkpoint_tiny.pth"
SMALL = MiTSize((8, 16, 24, 32), (1, 1, 2, 1))
LEADERS = ["daformer", "hrda", "mic", "segformer"]
every_leader = pytest.mark.parametrize("name", LEADERS)


def small(name: str, classes: int = 19, seed: int = 0) -> State:
    torch.manual_seed(seed)
    state = build_teacher(name, classes, size=SMALL, width=16).state_dict()
    return {k: torch.rand_like(v) if v.is_floating_point() else v for k, v in state.items()}


def before(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def save(path: Path, state: Any, config: str | None = None, experiment: str = "x") -> Path:
    """As mmcv writes it."""
    meta = {"exp_name": experiment, "CLASSES": CITYSCAPES_CLASSES, "iter": 40000, "seed": 1}
    torch.save({"meta": meta | ({} if config is None else {"config": config}), "state_dict": state}, path)
    return path


def same(teacher: Teacher, state: State) -> None:
    found = teacher.segmenter.network.state_dict()
    assert list(found) == list(state)
    for key, value in found.items():
        assert torch.equal(value, state[key]), key


# ---------------------------------------------------------------------------- layouts


@pytest.mark.parametrize(("network", "title"), [(None, "MIC"), ("mic", "MIC"), ("hrda", "HRDA")])
def test_a_file_of_its_own_writer(network: str | None, title: str) -> None:
    """The student of three networks in it, by the sums and values that its writer noted."""
    told: list[Any] = []
    teacher = open_teacher(TINY, CITYSCAPES_CLASSES, network, report=told.append)
    state = teacher.segmenter.network.state_dict()
    total = sum(float(value.double().sum()) for value in state.values() if value.is_floating_point())
    assert len(state) == 174 and total == pytest.approx(664.1997465461882)
    first = state["decode_head.head.conv_seg.weight"].flatten()[:3].tolist()
    assert first == pytest.approx([0.07133933156728745, 0.271587610244751, 0.0244522076100111])
    assert teacher.facts["teacher_of"] == title
    assert "model.* without ema_model.* and imnet_model.* beside it" in told[0].text
    facts = teacher.attributes(CITYSCAPES_CLASSES)
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["crop"], facts["windows"], facts["network_size"]) == (512, [1024, 512], "within 2048x1024")


@every_leader
@pytest.mark.parametrize("layout", ["plain", "model", "module", "several", "several gpus", "mean", "extras"])
def test_layouts_load(name: str, layout: str, tmp_path: Path) -> None:
    state, other = small(name), small(name, seed=1)
    several = before("ema_model.", other) | before("imnet_model.", other)
    layouts: dict[str, State] = {
        "plain": state,
        "model": before("model.", state),
        "module": before("module.", state),
        "several": several | before("mic.teacher.ema_model.", other) | before("model.", state),
        "several gpus": several | before("model.module.", state),
        "mean": before("imnet_model.", other) | before("ema_model.", state),
        "extras": before("model.", state)
        | {f"model.{head}.0.weight": torch.zeros(3) for head in ("auxiliary_head", "cls_head", "proj_head")}
        | before("ema_model.", other),
    }
    path = save(tmp_path / "latest.pth", layouts[layout])
    same(open_teacher(path, CITYSCAPES_CLASSES, name), state)
    found = open_teacher(path, CITYSCAPES_CLASSES).facts["network"]
    assert found == {"mic": "hrda"}.get(name, name)  # of one function, and this file does not tell


def test_of_the_untrained_head_nothing_is_made(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pth", before("imnet_model.", small("daformer")))
    with pytest.raises(CheckpointError, match=r"has no|missing"):
        open_teacher(path, CITYSCAPES_CLASSES, "daformer")


def test_segformers_own_files(tmp_path: Path) -> None:
    """The same function under other names, its maps joined the other way round; tested in windows."""
    state = small("segformer")
    theirs = {
        (f"decode_head.linear_c{int(key[21]) + 1}{key[22:]}" if ".linear_c." in key else key): value
        for key, value in state.items()
    }
    fuse = "decode_head.linear_fuse.conv.weight"
    theirs[fuse] = torch.cat(list(state[fuse].chunk(4, 1))[::-1], 1)
    teacher = open_teacher(save(tmp_path / "segformer.b5.pth", theirs), CITYSCAPES_CLASSES)
    same(teacher, state)
    assert teacher.segmenter.procedure.windows == Windows(1024, 768)
    assert teacher.segmenter.preprocessing.input_size(2048, 1024) == (2048, 1024)
    whole = open_teacher(save(tmp_path / "x.pth", state), CITYSCAPES_CLASSES)
    assert whole.segmenter.procedure.windows is None
    assert whole.segmenter.preprocessing.input_size(2048, 1024) == (1024, 512)


def test_refigns_daformer(tmp_path: Path) -> None:
    state, other = small("daformer"), small("daformer", seed=1)
    rename: Callable[[State, str], State] = lambda s, mark: {  # noqa: E731
        mark + key.replace("decode_head.", "head."): value for key, value in s.items()
    }
    theirs = rename(state, "") | rename(other, "m_")
    theirs |= {f"imnet_{k}": v for k, v in other.items() if k.startswith("backbone.")}
    torch.save({"state_dict": theirs, "epoch": 3}, tmp_path / "refign.ckpt")
    same(open_teacher(tmp_path / "refign.ckpt", CITYSCAPES_CLASSES), state)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["b0", "b2", "b5"])
def test_size_of_the_encoder_is_seen(size: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = build_teacher("segformer", 19, size=size).state_dict()
    path = save(tmp_path / "x.pth", {k: torch.zeros(v.shape, dtype=v.dtype) for k, v in shapes.items()})
    teacher = open_teacher(path, CITYSCAPES_CLASSES)
    assert teacher.facts["encoder"] == f"mit-{size}"
    assert teacher.segmenter.network.backbone.size == MIT_SIZES[size]


@every_leader
@pytest.mark.parametrize("source", ["synthia", "synthia-13"])
def test_fewer_classes_are_some_of_the_nineteen(name: str, source: str, tmp_path: Path) -> None:
    classes = DOMAINS[source].classes
    path = save(tmp_path / "x.pth", small(name))
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        whole = open_teacher(path, CITYSCAPES_CLASSES, name).segmenter.network(x)
        some = open_teacher(path, classes, name).segmenter.network(x)
    assert torch.equal(some, whole[:, [CITYSCAPES_CLASSES.index(c) for c in classes]])
    own = save(tmp_path / "own.pth", small(name, len(classes)))  # trained with no more
    with torch.inference_mode():
        assert open_teacher(own, classes, name).segmenter.network(x).shape[1] == len(classes)


# ---------------------------------------------------------------------------- geometry, as a file says it

PYTHON = """
model = dict(
    decode_head=dict(type='HRDAHead', train_cfg=dict(), test_cfg=dict(mode='x_no', {rest})),
    hr_crop_size=({crop}, {crop}),
    test_cfg=dict(mode='{mode}', batched_slide=True, stride=[{stride}, {stride}], crop_size=[{side}, {side}]))
data = dict(test=dict(pipeline=[dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=({width}, {height}), flip=False)]))
"""


def configuration(kind: str, **numbers: Any) -> str:
    said = {"mode": "slide", "crop": 384, "side": 512, "stride": 256, "width": 1280, "height": 720} | numbers
    if kind == "python":
        return PYTHON.format(rest="a=1", **said).replace("test_cfg=dict(mode='x_no', a=1)", "test_cfg=dict()")
    crop, side, stride = ([said[key]] * 2 for key in ("crop", "side", "stride"))
    test_cfg = {"mode": said["mode"], "batched_slide": True, "stride": stride, "crop_size": side}
    aug = {"type": "MultiScaleFlipAug", "img_scale": [said["width"], said["height"]]}
    return json.dumps(
        {"model": {"hr_crop_size": crop, "test_cfg": test_cfg}, "data": {"test": {"pipeline": [aug]}}}
    )


@pytest.mark.parametrize("kind", ["python", "json"])
def test_its_own_configuration_counts(kind: str, tmp_path: Path) -> None:
    """As the generalisation files of HRDA have crops of 384."""
    path = save(tmp_path / "x.pth", small("hrda"), configuration(kind))
    run = open_teacher(path, CITYSCAPES_CLASSES).segmenter
    assert run.network.crop == 384
    assert run.procedure.windows == Windows(512, 256, 8)
    assert run.preprocessing.input_size(1280, 720) == (1280, 720)
    path = save(
        tmp_path / "x.pth", small("daformer"), configuration(kind, mode="whole", width=960, height=540)
    )
    run = open_teacher(path, CITYSCAPES_CLASSES).segmenter
    assert run.procedure == TEACHERS["daformer"].procedure
    assert run.preprocessing.input_size(1920, 1080) == (960, 540)


@pytest.mark.parametrize(
    "config", ["", "(configuration text)", "hr_crop_size=(1,2)", "test_cfg=dict(mode='slide')"]
)
def test_a_configuration_that_says_nothing(config: str, tmp_path: Path) -> None:
    run = open_teacher(save(tmp_path / "x.pth", small("hrda"), config), CITYSCAPES_CLASSES).segmenter
    assert run.network.crop == 512 and run.procedure == TEACHERS["hrda"].procedure
    assert run.preprocessing == TEACHERS["hrda"].preprocessing


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        (
            {"side": 99999},
            "asks for windows or images of 384, 99999, 256, 1280, 720 pixels; expected 64 to 8192",
        ),
        ({"crop": 8}, "asks for windows or images of 8, 512"),
        ({"stride": 513}, "windows of 512 every 513 pixels"),
        ({"crop": 100}, "detail crops of 100 pixels; expected a multiple of 8"),
        ({"side": 500}, "windows of 500 every 256 pixels: they must be multiples of 8"),
    ],
)
def test_a_configuration_that_makes_no_sense(numbers: dict[str, int], words: str, tmp_path: Path) -> None:
    path = save(tmp_path / "x.pth", small("hrda"), configuration("python", **numbers))
    message = refusal(path)
    assert words in message


# ---------------------------------------------------------------------------- refused, in one sentence


def refusal(path: Path, network: str | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_teacher(path, CITYSCAPES_CLASSES, network)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message.removeprefix(f"{path}: ")


def without(state: State, key: str) -> State:
    return {k: v for k, v in state.items() if k != key}


def swollen(*shape: int) -> Tensor:
    """Of four bytes in the file."""
    return torch.zeros(1).expand(*shape)


STAGE_1 = "backbone.patch_embed1.proj.weight"
FUSE = "decode_head.linear_fuse.conv.weight"
HOSTILE: dict[str, tuple[str, Callable[[State], State], str]] = {
    "no encoder": (
        "daformer",
        lambda s: {k: v for k, v in s.items() if not k.startswith("backbone.")},
        f"it has no '{STAGE_1}'; it is damaged or of another network than DAFormer's",
    ),
    "no such block": (
        "hrda",
        lambda s: without(s, "backbone.block2.0.attn.q.bias"),
        "has no 'backbone.block2.0.attn.q.bias', which HRDA's or MIC's network needs",
    ),
    "further keys": (
        "mic",
        lambda s: s | {"backbone.pos_embed": torch.zeros(3)},
        "has 'backbone.pos_embed', which HRDA's or MIC's network does not know",
    ),
    "a thousand blocks": (
        "daformer",
        lambda s: s | {"backbone.block3.9998.norm1.weight": torch.zeros(24)},
        "stage 3 of its encoder has 9999 blocks, and a MiT has 1 to 40",
    ),
    "a block left out": (
        "segformer",
        lambda s: s | {"backbone.block4.2.norm1.weight": torch.zeros(32)},
        "has no 'backbone.block4.1.norm1.weight'",
    ),
    "a giant": (
        "daformer",
        lambda s: s | {STAGE_1: swollen(1_000_000_000, 3, 7, 7)},
        f"'{STAGE_1}' has shape (1000000000, 3, 7, 7), and no such network is larger than 64 there",
    ),
    "a wide head": (
        "segformer",
        lambda s: s | {"decode_head.linear_c.0.proj.weight": swollen(100_000, 8)},
        "has shape (100000, 8), and no such network is larger than 1024 there",
    ),
    "heads that do not divide": (
        "hrda",
        lambda s: s | {"backbone.patch_embed3.proj.weight": torch.zeros(25, 16, 3, 3)},
        "its encoder has [8, 16, 25, 32] channels, which its heads of 8 do not divide",
    ),
    "no reduction": (
        "hrda",
        lambda s: without(s, "backbone.block2.0.attn.sr.weight"),
        "stage 2 of its encoder is no MiT's (backbone.block2.0.attn.sr.weight)",
    ),
    "another MLP": (
        "hrda",
        lambda s: s | {"backbone.block1.0.mlp.fc1.weight": torch.zeros(16, 8)},
        "stage 1 of its encoder is no MiT's (backbone.block1.0.mlp.fc1.weight)",
    ),
    "another shape": (
        "mic",
        lambda s: s | {"decode_head.scale_attention.fuse_layer.conv.weight": torch.zeros(16, 64, 3, 3)},
        "'decode_head.scale_attention.fuse_layer.conv.weight' has shape (16, 64, 3, 3), but (16, 64, 1, 1) was",
    ),
    "one attention for all classes": (
        "hrda",
        lambda s: s
        | {"decode_head.scale_attention.conv_seg.weight": torch.zeros(1, 16, 1, 1)}
        | {"decode_head.scale_attention.conv_seg.bias": torch.zeros(1)},
        "has 1 classes, but 19 were expected",
    ),
    "a number where a tensor was": (
        "daformer",
        lambda s: s | {STAGE_1: torch.tensor(1.0)},
        f"'{STAGE_1}' has shape ()",
    ),
    "a giant to turn around": (
        "segformer",
        lambda s: s | {"decode_head.linear_c1.proj.weight": torch.zeros(16, 8), FUSE: swollen(16, 10**12, 1, 1)},
        f"'{FUSE}' is no convolution that joins four maps",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_what_no_such_network_has_is_told_in_a_sentence(case: str, tmp_path: Path) -> None:
    name, change, words = HOSTILE[case]
    path = save(tmp_path / "x.pth", before("model.", change(small(name))))
    assert words in refusal(path, name)


@every_leader
def test_other_classes_are_told(name: str, tmp_path: Path) -> None:
    path = save(tmp_path / "x.pth", small(name, 150))
    assert refusal(path, name).startswith("has 150 classes, but 19 were expected")
    assert refusal(path).startswith("has 150 classes, but 19 were expected")


def test_each_is_told_from_the_others(tmp_path: Path) -> None:
    called = {"daformer": "DAFormer's", "hrda": "HRDA's or MIC's", "segformer": "SegFormer's"}
    for name in called:
        path = save(tmp_path / f"{name}.pth", small(name))
        for other in called.keys() - {name}:
            assert f"holds {called[name]} network, but {called[other]} network was" in refusal(path, other)


# ---------------------------------------------------------------------------- run, and on the command line


@torch.inference_mode()
def slid(network: nn.Module, x: Tensor, side: int, stride: int) -> Tensor:
    """(1, C, h, w) of the network input, all windows at once as the project has it."""
    windows = [
        (top, left)
        for top in window_starts(x.shape[2], side, stride)
        for left in window_starts(x.shape[3], side, stride)
    ]
    batch = torch.cat([x[:, :, top : top + side, left : left + side] for top, left in windows])
    logits = F.interpolate(network(batch), batch.shape[2:], mode="bilinear")
    total, count = torch.zeros(1, logits.shape[1], *x.shape[2:]), torch.zeros(x.shape[2:])
    for (top, left), y in zip(windows, logits, strict=True):
        total[0, :, top : top + side, left : left + side] += y
        count[top : top + side, left : left + side] += 1
    return total / count


@every_leader
def test_the_whole_way(name: str, tmp_path: Path) -> None:
    """From a photograph to certainties; HRDA's geometry by the file's own words, an eighth of the published."""
    pixels = np.random.default_rng(3).integers(0, 256, (9, 15, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((180, 108), Image.Resampling.BICUBIC).save(tmp_path / "image.png")
    two_scales = name in ("hrda", "mic")
    mode = "slide" if two_scales else "whole"
    config = configuration("python", mode=mode, crop=64, side=128, stride=64, width=240, height=136)
    state = recipe_weights(build_teacher(name, 19, size=SMALL, width=16))
    teacher = open_teacher(
        save(tmp_path / "x.pth", before("model.", state), config), CITYSCAPES_CLASSES, name
    )
    run = teacher.segmenter
    image = np.asarray(Image.open(tmp_path / "image.png"))
    small_image = run.preprocessing.resize(image)
    assert small_image.shape == (136, 227, 3)
    x = torch.from_numpy(small_image.copy()).permute(2, 0, 1).float()[None]
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    x = (x - mean[:, None, None]) / std[:, None, None]
    if two_scales:
        logits = slid(run.network, x, 128, 64)
    else:
        logits = F.interpolate(run.network(x), x.shape[2:], mode="bilinear")
    expected = F.interpolate(logits, (108, 180), mode="bilinear")[0].softmax(0)
    ((labels, certainty),) = teacher_maps(
        teacher, [tmp_path / "image.png"], InferenceConfig(), torch.device("cpu"), lambda _: None
    )
    difference = np.abs(certainty.astype(int) - (expected * 100).to(torch.uint8).numpy().astype(int))
    assert difference.max() <= 1 and (difference > 0).mean() <= 1e-3
    assert (labels != expected.argmax(0).numpy()).mean() <= 1e-3 and len(np.unique(labels)) > 1


def test_their_archives_hold_planes(tmp_path: Path) -> None:
    """A grid says what is enlarged once: not a mean of windows, nor what is enlarged twice."""
    for name in LEADERS:
        assert not has_grid(
            open_teacher(save(tmp_path / "x.pth", small(name)), CITYSCAPES_CLASSES, name).segmenter
        )
    twice = replace(TEACHERS["dacs"].procedure, align_corners=False)
    segmenter = open_teacher(tmp_path / "x.pth", CITYSCAPES_CLASSES, "segformer").segmenter
    assert has_grid(replace(segmenter, procedure=twice))


@pytest.mark.parametrize("name", ["mic", "second"])
def test_export_of_a_published_checkpoint(name: str, tmp_path: Path) -> None:
    """Under its name, and under another: then the file tells what it is."""
    make_cityscapes(tmp_path)
    line = ("export-teacher", name, "--weights", TINY, "--size", "128x64", "--workspace", tmp_path)
    result = result_of(*line, "--shard", "1/3")
    assert (result["images"], result["skipped"]) == (2, 0)
    with CertaintyReader(tmp_path / f"certainty/gta5/{name}") as reader:
        assert reader.attributes["teacher_of"] == "MIC"
        assert (reader.attributes["windows"], reader.attributes["crop"]) == ([1024, 512], 512)
        expected = open_teacher(TINY, CITYSCAPES_CLASSES, size=(128, 64))
        image = next(tmp_path.rglob(f"{reader.ids[0]}.png"))
        ((labels, certainty),) = teacher_maps(
            expected, [image], InferenceConfig(), torch.device("cpu"), lambda _: None
        )
        assert np.array_equal(reader.labels(reader.ids[0]), labels)
        assert np.array_equal(reader.certainty(reader.ids[0]), certainty)
    assert "made with flip False, but this run has True" in refused(*line, "--flip")


def test_tiles_are_said_to_have_no_effect(tmp_path: Path) -> None:
    make_cityscapes(tmp_path)
    line = ("export-teacher", "mic", "--weights", TINY, "--size", "128x64", "--workspace", tmp_path)
    told: list[str] = []
    teacher = open_teacher(TINY, CITYSCAPES_CLASSES, size=(128, 64))
    image = next(tmp_path.rglob("*_leftImg8bit.png"))
    report: Callable[[Any], None] = lambda note: told.append(note.text)  # noqa: E731
    whole, tiled = (
        next(teacher_maps(teacher, [image], InferenceConfig(tile=tile), torch.device("cpu"), report))
        for tile in (None, (32, 32))
    )
    assert np.array_equal(whole[1], tiled[1])
    assert told == ["--tile has no effect on this network: it is run in windows of 1024x1024 anyway"]
    assert result_of(*line, "--tile", "32x32", "--shard", "1/6")["images"] == 1
