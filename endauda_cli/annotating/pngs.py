"""Folders of one PNG per image, as people hand them back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from endauda_cli.datasets import one_per_image
from endauda_cli.errors import DataError
from endauda_cli.patterns import files_below

if TYPE_CHECKING:
    from pathlib import Path


def masks_below(folder: Path, under: str = "") -> dict[str, Path]:
    """PNG files in a folder and its folders, or in those of ``folder/under`` if there is one, by their stem.

    Raises:
        DataError: if there is no such folder, no PNG, or two for one image.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; name the one with the label PNGs")
    if under and (folder / under).is_dir():
        folder = folder / under
    found = one_per_image(
        sorted(path for path in files_below(folder) if path.suffix == ".png"), None, "label map"
    )
    if not found:
        raise DataError(
            f"{folder}: no label PNG; name the folder with IMAGE.png for every image that was corrected"
        )
    return found
