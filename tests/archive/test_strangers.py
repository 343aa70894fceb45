"""Archives that a stranger made: whatever is in them ends well or with one sentence, soon, and harms nothing."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest

from endauda_cli.archive import CODECS, CertaintyReader, CertaintyWriter, hdf5, layout, reader, shard, verify
from endauda_cli.archive.codecs import Chunk, crc32, softmax_planes
from endauda_cli.archive.image_files import ImageFile
from endauda_cli.archive.lookup3 import lookup3
from endauda_cli.archive.manifest import MAX_PIXELS, ImageEntry, read_info
from endauda_cli.errors import ArchiveError
from endauda_cli.types import Codec
from tests.support.archive_samples import ATTRIBUTES, CLASSES, assert_holds, samples, smooth, write
from tests.support.forged import fit, rename_image, rewrite

if TYPE_CHECKING:
    from collections.abc import Callable

STRANGERS = Path(__file__).parents[1] / "data" / "strangers"
SHARD = "shard-0-of-1-00000.h5"


def ends_well(archive: Path) -> str:
    """What comes of reading all of an archive: ``read``, ``damage`` or ``refused``."""
    try:
        found = verify(archive)
        with CertaintyReader(archive) as reader:
            for id in reader.ids:
                reader.labels(id)
                reader.certainty(id)
    except ArchiveError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
        return "refused"
    return "read" if found.intact else "damage"


def main(archive: str, seed: str, count: str, fits: str) -> None:
    """Changes single bytes of a shard that are no part of a chunk's, and prints how reading ends."""
    rng, file = random.Random(int(seed)), Path(archive) / SHARD
    whole = file.read_bytes()
    opened = ImageFile(file, CLASSES)
    data = np.zeros(len(whole), bool)
    for image in opened.images.values():
        for offset, size in zip(image.offsets.tolist(), image.sizes.tolist(), strict=True):
            data[offset : offset + size] = True
    structure = np.flatnonzero(~data).tolist()
    told: dict[str, int] = {}
    slowest = 0.0
    for _ in range(int(count)):
        changed = bytearray(whole)
        changed[rng.choice(structure)] ^= rng.randrange(1, 256)
        if fits == "fits":
            fit(file, bytes(changed))
        else:
            file.write_bytes(changed)
        began = time.process_time()
        end = ends_well(Path(archive))
        slowest = max(slowest, time.process_time() - began)
        told[end] = told.get(end, 0) + 1
    print(json.dumps({"told": told, "slowest": slowest}))


COUNT = os.environ.get("ENDAUDA_TEST_CHANGES", "400")
"""Changes that are tried; 2,000 were, before a release."""


@pytest.mark.slow
@pytest.mark.parametrize("manifest", ["stays", "fits"])
def test_changed_bytes(tmp_path: Path, manifest: str) -> None:
    """In processes of their own, so that a crash or a hang fails the test instead of ending it."""
    path = write(tmp_path / "a", samples(4))
    command = [sys.executable, "-m", "tests.archive.test_strangers", str(path), "1", COUNT, manifest]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    found = json.loads(done.stdout)
    assert sum(found["told"].values()) == int(COUNT) and found["slowest"] < 2, found


