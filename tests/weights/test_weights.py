"""``download-weights``: the manifest, states, the lock file, checkpoints and their networks, and what is said."""

from __future__ import annotations

import copy
import json
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from endauda_cli import models
from endauda_cli.cli import main
from endauda_cli.errors import ConfigError
from endauda_cli.models import build_student
from endauda_cli.weights import fetching, read_manifest
from endauda_cli.weights.manifest import parse_manifest
from tests.support.command_lines import (
    SIZE_FLAGS,
    TRAIN,
    endauda,
    make_workspace,
    opinion,
    put_label,
    refused,
    result_of,
    scene,
    seed_of,
    succeed,
)
from tests.support.packages import make_zip
from tests.support.web_server import Manner, Web, serve
from tests.support.weights_samples import entry, noise, sha256, write_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTENT = noise(5000)
TINY = {"arch": "deeplabv3plus", "backbone": "tiny", "classes": 19}


@pytest.fixture
def web() -> Iterator[Web]:
    with serve() as web:
        yield web


def line(root: Path, *entries: dict[str, Any]) -> tuple[str | Path, ...]:
    return ("download-weights", "--workspace", root, "--manifest", write_manifest(root, *entries))


def state(words: tuple[str | Path, ...], name: str = "one") -> str:
    (found,) = result_of(*words, "--list", name)["artefacts"]
    return str(found["state"])


# ---------------------------------------------------------------------------- the manifest


def test_the_published_list() -> None:
    """Every field is checked on loading; here: what users rely on, and that nothing unknown is made up."""
    known = read_manifest().artefacts
    assert {"gta5/ours/drn", "gta5/source", "synthia/ours/drn", "synthia/source/resnet", "pseudo-labels", "dacs",
            "crst", "cbst", "mrnet", "imagenet/drn", "imagenet/resnet"} <= set(known)  # fmt: skip
    scores = {name: known[name].miou for name in ("gta5/ours/drn", "synthia/ours/drn", "gta5/source")}
    assert scores == {"gta5/ours/drn": 57.98, "synthia/ours/drn": 59.95, "gta5/source": 34.80}
    assert known["synthia/source/resnet"].miou == 32.57
    for artefact in known.values():
        if artefact.size is None and artefact.sha256 is None and artefact.urls:
            assert "not been published" in (artefact.note or ""), artefact.name
        if artefact.use == "init":
            assert artefact.network is not None and artefact.network.backbone in models.BACKBONES


