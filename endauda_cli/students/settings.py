"""What a library may be told: settings of networks, from a folder or a checkpoint, looked at before they are used."""

from __future__ import annotations

import inspect
import json
import re
from typing import TYPE_CHECKING, Any

from endauda_cli.errors import CheckpointError
from endauda_cli.files import read_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import nn

_MOST_OF = (
    ("label", 10_000),
    ("class", 10_000),
    ("head", 4_096),
)
"""Word in the name of a setting -> the most that it can be; a library makes a table or layers for each, at once."""
_MOST = 1 << 24
_DEEP = ("layers", "depth", "depths", "blocks")
_MOST_DEEP = 256
"""How a setting ends that says how many layers there are, and the most that all of them together can be: the deepest
networks have a hundred, and laying out a few hundred takes seconds."""
_LONGEST_LIST = 300
_ENCODER = re.compile(r"(tu-)?[A-Za-z0-9][\w.+-]*", re.ASCII)
"""Names of segmentation-models-pytorch and timm. Whatever has a colon or slash leads to a hub or another folder."""
_WORDS = ("act_layer", "norm_layer", "global_pool")
"""Settings that timm takes as words; other words may be paths, such as ``checkpoint_path``."""


def read_json(path: Path) -> dict[str, Any]:
    """The table in a folder's JSON file.

    Raises:
        CheckpointError: if there is none.
    """
    try:
        content = json.loads(read_text(path))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent}: a folder without {path.name}; expected what save_pretrained wrote, or a file of weights"
        ) from error
    except RecursionError as error:
        raise CheckpointError(f"{path}: cannot be read as JSON (nested too deeply)") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path}: cannot be read as JSON ({reason})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no table, but settings were expected")
    return content


def numbers_in(value: Any, key: str = "settings") -> Iterator[tuple[str, int | float]]:
    """All numbers in settings, each with the nearest key above it."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from numbers_in(inner, str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from numbers_in(inner, key)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield key, value


def lists_in(value: Any) -> Iterator[list[Any]]:
    """All lists in settings."""
    if isinstance(value, list):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from lists_in(inner)


def refuse_numbers(path: Path, config: dict[str, Any]) -> None:
    """Numbers that no network has, before a library makes a table or layers of them."""
    longest = max((len(each) for each in lists_in(config)), default=0)
    if longest > _LONGEST_LIST:
        raise CheckpointError(
            f"{path}: has a list of {longest:,} values, but at most {_LONGEST_LIST:,} were expected; the file is "
            "damaged or forged"
        )
    layers = sum(max(0, n) for key, n in numbers_in(config) if isinstance(n, int) and key.endswith(_DEEP))
    if layers > _MOST_DEEP:
        raise CheckpointError(
            f"{path}: speaks of more than {_MOST_DEEP} layers, which no network has; the file is damaged or forged"
        )
    for key, number in numbers_in(config):
        counted = key.startswith(("num_", "n_")) or key == "classes"
        most = next((most for word, most in _MOST_OF if word in key and counted), _MOST)
        if isinstance(number, int) and not -_MOST <= number <= most:
            raise CheckpointError(
                f"{path}: {key!r:.80} is {str(number)[:20]}, but at most {most:,} was expected; the file is damaged or "
                "forged"
            )


def refuse_hubs(folder: Path, config: dict[str, Any]) -> None:
    if config.get("use_pretrained_backbone"):
        raise CheckpointError(
            f"{folder}: use_pretrained_backbone in config.json would download the backbone "
            f"{config.get('backbone')!r:.80}; save the whole network with save_pretrained, which says false there"
        )


def refuse_smp(folder: Path, settings: dict[str, Any], build: type[nn.Module]) -> None:
    """Refuse settings that lead out of the folder, and networks that do not take colour images."""
    encoder, channels = settings.get("encoder_name"), settings.get("in_channels", 3)
    if encoder is not None and not (isinstance(encoder, str) and _ENCODER.fullmatch(encoder)):
        raise CheckpointError(
            f"{folder}: encoder_name {encoder!r:.80} leads to a hub or another folder, but an encoder of the library "
            "was expected; nothing is downloaded but by download-weights"
        )
    if channels != 3:
        raise CheckpointError(
            f"{folder}: takes images of {channels!r:.20} channels, but 3 (red, green, blue) were expected; name a "
            "network for colour images"
        )
    known = inspect.signature(build.__init__).parameters
    for key, value in settings.items():
        if key in known:
            continue
        plain = value is None or isinstance(value, int | float)
        numbers = isinstance(value, list) and all(isinstance(each, int | float) for each in value)
        if key.startswith("pretrained") or not (
            plain or numbers or (key in _WORDS and isinstance(value, str))
        ):
            raise CheckpointError(
                f"{folder}: config.json has {key!r:.80}, which {build.__name__} does not know and which might lead to "
                "other files; remove it"
            )
