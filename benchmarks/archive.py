"""Size and speed of certainty archives beside ``.npy``, ``.npz`` and xz, in one run; with --memory, peak memory.

    python benchmarks/archive.py                                     # generated maps, 4 teachers
    python ../shared/realdata/unpack.py OUT && python benchmarks/archive.py OUT
    python benchmarks/archive.py OUT/dabnet OUT/espnet --codecs jpegls zstd --json
    python benchmarks/archive.py --memory                            # 50 and 500 generated images

FOLDER is a teacher's outputs as peers lay them out, ``<stem>.png`` (train ids) and ``<stem>.npy`` or ``.npz``
((H, W, C) uint8, percent), or a folder of such folders.

What is timed, for every format and in turn within each repeat: writing all maps; reading all their planes;
and "what PLF needs", of each image one plane per class from the teacher that owns it (class c is owned by
teacher c modulo T), for which ``.npy`` and ``.npz`` must be loaded whole from every teacher. Speeds are raw
certainty bytes, of all teachers' maps, per second: MB = 10^6 bytes; the best of the repeats. All files are
in the page cache; every format gets its arrays in memory in its own axis order. An archive also stores the
label maps and checksums, waits for the disk at the end of a shard, and checks what it reads; the others do
not. The process is kept on --cores cores.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import lzma
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import h5py
import hdf5plugin
import maps
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from endauda_cli.archive import CODECS, CertaintyReader, CertaintyWriter, CodedImage
from endauda_cli.threads import ordered_map

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

OPERATIONS = {"write": "Writing", "read": "Reading all planes", "plf": "Reading what PLF needs"}
GENERATED_TEACHERS = 4
MEMORY_MAPS = 2
"""Different maps per teacher in the memory runs; what is in them does not matter there."""


# Teachers' outputs


@dataclass(frozen=True)
class Teacher:
    """A folder of outputs in the peers' layout."""

    name: str
    folder: Path

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Stems with both files."""
        return tuple(sorted(p.stem for p in self.folder.glob("*.png") if self._certainty_file(p.stem)))

    def label(self, id: str) -> Bytes:
        return np.asarray(Image.open(self.folder / f"{id}.png"))

    def certainty(self, id: str) -> Bytes:
        """(H, W, C)."""
        path = self._certainty_file(id)
        assert path is not None
        array = load_npz(path) if path.suffix == ".npz" else np.load(path)
        if array.dtype != np.uint8 or array.ndim != 3:
            raise SystemExit(f"{path}: {array.dtype} of shape {array.shape}; expected uint8 (H, W, C)")
        return array

    def _certainty_file(self, id: str) -> Path | None:
        files = (self.folder / f"{id}{suffix}" for suffix in (".npy", ".npz"))
        return next((file for file in files if file.exists()), None)


def find_teachers(folders: Sequence[Path]) -> list[Teacher]:
    """The folders themselves, or the folders in them, in which outputs lie."""
    found = []
    for folder in folders:
        candidates = [folder, *sorted(path for path in folder.glob("*") if path.is_dir())]
        teachers = [t for path in candidates if (t := Teacher(path.resolve().name, path)).ids]
        if not teachers:
            raise SystemExit(f"{folder}: no <stem>.png with <stem>.npy or <stem>.npz in it")
        found += teachers
    if len({teacher.name for teacher in found}) < len(found):
        raise SystemExit(f"two teachers of one name: {' '.join(sorted(t.name for t in found))}")
    return found


def generate_teachers(
    root: Path, shape: tuple[int, int, int], images: int, seed: int, cores: int
) -> list[Teacher]:
    """Generated outputs of several teachers, written as a peer would."""
    teachers = [Teacher(f"generated{t}", root / f"generated{t}") for t in range(GENERATED_TEACHERS)]

    def make(job: tuple[int, int]) -> None:
        t, i = job
        label, certainty = maps.generate(*shape, image=i, teacher=t, seed=seed)
        np.save(teachers[t].folder / f"{i:06}.npy", certainty.transpose(1, 2, 0))
        Image.fromarray(label).save(teachers[t].folder / f"{i:06}.png")

    for teacher in teachers:
        teacher.folder.mkdir(parents=True)
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(make, [(t, i) for t in range(len(teachers)) for i in range(images)]))
    return teachers


# Formats


class Opened(Protocol):
    """A format's outputs of one teacher, open for reading. Both calls leave arrays of bytes in memory."""

    def all_planes(self, id: str) -> Bytes: ...

    def planes(self, id: str, classes: range) -> Bytes: ...