GOOD = entry(urls=["https://example.org/a"], size=3, sha256="0123abcd", miou=50, network=dict(TINY))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"nmae": "x"}, "(one): no field is called 'nmae'; did you mean name?"),
        ({"size": "3 MB"}, "(one): 'size' is \"3 MB\", but a whole number of bytes or null was expected"),
        ({"size": 1.5}, "'size' is 1.5, but a whole number of bytes or null was expected"),
        ({"size": True}, "'size' is true, but a whole number"),
        ({"sha256": "XYZ"}, "'sha256' is \"XYZ\", but 8 to 64 hexadecimal digits (0-9, a-f) or null was expected"),
        ({"sha256": "0123ABCD"}, "8 to 64 hexadecimal digits"),
        ({"miou": "good"}, "'miou' is \"good\", but a percentage or null was expected"),
        ({"urls": "https://example.org"}, "'urls' is \"https://example.org\", but a list of links was expected"),
        ({"urls": ["file:///etc/passwd"]}, "but a link that begins with https:// or http:// was expected"),
        ({"page": None}, "'page' is null, but a link"),
        ({"path": "../weights/a.pth"}, "but a path inside the workspace, with / between folders was expected"),
        ({"path": "/weights/a.pth"}, "a path inside the workspace"),
        ({"path": "C:\\weights"}, "a path inside the workspace"),
        ({"path": "weights//a"}, "a path inside the workspace"),
        ({"path": "/"}, "a path inside the workspace"),
        ({"path": "./"}, "a path inside the workspace"),
        ({"path": "a\x1b[2J"}, "a path inside the workspace"),
        ({"path": "weights/"}, "but a path that does not hold weights/weights.lock.json was expected"),
        ({"path": "weights/weights.lock.json"}, "a path that does not hold weights/weights.lock.json"),
        ({"page": "https://example.org/\x1b[2J"}, "but a link that begins with https:// or http:// was expected"),
        ({"note": "a\x1b[2J"}, "but text in one line or null was expected"),
        ({"licence": "\ud800"}, "but text in one line or null was expected"),
        ({"miou": float("nan")}, "'miou' is NaN, but a percentage or null was expected"),
        ({"miou": 101}, "'miou' is 101, but a percentage"),
        ({"size": 10**400}, "but a whole number of bytes or null was expected"),
        ({"network": {"backbone": "drn", "classes": True}}, "'network.classes' is true, but a whole number"),
        ({"name": "a b"}, "'name' is \"a b\", but letters, digits and . _ + - with / between words was expected"),
        ({"what": ""}, "'what' is \"\", but text in one line was expected"),
        ({"use": "eat"}, "'use' is \"eat\", but one of test, init, teacher, labels or null was expected"),
        ({"network": {"net": 1}}, "but an object of teacher, arch, backbone, classes, or null, was expected"),
        ({"network": {"teacher": "bob"}}, "'network.teacher' is \"bob\", but one of dacs, crst, cbst, mrnet"),
        ({"network": {"classes": 19}}, "but either a teacher or a backbone was expected"),
        ({"network": {"teacher": "dacs"}}, "but a number of classes beside it was expected"),
        ({"network": {"backbone": "drn", "classes": "19"}}, "'network.classes' is \"19\", but a whole number"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_manifest(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    wrong = GOOD | change
    name = write_manifest(tmp_path, entry("first"), wrong)
    found = refused("download-weights", "--workspace", tmp_path, "--manifest", name)
    assert found.startswith(f"{name}: artefact 2 ") and complaint in found


@pytest.mark.parametrize("field", ["name", "what", "path", "page"])
def test_a_field_that_is_missing(field: str) -> None:
    wrong = {key: value for key, value in GOOD.items() if key != field}
    with pytest.raises(ConfigError, match=f"list: artefact 1.*: the field '{field}' is missing"):
        parse_manifest({"format": 1, "artefacts": [wrong]}, "list")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ([], "expected a JSON object with \"format\": 1, found 'list'"),
        ({"artefacts": []}, 'expected a JSON object with "format": 1, found None'),
        ({"format": 2}, 'expected a JSON object with "format": 1, found 2'),
        ({"format": 1, "artefacts": []}, 'expected "artefacts", a list that is not empty'),
        ({"format": 1, "artefacts": ["one"]}, "artefact 1: expected an object, found 'one'"),
        ({"format": 1, "artefacts": [GOOD, GOOD]}, "two artefacts are called 'one'; rename one"),
        ({"format": 1, "artefacts": [GOOD, GOOD | {"name": "b"}]}, "one and b both go to weights/one.bin"),
    ],
)
def test_what_is_no_manifest(content: Any, complaint: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_manifest(content, "list.json")
    assert complaint in str(error.value)


def test_a_manifest_that_cannot_be_read(tmp_path: Path) -> None:
    words = ("download-weights", "--workspace", tmp_path, "--manifest")
    assert "list.json: cannot be read (No such file or directory)" in refused(*words, tmp_path / "list.json")
    for text in ("{", "[" * 200_000):
        (tmp_path / "list.json").write_text(text)
        assert "list.json: not valid JSON" in refused(*words, tmp_path / "list.json")


# ---------------------------------------------------------------------------- states and the lock file


def test_states(tmp_path: Path, web: Web) -> None:
    words = line(tmp_path, entry(urls=[web.put("/one", CONTENT)]))
    place = tmp_path / "weights/one.bin"
    assert state(words) == "absent"
    place.parent.mkdir()
    place.with_name("one.bin.part").write_bytes(CONTENT[:100])
    assert state(words) == "partial"
    place.write_bytes(CONTENT)
    assert state(words) == "foreign", "nobody can tell what it is"
    place.unlink()
    succeed(*words, "one")
    assert state(words) == "verified"
    place.write_bytes(CONTENT[:-1] + b"!")
    assert state(words) == "foreign", "of the same size, and yet another"
    place.unlink()
    assert state(words) == "absent"


def test_a_digest_in_the_manifest_proves_what_the_user_put_there(tmp_path: Path) -> None:
    words = line(tmp_path, entry(sha256=sha256(CONTENT)[:12]))
    place = tmp_path / "weights/one.bin"
    place.parent.mkdir()
    place.write_bytes(CONTENT)
    assert state(words) == "verified"
    (found,) = result_of(*words, "one", "--offline")["fetched"]
    assert found["sha256"] == sha256(CONTENT) and place.read_bytes() == CONTENT


def test_a_foreign_file_is_never_overwritten(tmp_path: Path, web: Web) -> None:
    words = line(tmp_path, entry(urls=[web.put("/one", CONTENT)]))
    place = tmp_path / "weights/one.bin"
    place.parent.mkdir()
    place.write_bytes(b"mine")
    found = refused(*words, "one")
    assert found == (
        f"{place}: something lies there that was not fetched by endauda; to check and adopt it run "
        "'endauda download-weights one --from-file weights/one.bin', to fetch it anew move it away"
    )
    assert place.read_bytes() == b"mine" and web.answers == []


def test_the_way_of_the_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, web: Web) -> None:
    """A dead link names a page, a path and a line; with the file at that path the line works as typed."""
    manifest = write_manifest(tmp_path, entry(urls=[web.url + "/gone"]))
    (tmp_path / "endauda.toml").write_text(f'[download-weights]\nmanifest = "{manifest}"\n')
    monkeypatch.chdir(tmp_path)
    found = refused("download-weights", "one")
    page, place, typed = (
        found.partition(f"{before} ")[2] for before in ("open", "save the file as", "then run")
    )
    assert page.startswith("https://example.org/page in a browser")
    Path(place.partition(",")[0]).write_bytes(CONTENT)
    assert main(shlex.split(typed.strip("'"))[1:]) == 0
    (listed,) = result_of("download-weights", "--list")["artefacts"]
    assert listed["state"] == "verified"


