"""The families of networks beside our DeepLabs: one function each, one row in ``FAMILIES``.

Each makes a network with fresh random weights of plain settings, which may come from a stranger's checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from endauda_cli.errors import CheckpointError, ConfigError, EndaudaError, did_you_mean
from endauda_cli.models import TEACHER_NETWORKS, build_teacher
from endauda_cli.models.foreign import Foreign, HeadSum, Logits, Mask
from endauda_cli.models.mit import MiTSize
from endauda_cli.models.universal import UNIVERSAL, Scores
from endauda_cli.students.offline import offline
from endauda_cli.students.settings import refuse_hubs, refuse_numbers, refuse_smp
from endauda_cli.types import STUDENT_ENTRY_POINTS

if TYPE_CHECKING:
    from endauda_cli.models import Student
    from endauda_cli.transforms import Preprocessing

Settings = Mapping[str, Any]

_WHERE = Path("the network's settings")
"""What is named where settings are refused."""


@dataclass(frozen=True)
class Own:
    """A package's network, as its entry point in ``endauda.students`` returns it.

    Attributes:
        network: images (B, 3, H, W) to logits (B, C, h, w), fresh, on the CPU.
        preprocessing: how images become its input; its ``size`` is not looked at.
        align_corners: convention by which its logits are enlarged.
        encoder: its modules that learn at the base rate; empty is all of it.
        recipe: fields of ``config.TrainConfig`` that are something else with it, unless the user says otherwise.
    """

    network: nn.Module
    preprocessing: Preprocessing
    align_corners: bool = False
    encoder: tuple[str, ...] = ("backbone",)
    recipe: Mapping[str, Any] = field(default_factory=dict)


# ---------------------------------------------------------------------------- transformers


def _of_transformers(settings: Settings, num_classes: int, align_corners: bool) -> Student:
    with library("transformers", "transformers"):
        config = transformers_config(settings)
        config.num_labels = num_classes
        kind = auto_model(config.model_type)
        model = kind.from_config(config, trust_remote_code=False, dtype=torch.float32)
    varies = any(getattr(module, "layerdrop", 0) for module in model.modules())
    family = UNIVERSAL.get(config.model_type)
    if family is None:
        return Foreign(Logits(model), encoder_of(model), align_corners, varies)
    task = torch.tensor(task_in(settings, config.task_seq_len)) if family.task else None
    return Foreign(Scores(model, family, task), family.encoder, align_corners, varies)


TASK = "task_tokens"
"""In the settings of OneFormer: the numbers of the words that tell it what to do, which its tokenizer made."""


def task_in(settings: Settings, length: int) -> list[int]:
    """These numbers, as many as the network takes.

    Raises:
        CheckpointError: if they are not.
    """
    tokens = settings.get(TASK)
    if not isinstance(tokens, list) or len(tokens) != length or not all(map(_is_token, tokens)):
        raise CheckpointError(
            f"{_WHERE}: {TASK} are {tokens!r:.80}, but {length} numbers of words were expected"
        )
    return list(tokens)


def _is_token(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 24


def auto_model(model_type: str) -> Any:
    """The library's class that makes a network of this type."""
    task = "Universal" if model_type in UNIVERSAL else "Semantic"
    return getattr(import_module("transformers"), f"AutoModelFor{task}Segmentation")


def transformers_config(settings: Settings) -> Any:
    """The library's configuration of a ``config.json``'s settings.

    Raises:
        CheckpointError: if there is no such kind of network, or it would be downloaded.
    """
    refuse_numbers(_WHERE, dict(settings))
    refuse_hubs(_WHERE, dict(settings))
    automatic: Any = import_module("transformers.models.auto.configuration_auto")
    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in automatic.CONFIG_MAPPING:
        raise CheckpointError(f"{_WHERE}: {kind!r:.80} is no network that the installed transformers knows")
    config = automatic.CONFIG_MAPPING[kind].from_dict(
        {k: v for k, v in settings.items() if k not in _LEFT_OUT}
    )
    if getattr(config, "is_training", False):
        config.is_training = False  # OneFormer's encoder of texts, which no loss here has a use for
    return config


_LEFT_OUT = ("auto_map", "quantization_config", "id2label", "label2id", "num_labels", "_name_or_path")
_ENCODERS = ("backbone", "encoder")


def encoder_of(model: Any) -> tuple[str, ...]:
    """The modules that a head was put on: the library's base model, or what is called a backbone."""
    children = dict(model.named_children())
    prefix = str(getattr(model, "base_model_prefix", ""))
    found = next((name for name in (prefix, *_ENCODERS) if name in children), None)
    return () if found is None else (found,)


# ---------------------------------------------------------------------------- segmentation-models-pytorch


def _of_smp(settings: Settings, num_classes: int, align_corners: bool) -> Student:
    with library("segmentation_models_pytorch", "smp"):
        refuse_numbers(_WHERE, dict(settings))
        kind = smp_kind(str(settings.get("_model_class")))
        plain = {key: value for key, value in settings.items() if not key.startswith("_")}
        refuse_smp(_WHERE, plain, kind)
        made = {**plain, "encoder_weights": None, "classes": num_classes, "activation": None}
        model = kind(**made)
    return Foreign(Mask(model), ("encoder",), align_corners)


