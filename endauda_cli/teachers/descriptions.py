"""Store: the small TOML that tells what a network of unknown origin wants and says.

A program or a checkpoint does not know its preprocessing, and a wrong one is never noticed but in the score. So
it is written down beside the file:

    classes = ["road", "car", "person"]     # of the outputs, in order; default: the task's; or "ade20k" (class_maps)
    absent = ["train"]                      # classes of the task that no output stands for
    [map]                                   # output -> class of the task where names differ; "" for none
    pedestrian = "person"
    [input]
    size = [1024, 512]                      # width, height; or longer_side = 2048; default: the image's own
    filter = "bilinear"                     # of the resizing: nearest, bilinear, bicubic (Pillow's), opencv
    channels = "rgb"                        # or bgr
    divisor = 255                           # of pixel values, before mean and std
    mean = [0.485, 0.456, 0.406]
    std = [0.229, 0.224, 0.225]
    multiple_of = 32                        # pads the sides at the right and at the bottom
    [output]
    kind = "logits"                         # or probabilities, or scores, as of a universal segmenter's masks
    softmax = "after"                       # or before upsampling
    align_corners = true                    # of the upsampling
    heads = [1.0]                           # weights in the sum of several outputs; 0 leaves one out
    [passes]
    scales = [1.0]
    flip = false
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from endauda_cli.errors import ConfigError, known_are
from endauda_cli.files import read_toml, toml_line, toml_text
from endauda_cli.segmenter import ClassMap, Procedure
from endauda_cli.teachers.class_maps import content_of, in_order
from endauda_cli.transforms import FILTERS, Preprocessing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from endauda_cli.segmenter import Segmenter

PROGRAM_INPUT = Preprocessing(size=None, filter="bilinear", bgr=False, divisor=255.0, mean=(0, 0, 0))
"""What a program's description starts from."""
MAX_SIDE = 65_536
"""Of a network's input, in pixels."""
_MAX_NAME = 200
"""Letters of a class name."""
_MAX_CLASSES = 10_000

_KEYS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "": {
        "title": str,
        "source": list,
        "classes": (list, str),
        "further": list,
        "absent": list,
        "map": dict,
        "input": dict,
        "output": dict,
        "passes": dict,
    },
    "input": {
        "size": list,
        "longer_side": int,
        "filter": str,
        "channels": str,
        "divisor": (int, float),
        "mean": list,
        "std": list,
        "multiple_of": int,
    },
    "output": {"kind": str, "softmax": str, "align_corners": bool, "heads": list},
    "passes": {"scales": list, "flip": bool},
}
_CHOICES = {
    ("input", "filter"): FILTERS,
    ("input", "channels"): ("rgb", "bgr"),
    ("output", "kind"): ("logits", "probabilities", "scores"),
    ("output", "softmax"): ("after", "before"),
}


