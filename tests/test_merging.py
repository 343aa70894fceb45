"""Weights of several runs in one: the mean, its statistics, which runs count, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from endauda_cli import checkpoint
from endauda_cli.datasets import find_samples
from endauda_cli.domains import CITYSCAPES, CITYSCAPES_CLASSES
from endauda_cli.inference import load
from endauda_cli.merging import _warn_of_valleys, mean_of, measure_statistics
from endauda_cli.models import build_student
from endauda_cli.progress import silent
from endauda_cli.results import MergedRun, MergeResult
from endauda_cli.segmenter import Segmenter
from endauda_cli.transforms import Preprocessing
from tests.support.command_lines import (
    CITIES,
    SIZE_FLAGS,
    TEACHERS,
    make_workspace,
    refused,
    result_of,
    succeed,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels of both splits, and three runs from one start, the last of them spoiled."""
    root = make_workspace(tmp_path_factory.mktemp("merge"))
    line = ("--workspace", root)
    succeed("fuse", *line, "--teachers", *TEACHERS, "--rule", "majority")
    succeed(
        "fuse", *line, "--teachers", *TEACHERS, "--rule", "majority", "--split", "val", "--name", "on-val"
    )
    base = ("--labels", "majority", *SIZE_FLAGS, "--lr", "0.01")
    succeed("train", *line, *base, "--steps", "30", "--name", "start")
    for seed in "123":
        start = root / "runs/gta5/start/last.pt"
        succeed(
            "train", *line, *base, "--steps", "4", "--seed", seed, "--init", start, "--name", f"seed{seed}"
        )
    path = root / "runs/gta5/seed3/last.pt"
    content = checkpoint.load(path)
    content["weights"]["decoder.last_conv.8.weight"].neg_()
    checkpoint.save(path, {key: value for key, value in content.items() if key != "format"})
    return root


