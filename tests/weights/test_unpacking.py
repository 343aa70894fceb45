"""Archives of strangers: what is plain comes out, everything else is refused and nothing is touched."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import stat
import tarfile
import zipfile
from typing import TYPE_CHECKING

import pytest

from endauda_cli.errors import DownloadError
from endauda_cli.weights import unpacking
from endauda_cli.weights.unpacking import is_archive, unpack
from tests.support.command_lines import files_of, refused, result_of
from tests.support.packages import make_tar, make_zip
from tests.support.weights_samples import entry, noise, write_manifest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PLAIN = {"readme.txt": b"hello", "models/a.bin": noise(3000), "models/deep/b.bin": noise(10, 1)}


def everything(_name: str) -> bool:
    return True


def extract(archive: Path, selects: Callable[[str], bool] = everything) -> dict[str, bytes]:
    folder = archive.parent / "out"
    unpack(archive, folder, selects, archive.name)
    return files_of(folder)


MAKERS: dict[str, Callable[[Path, dict[str, bytes]], Path]] = {
    "zip": make_zip,
    "tar": lambda path, members: make_tar(path, members, "w"),
    "tar.gz": make_tar,
    "tar.xz": lambda path, members: make_tar(path, members, "w:xz"),
    "tar.bz2": lambda path, members: make_tar(path, members, "w:bz2"),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_plain_files(tmp_path: Path, kind: str) -> None:
    archive = MAKERS[kind](tmp_path / "download", PLAIN)
    assert is_archive(archive)
    assert extract(archive) == PLAIN


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_selected_files(tmp_path: Path, kind: str) -> None:
    archive = MAKERS[kind](tmp_path / "download", PLAIN)
    assert set(extract(archive, lambda name: name.endswith(".bin"))) == {"models/a.bin", "models/deep/b.bin"}


def test_what_is_an_archive(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """A PyTorch checkpoint is a zip, too, but is not to be unpacked."""
    (tmp_path / "a").write_bytes(noise(2000))
    (tmp_path / "empty").touch()
    assert not is_archive(tmp_path / "a") and not is_archive(tmp_path / "empty")
    assert zipfile.is_zipfile(tiny_checkpoint) and not is_archive(tiny_checkpoint)


# ---------------------------------------------------------------------------- refused


def refuse(archive: Path) -> str:
    """The sentence, after a look that nothing came of it."""
    root = archive.parent
    (root / "inside").mkdir()
    (root / "victim").write_text("precious")
    before = files_of(root)
    with pytest.raises(DownloadError) as error:
        unpack(archive, root / "inside/out", everything, "archive")
    assert files_of(root) == before and not (root / "inside/out").exists()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
@pytest.mark.parametrize(
    ("name", "trouble"),
    [
        ("../victim", "leads out of the folder"),
        ("models/../../victim", "leads out of the folder"),
        ("/etc/cron.d/victim", "leads out of the folder"),
        ("..\\victim", "is no plain name"),
        ("C:/victim", "is no plain name"),
        ("a\nb", "is no plain name"),
        ("a\x9b2J", "is no plain name"),
        ("a\u202egnp.pth", "is no plain name"),
        ("\u5b57" * 86, "is too long a name"),
        ("d/" * 600, "is too long a name"),
        ("d/" * 40, "lies too deep"),
        ("readme.txt/b", "is both a file and a folder"),
        ("models/a.bin/", "is both a file and a folder"),
        ("MODELS", "is both a file and a folder"),
        ("Readme.TXT", "is there twice"),
        (".", "is both a file and a folder"),
    ],
)
def test_names_that_lead_out(tmp_path: Path, kind: str, name: str, trouble: str) -> None:
    """Also when they come last: the plain members before them are not written either."""
    if name.endswith("/") and kind != "zip":
        name = name.rstrip("/") + "/x"
    archive = MAKERS[kind](tmp_path / "download", PLAIN | {name: b"gotcha"})
    assert refuse(archive) == f"archive: {name!r} {trouble}; nothing was unpacked"


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_name_that_is_there_twice(tmp_path: Path, kind: str) -> None:
    """The second would replace the first, which was looked at."""
    path = tmp_path / "download"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a", b"1")
            archive.writestr("a", b"2")
    else:
        with tarfile.open(path, "w") as tar:
            for name in ("a", "./a"):
                tar.addfile(tarfile.TarInfo(name))
    assert "is there twice; nothing was unpacked" in refuse(path)


@pytest.mark.parametrize("target", ["/etc/passwd", "../victim", "models/a.bin"])
def test_links_in_a_zip(tmp_path: Path, target: str) -> None:
    path = make_zip(tmp_path / "download", PLAIN)
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("link")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, target)
        archive.writestr("link/victim", b"gotcha")
    assert refuse(path) == "archive: 'link' is a link or a device, not a file; nothing was unpacked"


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_in_a_tar(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "download"
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo("thing")
        info.type, info.linkname = kind, "../victim"
        archive.addfile(info)
    assert refuse(path) == "archive: 'thing' is a link or a device, not a file; nothing was unpacked"


def test_a_name_that_is_not_text(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "download", {b"a\xff".decode("utf-8", "surrogateescape"): b"1"})
    assert refuse(path) == r"archive: 'a\udcff' is no plain name; nothing was unpacked"


def test_a_negative_size(tmp_path: Path) -> None:
    """It would make room for others, and lead back to itself."""
    info = tarfile.TarInfo("a")
    info.pax_headers = {"size": "-1024"}
    with tarfile.open(tmp_path / "download", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info)
    assert refuse(tmp_path / "download") == (
        "archive: 'a' says that it has fewer than 0 bytes; nothing was unpacked"
    )


def test_a_sparse_file(tmp_path: Path) -> None:
    """A few bytes that say they are 10 GB."""
    path = tmp_path / "download"
    info = tarfile.TarInfo("big")
    info.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "big",
                        "GNU.sparse.size": str(10 << 30), "GNU.sparse.map": "0,0"}  # fmt: skip
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info)
    assert "'big' is a sparse file" in refuse(path)


def test_an_encrypted_zip(tmp_path: Path) -> None:
    content = bytearray(make_zip(tmp_path / "download", {"a": b"1"}).read_bytes())
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        position = content.rindex(mark) + offset
        content[position] |= 1
    (tmp_path / "download").write_bytes(content)
    assert "'a' is encrypted; nothing was unpacked" in refuse(tmp_path / "download")


# ---------------------------------------------------------------------------- bombs


class _Zeros(io.RawIOBase):
    """So many zeros, without the memory for them."""

    def __init__(self, size: int) -> None:
        self.left = size

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        size = self.left if size < 0 else min(size, self.left)
        self.left -= size
        return bytes(size)


def zero_zip(path: Path, honest: bool = True) -> Path:
    """A zip of 70 MB of zeros; said to be 10 GB, or (a lie) 100 bytes."""
    size = 70 << 20
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("zeros", "w") as file:
            for _ in range(70):
                file.write(bytes(1 << 20))
    content, said = path.read_bytes(), (10 << 30) - (1 << 32) * 2 if honest else 100
    said = min(said, (1 << 32) - 2)
    path.write_bytes(content.replace(size.to_bytes(4, "little"), said.to_bytes(4, "little")))
    return path


def test_a_zip_of_zeros(tmp_path: Path) -> None:
    """What its table says is enough to refuse it: nothing is decompressed."""
    path = zero_zip(tmp_path / "download")
    assert path.stat().st_size < 500_000
    assert "that would unpack to 2.1 GB or more, as no honest archive does" in refuse(path)


def test_a_zip_that_lies_about_its_zeros(tmp_path: Path) -> None:
    """The table says 100 bytes. They are all that comes out, and then the checksum does not fit."""
    assert "the archive is damaged" in refuse(zero_zip(tmp_path / "download", honest=False))


@pytest.mark.parametrize("compressed", [True, False])
def test_a_tar_of_ten_gigabytes_of_zeros(tmp_path: Path, compressed: bool) -> None:
    """Its first header is enough; the rest is never read (it is not even there)."""
    info = tarfile.TarInfo("zeros")
    info.size = 10 << 30
    start = info.tobuf() + bytes(1 << 20)
    path = tmp_path / "download"
    path.write_bytes(gzip.compress(start) if compressed else start)
    assert "that would unpack to 10.7 GB or more, as no honest archive does" in refuse(path)


def test_many_files_that_are_too_much_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "SMALL", 1 << 20)
    path = make_zip(tmp_path / "download", {f"{i:03}": bytes(100_000) for i in range(100)})
    assert "as no honest archive does" in refuse(path)


def test_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "MAX_MEMBERS", 9)
    path = make_zip(tmp_path / "download", {str(i): b"" for i in range(10)})
    assert refuse(path) == "archive: holds more than 9 files; not unpacked"


def test_a_tar_header_that_would_fill_the_memory(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 5 << 20
    path = tmp_path / "download"
    path.write_bytes(gzip.compress(info.tobuf() + bytes(5 << 20) + tarfile.TarInfo("y").tobuf()))
    with pytest.raises(DownloadError, match="damaged"):
        unpack(path, tmp_path / "out", everything, "archive")
    assert not is_archive(path), "nor is it read to see what it is"


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar"])
def test_damage(tmp_path: Path, kind: str) -> None:
    """Cut anywhere: a sentence, and nothing is left."""
    whole = MAKERS[kind](tmp_path / "whole", PLAIN).read_bytes()
    path = tmp_path / "download"
    for cut in range(0, len(whole), 97):
        path.write_bytes(whole[:cut])
        if not is_archive(path):
            continue
        try:
            unpack(path, tmp_path / "out", everything, "archive")
        except DownloadError as error:
            assert "damaged" in str(error)
            assert not (tmp_path / "out").exists()
        else:  # a tar may lack only the zeros at its end
            assert kind == "tar" and files_of(tmp_path / "out") == PLAIN
            for left in sorted((tmp_path / "out").rglob("*"), reverse=True):
                left.unlink() if left.is_file() else left.rmdir()
            (tmp_path / "out").rmdir()


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.bz2", "tar.xz"])
def test_flipped_bits(tmp_path: Path, kind: str) -> None:
    """Wherever they are, also where only the checksum at the end of the file tells."""
    path = tmp_path / "download"
    contents = {"a": noise(30_000), "b": noise(30_000, 1)}
    whole = MAKERS[kind](path, contents).read_bytes()
    for position in [*range(100, len(whole), 4999), len(whole) - 6]:
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 16]) + whole[position + 1 :])
        if not is_archive(path):
            continue
        try:
            unpack(path, tmp_path / "out", everything, "archive")
        except DownloadError as error:
            assert "damaged" in str(error) or "is no plain name" in str(error), error
        else:
            assert files_of(tmp_path / "out") == contents
            shutil.rmtree(tmp_path / "out")


def test_a_damaged_header_between_two_files(tmp_path: Path) -> None:
    """tarfile ends there without a word."""
    path = make_tar(tmp_path / "download", PLAIN, "w")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"models/deep/b.bin", b"models/deep/c.bin"))
    assert refuse(path) == "archive: the archive is damaged (it ends too early); fetch it again"


def test_a_tar_that_goes_on_and_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "SMALL", 1 << 20)
    path = tmp_path / "download"
    path.write_bytes(gzip.compress(gzip.decompress(make_tar(path, PLAIN).read_bytes()) + bytes(3 << 20)))
    assert refuse(path) == "archive: the archive is damaged (it goes on behind its end); fetch it again"


def test_too_little_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "free_bytes", lambda _folder: 1000)
    path = make_zip(tmp_path / "download", PLAIN)
    assert "takes 0.0 MB, but 0.0 MB are free; free some space" in refuse(path)


# ---------------------------------------------------------------------------- as a command


def test_an_archive_goes_to_its_folder(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, entry("pack", path="weights/pack/", member="models/*"))
    given = make_zip(tmp_path / "browser.zip", PLAIN)
    words = ("download-weights", "pack", "--workspace", tmp_path, "--manifest", manifest)
    (found,) = result_of(*words, "--from-file", given)["fetched"]
    assert found["size"] == 3010 and found["sha256"] is None
    expected = {name: content for name, content in PLAIN.items() if name.startswith("models/")}
    assert files_of(tmp_path / "weights/pack") == expected
    assert {p.name for p in (tmp_path / "weights").iterdir()} == {"pack", "weights.lock.json"}
    assert given.exists(), "the user's own file stays"
    assert result_of(*words)["fetched"][0]["fetched"] is False
    (tmp_path / "weights/pack/models/a.bin").write_bytes(b"other")
    assert result_of(*words, "--list")["artefacts"][0]["state"] == "foreign"


def test_a_hostile_archive_leaves_no_trace(tmp_path: Path) -> None:
    root = tmp_path / "workspace"
    root.mkdir()
    manifest = write_manifest(tmp_path, entry("pack", path="weights/pack/"))
    given = make_zip(tmp_path / "browser.zip", PLAIN | {"../../../escaped": b"gotcha"})
    before = {p for p in tmp_path.rglob("*") if p.is_file()}
    sentence = refused(
        "download-weights", "pack", "--workspace", root, "--manifest", manifest, "--from-file", given
    )
    assert "leads out of the folder; nothing was unpacked" in sentence
    left = {p for p in tmp_path.rglob("*") if p.is_file()} - before
    assert not left
    assert not (root / "weights/pack").exists()


def test_other_files_of_the_folder_are_kept(tmp_path: Path) -> None:
    """Ground truth lies beside pseudo labels; a file of the same name is never overwritten."""
    place = tmp_path / "gtFine"
    (place / "val").mkdir(parents=True)
    (place / "val/truth.png").write_bytes(b"truth")
    manifest = write_manifest(tmp_path, entry("labels", path="gtFine/"))
    words = ("download-weights", "labels", "--workspace", tmp_path, "--manifest", manifest, "--from-file")
    hostile = make_zip(tmp_path / "hostile.zip", {"plf/a.png": b"1", "val/truth.png": b"lie"})
    assert f"{place}/val/truth.png: another file lies there" in refused(*words, hostile)
    assert files_of(place) == {"val/truth.png": b"truth"}
    given = make_zip(tmp_path / "labels.zip", {"plf/a.png": b"1"})
    result_of(*words, given)
    assert files_of(place) == {"val/truth.png": b"truth", "plf/a.png": b"1"}


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")
def test_a_link_in_the_workspace_is_the_users(tmp_path: Path) -> None:
    """weights/ may be a link to a larger disk; it is followed."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "weights").symlink_to(tmp_path / "disk")
    manifest = write_manifest(tmp_path, entry("pack", path="weights/pack/"))
    given = make_tar(tmp_path / "browser.tgz", PLAIN)
    result_of(
        "download-weights", "pack", "--workspace", tmp_path, "--manifest", manifest, "--from-file", given
    )
    assert files_of(tmp_path / "disk/pack") == PLAIN
