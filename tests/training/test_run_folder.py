"""What a run's folder says of it: options to be taken back, where it comes from, its page, pictures and a trace."""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import re
import time
import tomllib
import xml.etree.ElementTree as ElementTree
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from endauda_cli import checkpoint
from endauda_cli.config import TrainConfig
from endauda_cli.files import toml_line
from endauda_cli.models import build_student
from endauda_cli.options import options_of
from endauda_cli.progress import silent
from endauda_cli.report.diagrams import POINTS, curve, thinned
from endauda_cli.training import loop, parentage, records
from endauda_cli.training.data import Rows, Stream
from endauda_cli.training.loop import train
from endauda_cli.training.methods import MAIN
from endauda_cli.training.methods.distill import read_fused
from endauda_cli.training.pictures import CROPS
from endauda_cli.training.records import Records, recipe_text
from endauda_cli.training.report import lines
from endauda_cli.training.run import Run, TrainState, make_state
from tests.support.command_lines import SIZE_FLAGS, make_workspace, refused, result_of, succeed
from tests.support.pages import assert_self_contained
from tests.support.training_runs import CONFIG, TinySet, make_set, run

if TYPE_CHECKING:
    from pathlib import Path

    from endauda_cli.progress import Note, Tick

SHORT: dict[str, Any] = {"steps": 4, "save_every": 2, "validate_every": 0}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> TinySet:
    return make_set(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a label set and two runs, of which the second starts from the first."""
    root = make_workspace(tmp_path_factory.mktemp("city"))
    at = ("--workspace", root, "--quiet")
    succeed("fuse", "--rule", "plf", "--threshold", "80", *at)
    line = ("train", *SIZE_FLAGS, "--steps", "2", "--device", "cpu", *at)
    odd = (
        "--lr", "0.00031", "--seed", "7", "--mirror", "--augment", "light,colour", "--no-often-balance", "--clip", "9",
        "--no-class-balance", "--workers", "1", "--hard-percentile", "12.5", "--warm-up", "1", "--save-every", "2",
        "--validate-every", "2", "--ema", "0.5", "--precision", "bf16", "--keep", "1", "--arch", "deeplabv2",
        "--drop-mismatched",
    )  # fmt: skip
    succeed(*line, "--name", "first", *odd)
    succeed(*line, "--name", "second", *odd, "--init", root / "runs/gta5/first/last.pt")
    return root


def a_run(tiny_set: TinySet, out: Path, **more: Any) -> Run:
    stream = Stream(tiny_set.examples(), tiny_set.domain, read_fused)
    return Run(tiny_set.task, {MAIN: stream}, out, out.parent / "cache", CPU, **more)


def a_state(config: TrainConfig) -> TrainState:
    torch.manual_seed(0)
    return make_state(build_student(config.arch, config.backbone, 3), config, 3, CPU)


def told_by(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return record


# ---------------------------------------------------------------------------- config.toml


def test_a_run_by_the_config_of_another_is_of_the_same_recipe(city: Path) -> None:
    runs = city / "runs/gta5"
    for name in ("first", "second"):
        file = runs / name / "config.toml"
        told = tomllib.loads(file.read_text())["train"]
        assert told["augment"] == ["light", "colour"]
        assert (told["lr"], told["crop"], told["labels"]) == (0.00031, "32x16", "plf")
        assert told.get("init") == (None if name == "first" else "runs/gta5/first/last.pt")
        again = f"{name}-again"
        line = ("train", "--config", file, "--name", again, "--device", "cpu", "--workspace", city, "--quiet")
        result = result_of(*line)
        assert result["run"] == str(runs / again)
        one, other = told_by(runs / name), told_by(runs / again)
        for key in ("config", "source", "target", "classes", "size"):
            assert one[key] == other[key]
        assert one["parents"] == other["parents"]
        assert one["data"]["content"] == other["data"]["content"]
        assert (runs / again / "config.toml").read_text() == file.read_text()
        first, second = (checkpoint.load(runs / run / "last.pt")["weights"] for run in (name, again))
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_what_is_typed_beats_the_config_of_another_run(city: Path) -> None:
    file = city / "runs/gta5/first/config.toml"
    line = ("train", "--config", file, "--device", "cpu", "--workspace", city, "--quiet")
    succeed(*line, "--name", "seeded", "--seed", "8", "--class-balance")
    config, before = told_by(city / "runs/gta5/seeded")["config"], told_by(file.parent)["config"]
    assert config == before | {"seed": 8, "class_balance": True}


def test_defaults_are_written_as_they_came_out(city: Path) -> None:
    """What the file does not say would be this version's value with that method, and another's with the next."""
    told = tomllib.loads((city / "runs/gta5/first/config.toml").read_text())["train"]
    config = told_by(city / "runs/gta5/first")["config"]
    for name, option in options_of(TrainConfig).items():
        key = option.flags[0].partition("/")[0][2:]
        assert (key in told) == (config[name] is not None), key


def test_every_option_of_the_recipe_can_be_written_and_read() -> None:
    odd = dataclasses.replace(CONFIG, augment=("light",), crop=(16, 32), size=(48, 64), hard_percentile=2.5)
    odd = dataclasses.replace(odd, scale_jitter=(0.5, 2.0))
    for config in (TrainConfig(), CONFIG, odd):
        for name, option in options_of(TrainConfig).items():
            value = getattr(config, name)
            if value is not None:
                said = tomllib.loads(toml_line("x", option.words(value)))["x"]
                assert option.value(said) == value, name


@pytest.mark.parametrize(
    "value",
    ["", 'a"b\\c', "\x1b[2J\n\t\x7f", "ü 車", [], ["a", 'b"'], True, False, 0, -3, 1e-5, 0.1, 1e22, math.inf],
)
def test_toml_lines_say_what_they_were_made_of(value: Any) -> None:
    found = tomllib.loads(toml_line("a-key", value))["a-key"]
    assert (type(found), found) == (type(value), value)


def test_a_path_that_is_no_text_does_not_end_a_run() -> None:
    text = recipe_text({"labels": "caf\udce9", "seed": 3})
    text.encode()
    assert tomllib.loads(text) == {"train": {"seed": 3}}
    assert "# labels cannot be written here" in text


# ---------------------------------------------------------------------------- where it comes from


def test_parents_are_the_label_set_and_the_run_before(city: Path) -> None:
    for name in ("config.json", "last.pt", "best.pt"):
        file = city / "runs/gta5/second" / name
        told = told_by(file.parent) if name == "config.json" else checkpoint.read_meta(file)
        labels, init = told["parents"]["labels"], told["parents"]["init"]
        assert (labels["rule"], labels["threshold"], labels["window"]) == ("plf", 80, [5, 5])
        assert labels["teachers"] == ["cbst", "crst", "dacs"]
        assert labels["folder"].endswith("gtFine/plf")
        assert set(labels["archives"]) == {"cbst", "crst", "dacs"}
        assert len({archive["digest"] for archive in labels["archives"].values()}) == 3
        assert init["sha256"] == checkpoint.sha256(city / "runs/gta5/first/last.pt")
        assert (init["run"], init["step"], init["backbone"]) == ("first", 2, "tiny")
        assert init["labels"] == labels
        made_by = told["made_by"]
        assert (made_by["torch"], made_by["numpy"]) == (torch.__version__, np.__version__)
        assert (made_by["device"], made_by["processes"], made_by["cuda"]) == ("cpu", 1, None)
        assert made_by["host"]


def test_an_init_that_is_gone_is_still_told(tiny_set: TinySet, tmp_path: Path) -> None:
    run(tiny_set, tmp_path / "first", **SHORT)
    init = tmp_path / "init.pt"
    (tmp_path / "first/last.pt").rename(init)
    whole = starting_from(tiny_set, tmp_path / "second", init)
    before = told_by(whole.out)["parents"]["init"]
    init.unlink()
    content = torch.load(whole.out / "last.pt", weights_only=True)
    content["meta"]["step"], content["meta"]["config"]["save_every"] = 2, 2
    torch.save(content, whole.out / "last.pt")
    run(tiny_set, whole.out, **SHORT)
    assert told_by(whole.out)["parents"]["init"] == before
    assert before["step"] == 4


def starting_from(tiny_set: TinySet, out: Path, init: Path) -> Run:
    whole = a_run(tiny_set, out, init=init)
    train(dataclasses.replace(CONFIG, **SHORT), whole, silent)
    return whole


def test_a_chain_of_runs_is_told_so_far_and_no_further(tiny_set: TinySet, tmp_path: Path) -> None:
    meta: dict[str, Any] = {"endauda": "1", "step": 0}
    for number in range(1, 3 * parentage.GENERATIONS):
        init = parentage._of_meta(meta, parentage.GENERATIONS) | {"file": f"{number}.pt", "sha256": "x"}
        meta = {"endauda": "1", "step": number, "parents": {"init": init}}
    told, depth = meta["parents"]["init"], 0
    while told is not None:
        depth, told = depth + 1, told.get("init")
    assert depth == parentage.GENERATIONS
    assert meta["parents"]["init"]["init"]["file"] == f"{number - 1}.pt"


@pytest.mark.parametrize("value", [None, 3, "x" * 100_000, [[]] * 50_000, {"labels": 3, "init": [1]}, "deep"])
def test_parents_of_another_form_end_nothing(tiny_set: TinySet, tmp_path: Path, value: Any) -> None:
    if value == "deep":
        value = []
        for _ in range(100_000):
            value = [value]
        assert parentage._of_meta({"parents": {"labels": {"rule": value}, "init": value}}, 5) == {}
        return
    run(tiny_set, tmp_path / "first", **SHORT)
    init = tmp_path / "first/last.pt"
    content = torch.load(init, weights_only=True)
    content["meta"]["parents"] = content["meta"]["made_by"] = value
    torch.save(content, init)
    told = told_by(starting_from(tiny_set, tmp_path / "second", init).out)["parents"]["init"]
    assert (told["run"], told["step"]) == ("first", 4)
    assert "labels" not in told and "init" not in told


def test_a_nested_record_as_lines() -> None:
    record = {"a": {"b": 1, "c": None, "d": [1, "x"]}, "e": [{"f": 2}], "g": 0.123456789}
    assert list(lines(record)) == [("a b", "1"), ("a d", "1, x"), ("e", "[{'f': 2}]"), ("g", "0.123457")]


# ---------------------------------------------------------------------------- the page


def test_the_page_of_a_run(city: Path) -> None:
    folder = city / "runs/gta5/second"
    page = (folder / "report.html").read_text()
    assert_self_contained(page)
    for text in (
        "loss, last",
        "mIoU on labelled target images, %",
        "learning rate of the backbone",
        "plf",
        "Recipe",
    ):
        assert text in page
    for text in ("labels archives dacs digest", "init run", "first", "made by", "torch", "--often-balance"):
        assert text in page
    svgs = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(svgs) >= 5
    assert all(ElementTree.fromstring(svg).tag == "svg" for svg in svgs), "well formed"
    assert page.count("data:image/") == 3 * CROPS
    with Image.open(folder / "report/gallery.png") as sheet:
        assert sheet.size[0] > 3 * 32
    named = {path.name for path in folder.iterdir()}
    assert named == {
        "best.pt", "last.pt", "config.json", "config.toml", "metrics.jsonl", "report.html", "report", "tensorboard"
    }  # fmt: skip


def test_the_page_is_written_at_each_save_and_validation(
    tiny_set: TinySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def note(config: Any, run: Run, state: Any, log: Any, seen: Any) -> None:
        written.append((state.step, len(seen), len(log["val_miou"]), state.best_step))

    monkeypatch.setattr(records, "write_run_report", note)
    run(tiny_set, tmp_path / "run", steps=7, save_every=3, validate_every=2)
    assert [step for step, *_ in written] == [2, 3, 4, 6, 7], "once per step, where both are due too"
    assert [scores for _, _, scores, _ in written] == [1, 1, 2, 3, 4]
    assert all(pictures == 4 for _, pictures, *_ in written)
    written.clear()
    run(tiny_set, tmp_path / "run", steps=7, save_every=3, validate_every=2)
    assert not written, "nothing is new"


def test_a_slow_run_is_saved_by_the_clock(
    tiny_set: TinySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept(name: str) -> list[str]:
        return sorted(path.name for path in (tmp_path / name / "earlier").iterdir())

    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    run(tiny_set, tmp_path / "run", steps=4, save_every=1000, validate_every=0, keep=3)
    assert kept("run") == ["step-2.pt", "step-3.pt", "step-4.pt"]
    monkeypatch.setattr(loop, "SAVE_SECONDS", 600.0)
    run(tiny_set, tmp_path / "not", steps=4, save_every=1000, validate_every=0, keep=3)
    assert kept("not") == ["step-4.pt"]
    one, other = (checkpoint.load(tmp_path / name / "last.pt") for name in ("run", "not"))
    assert all(torch.equal(one["weights"][key], other["weights"][key]) for key in one["weights"])


def test_looking_changes_nothing(tiny_set: TinySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tiny_set, tmp_path / "looked", **SHORT | {"save_every": 1})
    monkeypatch.setattr(Records, "show", lambda self: None)
    run(tiny_set, tmp_path / "not", **SHORT | {"save_every": 1})
    one, other = (checkpoint.load(tmp_path / name / "last.pt") for name in ("looked", "not"))
    assert all(torch.equal(one["weights"][key], other["weights"][key]) for key in one["weights"])
    assert not (tmp_path / "not/report.html").exists()


def test_a_page_that_cannot_be_written_is_told_once(tiny_set: TinySet, tmp_path: Path) -> None:
    (tmp_path / "run/report.html").mkdir(parents=True)
    notes: list[str] = []
    result = run(tiny_set, tmp_path / "run", lambda e: notes.append(getattr(e, "text", "")), **SHORT)
    assert result.steps == 4
    told = [note for note in notes if "the run goes on without its page" in note]
    assert len(told) == 1 and "report.html" in told[0]


def test_the_page_of_a_long_run_costs_little(tiny_set: TinySet, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    entries = ({"step": i, "loss": 1 / (i + 1), "lr": 1e-4, "kept": 0.2} for i in range(0, 100_000, 10))
    (out / "metrics.jsonl").write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    config = dataclasses.replace(CONFIG, steps=100_001)
    state = a_state(config)
    state.step = 100_000
    whole, rows = a_run(tiny_set, out), some_rows()
    held = Records(config, whole, state, rows, silent)
    costs = []
    for step in (100_001, 100_002, 100_003):
        state.step, begin = step, time.perf_counter()
        held.saved()
        costs.append(time.perf_counter() - begin)
    held.close()
    assert min(costs) < 0.5
    assert (out / "report.html").stat().st_size < 300_000


def some_rows() -> Rows:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 255, (4, 32, 64, 3), np.uint8)
    return Rows(images, generator.integers(0, 3, (4, 32, 64), np.uint8))


def test_other_ranks_write_nothing(
    tiny_set: TinySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "rank", lambda: 1)
    whole = a_run(tiny_set, tmp_path / "run", options={"seed": 1}, profile=1)
    state = a_state(CONFIG)
    held = Records(CONFIG, whole, state, some_rows(), silent)
    for _ in range(3):
        state.step += 1
        held.stepped()
        held.logged(0, {"loss": 1.0})
        held.validated({"val_miou": 1.0})
        held.saved()
    held.close()
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------- curves


def test_curves_of_few_points_are_as_they_are() -> None:
    points = [(float(x), float(x * x)) for x in range(POINTS)]
    assert thinned(points) == (points, [])
    svg = curve("a <b> & c", [(0, 1.0), (10, 3.0), (20, 2.0)])
    assert "a &lt;b&gt; &amp; c" in svg and "<b>" not in svg
    assert svg.count("<circle") == 3 and "step 10: 3" in svg
    assert 'class="band"' not in svg


def test_curves_of_many_points_are_thinned_and_hide_no_peak() -> None:
    points = [(float(x), math.sin(x)) for x in range(10_007)]
    points[5000] = (5000.0, 99.0)
    means, band = thinned(points)
    assert len(means) == len(band) == POINTS
    assert max(high for _, _, high in band) == 99
    assert min(low for _, low, _ in band) == min(y for _, y in points)
    assert [x for x, _ in means] == sorted(x for x, _ in means)
    svg = curve("many", points)
    assert 'class="band"' in svg and len(svg) < 30_000


@pytest.mark.parametrize(
    "points",
    [
        [(0, 5.0)], [(3, 0.0), (4, 0.0)], [(0, 1e-300), (1, 2e-300)], [(0, -1e300), (1, 1e300)], [(0, math.nan)],
        [(0, math.inf), (1, 1.0)], [(0, 1.0), (1, 1.0 + 1e-16)], [(2**60, 1.0), (2**60 + 1, 2.0)],
        [(0, 1.0), (1, math.nextafter(1.0, 2))],
    ],
)  # fmt: skip
def test_curves_of_odd_points(points: list[tuple[float, float]]) -> None:
    svg = curve("odd", points)
    assert svg.startswith("<svg") and svg.endswith("</svg>")
    assert not re.search(r"\b(nan|inf)\b", svg) and len(svg) < 10_000


# ---------------------------------------------------------------------------- TensorBoard


def test_tensorboard_has_pictures_beside_its_figures(tiny_set: TinySet, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tiny_set, tmp_path / "run", **SHORT)
    events = EventAccumulator(str(tmp_path / "run/tensorboard"), size_guidance={"images": 0}).Reload()
    tags = events.Tags()
    assert {"loss", "lr", "kept"} <= set(tags["scalars"])
    assert sorted(tags["images"]) == sorted(
        f"{i}/{name}" for i in range(CROPS) for name in ("1 image", "2 labels", "3 student")
    )
    assert [event.step for event in events.Images("0/3 student")] == [1, 3]
    assert [event.step for event in events.Images("0/1 image")] == [1], "it stays what it is"


# ---------------------------------------------------------------------------- --profile


def test_profile_writes_a_trace_and_the_dearest_operators(city: Path) -> None:
    name = ("train", "--config", city / "runs/gta5/first/config.toml", "--name", "profiled", "--steps", "14")
    ended = succeed(*name, "--profile", "2", "--device", "cpu", "--workspace", city)
    folder = city / "runs/gta5/profiled"
    trace = json.loads(gzip.decompress((folder / "trace.json.gz").read_bytes()))
    names = [event.get("name", "") for event in trace["traceEvents"]]
    assert any("conv" in name for name in names)
    assert len({name for name in names if name.startswith("ProfilerStep#")}) == 2
    assert "Self CPU" in (folder / "operators.txt").read_text()
    assert "--profile: 2 steps are in" in ended.err and "USDT" not in ended.err
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()][
        -1
    ] == 13


def test_profile_changes_nothing_and_is_no_part_of_the_recipe(tiny_set: TinySet, tmp_path: Path) -> None:
    notes: list[str] = []

    def report(event: Tick | Note) -> None:
        notes.append(getattr(event, "text", ""))

    weights = []
    for name, profile in (("a", 0), ("b", 2), ("c", 50)):
        whole = a_run(tiny_set, tmp_path / name, profile=profile)
        train(dataclasses.replace(CONFIG, **SHORT), whole, report)
        weights.append(checkpoint.load(whole.out / "last.pt")["weights"])
    assert all(torch.equal(weights[0][key], other[key]) for other in weights[1:] for key in weights[0])
    told = [note for note in notes if note.startswith("--profile")]
    assert [note.partition(" steps")[0] for note in told] == ["--profile: 2", "--profile: 3"]


@pytest.mark.parametrize("steps", ["-1", "1001"])
def test_profile_of_too_many_steps(city: Path, steps: str) -> None:
    assert "0 (none) to 1000 steps" in refused("train", "--profile", steps, "--workspace", city)