@dataclass(frozen=True)
class Description:
    """What a TOML says of a network; what it leaves out stays as it was."""

    path: Path
    tables: Mapping[str, Mapping[str, Any]]
    classes: tuple[str, ...] | None = None
    absent: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    shipped: str | None = None
    """The name of the map that the classes come from, if they do (``class_maps``)."""
    further: tuple[str, ...] = ()
    """Outputs that some networks of these classes have behind them."""

    def preprocessing(self, base: Preprocessing) -> Preprocessing:
        """``base`` with what ``[input]`` says."""
        given = dict(self.tables["input"])
        changes: dict[str, Any] = {
            key: given[key] for key in ("filter", "multiple_of", "longer_side") if key in given
        }
        if "channels" in given:
            changes["bgr"] = given["channels"] == "bgr"
        if "divisor" in given:
            (changes["divisor"],) = self._numbers("[input] divisor", [given["divisor"]], 1)
        for key in ("mean", "std"):
            if key in given:
                changes[key] = self._numbers(f"[input] {key}", given[key], 3)
        if "size" in given:
            width, height = self._numbers("[input] size", given["size"], 2)
            if width != int(width) or height != int(height):
                raise ConfigError(
                    f"{self.path}: [input] size = {given['size']}: expected whole numbers of pixels"
                )
            changes |= {"size": (int(width), int(height)), "within": None}
        elif "longer_side" in given:
            changes |= {"size": None, "within": None}
        made = replace(base, **changes)
        smallest = min(
            [made.multiple_of, made.longer_side or 1, *(made.size or (1,)), *made.std, made.divisor]
        )
        if smallest <= 0:
            raise ConfigError(f"{self.path}: [input] has {smallest:g} where only numbers above 0 make sense")
        largest = max(made.multiple_of, made.longer_side or 1, *(made.size or (1,)))
        if largest > MAX_SIDE:
            raise ConfigError(
                f"{self.path}: [input] has a side of {largest:.6g} pixels; networks take at most {MAX_SIDE:,}"
            )
        return made

    def procedure(self, base: Procedure) -> Procedure:
        """``base`` with what ``[output]`` and ``[passes]`` say."""
        output, passes = self.tables["output"], self.tables["passes"]
        if base.softmax == "scores" and {"softmax", "kind"} & set(output):
            raise ConfigError(
                f"{self.path}: [output] says kind or softmax, but a universal segmenter's outputs are scores of masks, "
                "neither logits nor a softmax; leave it out"
            )
        changes: dict[str, Any] = {}
        if "softmax" in output:
            changes["softmax"] = {"before": "first", "after": "last"}[output["softmax"]]
        if (kind := output.get("kind", "logits")) != "logits":
            if "softmax" in output:
                raise ConfigError(f"{self.path}: [output] softmax: there is none after {kind}; leave it out")
            changes["softmax"] = {"probabilities": "none"}.get(kind, kind)
        if "heads" in output:
            heads = changes["heads"] = self._numbers("[output] heads", output["heads"], None)
            total = sum(heads)
            if min(heads) < 0 or total <= 0:
                raise ConfigError(
                    f"{self.path}: [output] heads = {_shown(output['heads'])}: expected weights of 0 or more, and one "
                    "above 0"
                )
            if changes.get("softmax") == "none" and abs(total - 1) > 1e-3:
                raise ConfigError(
                    f"{self.path}: [output] heads = {_shown(output['heads'])}: weights of probabilities must sum to "
                    f"1, so say heads = [{', '.join(f'{head / total:.4g}' for head in heads)}]"
                )
        if "align_corners" in output:
            changes["align_corners"] = output["align_corners"]
        if "scales" in passes:
            changes["scales"] = self._numbers("[passes] scales", passes["scales"], None)
        if "flip" in passes:
            changes["flip"] = passes["flip"]
        return replace(base, **changes)

    def _numbers(self, where: str, values: Sequence[Any], count: int | None) -> tuple[float, ...]:
        fits = values and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        if not fits or (count is not None and len(values) != count):
            raise ConfigError(
                f"{self.path}: {where} = {_shown(values)}: expected {count or 'one or more'} numbers"
            )
        if not all(abs(value) <= 1e9 for value in values):  # so no NaN either
            raise ConfigError(f"{self.path}: {where} = {_shown(values)}: no such number makes sense here")
        return tuple(float(value) for value in values)


def read_description(path: Path) -> Description:
    """Read and check a TOML.

    Raises:
        ConfigError: if it is absent, no TOML, or says something that has no meaning.
    """
    try:
        content = read_toml(path)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); a description in TOML was expected"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{path}: no TOML ({error!s:.200})") from error
    return _description(path, content)


def read_classes(given: str | Path) -> Description:
    """Classes alone: a map known by name, or a TOML of which nothing else is taken.

    Raises:
        ConfigError: as ``read_description``, or if no map has that name, or if it says more than classes.
    """
    if isinstance(given, str):
        return _description(Path(f"{given}.toml"), {"classes": given})
    said = read_description(given)
    more = next((name for name, table in said.tables.items() if table), None)
    if more is not None:
        raise ConfigError(
            f"{given}: has [{more}], but a map of classes has classes, absent and [map] alone; name it with "
            "--description"
        )
    return said


def with_classes(said: Description | None, mapped: Description) -> Description:
    """A description with the classes of another.

    Raises:
        ConfigError: if it has classes itself.
    """
    if said is None:
        return mapped
    if said.classes or said.absent or said.names:
        raise ConfigError(
            f"{said.path}: says classes itself, and --classes would say them again; leave one out"
        )
    return replace(mapped, path=said.path, tables=said.tables)


