"""Students of other families: trained, stopped and resumed, tested, kept as their library keeps them, and teachers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from endauda_cli import checkpoint
from endauda_cli.archive import CertaintyReader
from endauda_cli.models import build_teacher
from endauda_cli.models.mit import MiTSize
from tests.support.command_lines import result_of
from tests.support.training_runs import CLASSES, TinySet, make_set

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MIT: dict[str, Any] = {"size": MiTSize((8, 8, 16, 16), (1, 1, 1, 1)), "width": 16}
SMALL: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 32,
    "patch_size": 16,
}  # fmt: skip


def segformer(library: Any) -> Any:
    return library.SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], decoder_hidden_size=16, num_attention_heads=[1, 1, 2, 2],
        sr_ratios=[4, 2, 1, 1], mlp_ratios=[2, 2, 2, 2],
    )  # fmt: skip


def beit(library: Any) -> Any:
    return library.BeitConfig(
        out_indices=[1, 2, 3, 4], pool_scales=[1, 2], use_relative_position_bias=True, **SMALL
    )


def dpt(library: Any) -> Any:
    return library.DPTConfig(
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=16, **SMALL
    )


def upernet(library: Any) -> Any:
    backbone = library.ConvNextConfig(
        depths=[1, 2, 1, 1],
        hidden_sizes=[8, 8, 16, 16],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return library.UperNetConfig(
        backbone_config=backbone,
        hidden_size=16,
        pool_scales=[1, 2],
        auxiliary_channels=8,
        auxiliary_in_channels=16,
    )


@dataclass(frozen=True)
class Kind:
    """What ``--network`` is given.

    Attributes:
        named: as typed.
        config: of a network of transformers, whose folder is made.
        weights: the folder has weights too, of a network of other classes.
        teacher: a teacher's, whose file of weights is made.
        optimizer: what suits it.
        size: of images.
        crop: of them.
    """

    named: str = ""
    config: Callable[[Any], Any] | None = None
    weights: bool = False
    teacher: dict[str, Any] | None = None
    optimizer: str = "adamw"
    size: str = "64x32"
    crop: str = "32x32"


KINDS = {
    "segformer": Kind(config=segformer),
    "segformer with weights": Kind(config=segformer, weights=True),
    "beit": Kind(config=beit),
    "dpt": Kind(config=dpt),
    "upernet": Kind(config=upernet),
    "smp": Kind("smp:fpn/mobilenet_v2"),
    "smp on timm": Kind("smp:unet/tu-mobilenetv3_small_050"),
    "a transformer teacher": Kind("daformer", teacher=MIT),
    "a teacher in windows": Kind("mic", teacher=MIT | {"crop": 64}, size="128x64", crop="64x64"),
}


def words_of(kind: Kind, folder: Path) -> tuple[str, ...]:
    """The words after ``train`` that name it."""
    torch.manual_seed(1)
    if kind.teacher is not None:
        torch.save(
            build_teacher(kind.named, len(CLASSES), **kind.teacher).state_dict(), folder / "teacher.pth"
        )
        return "--network", kind.named, "--init", str(folder / "teacher.pth")
    if kind.named:
        pytest.importorskip(
            "segmentation_models_pytorch", reason="segmentation-models-pytorch is not installed"
        )
        return "--network", kind.named
    library: Any = pytest.importorskip("transformers", reason="transformers is not installed")
    assert kind.config is not None
    config = kind.config(library)
    config.num_labels = 5
    model = library.AutoModelForSemanticSegmentation.from_config(config)
    (model if kind.weights else config).save_pretrained(folder / "former")
    return "--network", str(folder / "former")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinySet:
    return make_set(tmp_path_factory.mktemp("world"))


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = checkpoint.load(run / "last.pt")["weights"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", list(KINDS))
def test_learns_goes_on_and_teaches(name: str, tmp_path: Path, world: TinySet) -> None:
    kind = KINDS[name]
    words = words_of(kind, tmp_path)
    common: tuple[str | Path, ...] = (
        "--workspace",
        tmp_path,
        "--target",
        world.toml,
        "--target-data",
        world.root,
        "--device",
        "cpu",
    )
    line: tuple[str | Path, ...] = (
        "train", *words, *common, "--labels", world.root / "fused", "--size", kind.size, "--crop", kind.crop,
        "--batch-size", "2", "--workers", "1", "--save-every", "10", "--mirror", "--ema", "0.9", "--keep", "3",
    )  # fmt: skip

    whole = result_of(*line, "--steps", "30", "--name", "whole")
    out = tmp_path / "runs/tiny/whole"
    assert whole["steps"] == 30 and np.isfinite(whole["last_loss"])
    recipe = checkpoint.load(out / "last.pt")["meta"]["config"]
    assert recipe["optimizer"] == kind.optimizer

    # The run as it was after ten steps goes on to the same weights, bit for bit.
    stopped = tmp_path / "runs/tiny/stopped"
    stopped.mkdir()
    (stopped / "last.pt").write_bytes((out / "earlier/step-10.pt").read_bytes())
    assert result_of(*line, "--steps", "30", "--name", "stopped", "--resume")["resumed_from"] == 10
    once, twice = checkpoint.load(out / "last.pt"), checkpoint.load(stopped / "last.pt")
    for part in ("weights", "student"):
        assert once[part].keys() == twice[part].keys()
        assert all(torch.equal(value, twice[part][key]) for key, value in once[part].items())

    tested = result_of("test", "--weights", out / "last.pt", *common)
    assert tested["images"] == 2 and tested["miou"] is not None

    result_of("export-teacher", "second", "--weights", out / "last.pt", *common)
    with CertaintyReader(tmp_path / "certainty/tiny/second") as reader:
        assert len(reader) == 4 and reader.classes == CLASSES
        ours = {id: (reader.labels(id), reader.certainty(id)) for id in reader.ids}

    if whole["folder"] is not None:  # opened by the library, it says the same
        theirs = ("export-teacher", "third", "--weights", whole["folder"], *common)
        if kind.config is dpt:  # takes images of one size, which a folder cannot say
            return
        result_of(*theirs, *(("--size", kind.size) if kind.named else ()))
        with CertaintyReader(tmp_path / "certainty/tiny/third") as reader:
            for id, (labels, certainty) in ours.items():
                assert np.abs(reader.certainty(id).astype(int) - certainty).max() <= 1
                assert (reader.labels(id) != labels).mean() < 1e-3


def picture(width: int, height: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
