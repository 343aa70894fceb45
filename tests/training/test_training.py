"""The training step against steps recorded from the reference; runs against themselves, stopped anywhere."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from endauda_cli import checkpoint
from endauda_cli.config import TrainConfig
from endauda_cli.domains import CITYSCAPES, IGNORE, make_task
from endauda_cli.errors import CheckpointError, ConfigError, DataError, EndaudaError
from endauda_cli.labels import write_label
from endauda_cli.models import build_student
from endauda_cli.progress import Note, Tick, silent
from endauda_cli.training.data import Example, Rows, Stream, batches, crop_at, order_of
from endauda_cli.training.feeding import Crops
from endauda_cli.training.loop import learning_rate, optimise, train, train_step
from endauda_cli.training.methods import MAIN, METHODS
from endauda_cli.training.methods.distill import read_fused
from endauda_cli.training.run import Run, TrainState, make_state
from endauda_cli.training.starting import initialise
from endauda_cli.types import Method
from tests import support
from tests.support.recipes import recipe_input, recipe_weights
from tests.support.training_runs import CLASSES, CONFIG, TinySet, after, make_set, program, run

if TYPE_CHECKING:
    from pathlib import Path

DATA = support.DATA / "training"
CPU = torch.device("cpu")


def test_methods_are_the_choices_of_the_command_line() -> None:
    assert set(METHODS) == set(Method)


# ---------------------------------------------------------------------------- the published step


def test_learning_rates_are_the_published_ones() -> None:
    table = json.loads((DATA / "learning_rate.json").read_text())
    assert len(table["values"]) > 10
    for row in table["values"]:
        config = TrainConfig(
            steps=table["num_steps"],
            learning_rate=table["base"],
            power=table["power"],
            warm_up=row["warm_up"],
        )
        assert learning_rate(config, row["iteration"]) == pytest.approx(row["lr_x1"], rel=1e-12)
        assert 10 * learning_rate(config, row["iteration"]) == pytest.approx(row["lr_x10"], rel=1e-12)


@pytest.mark.parametrize(("arch", "name"), [("deeplabv3plus", "v3"), ("deeplabv2", "v2")])
def test_steps_of_the_reference(arch: str, name: str) -> None:
    """A whole network: losses, gradients and every state entry after each of two steps."""
    golden = json.loads((DATA / f"train_step_{name}_mobilenet.json").read_text())
    labels = np.load(DATA / f"train_step_{name}_mobilenet.npz")
    config = TrainConfig(backbone="mobilenet", arch=arch)  # the defaults are the published recipe
    student = build_student(arch, "mobilenet", 19)
    recipe_weights(student)
    for module in student.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout2d)):
            module.p = 0.0
    state = make_state(student, config, 19, CPU)
    student.to(memory_format=torch.contiguous_format)  # as it was recorded
    assert [len(group["params"]) for group in state.optimizer.param_groups] == golden["optimizer"]["groups"]
    before = {key: value.clone() for key, value in student.state_dict().items()}
    assert len(golden["steps"]) == 2
    for step in golden["steps"]:
        first = step["iter"] == 0
        x = recipe_input((golden["batch"], 3, *golden["crop"]), step["input_seed"])
        batch = {MAIN: (x, torch.from_numpy(labels[f"labels_{step['iter']}"]))}
        loss = optimise(state, student, batch, config)
        assert float(loss) == pytest.approx(step["loss"], rel=1e-4 if first else 3e-3)
        assert state.loss.mining is not None
        assert float(state.loss.mining.threshold) == pytest.approx(step["mm"], rel=1e-4 if first else 3e-3)
        assert abs(int(state.loss.mining.kept) - step["kept"]) <= 2
        assert [group["lr"] for group in state.optimizer.param_groups] == pytest.approx(step["lr"], rel=1e-12)
        np.testing.assert_allclose(state.loss.class_weight, step["class_weight"], rtol=1e-6)
        gradients = {key: p.grad for key, p in student.named_parameters()}
        assert {key for key in gradients if gradients[key] is None} == {
            key for key, norm in step["grad_norm"].items() if norm is None
        }
        after_step = student.state_dict()
        moved = {key: value - before[key] for key, value in after_step.items()}
        gradient = deviations({k: g for k, g in gradients.items() if g is not None}, step["grad_norm"])
        movement = deviations(moved, step["after_step_delta_norm"])
        assert max(deviations(after_step, step["after_step_norm"])) < 2e-3
        if name == "v2":
            assert max(gradient) < 1e-2
            assert max(movement) < 1e-2
        elif first:
            # The image-pooling branch normalises two values to +-1, which makes much of a rounding: the same
            # step in float64 is 1.4e-2 from the recorded one.
            assert max(gradient) < 3e-2
            assert max(movement) < 3e-2
        else:
            # And so much more of it in the next step (float64: 0.5 and 0.2) that single entries say little.
            assert np.median(gradient) < 0.5
            assert np.median(movement) < 5e-2


def deviations(tensors: dict[str, torch.Tensor], golden: dict[str, float | None]) -> list[float]:
    """Relative deviations of norms; norms below 1e-3 are rounding alone (a bias before a norm)."""
    norms = {key: norm for key, norm in golden.items() if norm is not None}
    assert set(tensors) == set(norms)
    found = {key: float(tensor.double().norm()) for key, tensor in tensors.items()}
    return [abs(found[key] - norm) / max(norm, 1e-3) for key, norm in norms.items()]


def tiny_state(config: TrainConfig = CONFIG) -> TrainState:
    torch.manual_seed(0)
    student = build_student(config.arch, config.backbone, len(CLASSES))
    return make_state(student, config, len(CLASSES), CPU)


def unchanged(pixels: torch.Tensor, labels: torch.Tensor) -> Crops:
    """Crops that nothing is done to."""
    return Crops(pixels, labels, torch.zeros(len(pixels), 0))


def test_step_sees_bgr_pixels_without_their_mean() -> None:
    """``train_step`` is ``optimise`` on what the network is shown."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 24, 48, 3), generator=generator).to(torch.uint8)
    labels = torch.randint(0, 3, (2, 24, 48), generator=generator).to(torch.uint8)
    mean = torch.tensor([104.00698793, 116.66876762, 122.67891434])
    x = (pixels.flip(3).float() - mean).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    one, other = tiny_state(), tiny_state()
    plain = dataclasses.replace(CONFIG, augment=())
    found = train_step(one, one.student, {MAIN: unchanged(pixels, labels)}, plain)
    expected = optimise(other, other.student, {MAIN: (x, labels)}, CONFIG)
    assert torch.equal(found, expected)
    assert one.step == 1
    assert_equal(one.student.state_dict(), other.student.state_dict())


