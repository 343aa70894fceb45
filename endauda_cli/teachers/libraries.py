"""Store: local folders of segmentation-models-pytorch and transformers, as ``save_pretrained`` leaves them.

Both libraries are optional. Nothing is downloaded, and no code that lies beside the weights is run.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from endauda_cli.errors import CheckpointError, ConfigError, EndaudaError
from endauda_cli.models.foreign import Logits, Mask
from endauda_cli.models.reading import opened, refuse_unreadable
from endauda_cli.models.universal import UNIVERSAL, Scores
from endauda_cli.names import name_fault
from endauda_cli.segmenter import Procedure
from endauda_cli.students.families import auto_model
from endauda_cli.students.offline import offline
from endauda_cli.students.settings import read_json, refuse_hubs, refuse_numbers, refuse_smp
from endauda_cli.teachers.processors import preprocessing_of, task_of
from endauda_cli.transforms import Preprocessing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_HALVES = (0.5, 0.5, 0.5)

_OPTIONAL_SUFFIXES = (".num_batches_tracked", "criterion.empty_weight")
"""PyTorch before 0.4.1 had no such counter, and nothing reads it; nor a loss's weights."""


class Found(NamedTuple):
    """What a folder holds."""

    library: str
    network: nn.Module
    preprocessing: Preprocessing
    procedure: Procedure
    outputs: tuple[str, ...] | None
    """Names of the classes, if the folder knows them."""


def open_folder(folder: Path, own_size: bool = True) -> Found:
    """The network in a folder with a ``config.json``.

    Args:
        folder: of ``save_pretrained``.
        own_size: images are resized as the folder says; else the user says how.

    Raises:
        CheckpointError: if there is none, it is damaged, or no semantic segmentation network.
        ConfigError: if the library is not installed.
    """
    config = read_settings(folder)
    library = "segmentation-models-pytorch" if "_model_class" in config else "transformers"
    with library_errors(folder, library), offline():
        if "_model_class" in config:
            return _open_smp(folder, config)
        return _open_transformers(folder, config, own_size)


@contextmanager
def library_errors(folder: Path | str, library: str) -> Iterator[None]:
    """While open, whatever a library raises over a folder becomes a sentence."""
    try:
        yield
    except ImportError as error:
        extra = {"segmentation-models-pytorch": "smp"}.get(library, library)
        raise ConfigError(f"{folder}: needs {library}; pip install 'endauda[{extra}]'") from error
    except EndaudaError as error:
        if str(error).startswith(str(folder)):
            raise
        raise CheckpointError(f"{folder}: {library} cannot open it ({error})") from error
    except MemoryError:
        raise
    except Exception as error:  # each library has its own ideas of what can go wrong
        if "weights_only" in str(error):
            raise CheckpointError(
                f"{folder}: holds more than tensors and was not opened, because such a file can run code; ask its "
                "author for model.safetensors"
            ) from error
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{folder}: {library} cannot open it ({reason})") from error


def read_settings(folder: Path) -> dict[str, Any]:
    """The folder's ``config.json``, if all numbers and names in it are such that a library may be given them."""
    config = read_json(folder / "config.json")
    refuse_numbers(folder / "config.json", config)
    names_of(folder, config)
    return config


def _open_smp(folder: Path, config: dict[str, Any]) -> Found:
    import segmentation_models_pytorch as smp

    weights_bytes = _weights_bytes(folder, ("model.safetensors",))
    kind = config["_model_class"]
    build = getattr(smp, kind, None) if isinstance(kind, str) else None
    if not (isinstance(build, type) and issubclass(build, nn.Module) and hasattr(build, "from_pretrained")):
        raise CheckpointError(
            f"{folder}: _model_class {kind!r:.80} is no model of segmentation-models-pytorch; save it there again"
        )
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    refuse_smp(folder, settings, build)
    made = {**settings, "encoder_weights": None}  # those of the folder follow; nothing is downloaded
    _refuse_larger(folder, lambda: build(**made), weights_bytes)
    try:
        model = smp.from_pretrained(str(folder), encoder_weights=None, strict=True)
    except RuntimeError as error:
        raise CheckpointError(_lacking(folder, error)) from error
    mean, std, bgr, divisor = smp_input(config)
    stride = int(getattr(model.encoder, "output_stride", 32))
    preprocessing = Preprocessing(
        size=None, bgr=bgr, mean=mean, std=std, divisor=divisor, multiple_of=max(32, stride)
    )
    activated = {"softmax2d": "none", "softmax": "none", None: "last", "identity": "last"}
    activation = config.get("activation")
    if activation not in activated:
        raise CheckpointError(
            f"{folder}: activation {activation!r}, but logits or a softmax over classes were expected"
        )
    softmax: Any = activated[activation]
    return Found("segmentation-models-pytorch", Mask(model), preprocessing, Procedure(softmax=softmax), None)


