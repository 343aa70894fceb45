"""The page on archives for other programs: its Python runs, and what it says of files is so."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import h5py
import hdf5plugin  # noqa: F401  registers the filters
import numpy as np
import pytest

from endauda_cli.archive import CODECS, CertaintyReader, CertaintyWriter
from endauda_cli.types import Codec
from tests.support import ROOT
from tests.support.pages import blocks, prose

if TYPE_CHECKING:
    from pathlib import Path

PAGE = ROOT / "docs/archives-elsewhere.md"
CLASSES = ("road", "car", "person")
IDS = ("street_001", "street_002", "street_003")
PLAIN, OWN = (
    [b.text for b in blocks(PAGE) if b.language == "python" and ("endauda_cli" in b.text) is ours]
    for ours in (False, True)
)
FOREIGN = [codec for codec in CODECS if codec != Codec.SOFTMAX]


def write(path: Path, codec: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    written = {}
    with CertaintyWriter(path, classes=CLASSES, codec=codec, attributes={"teacher": "places"}) as archive:
        for image in IDS:
            weights = rng.random((3, 24, 40)) ** 4
            certainty = (100 * weights / weights.sum(0)).astype(np.uint8)
            written[image] = weights.argmax(0).astype(np.uint8), certainty
            archive.write(image, *written[image])
    return written


def run(program: str, folder: Path, *options: str) -> str:
    """A program of the page, in a process of its own."""
    ended = subprocess.run(
        [sys.executable, *options, "-c", program],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.parametrize("codec", FOREIGN)
def test_plain_h5py_reads_what_was_written(codec: Codec, tmp_path: Path) -> None:
    label, planes = write(tmp_path / "certainty/mine/places", codec)["street_001"]
    no_endauda = "import sys\nsys.modules['endauda_cli'] = None  # whoever imports it fails\n"
    save = "\nnp.savez('read.npz', label=label, planes=planes)\n"
    printed = run(no_endauda + "\n".join(PLAIN) + save, tmp_path)
    with np.load(tmp_path / "read.npz") as read:
        assert np.array_equal(read["label"], label) and np.array_equal(read["planes"], planes)
    assert f"/24x40-{codec} certainty" in printed and "(1, 24, 40)" in printed


@pytest.mark.slow
@pytest.mark.parametrize("program", OWN, ids=["reader", "loader", "writer"])
def test_programs_with_endauda_run(program: str, tmp_path: Path) -> None:
    write(tmp_path / "certainty/mine/places", Codec.SOFTMAX)

    printed = run(program, tmp_path)
    if "DataLoader" in program:
        assert "torch.Size([2, 3, 24, 40]) torch.Size([2, 24, 40])" in printed
    elif "CertaintyWriter" in program:
        with CertaintyReader(tmp_path / "certainty/mine/mine") as archive:
            assert archive.ids == ("street_001", "street_002") and archive.classes == ("road", "car")
            assert 98 <= int(archive.certainty("street_001").sum(0).min()) <= 100
    else:
        assert "3 places" in printed


@pytest.mark.parametrize("codec", CODECS)
def test_the_table_of_filters_is_true(codec: Codec, tmp_path: Path) -> None:
    write(tmp_path, codec)
    (row,) = [line for line in prose(PAGE).splitlines() if line.startswith(f"| `{codec}`")]
    _, _, certainty, label, _, _ = row.split("|")
    with h5py.File(next(tmp_path.glob("*.h5")), "r") as file:
        (group,) = file.values()
        for name, cell in (("certainty", certainty), ("label", label)):
            properties = group[name].id.get_create_plist()
            assert properties.get_nfilters() == 1
            assert cell.replace(",", " ").replace(";", " ").split()[0] == str(properties.get_filter(0)[0])
        assert ("delta" in group["certainty"].attrs) is ("delta" in certainty)


def test_the_listing_is_true(tmp_path: Path) -> None:
    """Every name in the page's listing is in a file, and nothing else is."""
    write(tmp_path, Codec.JPEGLS)
    listing = next(b.text for b in blocks(PAGE) if 'DATASET "label"' in b.text)
    with h5py.File(next(tmp_path.glob("*.h5")), "r") as file:
        (group,) = file.values()
        names = {*file.attrs, *group.attrs, *group}
        assert file.attrs["version"] == 3 and file.attrs["format"] == "endauda-certainty"
        assert (group["certainty"].shape, group["crc32"].shape) == ((9, 24, 40), (3, 5))
    listed = {line.split('"')[1] for line in listing.splitlines() if '"' in line and "GROUP" not in line}
    assert listed == names
