"""The parts of a page: what is escaped, what is left out, and colours that can be read."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from endauda_cli.report import (
    BarRow,
    Bars,
    Confusion,
    Drawings,
    Gallery,
    PictureRow,
    Reliability,
    Report,
    Row,
    Section,
    Table,
    html,
    marked_best,
    provenance,
)
from endauda_cli.report.components import (
    MATRIX_CELLS,
    MATRIX_CLASSES,
    Budget,
    bars,
    confusion,
    draw,
    file_link,
    gallery,
    legend,
    link,
    range_mark,
    reliability,
    slug,
    swatch,
    table,
)
from tests.support import ROOT
from tests.support.pages import assert_self_contained, assert_well_made

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = '<script>alert("1")</script>\'&\u202e'
STYLE = (ROOT / "endauda_cli/templates/report.css").read_text(encoding="utf-8")


def plain(value: int, size: tuple[int, int] = (6, 9)) -> Any:
    return np.full((*size, 3), value, np.uint8)


def sections(name: str) -> list[Section]:
    """One of each kind, all of whose words are this one."""
    bins = [
        {"confidence": 0.3, "accuracy": 0.5, "count": 7},
        {"confidence": 0.9, "accuracy": 0.8, "count": 0},
    ]
    return [
        Table(name, [name, name], [Row([name, name], frozenset([1])), Row([name, name])], [name]),
        Table(f"{name} words", ["", ""], [Row([name, name])], left=True),
        Gallery(
            f"{name} pictures",
            [name, name],
            [PictureRow(name, [plain(0), plain(9)], name)],
            [(name, (1, 2, 3))],
        ),
        Bars(f"{name} bars", [name], [(1, 2, 3)], [BarRow(name, [5.0], [(1.0, 9.0)]), BarRow(name, [None])]),
        Confusion(f"{name} confusion", [name, "b"], [(name, np.array([[3, 1], [0, 0]]))]),
        Reliability(f"{name} reliability", [{"name": name, "bins": bins, "ece": 0.2}]),
        Drawings(f"{name} drawings", []),
    ]


@pytest.mark.parametrize("name", ["road", HOSTILE, "", "a" * 500, "\ud800 half a letter"])
def test_whatever_a_name_is_the_page_is_whole(name: str) -> None:
    page = html(Report(name, [name], sections(name), headline=[(name, name)]))
    assert page.encode() and 'alert("1")' not in page and "\u202e" not in page
    if name:
        assert_self_contained(page)


@given(st.text(max_size=20))
def test_any_text_is_escaped(name: str) -> None:
    for section in sections(name):
        drawn = str(draw(section, Budget()))
        assert "<script" not in drawn.lower()
        assert re.search(r"<(?!/?[a-z])", drawn) is None, "every < is a tag's"


@pytest.mark.parametrize(
    "section",
    [
        Table("t", ["a"], []), Gallery("t", ["a"], []), Bars("t", [], [], []), Confusion("t", [], []),
        Reliability("t", []), Drawings("t", []),
    ],
)  # fmt: skip
def test_nothing_is_nothing(section: Section) -> None:
    assert_well_made(html(Report("empty", sections=[section])))


def test_tables_mark_what_is_best_also_in_words() -> None:
    drawn = table(
        Table("t", ["class", "a", "b"], [marked_best("road", [1.004, 1.0]), marked_best("sky", [None, 2])])
    )
    assert drawn.count('class="best"') == 3 and drawn.count("(best)") == 3, "equal as shown is equal"
    assert '<th scope="row">road</th>' in drawn and '<th scope="col">a</th>' in drawn
    assert 'role="region" tabindex="0" aria-label="t"' in drawn, "scrolls by keyboard"


def test_links_stay_in_the_workspace(tmp_path: Path) -> None:
    for href in ("https://example.org", "javascript:alert(1)", "//example.org/x", "data:text/html,x"):
        with pytest.raises(ValueError, match="leads out"):
            link("x", href)
    page = tmp_path / "pages/overview.html"
    assert 'href="../runs/a%20b/x%3Ay%23.html"' in file_link("x", tmp_path / "runs/a b/x:y#.html", page)
    assert 'href="javascript%3Ax"' in file_link("x", tmp_path / "pages/javascript:x", page)


def test_a_card_has_words_a_slider_and_its_pictures() -> None:
    rows = [PictureRow("aachen", [plain(0), plain(1), plain(2)], "mIoU 3 %")]
    drawn = gallery(Gallery("g", ["image", "truth", "said"], rows, [("road", (1, 2, 3))]), Budget())
    assert re.findall('alt="([^"]+)"', drawn) == ["image of aachen", "truth of aachen", "said of aachen"]
    assert '<label for="slide-1">' in drawn and 'type="range" id="slide-1" min="0" max="200"' in drawn
    assert drawn.count("<figcaption>") == 3 and "mIoU 3 %" in drawn
    alone = gallery(Gallery("g", ["image"], [PictureRow("x", [plain(0)])]), Budget())
    assert "<input" not in alone


def test_pictures_beyond_the_page_s_size_are_left_out_and_it_is_said() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (60, 60, 3)).astype(np.uint8)
    rows = [PictureRow(str(i), [noise]) for i in range(5)]
    one = len(re.search('src="([^"]+)"', gallery(Gallery("g", ["a"], rows[:1]), Budget()))[1])  # type: ignore[index]
    budget = Budget(pictures=2 * one + 10)
    drawn = gallery(Gallery("g", ["a"], rows), budget)
    assert drawn.count("<img") == 2 and "3 more are left out" in drawn
    assert "<img" not in gallery(Gallery("g", ["a"], rows), budget)


def test_bars_show_two_rows_and_hide_the_others() -> None:
    rows = [BarRow(name, [50.0 + i, None]) for i, name in enumerate("abc")]
    drawn = bars(Bars("b", ["road", "sky"], [(0, 0, 0)] * 2, rows), Budget())
    assert drawn.count(" hidden>") == 2 and drawn.count("<select") == 2
    assert drawn.count('<option value="1" selected>b</option>') == 1
    assert ">-1.0</td>" in drawn and ">n/a</td>" in drawn
    assert "<select" not in bars(Bars("b", ["road"], [(0, 0, 0)], [BarRow("a", [1.0])]), Budget())
    together = bars(Bars("b", ["road", "sky"], [(0, 0, 0)] * 2, rows, compared=False), Budget())
    assert "difference" not in together


def test_bars_stay_in_their_track() -> None:
    drawn = bars(Bars("b", ["x"], [(0, 0, 0)], [BarRow("a", [130.0], [(-20.0, 140.0)])]), Budget())
    assert "width:100.0%" in drawn and "left:0.0%;width:100.0%" in drawn


def test_a_confusion_matrix_in_percent_of_the_truth() -> None:
    drawn = confusion(Confusion("c", ["road", "sky"], [("one", np.array([[75, 25], [0, 0]]))]))
    assert (
        '<td class="right" style="--heat:0.75">75</td><td class="wrong" style="--heat:0.25">25</td>' in drawn
    )
    assert drawn.count("<td></td>") == 2, "a class that does not occur"


def test_large_matrices_are_cut_and_it_is_said() -> None:
    classes = [f"c{i}" for i in range(150)]
    matrix = np.diag(np.full(150, 1000))
    matrix[140, 3] = 500
    drawn = confusion(Confusion("c", classes, [(f"row {i}", matrix) for i in range(40)]))
    assert f"The {MATRIX_CLASSES} of 150 classes with the most errors" in drawn and "c140" in drawn
    shown = drawn.count("<details")
    assert shown == MATRIX_CELLS // MATRIX_CLASSES**2 and f"{40 - shown} more rows are left out" in drawn
    assert len(drawn) < 1_000_000


def test_reliability_is_drawn_and_tabled() -> None:
    bins = [
        {"confidence": 0.25, "accuracy": 0.5, "count": 10}, {"confidence": 0.75, "accuracy": 0.6, "count": 1000},
        {"confidence": 0.95, "accuracy": 0.0, "count": 0},
    ]  # fmt: skip
    drawn = reliability(Reliability("r", [{"name": "dacs", "bins": bins, "ece": 0.1234}]))
    assert drawn.count("<circle") == 2, "without what has no pixels"
    assert "expected error 12.3" in drawn and "certain 75 %: right 60.0 % of 1,000" in drawn
    assert '<th scope="row">25.0</th><td>50.0</td><td>10</td>' in drawn
    assert "nan" not in reliability(Reliability("r", [{"name": "x", "bins": [], "ece": 0.0}]))


def test_marks_of_intervals_share_an_axis() -> None:
    line = re.search(r"M([\d.]+) 7H([\d.]+)\"/><circle", range_mark(10, 20, 30, (0, 100)))
    assert line is not None
    low, high = map(float, line.groups())
    assert (low, high) == pytest.approx((4 + 11.2, 4 + 33.6), abs=0.06)
    assert range_mark(None, 1, 2, (0, 1)) == "" and range_mark(1, 1, 1, (1, 1)) == ""


def test_legend_and_swatch() -> None:
    assert "rgb(1,2,3)" in swatch((1, 2, 3), "road") and legend([]) == ""
    assert legend([("a", (0, 0, 0)), ("b", (1, 1, 1))]).count("<li>") == 2
    assert (slug("IoU per class, %"), slug("日本")) == ("iou-per-class", "section")


def test_what_a_page_says_of_its_making(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/endauda", "fuse", "--name", "a b"])
    told = {row.cells[0]: row.cells[1] for row in provenance({"teacher": "x", "none": None}).rows}
    assert told["command"] == "endauda fuse --name 'a b'" and told["teacher"] == "x" and "none" not in told
    monkeypatch.setattr(sys, "argv", ["endauda", "test", "https://me:secret@example.org/x"])
    assert "secret" not in "".join(provenance({}).rows[0].cells)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/pytest"])
    assert "command" not in {row.cells[0] for row in provenance({}).rows}


# ---------------------------------------------------------------------------- contrast


def colours(dark: bool) -> dict[str, tuple[int, ...]]:
    """The style sheet's own colours in a mode."""
    light_part, _, rest = STYLE.partition("@media (prefers-color-scheme: dark)")
    part = rest if dark else light_part
    found = re.findall(r"--(\w+): #([0-9a-f]{6});", part)
    return {name: tuple(bytes.fromhex(value)) for name, value in found}


def contrast(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """As WCAG 2 has it."""

    def luminance(colour: tuple[int, ...]) -> float:
        linear = [
            v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in colour)
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_on_every_ground(dark: bool) -> None:
    known = colours(dark)
    assert len(known) >= 12
    for ground in ("paper", "ground", "best", "right", "wrong"):
        assert contrast(known["ink"], known[ground]) >= 4.5, ground
    for ground in ("paper", "ground", "best"):
        assert contrast(known["soft"], known[ground]) >= 4.5, ground
        assert contrast(known["link"], known[ground]) >= 4.5, ground
    for bar in ("first", "second"):  # what is no text needs less
        assert contrast(known[bar], known["paper"]) >= 3 and contrast(known[bar], known["ground"]) >= 3
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
