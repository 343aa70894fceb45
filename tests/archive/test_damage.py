"""Damaged archives: found or harmless, never wrong data; and what is whole stays usable."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from endauda_cli.archive import CertaintyReader, CertaintyWriter, index, manifest, verify
from endauda_cli.archive.codecs import softmax
from endauda_cli.errors import ArchiveError
from endauda_cli.progress import Note, Tick
from endauda_cli.types import Codec
from tests.support.archive_samples import (
    ATTRIBUTES,
    CLASSES,
    Image,
    assert_holds,
    same,
    samples,
    smooth,
    write,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SHARD = "shard-0-of-1-00001.h5"
IN_SHARD = {"ulm/0002", "ulm/0003"}


@pytest.fixture()
def images() -> dict[str, Image]:
    return samples(6)


@pytest.fixture()
def path(tmp_path: Path, images: dict[str, Image]) -> Path:
    """Three shards of two images."""
    return write(tmp_path / "a", images, shard_size=2)


def readable(path: Path, images: dict[str, Image]) -> set[str]:
    """Ids that can be read; fails if one of them is not what was written."""
    found = set()
    with CertaintyReader(path) as reader:
        for id in reader.ids:
            try:
                label, certainty = reader.labels(id), reader.certainty(id)
            except ArchiveError as exc:
                assert repr(id) in str(exc) and ".h5" in str(exc)
            else:
                assert np.array_equal(label, images[id][0]) and np.array_equal(certainty, images[id][1])
                found.add(id)
    return found


def export_again(path: Path, images: dict[str, Image]) -> set[str]:
    """What a rerun does; gives the ids that it had to make."""
    with CertaintyWriter(path, classes=CLASSES, attributes=ATTRIBUTES) as writer:
        missing = images.keys() - writer.done
        for id in missing:
            writer.write(id, *images[id])
    return missing


class TestFlippedBytes:
    @pytest.mark.parametrize("codec", Codec)
    @pytest.mark.parametrize("width", [1, 64])
    def test_in_a_shard(self, tmp_path: Path, codec: Codec, width: int) -> None:
        images = {f"x{i}": smooth(i, 3, 24, 32) for i in range(3)}
        path = write(tmp_path / "a", images, codec=codec)
        shard = path / "shard-0-of-1-00000.h5"
        whole = shard.read_bytes()
        generator = np.random.default_rng(width)
        lost = 0
        for position in generator.integers(0, len(whole) - width, 60):
            damaged = bytearray(whole)
            for offset in range(position, position + width):
                damaged[offset] ^= int(generator.integers(1, 256))
            shard.write_bytes(damaged)
            lost += len(images) - len(readable(path, images))
            result = verify(path)
            assert result.ok == 0 and result.damaged[0].ids == tuple(images)
        assert lost > 10
        shard.write_bytes(whole)
        assert verify(path).intact

    @pytest.mark.parametrize("name", ["archive.json", "shard-0-of-1-00001.json"])
    def test_in_the_json_files(self, path: Path, images: dict[str, Image], name: str) -> None:
        whole = (path / name).read_bytes()
        generator = np.random.default_rng(0)
        for position in generator.integers(0, len(whole), 40):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << generator.integers(8)
            (path / name).write_bytes(damaged)
            try:
                with CertaintyReader(path) as reader:
                    assert reader.classes == CLASSES and reader.attributes["weights"] == ATTRIBUTES["weights"]
                assert readable(path, images) >= images.keys() - IN_SHARD
            except ArchiveError as exc:
                assert name in str(exc)

    def test_in_an_image_that_waits_for_its_shard(self, tmp_path: Path) -> None:
        images = samples(2)
        with (
            pytest.raises(RuntimeError),
            CertaintyWriter(tmp_path / "a", classes=CLASSES, attributes=ATTRIBUTES) as writer,
        ):
            for id, image in images.items():
                writer.write(id, *image)
            raise RuntimeError
        first = min((tmp_path / "a").glob("*.part/*.image"))
        first.write_bytes(first.read_bytes()[:-1])
        assert len(readable(tmp_path / "a", images)) == 1
        assert len(export_again(tmp_path / "a", images)) == 1
        assert_holds(tmp_path / "a", images)


class TestLostShards:
    @pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.999])
    def test_cut_short(self, path: Path, images: dict[str, Image], share: float) -> None:
        whole = (path / SHARD).read_bytes()
        (path / SHARD).write_bytes(whole[: int(share * len(whole))])
        assert readable(path, images) == images.keys() - IN_SHARD
        with CertaintyReader(path) as reader:
            assert set(reader.ids) == images.keys()  # so that nobody takes the archive for complete
            with pytest.raises(ArchiveError, match=f"{SHARD}: image 'ulm/0002' cannot be read.*another size"):
                reader.labels("ulm/0002")
        assert export_again(path, images) == IN_SHARD
        assert_holds(path, images)

    def test_gone(self, path: Path, images: dict[str, Image]) -> None:
        (path / SHARD).unlink()
        assert readable(path, images) == images.keys() - IN_SHARD
        result = verify(path)
        assert (result.ok, result.damaged, set(result.missing)) == (4, (), IN_SHARD)
        assert export_again(path, images) == IN_SHARD
        assert_holds(path, images)
        assert verify(path).intact

    def test_gone_while_a_reader_is_open(self, path: Path, images: dict[str, Image]) -> None:
        with CertaintyReader(path) as reader:
            (path / SHARD).unlink()
            with pytest.raises(ArchiveError, match=f"{SHARD}: image 'ulm/0003' cannot be read"):
                reader.labels("ulm/0003")
            assert same(reader, "ulm/0000", images["ulm/0000"])

    @pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff\xfe"])
    def test_manifest(self, path: Path, images: dict[str, Image], content: bytes | None) -> None:
        name = (path / SHARD).with_suffix(".json")
        name.unlink() if content is None else name.write_bytes(content)
        assert readable(path, images) == images.keys() - IN_SHARD
        assert not verify(path).intact
        assert export_again(path, images) == set()  # the shard itself says what it holds
        assert_holds(path, images)
        assert verify(path).intact

    @pytest.mark.parametrize("damage", ["shard cut", "shard gone", "manifest gone"])
    def test_manifest_and_shard(self, path: Path, images: dict[str, Image], damage: str) -> None:
        (path / SHARD).with_suffix(".json").write_bytes(b"{")
        if damage == "manifest gone":
            (path / SHARD).with_suffix(".json").unlink()
        if damage == "shard gone":
            (path / SHARD).unlink()
        else:
            (path / SHARD).write_bytes((path / SHARD).read_bytes()[:3000])
        assert not verify(path).intact
        assert export_again(path, images) == IN_SHARD
        assert_holds(path, images)
        assert verify(path).intact

    def test_renamed_files_are_refused(self, path: Path, images: dict[str, Image]) -> None:
        (path / SHARD).with_suffix(".json").rename(path / "shard-0-of-1-00007.json")
        assert verify(path).damaged[0].file == SHARD
        with pytest.raises(ArchiveError, match="so it was renamed"):
            manifest.read_manifest(path / "shard-0-of-1-00007.json")

    def test_other_files_are_left_alone(self, path: Path, images: dict[str, Image]) -> None:
        for name in ("notes.txt", "shard-plan.json", "shard-old.h5"):
            (path / name).write_text("mine")
        assert export_again(path, images) == set()
        assert_holds(path, images)
        assert (path / "notes.txt").read_text() == (path / "shard-old.h5").read_text() == "mine"


class TestVerify:
    def test_an_intact_archive(self, path: Path) -> None:
        events: list[Tick | Note] = []
        result = verify(path, events.append)
        assert result.intact and result.ok == 6 and result.damaged == () and result.missing == ()
        assert events[-1] == Tick("verifying", 3, 3, unit="files")

    def test_names_the_shard_and_its_images(self, path: Path, images: dict[str, Image]) -> None:
        data = bytearray((path / SHARD).read_bytes())
        data[len(data) // 2] ^= 1
        (path / SHARD).write_bytes(data)
        result = verify(path)
        (damaged,) = result.damaged
        assert (damaged.file, set(damaged.ids)) == (SHARD, IN_SHARD) and "SHA-256" in damaged.reason
        assert result.ok == 4 and set(result.missing) == IN_SHARD
        (path / SHARD).unlink()  # as the message says
        assert export_again(path, images) == IN_SHARD
        assert verify(path).intact

    def test_decodes_what_the_sha_cannot_judge(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A shard that was wrong from the start, as from bad memory: whole by its SHA-256, not by its content."""
        with monkeypatch.context() as patch:
            patch.setattr("endauda_cli.archive.shard.content_digest", lambda *_: "0" * 32)
            path = write(tmp_path / "wrong", samples(1))
        assert "image 'ulm/0000': the content digest does not match" in verify(path).damaged[0].reason

    def test_counts_images_that_wait_for_their_shard(self, tmp_path: Path, images: dict[str, Image]) -> None:
        with CertaintyWriter(tmp_path / "a", classes=CLASSES, shard_size=4) as writer:
            for id, image in images.items():
                writer.write(id, *image)
            assert verify(tmp_path / "a").ok == 6

    def test_refuses_what_is_no_archive(self, tmp_path: Path) -> None:
        with pytest.raises(ArchiveError, match="not a certainty archive"):
            verify(tmp_path)