def _description(path: Path, content: Mapping[str, Any]) -> Description:
    _check(path, "", content)
    if isinstance(shipped := content.get("classes"), str):
        own = _description(path, {**content, "classes": []})
        base = _description(Path(f"{shipped}.toml"), content_of(shipped))
        _refuse_unlisted(path, own.names, (*(base.classes or ()), *base.further))
        names = {**base.names, **own.names}
        absent = tuple(name for name in base.absent if name not in names.values())
        return replace(
            own, classes=base.classes, further=base.further, names=names, shipped=shipped,
            absent=tuple(dict.fromkeys((*absent, *own.absent))),
        )  # fmt: skip
    tables = {name: content.get(name, {}) for name in ("input", "output", "passes")}
    for name, table in tables.items():
        _check(path, name, table)
    names = content.get("map", {})
    lists = {key: content.get(key, []) for key in ("classes", "absent", "further", "source")}
    if not all(isinstance(value, str) for values in (*lists.values(), names.values()) for value in values):
        raise ConfigError(f"{path}: classes, absent and [map] hold names of classes, so strings")
    _check_names(path, (*lists["classes"], *lists["absent"], *lists["further"], *names, *names.values()))
    classes = tuple(lists["classes"]) or None
    if classes is not None:
        _refuse_unlisted(path, names, (*classes, *lists["further"]))
    return Description(path, tables, classes, tuple(lists["absent"]), names, further=tuple(lists["further"]))


def fitted(
    said: Description, outputs: Sequence[str] | None, classes: Sequence[str], where: Path
) -> Description:
    """A map that is known by name, for one network and task.

    Args:
        said: the map; any other description comes back as it is.
        outputs: what the network calls its outputs, or ``None``: then they are in the map's order.
        classes: the task's. What the map has beyond these has no class.
        where: the network's file, for messages.

    Raises:
        ConfigError: if the outputs are not the map's, or the task has a class that the map knows nothing of.
    """
    if said.shipped is None:
        return said
    if outputs is not None:
        order = in_order(said.shipped, said.classes or (), said.further, outputs, where)
        said = replace(said, classes=order)
    known = {*said.names.values(), *(said.classes or ()), *said.absent}
    unknown = [name for name in classes if name not in known]
    if unknown:
        raise ConfigError(
            f"{where}: {said.shipped} joins outputs with Cityscapes' classes, and has none for {', '.join(unknown)}; "
            "write a TOML with classes and [map] of your own, and name that instead"
        )
    names = {output: name if name in classes else "" for output, name in said.names.items()}
    return replace(said, names=names, absent=tuple(name for name in said.absent if name in classes))


def description_text(segmenter: Segmenter, classes: Sequence[str], remark: str) -> str:
    """The TOML that says what a segmenter does around its network; :func:`read_description` gives the same back.

    Args:
        segmenter: its preprocessing, procedure and class map.
        classes: the task's.
        remark: the first line, a comment.
    """
    made, run, joined = segmenter.preprocessing, segmenter.procedure, segmenter.class_map
    outputs = tuple(classes) if joined is None else joined.outputs
    lines = [f"# {remark}", toml_line("classes", list(outputs))]
    if joined is not None:
        lines += [toml_line("absent", [classes[c] for c in joined.absent]), "[map]"]
        lines += [
            f"{toml_text(output)} = {toml_text('' if target is None else classes[target])}"
            for output, target in zip(outputs, joined.targets, strict=True)
        ]
    lines.append("[input]")
    if made.size is not None:
        lines.append(f"size = {list(made.size)}  # width, height")
    elif made.longer_side is not None:
        lines.append(f"longer_side = {made.longer_side}")
    lines += [
        toml_line("filter", made.filter),
        toml_line("channels", "bgr" if made.bgr else "rgb"),
        f"divisor = {made.divisor!r}  # of pixel values, before mean and std",
        f"mean = {list(made.mean)}",
        f"std = {list(made.std)}",
        f"multiple_of = {made.multiple_of}",
        "[output]",
        toml_line("kind", {"none": "probabilities", "scores": "scores"}.get(run.softmax, "logits")),
    ]
    if run.softmax not in ("none", "scores"):
        lines.append(f"{toml_line('softmax', 'before' if run.softmax == 'first' else 'after')}  # upsampling")
    lines += [
        toml_line("align_corners", run.align_corners),
        f"heads = {list(run.heads)}",
        "[passes]",
        f"scales = {list(run.scales)}",
        toml_line("flip", run.flip),
    ]
    return "\n".join(lines) + "\n"