class Format(Protocol):
    """A way to keep one teacher's certainties in a folder."""

    @property
    def name(self) -> str: ...

    def prepare(self, certainty: Bytes) -> Bytes:
        """(H, W, C) in the axis order that ``write`` takes."""

    def write(self, folder: Path, images: Sequence[tuple[str, Bytes, Bytes]], pool: Executor | None) -> None:
        """Stores (id, label, prepared certainty)."""

    def open(self, folder: Path) -> contextlib.AbstractContextManager[Opened]: ...


def load_npz(path: Path) -> Bytes:
    with np.load(path) as arrays:
        array: Bytes = arrays[arrays.files[0]]
    return array


@dataclass(frozen=True)
class OpenedArrays:
    folder: Path
    suffix: str

    def all_planes(self, id: str) -> Bytes:
        path = self.folder / f"{id}{self.suffix}"
        array: Bytes = load_npz(path) if self.suffix == ".npz" else np.load(path)
        return array

    def planes(self, id: str, classes: range) -> Bytes:
        return self.all_planes(id)[..., classes.start :: classes.step]


@dataclass(frozen=True)
class Arrays:
    """One file of (H, W, C) per image, by numpy."""

    name: str

    def prepare(self, certainty: Bytes) -> Bytes:
        return np.ascontiguousarray(certainty)

    def write(self, folder: Path, images: Sequence[tuple[str, Bytes, Bytes]], pool: Executor | None) -> None:
        def one(image: tuple[str, Bytes, Bytes]) -> None:
            id, _, certainty = image
            save = np.savez_compressed if self.name == ".npz" else np.save
            save(folder / f"{id}{self.name}", certainty)

        each(pool, one, images)

    def open(self, folder: Path) -> contextlib.AbstractContextManager[OpenedArrays]:
        return contextlib.nullcontext(OpenedArrays(folder, self.name))


@dataclass(frozen=True)
class OpenedArchive:
    reader: CertaintyReader

    def all_planes(self, id: str) -> Bytes:
        return self.reader.certainty(id)

    def planes(self, id: str, classes: range) -> Bytes:
        return self.reader.planes(id, classes)


@dataclass(frozen=True)
class Archive:
    """A certainty archive of one codec."""

    codec: str

    @property
    def name(self) -> str:
        return f"archive, {self.codec}"

    def prepare(self, certainty: Bytes) -> Bytes:
        return np.ascontiguousarray(certainty.transpose(2, 0, 1))

    def write(self, folder: Path, images: Sequence[tuple[str, Bytes, Bytes]], pool: Executor | None) -> None:
        classes = [f"class {c}" for c in range(len(images[0][2]))]
        with CertaintyWriter(folder, classes=classes, codec=self.codec) as writer:
            if pool is None:
                for image in images:
                    writer.write(*image)
            else:  # as ``export-teacher`` does
                for coded in ordered_map(pool, lambda image: writer.code(*image), images, ahead=4):
                    writer.store(coded)

    @contextlib.contextmanager
    def open(self, folder: Path) -> Iterator[OpenedArchive]:
        with CertaintyReader(folder) as reader:
            yield OpenedArchive(reader)


def each(pool: Executor | None, action: Callable[..., None], items: Iterable[Any]) -> None:
    """Do it for every item, in a plain loop or on the pool's threads."""
    for _ in map(action, items) if pool is None else pool.map(action, items):
        pass


# Measuring