def stopped(path: Path, images: dict[str, Image]) -> Path:
    """An archive whose writer ended before it made a shard."""
    with (
        pytest.raises(RuntimeError, match="stopped"),
        CertaintyWriter(path, classes=CLASSES, attributes=ATTRIBUTES) as writer,
    ):
        for id, image in images.items():
            writer.write(id, *image)
        raise RuntimeError("stopped")
    return path


class TestImagesThatWaitForAShard:
    HEADER = {  # noqa: RUF012
        "format": manifest.FORMAT,
        "version": manifest.FORMAT_VERSION,
        "id": "forged",
        "image": [1, 1, "digest"],
        "codec": "zstd",
        "chunks": [[0, False, 0]] * 5,
    }

    @pytest.mark.parametrize(
        "header",
        [
            {},
            [],
            HEADER | {"version": 1},
            HEADER | {"codec": "mp3"},
            HEADER | {"image": ["a", 1, "digest"]},
            HEADER | {"image": [0, -1, "digest"]},
            HEADER | {"chunks": [[10**12, False, 0]] * 5},
            HEADER | {"chunks": [[-1, False, 0]] * 5},
            HEADER | {"chunks": [[0, False, -1]] * 5},
            HEADER | {"chunks": [[0, False, 0]] * 6},
            HEADER | {"chunks": []},
        ],
    )
    def test_forged(self, path: Path, images: dict[str, Image], header: object) -> None:
        """Whole by their names, and still no images of this archive."""
        data = json.dumps(header).encode() + b"\n"
        (path / "1-of-2.part").mkdir()
        (path / "1-of-2.part" / f"{hashlib.sha256(data).hexdigest()}.image").write_bytes(data)
        assert readable(path, images) == images.keys()
        (damaged,) = verify(path).damaged
        assert damaged.file.startswith("1-of-2.part") and damaged.ids == ()
        assert export_again(path, images) == set()
        assert verify(path).intact

    def test_verify_finds_damage(self, tmp_path: Path) -> None:
        path = stopped(tmp_path / "a", samples(2))
        assert verify(path).ok == 2
        first = min(path.glob("*.part/*.image"))
        data = bytearray(first.read_bytes())
        data[-3] ^= 1
        first.write_bytes(data)
        result = verify(path)
        assert result.ok == 1 and result.damaged[0].file == f"{first.parent.name}/{first.name}"

    def test_gone_while_a_reader_is_open(self, tmp_path: Path) -> None:
        path = stopped(tmp_path / "a", samples(2))
        with CertaintyReader(path) as reader:
            for file in path.glob("*.part/*.image"):
                file.unlink()
            for _ in range(2):
                with pytest.raises(ArchiveError, match=r"\.image: image 'ulm/0001' .*is gone; run `endauda"):
                    reader.labels("ulm/0001")

    def test_a_file_that_is_called_like_a_part(self, path: Path, images: dict[str, Image]) -> None:
        (path / "download.part").write_text("mine")
        assert export_again(path, images) == set()
        assert (path / "download.part").read_text() == "mine"


