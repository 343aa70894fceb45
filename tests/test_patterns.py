"""Patterns of files: as ``Path.glob``, but linked folders, brackets, Unicode forms and strangers' braces."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from endauda_cli.patterns import files_below, filled, matching, pattern_fault


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def found(root: Path, pattern: str) -> list[str]:
    assert pattern_fault(pattern) is None
    return sorted(str(path.relative_to(root)) for path in set(matching(root, filled(pattern, "val"))))


def test_linked_folders_are_followed_and_loops_cut(tmp_path: Path) -> None:
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    touch(data, "images/ulm/a.png", "images/b.png")
    touch(elsewhere, "deep/c.png", "d.png")
    (data / "images/linked").symlink_to(elsewhere)
    (data / "images/ulm/up").symlink_to("..")
    (data / "images/root").symlink_to("/")
    (elsewhere / "back").symlink_to(data)
    (data / "images/again").symlink_to("ulm")
    assert found(data, "images/**/*.png") == [
        "images/b.png", "images/linked/d.png", "images/linked/deep/c.png", "images/ulm/a.png"
    ]  # fmt: skip
    assert sorted(path.name for path in files_below(data / "images")) == ["a.png", "b.png", "c.png", "d.png"]


def test_a_name_in_brackets_is_found(tmp_path: Path) -> None:
    touch(tmp_path, "data [v2]/a.png", "data 2/b.png", "data 2/[x]c.png")
    assert found(tmp_path, "data [v2]/*.png") == ["data 2/[x]c.png", "data 2/b.png", "data [v2]/a.png"]
    assert found(tmp_path, "data 2/[x]*.png") == ["data 2/[x]c.png"]


def test_names_in_another_unicode_form(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "Zürich")
    touch(tmp_path, f"{decomposed}/a.png")
    assert found(tmp_path, "Zürich/*.png") == found(tmp_path, "Zü*/a.png") == [f"{decomposed}/a.png"]


@pytest.mark.parametrize(
    "pattern",
    [
        "{split.foo}", "{split[0]}", "{split:1500000000}", "{split!r}", "{split:{split}}", "{0}", "{}", "{", "}",
        "{splits}/*.png", "a\0b", "a**/b", "", ".", "/", "x" * 5000,
    ],
)  # fmt: skip
def test_what_is_no_pattern(pattern: str) -> None:
    assert pattern_fault(pattern)


def test_doubled_braces_are_braces(tmp_path: Path) -> None:
    touch(tmp_path, "{a}/val.png")
    assert found(tmp_path, "{{a}}/{split}.png") == ["{a}/val.png"]


NAMES = st.sampled_from(["a", "b", "ab", "a.png", "b.png", ".c.png", "d e.png"])
PARTS = st.sampled_from(["*", "**", "a", "b", "a*", "*.png", "?", "[ab]", "[!a]*", "*b*", "d e.png"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.lists(st.lists(NAMES, min_size=1, max_size=3), max_size=8),
    parts=st.lists(PARTS, min_size=1, max_size=4),
)
def test_without_links_it_is_glob(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[str]], parts: list[str]
) -> None:
    root = tmp_path_factory.mktemp("glob")
    for names in files:
        path = root.joinpath(*names)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError:  # a folder where a file is, or the other way round
            continue
    pattern = "/".join(parts)
    expected = {path for path in root.glob(pattern) if not path.is_dir()}
    assert set(matching(root, pattern)) == expected


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("{}split:!.[]*?/ab0"), max_size=20))
def test_any_text_is_a_pattern_or_refused(text: str) -> None:
    if pattern_fault(text) is None:
        assert len(filled(text, "val")) <= len(text)
        list(matching(Path("/nowhere"), filled(text, "val"))) if not text.startswith("/") else None


def test_folders_that_cannot_be_read_hold_nothing(tmp_path: Path) -> None:
    touch(tmp_path, "a/b.png")
    os.chmod(tmp_path / "a", 0)
    try:
        assert found(tmp_path, "*/*.png") in ([], ["a/b.png"])  # root reads everything
    finally:
        os.chmod(tmp_path / "a", 0o755)
