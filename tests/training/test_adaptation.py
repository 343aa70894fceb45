"""Methods that adapt from a labelled source to an unlabelled target: a few steps each, stopped and gone on with."""

from __future__ import annotations

import dataclasses
import json
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from endauda_cli import checkpoint
from endauda_cli.config import TrainConfig
from endauda_cli.datasets import find_samples
from endauda_cli.errors import CheckpointError, ConfigError
from endauda_cli.models import build_student
from endauda_cli.models.foreign import Foreign, HeadSum
from endauda_cli.progress import Note, Tick, silent
from endauda_cli.students import Network, build
from endauda_cli.students.families import FAMILIES
from endauda_cli.teachers.registry import TEACHERS
from endauda_cli.teachers.starting import named
from endauda_cli.training.data import Rows, crop_at, load_rows, order_of
from endauda_cli.training.loop import train
from endauda_cli.training.methods import METHODS, TARGET, Material, cbst, crst, mrnet
from endauda_cli.training.rounds import probabilities_of
from endauda_cli.training.run import Run, make_state
from endauda_cli.transforms import STUDENT
from endauda_cli.types import Method
from endauda_cli.workspace import Workspace
from tests.support.training_runs import CONFIG, TinySet

if TYPE_CHECKING:
    from pathlib import Path

CPU = torch.device("cpu")
ADAPTING = [name for name in Method if name not in (Method.DISTILL, Method.SOURCE)]


class Two(nn.Module):
    """A trunk and two heads, at a quarter of the size."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.layer5 = nn.Sequential(nn.Conv2d(16, 8, 3, 2, 1), nn.Dropout2d(0.1), nn.Conv2d(8, classes, 1))
        self.layer6 = nn.Sequential(nn.Conv2d(16, 8, 3, 2, 1), nn.Dropout2d(0.1), nn.Conv2d(8, classes, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(images / 100)
        return self.layer5(features), self.layer6(features)


@pytest.fixture(autouse=True)
def _two_headed(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(settings: Any, num_classes: int, align_corners: bool) -> Foreign:
        return Foreign(HeadSum(Two(num_classes), (0.5, 1.0)), ("trunk",), align_corners)

    monkeypatch.setitem(FAMILIES, "package", build)


class Enough(Exception):
    """The run is stopped."""


def go(data: TinySet, out: Path, method: str, stop_at: int | None = None, **changes: Any) -> dict[str, Any]:
    """A short run of a method from the tiny set to itself, whose target has no labels; its last checkpoint."""
    kind = METHODS[method]
    told = {
        **kind.defaults,
        "steps": 14,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "size": (64, 32),
        "source_size": None if method == Method.RECTIFY else (48, 24),
        "crop": (32, 16),
        "warm_up": 0,
        "memory_from": 5,
        "validate_every": 0,
        "scale_jitter": None,
        "rounds": 2,
        "source_portion": 0.5,
        "source_portion_step": 0.25,
        "source_portion_most": 1.0,
        "mine_below": 0.3,
        "freeze_norms": False,  # of random weights, they have none
        **changes,
    }
    config = dataclasses.replace(CONFIG, method=method, **told)
    roots = (data.root,)
    labels = str(data.root / "fused") if method == Method.RECTIFY else None
    streams, _ = kind.streams(Material(data.task, Workspace(out.parent), roots, roots, labels))
    streams = kind.narrowed(streams, config)
    assert labels or all(example.label is None for example in streams[TARGET].examples)
    network = Network("package", "two-headed") if issubclass(kind, mrnet.TwoHeaded) else None

    def report(event: Tick | Note) -> None:
        if isinstance(event, Tick) and event.task == "training" and event.done == stop_at:
            raise Enough

    train(config, Run(data.task, streams, out, out.parent / "cache", CPU, network=network), report)
    return checkpoint.load(out / "last.pt")


def same(one: Any, other: Any) -> bool:
    """Whether two parts of checkpoints are equal, bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("method", ADAPTING)
def test_a_stopped_run_goes_on_as_the_same_run(tiny_set: TinySet, tmp_path: Path, method: str) -> None:
    whole = go(tiny_set, tmp_path / "whole", method)
    with pytest.raises(Enough):
        go(tiny_set, tmp_path / "stopped", method, stop_at=11)
    assert checkpoint.load(tmp_path / "stopped/last.pt")["meta"]["step"] == 8
    again = go(tiny_set, tmp_path / "stopped", method, workers=2)
    for part in ("weights", "optimizer", "method"):
        assert same(whole.get(part), again.get(part)), part
    assert whole["meta"]["step"] == again["meta"]["step"] == 14


