"""Students of other families: trained, stopped and resumed, tested, kept as their library keeps them, and teachers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch

from endauda_cli import checkpoint
from endauda_cli.archive import CertaintyReader
from tests.support import ROOT
from tests.support.command_lines import result_of, succeed
from tests.support.training_runs import CLASSES, TinySet, make_set

if TYPE_CHECKING:
    from pathlib import Path

SEGFORMER: dict[str, Any] = {
    "num_encoder_blocks": 4, "depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16], "decoder_hidden_size": 16,
    "num_attention_heads": [1, 1, 2, 2], "sr_ratios": [4, 2, 1, 1], "mlp_ratios": [2, 2, 2, 2],
}  # fmt: skip
BEIT: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 32,
    "patch_size": 16, "out_indices": [1, 2, 3, 4], "pool_scales": [1, 2], "use_relative_position_bias": True,
}  # fmt: skip
DPT: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 32,
    "patch_size": 16, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 8, 8, 8],
    "fusion_hidden_size": 16,
}  # fmt: skip
LEADER = ROOT / "tests/data/models/leader_checkpoint_tiny.pth"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinySet:
    return make_set(tmp_path_factory.mktemp("world"))


@dataclass(frozen=True)
class Family:
    """What ``--network`` is given, the crop it takes, and whether its library opens what is left."""

    name: str
    crop: str = "32x32"
    folder: bool = False
    pretrained: bool = False


def upernet(transformers: Any) -> Any:
    backbone = transformers.ConvNextConfig(
        depths=[1, 2, 1, 1], hidden_sizes=[8, 8, 16, 16], out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    return transformers.UperNetConfig(
        backbone_config=backbone, hidden_size=16, pool_scales=[1, 2], auxiliary_channels=8, auxiliary_in_channels=16
    )


def make(family: Family, folder: Path) -> tuple[str, ...]:
    """The words after ``train`` that name it; folders of transformers are written here."""
    if family.name == "daformer":
        return "--network", "daformer", "--init", str(LEADER)
    if ":" in family.name or family.name == "dacs":
        return "--network", family.name
    transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(1)
    made = {
        "segformer": lambda: transformers.SegformerConfig(**SEGFORMER),
        "beit": lambda: transformers.BeitConfig(**BEIT),
        "dpt": lambda: transformers.DPTConfig(**DPT),
        "upernet": lambda: upernet(transformers),
    }[family.name]()
    if family.pretrained:
        made.num_labels = 5
        transformers.AutoModelForSemanticSegmentation.from_config(made).save_pretrained(folder)
    else:
        made.save_pretrained(folder)
    return "--network", str(folder)


FAMILIES = {
    "segformer": Family("segformer", folder=True),
    "segformer-pretrained": Family("segformer", folder=True, pretrained=True),
    "beit": Family("beit", folder=True),
    "dpt": Family("dpt", folder=True),
    "upernet": Family("upernet", folder=True),
    "smp": Family("smp:unet/resnet18", folder=True),
    "smp-timm": Family("smp:fpn/tu-mobilenetv3_small_050", folder=True),
    "daformer": Family("daformer"),
}


def test_it_learns_goes_on_and_teaches(tmp_path: Path, world: TinySet) -> None:
    for name in FAMILIES:
        pass


@pytest.mark.parametrize("kind", list(FAMILIES))
def test_family(kind: str, tmp_path: Path, world: TinySet) -> None:
    family = FAMILIES[kind]
    if family.name.startswith("smp"):
        pytest.importorskip("segmentation_models_pytorch", reason="segmentation-models-pytorch is not installed")
    words = make(family, tmp_path / "former")
    common = ("--workspace", tmp_path, "--target", world.toml, "--target-data", world.root)
    line = (
        "train", *words, *common, "--labels", world.root / "fused", "--size", "64x32", "--crop", family.crop,
        "--batch-size", "2", "--workers", "1", "--device", "cpu", "--save-every", "10", "--mirror",
    )  # fmt: skip

    whole = result_of(*line, "--steps", "30", "--name", "whole")
    assert whole["steps"] == 30
