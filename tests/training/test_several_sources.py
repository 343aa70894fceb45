"""``train --method source --domains A B``: several labelled sources in every batch."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from endauda_cli import checkpoint
from endauda_cli.config import TrainConfig
from endauda_cli.datasets import load_together
from endauda_cli.domains import CITYSCAPES_CLASSES, DOMAINS, IGNORE, NOT_IN_SYNTHIA_16
from endauda_cli.errors import ConfigError, DataError
from endauda_cli.progress import Note, Tick
from endauda_cli.training import resume
from endauda_cli.training.data import FURTHER, MAIN, Rows, batches
from endauda_cli.training.loop import train
from endauda_cli.training.methods import Material
from endauda_cli.training.methods.source import Source
from endauda_cli.training.run import Run
from endauda_cli.workspace import Workspace
from tests.support.command_lines import SIZE_FLAGS, make_cityscapes, refused, succeed
from tests.support.training_runs import CONFIG, TOML, make_set
from tests.training.test_adaptation import same
from tests.training.test_adaptation_commands import make_source

LINE = ("train", "--method", "source", *SIZE_FLAGS, "--batch-size", "4", "--steps", "3", "--device", "cpu")


class Enough(Exception):
    """The run is stopped."""


@pytest.fixture
def world(tmp_path: Path) -> Path:
    root = make_cityscapes(tmp_path)
    make_source(root, "gta5")
    make_source(root, "synthia")
    return root


def table(name: str, classes: str) -> str:
    """A class table like ``tiny``'s, without cars."""
    named = TOML.replace('"tiny"', f'"{name}"').replace('["road", "car", "sky"]', classes)
    return named.replace('"26" = "car", ', "")


@pytest.fixture
def two_sets(tmp_path: Path) -> Path:
    """``tiny`` and ``other``, which has no cars; the same pictures, a shade darker."""
    root = make_set(tmp_path / "set").root
    other = make_set(root / "other")
    (other.root / "tiny.toml").write_text(table("other", '["sky", "road"]'))
    return root


def go(root: Path, out: Path, stop_at: int | None = None, **changes: Any) -> dict[str, Any]:
    """A run on both sets; its last checkpoint."""
    task, others = load_together(("other/tiny.toml", "tiny.toml"), str(root / "tiny.toml"), root)
    further = tuple((domain, (root / "other",)) for domain in others)
    streams, word = Source.streams(Material(task, Workspace(out.parent), (root,), (root,), None, further))
    assert word == "source-tiny-other"
    told: dict[str, Any] = {"batch_size": 4, "steps": 14, "validate_every": 0, **changes}
    config = dataclasses.replace(CONFIG, method="source", domains=("tiny", "other"), **told)

    def report(event: Tick | Note) -> None:
        if isinstance(event, Tick) and event.task == "training" and event.done == stop_at:
            raise Enough

    result = train(config, Run(task, streams, out, out.parent / "cache", torch.device("cpu")), report)
    assert result.images == 8
    return checkpoint.load(out / "last.pt")


def test_what_a_source_lacks_it_never_shows() -> None:
    for names in (("gta5", "synthia"), ("synthia", "gta5")):
        task, (synthia,) = load_together(names, "cityscapes", Path())
        assert (task.source.name, task.classes) == ("gta5", CITYSCAPES_CLASSES)
        assert (synthia.name, synthia.classes) == ("synthia", CITYSCAPES_CLASSES)
        for label_id, name in DOMAINS["synthia"].label_ids.items():
            absent = name in NOT_IN_SYNTHIA_16 or name not in CITYSCAPES_CLASSES
            assert synthia.train_id(label_id) == (IGNORE if absent else CITYSCAPES_CLASSES.index(name))


def test_classes_of_other_orders_are_joined_by_name(two_sets: Path) -> None:
    task, (other,) = load_together(("other/tiny.toml", "tiny.toml"), str(two_sets / "tiny.toml"), two_sets)
    assert (task.classes, other.classes) == (("road", "car", "sky"),) * 2
    assert [other.train_id(label_id) for label_id in (7, 26, 23)] == [0, IGNORE, 2]


def test_every_batch_has_equal_parts_of_each() -> None:
    def rows(value: int, count: int) -> Rows:
        images = np.full((count, 32, 64, 3), value, np.uint8)
        return Rows(images, np.zeros((count, 32, 64), np.uint8))

    config = dataclasses.replace(
        CONFIG, method="source", domains=("a", "b", "c"), batch_size=6, augment=(), steps=4
    )
    streams = {MAIN: rows(10, 9), f"{FURTHER}b": rows(20, 2), f"{FURTHER}c": rows(30, 1)}
    with ThreadPoolExecutor(1) as pool:
        fed = list(batches(config, streams, 0, pool))
    assert len(fed) == 4
    for batch in fed:
        assert list(batch.streams) == [MAIN]
        shown = batch.streams[MAIN].pixels[:, 0, 0, 0].tolist()
        assert shown == [10, 10, 20, 20, 30, 30]


