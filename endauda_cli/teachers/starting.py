"""What ``train --network`` names: a student's network, the weights it starts from, and the recipe that suits it.

A folder of a library, one of its networks by name, a published teacher's, a package's own, or that of a run.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from endauda_cli.errors import CheckpointError, ConfigError, did_you_mean
from endauda_cli.models import TEACHER_NETWORKS
from endauda_cli.models.mmseg import NETWORKS
from endauda_cli.models.reading import read_content
from endauda_cli.models.universal import UNIVERSAL
from endauda_cli.segmenter import Procedure
from endauda_cli.students.families import (
    TASK,
    auto_model,
    library,
    own_network,
    plain_options,
    smp_kind,
    transformers_config,
)
from endauda_cli.students.network import Network, build, from_record
from endauda_cli.students.offline import offline
from endauda_cli.teachers.libraries import checked_weights, library_errors, names_of, read_settings, smp_input
from endauda_cli.teachers.mmseg_files import fitted
from endauda_cli.teachers.opening import variant_of
from endauda_cli.teachers.processors import family_preprocessing, task_of
from endauda_cli.teachers.registry import TEACHERS
from endauda_cli.transforms import Preprocessing
from endauda_cli.types import STUDENT_ENTRY_POINTS, Optimizer, TeacherName

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

SMP = "smp:"
"""Before the name of a network of segmentation-models-pytorch: ``smp:unet/resnet18``."""

_ADAMW = {"optimizer": Optimizer.ADAMW, "weight_decay": 0.01, "power": 1.0, "warm_up": 1500}
_BACKBONE_RATE, _CONVOLUTIONAL_RATE = 6e-5, 1e-4
"""SegFormer's published rate of the encoder, whose head learns ten times as fast; and one for convolutions."""
_LAYER_DECAY = 0.9


@dataclass(frozen=True)
class Start:
    """A student before its first step.

    Attributes:
        network: what it is.
        init: file or folder of weights to start from; ``None`` is random.
        recipe: fields of ``config.TrainConfig`` that suit it.
    """

    network: Network
    init: Path | None
    recipe: Mapping[str, Any] = field(default_factory=dict)


def named(
    said: str | None, init: Path | None, classes: Sequence[str], path_of: Callable[[str], Path]
) -> Start | None:
    """What is trained; ``None`` for one of our DeepLabs.

    Args:
        said: ``--network``; ``None`` leaves it to ``init``, if that says what it is.
        init: file or folder of weights.
        classes: the task's.
        path_of: finds a folder that was typed.

    Raises:
        ConfigError: if there is no such network.
        CheckpointError: if a folder or file is not what it should be.
    """
    if said is None:
        return None if init is None else _of_weights(init)
    if said.startswith(SMP):
        return _of_smp(said, init)
    if said in TEACHERS or said in TEACHER_NETWORKS:
        return _of_teacher(said, init, classes)
    if said in {entry.name for entry in entry_points(group=STUDENT_ENTRY_POINTS)}:
        own = own_network(said, len(classes))
        network = Network(
            "package", said, "", {"name": said}, replace(own.preprocessing, size=None),
            **_run_by(Procedure(align_corners=own.align_corners)),
        )  # fmt: skip
        return Start(network, init, own.recipe)
    folder = path_of(said)
    if not folder.is_dir():
        known = student_names()
        raise ConfigError(
            f"--network {said}: neither a folder with a config.json, nor {SMP}NETWORK/ENCODER, nor one of "
            f"{', '.join(known)}{did_you_mean(said, known)}"
        )
    return _of_folder(folder, init)


def student_names() -> list[str]:
    """Networks that go by a name alone."""
    return [*TeacherName, *sorted(entry.name for entry in entry_points(group=STUDENT_ENTRY_POINTS))]


def _run_by(procedure: Procedure) -> dict[str, Procedure]:
    return {"procedure": procedure, "tested": procedure}