def smp_input(config: dict[str, Any]) -> tuple[Any, Any, bool, float]:
    """(mean, std, BGR, divisor) that an encoder's pretrained weights want; smp would ask a hub for most of them."""
    encoder, weights = str(config.get("encoder_name")), config.get("encoder_weights")
    if weights is None:
        return IMAGENET_MEAN, IMAGENET_STD, False, 255.0
    if encoder.startswith("tu-"):
        import segmentation_models_pytorch as smp

        wanted = smp.encoders.get_preprocessing_params(encoder, pretrained=weights)
        divisor = 255.0 if list(wanted["input_range"] or [0, 1])[1] == 1 else 1.0
        mean, std = tuple(wanted["mean"] or (0.0,) * 3), tuple(wanted["std"] or (1.0,) * 3)
        return mean, std, wanted["input_space"] == "BGR", divisor
    if encoder.startswith(("inception", "xception", "timm-tf_efficientnet_lite")) or weights == "advprop":
        return _HALVES, _HALVES, False, 255.0
    if encoder.startswith("dpn"):
        return (124 / 255, 117 / 255, 123 / 255), (1 / (0.0167 * 255),) * 3, False, 255.0
    return IMAGENET_MEAN, IMAGENET_STD, False, 255.0


def _open_transformers(folder: Path, config: dict[str, Any], own_size: bool) -> Found:
    import transformers

    library: Any = transformers  # not typed
    family = UNIVERSAL.get(str(config.get("model_type")))
    auto = auto_model(str(config.get("model_type")))
    logging: Any = import_module("transformers.utils.logging")
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    safe, weights_bytes = checked_weights(folder)
    refuse_hubs(folder, config)
    outputs = names_of(folder, config)
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    made = library.AutoConfig.from_pretrained(str(folder), **local)
    _refuse_larger(
        folder,
        lambda: auto.from_config(made, trust_remote_code=False),
        weights_bytes,
    )
    model, info = auto.from_pretrained(
        str(folder), **local, dtype=torch.float32, use_safetensors=safe,
        output_loading_info=True, ignore_mismatched_sizes=True,
    )  # fmt: skip
    _refuse_unfilled(folder, info)  # also what did not fit, with its name
    preprocessing = preprocessing_of(folder, own_size)
    # All their post-processing enlarges without aligned corners.
    if family is None:
        return Found("transformers", Logits(model), preprocessing, Procedure(align_corners=False), outputs)
    words = torch.tensor(task_of(folder, config, model.config.task_seq_len)) if family.task else None
    procedure = Procedure(align_corners=False, softmax="scores")
    return Found("transformers", Scores(model, family, words).eval(), preprocessing, procedure, outputs)


def names_of(folder: Path, config: dict[str, Any]) -> tuple[str, ...] | None:
    """Names of the outputs, in order; ``None`` where nobody named them."""
    table = config.get("id2label") or {}
    if not isinstance(table, dict) or not all(re.fullmatch(r"\d{1,6}", str(key), re.ASCII) for key in table):
        raise CheckpointError(
            f"{folder}: id2label in config.json is no table of numbers and names; save the model again"
        )
    names = {int(key): str(value) for key, value in table.items()}
    outputs = tuple(names[k] for k in sorted(names)) or None
    for name in outputs or ():
        if len(name) > _LONGEST_NAME:
            raise CheckpointError(
                f"{folder}: id2label in config.json has a name of {len(name):,} letters ({name!r:.40}...), but at most "
                f"{_LONGEST_NAME} were expected; shorten it"
            )
    # What transformers writes where nobody named the classes.
    unnamed = outputs is not None and all(name == f"LABEL_{k}" for k, name in enumerate(outputs))
    return None if unnamed else outputs


# ---------------------------------------------------------------------------- what is declared, and what is there