def test_a_stopped_run_goes_on_as_the_same_run(two_sets: Path, tmp_path: Path) -> None:
    whole = go(two_sets, tmp_path / "whole")
    with pytest.raises(Enough):
        go(two_sets, tmp_path / "stopped", stop_at=11)
    assert checkpoint.load(tmp_path / "stopped/last.pt")["meta"]["step"] == 8
    again = go(two_sets, tmp_path / "stopped", workers=2)
    for part in ("weights", "optimizer", "loss"):
        assert same(whole[part], again[part]), part
    assert whole["meta"]["config"]["domains"] == ["tiny", "other"]


def test_more_processes_than_images_of_a_source(
    two_sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume, "world_size", lambda: 2)
    with pytest.raises(ConfigError, match=r"--domains tiny other: 3 images of each .* over 2 processes"):
        go(two_sets, tmp_path / "run", batch_size=6)


def test_two_sources_by_the_command_line(world: Path) -> None:
    line = (*LINE, "--workspace", world)
    succeed(*line, "--domains", "synthia,gta5")
    run = world / "runs/gta5/deeplabv3plus-tiny-source-gta5-synthia"
    first = checkpoint.load(run / "last.pt")
    assert first["meta"]["classes"] == list(CITYSCAPES_CLASSES)
    assert first["meta"]["data"]["content"]
    told = succeed(*line, "--domains", "gta5", "synthia", "--dry-run").out
    assert "nothing to do" in told, "the order in which they are named is none"
    recipe = (run / "config.toml").read_text()
    assert 'domains = ["synthia", "gta5"]' in recipe and "source = " not in recipe
    succeed(
        "train", "--config", run / "config.toml", "--name", "again", "--device", "cpu", "--workspace", world
    )
    assert same(first["weights"], checkpoint.load(world / "runs/gta5/again/last.pt")["weights"])
    alone = (
        "train",
        "--config",
        run / "config.toml",
        "--source",
        "gta5",
        "--name",
        "alone",
        "--workspace",
        world,
    )
    succeed(*alone, "--device", "cpu")
    assert not same(first["weights"], checkpoint.load(world / "runs/gta5/alone/last.pt")["weights"])
    page = (run / "report.html").read_text()
    assert "4 images a step of 3 and 3; source gta5 and synthia" in page


def test_domains_of_a_file_and_a_source_of_all_commands(world: Path) -> None:
    """What was typed beats a default, and the sources together one that is alone."""
    (world / "endauda.toml").write_text('source = "synthia"\n[train]\ndomains = ["gta5", "synthia"]\n')
    line = (*LINE, "--workspace", world, "--dry-run")
    assert "source-gta5-synthia" in succeed(*line).out
    typed = succeed(*line, "--source", "synthia").out
    assert "run deeplabv3plus-tiny-source " in typed


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--domains", "gta5", "synthia", "--source", "gta5"), "takes the place of --source gta5"),
        (("--domains", "gta5", "synthia", "--source-data", "."), "--source-data is of one source"),
        (("--domains", "gta5", "synthia", "--method", "dacs"), "learnt by --method source alone"),
        (("--domains", "gta5", "synthia", "--method", "distill"), "learnt by --method source alone"),
        (("--domains", "gta5"), "one source alone is named with --source"),
        (("--domains", "gta5", "gta5"), "gta5 and gta5 are the same images"),
        (("--domains", "synthia", "synthia-19"), "synthia and synthia-19 are the same images"),
        (("--domains", "gta5", "synthia", "--batch-size", "5"), "do not divide into 2 equal parts"),
        (("--domains", "gta5", "cows.toml"), "class 'cow' of cows is not in gta5"),
        (("--domains", "gta5", "sintia"), "no data set 'sintia'"),
    ],
)  # fmt: skip
def test_what_does_not_go_together(world: Path, more: tuple[str, ...], said: str) -> None:
    (world / "cows.toml").write_text(
        'name = "cows"\nclasses = ["road", "cow"]\n[train]\nimages = "cows/*.png"\nlabels = "said/*.png"\n'
    )
    assert said in refused(*LINE, *more, "--workspace", world)
    assert not (world / "runs").exists()


def test_true_labels_take_their_places_first() -> None:
    told: dict[str, Any] = {"method": "source", "domains": ("a", "b"), "labelled": "target"}
    TrainConfig(batch_size=10, labelled_share=0.2, **told)
    with pytest.raises(ConfigError, match="the 9 images of a batch without those of --labelled target"):
        TrainConfig(batch_size=10, labelled_share=0.1, **told)


def test_no_source_with_all_classes(two_sets: Path) -> None:
    (two_sets / "other/third.toml").write_text(table("third", '["road", "train", "sky"]'))
    with pytest.raises(DataError, match="class 'train' of third is not in tiny"):
        load_together(("tiny.toml", "other/third.toml"), str(two_sets / "tiny.toml"), two_sets)