def test_a_file_of_the_user(tmp_path: Path) -> None:
    """It is copied, and judged as a download would be."""
    words = line(tmp_path, entry(size=len(CONTENT), sha256=sha256(CONTENT)))
    given = tmp_path / "downloads (1).bin"
    given.write_bytes(CONTENT[:-1])
    assert "has 4,999 bytes, but 5,000 were expected" in refused(*words, "one", "--from-file", given)
    given.write_bytes(CONTENT[:-1] + b"!")
    assert f"but {sha256(CONTENT)} was expected" in refused(*words, "one", "--from-file", given)
    given.write_bytes(CONTENT)
    (found,) = result_of(*words, "one", "--from-file", given)["fetched"]
    assert found["url"] == str(given) and given.exists()
    assert (tmp_path / "weights/one.bin").read_bytes() == CONTENT
    assert "no such file" in refused(*words, "one", "--from-file", tmp_path / "nothing")
    assert "needs the name of what the file is" in refused(*words, "--from-file", given)


@pytest.mark.slow
def test_a_file_of_the_user_is_not_taken_for_a_download(tmp_path: Path, web: Web) -> None:
    """A cut download goes on after the user's wrong file was refused."""
    words = line(tmp_path, entry(urls=[web.put("/one", CONTENT)], sha256=sha256(CONTENT)))
    web.next["/one"] = [Manner(cut_after=99), Manner(status=404)]
    refused(*words, "one")
    assert state(words) == "partial"
    given = tmp_path / "given"
    given.write_bytes(noise(5000, 9))
    assert "was expected" in refused(*words, "one", "--from-file", given)
    assert state(words) == "partial"
    succeed(*words, "one")
    assert (tmp_path / "weights/one.bin").read_bytes() == CONTENT and web.sent("/one") == len(CONTENT)
    assert {p.name for p in (tmp_path / "weights").iterdir()} == {"one.bin", "weights.lock.json"}


def test_a_file_of_a_folder_that_got_lost(tmp_path: Path, web: Web) -> None:
    """Fetched again, the others stay; one that was changed is in the way."""
    archive = make_zip(tmp_path / "x.zip", {"a": b"1", "b": b"2"})
    words = line(tmp_path, entry(path="weights/pack/", urls=[web.put("/x.zip", archive.read_bytes())]))
    succeed(*words, "one")
    (tmp_path / "weights/pack/a").unlink()
    assert state(words) == "foreign"
    succeed(*words, "one")
    assert state(words) == "verified"
    (tmp_path / "weights/pack/a").write_bytes(b"mine")
    assert f"{tmp_path}/weights/pack/a: another file lies there; move it away" in refused(*words, "one")
    assert (tmp_path / "weights/pack/a").read_bytes() == b"mine"


