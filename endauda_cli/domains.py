"""Domains: what the classes are called, which label ids mean them, where the files lie.

Everything that differs between GTA5, SYNTHIA, Cityscapes and a data set of the user's own is a value of
:class:`Domain`; no code anywhere else asks for a data set by name. Standard library only.

A label id is a pixel value of a data set's label files; a train id is a class's position in ``classes``.
``IGNORE`` marks a pixel without a class.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from endauda_cli.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

IGNORE = 255
"""The train id of pixels that have no class, in every label map that endauda reads or writes."""

IGNORED = ""
"""The name of label ids that mark no class; none can be called so."""

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Layout:
    """One way in which a data set lies on disk, below its root.

    ``images`` and ``labels`` are glob patterns in which ``{split}`` stands for the split's name. A label
    file belongs to the image with the same stem once ``image_suffix`` and ``label_suffix`` are taken off.
    """

    images: tuple[str, ...]
    labels: tuple[str, ...] = ()
    image_suffix: str = ""
    label_suffix: str = ""
    splits: tuple[str, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Domain:
    """A data set's classes and files.

    Attributes:
        name: what the user calls it; folders of the workspace carry it.
        classes: class names; position = train id.
        palette: one RGB colour per class, bytes.
        label_ids: every known label id with the name of what it marks. A name that is not in
            ``classes`` is ignored; an id that is not here is refused, unless ``others_ignored``.
        others_ignored: label ids without a name are silently ignored.
        layouts: ways to lie on disk, tried in order.
        roots: folders where the data set is looked for, relative to the workspace (or absolute).
        labels_root: where ``fuse`` puts label sets for this domain, relative to the workspace.
        labels_in_first_channel: label PNGs have several channels, the first of which holds the id
            (SYNTHIA's 16-bit files: class in the first, instance in the second).
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[Colour, ...]
    label_ids: Mapping[int, str]
    layouts: tuple[Layout, ...]
    roots: tuple[str, ...]
    labels_root: str
    others_ignored: bool = False
    labels_in_first_channel: bool = False
    subsets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Further means that are reported beside the mIoU: title -> the class names it is taken over."""

    def __post_init__(self) -> None:
        if not 2 <= len(self.classes) <= 255:
            raise DataError(f"{self.name}: {len(self.classes)} classes, but 2 to 255 are possible")
        for position, name in enumerate(self.classes):
            if name in self.classes[:position]:
                raise DataError(f"{self.name}: class {name!r} is listed twice")
        if len(self.palette) != len(self.classes):
            raise DataError(f"{self.name}: {len(self.palette)} colours for {len(self.classes)} classes")

    def train_id(self, label_id: int) -> int | None:
        """The train id of a label id, ``IGNORE`` for what is ignored, ``None`` for an unknown id."""
        name = self.label_ids.get(label_id)
        if name is None:
            return IGNORE if self.others_ignored or label_id == IGNORE else None
        return self.classes.index(name) if name in self.classes else IGNORE

    @property
    def label_table(self) -> tuple[list[tuple[int, int | None]], bool, bool]:
        """How a label file becomes train ids: what depends on labels has to be made anew where another one holds."""
        ids = [(label_id, self.train_id(label_id)) for label_id in sorted(self.label_ids)]
        return ids, self.others_ignored, self.labels_in_first_channel

    def with_classes(self, other: Domain) -> Domain:
        """This domain seen with another's classes, joined by name; classes the other lacks are ignored.

        Raises:
            DataError: if the other has a class that this one does not know.
        """
        if other.classes == self.classes:
            return replace(self, subsets=other.subsets)
        for name in other.classes:
            if name not in self.classes:
                raise DataError(
                    f"{other.name} and {self.name} disagree: class {name!r} of {other.name} is not in "
                    f"{self.name} ({', '.join(self.classes)}); give both the same class names"
                )
        palette = tuple(self.palette[self.classes.index(name)] for name in other.classes)
        return replace(self, classes=other.classes, palette=palette, subsets=other.subsets)

    def labelled_by(self, other: Domain) -> Domain:
        """This domain with another's classes, of which it may lack some: its labels never show these.

        Raises:
            DataError: if it has a class that the other lacks.
        """
        absent = [name for name in self.classes if name not in other.classes]
        if absent:
            raise DataError(
                f"{other.name} and {self.name} disagree: class {absent[0]!r} of {self.name} is not in {other.name} "
                f"({', '.join(other.classes)}); give both the same class names"
            )
        ids = {i: name if name in self.classes else IGNORED for i, name in self.label_ids.items()}
        return replace(
            self, classes=other.classes, palette=other.palette, label_ids=ids, subsets=other.subsets
        )


CITYSCAPES_CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
    "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
CITYSCAPES_PALETTE: tuple[Colour, ...] = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153),
    (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60),
    (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
)  # fmt: skip
CITYSCAPES_LABEL_IDS = {
    0: "unlabeled", 1: "ego vehicle", 2: "rectification border", 3: "out of roi", 4: "static", 5: "dynamic",
    6: "ground", 7: "road", 8: "sidewalk", 9: "parking", 10: "rail track", 11: "building", 12: "wall",
    13: "fence", 14: "guard rail", 15: "bridge", 16: "tunnel", 17: "pole", 18: "polegroup",
    19: "traffic light", 20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person",
    25: "rider", 26: "car", 27: "truck", 28: "bus", 29: "caravan", 30: "trailer", 31: "train",
    32: "motorcycle", 33: "bicycle",
}  # fmt: skip
GTA5_LABEL_IDS = {**CITYSCAPES_LABEL_IDS, 34: "license plate"}
SYNTHIA_LABEL_IDS = {
    0: "void", 1: "sky", 2: "building", 3: "road", 4: "sidewalk", 5: "fence", 6: "vegetation", 7: "pole",
    8: "car", 9: "traffic sign", 10: "person", 11: "bicycle", 12: "motorcycle", 13: "parking-slot",
    14: "road-work", 15: "traffic light", 16: "terrain", 17: "rider", 18: "truck", 19: "bus", 20: "train",
    21: "wall", 22: "lanemarking",
}  # fmt: skip

NOT_IN_SYNTHIA_16 = ("terrain", "truck", "train")
NOT_IN_SYNTHIA_13 = (*NOT_IN_SYNTHIA_16, "wall", "fence", "pole")


def _without(absent: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in CITYSCAPES_CLASSES if name not in absent)


PUBLISHED_MEANS = {
    "mIoU-19": CITYSCAPES_CLASSES,
    "mIoU-16": _without(NOT_IN_SYNTHIA_16),
    "mIoU-13": _without(NOT_IN_SYNTHIA_13),
}
"""The lists of classes over which the field takes means."""


def means_of(domain: Domain) -> dict[str, tuple[str, ...]]:
    """The means that a score on the domain has, each with its classes: over all of them, over the domain's own subsets,
    and over the published lists that it has all classes of."""
    published = {
        title: names for title, names in PUBLISHED_MEANS.items() if set(names) <= set(domain.classes)
    }
    return {f"mIoU-{len(domain.classes)}": domain.classes, **domain.subsets, **published}


def palette_of(names: tuple[str, ...]) -> tuple[Colour, ...]:
    """Colours for classes: Cityscapes' own where the name is one of theirs, else spread over the hues."""
    known = dict(zip(CITYSCAPES_CLASSES, CITYSCAPES_PALETTE, strict=True))
    return tuple(known.get(name, _distinct_colour(i)) for i, name in enumerate(names))


def made_up_colour(name: str, position: int, colour: Colour) -> bool:
    """Whether a class has the colour that :func:`palette_of` gave it for want of one that people know."""
    return name not in CITYSCAPES_CLASSES and colour == _distinct_colour(position)


def _distinct_colour(index: int) -> Colour:
    """The bits of the index spread over the channels, high bits first, as the VOC palette does."""
    channels = [0, 0, 0]
    index += 1
    for bit in range(7, -1, -1):
        for channel in range(3):
            channels[channel] |= (index & 1) << bit
            index >>= 1
    return channels[0], channels[1], channels[2]


def _synthia(name: str, classes: tuple[str, ...]) -> Domain:
    thirteen = _without(NOT_IN_SYNTHIA_13)
    return Domain(
        name=name,
        classes=classes,
        palette=palette_of(classes),
        label_ids=SYNTHIA_LABEL_IDS,
        layouts=(
            Layout(images=("images/*.png", "images/{split}/*.png"), labels=("labels/*.png", "labels/{split}/*.png")),
            Layout(images=("RGB/*.png",), labels=("GT/LABELS/*.png",)),
            Layout(images=("RGB/*.png",), labels=("parsed_LABELS/*.png",)),
        ),
        roots=("Warehouse/SYNTHIA", "Warehouse/SYNTHIA/RAND_CITYSCAPES"),
        labels_root=f"labels/{name}",
        labels_in_first_channel=True,
        subsets={"mIoU-13": thirteen} if len(classes) > len(thirteen) else {},
    )  # fmt: skip


CITYSCAPES = Domain(
    name="cityscapes",
    classes=CITYSCAPES_CLASSES,
    palette=CITYSCAPES_PALETTE,
    label_ids=CITYSCAPES_LABEL_IDS,
    layouts=tuple(
        Layout(
            images=tuple(f"{folder}/{{split}}{depth}/*_leftImg8bit.{kind}" for depth in ("/*", "")),
            labels=tuple(f"gtFine/{{split}}{depth}/*_gtFine_labelIds.png" for depth in ("/*", "")),
            image_suffix="_leftImg8bit",
            label_suffix="_gtFine_labelIds",
        )
        for folder in ("leftImg8bit", "leftImg8bit_trainvaltest/leftImg8bit")
        for kind in ("png", "jpg")
    ),
    roots=("Warehouse/Cityscapes/data", "Warehouse/Cityscapes", "Cityscapes/data", "Cityscapes"),
    labels_root="Warehouse/Cityscapes/data/gtFine",
)
GTA5 = Domain(
    name="gta5",
    classes=CITYSCAPES_CLASSES,
    palette=CITYSCAPES_PALETTE,
    label_ids=GTA5_LABEL_IDS,
    layouts=(
        Layout(images=("images/*.png", "images/{split}/*.png"), labels=("labels/*.png", "labels/{split}/*.png")),
    ),
    roots=("Warehouse/GTA5", "GTA5"),
    labels_root="labels/gta5",
)  # fmt: skip

DOMAINS: dict[str, Domain] = {
    domain.name: domain
    for domain in (
        GTA5,
        _synthia("synthia", _without(NOT_IN_SYNTHIA_16)),
        _synthia("synthia-19", CITYSCAPES_CLASSES),
        _synthia("synthia-13", _without(NOT_IN_SYNTHIA_13)),
        CITYSCAPES,
    )
}
"""Domains known by name. Anything else is a TOML file (``datasets.load_domain``)."""


@dataclass(frozen=True)
class Task:
    """What is adapted to what. ``target`` has the source's classes, joined by name."""

    source: Domain
    target: Domain

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names of every archive, label map and network of this task."""
        return self.source.classes


def make_task(source: Domain | None, target: Domain) -> Task:
    """Join source and target. Without a source, the task's classes are the target's own.

    Raises:
        DataError: if their class tables disagree.
        ConfigError: if there is nothing to join.
    """
    if not target.classes:
        raise ConfigError(f"target {target.name} has no classes")
    if source is None:
        return Task(target, target)
    return Task(source, target.with_classes(source))