def checked_weights(folder: Path) -> tuple[bool, int]:
    """Whether the folder's weights are safetensors, and their bytes; raises as :func:`_weights_bytes`."""
    safe = any(folder.glob("*.safetensors"))
    stem = "model.safetensors" if safe else "pytorch_model.bin"
    return safe, _weights_bytes(folder, (stem, f"{stem}.index.json"))


def _weights_bytes(folder: Path, names: Iterable[str]) -> int:
    """Size of the folder's weights, whose files are looked at on the way: names, kinds, what they claim to hold.

    Args:
        folder: where they lie.
        names: of the file, or of the index of several; the first of these that is there counts.

    Raises:
        CheckpointError: if there are none, or one cannot be weights.
    """
    names = list(names)
    name = next((name for name in names if (folder / name).exists()), None)
    if name is None:
        raise CheckpointError(
            f"{folder}: no {names[0]} beside config.json; save the model there with save_pretrained"
        )
    files = [name]
    if name.endswith(".index.json"):
        shards = read_json(folder / name).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise CheckpointError(
                f"{folder / name}: holds no weight_map; copy it again, or save the model again"
            )
        for shard in shards.values():
            if (fault := name_fault(shard)) is not None:
                raise CheckpointError(
                    f"{folder / name}: {shard!r:.80} {fault}, but the name of a file in this folder was expected"
                )
        files = sorted(set(shards.values()))
    total = 0
    for file in files:
        path = folder / file
        with opened(path, f", but {name} lists it; copy it there too") as weights:
            total += weights.seek(0, 2)
        if not file.endswith(".safetensors"):
            refuse_unreadable(path)
    return total


def _refuse_larger(folder: Path, build: Callable[[], nn.Module], weights_bytes: int) -> None:
    """A network of more values than the weights can have is not built: it is laid out without memory first."""
    try:
        with torch.device("meta"):
            values = sum(parameter.numel() for parameter in build().parameters())
    except EndaudaError:
        raise
    except Exception:  # some need numbers to be laid out; those are of bounded size, see above
        return
    if values > weights_bytes + _SLACK:
        raise CheckpointError(
            f"{folder}: config.json describes a network of {values:,} values, but its weights have {weights_bytes:,} "
            "bytes: they are of another network, or damaged; save both again with save_pretrained"
        )


_SLACK = 1 << 22
_LONGEST_NAME = 300


def _refuse_unfilled(folder: Path, info: dict[str, Any]) -> None:
    """Every tensor of the network is from the folder, and every one of the folder went into the network."""
    missing = sorted(key for key in info["missing_keys"] if not str(key).endswith(_OPTIONAL_SUFFIXES))
    unexpected = sorted(map(str, info["unexpected_keys"]))
    mismatched = sorted(info.get("mismatched_keys") or ())
    if missing:
        raise CheckpointError(
            f"{folder}: its weights have no {missing[0]!r:.120}, which the network needs{_more(missing)}; they are "
            "those of an encoder alone, or of another network"
        )
    if mismatched:
        name, found, expected = (*mismatched[0], None, None)[:3]
        raise CheckpointError(
            f"{folder}: {name!r:.120} has shape {_shape(found)}, but the network of config.json needs "
            f"{_shape(expected)}{_more(mismatched)}; they are of another network"
        )
    if unexpected:
        raise CheckpointError(
            f"{folder}: its weights have {unexpected[0]!r:.120}, which the network does not know{_more(unexpected)}; "
            "they are of another network"
        )
    if info.get("error_msgs"):
        reason = " ".join(str(info["error_msgs"]).split())[:200]
        raise CheckpointError(f"{folder}: its weights do not fit the network ({reason})")


def _shape(shape: Any) -> str:
    return "another shape" if shape is None else str(tuple(shape))


def _more(keys: list[Any]) -> str:
    return f" (and {len(keys) - 1:,} more)" if len(keys) > 1 else ""


def _lacking(folder: Path, error: RuntimeError) -> str:
    """What PyTorch says of weights that do not fit, in a sentence."""
    text = " ".join(str(error).split())
    at = min(
        (text.find(word) for word in ("Missing", "Unexpected", "size mismatch") if word in text), default=0
    )
    return f"{folder}: its weights do not fit the network of config.json ({text[at : at + 200]}); save both again"