def test_from_file_is_for_one(tmp_path: Path) -> None:
    words = line(tmp_path, entry("a"), entry("b"))
    (tmp_path / "x").write_bytes(CONTENT)
    assert "--from-file is for one name, but 2 are meant" in refused(
        *words, "*", "--from-file", tmp_path / "x"
    )


def test_later_downloads_must_match_the_first(tmp_path: Path, web: Web) -> None:
    """Also on another machine that got a copy of the lock file, and from another mirror."""
    words = line(tmp_path, entry(urls=[web.put("/one", CONTENT)]))
    succeed(*words, "one")
    lock = json.loads((tmp_path / "weights/weights.lock.json").read_text())
    assert lock["artefacts"]["one"]["files"] == {
        "weights/one.bin": {"size": len(CONTENT), "sha256": sha256(CONTENT)}
    }
    (tmp_path / "weights/one.bin").unlink()
    other = line(tmp_path, entry(urls=[web.put("/two", noise(5000, 1))]))
    found = refused(*other, "one")
    assert f"{web.url}/two gives 5,000 bytes with SHA-256 {sha256(noise(5000, 1))[:16]}" in found
    assert f"{sha256(CONTENT)[:16]}... was first seen on" in found
    assert not (tmp_path / "weights/one.bin").exists()
    succeed(*line(tmp_path, entry(urls=[web.url + "/one"])), "one")
    assert (tmp_path / "weights/one.bin").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "text",
    ["{", "[" * 200_000, "[]", '{"format": 9, "artefacts": {}}', '{"format": 1, "artefacts": {"one": 3}}'],
)
def test_a_damaged_lock_file(tmp_path: Path, text: str) -> None:
    words = line(tmp_path, entry())
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/weights.lock.json").write_text(text)
    found = refused(*words, "one")
    assert (
        "weights.lock.json: cannot be read (" in found
        and "delete it to trust the next downloads anew" in found
    )


def test_a_record_of_another_place(tmp_path: Path, web: Web) -> None:
    """The list or the lock file was edited; what lies at the other place is not taken for it."""
    url = web.put("/one", CONTENT)
    succeed(*line(tmp_path, entry(urls=[url])), "one")
    for path in ("weights/moved.bin", "weights/one/"):
        words = line(tmp_path, entry(urls=[url], path=path))
        assert state(words) == "foreign"
        assert refused(*words, "one") == (
            f"{tmp_path}/weights/weights.lock.json: 'one' was seen as weights/one.bin, but {path} was expected; "
            "delete that entry and run again"
        )
    lock = tmp_path / "weights/weights.lock.json"
    lock.write_text(lock.read_text().replace("weights/one.bin", "../../etc/passwd"))
    message = refused(*line(tmp_path, entry(urls=[url])), "one")
    assert "cannot be read ('../../etc/passwd' leads to another folder, but a path inside" in message


def test_what_is_in_the_way(tmp_path: Path) -> None:
    """A folder where a file should go, a file where a folder should."""
    words = line(tmp_path, entry(path="weights/one/"))
    (tmp_path / "weights/one/val").mkdir(parents=True)
    (tmp_path / "weights/one/train").write_bytes(b"mine")
    for inside, place in (("val", "val"), ("train/a.png", "train")):
        given = make_zip(tmp_path / "x.zip", {inside: b"1"})
        given.write_bytes(given.read_bytes())
        with_folder = refused(*words, "one", "--from-file", given)
        assert (
            with_folder
            == f"{tmp_path}/weights/one/{place}: another file lies there; move it away and run again"
        )
    assert (tmp_path / "weights/one/train").read_bytes() == b"mine"