@pytest.fixture
def city(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(world)
    return world


def weights(path: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = checkpoint.load(Path(path))["weights"]
    return found


def test_uniform_is_the_mean_and_everybody_takes_it(city: Path) -> None:
    told = result_of("merge", "seed1", "runs/gta5/seed2/last.pt", "--into", "soup", "--statistics", "5")
    assert (told["by"], told["score"], told["statistics_images"]) == ("uniform", None, 5)
    assert [run["used"] for run in told["runs"]] == [True, True]
    merged = weights(told["checkpoint"])
    first, second = weights("runs/gta5/seed1/last.pt"), weights("runs/gta5/seed2/last.pt")
    for key, value in merged.items():
        if "running_" not in key and value.is_floating_point():
            assert torch.allclose(value, (first[key] + second[key]) / 2, atol=1e-7), key
    norms = [key for key in merged if "running_" in key]
    assert any(not torch.allclose(merged[key], (first[key] + second[key]) / 2, rtol=1e-3) for key in norms)
    # newest first: test without a name scores it
    assert result_of("test")["scored"].endswith("runs/gta5/soup/best.pt")
    succeed("export-teacher", "third", "--weights", "runs/gta5/soup/best.pt")
    init = ("--init", "runs/gta5/soup/best.pt", "--name", "on")
    succeed("train", "--labels", "majority", *SIZE_FLAGS, "--steps", "1", *init)
    succeed("deploy", "soup", "--format", "torchscript")


def test_averaged_statistics_are_the_mean_of_all(city: Path) -> None:
    told = result_of("merge", "seed1", "seed2", "--into", "plain", "--statistics", "0")
    merged, states = weights(told["checkpoint"]), [weights(f"runs/gta5/seed{i}/last.pt") for i in (1, 2)]
    for key, value in mean_of(states).items():
        assert torch.equal(merged[key], value), key
    assert told["statistics_images"] == 0


@pytest.mark.parametrize("by", [("agreement", "--labels", "on-val"), ("miou",)], ids=["agreement", "miou"])
def test_greedy_leaves_out_what_spoils(by: tuple[str, ...], city: Path) -> None:
    told = result_of("merge", "seed3", "seed1", "seed2", "--into", f"greedy-{by[0]}", "--by", *by)
    scores = {Path(run["checkpoint"]).parent.name: run["score"] for run in told["runs"]}
    used = {Path(run["checkpoint"]).parent.name for run in told["runs"] if run["used"]}
    assert "seed3" not in used and scores["seed3"] < min(scores["seed1"], scores["seed2"])
    assert told["score"] >= max(scores.values()) and len(told["scored_images"]) == 2
    said = checkpoint.read_meta(Path(told["checkpoint"]))["merged"]
    assert [run["used"] for run in said["runs"]] == [run["used"] for run in told["runs"]] and said[
        "by"
    ] == by[0]


@pytest.mark.parametrize(("alike", "warned"), [((60.0, 62.0, 0.0), True), ((96.0, 95.0, 0.0), False)])
def test_other_valleys_are_warned_of(alike: tuple[float, ...], warned: bool) -> None:
    """Runs that agree on 90 % with each other; the third was not used, so it does not count."""
    paths = [Path(name) for name in "abc"]
    runs = tuple(MergedRun(path, path.name != "c", None, one) for path, one in zip(paths, alike, strict=True))
    result = MergeResult(Path("x"), "uniform", runs, None, (), 0, alike=90.0)
    notes: list[Any] = []
    _warn_of_valleys(result, [0, 1], notes.append)
    assert [note.level for note in notes] == ["warning"] * warned


# ---------------------------------------------------------------------------- statistics


def test_statistics_are_those_of_the_images(city: Path) -> None:
    """Of the first norm, whose input no other norm changes: mean and variance over all batches, in the mean."""
    images = [s.image for s in find_samples(CITYSCAPES, [city / CITIES], "train")]
    images += images[:4]  # so that there are two batches, of five and of four
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout2d(0.5), nn.Conv2d(3, 3, 1))
    segmenter = Segmenter(network, Preprocessing(size=(64, 32)))
    norm = network[0]
    assert isinstance(norm, nn.BatchNorm2d)
    measure_statistics(segmenter, [norm], images, CPU, silent)
    pixels = [load(path, segmenter).pixels[0] for path in images]
    parts = [segmenter.preprocessing.normalise(torch.stack(part)) for part in (pixels[:5], pixels[5:])]
    means = [x.mean((0, 2, 3)) for x in parts]
    variances = [x.var((0, 2, 3)) for x in parts]
    for found, of in ((norm.running_mean, means), (norm.running_var, variances)):
        assert found is not None
        assert torch.allclose(found, (5 * of[0] + 4 * of[1]) / 9, rtol=1e-4)
    assert norm.momentum == 0.1 and not norm.training and not network.training


# ---------------------------------------------------------------------------- refusals


def put(path: Path, arch: str = "deeplabv3plus", **meta: Any) -> Path:
    told = {"arch": arch, "backbone": "tiny", "classes": list(CITYSCAPES_CLASSES), "size": [64, 32]} | meta
    network = build_student(arch, "tiny", len(told["classes"]))
    checkpoint.save(path, {"weights": network.state_dict(), "meta": told})
    return path


def test_unlike_runs(city: Path, tmp_path: Path) -> None:
    other = put(tmp_path / "v2.pt", "deeplabv2")
    assert "a network of deeplabv2 on tiny, but runs/gta5/seed1/last.pt" not in (
        message := refused("merge", "seed1", other, "--into", "x")
    )
    assert "deeplabv2 on tiny" in message and "weights of unlike networks have no mean" in message
    fewer = put(tmp_path / "two.pt", classes=["road", "car"])
    assert "trained for 2 classes" in refused("merge", "seed1", fewer, "--into", "x")
    larger = put(tmp_path / "large.pt", size=[128, 64])
    assert "trained on other input (128x64)" in refused("merge", "seed1", larger, "--into", "x")
    assert not (city / "runs/gta5/x").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("seed1", "--into", "x"), "a single run has no mean; name two or more"),
        (("seed1", "runs/gta5/seed1/last.pt", "--into", "x"), "named twice, which would count it twice"),
        (("seed1", "sed2", "--into", "x"), "runs of gta5 are "),
        (("seed1", "seed2", "--into", "../x"), "--into '../x': use a word that can name a folder"),
        (("seed1", "seed2", "--into", "start"), "is there already and no merge; name another run with --into"),
        (("seed1", "seed2", "--into", "x", "--labels", "on-val"), "add --by agreement, or leave it out"),
        (("seed1", "seed2", "--into", "x", "--statistics", "-1"), "--statistics -1: must be from 0 to 100,000"),
    ],
)  # fmt: skip
def test_lines_that_merge_cannot_follow(city: Path, words: tuple[str, ...], message: str) -> None:
    assert message in refused("merge", *words)
    assert not (city / "runs/gta5/x").exists()


def test_a_merge_may_be_made_anew(city: Path) -> None:
    line = ("merge", "seed1", "seed2", "--into", "twice")
    first = result_of(*line)
    again = result_of(*line, "--statistics", "3")
    assert first["checkpoint"] == again["checkpoint"]
    assert (first["statistics_images"], again["statistics_images"]) == (0, 3)
    assert json.loads((city / "runs/gta5/twice/config.json").read_text())["merged"]["statistics_images"] == 3
