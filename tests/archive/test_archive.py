"""Archives: what goes in comes out, and what does not fit is refused."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from endauda_cli.archive import CODECS, CertaintyReader, CertaintyWriter, manifest, stored_bytes
from endauda_cli.archive.codecs import FilterCodec
from endauda_cli.archive.codecs.zstd import ZSTD
from endauda_cli.errors import ArchiveError
from endauda_cli.types import Codec
from tests.support.archive_samples import (
    ATTRIBUTES,
    CLASSES,
    Image,
    assert_holds,
    noise,
    same,
    samples,
    smooth,
    write,
)
from tests.support.processes import running

FORK = """
import os, sys, threading
from endauda_cli.archive import CertaintyReader

def contents(reader):
    return [(reader.labels(id).tobytes(), reader.certainty(id).tobytes()) for id in reader.ids]

with CertaintyReader(sys.argv[1]) as other:
    there = contents(other)
held, over = threading.Event(), threading.Event()
with CertaintyReader(sys.argv[1]) as reader:
    reader.labels("ulm/0000")

    def hold():
        with reader._files._lock:
            held.set()
            over.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        os._exit(0 if contents(reader) == there else 1)
    print(os.waitpid(child, 0)[1])
    over.set()
    thread.join()
    print(contents(reader) == there)
