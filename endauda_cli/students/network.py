"""A student's network without its weights: values from which it is built, in a checkpoint and out of it again."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from endauda_cli.errors import CheckpointError
from endauda_cli.models import build_student
from endauda_cli.segmenter import Procedure, Windows
from endauda_cli.students.families import FAMILIES, Own
from endauda_cli.transforms import FILTERS, STUDENT, Preprocessing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from endauda_cli.models import Student

__all__ = ["Network", "Own", "build", "deeplab", "from_record", "to_record"]

DEEPLAB = "deeplab"


@dataclass(frozen=True)
class Network:
    """What a student is.

    Attributes:
        family: ``deeplab``, or a key of ``families.FAMILIES``.
        arch, backbone: what it is called; ``backbone`` may be empty.
        settings: plain values from which its family builds it, whatever the number of classes is.
        preprocessing: of images; its ``size`` is the recipe's.
        procedure: how it is run as a teacher.
        tested: how it is run to be scored.
    """

    family: str
    arch: str
    backbone: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: Preprocessing = STUDENT
    procedure: Procedure = field(default_factory=Procedure)
    tested: Procedure = field(default_factory=Procedure)

    @property
    def title(self) -> str:
        """In a few words."""
        return f"{self.arch} on {self.backbone}" if self.backbone else self.arch

    @property
    def word(self) -> str:
        """For the name of a run."""
        return f"{self.arch}-{self.backbone}" if self.backbone else self.arch


def deeplab(arch: str, backbone: str) -> Network:
    """The reference's: it is scored with the softmax before upsampling, and exported with it after."""
    return Network(DEEPLAB, arch, backbone, tested=Procedure(softmax="first"))


def build(network: Network, num_classes: int) -> Student:
    """The network with fresh random weights, in train mode, on the CPU; nothing is ever downloaded.

    Raises:
        ConfigError: if the library or package that has it is not installed, or cannot build it.
    """
    if network.family == DEEPLAB:
        return build_student(network.arch, network.backbone, num_classes)
    return FAMILIES[network.family](network.settings, num_classes, network.procedure.align_corners)


def mirrored(network: Network) -> Network:
    """The network run over each image and its mirror image; of our DeepLabs a checkpoint could not say so."""
    if network.family == DEEPLAB:
        return network
    runs = {name: replace(getattr(network, name), flip=True) for name in ("procedure", "tested")}
    return replace(network, **runs)


# ---------------------------------------------------------------------------- in a checkpoint


def to_record(network: Network) -> dict[str, Any]:
    """The network as a checkpoint keeps it: plain values."""
    images, windows = network.preprocessing, network.procedure.windows
    return {
        "family": network.family,
        "arch": network.arch,
        "backbone": network.backbone,
        "settings": dict(network.settings),
        "input": {key: getattr(images, key) for key in _INPUT},
        "output": {
            "align_corners": network.procedure.align_corners,
            "softmax": network.procedure.softmax,
            "windows": None if windows is None else [windows.side, windows.stride, windows.multiple_of],
            **({"flip": True} if network.procedure.flip else {}),
        },
    }


def from_record(path: Path, record: object) -> Network:
    """The network that a checkpoint speaks of.

    Raises:
        CheckpointError: names what is not as it should be.
    """

    def part(name: str, fits: Callable[[Any], bool], expected: str, of: object = record) -> Any:
        value = of.get(name) if isinstance(of, dict) else None
        if not fits(value):
            raise CheckpointError(
                f"{path}: its network's {name} is {value!r:.80}, but {expected} was expected; the file is damaged or "
                "forged, or written by a later version"
            )
        return value

    family = part("family", lambda v: isinstance(v, str) and v in FAMILIES, f"one of {', '.join(FAMILIES)}")
    arch, backbone = (part(name, _is_word, "a name") for name in ("arch", "backbone"))
    settings = part("settings", lambda v: isinstance(v, dict), "a table")
    said = part("input", lambda v: isinstance(v, dict), "a table")
    images = {name: part(name, *rule, of=said) for name, rule in _INPUT.items()}
    for name in ("mean", "std"):
        images[name] = tuple(map(float, images[name]))
    out = part("output", lambda v: isinstance(v, dict), "a table")
    windows = part("windows", _is_windows, "nothing, or side, stride and multiple of windows", of=out)
    procedure = Procedure(
        flip=part("flip", lambda v: v is None or isinstance(v, bool), "true or false", of=out) or False,
        align_corners=part("align_corners", lambda v: isinstance(v, bool), "true or false", of=out),
        softmax=part("softmax", lambda v: v in _SOFTMAX, f"one of {', '.join(_SOFTMAX)}", of=out),
        windows=None if windows is None else Windows(*windows),
    )
    made = Preprocessing(**images)
    return Network(family, arch, backbone, settings, made, procedure, procedure)


def _is_word(value: object) -> bool:
    return isinstance(value, str) and len(value) <= 300


def _is_number(value: object) -> bool:
    # An int may be too large to be a float at all.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


def _are_three(value: object, positive: bool = False) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 3
        and all(_is_number(number) and (number > 0 or not positive) for number in value)
    )


def _is_windows(value: object) -> bool:
    if value is None:
        return True
    if not isinstance(value, list | tuple) or len(value) != 3 or any(type(n) is not int for n in value):
        return False
    side, stride, multiple = value
    return bool(0 < stride <= side <= 1 << 16 and 0 < multiple <= side and side % multiple == 0)


_LARGEST = 1e9
_SOFTMAX = ("last", "scores")
_INPUT: dict[str, tuple[Callable[[Any], bool], str]] = {
    "filter": (lambda v: isinstance(v, str) and v in FILTERS, f"one of {', '.join(FILTERS)}"),
    "bgr": (lambda v: isinstance(v, bool), "true or false"),
    "mean": (_are_three, "three numbers"),
    "std": (lambda v: _are_three(v, positive=True), "three numbers above 0"),
    "divisor": (lambda v: _is_number(v) and v > 0, "a number above 0"),
    "multiple_of": (lambda v: type(v) is int and 0 < v <= 4096, "a whole number above 0"),
}
"""Fields of ``Preprocessing`` that a network has, whatever the size of its input: whether a value fits, what does."""
