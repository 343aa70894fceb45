"""Small archives for tests, and a program that writes one and can be killed.

usage: archive_samples.py FOLDER COUNT TAG [BEGIN]      prints each id once it is stored
       archive_samples.py --serve                       see ``Writers``
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import traceback
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from endauda_cli.archive import CODECS, CertaintyReader, CertaintyWriter, grids
from endauda_cli.archive.grids import Deriver, GridForm, Grids

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

Bytes = NDArray[np.uint8]
Image = tuple[Bytes, Bytes]  # label map (H, W), certainty (C, H, W)

CLASSES = ("road", "car", "sky")
ATTRIBUTES = {"teacher": "dacs", "weights": "sha256:12ab"}
WAIT_S = 120


def noise(seed: int, classes: int, height: int, width: int) -> Image:
    """No two alike, and hard to compress."""
    generator = np.random.default_rng(seed)
    label = generator.integers(0, classes, (height, width)).astype(np.uint8)
    label[generator.random((height, width)) < 0.1] = 255
    return label, generator.integers(0, 101, (classes, height, width)).astype(np.uint8)


def smooth(seed: int, classes: int, height: int, width: int) -> Image:
    """Slopes, as certainties have them: every codec finds something to do."""
    row, column = np.mgrid[:height, :width]
    planes = [(row * (c + 1) + column * 2 + seed) // 3 % 101 for c in range(classes)]
    label = (column // 8 + seed) % classes
    return label.astype(np.uint8), np.stack(planes).astype(np.uint8)


class Said(tuple[Bytes, Bytes]):
    """An image of which the network's own grids are kept, and the certainties that are derived of them."""

    said: Grids


def own_grids(seed: int, classes: int, sizes: Sequence[tuple[int, int]], softmax: Any = "last") -> Grids:
    """Grids as networks have them: a class is nothing over whole areas, and sure somewhere."""
    rng = np.random.default_rng(seed)
    numbers = []
    for h, w in sizes:
        row, column = np.mgrid[:h, :w]
        slopes = [
            abs(row * (c + 1) - column * 2 + seed % 7) * 150 + rng.integers(0, 30, (h, w))
            for c in range(classes)
        ]
        depth = np.minimum(np.stack(slopes), grids.NOTHING)
        numbers.append((depth - depth.min(0)).astype(np.uint16))
    shares = tuple(1 / len(sizes) for _ in sizes)
    return Grids(GridForm(tuple(sizes), shares, softmax, True), tuple(numbers))


def derived(said: Grids, height: int, width: int) -> Bytes:
    """(C, H, W), all that the grids say."""
    classes = len(said.numbers[0])
    out = np.zeros((classes, height, width), np.uint8)
    Deriver(said, (height, width)).fill(range(classes), 0, height, out)
    return out


def said_image(seed: int, classes: int, height: int, width: int) -> Said:
    grid = own_grids(seed, classes, [(3, 4)])
    image = Said((smooth(seed, classes, height, width)[0], derived(grid, height, width)))
    image.said = grid
    return image


def samples(count: int, begin: int = 0) -> dict[str, Image]:
    """Images of several sizes by id; of every fourth the network's own grid is kept."""
    return {
        f"ulm/{i:04d}": (said_image if i % 4 == 3 else smooth)(i, len(CLASSES), 20 + i % 3, 30 + i % 5)
        for i in range(begin, begin + count)
    }


def put(writer: CertaintyWriter, id: str, image: Image) -> None:
    """Stores the image as it is to be stored."""
    if isinstance(image, Said):
        writer.store(writer.code_grids(id, image[0], image.said))
    else:
        writer.write(id, *image)


def write(folder: Path, images: Mapping[str, Image], **options: object) -> Path:
    """An archive of the images, written without a stop."""
    arguments: dict[str, object] = {"classes": CLASSES, "attributes": ATTRIBUTES, **options}
    with CertaintyWriter(folder, **arguments) as writer:  # type: ignore[arg-type]
        for id, image in images.items():
            put(writer, id, image)
    return folder


def same(reader: CertaintyReader, id: str, image: Image) -> bool:
    label, certainty = image
    return np.array_equal(reader.labels(id), label) and np.array_equal(reader.certainty(id), certainty)


def digests(folder: Path) -> dict[str, str]:
    """By id, without decoding."""
    with CertaintyReader(folder) as reader:
        return {id: reader.digest(id) for id in reader.ids}


def assert_holds(folder: Path, images: Mapping[str, Image], ids: Iterable[str] | None = None) -> None:
    """Exactly these ids, each bit by bit."""
    with CertaintyReader(folder) as reader:
        assert set(reader.ids) == set(images if ids is None else ids)
        assert all(same(reader, id, images[id]) for id in reader.ids)


def assert_true_so_far(folder: Path, images: Mapping[str, Image]) -> None:
    """What an archive in the making holds is right, bit by bit."""
    with CertaintyReader(folder) as reader:
        assert all(same(reader, id, images[id]) for id in reader.ids)


def main(folder: str, count: str, tag: str, begin: str = "0") -> None:
    with CertaintyWriter(folder, classes=CLASSES, attributes=ATTRIBUTES, shard_size=5, tag=tag) as writer:
        done = writer.done
        for id, image in samples(int(count), int(begin)).items():
            if id not in done:
                put(writer, id, image)
                print(id, flush=True)


class Writers:
    """Processes that write archives, started in a millisecond each: forks of one that has imported everything.

    They run ``main`` with these arguments, and what they print goes to a file, which a kill does not cut short.
    Use as a context manager.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._server = subprocess.Popen(
            [sys.executable, "-W", "error", __file__, "--serve", log],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> Writers:
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._server.pid, signal.SIGKILL)  # a fork that hangs, too
        self._server.communicate()

    def start(self, *arguments: object) -> int:
        """The process id. It stays this writer's own, alive or not, until ``wait`` was called."""
        return int(self._ask("start", *arguments))

    def wait(self, process: int) -> int:
        """0, or what ended it: a signal as a negative number."""
        return int(self._ask("wait", process))

    def stored(self) -> set[str]:
        """The ids printed since the last call."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        self._log.unlink(missing_ok=True)
        return set(lines)

    def _ask(self, *words: object) -> str:
        assert self._server.stdin is not None and self._server.stdout is not None
        print(*words, sep="\t", file=self._server.stdin, flush=True)
        assert select.select([self._server.stdout], [], [], WAIT_S)[0], f"no end of: {words}"
        return self._server.stdout.readline()


def serve(log: str) -> None:
    for codec in CODECS.values():  # what each fork would have to load again
        codec.pack(smooth(0, 3, 20, 30)[1])
    said_image(0, 3, 20, 30)
    for line in sys.stdin:
        order, *arguments = line.rstrip("\n").split("\t")
        if order == "wait":
            answer = os.waitstatus_to_exitcode(os.waitpid(int(arguments[0]), 0)[1])
        elif (answer := os.fork()) == 0:
            status = 1
            try:
                sys.stdout = open(log, "a")
                main(*arguments)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        print(answer, flush=True)


if __name__ == "__main__":
    serve(sys.argv[2]) if sys.argv[1] == "--serve" else main(*sys.argv[1:])
