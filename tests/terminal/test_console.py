"""The terminal: what a user reads, with and without one."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import pytest

from endauda_cli.progress import Note, Tick, phase
from endauda_cli.results import ClassFacts, ClassSummary, DemoResult, FusionResult, InspectResult, Score
from endauda_cli.terminal import bars as bars_module
from endauda_cli.terminal import screens
from endauda_cli.terminal.console import Terminal
from endauda_cli.terminal.screens import Screen, Text, say
from endauda_cli.terminal.showing import Page

Captured = pytest.CaptureFixture[str]
ODD = "b[red] :car: [/]"
"""A name that would be a colour, a picture and a mistake if it were read as rich's markup."""


class FakeTerminal(io.StringIO):
    """Text that a terminal would show, with the codes that move its cursor."""

    def isatty(self) -> bool:
        return True

    @property
    def plain(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.getvalue())


def screen(width: int) -> tuple[FakeTerminal, Screen]:
    """A terminal so wide, and its console."""
    file = FakeTerminal()
    console = Screen(file=file, width=width, force_terminal=True, highlight=False, markup=False, emoji=False)
    return file, console


# ---------------------------------------------------------------------------- logs


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundredth of the patience."""
    monkeypatch.setattr(bars_module, "FIRST_LINE_S", 0.02)
    monkeypatch.setattr(bars_module, "LINE_EVERY_S", 0.3)


def test_lines_of_progress(hasty: None, capsys: Captured) -> None:
    """After a while, then now and then, whether or not the task says anything meanwhile."""
    with Terminal("train") as terminal:
        terminal.report(Tick("training", 1000, 5000, unit="steps"))
        terminal.report(Tick("training", 1010, 5000, "loss 0.93", "steps"))
        time.sleep(0.75)
        terminal.report(Tick("training", 5000, 5000, unit="steps"))
        terminal.report(Tick("testing", 1, 2))
        terminal.report(Tick("testing", 2, 2))
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 3, lines
    for line in lines:
        assert re.fullmatch(
            r"training 1010/5000  [\d.]+ steps/s  (\d+h )?(\d+m )?(\d+s )?left  loss 0.93", line
        ), line


def test_lines_of_bytes(hasty: None, capsys: Captured) -> None:
    """Of a total that is known, and of one that nobody knows."""
    with Terminal("download-weights") as terminal:
        terminal.report(Tick("a.pth", 1_500_000, 170_000_000, "", "bytes"))
        terminal.report(Tick("b.pth", 0, None, "again in 4 s", "bytes"))
        terminal.report(Tick("b.pth", 2_000_000, None, "again in 4 s", "bytes"))
        time.sleep(0.2)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "a.pth 1.5 MB / 170.0 MB"
    assert re.fullmatch(r"b.pth 2.0 MB  [\d.]+ [kMG]B/s  again in 4 s", second)


def test_silent_phases_have_lines_too(hasty: None, capsys: Captured) -> None:
    terminal = Terminal("train")
    with terminal.loading("torch"):
        time.sleep(0.1)
    assert capsys.readouterr().err == "loading torch  0s\n"


def test_short_work_says_nothing_in_logs(capsys: Captured) -> None:
    with Terminal("fuse") as terminal:
        for done in range(1, 1000):
            terminal.report(Tick("fusing", done, 1000))
    assert capsys.readouterr().err == ""


def test_verbose_tells_what_each_part_took(capsys: Captured) -> None:
    with Terminal("fuse", verbose=True) as terminal:
        with phase(terminal.report, "opening the archives"):
            time.sleep(0.01)
        for done in range(3):
            terminal.report(Tick("fusing", done, 2))
            time.sleep(0.01)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "opening the archives  in 0s"
    assert re.fullmatch(r"fusing 2/2  [\d.]+ images/s  in 0s", second)


def test_quiet_is_quiet_but_for_warnings(hasty: None, capsys: Captured) -> None:
    with Terminal("train", quiet=True) as terminal:
        terminal.report(Tick("training", 1, 2))
        terminal.report(Note("by the way"))
        terminal.report(Note("look out", "warning"))
        time.sleep(0.1)
    assert capsys.readouterr().err == "warning: look out\n"


# ---------------------------------------------------------------------------- bars


@pytest.mark.parametrize("width", [40, 80, 120])
def test_bars_fit(width: int) -> None:
    file, console = screen(width)
    bars = bars_module.Bars(console, 0)
    bars.start()
    bars.tick(Tick("in all", 1, 3, "one", "files"))
    for done in range(5):
        bars.tick(
            Tick("a_very_long_name_of_a_checkpoint.pth", done * 10**6, 170_000_000, "from afar", "bytes")
        )
        time.sleep(0.03)
    bars.say(Text("warning: look out"))
    bars.progress.refresh()
    bars.stop()
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", file.plain)]
    assert max(map(len, lines)) <= width
    assert "warning: look out" in lines, "in a line of its own"
    part, whole = ("2%", "33%") if width == 40 else ("4.0 MB / 170.0 MB", "1/3")
    assert any(part in line for line in lines) and any(whole in line for line in lines)
    assert any("left" in line for line in lines)
    assert any("MB/s" in line for line in lines) == (width >= bars_module.MIDDLE)
    assert ("from afar" in file.plain) == (width >= bars_module.WIDE)


def test_a_bar_appears_after_a_moment_by_itself() -> None:
    """Nothing is heard of an import while it runs; what is over at once only flickers."""
    file, console = screen(80)
    bars = bars_module.Bars(console, 0.2)
    bars.start()
    bars.tick(Tick("quick", 0, None))
    bars.tick(Tick("quick", 1, 1))
    bars.tick(Tick("loading torch", 0, None))
    time.sleep(0.1)
    assert "loading torch" not in file.plain
    time.sleep(0.5)
    assert "loading torch" in file.plain and "quick" not in file.plain
    before = len(file.plain)
    time.sleep(0.3)
    assert len(file.plain) > before, "something moves"
    bars.stop()


def test_a_finished_bar_stays_and_a_finished_phase_goes() -> None:
    file, console = screen(80)
    bars = bars_module.Bars(console, 0)
    bars.start()
    bars.tick(Tick("loading torch", 0, None))
    bars.tick(Tick("loading torch", 1, 1))
    for done in range(3):
        bars.tick(Tick("fusing", done, 2))
    file.truncate(0)
    bars.stop()
    assert "loading torch" not in file.plain
    assert bars.running == {} and bars.progress.tasks == []


def test_names_in_bars_are_no_markup() -> None:
    file, console = screen(160)
    bars = bars_module.Bars(console, 0)
    bars.start()
    bars.tick(Tick(f"certainty of {ODD}", 1, 2, ODD))
    bars.progress.refresh()
    bars.stop()
    assert f"certainty of {ODD}" in file.plain and file.plain.count(ODD) >= 2


def test_rates() -> None:
    assert bars_module.rate(3.14159, "images") == "3.1 images/s"
    assert bars_module.rate(250, "images") == "250 images/s"
    assert bars_module.rate(0.5, "steps") == "0.50 steps/s"
    assert bars_module.rate(0.02, "steps") == "50 s/step"
    assert bars_module.rate(2_000_000, "bytes") == "2.0 MB/s"
    assert bars_module.rate(None, "images") == bars_module.rate(0, "images") == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0s"), (59.7, "1m 0s"), (61, "1m 1s"), (12_000, "3h 20m"), (90_000, "1d 1h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert bars_module.duration(seconds) == text


def test_names_are_no_markup(capsys: Captured) -> None:
    terminal = Terminal("any")
    here = Path("certainty") / ODD.replace("/", "")
    for result in (
        InspectResult(here, {"teacher": ODD}, (ClassFacts(ODD, 0.5, 50.0),), (), None, None),
        DemoResult(here, 0, (Score(ODD, 50.0, 90.0, {}),), here, 1.0),
        FusionResult(
            here, "plf", "auto", False, (ODD,), 90, 1, 0, 1, 0, 0, (ClassSummary(ODD, ODD, 0.1, 1, 1, 0),)
        ),
    ):
        terminal.show(result)
        out = capsys.readouterr().out
        assert ODD in out
    assert out.count(ODD) == 3


# ---------------------------------------------------------------------------- results

SUMMARY = FusionResult(
    labels=Path("labels/camvid/consensus"),
    rule="consensus",
    policy="auto",
    used_labels=False,
    teachers=("espnetv2", "fddwnet"),
    threshold=90,
    images=51,
    skipped=0,
    coverage=0.92,
    overlap=0.35,
    unclaimed=0,
    classes=(
        ClassSummary("pedestrian", "espnetv2", 0.025, 0.012, 0.626, 0.69, 0.955),
        ClassSummary("sky", "fddwnet", -0.5, 0.1, None, 0.04, 1),
    ),
)


@pytest.mark.parametrize("width", [40, 80, 120])
def test_tables_fit_the_terminal(width: int) -> None:
    """A table; where it does not fit, a paragraph per row, and no figure is cut."""
    file, console = screen(width)
    Page(console).show(SUMMARY)
    lines = file.plain.splitlines()
    assert max(map(len, lines)) <= width
    words = " ".join(line.strip() for line in lines)
    for figure in ("espnetv2", "+0.025", "95.5", "62.6", "69.0", "n/a", "labels/camvid/consensus"):
        assert figure in words
    if width == 40:
        assert "overlap 69.0\N{NO-BREAK SPACE}%" in words
        assert "─" not in words
    else:
        header, rule, first, *_ = (line for line in lines if line.strip())
        assert header.split() == "class best margin sure % share % kept % overlap %".split()
        assert set(rule.strip()) == {"─"}
        assert first.split() == "pedestrian espnetv2 +0.025 95.5 1.2 62.6 69.0".split()


def test_piped_tables_are_plain(capsys: Captured) -> None:
    """No colours, no lines, no breaks."""
    Terminal("fuse").show(SUMMARY)
    header, first, *_ = capsys.readouterr().out.splitlines()
    assert header.split() == "class best margin sure % share % kept % overlap %".split()
    assert first.split() == "pedestrian espnetv2 +0.025 95.5 1.2 62.6 69.0".split()
    assert "\x1b" not in header


def test_lines_break_between_words_on_a_terminal_only(capsys: Captured) -> None:
    path = "/a/path/that/is/much/longer/than/forty/columns/of/a/terminal"
    file, console = screen(40)
    say(console, Text(f"warning: the labels lie in {path} and nowhere else"))
    assert file.plain.splitlines() == ["warning: the labels lie in", f"  {path}", "  and nowhere else"]
    text = f"{path} {path} {path} {path}"
    say(screens.output_screen(), Text(text))
    assert capsys.readouterr().out == f"{text}\n"
