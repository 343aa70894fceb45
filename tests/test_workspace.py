"""Where a workspace is found, what lies in it, and which of it is newest."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path

import pytest

from endauda_cli.config import check_name
from endauda_cli.domains import CITYSCAPES, GTA5
from endauda_cli.errors import ConfigError, WorkspaceError
from endauda_cli.workspace import (
    CONFIG_FILE,
    JOURNAL_FILE,
    ORDER,
    RECORD_FILE,
    RUN_FILE,
    Workspace,
    check_label_set,
    find_workspace,
    next_order,
    read_config,
    read_json,
    write_text,
)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENDAUDA_WORKSPACE", raising=False)


def folder(path: Path, config: bool = False) -> Path:
    path.mkdir(parents=True)
    if config:
        (path / CONFIG_FILE).touch()
    return path


def put(path: Path, text: str = "", age: int = 0) -> Path:
    """A file that was written ``age`` seconds ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (1_000_000 - age, 1_000_000 - age))
    return path


# ---------------------------------------------------------------------------- discovery


def test_order_of_discovery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Option, then environment, then the nearest endauda.toml upwards, then here."""
    here = folder(tmp_path / "project" / "a" / "b")
    option, environment = folder(tmp_path / "option"), folder(tmp_path / "environment")
    monkeypatch.chdir(here)
    assert find_workspace(None).root == here
    (tmp_path / "project" / CONFIG_FILE).touch()
    assert find_workspace(None).root == tmp_path / "project"
    (here.parent / CONFIG_FILE).touch()
    assert find_workspace(None).root == here.parent  # the nearest
    monkeypatch.setenv("ENDAUDA_WORKSPACE", str(environment))
    assert find_workspace(None).root == environment
    assert find_workspace(option).root == option
    monkeypatch.setenv("ENDAUDA_WORKSPACE", "")
    assert find_workspace(None).root == here.parent


def test_relative_workspace_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    assert find_workspace(Path("mine")).root == tmp_path / "mine"


def test_absent_workspace_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="nowhere is not a folder; create it or name another"):
        find_workspace(tmp_path / "nowhere")
    monkeypatch.setenv("ENDAUDA_WORKSPACE", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="nowhere is not a folder"):
        find_workspace(None)


def test_places_are_those_of_the_reference(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert workspace.labels(CITYSCAPES, "plf") == tmp_path / "Warehouse/Cityscapes/data/gtFine/plf"
    assert workspace.weights("gta5") == tmp_path / "weights/weights/gta5"
    assert workspace.data_roots(CITYSCAPES)[0] == tmp_path / "Warehouse/Cityscapes/data"
    assert workspace.archive("gta5", "dacs") == tmp_path / "certainty/gta5/dacs"
    assert workspace.run("gta5", "drn") == tmp_path / "runs/gta5/drn"
    assert list(tmp_path.iterdir()) == []  # asking makes nothing


# ---------------------------------------------------------------------------- what is there


def test_teachers(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert workspace.teachers("gta5") == []
    for name in ("gta5/dacs", "gta5/.hidden", "synthia/mrnet"):
        put(tmp_path / "certainty" / name / "shard-0-of-1-00000.json")
    put(tmp_path / "certainty/gta5/crst/0-of-1.part/0123.image")  # export is still running
    put(tmp_path / "certainty/gta5/failed/archive.json")  # an import that failed at its first image
    put(tmp_path / "certainty/gta5/notes.txt")
    assert workspace.teachers("gta5") == ["crst", "dacs"]


def label_set(workspace: Workspace, name: str, source: str, age: int, split: str = "train") -> Path:
    place = workspace.labels(CITYSCAPES, name)
    put(place / RECORD_FILE, json.dumps({"source": source, "split": split}), age)
    return place


def test_label_sets_newest_last(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with pytest.raises(WorkspaceError, match=r"no fused labels of source gta5 .*run 'endauda fuse' first"):
        workspace.newest_labels(CITYSCAPES, "gta5")
    label_set(workspace, "b", "gta5", age=30)
    newest = label_set(workspace, "a", "gta5", age=10)
    label_set(workspace, "c", "gta5", age=20)
    label_set(workspace, "other", "synthia", age=0)
    folder(workspace.labels(CITYSCAPES, "train"))  # ground truth: has no record
    put(workspace.labels(CITYSCAPES, "broken") / RECORD_FILE, '{"source": "gt')
    put(workspace.labels(CITYSCAPES, "odd") / RECORD_FILE, "[]")
    label_set(workspace, "v", "gta5", age=5, split="val")  # to be scored, not to be learnt
    assert workspace.label_sets(CITYSCAPES, "gta5") == ["b", "c", "a", "v"]
    assert workspace.newest_labels(CITYSCAPES, "gta5") == newest
    assert workspace.label_sets(GTA5, "gta5") == []


def test_runs_newest_last_and_best_before_last(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with pytest.raises(WorkspaceError, match=r"no trained run of source gta5 in .*run 'endauda train' first"):
        workspace.newest_checkpoint("gta5")
    put(workspace.run("gta5", "old") / "last.pt", age=5)
    put(workspace.run("gta5", "old") / "best.pt", age=50)
    put(workspace.run("gta5", "older") / "last.pt", age=20)
    put(workspace.run("gta5", "begun") / "config.json")
    assert workspace.runs("gta5") == ["older", "old"]
    assert workspace.newest_checkpoint("gta5") == workspace.run("gta5", "old") / "best.pt"
    put(workspace.run("gta5", "new") / "last.pt", age=0)
    assert workspace.newest_checkpoint("gta5") == workspace.run("gta5", "new") / "last.pt"


def test_order_is_written_in_the_files(tmp_path: Path) -> None:
    """A workspace that was copied by tar or git has one time for all, or any."""
    workspace = Workspace(tmp_path)
    for name, order, age in (("a", 7, 0), ("b", 9, 50), ("c", 8, 20), ("old", None, 0), ("older", None, 9)):
        record = {"source": "gta5", "split": "train"} | ({} if order is None else {ORDER: order})
        put(workspace.labels(CITYSCAPES, name) / RECORD_FILE, json.dumps(record), age)
        put(workspace.run("gta5", name) / "config.json", json.dumps(record), age)
        put(workspace.run("gta5", name) / "last.pt", age=age)
    assert workspace.label_sets(CITYSCAPES, "gta5") == ["older", "old", "a", "c", "b"]
    assert workspace.newest_labels(CITYSCAPES, "gta5") == workspace.labels(CITYSCAPES, "b")
    assert workspace.runs("gta5") == ["older", "old", "a", "c", "b"]
    assert workspace.newest_checkpoint("gta5") == workspace.run("gta5", "b") / "last.pt"


def test_the_next_is_the_newest_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path)
    assert next_order(workspace.run("gta5", "first"), RUN_FILE) > 0
    ahead = time.time_ns() + 10**15
    put(workspace.run("gta5", "ahead") / RUN_FILE, json.dumps({ORDER: ahead}))
    assert next_order(workspace.run("gta5", "new"), RUN_FILE) == ahead + 1
    for nonsense in (10**400, -1, True, 1.5, "1", None, [1]):
        put(workspace.run("gta5", "odd") / RUN_FILE, json.dumps({ORDER: nonsense}))
        assert next_order(workspace.run("gta5", "new"), RUN_FILE) == ahead + 1
        put(workspace.run("gta5", "odd") / "last.pt")
        assert workspace.runs("gta5") == ["odd"]


# ---------------------------------------------------------------------------- endauda.toml


def test_config(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert read_config(workspace) == {}
    put(tmp_path / CONFIG_FILE, '[fuse]\nteachers = ["dacs"]\nthreshold = 70\n[train]\n')
    assert read_config(workspace) == {"fuse": {"teachers": ["dacs"], "threshold": 70}, "train": {}}


@pytest.mark.parametrize("content", [b"[fuse", b"\xff"])
def test_config_that_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / CONFIG_FILE).write_bytes(content)
    with pytest.raises(ConfigError, match=r"endauda\.toml: not valid TOML"):
        read_config(Workspace(tmp_path))


# ---------------------------------------------------------------------------- small files


def test_text_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    write_text(path, '{"é": 1}')
    assert read_json(path) == {"é": 1}
    write_text(path, "[1]")
    assert read_json(path) is None
    assert read_json(tmp_path / "absent.json") is None
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a": ' * 100_000, "1" * 5000, "\ufeff[]", "\0", '{"a":', ""]
)
def test_what_is_no_object_is_none(tmp_path: Path, text: str) -> None:
    assert read_json(put(tmp_path / "a.json", text)) is None


def test_what_is_no_file_is_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    assert read_json(tmp_path / "a.json") is None
    os.mkfifo(tmp_path / CONFIG_FILE)
    assert read_config(Workspace(tmp_path)) == {}, "as if there were none"


@pytest.mark.parametrize(
    ("cause", "advice"),
    [
        (errno.ENOSPC, "(No space left on device); free disk space and run again"),
        (errno.EDQUOT, "; free disk space and run again"),
        (errno.EROFS, "; this disk can only be read; work on another one"),
        (errno.EACCES, "; let your user write there"),
        (errno.ENOENT, "; another process removes files there; see that only one works in this folder"),
        (errno.ENAMETOOLONG, "; its name is too long for this disk; use a shorter one"),
        (errno.EINTR, "; run again"),
    ],
)
def test_what_is_advised_helps_against_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: int, advice: str
) -> None:
    def write(path: Path, *_: object, **__: object) -> int:
        raise OSError(cause, os.strerror(cause), str(path))

    monkeypatch.setattr(Path, "write_text", write)
    with pytest.raises(WorkspaceError, match=r"a\.json: cannot be written \(") as found:
        write_text(tmp_path / "a.json", "")
    assert advice in str(found.value)


# ---------------------------------------------------------------------------- label sets


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "", " ", "two\nlines", "c:\\x"])
def test_names_that_are_no_folder_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"--name .*: use a word that can name a folder"):
        check_name(name, "--name")


def test_label_set_is_checked(tmp_path: Path) -> None:
    check_label_set(tmp_path / "none", "gta5", ["road"])
    record = {"source": "mine", "classes": [{"name": "road"}, {"name": "car"}]}
    put(tmp_path / "set" / RECORD_FILE, json.dumps(record))
    check_label_set(tmp_path / "set", "mine", ["road", "car"])
    with pytest.raises(
        WorkspaceError, match=r"labels of 2 classes, fused with --source mine, but --source gta5"
    ):
        check_label_set(tmp_path / "set", "gta5", ["road", "bus"])
    nonsense: tuple[object, ...] = (None, 3, [3], [{}], [{"name": 3}], {"a": 1})
    for classes in nonsense:
        put(tmp_path / "set" / RECORD_FILE, json.dumps({"classes": classes}))
        with pytest.raises(WorkspaceError, match=r"fusion\.json: does not say which classes"):
            check_label_set(tmp_path / "set", "mine", ["road", "car"])
    put(tmp_path / "half" / JOURNAL_FILE)
    with pytest.raises(WorkspaceError, match=r"half: fusing these labels was not finished"):
        check_label_set(tmp_path / "half", "mine", ["road", "car"])
