"""Every option of every command with values that nobody means: told in a sentence, never as a bug of endauda.

In this process, on a small workspace. One option at a time, so that the value reaches whatever reads it.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import typer

from endauda_cli.cli import app
from tests.support.command_lines import SIZE_FLAGS, endauda, make_workspace, succeed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BASES: dict[str, tuple[str, ...]] = {
    "export-teacher": ("export-teacher", "dacs", "--weights", "nothing.pth"),
    "fuse": ("fuse", "--split", "val", "--rule", "majority"),
    "train": ("train", "--labels", "majority", *SIZE_FLAGS, "--steps", "1", "--device", "cpu"),
    "test": ("test",),
    "merge": ("merge", "nothing", "neither", "--into", "x"),
    "deploy": ("deploy", "nothing"),
    "demo": ("demo", "--quick"),
    "download-weights": ("download-weights", "--list"),
    "inspect": ("inspect", "dacs"),
    "doctor": ("doctor",),
    "config show": ("config", "show"),
}
"""Lines that are quick, or refused late."""

VALUES = (
    "", " ", "\n", "-1", "0", "1e400", "nan", "inf", "-inf", "9" * 25, "9" * 5000, "0x10", "1_0", "\u0663",
    "1" + "0" * 400, "x" * 300, "x" * 100_000, "[x", "{split.foo}", "**", "~", "~nobody/x", "..", "../..",
    "/", ".", "/dev/null", "folder", "a/b", "a\\b", "C:", "%s", "\udcff\udcfe", "e\u0301", "\u202egnp", "\x1b[2J",
    "\x9b31m", "a,,b", ",", "1x", "1x1x1", "0x0", "99999999999999999999999x1", "99999x1", "1/0", "0/0", "2/1",
    "9" * 30 + "/" + "9" * 30, "--", "\x07", "\0x",
)  # fmt: skip
TRIED = 2
"""Of the values, for each option others."""
SKIPPED = {"help", "install_completion", "show_completion"}


def commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    return dict(group.loaded())


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_workspace(tmp_path_factory.mktemp("hostile"))
    succeed("fuse", "--rule", "majority", "--workspace", root)
    os.mkfifo(root / "fifo")
    (root / "folder").mkdir()
    return root


@pytest.fixture
def inside(city: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """In the workspace; reports of crashes stay here, and nothing is found by a variable."""
    monkeypatch.chdir(city)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("ENDAUDA_DEBUG", raising=False)
    before = set(city.iterdir())
    yield city
    for path in set(city.iterdir()) - before:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


CONTROL = {chr(i) for i in (*range(9), *range(11, 32), *range(0x7F, 0xA0))}


def assert_told(words: tuple[str, ...]) -> None:
    ended = endauda(*words)
    shown = [word[:60] for word in words]
    assert ended.code in (0, 1, 2), (shown, ended.code, ended.err[:2000])
    assert "a bug of endauda" not in ended.err, (shown, ended.err[:2000])
    assert "Traceback" not in ended.err, (shown, ended.err[:2000])
    assert not CONTROL & set(ended.out + ended.err), (shown, ended.err[:2000])
    assert len(ended.err) < 50_000, (shown, len(ended.err))
    if ended.code == 1 and "doctor" not in shown:  # which prints findings instead
        assert "endauda: " in ended.err, shown


def options(command: str) -> list[Any]:
    return [
        param for param in commands()[command].params if param.param_type_name == "option" and not param.is_flag
        and param.name not in SKIPPED
    ]  # fmt: skip


CASES = [(command, option.opts[0]) for command in BASES for option in options(command)]


@contextmanager
def bounded(seconds: int) -> Iterator[None]:
    """Fails what hangs or fills the memory."""

    def hangs(number: int, frame: object) -> None:
        pytest.fail("it hangs")

    with open("/proc/self/statm", encoding="ascii") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    before, (soft, hard) = signal.signal(signal.SIGALRM, hangs), resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + (6 << 30), hard))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "flag"), CASES, ids=[f"{c} {f}" for c, f in CASES])
def test_values_of_options(inside: Path, command: str, flag: str) -> None:
    for value in random.Random(f"{command} {flag}").sample(VALUES, TRIED):
        # It trains for ever, or looks for images on the whole disk: as it was told to.
        if flag != "--steps" and (flag, value) != ("--predictions", "/"):
            with bounded(120):
                assert_told((*BASES[command], flag, value))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="has other devices")
@pytest.mark.parametrize(("command", "flag"), CASES, ids=[f"{c} {f}" for c, f in CASES])
def test_devices_and_pipes_in_place_of_files(inside: Path, command: str, flag: str) -> None:
    for value in ("fifo", "/dev/zero"):
        with bounded(120):
            assert_told((*BASES[command], flag, value))