def refuse_unsaid(path: Path, segmenter: Segmenter, where: Path) -> None:
    """Make sure that the description at ``path`` says all that the segmenter does.

    Raises:
        ConfigError: names what it cannot say of the network in ``where``.
    """
    said, run = read_description(path), segmenter.procedure
    if run.scales == (1.0,):
        run = replace(run, rescale="pixels")  # nothing is rescaled
    pairs = (
        (segmenter.preprocessing, said.preprocessing(PROGRAM_INPUT)),
        (run, said.procedure(Procedure())),
        (segmenter.temperature, 1.0),
    )
    for meant, found in pairs:
        if meant != found:
            unsaid = (
                [f.name for f in fields(meant) if getattr(meant, f.name) != getattr(found, f.name)]
                if is_dataclass(meant) and not isinstance(meant, type)
                else ["temperature"]
            )
            raise ConfigError(
                f"{where}: a description cannot say its {' and '.join(unsaid)}, so no other program could run it as it "
                "is meant; deploy a student that was trained on its labels instead"
            )


def join_classes(
    where: Path,
    outputs: Sequence[str] | None,
    classes: Sequence[str],
    description: Description | None,
) -> ClassMap | None:
    """The map from a network's outputs to the task's classes; ``None`` where its outputs are these classes.

    Args:
        where: the network's file, for messages.
        outputs: what the network itself calls its outputs, or ``None``.
        classes: the task's.
        description: what the user says.

    Raises:
        ConfigError: if a class of the task has no output and is not said to be absent.
    """
    named = description.classes if description is not None and description.classes else outputs
    names = description.names if description is not None else {}
    absent = description.absent if description is not None else ()
    for name in (*(n for n in names.values() if n), *absent):
        if name not in classes:
            raise ConfigError(f"{where}: class {name!r:.80} is none of the task's ({', '.join(classes)})")
    joined = ClassMap.by_name(named or classes, classes, names)
    missing = [classes[c] for c in joined.absent if classes[c] not in absent]
    if missing:
        raise ConfigError(
            f"{where}: no output stands for {', '.join(missing)}; its outputs are {_listed(named or ())}: join them "
            "by name in a description's [map], or by --classes where it was trained on a known data set, or list the "
            "class as absent"
        )
    return None if joined.is_identity and joined.outputs == tuple(classes) else joined


def _listed(names: Sequence[str]) -> str:
    return ", ".join([*names[:20], f"and {len(names) - 20} more"] if len(names) > 20 else names)


def _refuse_unlisted(path: Path, names: Mapping[str, str], classes: Sequence[str]) -> None:
    unknown = next((name for name in names if name not in classes), None)
    if unknown is not None:
        raise ConfigError(
            f"{path}: [map] names an output {unknown!r:.80}, but classes lists none of that name"
        )


def _check_names(path: Path, names: Sequence[str]) -> None:
    if len(names) > 4 * _MAX_CLASSES:
        raise ConfigError(f"{path}: {len(names):,} names of classes; at most {_MAX_CLASSES:,} make sense")
    for name in names:
        if len(name) > _MAX_NAME or not (name.isprintable() or not name):
            raise ConfigError(
                f"{path}: {name!r:.80} is no class name: at most {_MAX_NAME} letters, none of them a control character"
            )


def _shown(value: object) -> str:
    """Cut; an int of thousands of digits cannot be printed at all."""
    try:
        text = repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:79]}…"


def _check(path: Path, name: str, table: Mapping[str, Any]) -> None:
    """Refuse what nobody would look at: unknown keys, other types, other words."""
    where = f"{path}: [{name}] " if name else f"{path}: "
    for key, value in table.items():
        if key not in _KEYS[name]:
            raise ConfigError(f"{where}{key!s:.80} has no meaning{known_are(key, _KEYS[name])}")
        if not isinstance(value, _KEYS[name][key]) or (
            isinstance(value, bool) and _KEYS[name][key] is not bool
        ):
            raise ConfigError(f"{where}{key} = {_shown(value)} is of another type than expected")
        choices = _CHOICES.get((name, key))
        if choices is not None and value not in choices:
            raise ConfigError(f"{where}{key} = {_shown(value)}: one of {', '.join(choices)}")
