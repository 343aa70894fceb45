"""Store: label maps that other programs made, and what the values in them mean.

Label maps of ours hold train ids. Others come as palette files whose colours stand in an order of their own, or in the
label ids of the data set. What the colours say without doubt is read so; what contradicts the values is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from endauda_cli.domains import IGNORE, made_up_colour
from endauda_cli.errors import DataError
from endauda_cli.labels import label_ids_of, train_ids_of
from endauda_cli.rasters import open_raster

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from endauda_cli.domains import Colour, Domain
    from endauda_cli.rasters import Raster

BLACK = (0, 0, 0)


def read_values(path: Path, domain: Domain) -> tuple[NDArray[np.int32], bool]:
    """The values of a label map as (H, W) int32, and whether they are train ids that its palette gave.

    Raises:
        DataError: as :func:`labels.read_label_ids`, or if the palette says other classes than the values do.
    """
    with open_raster(path) as raster:
        ids = label_ids_of(raster)
        palette = palette_of(raster)
    return values_of(path, ids, palette, domain)


def palette_of(raster: Raster) -> list[Colour]:
    """The colours of a palette file; none of any other."""
    return raster.palette() if raster.mode == "P" else []


def values_of(
    path: Path, ids: NDArray[np.int32], palette: list[Colour], domain: Domain
) -> tuple[NDArray[np.int32], bool]:
    """:func:`read_values`, of what the file holds."""
    used = [int(value) for value in np.unique(ids)]
    means = _by_palette(used, palette, domain)
    if means is None:
        return ids, False
    strangers = [value for value in used if value not in means]
    if strangers:
        raise DataError(
            f"{path}: its palette gives the classes' colours to other values than {domain.name} does, and value "
            f"{strangers[0]} the colour of no class; write it as a grey PNG of train ids, 255 = none"
        )
    table = np.full(max(used) + 1, IGNORE, np.int32)
    for value, train_id in means.items():
        table[value] = train_id
    return table[ids], True


def read_foreign(path: Path, domain: Domain) -> NDArray[np.uint8]:
    """A label map of train ids, or of colours that say the classes, as (H, W) uint8 train ids.

    Raises:
        DataError: as :func:`read_values`, or if a value is no train id.
    """
    ids, _ = read_values(path, domain)
    return train_ids_of(path, ids, len(domain.classes))


def as_label_ids(ids: NDArray[np.int32], domain: Domain) -> NDArray[np.uint8] | None:
    """Values read by the data set's table, as (H, W) uint8 train ids; ``None`` if one is not named there."""
    used = np.unique(ids)
    if used.min() < 0 or any(value not in domain.label_ids and value != IGNORE for value in used.tolist()):
        return None
    table = np.full(int(used.max()) + 1, IGNORE, np.uint8)
    for value in used.tolist():
        train_id = domain.train_id(value)
        table[value] = IGNORE if train_id is None else train_id
    return table[ids]


def _by_palette(used: list[int], palette: list[Colour], domain: Domain) -> dict[int, int] | None:
    """The train ids of the used values by their colours, as far as these have one; ``None`` if the values count.

    A palette counts if it has the classes' colours, all of them in another order; or if most of the used values have
    the colour of another class. Colours that we made up, because nobody gave any, count only in the first way.
    """
    classes = len(domain.classes)
    colours = {colour: c for c, colour in enumerate(domain.palette)}
    if len(palette) <= max(used) or len(colours) < classes or palette[:classes] == list(domain.palette):
        return None
    found = {value: c for value in used if (c := colours.get(palette[value])) is not None}
    permuted = sorted(palette[:classes]) == sorted(domain.palette)
    if not permuted:
        meant = {
            v: c for v, c in found.items() if not made_up_colour(domain.classes[c], c, domain.palette[c])
        }
        moved = sum(value != c for value, c in meant.items())
        if 2 * moved <= len([value for value in used if value != IGNORE and palette[value] != BLACK]):
            return None
    nothing = {v: IGNORE for v in used if v not in found and (v == IGNORE or palette[v] == BLACK)}
    return found | nothing
