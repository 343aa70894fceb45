"""Store: which images and label files a data set has on disk, and data sets described by a TOML file."""

from __future__ import annotations

import filecmp
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from endauda_cli.domains import DOMAINS, IGNORED, Domain, Layout, Task, make_task, palette_of
from endauda_cli.errors import ConfigError, DataError, NoImagesError, NoLabelsError, did_you_mean, known_are
from endauda_cli.files import read_toml
from endauda_cli.masking import printable
from endauda_cli.names import id_fault, name_fault
from endauda_cli.patterns import filled, matching, pattern_fault, plain_name
from endauda_cli.progress import Note, silent

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from endauda_cli.progress import Reporter

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Sample:
    """One image of a split. ``id`` is the image file's stem; ``label`` is its ground truth, if any."""

    id: str
    image: Path
    label: Path | None


def find_samples(
    domain: Domain,
    roots: Iterable[Path],
    split: str,
    need_labels: bool = False,
    report: Reporter = silent,
) -> list[Sample]:
    """All images of a split, sorted by id, each with its ground truth if the data set has it.

    Args:
        domain: whose layouts are tried; one that finds labels too is preferred.
        roots: folders to look in; the first in which a layout finds images is taken.
        split: ``train``, ``val`` or ``test``.
        need_labels: refuse images without a ground truth.
        report: told of images that are left out because their names end in another way.

    Raises:
        DataError: if there are no images, two images share a stem or two labels belong to one image, a label that is
            needed is missing, or an image has a name that cannot be used.
    """
    roots = list(roots)
    for root in roots:
        fitting = [
            (layout, images)
            for layout in domain.layouts
            if split in layout.splits and (images := _glob(root, layout.images, split))
        ]
        if fitting:
            # The same images may have their labels in one of several places.
            with_labels = [fit for fit in fitting if _glob(root, fit[0].labels, split)]
            layout, images = (with_labels or fitting)[0]
            _tell_left_out(domain, root, layout, split, images, report)
            return _match(domain, root, layout, split, images, need_labels)
    patterns = [filled(p, split) for la in domain.layouts if split in la.splits for p in la.images]
    if not patterns:
        known = sorted({s for layout in domain.layouts for s in layout.splits})
        only = f"only {', '.join(known)}" if known else "nor any other"
        raise NoImagesError(
            f"{domain.name} has no split '{split}', {only}; add it to the TOML file: a table [{split}] with images"
        )
    raise NoImagesError(
        f"{domain.name}: no image of split '{split}' in {' or '.join(str(r) for r in roots)}; "
        f"expected files like {patterns[0]}"
    )


def one_per_image(paths: Iterable[Path], wanted: Collection[str] | None, kind: str) -> dict[str, Path]:
    """Files by the image that they belong to, their stem, for the wanted images (``None``: for all).

    Raises:
        DataError: if two files belong to one image.
    """
    forms = {plain_name(image): image for image in wanted or ()}
    found: dict[str, Path] = {}
    for path in paths:
        image = path.stem
        if wanted is not None and image not in wanted:
            if plain_name(image) not in forms:
                continue
            image = forms[plain_name(image)]
        if image in found:
            raise DataError(f"{path}: {found[image]} is a {kind} for the same image; remove one of them")
        found[image] = path
    return found


def load_domain(name: str) -> Domain:
    """A domain by its name, or from the TOML file of that path.

    Raises:
        ConfigError: if it is neither.
        DataError: if the TOML file does not describe a data set.
    """
    if name in DOMAINS:
        return DOMAINS[name]
    path = Path(name)
    if path.suffix == ".toml" or path.is_file():
        return _domain_from_toml(path)
    raise ConfigError(
        f"no data set {name!r}: known are {', '.join(sorted(DOMAINS))}, or the path of a .toml file"
        + did_you_mean(name, DOMAINS)
    )


DEFAULT_SOURCE = "gta5"


def load_task(source: str | None, target: str, folder: Path) -> Task:
    """Source and target as ``--source`` and ``--target`` name them.

    Without a source it is GTA5; with a TOML target, the target's own classes. A TOML file that is not where
    the name says is looked for in ``folder``, the workspace.

    Raises:
        EndaudaError: if one cannot be found, or their class tables disagree.
    """
    if source is None and target in DOMAINS:
        source = DEFAULT_SOURCE
    target_domain = load_domain(_in_folder(target, folder))
    return make_task(None if source is None else load_domain(_in_folder(source, folder)), target_domain)