def test_dropout_is_a_pure_function_of_seed_and_step() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 24, 48, generator=generator)
    labels = torch.randint(0, 3, (2, 24, 48), generator=generator).to(torch.uint8)

    def loss_at(step: int, seed: int = 0) -> float:
        state = tiny_state()
        state.step = step
        config = dataclasses.replace(CONFIG, seed=seed)
        return float(optimise(state, state.student, {MAIN: (x, labels)}, config))

    assert loss_at(0) == loss_at(0)
    assert len({loss_at(0), loss_at(1), loss_at(2), loss_at(0, seed=1)}) == 4


# ---------------------------------------------------------------------------- crops


def stacks(count: int = 5) -> tuple[Any, Any]:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, 32, 64, 3)).astype(np.uint8)
    labels = np.repeat(np.arange(count, dtype=np.uint8), 32 * 64).reshape(count, 32, 64)
    return images, labels


def crop(position: int, config: TrainConfig = CONFIG) -> tuple[torch.Tensor, ...]:
    """Pixels and labels."""
    return crop_at(config, Rows(*stacks()), position)[:2]


def test_crops_are_pure_functions_of_seed_and_position() -> None:
    in_order = [crop(position) for position in range(12)]
    torch.manual_seed(1)
    for position in (11, 3, 7, 0):
        assert all(map(torch.equal, crop(position), in_order[position]))
    other_seed = [crop(position, dataclasses.replace(CONFIG, seed=1)) for position in range(12)]
    assert not all(torch.equal(a[0], b[0]) for a, b in zip(in_order, other_seed, strict=True))
    pixels, label = in_order[0]
    assert (pixels.shape, label.shape) == ((16, 32, 3), (16, 32))
    assert pixels.dtype == label.dtype == torch.uint8