def _of_weights(init: Path) -> Start | None:
    """Of a folder, or of a run of such a network; our DeepLabs are told by other options."""
    if init.is_dir():
        return _of_folder(init, init)
    content = read_content(init, in_memory=False) if init.is_file() else None
    meta = content.get("meta") if isinstance(content, dict) and "weights" in content else None
    if not isinstance(meta, dict) or "network" not in meta:
        return None
    network = from_record(init, meta["network"])
    return Start(network, init, _recipe(network, True))


# ---------------------------------------------------------------------------- libraries


def _of_smp(said: str, init: Path | None) -> Start:
    name, slash, encoder = said.removeprefix(SMP).partition("/")
    if not slash or not encoder or not name:
        raise ConfigError(f"--network {said}: expected {SMP}NETWORK/ENCODER, such as {SMP}unet/resnet18")
    with library("segmentation_models_pytorch", "smp"):
        settings = {"_model_class": smp_kind(name).__name__, "encoder_name": encoder}
    network = _smp_network(settings, *smp_input(settings))
    return Start(network, init, _recipe(network, init is not None))


def _smp_network(settings: dict[str, Any], mean: Any, std: Any, bgr: bool, divisor: float) -> Network:
    images = Preprocessing(None, "bicubic", bgr, tuple(mean), tuple(std), divisor, multiple_of=32)
    arch, encoder = str(settings["_model_class"]).lower(), str(settings["encoder_name"])
    return Network("smp", arch, encoder, settings, images, **_run_by(Procedure()))


def _of_folder(folder: Path, init: Path | None) -> Start:
    settings = read_settings(folder)
    library = "segmentation-models-pytorch" if "_model_class" in settings else "transformers"
    with library_errors(folder, library), offline():
        if "_model_class" in settings:
            network = _smp_network({**settings, "classes": None}, *smp_input(settings))
        else:
            config = transformers_config(settings)
            inner = getattr(getattr(config, "backbone_config", None), "model_type", "")
            plain = {key: value for key, value in settings.items() if key not in ("id2label", "label2id")}
            images = family_preprocessing(folder, config.model_type)
            family = UNIVERSAL.get(config.model_type)
            if family is not None and family.task:
                plain[TASK] = task_of(folder, settings, config.task_seq_len)
            procedure = Procedure(align_corners=False, softmax="last" if family is None else "scores")
            network = Network("transformers", config.model_type, inner, plain, images, **_run_by(procedure))
    if init is None and has_weights(folder):
        init = folder
    return Start(network, init, _recipe(network, init is not None))


def has_weights(folder: Path) -> bool:
    """Whether there is more than a configuration."""
    return any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))


