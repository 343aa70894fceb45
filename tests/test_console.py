"""The terminal: what a user reads, with and without one."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from endauda_cli.events import Tick
from endauda_cli.results import ClassFacts, ClassSummary, DemoResult, FusionResult, InspectResult, Score
from endauda_cli.terminal import console
from endauda_cli.terminal.console import Terminal

Captured = pytest.CaptureFixture[str]
ODD = "b[red] :car: [/]"
"""A name that would be a colour, a picture and a mistake if it were read as rich's markup."""


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of progress without a wait between them."""
    monkeypatch.setattr(console, "PLAIN_EVERY_S", 0)


def test_progress_without_a_terminal(at_once: None, capsys: Captured) -> None:
    with Terminal("train") as terminal:
        terminal.report(Tick("training", 1001, 5000, "loss 0.93"))
        time.sleep(0.02)
        terminal.report(Tick("training", 1002, 5000, "loss 0.91  8.1 img/s"))
        terminal.report(Tick("training", 5000, 5000, "loss 0.5"))  # the result says so
        terminal.report(Tick("training", 1, 2))  # another one: nothing is known of its pace
    first, second, third = capsys.readouterr().err.splitlines()
    assert (first, third) == ("training 1001/5000  loss 0.93", "training 1/2")
    assert second.startswith("training 1002/5000  loss 0.91  8.1 img/s  ")
    assert re.search(r"  (\d+h )?\d+m( \d+s)? left$", second), "0.02 s or more for each of 3998"


def test_bytes_without_a_terminal(at_once: None, capsys: Captured) -> None:
    """Of a total that is known, and of one that nobody knows."""
    with Terminal("download-weights") as terminal:
        terminal.report(Tick("a.pth", 1_500_000, 170_000_000, "", "bytes"))
        terminal.report(Tick("b.pth", 2_000_000, None, "again in 4 s", "bytes"))
        terminal.report(Tick("b.pth", 3_000_000, None, "", "bytes"))
        terminal.report(Tick("b.pth", 3_000_000, 3_000_000, "", "bytes"))
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["a.pth 1.5 MB / 170.0 MB", "b.pth 2.0 MB  again in 4 s", "b.pth 3.0 MB"]


def test_bars_of_bytes(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """One per file, and one of all together."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    with Terminal("download-weights", verbose=True) as terminal:
        terminal.report(Tick("in all", 1, 3, "one"))
        terminal.report(Tick("a.pth", 1_500_000, 170_000_000, "", "bytes"))
        terminal.report(Tick("b.pth", 2_000_000, None, "", "bytes"))
    err = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert "in all" in err and "1/3" in err
    assert "1.5 MB / 170.0 MB" in err and "2.0 MB" in err


def test_short_work_says_nothing_without_a_terminal(capsys: Captured) -> None:
    with Terminal("fuse", verbose=True) as terminal:
        for done in range(1, 1000):
            terminal.report(Tick("fusing", done, 1000))
    assert capsys.readouterr().err == ""


def test_lines_of_progress_keep_their_distance(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """Over all tasks of a process together."""
    monkeypatch.setattr(console, "PLAIN_EVERY_S", 0.05)
    began = time.monotonic()
    with Terminal("train") as terminal:
        for done in range(1, 100):
            terminal.report(Tick(f"task {done % 3}", done, 1000))
            time.sleep(0.002)
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) <= (time.monotonic() - began) / 0.05


def test_quiet_is_quiet(at_once: None, capsys: Captured) -> None:
    with Terminal("train", quiet=True) as terminal:
        terminal.report(Tick("training", 1, 2))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0s"), (59.7, "1m 0s"), (61, "1m 1s"), (12_000, "3h 20m"), (90_000, "1d 1h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert console._duration(seconds) == text


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


def test_notes_of_bars_are_no_markup(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes stderr for a terminal
    monkeypatch.setenv("COLUMNS", "160")
    with Terminal("any", verbose=True) as terminal:
        terminal.report(Tick(f"certainty of {ODD}", 1, 2, ODD))
    err = capsys.readouterr().err
    assert f"certainty of {ODD}" in err and err.count(ODD) >= 2
