"""Engine: a teacher that is run when it is asked, and looks like its archive: nothing is stored.

``fuse`` takes it in place of an archive. What it says of an image is, bit for bit on the CPU, what an archive made with
``export-teacher --weights`` holds; on a card, where that runs several images at once, up to rounding.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from endauda_cli.archive import CertaintyReader
from endauda_cli.errors import ArchiveError, ConfigError, DataError
from endauda_cli.exporting import teacher_tensors
from endauda_cli.labels import image_size
from endauda_cli.progress import silent
from endauda_cli.teachers import open_teacher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from endauda_cli.config import InferenceConfig
    from endauda_cli.progress import Reporter

    UInt8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Network:
    """A network over image files.

    Attributes:
        facts: what its archive would say of it; what its outputs depend on beside the images.
        maps: yields label map (H, W) and certainties (C, H, W), uint8, of each image, in order, where it runs.
    """

    facts: Mapping[str, Any]
    maps: Callable[[Sequence[Path]], Iterator[tuple[torch.Tensor, ...]]]


def open_network(
    path: Path,
    classes: Sequence[str],
    inference: InferenceConfig,
    device: torch.device,
    network: str | None = None,
    arch: str | None = None,
    backbone: str | None = None,
    size: tuple[int, int] | None = None,
    report: Reporter = silent,
) -> Network:
    """The network of a checkpoint, folder or program, ready to run; arguments as of ``open_teacher``.

    Raises:
        CheckpointError: if the file is unreadable or belongs to another network or class table.
    """
    teacher = open_teacher(path, classes, network, arch=arch, backbone=backbone, size=size, report=report)
    facts = {**teacher.attributes(classes), "amp": inference.amp}
    return Network(facts, lambda images: teacher_tensors(teacher, images, inference, device, silent))


def refuse_other_archive(name: str, archive: Path, network: Network) -> None:
    """Refuse to run a network under the name of an archive that another one made: who would know which it was?

    Raises:
        ConfigError: says what to do.
    """
    try:
        with CertaintyReader(archive) as reader:
            attributes = reader.attributes
    except ArchiveError:  # there is none
        return
    for fact in ("weights_sha256", "network_size"):
        if attributes.get(fact) != network.facts.get(fact):
            raise ConfigError(
                f"--teachers {name}=...: there is an archive {archive} of another network; name it {name} alone to "
                "fuse the archive, or call the network something else"
            )


class NetworkReader:
    """What a network says of images, by their ids, as :class:`archive.CertaintyReader` gives it from disk.

    Threads may share it; the network does one image at a time. Results stay on its device: a rule that runs there too
    takes ``tensors``, and nothing else is copied than what is asked for in arrays.

    Args:
        network: the teacher.
        classes: its class names.
        images: id -> file.
        kept: results in memory, those used last; one that is asked for again later is made again.
    """

    def __init__(
        self, network: Network, classes: Sequence[str], images: Mapping[str, Path], kept: int = 2
    ) -> None:
        self.network, self.images, self.kept = network, images, kept
        self.classes = tuple(classes)
        self.ids = tuple(sorted(images))
        self._facts = json.dumps(dict(network.facts), sort_keys=True)
        self._lock = threading.Lock()
        self._results: OrderedDict[str, tuple[torch.Tensor, ...]] = OrderedDict()

    def __contains__(self, id: object) -> bool:
        return id in self.images

    def size(self, id: str) -> tuple[int, int]:
        """(H, W) in pixels."""
        return image_size(self._file(id))

    def digest(self, id: str) -> str:
        """Of the network and the image file (by its size and time): another one means another result."""
        try:
            status = self._file(id).stat()
        except OSError as error:
            raise DataError(f"{self._file(id)}: no such file") from error
        return hashlib.sha256(
            f"{self._facts}\0{id}\0{status.st_size}\0{status.st_mtime_ns}".encode()
        ).hexdigest()

    def labels(self, id: str) -> UInt8:
        """The label map: (H, W) uint8 train ids."""
        return _array(self._run(id)[0])

    def plane(self, id: str, c: int) -> UInt8:
        """The certainty of class ``c``: (H, W) uint8, percent 0..100."""
        return _array(self._run(id)[1][c])

    def planes(self, id: str, classes: Sequence[int]) -> UInt8:
        """The certainties of some classes, in that order: (len(classes), H, W) uint8, percent 0..100."""
        return _array(self.tensors(id, classes))

    def certainty(self, id: str) -> UInt8:
        """The certainties of all classes: (C, H, W) uint8, percent 0..100."""
        return _array(self._run(id)[1])

    def tensors(self, id: str, classes: Sequence[int]) -> torch.Tensor:
        """As ``planes``, on the network's device; not to be written to."""
        certainty = self._run(id)[1]
        return certainty if list(classes) == list(range(len(certainty))) else certainty[list(classes)]

    def _file(self, id: str) -> Path:
        if id not in self.images:
            raise DataError(f"there is no image {id!r} among the target's {len(self.images):,} images")
        return self.images[id]

    def _run(self, id: str) -> tuple[torch.Tensor, ...]:
        with self._lock:
            if id not in self._results:
                while len(self._results) >= self.kept:
                    self._results.popitem(last=False)
                (self._results[id],) = self.network.maps([self._file(id)])
            self._results.move_to_end(id)
            return self._results[id]


def _array(tensor: torch.Tensor) -> UInt8:
    array: UInt8 = tensor.cpu().numpy()
    return array