class Bench:
    """Writes and reads the teachers' maps in every format, and keeps the seconds."""

    def __init__(self, teachers: list[Teacher], formats: list[Format], root: Path, cores: int) -> None:
        self.teachers = teachers
        self.formats = formats
        self.root = root
        self.pool = ThreadPoolExecutor(cores)
        self.seconds: dict[tuple[str, str, bool], list[float]] = defaultdict(list)
        """(operation, format, whether on the pool) -> one figure per repeat."""
        self.sizes: dict[str, int] = {}
        self.labels = 0
        self.maps = sum(len(teacher.ids) for teacher in teachers)
        shapes = [teacher.certainty(id).shape for teacher in teachers for id in teacher.ids]
        self.raw = sum(int(np.prod(shape)) for shape in shapes)
        self.classes = shapes[0][2]
        if {shape[2] for shape in shapes} != {self.classes}:
            raise SystemExit("these teachers do not have the same number of classes")
        self.shared = sorted(set.intersection(*(set(teacher.ids) for teacher in teachers)))
        if not self.shared:
            raise SystemExit("there is no image that all of these teachers have")
        self.raw_shared = sum(
            int(np.prod(shape))
            for (id, shape) in zip((id for t in teachers for id in t.ids), shapes, strict=True)
            if id in set(self.shared)
        )

    def repeat(self, number: int, say: Callable[[str], None]) -> None:
        """One figure of everything; the formats take turns in being first."""
        turn = number % len(self.formats)
        order = self.formats[turn:] + self.formats[:turn]
        for format in order:
            for pool in (None, self.pool):
                say(f"repeat {number + 1}: write {format.name}")
                self._write(format, pool)
            if number == 0:
                say(f"check {format.name}")
                self._check(format)
        for format in order:
            say(f"repeat {number + 1}: read {format.name}")
            self._warm(format)
            for operation in (self._read, self._plf):
                for pool in (None, self.pool):
                    operation(format, pool)

    def xz_size(self) -> int:
        """Bytes of ``xz -6`` of each image's planes, (C, H, W)."""

        def packed(job: tuple[Teacher, str]) -> int:
            teacher, id = job
            planes = np.ascontiguousarray(teacher.certainty(id).transpose(2, 0, 1))
            return len(lzma.compress(planes.tobytes(), preset=6))

        return sum(self.pool.map(packed, [(t, id) for t in self.teachers for id in t.ids]))

    def _folder(self, format: Format, teacher: Teacher) -> Path:
        return self.root / format.name / teacher.name

    def _write(self, format: Format, pool: Executor | None) -> None:
        shutil.rmtree(self.root / format.name, ignore_errors=True)
        seconds = 0.0
        for teacher in self.teachers:
            images = [(id, teacher.label(id), format.prepare(teacher.certainty(id))) for id in teacher.ids]
            folder = self._folder(format, teacher)
            folder.mkdir(parents=True)
            os.sync()  # so that nobody waits for what another wrote
            start = time.perf_counter()
            format.write(folder, images, pool)
            seconds += time.perf_counter() - start
        self.seconds["write", format.name, pool is not None].append(seconds)
        files = [path for path in (self.root / format.name).rglob("*") if path.is_file()]
        self.sizes[format.name] = sum(path.stat().st_size for path in files)

    def _check(self, format: Format) -> None:
        """That the format gives back what went in: all is lossless, or there is nothing to compare."""
        for teacher in self.teachers:
            with format.open(self._folder(format, teacher)) as opened:
                for id in teacher.ids:
                    if not np.array_equal(opened.all_planes(id), format.prepare(teacher.certainty(id))):
                        raise SystemExit(f"{format.name}: {teacher.name} {id} differs from what was written")

    def _warm(self, format: Format) -> None:
        for path in (self.root / format.name).rglob("*"):
            if path.is_file():
                path.read_bytes()

    def _read(self, format: Format, pool: Executor | None) -> None:
        def one(job: tuple[Opened, str]) -> None:
            opened, id = job
            opened.all_planes(id)

        start = time.perf_counter()
        with contextlib.ExitStack() as stack:
            opened = [stack.enter_context(format.open(self._folder(format, t))) for t in self.teachers]
            each(pool, one, [(o, id) for o, t in zip(opened, self.teachers, strict=True) for id in t.ids])
        self.seconds["read", format.name, pool is not None].append(time.perf_counter() - start)

    def _plf(self, format: Format, pool: Executor | None) -> None:
        def one(id: str) -> None:
            for t, teacher in enumerate(opened):
                if owned := range(t, self.classes, len(self.teachers)):
                    teacher.planes(id, owned)

        start = time.perf_counter()
        with contextlib.ExitStack() as stack:
            opened = [stack.enter_context(format.open(self._folder(format, t))) for t in self.teachers]
            each(pool, one, self.shared)
        self.seconds["plf", format.name, pool is not None].append(time.perf_counter() - start)

    def speed(self, operation: str, name: str, threads: bool) -> float | None:
        """MB/s of raw certainty bytes, best of the repeats; ``None`` if it was not measured."""
        seconds = self.seconds.get((operation, name, threads))
        raw = self.raw_shared if operation == "plf" else self.raw
        return raw / min(seconds) / 1e6 if seconds else None

    def result(self) -> dict[str, Any]:
        """All figures."""
        operations: dict[str, Any] = {}
        for operation in OPERATIONS:
            rows = operations[operation] = {}
            npz = [self.speed(operation, ".npz", threads) for threads in (False, True)]
            for format in self.formats:
                loop, threads = (self.speed(operation, format.name, way) for way in (False, True))
                speed = threads or loop  # as endauda itself does it
                rows[format.name] = {
                    "loop_mb_s": loop,
                    "threads_mb_s": threads,
                    "times_npz_loop": speed / npz[0] if speed and npz[0] else None,
                    "times_npz_threads": speed / npz[1] if speed and npz[1] else None,
                    "seconds": {
                        "threads" if way else "loop": self.seconds[operation, format.name, way]
                        for way in (False, True)
                        if (operation, format.name, way) in self.seconds
                    },
                }
        return {
            "teachers": [teacher.name for teacher in self.teachers],
            "maps": self.maps,
            "classes": self.classes,
            "raw_bytes": self.raw,
            "label_png_bytes": self.labels,
            "sizes": {
                name: {"bytes": size, "times_smaller_than_npy": self.sizes[".npy"] / size}
                for name, size in self.sizes.items()
            },
            "speeds": operations,
        }


