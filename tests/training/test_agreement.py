"""How good a student is without any label: its agreement with fused labels of images that were held out."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from endauda_cli import checkpoint
from endauda_cli.config import InferenceConfig, TrainConfig
from endauda_cli.errors import CheckpointError, ConfigError
from endauda_cli.evaluation import PROCEDURE, Scoring, evaluate
from endauda_cli.labels import write_label
from endauda_cli.progress import Note, Tick, silent
from endauda_cli.score_results import EvalResult
from endauda_cli.segmenter import Segmenter
from endauda_cli.training.data import MAIN, Example, Stream
from endauda_cli.training.holding_out import hold_out
from endauda_cli.training.loop import train
from endauda_cli.training.methods.distill import read_fused
from endauda_cli.training.resume import check_meta
from endauda_cli.training.run import Run
from endauda_cli.transforms import Preprocessing
from endauda_cli.types import BestBy, Method
from tests.support.command_lines import refused, succeed
from tests.support.training_runs import CONFIG, SIZE, TinySet

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from endauda_cli.results import TrainResult

CPU = torch.device("cpu")
HELD: TrainConfig = dataclasses.replace(CONFIG, hold_out=1, best_by=BestBy.AGREEMENT, steps=30)


def fused(data: TinySet) -> dict[str, Stream]:
    return {MAIN: Stream(data.examples(), data.domain, read_fused, label_ids=False)}


# ---------------------------------------------------------------------------- which images


def test_images_held_out_depend_on_their_names_alone(tmp_path: Path, tiny_set: TinySet) -> None:
    examples = [
        Example(f"town_{i:03}", tmp_path / f"{i}.png", tmp_path / f"{i}_label.png") for i in range(40)
    ]
    stream = Stream(examples, tiny_set.domain, read_fused)

    def held(count: int, stream: Stream = stream) -> list[str]:
        left, samples = hold_out({MAIN: stream}, count)
        kept = [example.id for example in left[MAIN].examples]
        assert sorted([*kept, *(sample.id for sample in samples)]) == sorted(e.id for e in examples)
        return sorted(sample.id for sample in samples)

    assert held(0) == []
    assert len(held(8)) == 8
    assert set(held(8)) < set(held(20)), "those of fewer are among those of more"
    assert held(8, dataclasses.replace(stream, examples=examples[::-1])) == held(8)
    assert held(8) != [e.id for e in examples[:8]]
    with pytest.raises(
        ConfigError, match="--hold-out 40: there are 40 images with fused labels, so none would"
    ):
        held(40)


# ---------------------------------------------------------------------------- runs


def run(
    data: TinySet,
    out: Path,
    report: Any = silent,
    config: TrainConfig = HELD,
    miou: bool = False,
    **changes: Any,
) -> TrainResult:
    config = dataclasses.replace(config, **changes)
    streams, held = hold_out(fused(data), config.hold_out)
    scoring = Scoring(data.domain, "it", read=read_fused)

    def agree(model: torch.nn.Module) -> EvalResult:
        segmenter = Segmenter(model, Preprocessing(SIZE), PROCEDURE)
        return evaluate(segmenter, held, scoring, InferenceConfig(), CPU, silent)

    validate = data.validate if miou else None
    whole = Run(
        data.task, streams, out, out.parent / "cache", CPU, None, False, validate, "", agree if held else None
    )
    return train(config, whole, report)


def metrics_of(out: Path, key: str) -> dict[int, float]:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return {line["step"] + 1: line[key] for line in lines if key in line}


def test_best_is_chosen_without_any_label(tiny_set: TinySet, tmp_path: Path) -> None:
    result = run(tiny_set, tmp_path / "run")
    scores = metrics_of(tmp_path / "run", "agreement")
    assert list(scores) == [5, 10, 15, 20, 25, 30]
    assert not metrics_of(tmp_path / "run", "val_miou")
    assert result.best_agreement == max(scores.values()) == scores[result.best_step or 0]
    assert (result.last_agreement, result.best_miou, result.images) == (scores[30], None, 3)
    assert (result.checkpoint, result.held_out_images) == (tmp_path / "run/best.pt", 1)
    meta = checkpoint.load(result.checkpoint)["meta"]
    assert (meta["best_agreement"], meta["step"], meta["best_miou"]) == (
        result.best_agreement, result.best_step, None,
    )  # fmt: skip


def test_agreement_is_the_score_on_fused_labels(tiny_set: TinySet, tmp_path: Path) -> None:
    """A network that always says road agrees with labels of road alone, whatever the truth is."""
    _, held = hold_out(fused(tiny_set), 1)
    assert held[0].label is not None
    write_label(held[0].label, np.zeros((32, 64), np.uint8))

    class Road(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tensor([9.0, 0.0, 0.0])[None, :, None, None].expand(len(x), 3, 8, 16)

    scoring = Scoring(tiny_set.domain, "it", read=read_fused)
    segmenter = Segmenter(Road(), Preprocessing(SIZE), PROCEDURE)
    assert evaluate(segmenter, held, scoring, InferenceConfig(), CPU, silent).miou == 100


def test_both_are_logged_and_the_asked_one_decides(tiny_set: TinySet, tmp_path: Path) -> None:
    results = {}
    for by in BestBy:
        out = tmp_path / by
        results[by] = run(tiny_set, out, miou=True, best_by=by)
        deciding = metrics_of(out, "val_miou" if by == BestBy.MIOU else "agreement")
        assert deciding[results[by].best_step or 0] == max(deciding.values())
        assert results[by].best_miou == metrics_of(out, "val_miou")[results[by].best_step or 0]
        assert results[by].best_agreement == metrics_of(out, "agreement")[results[by].best_step or 0]
    one, other = (metrics_of(tmp_path / by, "agreement") for by in BestBy)
    assert one == other, "what best.pt is chosen by changes nothing of what is learnt"


class Enough(Exception):
    """The run is stopped."""


def stop_after(step: int) -> Any:
    def stop(event: Tick | Note) -> None:
        if isinstance(event, Tick) and event.task == "training" and event.done == step:
            raise Enough

    return stop


def test_agreement_goes_on_bit_for_bit(tiny_set: TinySet, tmp_path: Path) -> None:
    run(tiny_set, tmp_path / "whole", patience=5)
    with pytest.raises(Enough):
        run(tiny_set, tmp_path / "stopped", stop_after(21), patience=5)
    assert checkpoint.load(tmp_path / "stopped/last.pt")["meta"]["step"] == 20
    assert run(tiny_set, tmp_path / "stopped", patience=5).resumed_from == 20
    for name in ("last.pt", "best.pt"):
        one, other = (checkpoint.load(tmp_path / folder / name) for folder in ("whole", "stopped"))
        assert one["meta"] == other["meta"]
        assert all(torch.equal(one["weights"][key], other["weights"][key]) for key in one["weights"])
    assert metrics_of(tmp_path / "whole", "agreement") == metrics_of(tmp_path / "stopped", "agreement")


def scripted(*scores: float) -> Any:
    """A test that says these scores, one after another."""
    left: Iterator[float] = iter(scores)

    def test(model: torch.nn.Module) -> EvalResult:
        return EvalResult("it", "tiny", "train", 1, next(left), 100.0, {}, {})

    return test


def test_patience_ends_a_run_and_more_of_it_goes_on(tiny_set: TinySet, tmp_path: Path) -> None:
    notes: list[str] = []

    def go(patience: int, *scores: float) -> TrainResult:
        streams, _ = hold_out(fused(tiny_set), 1)
        config = dataclasses.replace(HELD, patience=patience, save_every=1000)
        whole = Run(
            tiny_set.task, streams, tmp_path / "run", tmp_path / "cache", CPU, agree=scripted(*scores)
        )
        return train(config, whole, lambda event: notes.append(getattr(event, "text", "")))

    result = go(2, 30.0, 40.0, 40.001, 39.0)
    assert (result.steps, result.best_step, result.stopped_early) == (20, 10, True)
    assert "ended after step 20 of 30: 2 tests without a gain" in notes
    assert checkpoint.load(tmp_path / "run/last.pt")["meta"]["step"] == 20
    again = go(2)
    assert (again.resumed_from, again.steps, again.stopped_early) == (20, 20, True)
    more = go(3, 41.0, 20.0)
    assert (more.resumed_from, more.steps, more.best_step, more.stopped_early) == (20, 30, 25, False)


def test_a_run_of_an_earlier_version_goes_on(tiny_set: TinySet, tmp_path: Path) -> None:
    out, plain = tmp_path / "run", dataclasses.replace(CONFIG, steps=1, validate_every=0)
    run(tiny_set, out, config=plain)
    content = torch.load(out / "last.pt", weights_only=True)
    for key in ("hold_out", "best_by", "patience", "loss"):
        del content["meta"]["config"][key]
    for key in ("agreement", "best_agreement", "idle"):
        del content["meta"][key]
    torch.save(content, out / "last.pt")
    assert run(tiny_set, out, config=plain).resumed_from == 1
    for key, value in (("idle", -1), ("idle", None), ("agreement", "high"), ("best_agreement", float("nan"))):
        with pytest.raises(CheckpointError, match=f"its {key} is"):
            check_meta(out / "last.pt", content["meta"] | {key: value})


# ---------------------------------------------------------------------------- the command


def test_the_command_needs_no_labelled_image(tiny_set: TinySet) -> None:
    for path in [*(tiny_set.root / "truth/val").iterdir(), *(tiny_set.root / "truth/train").iterdir()]:
        path.unlink()
    few = (
        "train", "--backbone", "tiny", "--size", "64x32", "--crop", "32x16", "--batch-size", "2", "--steps", "3",
        "--device", "cpu", "--target", tiny_set.toml, "--target-data", tiny_set.root, "--workspace", tiny_set.root,
        "--labels", tiny_set.root / "fused", "--validate-every", "1", "--hold-out", "1", "--name", "it",
    )  # fmt: skip
    assert "no label file belongs to it" in refused(*few)
    line = (*few, "--best-by", "agreement")
    first = succeed(*line, "--json")
    assert first.result["best_agreement"] > 0
    assert (first.result["best_miou"], first.result["best_by"]) == (None, "agreement")
    assert succeed(*line, "--json").result["best_agreement"] == first.result["best_agreement"]
    assert "agreement with the fused labels of 1 images held out: last" in succeed(*line).out
    _, held = hold_out(fused(tiny_set), 1)
    assert held[0].label is not None
    write_label(held[0].label, np.zeros((32, 64), np.uint8))
    again = succeed(*line, "--json")
    assert again.result["best_agreement"] is None
    assert "best.pt was chosen by the former ones" in again.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hold_out": 5}, "--hold-out 5: nothing is tested; say how often, with --validate-every"),
        ({"patience": 5}, "--patience 5: nothing is tested"),
        ({"hold_out": -1}, "--hold-out -1: must be at least 0"),
        ({"patience": -1}, "--patience -1: must be at least 0"),
        ({"best_by": "agreement", "validate_every": 5}, "there are no images to agree on; hold some out"),
        (
            {"hold_out": 5, "validate_every": 5, "method": Method.SOURCE},
            "there are no fused labels to agree with",
        ),
    ],
)
def test_recipes_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**options)