@pytest.mark.parametrize("name", ["wide-softmax", "one-byte-hang"])
def test_known_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a"
    shutil.copytree(STRANGERS / name, path)
    code = f"from tests.archive.test_strangers import *; print(ends_well(Path({str(path)!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.strip() in ("refused", "damage"), done
    command = [sys.executable, "-m", "endauda_cli", "inspect", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr + done.stdout, done


class TestIds:
    @pytest.mark.parametrize(
        "id", ["../x", "/tmp/x", "a/../../x", "a//x", "a\\b", "x\0", "\x1b[2J", "x" * 2000]
    )
    def test_in_a_manifest(self, tmp_path: Path, id: str) -> None:
        path = write(tmp_path / "a", samples(2))
        rename_image(path, "ulm/0000", id)
        readers: list[Callable[[Path], object]] = [CertaintyReader, verify]
        for read in readers:
            with pytest.raises(ArchiveError, match="is no image id") as caught:
                read(path)
            assert len(str(caught.value)) < 500
        assert layout.image_ids(path) == {"ulm/0001"}

    def test_in_a_waiting_image(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a", samples(1))
        part = layout.part(path, "1-of-2")
        part.mkdir()
        data = shard.image_file(shard.code_image(Codec.ZSTD, "../x", *smooth(0, 3, 4, 5)))
        layout.waiting_image(part, shard.sha256(data)).write_bytes(data)
        with pytest.raises(ArchiveError, match="is no image id"):
            CertaintyReader(path)
        assert layout.image_ids(path) == {"ulm/0000"}

    def test_in_a_shard_without_manifest(self, tmp_path: Path) -> None:
        """The next export would read it; it is set aside."""
        path = write(tmp_path / "a", samples(1))
        data = (path / SHARD).read_bytes()
        (path / SHARD).write_bytes(data.replace(b"ulm/0000", b"../../xx"))
        layout.manifest_path(path / SHARD).unlink()
        with CertaintyWriter(path, classes=CLASSES, attributes=ATTRIBUTES) as writer:
            assert writer.done == set()
        assert (path / f"{SHARD}.damaged").exists()


class TestSizes:
    def test_more_pixels_than_any_image(self, tmp_path: Path) -> None:
        """30,000 x 30,000 in a few bytes, in manifest and shard: refused before memory is taken."""
        path = write(tmp_path / "a", samples(1))
        name = layout.manifest_path(path / SHARD)
        images = json.loads(name.read_bytes())["images"]
        rewrite(name, images={id: [30_000, 30_000, entry[2]] for id, entry in images.items()})
        assert verify(path).ok == 0
        with CertaintyReader(path) as reader:
            assert reader.ids == ()
        with pytest.raises(ValueError, match="archives hold up to"):
            ImageEntry(30_000, 30_000, "0")

    def test_the_writer_says_so_too(self, tmp_path: Path) -> None:
        label = np.broadcast_to(np.zeros((1, 1), np.uint8), (1, MAX_PIXELS + 1))
        certainty = np.broadcast_to(label, (3, *label.shape))
        with CertaintyWriter(tmp_path / "a", classes=CLASSES) as writer:
            with pytest.raises(ArchiveError, match=r"178,956,971 pixels, but .* cut it into tiles"):
                writer.write("x", label, certainty)

    def test_rows_longer_than_the_tables_of_softmax(self) -> None:
        model, (stream,) = softmax_planes.encode(smooth(0, 1, 20, 30)[1])
        out = np.empty((1, softmax_planes.MAX_WIDTH + 1), np.uint8)
        with pytest.raises(ValueError, match="rows of 65,536 pixels, more than 65,535"):
            softmax_planes.decode(stream, softmax_planes.read_model(model), out)

    def test_a_few_bytes_of_jpegls_for_many_pixels(self) -> None:
        """Its header fits, the decoder would be busy for seconds."""
        stream = bytes(CODECS[Codec.JPEGLS].pack(np.zeros((1, 10_000, 9000), np.uint8)).chunks[0].data)
        out = np.empty((10_000, 9000), np.uint8)
        CODECS[Codec.JPEGLS].unpacker(out)(Chunk(stream, False, crc32(stream)), out)
        for short in (stream[:60] + b"\xff\xd9", stream[:-2]):
            began = time.process_time()
            with pytest.raises(ValueError, match="cut short"):
                CODECS[Codec.JPEGLS].unpacker(out)(Chunk(short, False, 0), out)
            assert time.process_time() - began < 0.5


class TestDescriptions:
    @pytest.mark.parametrize("name", [7, None, ["road"], "x" * 20_000, "a\0b", "\ud800"])
    def test_names_of_classes(self, tmp_path: Path, name: object) -> None:
        path = write(tmp_path / "a", samples(1))
        if name != "\ud800":
            rewrite(path / "archive.json", classes=["road", "car", name])
            with pytest.raises(ArchiveError, match="the name of class 2") as caught:
                read_info(path)
            assert len(str(caught.value)) < 400
        with pytest.raises(ArchiveError, match="name of class 0"):
            CertaintyWriter(tmp_path / "b", classes=[name])  # type: ignore[list-item]

    @pytest.mark.parametrize(
        "content", [b"[" * 200_000, b'{"version":' + b"9" * 5000 + b"}", b"\0" * 100, b"{}"]
    )
    @pytest.mark.parametrize("name", ["archive.json", "shard-0-of-1-00000.json"])
    def test_json(self, tmp_path: Path, name: str, content: bytes) -> None:
        path = write(tmp_path / "a", samples(1))
        (path / name).write_bytes(content)
        assert ends_well(path) in ("refused", "damage")

    @pytest.mark.parametrize("name", ["archive.json", "shard-0-of-1-00000.json", SHARD])
    def test_pipes_and_devices(self, tmp_path: Path, name: str) -> None:
        path = write(tmp_path / "a", samples(1))
        for make in (os.mkfifo, lambda file: os.symlink("/dev/zero", file)):
            (path / name).unlink()
            make(path / name)
            assert ends_well(path) in ("refused", "damage")
            layout.image_ids(path)


class TestStructure:
    def test_checksum(self) -> None:
        """The examples that its author gives."""
        assert lookup3(b"") == 0xDEADBEEF
        assert lookup3(b"Four score and seven years ago") == 0x17770551

    def test_many_sizes_and_many_images(self, tmp_path: Path) -> None:
        """Links in a heap, and lists of chunks in pages."""
        sizes = {f"x{i:03d}": smooth(i, 3, 4, 5 + i) for i in range(300)}
        assert_holds(write(tmp_path / "sizes", sizes, shard_size=300, codec=Codec.ZSTD), sizes)
        many = {f"x{i:04d}": smooth(i, 3, 4, 5) for i in range(1100)}
        assert_holds(write(tmp_path / "many", many, shard_size=2000, codec=Codec.ZSTD), many)

    @pytest.mark.parametrize("kind", ["soft", "external", "virtual", "elsewhere"])
    def test_links_to_elsewhere(self, tmp_path: Path, kind: str) -> None:
        path = write(tmp_path / "a", samples(1), codec=Codec.GZIP)
        with h5py.File(path / SHARD, "r+", libver=("v110", "v110")) as file:
            group = next(iter(file.values()))
            shape = group["label"].shape
            del group["label"]
            if kind == "soft":
                group["label"] = h5py.SoftLink("/x")
            elif kind == "external":
                group["label"] = h5py.ExternalLink("/etc/passwd", "/x")
            elif kind == "elsewhere":
                group.create_dataset("label", shape, "u1", external=[("/etc/passwd", 0, 10_000)])
            else:
                virtual = h5py.VirtualLayout(shape, "u1")
                virtual[:] = h5py.VirtualSource("/etc/passwd", "x", shape)
                group.create_virtual_dataset("label", virtual)
        fit(path / SHARD, (path / SHARD).read_bytes())
        assert verify(path).ok == 0
        with CertaintyReader(path) as reader, pytest.raises(ArchiveError, match="cannot be read"):
            reader.labels("ulm/0000")

    def test_never_the_library(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write(tmp_path / "a", samples(2))
        monkeypatch.setattr(h5py, "File", None)
        assert_holds(path, samples(2))
        assert verify(path).intact
        with (path / SHARD).open("rb") as file:
            assert len(hdf5.File(file).group(48).members) == 2


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["NUMBA_DISABLE_JIT=1", "NUMBA_NUM_THREADS=0", "NUMBA_NUM_THREADS=x"])
def test_settings_of_numba_are_no_damage(tmp_path: Path, setting: str) -> None:
    path = write(tmp_path / "a", samples(1))
    name, value = setting.split("=")
    command = [sys.executable, "-m", "endauda_cli", "inspect", str(path), "--verify"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, name: value})
    assert done.returncode == 0 and "all 1 images are intact" in done.stdout + done.stderr, done


@pytest.mark.parametrize(
    "error", [MemoryError(), ImportError("numba"), RuntimeError("LLVM"), OSError(24, "x")]
)
def test_only_damage_is_called_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = write(tmp_path / "a", samples(1))

    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(reader, "decode_planes", fails)
    with CertaintyReader(path) as archive, pytest.raises(ArchiveError, match="may be whole") as caught:
        archive.certainty("ulm/0000")
    assert "delete" not in str(caught.value)


if __name__ == "__main__":
    main(*sys.argv[1:])
