"""Store: which images and label files a data set has on disk, and data sets described by a TOML file."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from endauda_cli.domains import DOMAINS, IGNORED, Domain, Layout, Task, make_task, palette_of
from endauda_cli.errors import ConfigError, DataError, NoImagesError, did_you_mean, known_are

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Sample:
    """One image of a split. ``id`` is the image file's stem; ``label`` is its ground truth, if any."""

    id: str
    image: Path
    label: Path | None


def find_samples(
    domain: Domain, roots: Iterable[Path], split: str, need_labels: bool = False
) -> list[Sample]:
    """All images of a split, sorted by id, each with its ground truth if the data set has it.

    Args:
        domain: whose layouts are tried; one that finds labels too is preferred.
        roots: folders to look in; the first in which a layout finds images is taken.
        split: ``train``, ``val`` or ``test``.
        need_labels: refuse images without a ground truth.

    Raises:
        DataError: if there are no images, two images share a stem, or a label that is needed is missing.
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
            return _match(domain, root, layout, split, images, need_labels)
    patterns = [p.format(split=split) for la in domain.layouts if split in la.splits for p in la.images]
    if not patterns:
        known = sorted({s for layout in domain.layouts for s in layout.splits})
        raise NoImagesError(
            f"{domain.name} has no split '{split}', only {', '.join(known)}; add it to the TOML file"
        )
    raise NoImagesError(
        f"{domain.name}: no image of split '{split}' in {' or '.join(str(r) for r in roots)}; "
        f"expected files like {patterns[0]}"
    )


def one_per_image(paths: Iterable[Path], wanted: Container[str] | None, kind: str) -> dict[str, Path]:
    """Files by the image that they belong to, their stem, for the wanted images (``None``: for all).

    Raises:
        DataError: if two files belong to one image.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if wanted is not None and path.stem not in wanted:
            continue
        if path.stem in found:
            raise DataError(f"{path}: {found[path.stem]} is a {kind} for the same image; remove one of them")
        found[path.stem] = path
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


def _in_folder(name: str, folder: Path) -> str:
    inside = folder / name
    return str(inside) if inside.suffix == ".toml" and inside.is_file() and not Path(name).exists() else name


TOML_KEYS = {"name", "classes", "palette", "label_ids", "ignore_ids", *SPLITS}
SPLIT_KEYS = {"images", "labels", "image_suffix", "label_suffix"}


def _domain_from_toml(path: Path) -> Domain:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: no such file; --source and --target take a name or a .toml file"
        ) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"{path}: not valid TOML ({error})") from error
    _refuse_unknown(path, table, TOML_KEYS, "")
    classes = tuple(_strings(path, table.get("classes"), "classes"))
    palette = palette_of(classes)
    if "palette" in table:
        palette = tuple(_colour(path, colour) for colour in _list(path, table["palette"], "palette"))
    name = table.get("name", path.stem)
    if not isinstance(name, str) or not name or "/" in name or name.startswith("."):
        raise DataError(f"{path}: name must be a word that can name a folder, found {name!r}")
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
        if not (key.isascii() and key.isdecimal()) or int(key) > 0xFFFF:
            raise DataError(f"{path}: label id {key!r} is not a whole number from 0 to 65535")
        if name not in classes:
            raise DataError(f"{path}: label id {key} means {name!r}, which is not one of the classes")
        ids[int(key)] = name
    for key in _list(path, table.get("ignore_ids", []), "ignore_ids"):
        if not isinstance(key, int) or key in ids:
            raise DataError(f"{path}: ignore_ids holds {key!r}, which is no id or names a class")
        ids[key] = IGNORED
    return ids


def _layout(path: Path, split: str, table: Any) -> Layout:
    if not isinstance(table, dict):
        raise DataError(f"{path}: [{split}] must be a table with images and labels")
    _refuse_unknown(path, table, SPLIT_KEYS, f"[{split}] ")
    return Layout(
        images=_patterns(path, table.get("images"), f"[{split}] images"),
        labels=_patterns(path, table.get("labels", []), f"[{split}] labels"),
        image_suffix=str(table.get("image_suffix", "")),
        label_suffix=str(table.get("label_suffix", "")),
        splits=(split,),
    )


def _patterns(path: Path, value: Any, what: str) -> tuple[str, ...]:
    patterns = _strings(path, value, what)
    for pattern in patterns:
        try:
            plain = Path(pattern.format(split="train"))
            next(Path(f"{path}.none").glob(str(plain.relative_to(plain.anchor))), None)
        except (ValueError, KeyError, IndexError) as error:
            raise DataError(
                f"{path}: {what}: {pattern!r} is no pattern of files ({error}); write * for any name and {{split}} "
                "for the split's"
            ) from error
    return tuple(patterns)


def _refuse_unknown(path: Path, table: dict[str, Any], known: set[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise DataError(f"{path}: unknown key {where}{key}{known_are(key, sorted(known))}")


def _strings(path: Path, value: Any, what: str) -> list[str]:
    strings = [value] if isinstance(value, str) else _list(path, value, what)
    if not all(isinstance(item, str) and item for item in strings):
        raise DataError(f"{path}: {what} must hold strings")
    return strings


def _list(path: Path, value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        found = "is missing" if value is None else f"is {value!r}"
        raise DataError(f"{path}: {what} must be a list, but {found}")
    return value


def _colour(path: Path, value: Any) -> tuple[int, int, int]:
    if not (
        isinstance(value, list)
        and len(value) == 3
        and all(isinstance(v, int) and 0 <= v <= 255 for v in value)
    ):
        raise DataError(f"{path}: palette holds {value!r}, but a colour is three whole numbers from 0 to 255")
    return value[0], value[1], value[2]


def _glob(root: Path, patterns: Iterable[str], split: str) -> list[Path]:
    found: list[Path] = []
    for pattern in patterns:
        pattern = pattern.format(split=split)
        folder, anchor = root, Path(pattern).anchor
        if anchor:
            folder, pattern = Path(anchor), str(Path(pattern).relative_to(anchor))
        if folder.is_dir():
            found += [path for path in folder.glob(pattern) if not path.name.startswith(".")]
    return sorted(set(found), key=lambda path: (path.stem, str(path)))


def _match(
    domain: Domain, root: Path, layout: Layout, split: str, images: list[Path], need_labels: bool
) -> list[Sample]:
    labels = {p.stem.removesuffix(layout.label_suffix): p for p in _glob(root, layout.labels, split)}
    samples: list[Sample] = []
    for image in images:
        if samples and samples[-1].id == image.stem:
            raise DataError(
                f"{domain.name}: two images are called {image.stem}: {samples[-1].image} and {image}; "
                "images are known by their file name, so give each its own"
            )
        label = labels.get(image.stem.removesuffix(layout.image_suffix))
        if label is None and need_labels:
            expected = [p.format(split=split) for p in layout.labels]
            where = (
                f"expected in {root} as {expected[0]}"
                if expected
                else "this data set has no labels for this split"
            )
            raise DataError(f"{image}: no label file belongs to it; {where}")
        samples.append(Sample(image.stem, image, label))
    return samples
