"""The pages of every command in a real Chromium, over ``file://``: nothing to complain of, nothing too wide, and the
controls do what they say. Skipped where there is no Chromium; ``.ci/run`` installs Debian's."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from endauda_cli.report import Reliability, Report, write_report
from tests.report.test_components import sections
from tests.support import browser
from tests.support.browser import NARROW, WIDE, Browser
from tests.support.command_lines import SIZE_FLAGS, make_workspace, succeed
from tests.support.pages import assert_well_made

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

pytestmark = [
    pytest.mark.skipif(browser.FOUND is None, reason="no Chromium: apt-get install chromium"),
    pytest.mark.slow,
]
PAGES = {
    "fuse": "Warehouse/Cityscapes/data/gtFine/plf-val/report.html",
    "train": "runs/gta5/student/report.html",
    "test": "runs/gta5/student/test-last-val/report.html",
    "test --all": "scores/cityscapes-val/report.html",
    "report": "workspace.html",
    "components": "components.html",
}
PICTURED = ("fuse", "train", "test", "test --all")


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with Browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a page of every kind."""
    root = make_workspace(tmp_path_factory.mktemp("pages"))
    here = ("--workspace", root)
    succeed("fuse", *here, "--teachers", "dacs", "crst", "--rule", "plf")
    succeed("fuse", *here, "--teachers", "dacs", "crst", "--rule", "plf", "--split", "val")
    succeed("train", *here, *SIZE_FLAGS, "--labels", "plf", "--steps", "3", "--name", "student")
    succeed("test", *here)
    succeed("test", *here, "--all", "--boundaries")
    succeed("report", *here)
    bins = [{"confidence": c / 10, "accuracy": c / 12, "count": 10**c} for c in range(10)]
    diagrams = [{"name": "dacs", "bins": bins, "ece": 0.1}]
    whole = Report("Components", ["all"], [*sections("x" * 60), Reliability("Reliable", diagrams)])
    write_report(root / "components.html", whole)
    return root


def seen(window: Browser) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(window.picture())).convert("RGB"))


@pytest.mark.parametrize("page", PAGES)
def test_pages_are_well_made(made: Path, page: str) -> None:
    assert_well_made((made / PAGES[page]).read_text(), links=page in ("test --all", "report"))
    assert (made / PAGES[page]).stat().st_size < 2_000_000


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("page", PAGES)
def test_no_complaint_and_nothing_too_wide(
    window: Browser, made: Path, page: str, size: tuple[int, int], dark: bool
) -> None:
    window.open(made / PAGES[page], size, dark)
    assert window.said == []
    # A phone widens its view where the page overflows.
    assert window.ask("innerWidth") == size[0]
    assert window.ask("document.documentElement.scrollWidth") <= size[0]
    ground = window.ask("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(17, 22, 28)") == dark
    assert window.ask("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")


@pytest.mark.parametrize("page", PICTURED)
def test_the_slider_changes_what_is_seen(window: Browser, made: Path, page: str) -> None:
    window.open(made / PAGES[page])
    window.ask("document.querySelector('.card').scrollIntoView({behavior: 'instant'})")
    slider = "document.querySelector('.card input[type=range]')"
    window.ask(f"{slider}.focus({{preventScroll: true}})")
    before, value, words = seen(window), window.ask(f"{slider}.value"), window.ask(f"{slider}.ariaValueText")
    for _ in range(6):
        window.press("ArrowRight", 39)
    after = seen(window)
    assert float(window.ask(f"{slider}.value")) > float(value)
    assert window.ask(f"{slider}.ariaValueText") != words
    place = window.ask(
        "(({x, y, width, height}) => [x, y, width, height].map(Math.round))"
        "(document.querySelector('.card .layers').getBoundingClientRect())"
    )
    x, y, width, height = place
    changed = (before != after).any(2)[y : y + height, x : x + width]
    assert changed.mean() > 0.02, "another part of the pictures"
    assert window.said == []


