"""Store: validation images, decoded and resized once, as training images are, instead of at every validation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from endauda_cli.distributed import barrier, rank
from endauda_cli.inference import Loaded, tensor_of
from endauda_cli.labels import image_size, read_image
from endauda_cli.training.cache import cached_rows
from endauda_cli.training.data import DECODING, filter_word
from endauda_cli.training.pruning import Use

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from endauda_cli.config import TrainConfig
    from endauda_cli.progress import Reporter
    from endauda_cli.segmenter import Segmenter
    from endauda_cli.training.cache import RowFile
    from endauda_cli.transforms import Preprocessing


class ValidationImages:
    """Gives an image as the network takes it (``inference.run_network``), from the cache of the run.

    Args:
        images: files.
        preprocessing: what makes them the network's; of a fixed size.
        config: the recipe: size and threads.
        cache: folder of caches.
        user: folder of the run, and a name for these images in it; what they no longer use is removed.
        report: told of progress.
    """

    def __init__(
        self,
        images: Sequence[Path],
        preprocessing: Preprocessing,
        config: TrainConfig,
        cache: Path,
        user: tuple[Path, str],
        report: Reporter,
    ) -> None:
        self._images, self._preprocessing, self._config = list(images), preprocessing, config
        self._cache, self._user, self._report = cache, user, report
        self._row_of = {path: i for i, path in enumerate(self._images)}
        self._rows: RowFile | None = None

    def fill(self) -> None:
        """Decodes what the cache lacks; on all ranks at once. Raises DataError as ``cached_rows``."""
        if self._rows is not None:
            return
        (width, height), kind = self._config.size, filter_word(self._preprocessing)
        if rank() > 0:
            barrier()  # the first rank fills the cache
        self._rows = cached_rows(
            self._cache, "caching validation images", self._images, f"{DECODING} {self._config.size} validation{kind}",
            (height, width, 3), self._resized, self._config.workers, self._report,
            Use(f"validation images {width}x{height}", *self._user),
        )  # fmt: skip
        if rank() == 0:
            barrier()

    def __call__(self, path: Path, segmenter: Segmenter) -> Loaded:
        """Raises DataError if the file cannot be read."""
        assert self._rows is not None and segmenter.procedure.scales == (1.0,)
        return Loaded(path, image_size(path), [tensor_of(self._rows[self._row_of[path]])])

    def _resized(self, i: int) -> NDArray[np.uint8]:
        return self._preprocessing.resize(read_image(self._images[i]), 1.0)