"""
SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


class TestRoundTrip:
    @pytest.mark.slow
    @settings(max_examples=80, deadline=None)
    @given(
        classes=st.integers(2, 64),
        sizes=st.lists(SIZES, min_size=1, max_size=4),
        codec=st.sampled_from(Codec),
        make=st.sampled_from((noise, smooth)),
        shard_size=st.integers(1, 3),
    )
    def test_any_classes_sizes_codec(
        self, classes: int, sizes: list[tuple[int, int]], codec: Codec, make: Any, shard_size: int
    ) -> None:
        images = {f"{i}": make(i, classes, *size) for i, size in enumerate(sizes)}
        names = [f"class {c}" for c in range(classes)]
        with tempfile.TemporaryDirectory() as folder:
            path = write(Path(folder, "a"), images, classes=names, codec=codec, shard_size=shard_size)
            assert_holds(path, images)

    @pytest.mark.parametrize("codec", Codec)
    @pytest.mark.parametrize(
        "size", [(1, 1), (1, 2), (2, 7), (3, 5), (4, 4), (1, 300), (300, 1), (2, 65_536)]
    )
    def test_odd_sizes(self, tmp_path: Path, codec: Codec, size: tuple[int, int], capfd: Any) -> None:
        images = {"smooth": smooth(0, 3, *size), "noise": noise(0, 3, *size)}
        assert_holds(write(tmp_path / "a", images, codec=codec), images)
        assert capfd.readouterr().err == ""  # the JPEG-LS filter prints what it cannot do

    def test_extremes(self, tmp_path: Path) -> None:
        height, width = 30, 50
        images = {
            "nothing": (np.full((height, width), 255, np.uint8), np.zeros((3, height, width), np.uint8)),
            "sure": (np.zeros((height, width), np.uint8), np.full((3, height, width), 100, np.uint8)),
        }
        assert_holds(write(tmp_path / "a", images), images)

    def test_arrays_in_any_memory_order(self, tmp_path: Path) -> None:
        label, certainty = smooth(1, 3, 20, 30)
        other_order = np.ascontiguousarray(certainty.transpose(1, 2, 0)).transpose(2, 0, 1)
        write(tmp_path / "a", {"x": (np.asfortranarray(label), other_order)})
        assert_holds(tmp_path / "a", {"x": (label, certainty)})

    def test_ids_are_any_printable_text(self, tmp_path: Path) -> None:
        ids = ["a/b", "a%2Fb", "a", "Zürich 01", "..x", "%", "b/..x"]
        images = {id: smooth(i, 3, 8, 9) for i, id in enumerate(ids)}
        assert_holds(write(tmp_path / "a", images), images)

    def test_an_archive_without_images(self, tmp_path: Path) -> None:
        with CertaintyReader(write(tmp_path / "a", {})) as reader:
            assert reader.ids == () and len(reader) == 0


class TestReader:
    @pytest.fixture()
    def images(self) -> dict[str, Image]:
        return samples(7)

    @pytest.fixture()
    def path(self, tmp_path: Path, images: dict[str, Image]) -> Path:
        return write(tmp_path / "a", images, shard_size=2)

    def test_tells_what_it_holds(self, path: Path, images: dict[str, Image]) -> None:
        with CertaintyReader(path) as reader:
            assert reader.ids == tuple(sorted(images))
            assert len(reader) == 7 and "ulm/0003" in reader and "3" not in reader and 3 not in reader
            assert reader.classes == CLASSES
            assert reader.attributes["teacher"] == "dacs" and reader.attributes["codec"] == "softmax"
            assert {"scale", "created_by"} <= reader.attributes.keys()
            assert reader.size("ulm/0004") == images["ulm/0004"][0].shape

    def test_gives_planes_in_the_order_asked_for(self, path: Path, images: dict[str, Image]) -> None:
        with CertaintyReader(path) as reader:
            for id, (label, certainty) in images.items():
                assert np.array_equal(reader.labels(id), label)
                assert np.array_equal(reader.plane(id, 1), certainty[1])
                assert np.array_equal(reader.planes(id, [2, 0, 2]), certainty[[2, 0, 2]])
                assert reader.planes(id, []).shape == (0, *label.shape)

    def test_refuses_unknown_images_and_classes(self, path: Path) -> None:
        with CertaintyReader(path) as reader:
            with pytest.raises(ArchiveError, match="no image 'nowhere' among its 7 images"):
                reader.size("nowhere")
            for c in (-1, 3):
                with pytest.raises(ArchiveError, match=f"no class {c}"):
                    reader.plane("ulm/0000", c)

    def test_digest_depends_on_the_content_only(self, path: Path, tmp_path: Path) -> None:
        other = samples(7)
        other["ulm/0001"][1][2, 3, 4] ^= 1
        write(tmp_path / "b", other, codec=Codec.ZSTD, shard_size=5)
        with CertaintyReader(path) as a, CertaintyReader(tmp_path / "b") as b:
            assert [id for id in a.ids if a.digest(id) != b.digest(id)] == ["ulm/0001"]

    def test_reads_on_after_close(self, path: Path, images: dict[str, Image]) -> None:
        reader = CertaintyReader(path)
        for _ in range(2):
            assert same(reader, "ulm/0000", images["ulm/0000"])
            reader.close()

    def test_keeps_few_files_open(self, path: Path, images: dict[str, Image], monkeypatch: Any) -> None:
        monkeypatch.setattr("endauda_cli.archive.reader._OPEN_FILES", 2)
        with CertaintyReader(path) as reader:
            assert all(same(reader, id, images[id]) for id in reader.ids)
            assert len(reader._files._files) == 2

    def test_threads(self, path: Path, images: dict[str, Image], monkeypatch: Any) -> None:
        monkeypatch.setattr("endauda_cli.archive.reader._OPEN_FILES", 1)
        with CertaintyReader(path) as reader, ThreadPoolExecutor(4) as pool:
            assert all(pool.map(lambda id: same(reader, id, images[id]), reader.ids * 20))

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_fork_while_a_thread_holds_the_lock(self, path: Path, images: dict[str, Image]) -> None:
        """In a process of its own: this one may have threads that hold whatever they please."""
        with running(sys.executable, "-c", FORK, path) as process:
            out, err = process.communicate(timeout=120)
        assert (process.returncode, out) == (0, "0\nTrue\n"), err
        with CertaintyReader(path) as reader:
            assert all(same(reader, id, images[id]) for id in reader.ids)

    def test_pickles(self, path: Path, images: dict[str, Image]) -> None:
        with CertaintyReader(path) as reader:
            reader.labels("ulm/0000")
            with pickle.loads(pickle.dumps(reader)) as copy:
                assert all(same(copy, id, images[id]) for id in reader.ids)

    def test_refuses_what_is_no_archive(self, tmp_path: Path) -> None:
        with pytest.raises(ArchiveError, match="no such folder"):
            CertaintyReader(tmp_path / "nowhere")
        with pytest.raises(ArchiveError, match="not a certainty archive"):
            CertaintyReader(tmp_path)
        (tmp_path / "archive.json").write_text('{"name": "something else"}')
        with pytest.raises(ArchiveError, match="not a file of a certainty archive"):
            CertaintyReader(tmp_path)

    def test_refuses_another_version(self, tmp_path: Path, monkeypatch: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(manifest, "FORMAT_VERSION", 9)
            patch.setattr(manifest, "READABLE", (9,))
            write(tmp_path / "a", {})
        with pytest.raises(ArchiveError, match="format version 9, but this endauda reads versions 2 to 3"):
            CertaintyReader(tmp_path / "a")


class TestWriter:
    def test_goes_on(self, tmp_path: Path) -> None:
        images = samples(9)
        ids = list(images)
        write(tmp_path / "a", {id: images[id] for id in ids[:4]}, shard_size=3)
        with CertaintyWriter(tmp_path / "a", classes=CLASSES, attributes=ATTRIBUTES, codec="gzip") as writer:
            assert writer.done == set(ids[:4])
            for id in ids[4:]:
                writer.write(id, *images[id])
            assert writer.done == set(ids)
        assert_holds(tmp_path / "a", images)

    def test_what_is_written_is_seen_at_once(self, tmp_path: Path) -> None:
        images = samples(5)
        with CertaintyWriter(tmp_path / "a", classes=CLASSES, shard_size=2) as writer:
            first = CertaintyReader(tmp_path / "a")
            for count, (id, image) in enumerate(images.items(), start=1):
                writer.write(id, *image)
                assert_holds(tmp_path / "a", images, ids=list(images)[:count])
        assert first.ids == ()

    def test_a_reader_follows_an_image_into_its_shard(self, tmp_path: Path) -> None:
        images = samples(2)
        with CertaintyWriter(tmp_path / "a", classes=CLASSES) as writer:
            for id, image in images.items():
                writer.write(id, *image)
            reader = CertaintyReader(tmp_path / "a")
        with reader:
            assert all(same(reader, id, images[id]) for id in images)

    def test_an_exception_keeps_what_is_done(self, tmp_path: Path) -> None:
        images = samples(4)
        ids = list(images)
        with (
            pytest.raises(RuntimeError, match="the model crashed"),
            CertaintyWriter(tmp_path / "a", classes=CLASSES, shard_size=3) as writer,
        ):
            for id in ids:
                writer.write(id, *images[id])
            raise RuntimeError("the model crashed")
        assert_holds(tmp_path / "a", images)
        with CertaintyWriter(tmp_path / "a", classes=CLASSES) as writer:
            assert writer.done == set(ids)
        assert not list((tmp_path / "a").glob("*.part"))
        assert_holds(tmp_path / "a", images)

    def test_a_shard_is_bounded_in_bytes_too(self, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.setattr("endauda_cli.archive.writer._SHARD_BYTES", 1)
        write(tmp_path / "a", samples(3))
        assert len(list((tmp_path / "a").glob("shard-*.h5"))) == 3

    @pytest.mark.parametrize(
        ("label", "certainty", "message"),
        [
            (np.zeros((4, 5), int), np.zeros((3, 4, 5), np.uint8), "the label map is int64; expected uint8"),
            (np.zeros((4, 5), np.uint8), np.zeros((3, 4, 5)), "the certainty is float64; expected uint8"),
            (np.zeros((1, 4, 5), np.uint8), np.zeros((3, 4, 5), np.uint8), r"expected \(H, W\)"),
            (np.zeros((0, 5), np.uint8), np.zeros((3, 0, 5), np.uint8), r"expected \(H, W\)"),
            (
                np.zeros((4, 5), np.uint8),
                np.zeros((4, 5, 3), np.uint8),
                r"expected \(C, H, W\) = \(3, 4, 5\)",
            ),
            (np.zeros((4, 5), np.uint8), np.zeros((2, 4, 5), np.uint8), "for 3 classes"),
            (
                np.zeros((4, 5), np.uint8),
                np.full((3, 4, 5), 101, np.uint8),
                "goes up to 101; expected percent",
            ),
            (
                np.full((4, 5), 3, np.uint8),
                np.zeros((3, 4, 5), np.uint8),
                "holds 3; expected train ids below 3",
            ),
        ],
    )
    def test_refuses_arrays_that_do_not_fit(
        self, tmp_path: Path, label: Any, certainty: Any, message: str
    ) -> None:
        with CertaintyWriter(tmp_path / "a", classes=CLASSES) as writer:
            with pytest.raises(ArchiveError, match=f"image 'x'.*{message}"):
                writer.write("x", label, certainty)
            writer.write("x", *smooth(0, 3, 4, 5))
        assert_holds(tmp_path / "a", {"x": smooth(0, 3, 4, 5)})

    def test_refuses_images_once_it_is_closed(self, tmp_path: Path) -> None:
        """Its tag may be another process's by now."""
        writer = CertaintyWriter(tmp_path / "a", classes=CLASSES)
        writer.close()
        with pytest.raises(ValueError, match="was closed; open another"):
            writer.write("x", *smooth(0, 3, 4, 5))

    def test_refuses_ids(self, tmp_path: Path) -> None:
        image = smooth(0, 3, 4, 5)
        with CertaintyWriter(tmp_path / "a", classes=CLASSES) as writer:
            writer.write("x", *image)
            with pytest.raises(ArchiveError, match="'x' is already there"):
                writer.write("x", *image)
            for id in ("", ".", "..", "a\0b", "a\nb", "\ud800", "x" * 1025):
                with pytest.raises(ArchiveError, match="is no image id"):
                    writer.write(id, *image)

    def test_refuses_another_teachers_archive(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a", samples(1))
        for classes, message in (
            (("road", "bus", "sky"), "its class 1 is 'car', not 'bus'"),
            (("road", "car"), "it holds 3 classes, not 2"),
        ):
            with pytest.raises(ArchiveError, match=message):
                CertaintyWriter(path, classes=classes, attributes=ATTRIBUTES)
        for attributes, message in (
            (
                ATTRIBUTES | {"weights": "sha256:34cd"},
                "weights 'sha256:12ab', but this run has 'sha256:34cd'",
            ),
            ({"teacher": "dacs"}, "weights 'sha256:12ab', but this run has None"),
            (ATTRIBUTES | {"size": "1024x512"}, "size None, but this run has '1024x512'"),
        ):
            with pytest.raises(ArchiveError, match=message):
                CertaintyWriter(path, classes=CLASSES, attributes=attributes)
        with CertaintyWriter(path, classes=CLASSES, attributes=ATTRIBUTES) as writer:
            assert writer.done == {"ulm/0000"}

    def test_attributes_are_compared_as_json(self, tmp_path: Path) -> None:
        for _ in range(2):
            with CertaintyWriter(tmp_path / "a", classes=CLASSES, attributes={"mean": (0.5, 1.25)}):
                pass

    def test_refuses_arguments_that_make_no_sense(self, tmp_path: Path) -> None:
        arguments: list[dict[str, Any]] = [
            {"tag": "a/b"},
            {"shard_size": 0},
            {"classes": ()},
            {"codec": "jpeg"},
        ]
        for changed in arguments:
            with pytest.raises(ValueError):
                CertaintyWriter(tmp_path / "a", **{"classes": CLASSES, **changed})
        assert not (tmp_path / "a").exists()

    def test_refuses_a_folder_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "a").touch()
        with pytest.raises(ArchiveError, match="cannot make an archive here"):
            CertaintyWriter(tmp_path / "a", classes=CLASSES)

    def test_one_writer_per_tag(self, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.setattr("endauda_cli.archive.writer._LOCK_WAIT_S", 0.1)
        with CertaintyWriter(tmp_path / "a", classes=CLASSES, tag="0-of-2") as first:
            first.write("x", *smooth(0, 3, 4, 5))
            with pytest.raises(ArchiveError, match="another process is writing under the tag '0-of-2'"):
                CertaintyWriter(tmp_path / "a", classes=CLASSES, tag="0-of-2")
            with CertaintyWriter(tmp_path / "a", classes=CLASSES, tag="1-of-2") as second:
                assert second.done == {"x"}  # and it leaves the live writer's part alone
                second.write("y", *smooth(1, 3, 4, 5))
            first.write("z", *smooth(2, 3, 4, 5))
        assert_holds(tmp_path / "a", {id: smooth(i, 3, 4, 5) for i, id in enumerate("xyz")})


class TestFormat:
    def test_codecs_are_those_of_the_command_line(self) -> None:
        assert CODECS.keys() == set(Codec) - {Codec.GRID}
        with pytest.raises(ValueError, match="no filter 9999"):
            FilterCodec(ZSTD.by._replace(id=9999))

    @pytest.mark.parametrize("codec", [codec for codec in CODECS if codec != Codec.SOFTMAX])
    def test_plain_h5py_reads_it(self, tmp_path: Path, codec: Codec) -> None:
        images = {f"ulm/{i}": smooth(i, 3, 40, 60) for i in range(3)}
        path = write(tmp_path / "a", images, codec=codec) / "shard-0-of-1-00000.h5"
        (tmp_path / "ulm").mkdir()
        for id, (label, certainty) in images.items():
            np.save(tmp_path / f"{id} label.npy", label)
            np.save(tmp_path / f"{id} certainty.npy", certainty)
        program = f"""
import h5py, numpy as np
if {codec != Codec.GZIP}:
    import hdf5plugin
expected = lambda name: np.load({str(tmp_path)!r} + "/" + name + ".npy")
with h5py.File({str(path)!r}) as file:
    classes = list(file.attrs["classes"])
    assert classes == ["road", "car", "sky"]
    group = file["40x60-{codec}"]
    assert group["certainty"].chunks == (1, 40, 60)
    for i, id in enumerate(group["id"].asstr()):
        assert np.array_equal(group["label"][i], expected(id + " label"))
        certainty = group["certainty"][i * len(classes) : (i + 1) * len(classes)]
        if {codec == Codec.DELTA_ZSTD}:  # two lines that such a program needs
            certainty = np.add.accumulate(certainty, axis=1, dtype=np.uint8)
            certainty = np.add.accumulate(certainty, axis=2, dtype=np.uint8)
        assert np.array_equal(certainty, expected(id + " certainty"))
"""
        done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
        assert done.stderr == ""

    def test_hdf5_is_honest_about_our_own_codec(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a", {"x": smooth(0, 3, 40, 60)}, codec=Codec.SOFTMAX)
        with h5py.File(path / "shard-0-of-1-00000.h5") as file, pytest.raises(OSError):
            file["40x60-softmax/certainty"][0]

    @pytest.mark.parametrize("codec", CODECS)
    def test_the_codec_asked_for_is_used(self, tmp_path: Path, codec: Codec) -> None:
        path = write(tmp_path / "a", {"x": smooth(0, 3, 40, 60)}, codec=codec)
        with h5py.File(path / "shard-0-of-1-00000.h5") as file:
            properties = file[f"40x60-{codec}/certainty"].id.get_create_plist()
            assert properties.get_filter(0)[0] == CODECS[codec].filter[0]

    def test_a_rerun_with_another_codec(self, tmp_path: Path) -> None:
        images = samples(4)
        for codec, ids in ((Codec.ZSTD, list(images)[:2]), (Codec.SOFTMAX, list(images))):
            with CertaintyWriter(
                tmp_path / "a", classes=CLASSES, attributes=ATTRIBUTES, codec=codec
            ) as writer:
                for id in ids:
                    if id not in writer.done:
                        writer.write(id, *images[id])
        with CertaintyReader(tmp_path / "a") as reader:
            assert [reader.codec(id) for id in reader.ids] == ["zstd", "zstd", "softmax", "softmax"]
        assert_holds(tmp_path / "a", images)

    def test_refuses_a_plane_that_was_never_written(self, tmp_path: Path) -> None:
        """HDF5 would read it as zeros."""
        path = write(tmp_path / "a", samples(2), codec=Codec.GZIP)
        file_path, json_path = path / "shard-0-of-1-00000.h5", path / "shard-0-of-1-00000.json"
        with h5py.File(file_path, "r+", libver=("v110", "v110")) as file:
            for group in file.values():
                shape, chunks = group["certainty"].shape, group["certainty"].chunks
                del group["certainty"]
                group.create_dataset("certainty", shape, np.uint8, chunks=chunks, compression="gzip")
        size = file_path.stat().st_size
        manifest.write_manifest(json_path, replace(manifest.read_manifest(json_path), bytes=size))
        with CertaintyReader(path) as reader:
            with pytest.raises(ArchiveError, match="'ulm/0001' cannot be read: a plane was never written"):
                reader.labels("ulm/0001")

    def test_refuses_images_under_another_name(self, tmp_path: Path) -> None:
        """Names are no part of a chunk's checksum, but of the manifest's."""
        path = write(tmp_path / "a", {"a1": smooth(1, 3, 8, 9), "a2": smooth(2, 3, 8, 9)})
        file_path = path / "shard-0-of-1-00000.h5"
        data = file_path.read_bytes()
        assert data.count(b"a1a2") == 1
        for names in (b"a2a2", b"a2a1"):
            file_path.write_bytes(data.replace(b"a1a2", names))
            with CertaintyReader(path) as reader:
                for id in reader.ids:
                    with pytest.raises(ArchiveError, match=r"there twice|another size or content"):
                        reader.labels(id)

    def test_does_not_load_torch(self) -> None:
        program = "import sys, endauda_cli.archive; sys.exit('torch' in sys.modules)"
        subprocess.run([sys.executable, "-c", program], check=True)


def test_size_of_an_archive_whose_files_are_moved(tmp_path: Path) -> None:
    """Another writer renames files and removes folders while they are counted."""
    path = write(tmp_path / "a", samples(2))
    whole = sum(file.stat().st_size for file in path.iterdir())
    assert stored_bytes(path) == whole
    stop = threading.Event()

    def move() -> None:
        while not stop.is_set():
            part = path / "1-of-2.part"
            part.mkdir()
            for i in range(20):
                (part / f"{i}.tmp").touch()
                (part / f"{i}.tmp").rename(path / f"{i}.h5")
            for i in range(20):
                (path / f"{i}.h5").unlink()
            part.rmdir()

    with ThreadPoolExecutor(1) as pool:
        moving = pool.submit(move)
        try:
            assert {stored_bytes(path) for _ in range(1000)} == {whole}
        finally:
            stop.set()
        moving.result()