def load_together(sources: Sequence[str], target: str, folder: Path) -> tuple[Task, tuple[Domain, ...]]:
    """Several labelled sources with one list of classes: that of the first which knows the classes of all.

    Returns:
        The task of that source, and the others among its classes: what they lack, their labels never show.

    Raises:
        EndaudaError: if one cannot be found, is named twice, or none knows the classes of all.
    """
    domains = [load_domain(_in_folder(name, folder)) for name in sources]
    for i, domain in enumerate(domains):
        for before in domains[:i]:
            if before.name == domain.name or (before.roots, before.layouts) == (domain.roots, domain.layouts):
                raise ConfigError(
                    f"--domains: {before.name} and {domain.name} are the same images; name them once"
                )
    widest = max(domains, key=lambda domain: len(domain.classes))
    others = tuple(domain.labelled_by(widest) for domain in domains if domain is not widest)
    return make_task(widest, load_domain(_in_folder(target, folder))), others


def _in_folder(name: str, folder: Path) -> str:
    inside = folder / name
    return str(inside) if inside.suffix == ".toml" and inside.is_file() and not Path(name).exists() else name


TOML_KEYS = {"name", "classes", "palette", "label_ids", "ignore_ids", *SPLITS}
MOST_ID = 0xFFFF
LONGEST_CLASS = 200
SAME_KIND = (("jpg", "jpeg"), ("png",), ("tif", "tiff"), ("bmp",), ("webp",), ("ppm", "pgm"))
"""Endings of one kind of image."""
SPLIT_KEYS = {"images", "labels", "image_suffix", "label_suffix"}


def _domain_from_toml(path: Path) -> Domain:
    try:
        table = read_toml(path)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: no such file; --source and --target take a name or a .toml file"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); name a .toml file") from error
    except ValueError as error:
        raise DataError(f"{path}: not valid TOML ({_cut(str(error))}); mend that line") from error
    _refuse_unknown(path, table, TOML_KEYS, "")
    classes = tuple(_class_name(path, name) for name in _strings(path, table.get("classes"), "classes"))
    palette = palette_of(classes)
    if "palette" in table:
        palette = tuple(_colour(path, colour) for colour in _list(path, table["palette"], "palette"))
    name = table.get("name", path.stem)
    if (fault := name_fault(name)) is not None:
        raise DataError(
            f"{path}: name must be a word that can name a folder, found {_shown(name)}, which {fault}; say "
            f'name = "..." in the file'
        )
    label_ids = _label_ids(path, table, classes)
    layouts = tuple(_layout(path, split, table[split]) for split in SPLITS if split in table)
    try:
        return Domain(
            name=name,
            classes=classes,
            palette=palette,
            label_ids=label_ids,
            others_ignored="ignore_ids" not in table,
            layouts=layouts,
            roots=(str(path.resolve().parent),),
            labels_root=f"labels/{name}",
        )
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _label_ids(path: Path, table: dict[str, Any], classes: Sequence[str]) -> dict[int, str]:
    named = table.get("label_ids", {str(i): name for i, name in enumerate(classes)})
    if not isinstance(named, dict):
        raise DataError(f'{path}: label_ids must be a table such as {{ "7" = "road" }}')
    ids: dict[int, str] = {}
    for key, name in named.items():
        if not re.fullmatch(r"0*[0-9]{1,5}", key) or int(key) > MOST_ID:
            raise DataError(f"{path}: label id {_shown(key)} is not a whole number from 0 to 65535")
        if name not in classes:
            raise DataError(f"{path}: label id {key} means {_shown(name)}, which is not one of the classes")
        ids[int(key)] = name
    for key in _list(path, table.get("ignore_ids", []), "ignore_ids"):
        if not isinstance(key, int) or isinstance(key, bool) or key in ids or not 0 <= key <= MOST_ID:
            raise DataError(f"{path}: ignore_ids holds {_shown(key)}, which is no id or names a class")
        ids[key] = IGNORED
    return ids


def _layout(path: Path, split: str, table: Any) -> Layout:
    if not isinstance(table, dict):
        raise DataError(f"{path}: [{split}] must be a table with images and labels")
    _refuse_unknown(path, table, SPLIT_KEYS, f"[{split}] ")
    return Layout(
        images=_patterns(path, table.get("images"), f"[{split}] images"),
        labels=_patterns(path, table.get("labels", []), f"[{split}] labels"),
        image_suffix=_suffix(path, split, table, "image_suffix"),
        label_suffix=_suffix(path, split, table, "label_suffix"),
        splits=(split,),
    )


def _patterns(path: Path, value: Any, what: str) -> tuple[str, ...]:
    patterns = _strings(path, value, what)
    for pattern in patterns:
        if (fault := pattern_fault(pattern)) is not None:
            raise DataError(
                f"{path}: {what}: {_shown(pattern)} is no pattern of files ({fault}); write * for any name and "
                "{split} for the split's"
            )
    return tuple(patterns)


def _suffix(path: Path, split: str, table: dict[str, Any], key: str) -> str:
    value = table.get(key, "")
    if not isinstance(value, str):
        raise DataError(f"{path}: [{split}] {key} must be a string, but is {_shown(value)}")
    return value


