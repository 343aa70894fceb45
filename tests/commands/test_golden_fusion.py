"""What the reference implementation fused, again through the command line: archive, fuse, PNG.

The golden inputs with one number of classes and teachers are images of the same archives. Left out are the
averages and shares (``*_u8``), which no command writes, and the inputs of floats, which no archive holds (the
kernels' own tests have them). Windows and thresholds are all there.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from endauda_cli.archive import CertaintyWriter
from tests import support
from tests.support.command_lines import UInt8, read_png, result_of

pytestmark = pytest.mark.slow

DATA = support.DATA / "fusion"
Array = NDArray[Any]


def golden(name: str) -> dict[str, Array]:
    with np.load(DATA / f"{name}.npz") as file:
        return dict(file)


NAMES = sorted(path.stem for path in DATA.glob("*_T*_C*.npz") if not path.stem.startswith("tiefree"))
"""Those with byte certainties and labels."""


def describe_target(root: Path, num_classes: int) -> Path:
    """A TOML data set of so many classes, without images: fuse then takes what the archives hold."""
    classes = [f"class {c}" for c in range(num_classes)]
    path = root / "golden.toml"
    path.write_text(f"name = 'golden'\nclasses = {classes}\n[train]\nimages = 'none/*.png'\n")
    return path


def export(root: Path, labels: UInt8, certainty: UInt8) -> list[str]:
    """Archives t0, t1, ... of (T, B, H, W) labels and (T, B, H, W, C) certainties; images 0, 1, ..."""
    describe_target(root, certainty.shape[-1])
    names = [f"t{t}" for t in range(len(labels))]
    classes = [f"class {c}" for c in range(certainty.shape[-1])]
    for t, name in enumerate(names):
        # Not by --import, which refuses labels that contradict their certainties, as those of noise do.
        with CertaintyWriter(
            root / "certainty/golden" / name, classes=classes, attributes={"teacher": name}
        ) as out:
            for b in range(labels.shape[1]):
                out.write(
                    str(b),
                    np.ascontiguousarray(labels[t, b]),
                    np.ascontiguousarray(certainty[t, b].transpose(2, 0, 1)),
                )
    return names


def fuse(root: Path, teachers: list[str], *words: str) -> UInt8:
    """The label PNGs of a fusion, (B, H, W) uint8."""
    where = ("--target", root / "golden.toml", "--workspace", root, "--name", "it")
    if "--rule" not in words:
        words = ("--rule", "plf", *words)
    result = result_of("fuse", "--teachers", *teachers, *where, *words)
    labels = np.stack([read_png(Path(result["labels"]) / f"{b}.png") for b in range(result["images"])])
    assert result["coverage"] == pytest.approx((labels != 255).mean(), abs=1e-12)
    return labels


@pytest.mark.parametrize("name", NAMES)
def test_published_labels(name: str, tmp_path: Path) -> None:
    """Every ``out_plf``, ``out_certainty``, ``out_majority`` and ``out_softlabel`` of the file, pixel by pixel."""
    content = golden(name)
    renormalised = "certainty_u8" in content
    certainty = content["certainty_u8" if renormalised else "certainty"].astype(np.uint8)
    teachers = export(tmp_path, content["labels"].astype(np.uint8), certainty)
    np.save(tmp_path / "policy.npy", content["extraction_list"])
    if "delta" in content:
        np.save(tmp_path / "delta.npy", content["delta"])
    compared = 0
    for key, expected in content.items():
        if plf := re.fullmatch(r"out_plf_rf(\d+x\d+)_thr(\d+)", key):
            words = ["--policy", str(tmp_path / "policy.npy"), "--window", plf[1], "--threshold", plf[2]]
        elif mean := re.fullmatch(r"out_certainty_thr(\d+)", key):
            words = ["--rule", "certainty", "--threshold", mean[1]]
        elif soft := re.fullmatch(r"out_softlabel_thr(\d+)", key):
            words = ["--rule", "soft-label", "--delta", str(tmp_path / "delta.npy"), "--threshold", soft[1]]
        elif key == "out_majority":
            words = ["--rule", "majority"]
        else:
            continue
        found = fuse(tmp_path, teachers, *words, *(["--renormalise"] if renormalised else []))
        assert np.array_equal(found, expected), f"{key}: {(found != expected).sum()} pixels differ"
        compared += 1
    assert compared >= (9 if renormalised else 10)


def test_overlap_is_the_published_share(tmp_path: Path) -> None:
    """What ``fuse`` prints as "claimed by several classes" and "by none" follows from the claims."""
    content = golden("smooth_gta_T4_C19_small_B2")
    teachers = export(tmp_path, content["labels"].astype(np.uint8), content["certainty"].astype(np.uint8))
    np.save(tmp_path / "policy.npy", content["extraction_list"])
    result = result_of(
        "fuse", "--teachers", *teachers, "--target", tmp_path / "golden.toml", "--workspace", tmp_path, "--policy",
        tmp_path / "policy.npy",
    )  # fmt: skip
    claims = content["out_claim_count"]
    assert result["overlap"] == pytest.approx(float((claims > 1).mean()), abs=1e-12)
    assert result["overlap"] == pytest.approx(float(content["out_overlap_fraction"].mean()), abs=1e-6)
    assert result["unclaimed"] == pytest.approx(float((claims == 0).mean()), abs=1e-12)


def test_policy_as_json_paints_in_any_order(tmp_path: Path) -> None:
    """The order of the list, which the reference paints in, has no influence; names are as good as numbers."""
    content = golden("smooth_synthia_T3_C16_small")
    teachers = export(tmp_path, content["labels"].astype(np.uint8), content["certainty"].astype(np.uint8))
    pairs = [[f"class {c}", teachers[t]] for c, t in content["extraction_list"].tolist()]
    for order in (pairs, pairs[::-1], sorted(pairs)):
        (tmp_path / "policy.json").write_text(json.dumps(order))
        found = fuse(tmp_path, teachers, "--policy", str(tmp_path / "policy.json"))
        assert np.array_equal(found, content["out_plf_rf5x5_thr90"])


@pytest.mark.parametrize("size", ["T4_C19", "T3_C16", "T7_C19", "T7_C16"])
def test_published_policy_selection(size: str, tmp_path: Path) -> None:
    """``--policy certainty`` on archives whose mean certainties stand in the table's order, class by class.

    Certainties of an archive are whole percent, so each column is replaced by the ranks of its values: the
    selection only asks which is higher, which are equal, and which is not there (NaN: the class is never
    predicted). A column of zeros stays one. A negative value cannot be in an archive; the selection treats
    it as it treats NaN, and so does this test: the class is not predicted.
    """
    content = golden("policy_selection")
    table = content[f"table_{size}"].astype(np.float64)
    teachers, num_classes = table.shape
    # A row of pixels per class: that class, or 255 where a teacher never predicts it.
    labels = np.full((teachers, 1, num_classes, 4), 255, np.uint8)
    certainty = np.zeros((*labels.shape, num_classes), np.uint8)
    for c in range(num_classes):
        column = table[:, c]
        levels = sorted({v for v in column if v > 0})
        for t, value in enumerate(column):
            if value >= 0:
                labels[t, 0, c] = c
                certainty[t, 0, c, :, c] = 10 * (1 + levels.index(value)) if value > 0 else 0
    names = export(tmp_path, labels, certainty)
    result = result_of(
        "fuse", "--teachers", *names, "--target", tmp_path / "golden.toml", "--workspace", tmp_path, "--policy",
        "certainty",
    )  # fmt: skip
    owners = [names.index(entry["owner"]) for entry in result["classes"]]
    assert owners == content[f"out_list_{size}"][:, 1].tolist()
    assert content[f"out_list_{size}"][:, 0].tolist() == list(range(num_classes))


def test_tables_of_the_selection_have_all_special_cases() -> None:
    """Ties, never predicted, zeros and negative values do occur, so the test above is about them too."""
    tables = [table for key, table in golden("policy_selection").items() if key.startswith("table")]
    values = np.concatenate([table.astype(np.float64).T.ravel() for table in tables])
    assert np.isnan(values).any() and (values == 0).any() and (values < 0).any()
    assert any(
        np.unique(column[column > 0]).size < (column > 0).sum()
        for table in tables
        for column in table.astype(np.float64).T
    )