def test_a_page_of_the_user_is_no_weights(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("\n<!DOCTYPE html><html>Sign in")
    for path in ("weights/one.bin", "weights/one/"):
        words = line(tmp_path, entry(path=path))
        found = refused(*words, "one", "--from-file", tmp_path / "x")
        assert found == f"{tmp_path}/x: a web page came instead of a file"
        assert state(words) == "absent"


def test_an_archive_of_the_user_is_no_checkpoint(tmp_path: Path) -> None:
    """As Drive gives, if a whole folder is downloaded."""
    given = make_zip(tmp_path / "drive-download.zip", {"gta5/model.pth": b"1"})
    words = line(tmp_path, checkpoint())
    assert refused(*words, "one", "--from-file", given) == (
        f"{given}: is an archive, but the checkpoint model.pth itself was expected; unpack it and give that file "
        "to --from-file"
    )
    other = tmp_path / "other.pth"
    other.write_bytes(CONTENT)
    assert refused(*words, "one", "--from-file", other).startswith(
        f"{other}: is damaged, cut short or no PyTorch"
    )
    assert [path.name for path in (tmp_path / "weights/weights/gta5").iterdir()] == []


def test_a_teacher_without_a_checkpoint(tmp_path: Path) -> None:
    given = make_zip(tmp_path / "x.zip", {"readme.txt": b"1"})
    words = line(tmp_path, entry(path="weights/one/", network={"teacher": "dacs", "classes": 19}))
    assert refused(*words, "one", "--from-file", given) == (
        f"{tmp_path}/weights/one.rejected (set aside, not installed): holds no checkpoint (.pth, .pt, .ckpt), but "
        "readme.txt"
    )


def test_killed_between_lock_file_and_rename(
    tmp_path: Path, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run has only to rename."""
    words = line(tmp_path, entry(urls=[web.put("/one", CONTENT)]))

    def killed(*_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetching, "move", killed)
        assert endauda(*words, "one").code == 130
    assert state(words) == "partial"
    succeed(*words, "one")
    assert state(words) == "verified" and len(web.answers) == 1


# ---------------------------------------------------------------------------- several


def test_one_that_fails_does_not_keep_the_others(tmp_path: Path, web: Web) -> None:
    words = line(
        tmp_path,
        entry("a/1", urls=[web.put("/1", CONTENT)]),
        entry("a/2", urls=[web.url + "/gone"]),
        entry("a/3", urls=[web.put("/3", CONTENT)]),
        entry("b", urls=[web.put("/b", CONTENT)]),
    )
    outcome = endauda(*words, "a/*", "--json")
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1] == ("endauda: not there: a/2 (reasons above); run again to retry")
    assert "warning: a/2 cannot be fetched: " in outcome.err
    assert [f["name"] for f in outcome.result["fetched"]] == ["a/1", "a/3"]
    (failure,) = outcome.result["failures"]
    assert failure["name"] == "a/2" and "answers 404" in failure["reason"]
    assert not web.asked("/b")


def test_no_link_is_known(tmp_path: Path) -> None:
    found = refused(*line(tmp_path, entry()), "one")
    assert found.startswith("one: no link to it is known; open https://example.org/page in a browser, save")


def test_the_table(tmp_path: Path, web: Web) -> None:
    words = line(
        tmp_path,
        entry(
            "a", urls=[web.put("/a", CONTENT)], size=len(CONTENT), licence="MIT", miou=12.3, note="Mind it"
        ),
        entry("b"),
    )
    succeed(*words, "a")
    table = succeed(*words).out
    rows = [row.split() for row in table.splitlines()]
    assert rows[0] == ["name", "state", "licence", "goes", "to", "size", "mIoU", "%"]
    assert rows[1] == ["a", "verified", "MIT", "weights/a.bin", "0.0", "MB", "12.30"]
    assert rows[2] == ["b", "absent", "unknown", "weights/b.bin"], "size and score are not known"
    assert "a: bytes. Mind it" in table and "from https://example.org/page: a, b" in table
    assert succeed(*words, "--list").out == table


@pytest.mark.parametrize("option", [("--timeout", "0"), ("--attempts", "0")])
def test_impatience(tmp_path: Path, option: tuple[str, str]) -> None:
    assert "--timeout must be above 0" in refused(*line(tmp_path, entry()), "one", *option)


# ---------------------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published student: a plain state dict of 19 classes."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("student") / "model.pth"
    torch.save(build_student("deeplabv3plus", "tiny", 19).state_dict(), path)
    return path


def checkpoint(path: str = "weights/weights/gta5/model.pth", **fields: Any) -> dict[str, Any]:
    return entry(path=path, source="gta5", **fields)


def test_a_checkpoint_is_matched_and_the_next_line_works(
    tmp_path: Path, student: Path, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_workspace(tmp_path)
    url = web.put("/model.pth", student.read_bytes())
    words = line(
        root,
        checkpoint(urls=[url], use="test", network=TINY),
        entry("two", path="weights/weights/gta5/init.pth", urls=[url], use="init",
              network={"backbone": "tiny", "classes": 19}),
    )  # fmt: skip
    first, second = result_of(*words, "*")["fetched"]
    tensors = len(torch.load(student, weights_only=True))
    assert first["checks"] == [f"{tensors:,} tensors, fits deeplabv3plus on tiny with 19 classes"]
    assert second["checks"] == first["checks"], "the architecture was not known, and found"
    assert first["next_steps"] == ["endauda test --weights weights/weights/gta5/model.pth --backbone tiny"]
    assert second["next_steps"] == ["endauda train --init weights/weights/gta5/init.pth --backbone tiny"]
    monkeypatch.chdir(root)
    test, train = (shlex.split(found["next_steps"][0])[1:] for found in (first, second))
    assert main([*test, "--size", "64x32", "--device", "cpu"]) == 0
    labels = root / "Warehouse/Cityscapes/data/gtFine/mine"
    for image in TRAIN:
        put_label(labels / f"{image}.png", opinion("dacs", scene(seed_of(image)), seed_of(image))[0])
    flags = SIZE_FLAGS[2:]
    assert main([*train, "--labels", "mine", "--steps", "1", "--device", "cpu", *flags]) == 0
    assert "next: endauda test --weights" in succeed(*words, "one").out


@pytest.mark.parametrize(
    ("network", "complaint"),
    [
        (TINY | {"classes": 16}, "has 19 classes, but 16 were expected"),
        (TINY | {"arch": "deeplabv2"}, "holds deeplabv3plus with backbone tiny, but deeplabv2"),
        ({"backbone": "tiny"}, "which the network"),
    ],
)
def test_a_checkpoint_of_another_network(
    tmp_path: Path, student: Path, web: Web, network: dict[str, Any], complaint: str
) -> None:
    """Whole, but not it: set aside under another name, neither installed nor fetched again by accident."""
    words = line(tmp_path, checkpoint(urls=[web.put("/m", student.read_bytes())], network=network))
    found = refused(*words, "one")
    place = tmp_path / "weights/weights/gta5/model.pth"
    assert f"{place}.rejected (set aside, not installed): " in found
    assert complaint in found or network == {"backbone": "tiny"}
    assert not place.exists() and place.with_name("model.pth.rejected").read_bytes() == student.read_bytes()
    assert state(words) == "absent"


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch escaped",)


def test_a_checkpoint_that_would_run_code(tmp_path: Path, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weights": Hostile()}, tmp_path / "evil.pth")
    words = line(
        tmp_path, checkpoint(urls=[web.put("/m", (tmp_path / "evil.pth").read_bytes())], network=TINY)
    )
    assert "was not opened, because such a file can run code" in refused(*words, "one")
    assert not (tmp_path / "escaped").exists()


def test_a_checkpoint_that_is_damaged(tmp_path: Path, student: Path, web: Web) -> None:
    content = bytearray(student.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    words = line(tmp_path, checkpoint(urls=[web.put("/m", bytes(content))]))
    assert "is damaged, cut short or no PyTorch checkpoint" in refused(*words, "one")


def test_a_network_that_is_not_known(tmp_path: Path, student: Path, web: Web) -> None:
    words = line(tmp_path, checkpoint(urls=[web.put("/m", student.read_bytes())], use="test"))
    (found,) = result_of(*words, "one")["fetched"]
    assert found["checks"][0].endswith("tensors; which network they are of is not known")
    assert found["next_steps"] == []


def test_a_teacher(tmp_path: Path, student: Path, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unmatched where this version cannot build it, and said so; matched where it can."""
    archive = make_zip(
        tmp_path / "x.zip", {"saved/best.pth": student.read_bytes(), "saved/opts.yaml": b"a: 1"}
    )
    url = web.put("/teacher.zip", archive.read_bytes())
    words = line(
        tmp_path,
        entry(path="weights/teachers/dacs/", urls=[url], use="teacher", source="synthia",
              network={"teacher": "dacs", "classes": 19}),
    )  # fmt: skip
    monkeypatch.delattr(models, "build_teacher", raising=False)
    (found,) = result_of(*words, "one")["fetched"]
    assert "not matched: this version cannot build the network of dacs" in found["checks"][0]
    assert found["next_steps"] == []
    built = lambda name, classes: build_student("deeplabv3plus", "tiny", classes)  # noqa: E731
    monkeypatch.setattr(models, "build_teacher", built, raising=False)
    (found,) = result_of(*words, "one")["fetched"]
    assert found["checks"][0].endswith("fits the dacs teacher of 19 classes")
    assert found["next_steps"] == [
        "endauda export-teacher dacs --weights weights/teachers/dacs/saved/best.pth --source synthia"
    ]


def test_an_archive_of_several_checkpoints(tmp_path: Path, student: Path, web: Web) -> None:
    """One must fit; the others are named with what is the matter."""
    other = tmp_path / "other.pth"
    torch.save(build_student("deeplabv3plus", "tiny", 9).state_dict(), other)
    files = {"gta5/m.pth": student.read_bytes(), "robot/m.pth": other.read_bytes()}
    archive = make_zip(tmp_path / "x.zip", files)
    fields: dict[str, Any] = {"path": "weights/teachers/mrnet/", "use": "test", "network": TINY}
    words = line(tmp_path, entry(urls=[web.put("/t.zip", archive.read_bytes())], **fields))
    (found,) = result_of(*words, "one")["fetched"]
    assert found["checks"][0].startswith("gta5/m.pth: ") and "fits deeplabv3plus" in found["checks"][0]
    assert found["checks"][1].startswith("robot/m.pth: not usable: ") and "9 classes" in found["checks"][1]
    assert found["next_steps"] == ["endauda test --weights weights/teachers/mrnet/gta5/m.pth --backbone tiny"]
    wrong = copy.deepcopy(fields) | {"path": "weights/wrong/", "network": TINY | {"classes": 3}}
    assert "classes, but 3 were expected" in refused(
        *line(tmp_path, entry("wrong", urls=[web.url + "/t.zip"], **wrong)), "wrong"
    )
    assert not (tmp_path / "weights/wrong").exists()
    assert (tmp_path / "weights/wrong.rejected").is_dir() and not (tmp_path / "weights/wrong.part").exists()


def test_pseudo_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpacked where train finds them; the next line is the one that trains on them."""
    root = make_workspace(tmp_path)
    pictures = {}
    for image in TRAIN:
        path = tmp_path / "picture.png"
        put_label(path, opinion("dacs", scene(seed_of(image)), seed_of(image))[0])
        pictures[f"ours/{image}.png"] = path.read_bytes()
    archive = make_zip(tmp_path / "x.zip", pictures)
    words = line(root, entry(path="Warehouse/Cityscapes/data/gtFine/", use="labels", source="gta5"))
    (found,) = result_of(*words, "one", "--from-file", archive)["fetched"]
    assert found["next_steps"] == ["endauda train --labels ours"]
    monkeypatch.chdir(root)
    typed = shlex.split(found["next_steps"][0])[1:]
    assert main([*typed, *SIZE_FLAGS, "--steps", "1", "--device", "cpu"]) == 0


# ---------------------------------------------------------------------------- by name elsewhere


def test_weights_by_their_published_name(
    tmp_path: Path, student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """train --init, test --weights and export-teacher --weights take the name that download-weights lists."""
    root = make_workspace(tmp_path)
    monkeypatch.chdir(root)
    place = root / "weights/weights/gta5/gta5_ours_drn_57.98.pth"
    for line in (("test", "--weights"), ("export-teacher", "mine", "--weights")):
        found = refused(*line, "gta5/ours/drn")
        assert found == f"{place}: not there; fetch it with: endauda download-weights gta5/ours/drn"
    place.parent.mkdir(parents=True)
    place.write_bytes(student.read_bytes())
    flags = ("--backbone", "tiny", "--size", "64x32", "--device", "cpu")
    assert result_of("test", "--weights", "gta5/ours/drn", *flags)["scored"] == str(place)
    folder = root / "weights/teachers/dacs"
    for name in ("a.pth", "b.pth"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    assert f"{folder}: holds 2 checkpoints (a.pth, b.pth)" in refused("test", "--weights", "dacs")
    assert "nowhere.pth" in refused("test", "--weights", "nowhere.pth")
