"""True labels mixed into every batch: which images have some, how many a batch shows, what a run is known by."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from endauda_cli import checkpoint
from endauda_cli.config import TrainConfig
from endauda_cli.domains import IGNORE, Task
from endauda_cli.errors import ConfigError, DataError
from endauda_cli.labels import write_label
from endauda_cli.progress import Note, Tick, silent
from endauda_cli.training import data, resume
from endauda_cli.training.data import LABELLED, MAIN, Rows, Stream, batches, crop_at, tell_histogram
from endauda_cli.training.labelled import with_true_labels
from endauda_cli.training.loop import train
from endauda_cli.training.methods import Material
from endauda_cli.training.methods.distill import read_fused
from endauda_cli.training.run import Run
from endauda_cli.types import Labelled, Method
from endauda_cli.workspace import Workspace
from tests.support.command_lines import refused, succeed
from tests.support.training_runs import CONFIG, TinySet

if TYPE_CHECKING:
    from pathlib import Path

CPU = torch.device("cpu")
MIXED: TrainConfig = dataclasses.replace(
    CONFIG, labelled=Labelled.TARGET, labelled_share=0.25, batch_size=4, validate_every=0
)


def few_labels(data: TinySet, *images: str) -> None:
    """Take the truth of all other train images away."""
    for path in (data.root / "truth" / "train").iterdir():
        if path.stem not in images:
            path.unlink()


def material(data: TinySet, task: Task | None = None) -> Material:
    return Material(task or data.task, Workspace(data.root), (data.root,), (data.root,))


def mixed(data: TinySet, whose: str = Labelled.TARGET, task: Task | None = None) -> dict[str, Stream]:
    fused = {MAIN: Stream(data.examples(), data.task.target, read_fused, label_ids=False)}
    task = task or dataclasses.replace(data.task, target=fused[MAIN].domain)
    return with_true_labels(fused, whose, material(data, task), 2, silent)


def ids(stream: Stream) -> list[str]:
    return [example.id for example in stream.examples]


# ---------------------------------------------------------------------------- which images


def test_an_image_with_a_true_label_is_not_taught_its_fused_one(tiny_set: TinySet) -> None:
    few_labels(tiny_set, "1", "3")
    streams = mixed(tiny_set)
    assert (ids(streams[MAIN]), ids(streams[LABELLED])) == (["0", "2"], ["1", "3"])
    assert all(e.label == tiny_set.root / f"truth/train/{e.id}.png" for e in streams[LABELLED].examples)


def test_truth_that_shows_no_class_is_no_true_label(tiny_set: TinySet) -> None:
    few_labels(tiny_set, "1", "3")
    write_label(tiny_set.root / "truth/train/3.png", np.full((32, 64), IGNORE, np.uint8))
    assert ids(mixed(tiny_set)[LABELLED]) == ["1"]
    write_label(tiny_set.root / "truth/train/1.png", np.full((32, 64), IGNORE, np.uint8))
    with pytest.raises(DataError, match=r"none of the 4 train images .* truth of 2 of them shows no class"):
        mixed(tiny_set)
    few_labels(tiny_set)
    with pytest.raises(DataError, match=r"--labelled target: none of the 4 train images .*no label file"):
        mixed(tiny_set)


def test_all_images_with_true_labels_leave_nothing_to_distil(tiny_set: TinySet) -> None:
    with pytest.raises(DataError, match="all 4 train images of tiny have true labels, so none is left"):
        mixed(tiny_set)


def test_the_labelled_source_beside_the_target(tiny_set: TinySet) -> None:
    with pytest.raises(DataError, match="source and target are both tiny"):
        mixed(tiny_set, Labelled.SOURCE)
    task = dataclasses.replace(tiny_set.task, source=dataclasses.replace(tiny_set.domain, name="another"))
    streams = mixed(tiny_set, Labelled.SOURCE, task)
    assert (ids(streams[MAIN]), ids(streams[LABELLED])) == (["0", "1", "2", "3"], ["0", "1", "2", "3"])
    assert streams[LABELLED].domain.name == "another"


# ---------------------------------------------------------------------------- batches


def rows_of(value: int, count: int) -> Rows:
    images = np.random.default_rng(value).integers(0, 256, (count, 32, 64, 3)).astype(np.uint8)
    return Rows(images, np.full((count, 32, 64), value, np.uint8))


@pytest.mark.parametrize(("share", "size", "true"), [(0.2, 10, 2), (0.5, 4, 2), (0.25, 4, 1), (0.9, 10, 9)])
def test_every_batch_shows_its_share_of_true_labels(share: float, size: int, true: int) -> None:
    config = dataclasses.replace(MIXED, labelled_share=share, batch_size=size, steps=5)
    rows = {MAIN: rows_of(0, 5), LABELLED: rows_of(1, 3)}
    with ThreadPoolExecutor(2) as pool:
        for step, batch, labelled in batches(config, rows, 0, pool):
            assert labelled == size * 16 * 32
            assert list(batch) == [MAIN]
            pixels, labels, *_ = batch[MAIN]
            assert pixels.shape == (size, 16, 32, 3)
            assert labels[:, 0, 0].tolist() == [0] * (size - true) + [1] * true
            position = step * (size - true)
            assert torch.equal(pixels[0], crop_at(config, rows[MAIN], position)[0])


def test_true_crops_do_not_mirror_the_fused_ones() -> None:
    """Half and half, both streams are at equal positions."""
    where = Rows(np.zeros((1, 32, 64, 3), np.uint8), np.arange(64, dtype=np.uint8)[None, None].repeat(32, 1))
    windows = [[crop_at(CONFIG, where, p, draw)[1].tolist() for p in range(8)] for draw in ("", "true ")]
    assert sum(one == other for one, other in zip(*windows, strict=True)) < 3


def test_a_class_that_only_true_labels_show_is_not_absent(tiny_set: TinySet) -> None:
    notes: list[str] = []

    def report(event: Tick | Note) -> None:
        notes.append(getattr(event, "text", ""))

    fused, true = np.zeros((2, 4, 4), np.uint8), np.ones((1, 4, 4), np.uint8)
    tell_histogram(fused, tiny_set.domain, report, true)
    assert [note for note in notes if "never show" in note] == [
        "the labels never show sky; the student cannot learn them"
    ]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_share_what_one_process_shows(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(MIXED, labelled_share=0.5, batch_size=8, steps=4)
    rows = {MAIN: rows_of(0, 5), LABELLED: rows_of(1, 3)}

    def shown(rank: int, ranks: int) -> list[set[bytes]]:
        monkeypatch.setattr(data, "rank", lambda: rank)
        monkeypatch.setattr(data, "world_size", lambda: ranks)
        with ThreadPoolExecutor(1) as pool:
            found = [batch[MAIN] for _, batch, _ in batches(config, rows, 0, pool)]
        assert all(int((labels[:, 0, 0] == 1).sum()) == 4 // ranks for _, labels, *_ in found)
        return [{crop.numpy().tobytes() for crop in pixels} for pixels, *_ in found]

    parts = [shown(rank, ranks) for rank in range(ranks)]
    assert [set().union(*step) for step in zip(*parts, strict=True)] == shown(0, 1)


def test_true_images_that_do_not_divide_over_ranks_are_refused(
    tiny_set: TinySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_labels(tiny_set, "1")
    monkeypatch.setattr(resume, "world_size", lambda: 2)
    with pytest.raises(
        ConfigError, match=r"--labelled-share 0\.25: 1 of the 4 images of a batch, which do not div"
    ):
        run(tiny_set, tmp_path / "run")


# ---------------------------------------------------------------------------- runs


def run(
    data: TinySet, out: Path, report: Any = silent, config: TrainConfig = MIXED, **changes: Any
) -> dict[str, Any]:
    config = dataclasses.replace(config, **changes)
    train(config, Run(data.task, mixed(data), out, out.parent / "cache", CPU), report)
    return checkpoint.load(out / "last.pt")


class Enough(Exception):
    """The run is stopped."""


def test_a_mixed_run_goes_on_bit_for_bit(tiny_set: TinySet, tmp_path: Path) -> None:
    few_labels(tiny_set, "1")

    def stop(event: Tick | Note) -> None:
        if isinstance(event, Tick) and event.task == "training" and event.done == 11:
            raise Enough

    whole = run(tiny_set, tmp_path / "whole", workers=2)
    with pytest.raises(Enough):
        run(tiny_set, tmp_path / "stopped", stop)
    assert checkpoint.load(tmp_path / "stopped/last.pt")["meta"]["step"] == 8
    again = run(tiny_set, tmp_path / "stopped")
    for key, weights in whole["weights"].items():
        assert torch.equal(weights, again["weights"][key])
    assert torch.equal(whole["loss"]["often_weight"], again["loss"]["often_weight"])
    assert whole["meta"]["data"] == again["meta"]["data"]


def test_true_labels_are_part_of_the_run(tiny_set: TinySet, tmp_path: Path) -> None:
    few_labels(tiny_set, "1")
    out, short = tmp_path / "run", dataclasses.replace(MIXED, steps=1)
    run(tiny_set, out, config=short)
    with pytest.raises(ConfigError, match=r"with --labelled-share 0\.25, not 0\.5"):
        run(tiny_set, out, config=short, labelled_share=0.5)
    truth = tiny_set.root / "truth/train/1.png"
    write_label(truth, np.full((32, 64), 7, np.uint8))
    with pytest.raises(ConfigError, match="on other images or labels"):
        run(tiny_set, out, config=short)


def test_a_run_of_an_earlier_version_knows_no_true_labels(tiny_set: TinySet, tmp_path: Path) -> None:
    out, plain = tmp_path / "run", dataclasses.replace(CONFIG, steps=1, validate_every=0)
    streams = {MAIN: Stream(tiny_set.examples(), tiny_set.domain, read_fused)}

    def go(config: TrainConfig) -> int:
        return train(config, Run(tiny_set.task, streams, out, tmp_path / "cache", CPU), silent).resumed_from

    go(plain)
    content = torch.load(out / "last.pt", weights_only=True)
    for key in ("labelled", "labelled_share"):
        del content["meta"]["config"][key]
    torch.save(content, out / "last.pt")
    assert go(plain) == 1
    with pytest.raises(ConfigError, match="with --labelled None, not target"):
        go(dataclasses.replace(plain, labelled=Labelled.TARGET, labelled_share=0.5))


# ---------------------------------------------------------------------------- the command


def test_the_command_mixes_and_tells(tiny_set: TinySet) -> None:
    few_labels(tiny_set, "1")
    target = ("--target", str(tiny_set.toml), "--target-data", str(tiny_set.root))
    line = (
        "train", "--backbone", "tiny", "--size", "64x32", "--crop", "32x16", "--batch-size", "4", "--steps", "2",
        "--device", "cpu", *target, "--workspace", str(tiny_set.root), "--labels", str(tiny_set.root / "fused"),
        "--labelled", "target", "--labelled-share",
    )  # fmt: skip
    ended = succeed(*line, "0.5", "--json")
    assert (ended.result["images"], ended.result["labelled_images"]) == (3, 1)
    assert "1 images of tiny train have true labels, and are not taught fused ones; 3 are" in ended.err
    assert "comes to 0 of the 4 images of a batch" in refused(*line, "0.1")
    assert "comes to 4 of the 4 images of a batch" in refused(*line, "0.9")
    assert "not a number of images; did you mean 0.25?" in refused(*line, "25")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"labelled": "target", "labelled_share": 0.0},
            "--labelled-share 0: a share of the batch is above 0",
        ),
        ({"labelled": "target", "labelled_share": float("nan")}, "--labelled-share nan: a share"),
        ({"labelled_share": 0.5}, "there are no true labels to share out; add --labelled target"),
        ({"labelled": "source", "method": Method.SOURCE}, "--method source learns these labels already"),
    ],
)
def test_shares_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**options)