def test_buttons_go_to_a_picture_and_side_by_side(window: Browser, made: Path) -> None:
    window.open(made / PAGES["test"])
    card = "document.querySelector('.card')"
    clips = f"[...{card}.querySelectorAll('figure')].map((one) => getComputedStyle(one).clipPath)"
    window.ask(f"{card}.querySelector('button[value=\"200\"]').click()")
    assert window.ask(clips) == ["none", "none", "none", "inset(0px 100% 0px 0px)"]
    assert window.ask(f"{card}.querySelector('input').ariaValueText") == "prediction"
    assert window.ask(f"{card}.querySelector('button[value=\"200\"]').ariaPressed") == "true"
    left = f"[...{card}.querySelectorAll('figure')].map((one) => one.getBoundingClientRect().left)"
    assert len(set(window.ask(left))) == 1
    window.ask("document.querySelector('.aside').click()")
    assert len(set(window.ask(left))) == 4 and set(window.ask(clips)) == {"none"}


def test_another_second_row(window: Browser, made: Path) -> None:
    window.open(made / PAGES["test --all"])
    shown = (
        "[...document.querySelectorAll('[data-bars] tbody tr:first-child .bar')].filter((bar) => bar.offsetHeight)"
        ".map((bar) => bar.dataset.row)"
    )
    told = "document.querySelector('[data-bars] tbody tr td:last-child').textContent"
    assert window.ask(shown) == ["0", "1"]
    window.ask(
        "(() => { const select = document.querySelector('[data-which=\"1\"]'); select.value = '2';"
        "select.dispatchEvent(new Event('change')); })()"
    )
    assert window.ask(shown) == ["0", "2"]
    values = window.ask(
        "[...document.querySelectorAll('[data-bars] tbody tr:first-child .bar')].map((b) => Number(b.dataset.value))"
    )
    assert float(window.ask(told)) == pytest.approx(values[0] - values[2], abs=0.06)
    assert window.said == []


def test_without_script_all_pictures_are_there(window: Browser, made: Path) -> None:
    window.open(made / PAGES["test"], script=False)
    window.call("Emulation.setScriptExecutionDisabled", value=False)
    heights = "[...document.querySelectorAll('.card figure')].map((one) => one.offsetHeight)"
    lefts = (
        "new Set([...document.querySelectorAll('.card:first-child figure')].map((f) => f.offsetLeft)).size"
    )
    assert min(window.ask(heights)) > 20 and window.ask(lefts) == 4
    assert window.ask("document.querySelector('.control').offsetHeight") == 0


def test_every_control_is_reached_by_keyboard(window: Browser, made: Path) -> None:
    window.open(made / PAGES["test"])
    window.press("Tab", 9)
    assert window.ask("document.activeElement.className") == "skip"
    kinds = set()
    for _ in range(60):
        window.press("Tab", 9)
        kinds.add(window.ask("document.activeElement.type || document.activeElement.localName"))
    assert {"a", "range", "button", "div", "summary"} <= kinds, (
        "links, sliders, buttons, what scrolls, what folds"
    )


def test_the_policy_lets_no_other_script_run(window: Browser, made: Path, tmp_path: Path) -> None:
    page = (made / PAGES["test"]).read_text()
    forged = page.replace("</main>", "<script>document.title = 'forged'</script></main>")
    (tmp_path / "forged.html").write_text(
        forged.replace("</main>", '<img src="https://example.org/x.png"></main>')
    )
    window.open(tmp_path / "forged.html")
    assert window.ask("document.title") != "forged"
    refused = [line for line in window.said if "Content Security Policy" in line]
    assert len(refused) == 2, window.said


def test_links_of_the_workspace_s_page_lead_to_files(window: Browser, made: Path) -> None:
    window.open(made / PAGES["report"])
    addresses = window.ask("[...document.links].map((one) => one.href)")
    files = [address for address in addresses if "#" not in address]
    assert len(files) >= 4
    for address in dict.fromkeys(files):
        assert Path(unquote(address.removeprefix("file://"))).is_file(), address
