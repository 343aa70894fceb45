"""The teachers' networks against golden files of the projects' own code."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from endauda_cli.errors import ConfigError
from endauda_cli.models import TEACHER_NETWORKS, build_teacher
from tests import support
from tests.support.recipes import describe, recipe_input, recipe_weights

DATA = support.DATA / "models"
GOLDEN = {"dacs": "dacs", "crst": "crst", "cbst": "crst", "mrnet": "mrnet_gn_se", "mrnet-bn": "mrnet_bn"}

every_network = pytest.mark.parametrize("name", GOLDEN)


def golden(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((DATA / f"teacher_{GOLDEN[name]}.json").read_text())
    return content


def on_meta(name: str, num_classes: int = 19) -> nn.Module:
    with torch.device("meta"):
        return build_teacher(name, num_classes)


def heads(output: Tensor | tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    if isinstance(output, Tensor):
        return {"out": output}
    return dict(zip(("layer5", "layer6"), output, strict=True))


def test_every_network_with_golden_files_is_tested() -> None:
    assert set(GOLDEN) <= set(TEACHER_NETWORKS)
    with pytest.raises(ConfigError, match=r"teacher network 'prada' is unknown; choose one of dacs, crst"):
        build_teacher("prada", 19)


@every_network
def test_state_dict(name: str) -> None:
    state = on_meta(name).state_dict()
    found = [
        [key, list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in state.items()
    ]
    assert found == golden(name)["keys"]


@every_network
def test_layers(name: str) -> None:
    model = on_meta(name)
    found = [described for path, module in model.named_modules() if (described := describe(path, module))]
    assert found == golden(name)["layers"]
    parameters = list(model.parameters())
    assert sum(p.numel() for p in parameters) == golden(name)["parameters"]
    assert sum(p.numel() for p in parameters if p.requires_grad) == golden(name)["trainable"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dacs", "crst", "mrnet", "mrnet-bn"])
def test_golden_forward(name: str) -> None:
    model = build_teacher(name, 19).eval()
    filled_with = None
    for key, expected in np.load(DATA / f"teacher_{GOLDEN[name]}.npz").items():
        recipe, head, size = key.split("_")
        if recipe != filled_with:
            recipe_weights(model, scale={"A": 1.0, "B": 0.5}[recipe])
            filled_with = recipe
        height, width = map(int, size.split("x"))
        with torch.inference_mode():
            found = heads(model(recipe_input((1, 3, height, width))))[head].numpy()
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max(), key


def test_cbst_is_the_one_of_crst() -> None:
    cbst, crst = on_meta("cbst"), on_meta("crst")
    assert [type(m) for m in cbst.modules()] == [type(m) for m in crst.modules()]
    assert cbst.layer5.counted == crst.layer5.counted == 4  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["dacs", "crst"])
def test_sixteen_classes_change_only_the_classifiers(name: str) -> None:
    shapes = [{k: v.shape for k, v in on_meta(name, n).state_dict().items()} for n in (19, 16)]
    changed = {key for key in shapes[0] if shapes[0][key] != shapes[1][key]}
    assert changed == {key for key in shapes[0] if key.startswith("layer5.")}


@pytest.mark.slow
def test_mrnet_returns_sixteen_of_its_nineteen_for_synthia() -> None:
    from endauda_cli.domains import CITYSCAPES_CLASSES, DOMAINS

    whole, reduced = (build_teacher("mrnet", n).eval() for n in (19, 16))
    reduced.load_state_dict(whole.state_dict())
    image = recipe_input((1, 3, 33, 65))
    kept = [CITYSCAPES_CLASSES.index(name) for name in DOMAINS["synthia"].classes]
    with torch.inference_mode():
        for nineteen, sixteen in zip(whole(image), reduced(image), strict=True):
            assert torch.equal(nineteen[:, kept], sixteen)