def test_crops_of_one_image_at_several_places_differ() -> None:
    rows = np.arange(32, dtype=np.uint8)[None, :, None].repeat(64, 2)  # a label that says where it is
    images = np.zeros((1, 32, 64, 3), np.uint8)
    found = {int(crop_at(CONFIG, Rows(images, rows), position)[1][0, 0]) for position in range(30)}
    assert len(found) > 8
    assert found <= set(range(17))


def test_every_epoch_shows_every_image_once_in_another_order() -> None:
    epochs = [[int(crop(5 * epoch + i)[1][0, 0]) for i in range(5)] for epoch in range(4)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_augmentation_changes_what_the_network_sees_but_not_which_crop() -> None:
    plain = dataclasses.replace(CONFIG, augment=())
    for position in range(4):
        assert all(map(torch.equal, crop(position), crop(position, plain)))
    with ThreadPoolExecutor(1) as pool:
        _, batch, _ = next(batches(CONFIG, {MAIN: Rows(*stacks(len(CLASSES)))}, 0, pool))
    one, other = tiny_state(), tiny_state(plain)
    augmented = train_step(one, one.student, batch, CONFIG)
    assert not torch.equal(augmented, train_step(other, other.student, batch, plain))


# ---------------------------------------------------------------------------- runs


def run_on(tiny_set: TinySet, examples: list[Example], folder: Path) -> Run:
    """A run in the folder that learns these fused labels."""
    stream = Stream(examples, tiny_set.domain, read_fused)
    return Run(tiny_set.task, {MAIN: stream}, folder / "run", folder / "cache", CPU)


@pytest.fixture(scope="module")
def shared_set(tmp_path_factory: pytest.TempPathFactory) -> TinySet:
    return make_set(tmp_path_factory.mktemp("training") / "set")


@pytest.fixture(scope="module")
def whole_run(shared_set: TinySet) -> Path:
    """A run that nothing disturbed, with one worker."""
    out = shared_set.root.parent / "whole"
    result = run(shared_set, out)
    assert (result.steps, result.resumed_from, result.images) == (15, 0, 4)
    return out


def assert_equal(found: Any, expected: Any) -> None:
    """Bit by bit, through dicts and lists."""
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_equal(found[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    else:
        assert found == expected


def metrics_of(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]


def assert_same_run(out: Path, expected: Path) -> None:
    for name in ("last.pt", "best.pt"):
        one, other = checkpoint.load(out / name), checkpoint.load(expected / name)
        one["meta"]["config"]["workers"] = other["meta"]["config"]["workers"]
        assert_equal(one, other)
    assert metrics_of(out) == metrics_of(expected)


def test_run_leaves_its_records(whole_run: Path) -> None:
    assert [(line["step"], "loss" in line) for line in metrics_of(whole_run)] == [
        (0, True), (4, False), (9, False), (10, True), (14, True), (14, False),
    ]  # fmt: skip
    content = checkpoint.load(whole_run / "last.pt")
    assert set(content) == {"format", "weights", "optimizer", "loss", "meta"}
    assert content["loss"]["often_weight"].max() > 1  # or the comparisons of runs would not see it
    meta = content["meta"]
    assert (meta["step"], meta["classes"], meta["source"]) == (15, list(CLASSES), "tiny")
    scores = {line["step"] + 1: line["val_miou"] for line in metrics_of(whole_run) if "val_miou" in line}
    assert meta["miou"] == scores[15]
    assert meta["best_miou"] == max(scores.values()) == scores[meta["best_step"]]
    assert json.loads((whole_run / "config.json").read_text())["config"]["steps"] == 15
    assert list((whole_run / "tensorboard").iterdir())
    loaded = checkpoint.load_student(whole_run / "last.pt", CLASSES)
    assert (loaded.arch, loaded.backbone, loaded.preprocessing.size) == ("deeplabv3plus", "tiny", (64, 32))


@pytest.mark.slow
def test_student_learns_the_tiny_street(shared_set: TinySet) -> None:
    """Long enough to see that gradients point somewhere; the three classes have plain colours."""
    result = run(
        shared_set,
        shared_set.root.parent / "long",
        steps=240,
        validate_every=240,
        augment=(),
        learning_rate=0.01,
    )
    assert result.last_miou is not None
    assert result.last_miou > 60


@pytest.mark.parametrize("workers", [1, 3])
def test_run_stopped_by_an_error_goes_on(whole_run: Path, shared_set: TinySet, workers: int) -> None:
    out = shared_set.root.parent / f"stopped-{workers}"

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(shared_set, out, after(11, stop), workers=workers)
    assert checkpoint.load(out / "last.pt")["meta"]["step"] == 8
    result = run(shared_set, out, resume=True, workers=4 - workers)
    assert (result.resumed_from, result.steps) == (8, 15)
    assert_same_run(out, whole_run)


@pytest.mark.slow
def test_run_killed_by_the_system_goes_on(whole_run: Path, shared_set: TinySet) -> None:
    out = shared_set.root.parent / "killed"
    killed = program(shared_set.root, out, 3, 11)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1')  # a line that was cut off
    result = run(shared_set, out)  # without --resume it goes on as well
    assert result.resumed_from == 8
    assert_same_run(out, whole_run)


def test_run_killed_before_its_first_checkpoint_begins_again(shared_set: TinySet, whole_run: Path) -> None:
    out = shared_set.root.parent / "early"

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(shared_set, out, after(1, stop))
    assert not (out / "last.pt").exists()
    assert run(shared_set, out).resumed_from == 0
    assert_same_run(out, whole_run)


def test_finished_run_is_left_alone(whole_run: Path, shared_set: TinySet, tmp_path: Path) -> None:
    out = shutil.copytree(whole_run, tmp_path / "again")
    result = run(shared_set, out, resume=True)
    assert (result.resumed_from, result.steps, result.last_loss) == (15, 15, None)
    assert_same_run(out, whole_run)


def test_saving_loading_and_validating_more_often_is_the_same_run(
    whole_run: Path, shared_set: TinySet
) -> None:
    out = shared_set.root.parent / "other"
    run(shared_set, out, save_every=2, validate_every=3)
    one, other = checkpoint.load(out / "last.pt"), checkpoint.load(whole_run / "last.pt")
    for part in ("weights", "optimizer", "loss"):
        assert_equal(one[part], other[part])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"learning_rate": 1e-2},
            r"holds a run with --lr 0\.001, not 0\.01; name another with --name",
        ),
        ({"steps": 10}, "holds a run with --steps 15, not 10"),
        ({"crop": (32, 24)}, r"holds a run with --crop \[32, 16\], not \[32, 24\]"),
        ({"augment": ()}, r"holds a run with --augment \['colour', 'light', 'texture'\], not \[\]"),
        ({"seed": 1}, "holds a run with --seed 0, not 1"),
    ],
)
def test_run_with_other_options_is_refused(
    whole_run: Path, shared_set: TinySet, change: dict[str, Any], message: str
) -> None:
    before = (whole_run / "last.pt").read_bytes()
    with pytest.raises(ConfigError, match=message):
        run(shared_set, whole_run, **change)
    assert (whole_run / "last.pt").read_bytes() == before