def _class_name(path: Path, name: str) -> str:
    if len(name) > LONGEST_CLASS or not name.strip() or re.search(r"[\n\t]", name) or name != printable(name):
        raise DataError(
            f"{path}: class name {_shown(name)} is empty, longer than {LONGEST_CLASS} letters, or holds characters "
            "that cannot be shown; give it a name"
        )
    return name


def _shown(value: Any) -> str:
    """A stranger's value in a message."""
    try:
        return _cut(repr(value))
    except (ValueError, RecursionError):
        return "something of thousands of digits or brackets"


def _cut(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:79]}…"


def _refuse_unknown(path: Path, table: dict[str, Any], known: set[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise DataError(f"{path}: unknown key {where}{_cut(key)}{known_are(key, sorted(known))}")


def _strings(path: Path, value: Any, what: str) -> list[str]:
    strings = [value] if isinstance(value, str) else _list(path, value, what)
    if not all(isinstance(item, str) and item for item in strings):
        raise DataError(f"{path}: {what} must hold strings")
    return strings


def _list(path: Path, value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        found = "is missing" if value is None else f"is {_shown(value)}"
        raise DataError(f"{path}: {what} must be a list, but {found}")
    return value


def _colour(path: Path, value: Any) -> tuple[int, int, int]:
    if not (
        isinstance(value, list)
        and len(value) == 3
        and all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v <= 255 for v in value)
    ):
        raise DataError(
            f"{path}: palette holds {_shown(value)}, but a colour is three whole numbers from 0 to 255"
        )
    return value[0], value[1], value[2]


def _glob(root: Path, patterns: Iterable[str], split: str) -> list[Path]:
    found = {path for pattern in patterns for path in matching(root, filled(pattern, split))}
    visible = (path for path in found if not path.name.startswith("."))
    return sorted(visible, key=lambda path: (path.stem, str(path)))


def _tell_left_out(
    domain: Domain, root: Path, layout: Layout, split: str, images: Sequence[Path], report: Reporter
) -> None:
    """Tell of files that only a pattern's last letters keep out: ``.JPG`` and ``.jpeg`` beside ``*.jpg``."""
    taken, others = {path.stem for path in images}, []
    for pattern in layout.images:
        stem, dot, ending = pattern.rpartition(".")
        alike = next((kind for kind in SAME_KIND if ending.lower() in kind), ())
        if dot and alike:
            left_out = (path for path in _glob(root, [f"{stem}.*"], split) if path.stem not in taken)
            others += [path for path in left_out if path.suffix[1:].lower() in alike]
    if others:
        report(
            Note(
                f"{domain.name} {split}: {len(others)} files beside the {len(images)} images are left out, because "
                f"their names end in another way than the pattern: {_shown(str(others[0]))}; rename them, or add a "
                "pattern",
                "warning",
            )
        )


def _match(
    domain: Domain, root: Path, layout: Layout, split: str, images: list[Path], need_labels: bool
) -> list[Sample]:
    labels = _Labels(root, layout, split)
    samples: list[Sample] = []
    for image in images:
        if (fault := id_fault(image.stem)) is not None:
            raise DataError(f"{printable(str(image))}: the name of the file {fault}; rename it")
        if samples and samples[-1].id == image.stem:
            raise DataError(
                f"{domain.name}: two images are called {image.stem}: {samples[-1].image} and {image}; "
                "images are known by their file name, so give each its own"
            )
        label = labels.of(image)
        if label is None and need_labels:
            expected = [filled(p, split) for p in layout.labels]
            where = (
                f"expected in {root} as {expected[0]}"
                if expected
                else "this data set has no labels for this split"
            )
            raise NoLabelsError(f"{image}: no label file belongs to it; {where}")
        samples.append(Sample(image.stem, image, label))
    return samples


class _Labels:
    """The label files of a split, by the stem that an image has once its suffix is taken off."""

    def __init__(self, root: Path, layout: Layout, split: str) -> None:
        self._suffix = layout.image_suffix
        self._exact: dict[str, list[Path]] = {}
        self._composed: dict[str, list[Path]] = {}
        for path in _glob(root, layout.labels, split):
            stem = path.stem.removesuffix(layout.label_suffix)
            self._exact.setdefault(stem, []).append(path)
            self._composed.setdefault(plain_name(stem), []).append(path)

    def of(self, image: Path) -> Path | None:
        """The label file of an image, if there is one; its name may be in another Unicode form.

        Raises:
            DataError: if there are two that differ.
        """
        stem = image.stem.removesuffix(self._suffix)
        found = self._exact.get(stem) or self._composed.get(plain_name(stem)) or []
        for other in found[1:]:
            if not _same_content(found[0], other):
                raise DataError(
                    f"{image}: two label files belong to it, {found[0]} and {other}; remove one, or write the pattern "
                    "of labels so that it finds one"
                )
        return found[0] if found else None


def _same_content(one: Path, other: Path) -> bool:
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False
