"""Reports: one page that needs no other file, and its pictures as PNG."""

from __future__ import annotations

import base64
import io
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from endauda_cli.domains import CITYSCAPES_PALETTE
from endauda_cli.report import (
    Figure,
    Gallery,
    PictureRow,
    Report,
    Row,
    Section,
    Table,
    contact_sheet,
    number,
    percent,
    thumbnail,
    write_report,
)
from tests.support.command_lines import UInt8, read_png
from tests.support.pages import assert_self_contained

if TYPE_CHECKING:
    from pathlib import Path


def flat(seed: int, height: int = 20, width: int = 30) -> UInt8:
    """A label map in colour: few colours, so it is embedded as PNG."""
    palette = np.array(CITYSCAPES_PALETTE, np.uint8)
    return palette[np.random.default_rng(seed).integers(0, 19, (height, width))]


def photograph(height: int = 40, width: int = 60) -> UInt8:
    """Many colours in smooth slopes, so it is embedded as JPEG."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 6, x * 4, (x + y) * 2], 2).astype(np.uint8)


def embedded(page: str) -> list[UInt8]:
    urls = re.findall(r'src="data:image/(?:png|jpeg);base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(url))).convert("RGB")) for url in urls]


def test_page_with_all_kinds_of_sections(tmp_path: Path) -> None:
    pictures = [photograph(), flat(0), flat(1)]
    lines = [Row(["road", "91.2"], frozenset([1])), Row(["mIoU", "70"], strong=True)]
    report = Report(
        title="plf <of> three & more",
        intro=["First sentence.", "Second."],
        sections=[
            Table("IoU", ["class", "IoU"], lines, ["A note."]),
            Gallery(
                "Scenes", ["image", "one", "truth"], [PictureRow("aachen_1", pictures)], [("road", (1, 2, 3))]
            ),
        ],
    )
    write_report(tmp_path / "report.html", report)
    page = (tmp_path / "report.html").read_text()
    assert_self_contained(page)
    assert "plf &lt;of&gt; three &amp; more" in page and "<of>" not in page
    for text in ("First sentence.", "A note.", "91.2", "Scenes", "aachen_1", "truth", "road"):
        assert text in page
    shown = embedded(page)
    assert len(shown) == 3
    assert np.array_equal(shown[1], flat(0)) and np.array_equal(shown[2], flat(1))  # label colours stay exact
    assert np.abs(shown[0].astype(int) - photograph()).mean() < 6
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "report"}
    assert np.array_equal(read_png(tmp_path / "report/gallery.png"), contact_sheet(report.sections[1]))  # type: ignore[arg-type]


def test_several_galleries_are_several_pictures(tmp_path: Path) -> None:
    galleries = [Gallery(f"{n}", ["a"], [PictureRow("x", [flat(n)])]) for n in range(2)]
    write_report(tmp_path / "page.html", Report("two", sections=galleries))
    assert {path.name for path in tmp_path.iterdir()} == {"page.html", "page"}
    assert {path.name for path in (tmp_path / "page").iterdir()} == {"gallery-1.png", "gallery-2.png"}


def test_pictures_of_earlier_versions_beside_the_page_are_removed_but_no_labels(tmp_path: Path) -> None:
    names = ("report.png", "report-classes.png", "report-x.png", "a.png", "a_color.png")
    for name in names:
        (tmp_path / name).write_bytes(b"")
    sections: list[Section] = [Gallery("", ["a"], [PictureRow("x", [flat(0)])])]
    one = Report("one", sections=sections, figures=[Figure("classes", flat(0))])
    write_report(tmp_path / "report.html", one, {"a", "report"})
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "report", *names} - {
        "report-classes.png"
    }
    write_report(tmp_path / "report.html", one, {"a"})
    assert not (tmp_path / "report.png").exists()
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"gallery.png", "classes.png"}


def test_contact_sheet_has_every_picture_at_its_place() -> None:
    rows = [PictureRow(f"{y}", [flat(10 * y + x) for x in range(3)]) for y in range(2)]
    sheet = contact_sheet(Gallery("", ["a", "b", "c"], rows), gap=4)
    assert sheet.shape == (16 + 4 + 2 * 24, 4 + 3 * 34, 3)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row.pictures):
            top, left = 20 + y * 24, 4 + x * 34
            assert np.array_equal(sheet[top : top + 20, left : left + 30], picture)
    assert (sheet[:16] < 128).any(), "the columns' names"


def test_contact_sheet_of_pictures_that_differ_in_size() -> None:
    sheet = contact_sheet(
        Gallery("", ["a"], [PictureRow("", [flat(0, 8, 50)]), PictureRow("", [flat(1, 30, 9)])])
    )
    assert sheet.shape == (16 + 4 + 2 * 34, 4 + 54, 3)


@pytest.mark.parametrize(
    ("size", "expected"), [((300, 960), (150, 480)), ((64, 32), (64, 32)), ((1, 1000), (1, 480))]
)
def test_thumbnail(size: tuple[int, int], expected: tuple[int, int]) -> None:
    picture = flat(0, *size)
    small = thumbnail(picture, flat=True)
    assert small.shape == (*expected, 3)
    colours = {tuple(colour) for colour in small.reshape(-1, 3).tolist()}
    assert colours <= set(CITYSCAPES_PALETTE), "flat pictures keep their colours"


def test_figures() -> None:
    assert [percent(v) for v in (None, 0.0, 0.12345, 1.0)] == ["n/a", "0.0", "12.3", "100.0"]
    assert [number(v) for v in (None, 1.005, 65.0)] == ["n/a", "1.00", "65.00"]
    assert number(-0.12345, 3) == "-0.123"
