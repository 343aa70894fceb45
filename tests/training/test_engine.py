"""How a run is computed: precision, averages, parts, memory; and what it never does: save what is no number."""

from __future__ import annotations

import dataclasses
import json
import random
import signal
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from endauda_cli import checkpoint
from endauda_cli.errors import ConfigError, EndaudaError
from endauda_cli.losses import DistillationLoss, count_classes, percentile
from endauda_cli.models import build_student, parameter_groups
from endauda_cli.models.recomputing import recompute_blocks
from endauda_cli.training import loop
from endauda_cli.training.averaging import Average
from endauda_cli.training.precision import chosen_precision
from endauda_cli.types import Precision
from tests.support.training_runs import CONFIG, program, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from endauda_cli.models.layers import Features
    from tests.support.training_runs import TinySet

CPU = torch.device("cpu")


def state_of(path: Path) -> dict[str, Any]:
    content = checkpoint.load(path)
    return {key: value for key, value in content.items() if key != "meta"}


def assert_same(found: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected


# ---------------------------------------------------------------------------- the loss, traced


@pytest.mark.parametrize("options", [{}, {"class_balance": True, "often_balance": True}])
def test_the_loss_depends_on_no_value(options: dict[str, Any]) -> None:
    """On tensors without values, whatever asks for one raises. No card is needed for these."""
    with FakeTensorMode():
        criterion = DistillationLoss(19, hard_percentile=80, **options)
        criterion._buffers = {key: torch.ones(19, device="cuda") for key in criterion._buffers}
        logits = torch.randn(2, 19, 16, 32, device="cuda", requires_grad=True)
        labels = torch.zeros(2, 16, 32, dtype=torch.uint8, device="cuda")
        loss = criterion(logits, labels)
    assert loss.shape == () and loss.device.type == "cuda" and loss.requires_grad


def test_the_loss_is_one_graph() -> None:
    torch._dynamo.reset()
    criterion = DistillationLoss(5, class_balance=True, often_balance=True)
    same = DistillationLoss(5, class_balance=True, often_balance=True)
    compiled = torch.compile(criterion, fullgraph=True, backend="eager")
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        logits = torch.randn(2, 5, 16, 32, generator=generator)
        labels = torch.randint(0, 5, (2, 16, 32), generator=generator).to(torch.uint8)
        assert torch.equal(compiled(logits, labels), same(logits, labels))
        assert torch.equal(criterion.class_weight, same.class_weight)


def test_what_cards_do_is_what_the_cpu_does() -> None:
    """Sorting and comparing instead of selecting and counting: a device that says it is no CPU."""

    class Elsewhere(torch.Tensor):
        device = torch.device("meta")

    generator = torch.Generator().manual_seed(0)
    values = torch.rand(1000, generator=generator)
    labels = torch.randint(0, 256, (4, 50), generator=generator)
    for percent in (0, 12.5, 80, 99.99):
        assert float(percentile(values.as_subclass(Elsewhere), percent)) == float(percentile(values, percent))
    assert count_classes(labels.as_subclass(Elsewhere), 19).tolist() == count_classes(labels, 19).tolist()


# ---------------------------------------------------------------------------- options of the engine


def test_parts_of_a_batch_are_its_gradient(tiny_set: TinySet, tmp_path: Path) -> None:
    """Without what sees the whole of a part (mining, balance, norms' statistics) it is the same step."""
    plain: dict[str, Any] = {"steps": 1, "batch_size": 4, "hard_percentile": 0, "class_balance": False}

    def weights(name: str, **more: Any) -> dict[str, torch.Tensor]:
        run(tiny_set, tmp_path / name, arch="deeplabv2", validate_every=0, **plain, **more)
        found: dict[str, torch.Tensor] = checkpoint.load(tmp_path / name / "last.pt")["weights"]
        return found

    whole, parts = weights("whole"), weights("parts", accumulate=2)
    head = [key for key in whole if key.startswith("head.conv2d_list.0")]
    assert head and not any(torch.equal(whole[key], parts[key]) for key in head), "norms see their part alone"
    for key in head:
        torch.testing.assert_close(whole[key], parts[key], rtol=0, atol=1e-2)
    with pytest.raises(ConfigError, match="--accumulate 3: --batch-size 4 does not divide"):
        dataclasses.replace(CONFIG, batch_size=4, accumulate=3)
    with pytest.raises(ConfigError, match="--accumulate 2: --batch-size 2 does not divide"):
        dataclasses.replace(CONFIG, accumulate=2)


@pytest.mark.parametrize("arch", ["deeplabv3plus", "deeplabv2"])
def test_recomputing_changes_nothing(tiny_set: TinySet, tmp_path: Path, arch: str) -> None:
    for name, recompute in (("kept", False), ("again", True)):
        run(tiny_set, tmp_path / name, arch=arch, steps=4, validate_every=2, recompute=recompute)
    assert_same(state_of(tmp_path / "again/last.pt"), state_of(tmp_path / "kept/last.pt"))


@pytest.mark.parametrize("backbone", ["drn", "resnet", "mobilenet", "tiny"])
def test_recomputing_keeps_less(backbone: str) -> None:
    """Bytes that autograd keeps of a forward pass."""

    def kept(again: bool) -> int:
        student = build_student("deeplabv3plus", backbone, 3).backbone
        if again:
            assert recompute_blocks(student) > 1
        storages: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            features: Features = student(torch.randn(1, 3, 64, 128))
        assert features.deep.requires_grad
        return sum(storages.values()) - sum(p.nbytes for p in student.parameters())

    assert kept(again=True) < 0.6 * kept(again=False)


def test_averages_follow_the_student() -> None:
    student = build_student("deeplabv3plus", "tiny", 3)
    average = Average(student, 0.9)
    key = "decoder.last_conv.8.weight"
    expected = student.state_dict()[key].clone()
    for step in range(1, 30):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(1.0)
        average.update(step)
        expected.lerp_(student.state_dict()[key], 1 - min(0.9, (1 + step) / (10 + step)))
    torch.testing.assert_close(average.student.state_dict()[key], expected)
    assert not average.student.training and not any(p.requires_grad for p in average.student.parameters())


def test_the_average_is_the_student_that_is_saved_and_scored(tiny_set: TinySet, tmp_path: Path) -> None:
    result = run(tiny_set, tmp_path / "run", ema=0.8)
    content = checkpoint.load(tmp_path / "run/last.pt")
    key = "decoder.last_conv.8.weight"
    assert not torch.equal(content["weights"][key], content["student"][key])
    loaded = checkpoint.load_student(tmp_path / "run/last.pt", tiny_set.domain.classes)
    assert torch.equal(loaded.model.state_dict()[key], content["weights"][key])
    assert tiny_set.validate(loaded.model).miou == result.last_miou


@pytest.mark.parametrize(
    "values", [{"clip": 1e-9}, {"head_rate": 1e-9}, {"weight_decay": 0.5}, {"momentum": 0.0}]
)
def test_constants_of_the_recipe_count(tiny_set: TinySet, tmp_path: Path, values: dict[str, Any]) -> None:
    key = "decoder.last_conv.8.weight"
    short: dict[str, Any] = {"steps": 3, "validate_every": 0}
    run(tiny_set, tmp_path / "plain", **short)
    run(tiny_set, tmp_path / "other", **short, **values)
    plain, other = (
        checkpoint.load(tmp_path / name / "last.pt")["weights"][key] for name in ("plain", "other")
    )
    assert not torch.equal(plain, other)


@pytest.mark.parametrize(
    "values",
    [{"clip": -1.0}, {"head_rate": 0.0}, {"weight_decay": float("inf")}, {"momentum": 1.0}, {"ema": 1.5}, {"keep": 0},
     {"power": float("nan")}, {"max_value": 0.5}, {"balance_area": -1}, {"ramp": -1}, {"accumulate": 0}],
)  # fmt: skip
def test_constants_that_make_no_sense(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="^--" + next(iter(values)).replace("_", "-")):
        dataclasses.replace(CONFIG, **values)


def test_precisions() -> None:
    assert chosen_precision("auto", CPU) == Precision.FP32
    assert chosen_precision("bf16", CPU) == Precision.BF16
    with pytest.raises(ConfigError, match="--precision tf32: cpu has none"):
        chosen_precision("tf32", CPU)


def test_bfloat16_is_another_run(tiny_set: TinySet, tmp_path: Path) -> None:
    short: dict[str, Any] = {"steps": 2, "validate_every": 0}
    for precision in ("fp32", "auto", "bf16"):
        assert run(tiny_set, tmp_path / precision, precision=precision, **short).precision == (
            "bf16" if precision == "bf16" else "fp32"
        )
    states = {name: state_of(tmp_path / name / "last.pt") for name in ("fp32", "auto", "bf16")}
    assert_same(states["auto"], states["fp32"])
    weights = [states[name]["weights"]["decoder.last_conv.8.weight"] for name in ("fp32", "bf16")]
    assert weights[1].dtype == torch.float32 and not torch.equal(*weights)


# ---------------------------------------------------------------------------- every parameter is trained


class Head(nn.Module):
    """Layers that no published student has."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(8), nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.ones(8))
        self.fixed = nn.Parameter(torch.ones(8), requires_grad=False)
        self.up = nn.ConvTranspose2d(8, 3, 2)


@pytest.mark.parametrize("arch", ["deeplabv3plus", "deeplabv2"])
def test_every_parameter_is_in_one_group(arch: str) -> None:
    student = build_student(arch, "tiny", 3)
    student.add_module("extra", Head())
    student.backbone.add_module("tokens", Head())
    base, tenfold = parameter_groups(student)
    grouped = [id(p) for p in (*base, *tenfold)]
    assert len(grouped) == len(set(grouped))
    norms = [m for m in student.modules() if isinstance(m, nn.BatchNorm2d)]
    kept = {id(p) for m in norms for p in m.parameters()} if arch == "deeplabv2" else set()
    expected = {id(p) for p in student.parameters() if p.requires_grad} - kept
    assert set(grouped) == expected
    assert {id(p) for p in student.backbone.parameters()}.isdisjoint(map(id, tenfold))


# ---------------------------------------------------------------------------- nothing but numbers is saved


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """After the step whose number is put here, a weight is no number: the loss before it was one."""
    at: list[int] = []
    real = loop.optimise

    def optimise(state: Any, *rest: Any) -> torch.Tensor:
        loss: torch.Tensor = real(state, *rest)
        if state.step in at:
            with torch.no_grad():
                next(state.student.parameters())[0] = float("nan")
        return loss

    monkeypatch.setattr(loop, "optimise", optimise)
    yield at


def test_a_diverged_run_keeps_its_last_good_checkpoint(
    tiny_set: TinySet, tmp_path: Path, breaking: list[int]
) -> None:
    out = tmp_path / "run"
    breaking.append(8)
    with pytest.raises(
        EndaudaError, match=r"step 7; .*last\.pt holds step 4, when all was well: train on from it"
    ):
        run(tiny_set, out)
    content = checkpoint.load(out / "last.pt")
    assert content["meta"]["step"] == 4
    assert all(bool(value.isfinite().all()) for value in content["weights"].values())
    breaking.clear()
    whole = tmp_path / "whole"
    run(tiny_set, whole)
    run(tiny_set, out)  # the same line goes on from there
    assert_same(state_of(out / "last.pt"), state_of(whole / "last.pt"))


@pytest.mark.parametrize("keep", [1, 2, 9])
def test_some_earlier_checkpoints_stay(tiny_set: TinySet, tmp_path: Path, keep: int) -> None:
    out = tmp_path / "run"
    run(tiny_set, out, keep=keep, validate_every=0)  # saves at 4, 8, 12, 15
    names = sorted((path.name for path in out.glob("earlier/*.pt")), key=lambda name: int(name[5:-3]))
    assert (
        names
        == [f"step-{step}.pt" for step in (4, 8, 12, 15)[max(0, 4 - keep) :]][: 0 if keep == 1 else None]
    )
    if names:
        assert (out / "earlier" / names[-1]).samefile(out / "last.pt")
        assert checkpoint.read_meta(out / "earlier" / names[0])["step"] == int(names[0][5:-3])


# ---------------------------------------------------------------------------- killed in the midst


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "options"),
    [(1, {}), (2, {"ema": 0.9}), (4, {"precision": "bf16"}), (2, {"accumulate": 2, "batch_size": 4})],
)  # fmt: skip
def test_killed_at_random_moments(
    tiny_set: TinySet, tmp_path: Path, workers: int, options: dict[str, Any]
) -> None:
    """Ten times over all, in the midst of steps and of saving; what comes out is the run that was left alone."""
    told = {"steps": 60, "save_every": 1, "validate_every": 20, **options}
    run(tiny_set, tmp_path / "whole", workers=1, **told)
    rng, kills = random.Random(str(options)), 0
    while kills < 3:
        moment = f"{rng.uniform(0.05, 0.6):.3f}"
        done = program(tiny_set.root, tmp_path / "killed", workers, moment, json.dumps(told))
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        if done.returncode == 0:
            break
        kills += 1
    assert kills
    run(tiny_set, tmp_path / "killed", workers=workers, **told)
    assert_same(state_of(tmp_path / "killed/last.pt"), state_of(tmp_path / "whole/last.pt"))


ADAPTING: dict[str, Any] = {
    "steps": 14, "save_every": 4, "validate_every": 0, "size": [64, 32], "source_size": [48, 24], "crop": [32, 16],
    "power": 0.9, "rounds": 2, "source_portion": 0.5, "source_portion_step": 0.25, "source_portion_most": 1.0,
    "mine_below": 0.3, "freeze_norms": False,
}  # fmt: skip
ROUND = "pseudo labels of round 2: labelling"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "moments", "options"),
    [
        ("cbst", ("0.05", "11"), {}),  # within the second round, which begins at step 7
        ("cbst", (ROUND, "11"), {}),  # while it is labelled, from the checkpoint of step 4
        ("cbst", (ROUND, ROUND, "11"), {"save_every": 7}),  # and from that of its own first step, twice
        ("crst", (ROUND, "11"), {"regulariser": "lrent"}),
        ("dacs", ("11",), {}),
        ("dacs", ("0.05", "0.1", "11"), {"save_every": 1}),
    ],
)  # fmt: skip
def test_a_killed_adaptation_goes_on(
    tiny_set: TinySet, tmp_path: Path, method: str, moments: tuple[str, ...], options: dict[str, Any]
) -> None:
    """Kill -9 within a round, while its labels are made, and between steps; what comes out is the run left alone."""
    told = {"method": method, **ADAPTING, **options}
    run(tiny_set, tmp_path / "whole", workers=1, **told)
    for moment in moments:
        done = program(tiny_set.root, tmp_path / "killed", 2, moment, json.dumps(told))
        assert done.returncode == -signal.SIGKILL, done.stderr
    result = run(tiny_set, tmp_path / "killed", workers=2, **told)
    assert (result.resumed_from > 0, result.steps) == (True, 14)
    killed, whole = (checkpoint.load(tmp_path / name / "last.pt") for name in ("killed", "whole"))
    for part in ("weights", "optimizer", "method"):
        assert_same(killed.get(part), whole.get(part))
    if method != "dacs":
        labels = [np.load(tmp_path / name / "rounds/1/labels.npy") for name in ("killed", "whole")]
        assert np.array_equal(*labels)


def test_the_recipe_sets_in_where_there_is_nothing_to_start_from(tiny_set: TinySet, tmp_path: Path) -> None:
    notes: list[Any] = []
    run(tiny_set, tmp_path / "random", notes.append, steps=2, validate_every=0)
    assert any(
        "mining and class weights set in over the first 2 steps (--ramp 0" in str(note) for note in notes
    )
    notes.clear()
    run(tiny_set, tmp_path / "at-once", notes.append, steps=2, validate_every=0, ramp=0)
    assert not any("set in over" in str(note) for note in notes)
    metas = [checkpoint.read_meta(tmp_path / name / "last.pt") for name in ("random", "at-once")]
    assert [meta["ramp"] for meta in metas] == [2, 0]


def test_strength_is_how_far_the_recipe_has_set_in() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 16, 32, generator=generator)
    labels = torch.randint(0, 2, (2, 16, 32), generator=generator).to(torch.uint8)
    criterion = DistillationLoss(3, class_balance=True, hard_percentile=80)
    criterion.strength = 0.0
    torch.testing.assert_close(criterion(logits, labels), nn.functional.cross_entropy(logits, labels.long()))
    criterion.strength = 0.5
    criterion(logits, labels)
    assert criterion.mining is not None
    assert float(criterion.mining.kept) / criterion.mining.pixels == pytest.approx(0.6, abs=0.01)
