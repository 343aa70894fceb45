"""Values that nobody means in ``endauda.toml`` and in variables: a sentence that says where they stand, no bug."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.command_lines import endauda, result_of

if TYPE_CHECKING:
    from pathlib import Path

VALUES = (
    '""', '"\\u0000"', '"\\u001b[2J"', "-1", "9" * 4000, "1e400", "nan", "-inf", "true", "[]", "[[1, [2]], {}]", "{}",
    "{ a = { b = 1 } }", "1979-05-27T07:32:00Z", "07:32:00", '["a", 1, true]', f'"{"x" * 70_000}"', '"../.."', '"~"',
)  # fmt: skip
BROKEN = (
    b"a = " + b"9" * 6000, b"a = " + b"[" * 100_000, b"\xff\xfe", b"\0", b"[fuse", b"fuse = 3", b"[fuse]\nfuse = 3",
    b"[[fuse]]\nthreshold = 3", b"[fuse.threshold]\nx = 1", b"a" * 1_000_000, b"a." * 50_000 + b"b = 1",
)  # fmt: skip


def rows(folder: Path) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = result_of("config", "show", "--workspace", folder)["rows"]
    return listed


def some(listed: list[dict[str, Any]], value: str) -> list[dict[str, Any]]:
    """Other options for each value: all meet some of them."""
    return listed[VALUES.index(value) :: len(VALUES)]


def assert_told(*words: str | Path) -> None:
    outcome = endauda(*words)
    assert outcome.code in (0, 1, 2), outcome
    assert "a bug of endauda" not in outcome.err and "Traceback" not in outcome.err, outcome.err[:2000]
    assert "\x1b" not in outcome.out + outcome.err and len(outcome.err) < 100_000


@pytest.mark.slow
@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_values_of_other_kinds(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for row in some(rows(tmp_path), value):
        (tmp_path / "endauda.toml").write_text(f"[{row['command']}]\n{row['option']} = {value}\n")
        assert_told("config", "show")
    (tmp_path / "endauda.toml").unlink()
    text = json.loads(value) if value.startswith('"') else value
    if "\0" not in text:  # no variable can hold it
        for row in some(rows(tmp_path), value):
            with monkeypatch.context() as patched:
                patched.setenv(row["variable"], text)
                assert_told("config", "show")


@pytest.mark.slow
@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_commands_that_meet_them(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty workspace, so that nothing is done: but every value is read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for row in some(rows(tmp_path), value):
        if row["command"] not in ("demo", "doctor"):
            (tmp_path / "endauda.toml").write_text(f"[{row['command']}]\n{row['option']} = {value}\n")
            target = ("x", "--weights", "none.pth") if row["command"] == "export-teacher" else ()
            assert_told(row["command"], *target, *(("dacs",) if row["command"] == "inspect" else ()))


@pytest.mark.parametrize("content", BROKEN, ids=range(len(BROKEN)))
def test_files_that_are_none(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "endauda.toml").write_bytes(content)
    for words in (("config", "show"), ("fuse",)):
        assert_told(*words)
    if content in (BROKEN[0], BROKEN[-1]):
        assert_told("doctor", "--json")