class TestTroubleThatIsNoDamage:
    """A whole file that cannot be read now must not be deleted, nor set aside."""

    @pytest.fixture()
    def without_numba(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        softmax._planes.cache_clear()
        monkeypatch.delattr("endauda_cli.archive.codecs.softmax_planes")
        monkeypatch.setitem(sys.modules, "endauda_cli.archive.codecs.softmax_planes", None)
        yield
        softmax._planes.cache_clear()

    def test_a_library_is_missing(self, path: Path, without_numba: None) -> None:
        with CertaintyReader(path) as reader, pytest.raises(ArchiveError, match="may be whole") as caught:
            reader.certainty("ulm/0002")
        assert SHARD in str(caught.value) and "delete" not in str(caught.value)
        with pytest.raises(ArchiveError, match="may be whole"):
            verify(path)

    def test_a_shard_without_manifest_is_not_set_aside(self, path: Path, without_numba: None) -> None:
        (path / SHARD).with_suffix(".json").unlink()
        with pytest.raises(ArchiveError, match=f"{SHARD}: .*may be whole"):
            CertaintyWriter(path, classes=CLASSES, attributes=ATTRIBUTES)
        assert (path / SHARD).exists()

    @pytest.mark.skipif(sys.platform == "win32", reason="needs a limit of open files")
    def test_too_many_open_files(self, path: Path, images: dict[str, Image]) -> None:
        import resource

        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        with CertaintyReader(path) as reader:
            taken = [os.open(os.devnull, os.O_RDONLY)]
            resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 1, before[1]))
            try:
                with contextlib.suppress(OSError):
                    while True:
                        taken.append(os.dup(taken[0]))
                with pytest.raises(ArchiveError, match="Too many open files; the file may be whole"):
                    reader.labels("ulm/0000")
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
                for descriptor in taken:
                    os.close(descriptor)
            assert same(reader, "ulm/0000", images["ulm/0000"])

    @pytest.mark.skipif(not hasattr(os, "pread"), reason="reads another way")
    def test_reads_that_give_less_than_asked_for(
        self, path: Path, images: dict[str, Image], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = os.pread
        monkeypatch.setattr(os, "pread", lambda file, size, offset: whole(file, min(size, 7), offset))
        assert_holds(path, images)

    def test_a_shard_whose_manifest_is_just_being_written(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = (path / SHARD).with_suffix(".json")
        content = name.read_bytes()
        name.unlink()
        scan = index.read_manifests

        def writes_meanwhile(archive: Path) -> list[manifest.ShardManifest]:
            found = scan(archive)
            name.write_bytes(content)
            return found

        monkeypatch.setattr(index, "read_manifests", writes_meanwhile)
        assert verify(path).intact


def test_a_shard_of_other_classes(path: Path, tmp_path: Path, images: dict[str, Image]) -> None:
    """Copied from another teacher's archive: whole, but its planes mean something else."""
    other = write(tmp_path / "b", {"x": smooth(0, 3, 8, 9)}, classes=("road", "bus", "sky"), tag="b")
    for file in other.glob("shard-*"):
        shutil.copy(file, path)
    with CertaintyReader(path) as reader, pytest.raises(ArchiveError, match=r"'x' .* of other classes"):
        reader.labels("x")
    (damaged,) = verify(path).damaged
    assert damaged.ids == ("x",) and "other classes" in damaged.reason
    assert readable(path, {**images, "x": smooth(0, 3, 8, 9)}) == images.keys()
