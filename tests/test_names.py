from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from endauda_cli.errors import ArchiveError, DataError
from endauda_cli.names import MAX_BYTES, checked_id, id_fault, name_fault

PIECES = st.sampled_from(["..", ".", "/", "\\", "a", "é", "\0", "\n", "\x1b", " ", "c:", "\ud800", "x" * 100])
TEXTS = st.one_of(st.text(), st.lists(PIECES).map("".join))


@given(TEXTS)
def test_what_passes_is_a_path_inside_its_folder(text: str) -> None:
    folder = Path("/work/space")
    for fault in (name_fault, id_fault):
        if fault(text) is None:
            path = Path(f"{folder}/{text}.png")
            assert not Path(text).is_absolute() and ".." not in path.parts
            assert path.relative_to(folder).as_posix() == f"{text}.png"
            path.as_posix().encode()  # can be written in a file's name
            assert not any(ord(letter) < 32 or 0x7F <= ord(letter) < 0xA0 for letter in text)
    if name_fault(text) is None:
        assert len(Path(text).parts) == 1 and id_fault(text) is None


@pytest.mark.parametrize(
    "id",
    [
        "Shot 3.05\u202fPM",
        "a\u00a0b\u3000c",
        "ulm/0003",
        "Zürich 01",
        "a.b.c",
        "..x",
        "-",
        "日本",
        "x" * MAX_BYTES,
    ],
)
def test_ids(id: str) -> None:
    assert id_fault(id) is None and checked_id(id, "x.json") == id


@pytest.mark.parametrize(
    ("id", "fault"),
    [
        ("../x", "leads to another folder"),
        ("a/../../x", "leads to another folder"),
        ("/etc/passwd", "is empty or has an empty part"),
        ("", "is empty"),
        ("a\\..\\x", "is a path"),
        ("C:x", "is a path"),
        ("a\0b", "cannot be shown"),
        ("a\x1b[2J", "cannot be shown"),
        ("\udcff", "cannot be shown"),
        ("x" * 231, "longer than 230 bytes"),
        ("é" * 116, "longer than 230 bytes"),
        ("a/" * 600, "longer than 1024 bytes"),
        (3, "is no text"),
        (None, "is no text"),
    ],
)
def test_what_is_no_id(id: object, fault: str) -> None:
    with pytest.raises(DataError, match=rf"(?s)^x\.json: .*is no image id, it .*{fault}.*nothing is read"):
        checked_id(id, "x.json")
    with pytest.raises(ArchiveError) as told:
        checked_id(id, Path("x.json"), ArchiveError)
    assert str(told.value).isprintable() and len(str(told.value)) < 300
