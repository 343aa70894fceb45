"""What a label set's journal may hold, whoever wrote it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from endauda_cli.errors import ConfigError
from endauda_cli.fusion.journal import INPUTS_KEPT, Journal, refuse_other_set
from endauda_cli.workspace import JOURNAL_FILE

if TYPE_CHECKING:
    from pathlib import Path

ABOUT = {"source": "gta5", "target": "cityscapes", "split": "train"}
HEAD = {"fingerprint": "f", **ABOUT}
IMAGES = ("a", "ulm/0003")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "workspace/labels/it"
    path.mkdir(parents=True)
    return path


def line(image: Any, **more: Any) -> dict[str, Any]:
    return {"id": image, "inputs": "i", "bytes": 3, **more}


def put(folder: Path, *lines: Any, name: str = JOURNAL_FILE) -> Path:
    text = "".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines)
    (folder / name).write_text(text)
    return folder / name


def put_labels(folder: Path, image: str) -> None:
    for name in (f"{image}.png", f"{image}_color.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"abc")


def journal(folder: Path, fingerprint: str = "f") -> Journal:
    return Journal(folder, fingerprint, ABOUT, IMAGES, IMAGES)


@pytest.mark.parametrize(
    "image", ["../../precious", "/etc/precious", "..", "a\0", "c:x", "x" * 300, "a\n", ""]
)
@pytest.mark.parametrize("fingerprint", ["f", "another"])
def test_ids_that_lead_out_are_refused_and_nothing_is_deleted(
    folder: Path, image: str, fingerprint: str
) -> None:
    precious = [folder.parent.parent / "precious.png", folder / "kept.png"]
    for path in precious:
        path.write_bytes(b"abc")
    path = put(folder, {**HEAD, "fingerprint": "f"}, line("kept"), line(image))
    with pytest.raises(ConfigError, match=r"fusion\.jsonl: .* is no image id, it .*delete this file"):
        journal(folder, fingerprint).begin()
    assert all(path.exists() for path in precious)
    path.unlink()  # the advice
    journal(folder, fingerprint).begin()


def test_labels_are_not_deleted_through_a_link(folder: Path, tmp_path: Path) -> None:
    put_labels(tmp_path / "elsewhere", "x")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    put(folder, {**HEAD, "fingerprint": "old"}, line("link/x"))
    journal(folder).begin()
    assert (tmp_path / "elsewhere/x.png").exists()


def test_ids_with_folders(folder: Path) -> None:
    for image in ("ulm/0003", "ulm/0004"):
        put_labels(folder, image)
    put(folder, {**HEAD, "fingerprint": "old"}, line("ulm/0003"), line("ulm/0004"))
    journal(folder).begin()
    assert not list((folder / "ulm").iterdir())
    put_labels(folder, "ulm/0003")
    found = journal(folder)
    with found:
        found.add(line("ulm/0003"))
    again = journal(folder)
    assert again.find("ulm/0003", "i") == line("ulm/0003")
    assert again.find("ulm/0003", "other") is None


@pytest.mark.parametrize(
    "damage",
    ["[1]", "3", "null", '"text"', "{}", '{"id": "b"}', '{"id": 3, "inputs": "i"}', '{"id": "a", "inputs": 3}', "{",
     "[" * 50_000, "9" * 5000, "\\ud800", '{"id": null}'],
)  # fmt: skip
def test_damaged_lines_end_what_is_known(folder: Path, damage: str) -> None:
    put_labels(folder, "a")
    put_labels(folder, "ulm/0003")
    put(folder, HEAD, line("a"), damage, line("ulm/0003"))
    found = journal(folder)
    assert found.find("a", "i") is not None and found.find("ulm/0003", "i") is None
    found.begin()
    assert (folder / "a.png").exists() and not (folder / "ulm/0003.png").exists()
    assert len((folder / JOURNAL_FILE).read_text().splitlines()) == 2


@pytest.mark.parametrize("head", ["[1]", "3", "null", "{", "", "\xff\xfe", "[" * 50_000])
def test_damaged_heads(folder: Path, head: str) -> None:
    put(folder, head, line("a"))
    refuse_other_set(folder, ABOUT)
    found = journal(folder)
    assert not found.lines
    found.begin()
    assert json.loads((folder / JOURNAL_FILE).read_text()) == HEAD


def test_what_is_no_file(folder: Path) -> None:
    os.mkfifo(folder / JOURNAL_FILE)
    (folder / "fusion-1-of-2.jsonl").mkdir()
    refuse_other_set(folder, ABOUT)
    journal(folder).begin()
    assert json.loads((folder / JOURNAL_FILE).read_text()) == HEAD


def test_lines_without_all_counts_do_not_count(folder: Path) -> None:
    put(folder, HEAD, line("a"), line("ulm/0003", whole=True))
    found = Journal(folder, "f", ABOUT, IMAGES, IMAGES, whole=lambda line: "whole" in line)
    assert set(found.lines) == {"ulm/0003"}


def test_memory_is_of_the_images_not_of_the_file(folder: Path) -> None:
    lines = [{"id": "a", "inputs": f"{n}"} for n in range(200)] + [line(f"other{n}") for n in range(200)]
    put(folder, HEAD, *lines)
    assert {image: list(of) for image, of in journal(folder).lines.items()} == {
        "a": [f"{n}" for n in range(200 - INPUTS_KEPT, 200)]
    }


def test_another_set_is_refused_in_one_line(folder: Path) -> None:
    put(folder, {**HEAD, "split": ["val"] * 1000})
    with pytest.raises(ConfigError, match="holds labels of split") as found:
        refuse_other_set(folder, ABOUT)
    assert len(str(found.value)) < 400