def test_run_with_other_classes_is_refused(whole_run: Path, tiny_set: TinySet) -> None:
    text = tiny_set.toml.read_text().replace('"car"', '"bus"')
    tiny_set.toml.write_text(text)
    with pytest.raises(ConfigError, match=r"holds a run with classes .*'car'.*, not .*'bus'"):
        run(tiny_set, whole_run)


def test_nothing_or_something_else_to_resume_is_refused(tiny_set: TinySet, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(
        CheckpointError, match=r"last\.pt: no such checkpoint to resume; run without --resume"
    ):
        run(tiny_set, out, resume=True)
    assert not out.exists()
    out.mkdir()
    (out / "last.pt").write_bytes(b"no checkpoint")
    with pytest.raises(
        CheckpointError, match=r"last\.pt: damaged, cut short or no checkpoint; delete it to start over"
    ):
        run(tiny_set, out)


def test_divergence_is_refused_and_never_saved(tiny_set: TinySet, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(
        EndaudaError, match=r"the weights became .* no numbers at step 2, before .*lower --lr \(now 1e\+30\)"
    ):
        run(tiny_set, out, learning_rate=1e30, save_every=3, validate_every=0)
    assert not (out / "last.pt").exists()


def test_steps_without_any_label_learn_nothing(tiny_set: TinySet, tmp_path: Path) -> None:
    """Neither weights, their decay and momentum, nor statistics, nor what the loss remembers of classes: they are
    counted, and are no end. The reference's loss is NaN there."""
    for example in tiny_set.examples():
        write_label(tiny_set.root / "fused" / f"{example.id}.png", np.full((32, 64), IGNORE, np.uint8))
    write_label(tiny_set.root / "fused" / "1.png", np.zeros((32, 64), np.uint8))
    orders = [order_of(CONFIG.seed, epoch, 4) for epoch in range(CONFIG.steps)]
    examples = [e.id for e in tiny_set.examples()]
    shown = [{examples[i] for i in half} for o in orders for half in (o[:2], o[2:])][: CONFIG.steps]
    empty = [step for step, images in enumerate(shown) if "1" not in images]
    assert 0 < len(empty) < CONFIG.steps

    def after(steps: int) -> dict[str, Any]:
        out = tmp_path / f"run-{steps}"
        result = run(tiny_set, out, steps=CONFIG.steps, save_every=1, keep=CONFIG.steps, validate_every=0)
        assert result.empty_steps == len(empty)
        return checkpoint.load(out / "earlier" / f"step-{steps}.pt")

    first = next(step for step in empty if step > 0)
    before, then = after(first), after(first + 1)
    for part in ("weights", "optimizer", "loss"):
        assert_equal(before[part], then[part])
    assert then["meta"]["empty"] == before["meta"]["empty"] + 1


def test_unlabelled_images_do_not_end_a_run(tiny_set: TinySet, tmp_path: Path) -> None:
    for name in ("1", "2", "3"):
        write_label(tiny_set.root / "fused" / f"{name}.png", np.full((32, 64), IGNORE, np.uint8))
    result = run(tiny_set, tmp_path / "run", validate_every=0)
    losses = [line["loss"] for line in metrics_of(tmp_path / "run")]
    assert all(map(math.isfinite, losses))
    assert result.best_miou is None
    assert result.checkpoint == tmp_path / "run" / "last.pt"


def test_labels_that_cannot_teach(tiny_set: TinySet, tmp_path: Path) -> None:
    fused = sorted((tiny_set.root / "fused").iterdir())
    events: list[Tick | Note] = []
    for path in fused:
        write_label(path, np.full((32, 64), 1, np.uint8))
    run(tiny_set, tmp_path / "one", events.append, steps=1, validate_every=0)
    notes = [event for event in events if isinstance(event, Note)]
    assert any("the labels never show road, sky" in note.text and note.level == "warning" for note in notes)
    assert any("road 0.0, car 100.0, sky 0.0, none 0.0" in note.text for note in notes)
    for path in fused:
        write_label(path, np.full((32, 64), IGNORE, np.uint8))
    with pytest.raises(DataError, match="the labels hold no class at all"):
        run(tiny_set, tmp_path / "two")
    fused[2].unlink()
    with pytest.raises(
        DataError, match=r"2\.png: no such label file, needed for image 2 \(1 of 4 are absent\)"
    ):
        run(tiny_set, tmp_path / "three")
    with pytest.raises(DataError, match="there is no image to train on"):
        train(CONFIG, run_on(tiny_set, [], tmp_path), silent)


# ---------------------------------------------------------------------------- the source


def test_source_learns_from_the_truth_and_from_a_corrected_table(tiny_set: TinySet, tmp_path: Path) -> None:
    """Label ids become train ids; a table that was mended is not answered from a cache of the old one."""

    def histogram(name: str) -> str:
        events: list[Tick | Note] = []
        run(tiny_set, tmp_path / name, events.append, method=Method.SOURCE, steps=1, validate_every=0)
        return next(e.text for e in events if isinstance(e, Note) and e.text.startswith("labels in percent"))

    right = histogram("right")
    assert "none 0.0" in right
    text = tiny_set.toml.read_text()
    tiny_set.toml.write_text(text.replace('"7" = "road"', '"6" = "road"'))
    assert "road 0.0" in histogram("wrong")
    tiny_set.toml.write_text(text)
    assert histogram("mended") == right


def test_fused_labels_are_refused_as_truth_and_the_other_way_round(tiny_set: TinySet, tmp_path: Path) -> None:
    folder = tiny_set.root / "truth/train"
    truth = [Example(e.id, e.image, folder / f"{e.id}.png") for e in tiny_set.examples()]
    with pytest.raises(DataError, match=r"0\.png: value 7, but train ids are 0 to 2"):
        train(CONFIG, run_on(tiny_set, truth, tmp_path), silent)


def test_target_has_the_sources_classes(tiny_set: TinySet, tmp_path: Path) -> None:
    """Cityscapes seen through three classes: the network has three outputs."""
    task = make_task(tiny_set.domain, CITYSCAPES)
    config = dataclasses.replace(CONFIG, steps=1, validate_every=0)
    whole = run_on(tiny_set, tiny_set.examples(), tmp_path)
    stream = dataclasses.replace(whole.streams[MAIN], domain=task.target)
    train(config, dataclasses.replace(whole, task=task, streams={MAIN: stream}), silent)
    meta = checkpoint.load(tmp_path / "run" / "last.pt")["meta"]
    assert (meta["source"], meta["target"], meta["classes"]) == ("tiny", "cityscapes", list(CLASSES))


# ---------------------------------------------------------------------------- initial weights


def test_start_from_a_whole_network(tiny_set: TinySet, tiny_checkpoint: Path, tmp_path: Path) -> None:
    events: list[Tick | Note] = []
    config = dataclasses.replace(CONFIG, steps=1, validate_every=0, learning_rate=1e-30, seed=5)
    whole = dataclasses.replace(run_on(tiny_set, tiny_set.examples(), tmp_path), init=tiny_checkpoint)
    result = train(config, whole, events.append)
    assert result.initialised_from == str(tiny_checkpoint)
    found, expected = (checkpoint.load(p)["weights"] for p in (tmp_path / "run" / "last.pt", tiny_checkpoint))
    assert torch.equal(found["decoder.last_conv.8.weight"], expected["decoder.last_conv.8.weight"])
    assert not any(isinstance(e, Note) and "random weights" in e.text for e in events)


def test_random_start_is_said(tiny_set: TinySet, tmp_path: Path) -> None:
    events: list[Tick | Note] = []
    run(tiny_set, tmp_path / "run", events.append, steps=1, validate_every=0)
    assert any(isinstance(e, Note) and e.level == "warning" and "random weights" in e.text for e in events)


def test_start_from_a_backbone(tmp_path: Path) -> None:
    torch.manual_seed(1)
    backbone = build_student("deeplabv3plus", "tiny", 7).backbone.state_dict()
    torch.save(backbone, tmp_path / "backbone.pth")
    student = build_student("deeplabv3plus", "tiny", 3)
    initialise(student, tmp_path / "backbone.pth")
    assert_equal(student.backbone.state_dict(), backbone)


def test_start_from_something_else_is_refused(tmp_path: Path) -> None:
    student = build_student("deeplabv3plus", "tiny", 3)
    torch.save(build_student("deeplabv3plus", "tiny", 4).state_dict(), tmp_path / "four.pth")
    with pytest.raises(CheckpointError, match=r"four\.pth"):
        initialise(student, tmp_path / "four.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"odd\.pth"):
        initialise(student, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"absent\.pth"):
        initialise(student, tmp_path / "absent.pth")


# ---------------------------------------------------------------------------- checkpoints


def test_checkpoint_of_another_kind_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"trained for 3 classes .* but 2 are expected"):
        checkpoint.load_student(tiny_checkpoint, ("road", "car"))
    with pytest.raises(CheckpointError, match="a tiny network, but --backbone drn was given; leave it out"):
        checkpoint.load_student(tiny_checkpoint, CLASSES, backbone="drn")
    with pytest.raises(CheckpointError, match=r"absent\.pt: no such file of weights"):
        checkpoint.load_student(tmp_path / "absent.pt", CLASSES)
    torch.save({"format": 99, "weights": {}, "meta": {}}, tmp_path / "new.pt")
    with pytest.raises(CheckpointError, match="written in format 99, but this version reads 1"):
        checkpoint.load(tmp_path / "new.pt")
    whole = tiny_checkpoint.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.pt").write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"cut\.pt"):
            checkpoint.load_student(tmp_path / "cut.pt", CLASSES, backbone="tiny")
        with pytest.raises(
            CheckpointError, match=r"cut\.pt: damaged, cut short or no checkpoint; delete it to"
        ):
            checkpoint.load(tmp_path / "cut.pt")
    torch.save({"a": torch.zeros(1)}, tmp_path / "plain.pth")
    with pytest.raises(CheckpointError, match=r"plain\.pth: not a checkpoint of an endauda run"):
        checkpoint.load(tmp_path / "plain.pth")


def test_weights_of_other_projects_need_their_network_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = build_student("deeplabv2", "tiny", 3)
    torch.save(student.state_dict(), tmp_path / "plain.pth")
    loaded = checkpoint.load_student(tmp_path / "plain.pth", CLASSES, "deeplabv2", "tiny", (96, 48))
    assert_equal(loaded.model.state_dict(), student.state_dict())
    assert (loaded.meta, loaded.preprocessing.size, loaded.model.training) == ({}, (96, 48), False)


def test_failed_save_keeps_the_old_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    shutil.copy(tiny_checkpoint, path)
    (tmp_path / ".last.pt.1.tmp").write_bytes(b"left by a killed process")
    content = checkpoint.load(tiny_checkpoint)
    checkpoint.save(path, content)
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]
    path.unlink()
    path.mkdir()  # a file cannot replace a folder
    with pytest.raises(CheckpointError, match=r"last\.pt: cannot be written"):
        checkpoint.save(path, content)
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


# ---------------------------------------------------------------------------- several processes


@pytest.mark.slow
def test_two_processes_make_one_run(tiny_set: TinySet, tmp_path: Path) -> None:
    """Also where one of them meets a batch without labels, which the other must not wait for."""
    for name in ("1", "2"):
        write_label(tiny_set.root / "fused" / f"{name}.png", np.full((32, 64), IGNORE, np.uint8))
    examples = [e.id for e in tiny_set.examples()]
    orders = [order_of(CONFIG.seed, epoch, 4) for epoch in range(CONFIG.steps)]
    unlabelled = [{examples[i] for i in half} for o in orders for half in (o[:2], o[2:])]
    assert {"1", "2"} in unlabelled

    out = tmp_path / "run"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    finished = program(tiny_set.root, out, 1, launcher=launcher)
    assert finished.returncode == 0, finished.stderr
    assert sorted(path.name for path in out.glob("*.pt*")) == ["best.pt", "last.pt"]
    assert sorted(path.name for path in (out / "earlier").iterdir()) == [
        "step-12.pt",
        "step-15.pt",
        "step-8.pt",
    ]
    content = checkpoint.load(out / "last.pt")
    assert content["meta"]["step"] == CONFIG.steps
    assert all(bool(value.isfinite().all()) for value in content["weights"].values())
    metrics = metrics_of(out)
    assert [line["step"] for line in metrics] == [0, 4, 9, 10, 14, 14]
    assert all(math.isfinite(value) for line in metrics for value in line.values())
    alone = tiny_set.validate(checkpoint.load_student(out / "last.pt", CLASSES).model)
    assert content["meta"]["miou"] == pytest.approx(alone.miou)  # both halves of the images were counted


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"crop": (65, 32)}, {"hard_percentile": 100}])
def test_recipes_that_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        dataclasses.replace(CONFIG, **options)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupt_while_saving_is_an_interrupt(tmp_path: Path) -> None:
    """Not an error of the disk; and the file is the old one or the new one, whenever the interrupt comes."""
    path = tmp_path / "last.pt"
    weights = {str(i): torch.zeros(100) for i in range(300)}
    checkpoint.save(path, {"weights": weights, "meta": {}})
    before, interrupted = signal.signal(signal.SIGALRM, signal.default_int_handler), 0
    try:
        for i in range(30):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0005 + i * 0.0005)
                for _ in range(20):
                    checkpoint.save(path, {"weights": weights, "meta": {"i": i}})
            except KeyboardInterrupt:
                interrupted += 1
            assert checkpoint.load(path)["weights"].keys() == weights.keys()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 20, "an interrupt inside a destructor is lost, but few are"
    checkpoint.save(path, {"weights": weights, "meta": {}})
    assert list(tmp_path.iterdir()) == [path]
