"""EnD-UDA: fused labels of the target's train images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from endauda_cli.datasets import find_samples
from endauda_cli.errors import ConfigError
from endauda_cli.foreign import read_foreign
from endauda_cli.training.data import Example, Stream
from endauda_cli.training.methods.method import MAIN, Material, Method
from endauda_cli.workspace import check_label_set

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from endauda_cli.domains import Domain


class Distill(Method):
    """Learn what the teachers say together."""

    @staticmethod
    def streams(material: Material) -> tuple[dict[str, Stream], str]:
        """Images of the target's train split with the label set that was asked for, else the newest."""
        folder = _label_set(material)
        samples = find_samples(material.task.target, material.target_roots, "train")
        examples = [Example(s.id, s.image, folder / f"{s.id}.png") for s in samples]
        stream = Stream(examples, material.task.target, read_fused, label_ids=False, labels=folder)
        return {MAIN: stream}, folder.name


def read_fused(path: Path, domain: Domain) -> NDArray[np.uint8]:
    """Fused labels hold train ids: (H, W) uint8, 255 = none. So do a folder's, or its palettes say the classes."""
    return read_foreign(path, domain)


def _label_set(material: Material) -> Path:
    task, workspace, labels = material.task, material.workspace, material.labels
    if labels is None:
        folder = workspace.newest_labels(task.target, task.source.name)
    else:
        named = workspace.labels(task.target, labels)
        folder = named if named.is_dir() else workspace.path(Path(labels))
    check_label_set(folder, task.source.name, task.classes)
    if not folder.is_dir():
        known = ", ".join(workspace.label_sets(task.target, task.source.name)) or "none yet"
        raise ConfigError(f"--labels {labels}: neither a label set ({known}) nor a folder")
    return folder