def folder_weights(
    folder: Path, network: Network, classes: Sequence[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of a folder that the network for these classes can take, by its own names, and those it lacks.

    Those of a head for other classes are left out, also where there happen to be as many.

    Raises:
        CheckpointError: if the folder holds none, they are damaged, or of another network.
        ConfigError: if the library is not installed.
    """
    settings = read_settings(folder)
    library = "segmentation-models-pytorch" if "_model_class" in settings else "transformers"
    if (network.family == "smp") != ("_model_class" in settings):
        raise CheckpointError(f"{folder}: a folder of {library}, which {network.title} is not from")
    with library_errors(folder, library), offline():
        if network.family == "smp":
            state = _smp_weights(folder)
        else:
            state = _transformers_weights(folder, network, len(classes))
    shapes = _shapes(network, len(classes))
    other = names_of(folder, settings)
    if other is not None and tuple(other) != tuple(classes):
        one_more = _shapes(network, len(classes) + 1)
        state = {key: value for key, value in state.items() if one_more.get(key) == shapes.get(key)}
    found = {key: value for key, value in state.items() if shapes.get(key) == value.shape}
    lacking = [key for key in shapes if key not in found]
    if not found or len(lacking) > len(found):
        raise CheckpointError(
            f"{folder}: its weights have {len(found):,} of the {len(shapes):,} tensors of {network.title}, so they are "
            f"of another network; first missing {lacking[0]!r:.120}"
        )
    return found, lacking


def _smp_weights(folder: Path) -> dict[str, Tensor]:
    library: Any = import_module("segmentation_models_pytorch")
    checked_weights(folder)
    model: nn.Module = library.from_pretrained(str(folder), encoder_weights=None, strict=True)
    return model.state_dict()


def _transformers_weights(folder: Path, network: Network, num_classes: int) -> dict[str, Tensor]:
    safe, _ = checked_weights(folder)
    config = transformers_config(network.settings)
    config.num_labels = num_classes
    model, info = auto_model(config.model_type).from_pretrained(
        str(folder), config=config, local_files_only=True, trust_remote_code=False, dtype=torch.float32,
        use_safetensors=safe, output_loading_info=True, ignore_mismatched_sizes=True,
    )  # fmt: skip
    fresh = {str(key) for key in info["missing_keys"]}
    fresh |= {str(entry[0]) for entry in info.get("mismatched_keys") or ()}
    return {key: value for key, value in model.state_dict().items() if key not in fresh}


def _shapes(network: Network, num_classes: int) -> dict[str, torch.Size]:
    """Of the network's tensors, without memory where the library allows."""
    try:
        with torch.device("meta"):
            student = build(network, num_classes)
    except ConfigError:  # some need numbers to be laid out
        student = build(network, num_classes)
    return {key: value.shape for key, value in student.state_dict().items()}


# ---------------------------------------------------------------------------- teachers


def _of_teacher(said: str, init: Path | None, classes: Sequence[str]) -> Start:
    """A published teacher's network, as large as the file's, which may say so."""
    key = TEACHERS[said].network if said in TEACHERS else said
    spec = next(
        spec for spec in TEACHERS.values() if spec.network == key.partition("-")[0] or spec.network == key
    )
    options: dict[str, Any] = {}
    if init is not None and init.is_file():
        content = read_content(init, in_memory=False)
        key = variant_of(key, init, content)
        if key in NETWORKS:
            spec, found = fitted(spec, init, content, classes)
            options = plain_options({name: value for name, value in found.items() if name != "num_classes"})
            if found["num_classes"] != len(classes):
                options["num_classes"] = found["num_classes"]
    procedure = Procedure(align_corners=spec.procedure.align_corners, windows=spec.procedure.windows)
    settings = {"name": key, "options": options, "heads": list(spec.procedure.heads)}
    images = Preprocessing(
        size=None,
        **{
            name: getattr(spec.preprocessing, name)
            for name in ("filter", "bgr", "mean", "std", "divisor", "multiple_of")
        },
    )
    network = Network("teacher", said, "", settings, images, **_run_by(procedure))
    return Start(network, init, _recipe(network, init is not None))


# ---------------------------------------------------------------------------- recipes


def _recipe(network: Network, pretrained: bool) -> dict[str, Any]:
    """Defaults that suit a network: SGD as published for DeepLabs, AdamW for transformers and libraries' networks.

    From random weights the encoder learns as fast as the head, and no block slower than another.
    """
    transformer = network.family == "transformers" or (
        network.family == "teacher" and _has_layer_norm(network)
    )
    if network.family == "teacher" and not transformer:
        return {}
    rate = _BACKBONE_RATE if transformer else _CONVOLUTIONAL_RATE
    if not pretrained:
        return {**_ADAMW, "learning_rate": 10 * rate, "head_rate": 1.0}
    decay = {"layer_decay": _LAYER_DECAY} if transformer else {}
    return {**_ADAMW, "learning_rate": rate, "head_rate": 10.0, **decay}


def _has_layer_norm(network: Network) -> bool:
    with torch.device("meta"):
        return any(isinstance(module, nn.LayerNorm) for module in build(network, 2).modules())