def test_the_averaged_teacher_follows(tiny_set: TinySet, tmp_path: Path) -> None:
    content = go(tiny_set, tmp_path / "run", "dacs", teacher_decay=0.5)
    student, teacher = content["weights"], content["method"]["teacher"]
    key = "decoder.last_conv.8.weight"
    assert not torch.equal(student[key], teacher[key])
    torch.testing.assert_close(student[key], teacher[key], rtol=0, atol=0.05)
    at_once = go(tiny_set, tmp_path / "at-once", "dacs", teacher_decay=0.0)
    assert torch.equal(at_once["weights"][key], at_once["method"]["teacher"][key])


def test_what_adaptation_does_not_go_with() -> None:
    with pytest.raises(ConfigError, match="--labelled source: --method dacs"):
        TrainConfig(method=Method.DACS, labelled="source")
    with pytest.raises(ConfigError, match="--source-size: of methods"):
        TrainConfig(source_size=(1280, 720))
    with pytest.raises(ConfigError, match="larger than --source-size 256x128"):
        TrainConfig(method=Method.DACS, source_size=(256, 128))
    with pytest.raises(ConfigError, match=r"--sure 96\.8"):
        TrainConfig(method=Method.DACS, sure=96.8)


@pytest.mark.parametrize("network", ["dacs", "crst", "mrnet"])
def test_pixels_undoes_normalise(network: str) -> None:
    preprocessing = TEACHERS[network].preprocessing
    images = torch.randint(
        0, 256, (2, 5, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    again = preprocessing.pixels(preprocessing.normalise(images))
    torch.testing.assert_close(again, images.permute(0, 3, 1, 2).float(), rtol=0, atol=1e-4)
    assert again.is_contiguous()


def test_rounds_learn_other_images_and_labels(tiny_set: TinySet, tmp_path: Path) -> None:
    go(tiny_set, tmp_path / "run", "cbst", learning_rate=0.01)
    first, second = (np.load(tmp_path / "run/rounds" / number / "labels.npy") for number in ("0", "1"))
    assert first.shape == second.shape == (4, 32, 64)
    assert not np.array_equal(first, second)
    told = [
        json.loads((tmp_path / "run/rounds" / number / "round.json").read_text()) for number in ("0", "1")
    ]
    for labels, facts, portion in ((first, told[0], 0.2), (second, told[1], 0.25)):
        assert sum(facts["shares"]) == pytest.approx(1)
        # Every class labels that share of where it was predicted, and some of where another was, by less.
        assert portion * 0.9 < np.count_nonzero(labels != 255) / labels.size < 1


def test_pseudo_labels_are_those_of_the_kernels(tiny_set: TinySet, tmp_path: Path) -> None:
    """Of the network that a run starts with, image by image."""
    go(tiny_set, tmp_path / "run", "cbst", steps=2, rounds=1)
    torch.manual_seed(CONFIG.seed)
    student = build_student("deeplabv3plus", "tiny", 3).eval()
    samples = find_samples(tiny_set.domain, [tiny_set.root], "train")
    images = [np.asarray(Image.open(sample.image)) for sample in samples]
    maps = [probabilities_of(student, image, STUDENT, 0.9) for image in images]
    thresholds = cbst.class_thresholds(maps, 0.2, stride=4)
    expected = [cbst.pseudo_labels(each, thresholds) for each in maps]
    found = np.load(tmp_path / "run/rounds/0/labels.npy")
    np.testing.assert_array_equal(found, np.stack(expected))
    assert (found != 255).any()


def test_a_round_is_not_gone_on_with_without_its_labels(tiny_set: TinySet, tmp_path: Path) -> None:
    with pytest.raises(Enough):
        go(tiny_set, tmp_path / "run", "cbst", stop_at=11, rounds=1)
    (tmp_path / "run/rounds/0/labels.npy").unlink()
    with pytest.raises(CheckpointError, match="pseudo labels of round 1 are not there"):
        go(tiny_set, tmp_path / "run", "cbst", rounds=1)


def test_regularisers_make_other_networks(tiny_set: TinySet, tmp_path: Path) -> None:
    recipes: dict[str, tuple[str, dict[str, Any]]] = {
        "none": ("cbst", {}),
        "weight 0": ("crst", {"regulariser_weight": 0.0}),
        "mrkld": ("crst", {}),
        "mrent": ("crst", {"regulariser": "mrent"}),
        "lrent": ("crst", {"regulariser": "lrent"}),
        "as published": ("crst", {"as_published": True}),
        "squared": ("crst", {"regulariser_weight": 0.1**2}),
    }
    found = {
        name: go(tiny_set, tmp_path / name, method, **changes)["weights"]
        for name, (method, changes) in recipes.items()
    }
    key = "decoder.last_conv.8.weight"
    torch.testing.assert_close(found["none"][key], found["weight 0"][key], rtol=1e-5, atol=1e-6)
    assert torch.equal(found["as published"][key], found["squared"][key])
    different = [found[name][key] for name in ("none", "mrkld", "mrent", "lrent", "squared")]
    for i, one in enumerate(different):
        assert not any(torch.equal(one, other) for other in different[i + 1 :])


def test_mined_crops_lie_around_their_class() -> None:
    labels = np.full((2, 40, 60), 255, np.uint8)
    labels[1, 30, 50], labels[:, :5] = 2, 0
    mining = cbst._Mining(labels, [1, 2], 1.0, before=3)
    rng = random.Random(0)
    assert [mining.centre(row, rng) for row in range(5)] == [None, None, None, None, (30, 50)]
    rows = Rows(np.zeros((2, 40, 60, 3), np.uint8), labels, None, centre=lambda i, rng: (30, 50))
    config = dataclasses.replace(CONFIG, augment=(), mirror=False)
    for position in range(4):
        found = crop_at(config, rows, position).labels  # 16 x 32, as far towards the border as there is room
        index = int(order_of(config.seed, position // 2, 2)[position % 2])
        np.testing.assert_array_equal(found.numpy(), labels[index, 22:38, 28:60])
    never = cbst._Mining(labels, [1, 2], 0.0, before=0)
    assert never.centre(1, rng) is None


def test_mrnet_shows_the_target_as_it_is(tiny_set: TinySet, tmp_path: Path) -> None:
    roots = (tiny_set.root,)
    streams, _ = METHODS[Method.MRNET].streams(Material(tiny_set.task, Workspace(tmp_path), roots, roots))
    config = dataclasses.replace(CONFIG, method=Method.MRNET, scale_jitter=(0.8, 1.2), augment=())
    contents = ("images", "labels", "")
    still = {n: load_rows(config, s, contents, tmp_path, silent).still for n, s in streams.items()}
    assert still == {"main": False, TARGET: True}


def test_frozen_norms_keep_their_statistics(tiny_set: TinySet, tmp_path: Path) -> None:
    frozen = go(tiny_set, tmp_path / "frozen", "cbst", freeze_norms=True, learning_rate=1e-7)["weights"]
    free = go(tiny_set, tmp_path / "free", "cbst", learning_rate=1e-7)["weights"]
    fresh = build_student("deeplabv3plus", "tiny", 3).state_dict()
    means = [key for key in fresh if key.endswith("running_mean")]
    assert means
    assert all(torch.equal(frozen[key], fresh[key]) for key in means)
    assert not any(torch.equal(free[key], fresh[key]) for key in means)


def test_soft_labels_are_kept_cut_and_learnt(tiny_set: TinySet, tmp_path: Path) -> None:
    """Crops of a round hold the labels of the source, and the soft ones of the target."""
    go(tiny_set, tmp_path / "run", "crst", steps=2, rounds=1, regulariser="lrent")
    place = tmp_path / "run/rounds/0"
    labels, soft = np.load(place / "labels.npy"), np.load(place / "soft.npy")
    assert soft.shape == (4, 3, 32, 64)
    np.testing.assert_array_equal(labels != 255, soft.any(1))
    assert (np.abs(soft.sum(1, dtype=int)[labels != 255] - 255) <= 2).all()
    rows = Rows(np.zeros((4, 32, 64, 3), np.uint8), labels, soft)
    config = dataclasses.replace(CONFIG, method="crst", augment=())
    found = [crop_at(config, rows, position) for position in range(4)]
    for crop in found:
        assert crop.certainties is not None
        assert crop.certainties.shape == (3, 16, 32)
        known = crop.labels != 255
        assert torch.equal(crop.certainties.sum(0) > 0, known)
    learnt = crst.softened(
        torch.tensor([[[[51, 0]], [[204, 0]]]], dtype=torch.uint8), torch.tensor([[[1, 0]]])
    )
    torch.testing.assert_close(learnt, torch.tensor([[[[0.2, 1.0]], [[0.8, 0.0]]]]))


def test_discriminators_learn_beside_the_network(tiny_set: TinySet, tmp_path: Path) -> None:
    content = go(tiny_set, tmp_path / "run", "mrnet", judge_rate=1e-3)
    torch.manual_seed(CONFIG.seed)
    judges = content["method"]["judges"]
    assert float(judges["0.cnns.0.9.bias"].abs()) > 1e-4  # began at 0
    assert not torch.equal(judges["0.cnns.0.9.weight"], judges["1.cnns.0.9.weight"])
    assert content["method"]["judges_optimizer"]["state"]
    alone = go(tiny_set, tmp_path / "alone", "mrnet", deceive_auxiliary=0.0, deceive_main=0.0)
    assert float(alone["method"]["judges"]["0.cnns.0.9.bias"].abs()) == 0
    assert not torch.equal(alone["weights"]["layer6.2.weight"], content["weights"]["layer6.2.weight"])


def test_memory_sets_in_at_its_step(tiny_set: TinySet, tmp_path: Path) -> None:
    key = "layer5.2.weight"
    never, late, early = (
        go(tiny_set, tmp_path / str(step), "mrnet", memory_from=step, memory_weight=10.0)["weights"][key]
        for step in (100, 13, 0)
    )
    assert not torch.equal(never, late)
    assert not torch.equal(late, early)


def test_a_small_network_has_two_heads(tmp_path: Path) -> None:
    start = named("mrnet-tiny", None, ("sky", "road", "car"), tmp_path.joinpath)
    assert start is not None
    config = dataclasses.replace(CONFIG, method="mrnet", deceive_auxiliary=0.0, deceive_main=0.0)
    state = make_state(build(start.network, 3), config, 3, CPU, start.network.preprocessing)
    assert isinstance(state.method, mrnet.TwoHeaded)
    assert state.student.encoder_parts == ("backbone",)
    state.student.eval()
    x = torch.rand(2, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    auxiliary, main = state.method.heads(state.student, x, (8, 16))
    assert auxiliary.shape == main.shape == (2, 3, 8, 16)
    torch.testing.assert_close(state.student(x), 0.5 * auxiliary + main)
    for head, other in ((auxiliary, "layer6"), (main, "layer5")):
        state.student.zero_grad()
        head.sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]
        learning = {name for name, p in state.student.network.named_parameters() if p.grad is not None}
        assert any(name.startswith("backbone") for name in learning)
        assert not any(name.startswith(other) for name in learning)


def test_the_second_stage_alone_teaches_batch_norms() -> None:
    for method, expected in (("mrnet", 0), ("rectify", 2)):
        student = Foreign(HeadSum(Two(3), (0.5, 1.0)), ("trunk",), True)
        norms = [module for module in student.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.requires_grad_(False)
        optimizer = make_state(student, dataclasses.replace(CONFIG, method=method), 3, CPU).optimizer
        taught = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        found = [id(parameter) in taught for norm in norms for parameter in norm.parameters()]
        assert sum(found) == expected


def test_images_for_pseudo_labels_are_as_large_as_opencv_makes_them() -> None:
    """Cityscapes' 2048x1024 by 0.9 is 1843x922: sides are rounded, not cut."""
    seen: list[tuple[int, int]] = []

    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parameter = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            seen.append((x.shape[3], x.shape[2]))
            return torch.zeros(1, 3, 4, 8)

    said = probabilities_of(Looks(), np.zeros((1024, 2048, 3), np.uint8), STUDENT, 0.9)  # type: ignore[arg-type]
    assert seen == [(1843, 922)] * 2
    assert said.shape == (3, 1024, 2048)


def test_one_head_is_too_few(tiny_set: TinySet) -> None:
    config = dataclasses.replace(CONFIG, method="mrnet")
    with pytest.raises(ConfigError, match="--method mrnet: a network of two heads"):
        make_state(build_student("deeplabv3plus", "tiny", 3), config, 3, CPU)