def run_bench(given: argparse.Namespace, root: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Sizes and speeds."""
    if given.folders:
        teachers = find_teachers(given.folders)
    else:
        say("generating maps")
        teachers = generate_teachers(root / "in", given.generated, given.images or 4, given.seed, given.cores)
    formats: list[Format] = [Arrays(".npy"), Arrays(".npz"), *map(Archive, given.codecs or CODECS)]
    bench = Bench(teachers, formats, root / "out", given.cores)
    bench.labels = sum((t.folder / f"{id}.png").stat().st_size for t in teachers for id in t.ids)
    for number in range(given.repeat):
        bench.repeat(number, say)
    if not given.no_xz:
        say("xz -6")
        bench.sizes["xz -6 of the planes"] = bench.xz_size()
    return bench.result()


# Memory


def run_memory(given: argparse.Namespace, root: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Peak memory of child processes that export and fuse.

    This process must stay small: Linux starts a child's peak with the peak of the process it came from.
    """
    few = given.images or 50
    codec = str((given.codecs or [inspect.signature(CertaintyWriter).parameters["codec"].default])[0])
    rows: dict[str, dict[int, Any]] = {"export": {}, "fuse": {}}
    say("generating maps")
    child(do="generate", out=str(root / "in"), shape=given.generated, seed=given.seed)
    for images in (few, 10 * few):
        archives = [root / f"{images}" / f"generated{t}" for t in range(GENERATED_TEACHERS)]
        exports = []
        for t, archive in enumerate(archives):
            say(f"exporting {images} images, teacher {t + 1} of {GENERATED_TEACHERS}")
            exports.append(
                child(
                    do="export",
                    maps=str(root / "in"),
                    teacher=t,
                    out=str(archive),
                    images=images,
                    codec=codec,
                )
            )
        rows["export"][images] = max(exports, key=lambda export: float(export["peak_mib"]))
        say(f"fusing {images} images")
        rows["fuse"][images] = child(
            do="fuse", archives=list(map(str, archives)), out=str(root / f"{images}" / "labels")
        )
        shutil.rmtree(root / f"{images}")
    return {"shape": given.generated, "codec": codec, "teachers": GENERATED_TEACHERS, "peaks": rows}


def child(**task: Any) -> dict[str, Any]:
    """Do it in a process of its own."""
    words = [sys.executable, __file__, "--child", json.dumps(task)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{task['do']} failed with exit code {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def run_child(task: dict[str, Any]) -> dict[str, Any]:
    """In the child: the task, then what it took."""
    tasks: dict[str, Callable[..., Callable[[], object]]] = {
        "generate": generate_child,
        "export": export_child,
        "fuse": fuse_child,
    }
    work = tasks[task.pop("do")](**task)
    before = peak_mib()
    start = time.perf_counter()
    work()
    return {"peak_mib": peak_mib(), "imports_mib": before, "seconds": time.perf_counter() - start}


def peak_mib() -> float:
    """Of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def generate_child(out: str, shape: Sequence[int], seed: int) -> Callable[[], None]:
    def work() -> None:
        Path(out).mkdir()
        for t in range(GENERATED_TEACHERS):
            for i in range(MEMORY_MAPS):
                label, certainty = maps.generate(*shape, image=i, teacher=t, seed=seed)
                np.save(Path(out) / f"{t}-{i}-label.npy", label)
                np.save(Path(out) / f"{t}-{i}.npy", certainty)

    return work


def export_child(maps: str, teacher: int, out: str, images: int, codec: str) -> Callable[[], None]:
    """Images come one by one, as from a network."""

    def load(what: str) -> Bytes:
        array: Bytes = np.load(Path(maps) / f"{teacher}-{what}.npy")
        return array

    def work() -> None:
        classes = [f"class {c}" for c in range(load("0").shape[0])]

        def code(i: int) -> CodedImage:
            return writer.code(f"{i:06}", load(f"{i % MEMORY_MAPS}-label"), load(f"{i % MEMORY_MAPS}"))

        with (
            ThreadPoolExecutor(2) as pool,
            CertaintyWriter(out, classes=classes, codec=codec) as writer,
        ):
            for coded in ordered_map(pool, code, range(images), ahead=4):  # as ``export-teacher`` does
                writer.store(coded)

    return work


def fuse_child(archives: list[str], out: str) -> Callable[[], object]:
    """``endauda fuse`` with its defaults, over all images of the archives."""
    from endauda_cli.config import FuseConfig
    from endauda_cli.domains import Domain, Task, palette_of
    from endauda_cli.fusion.job import Job, fuse
    from endauda_cli.progress import silent

    paths = {Path(path).name: Path(path) for path in archives}
    with CertaintyReader(archives[0]) as reader:
        classes = reader.classes
    domain = Domain("generated", classes, palette_of(classes), {}, (), (), "labels")
    config = FuseConfig(teachers=tuple(paths))
    job = Job(Task(domain, domain), paths, None, list, "train", Path(out))
    return partial(fuse, config, job, silent)


# Showing


def machine(cores: int) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "cores": cores,
        "processor": processor(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "h5py": h5py.__version__,
        "hdf5plugin": hdf5plugin.version,
    }


class Others:
    """How busy other processes keep the machine: what they take, the threads of this one do not get."""

    def __init__(self) -> None:
        self._wall, self._start = time.perf_counter(), self._seconds()

    def cores(self) -> float | None:
        """Cores that others kept busy since the start, on average; ``None`` if this system does not tell."""
        if self._start is None or (now := self._seconds()) is None:
            return None
        return max(0.0, (now - self._start) / (time.perf_counter() - self._wall))

    def _seconds(self) -> float | None:
        try:
            user, nice, system, _idle, _wait, irq, softirq, steal = (
                int(word) for word in Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
            )
        except (OSError, ValueError):
            return None
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return busy - sum(os.times()[:4])


def processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def show_bench(result: dict[str, Any], cores: int, repeat: int, console: Console) -> None:
    sizes = Table(
        "format",
        title=f"Size of {result['maps']} maps of {len(result['teachers'])} teachers, "
        f"{result['classes']} classes, {result['raw_bytes'] / 1e6:,.1f} MB",
        caption=f"Archives with labels, flags and manifests; the others without their label PNGs "
        f"({result['label_png_bytes'] / 1e6:.2f} MB).",
    )
    sizes.add_column("bytes", justify="right")
    sizes.add_column("times smaller than .npy", justify="right")
    for name, size in sorted(result["sizes"].items(), key=lambda item: -item[1]["bytes"]):
        sizes.add_row(name, f"{size['bytes']:,}", f"{size['times_smaller_than_npy']:.2f}")
    console.print(sizes)
    captions = {
        "write": "On a pool, image by image: archives as `endauda export-teacher` writes them.",
        "read": ".npz in a loop of numpy.load, as peers do; on a pool, image by image, as endauda reads; "
        "the ratios are of the latter.",
        "plf": f"Of each image one plane per class from its owner, T = {len(result['teachers'])}; .npy and "
        ".npz are loaded whole. MB of all teachers' maps, so the ratio is one of times.",
    }
    for operation, title in OPERATIONS.items():
        table = Table("format", title=f"{title}, MB/s, best of {repeat}, on {cores} cores")
        for header in ("loop", f"{cores} threads", "× .npz loop", f"× .npz {cores} threads"):
            table.add_column(header, justify="right")
        table.caption = captions[operation]
        for name, row in result["speeds"][operation].items():
            ratios = (row["times_npz_loop"], row["times_npz_threads"])
            table.add_row(
                name,
                *("" if v is None else f"{v:,.0f}" for v in (row["loop_mb_s"], row["threads_mb_s"])),
                *("" if v is None else f"{v:.2f}" for v in ratios),
            )
        console.print(table)


def show_memory(result: dict[str, Any], console: Console) -> None:
    shape = "x".join(map(str, result["shape"]))
    table = Table(title=f"Peak memory in MiB, {shape}, {result['codec']}, T = {result['teachers']}")
    counts = list(result["peaks"]["export"])
    table.add_column("process")
    for header in ("after imports", *(f"{count} images" for count in counts)):
        table.add_column(header, justify="right")
    for what, peaks in result["peaks"].items():
        first = peaks[counts[0]]["imports_mib"]
        table.add_row(what, f"{first:,.0f}", *(f"{peaks[count]['peak_mib']:,.0f}" for count in counts))
    table.caption = "The child process's ru_maxrss. export: CertaintyWriter, the highest of the teachers."
    console.print(table)


def shape_of(word: str) -> tuple[int, int, int]:
    height, width, classes = (int(number) for number in word.lower().split("x"))
    return height, width, classes


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", metavar="FOLDER", type=Path, nargs="*")
    parser.add_argument("--generated", metavar="HxWxC", type=shape_of, default=(1024, 2048, 19))
    parser.add_argument(
        "--images",
        type=int,
        metavar="N",
        help="generated, per teacher (default: 4; with --memory, 50 and 500)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of generated maps (default: 0)")
    parser.add_argument("--repeat", type=int, metavar="R", default=5)
    parser.add_argument("--codecs", nargs="+", choices=[str(name) for name in CODECS])
    parser.add_argument("--cores", type=int, default=2, help="cores, and threads of the pool (default: 2)")
    parser.add_argument("--no-xz", action="store_true", help="spare the time that xz takes")
    parser.add_argument("--memory", action="store_true", help="peak memory instead of sizes and speeds")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="where files go for the time of the run")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(run_child(given.child)))
        return 0
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])
    status, others = Console(stderr=True), Others()
    with tempfile.TemporaryDirectory(dir=given.scratch) as folder, status.status("starting") as spinner:
        measure = run_memory if given.memory else run_bench
        result = measure(given, Path(folder), lambda what: spinner.update(what))
    result |= {"machine": machine(given.cores) | {"cores_busy_with_others": others.cores()}}
    if given.json:
        print(json.dumps(result, indent=1))
        return 0
    console = Console(width=None if sys.stdout.isatty() else 100)
    if given.memory:
        show_memory(result, console)
    else:
        show_bench(result, given.cores, given.repeat, console)
    about = result["machine"]
    console.print(
        f"{about['processor']}, Python {about['python']}, numpy {about['numpy']}, h5py {about['h5py']}, "
        f"hdf5plugin {about['hdf5plugin']}"
    )
    if (about["cores_busy_with_others"] or 0) > 0.1:
        console.print(
            f"Other processes kept {about['cores_busy_with_others']:.1f} cores busy meanwhile: speeds are too "
            "low, those of several threads most."
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