def smp_kind(name: str) -> Any:
    """A class of networks by its name, whatever its case.

    Raises:
        ConfigError: if there is none.
    """
    smp: Any = import_module("segmentation_models_pytorch")
    kinds = {
        word.lower(): kind
        for word, kind in vars(smp).items()
        if isinstance(kind, type) and issubclass(kind, nn.Module) and hasattr(kind, "from_pretrained")
    }
    if name.lower() not in kinds:
        raise ConfigError(
            f"segmentation-models-pytorch has no network {name:.80}; it has {', '.join(sorted(kinds))}"
            f"{did_you_mean(name.lower(), kinds)}"
        )
    return kinds[name.lower()]


# ---------------------------------------------------------------------------- teachers


def _of_teacher(settings: Settings, num_classes: int, align_corners: bool) -> Student:
    name, options, heads = settings.get("name"), settings.get("options", {}), settings.get("heads", [1.0])
    if not isinstance(name, str) or name not in TEACHER_NETWORKS or not isinstance(options, Mapping):
        raise CheckpointError(f"{_WHERE}: {name!r:.80} is no teacher that this version knows")
    if not isinstance(heads, list | tuple) or not 0 < len(heads) <= 8 or not all(map(_is_plain, heads)):
        raise CheckpointError(f"{_WHERE}: heads are {heads!r:.80}, but a weight for each was expected")
    try:
        refuse_numbers(_WHERE, dict(options))
        made = {"num_classes": num_classes, **{key: _option(key, value) for key, value in options.items()}}
        network = build_teacher(name, **made)
    except (EndaudaError, MemoryError):
        raise
    except Exception as error:  # of whatever the options make of it
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{_WHERE}: {name} cannot be built ({reason})") from error
    tops = [name for name, _ in network.named_children()]
    encoder = tuple(top for top in tops if top not in _HEADS)
    return Foreign(HeadSum(network, heads), encoder, align_corners)


_HEADS = ("decode_head", "layer5", "layer6", "conv6a", "linear")
"""Modules of teachers that are not their encoder."""


def _is_plain(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _option(key: str, value: Any) -> Any:
    """An option of ``build_teacher`` as a checkpoint has it, or a refusal."""
    if isinstance(value, dict) and value.keys() == {"channels", "depths"}:
        sides = (value["channels"], value["depths"])
        if all(isinstance(s, list | tuple) and len(s) == 4 and all(0 < n <= 1024 for n in s) for s in sides):
            return MiTSize(tuple(value["channels"]), tuple(value["depths"]))
    if isinstance(value, list | tuple) and len(value) < 256 and all(type(n) is int for n in value):
        return tuple(value)
    if (type(value) is int and 0 < value <= 8192) or (isinstance(value, str) and len(value) < 20):
        return value
    raise CheckpointError(f"{_WHERE}: {key:.80} is {value!r:.80}, which no network has")


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of ``build_teacher`` as a checkpoint keeps them."""
    return {
        key: {"channels": list(value.channels), "depths": list(value.depths)}
        if isinstance(value, MiTSize)
        else list(value)
        if isinstance(value, tuple)
        else value
        for key, value in options.items()
    }


# ---------------------------------------------------------------------------- packages


def _of_package(settings: Settings, num_classes: int, align_corners: bool) -> Student:
    own = own_network(str(settings.get("name")), num_classes)
    return Foreign(HeadSum(own.network), own.encoder, align_corners, varies=True)  # for all we know


def own_network(name: str, num_classes: int) -> Own:
    """What a package makes of the number of classes.

    Raises:
        ConfigError: if no installed package has such a network, or it returns something else.
    """
    found = {entry.name: entry for entry in entry_points(group=STUDENT_ENTRY_POINTS)}
    if name not in found:
        raise ConfigError(
            f"no installed package has a student {name:.80}; there are {', '.join(found) or 'none'}"
        )
    try:
        own = found[name].load()(num_classes)
    except EndaudaError:
        raise
    except Exception as error:  # of somebody else's package
        raise ConfigError(
            f"{found[name].value} cannot make a student ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(own, Own):
        raise ConfigError(
            f"{found[name].value} returned a {type(own).__name__}, but a students.Own was expected"
        )
    return own


# ---------------------------------------------------------------------------- the table


FAMILIES: dict[str, Callable[[Settings, int, bool], Student]] = {
    "transformers": _of_transformers,
    "smp": _of_smp,
    "teacher": _of_teacher,
    "package": _of_package,
}
"""Settings, number of classes, and how logits are enlarged -> the network."""


@contextmanager
def library(module: str, extra: str) -> Iterator[None]:
    """While open, a library works without a network; whatever it raises becomes a sentence."""
    try:
        with offline():
            yield
    except ImportError as error:
        raise ConfigError(f"the network needs {module}; pip install 'endauda[{extra}]'") from error
    except (EndaudaError, MemoryError):
        raise
    except Exception as error:  # each library has its own ideas of what can go wrong
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{module} cannot build the network ({reason})") from error
