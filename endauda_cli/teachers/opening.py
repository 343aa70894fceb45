"""Teachers, opened: from a file, a folder or a program to something that can be run over images.

``open_teacher`` is the one way in: whoever
runs a teacher, to export it or to fuse it on the fly, calls it and gives the ``Teacher`` to the inference pipeline.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import torch

from endauda_cli.checkpoint import files_sha256, load_student, sha256
from endauda_cli.errors import CheckpointError, ConfigError, did_you_mean
from endauda_cli.models import build_teacher, load_checkpoint
from endauda_cli.models.compat import state_dict_in
from endauda_cli.models.mmseg import NETWORKS
from endauda_cli.models.reading import no_weights, read_content
from endauda_cli.models.unfilled import Unfilled
from endauda_cli.progress import Note, silent
from endauda_cli.segmenter import Procedure, Segmenter
from endauda_cli.teachers.descriptions import (
    PROGRAM_INPUT,
    fitted,
    join_classes,
    read_classes,
    read_description,
    with_classes,
)
from endauda_cli.teachers.libraries import open_folder
from endauda_cli.teachers.mmseg_files import facts_of, named_by_experiment
from endauda_cli.teachers.mmseg_files import fitted as as_tested
from endauda_cli.teachers.programs import open_program, program_files, program_kind
from endauda_cli.teachers.registry import TEACHERS, Teacher, teacher_names
from endauda_cli.types import TEACHER_ENTRY_POINTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from endauda_cli.progress import Reporter
    from endauda_cli.teachers.descriptions import Description


_MRNET_VARIANTS = {  # (batch norm, squeeze and excitation) -> key of models.TEACHER_NETWORKS
    (False, True): "mrnet",
    (False, False): "mrnet-gn",
    (True, False): "mrnet-bn",
    (True, True): "mrnet-bn-se",
}


def open_teacher(
    path: Path,
    classes: Sequence[str],
    network: str | None = None,
    *,
    program: bool = False,
    description: Path | None = None,
    joined_by: str | Path | None = None,
    arch: str | None = None,
    backbone: str | None = None,
    size: tuple[int, int] | None = None,
    report: Reporter = silent,
) -> Teacher:
    """A teacher from a checkpoint, a folder of a library, or a program.

    Args:
        path: file of weights, folder with a ``config.json``, or program.
        classes: the task's class names, in train id order.
        network: one of ``teacher_names()``; ``None`` where the file itself tells.
        program: ``path`` is a program and may be run. Never guessed: what is named as weights runs nothing.
        description: TOML with preprocessing, class names and outputs (``descriptions``); ``None`` looks for one
            beside a program: ``model.toml`` for ``model.onnx``.
        joined_by: how its outputs stand for the classes: the name of a map (``class_maps``), or a TOML of classes.
        arch, backbone: of a student's network, where the checkpoint does not say.
        size: (width, height) of the network's input, against what the network or description says.
        report: told where wrappings around the weights were left out.

    Raises:
        CheckpointError: if the file cannot be read or is of another network or number of classes.
        ConfigError: if network or description are not what they should be.
    """
    plugins = {entry.name: entry for entry in entry_points(group=TEACHER_ENTRY_POINTS)}
    said = _description(path, description, program)
    if joined_by is not None and (said is not None or not program):
        said = with_classes(said, read_classes(joined_by))
    if network is not None and network not in TEACHERS and network not in plugins:
        known = teacher_names()
        raise ConfigError(f"--network {network}: known are {', '.join(known)}{did_you_mean(network, known)}")
    if network is not None and network not in TEACHERS:
        if (kind := program_kind(path)) in ("torch.export", "TorchScript"):
            raise no_weights(path, kind)
        if joined_by is not None:
            raise ConfigError(
                f"--classes: {network} is of another package, which joins its outputs itself; leave it out"
            )
        teacher = _from_plugin(plugins[network], path, classes)
    elif program:
        teacher = _from_program(path, classes, said)
    elif path.is_dir():
        teacher = _from_folder(path, classes, said, size)
    else:
        teacher = _from_checkpoint(path, classes, network, arch, backbone, said, report)
    segmenter = teacher.segmenter
    if said is not None and said.shipped is not None and (empty := [n for n in said.absent if n in classes]):
        report(
            Note(f"{said.shipped}: no output stands for {', '.join(empty)}, so the teacher never names them")
        )
    if said is not None and not program:  # a program's is its own already
        preprocessing = said.preprocessing(segmenter.preprocessing)
        segmenter = replace(
            segmenter, preprocessing=preprocessing, procedure=said.procedure(segmenter.procedure)
        )
    if size is not None:
        segmenter = replace(segmenter, preprocessing=segmenter.preprocessing.resized_to(size))
    return replace(teacher, segmenter=segmenter)


def with_passes(teacher: Teacher, scales: tuple[float, ...] | None, flip: bool | None) -> Teacher:
    """The teacher with other scales and flips than its own; ``None`` leaves them."""
    procedure = teacher.segmenter.procedure.with_passes(scales, flip)
    return replace(teacher, segmenter=replace(teacher.segmenter, procedure=procedure))


def at_temperature(teacher: Teacher, temperature: float, fit: Mapping[str, Any] | None = None) -> Teacher:
    """The teacher at a temperature, with how it was found."""
    facts = dict(teacher.facts) if fit is None else {**teacher.facts, "temperature_fit": dict(fit)}
    return Teacher(replace(teacher.segmenter, temperature=temperature), facts)


def _description(path: Path, given: Path | None, program: bool) -> Description | None:
    if given is None and program and path.with_suffix(".toml").is_file():
        given = path.with_suffix(".toml")
    return None if given is None else read_description(given)


# ---------------------------------------------------------------------------- checkpoints


def _from_checkpoint(
    path: Path,
    classes: Sequence[str],
    network: str | None,
    arch: str | None,
    backbone: str | None,
    said: Description | None,
    report: Reporter,
) -> Teacher:
    outputs = said.classes if said is not None and said.classes else tuple(classes)
    content = read_content(path)
    ours = isinstance(content, dict) and isinstance(content.get("meta"), dict) and "weights" in content
    if not ours and arch is None and backbone is None:
        network = network or _network_of(path, content)
    if ours or network is None:
        student = load_student(path, outputs, arch, backbone, report=report, content=content)
        facts: dict[str, Any] = {"arch": student.arch, "backbone": student.backbone}
        segmenter = Segmenter(student.model, student.preprocessing, student.network.procedure, batches=True)
    else:
        spec = TEACHERS[network]
        key = variant_of(spec.network, path, content)
        facts = {"network": key, "teacher_of": spec.title}
        options: dict[str, Any] = {"num_classes": len(outputs)}
        if spec.network in NETWORKS:
            spec, options = as_tested(spec, path, content, outputs)
            facts |= facts_of(options)
        with Unfilled():
            module = build_teacher(key, **options)
        _refuse_other_project(path, network, content)
        if told := load_checkpoint(module, path, content):
            report(Note(told))
        segmenter = Segmenter(module.eval(), spec.preprocessing, spec.procedure, batches=True)
    class_map = join_classes(path, None, classes, said and fitted(said, None, classes, path))
    facts["weights_sha256"] = sha256(path)
    return Teacher(replace(segmenter, class_map=class_map), facts)


def _network_of(path: Path, content: object) -> str | None:
    """The published teacher that a file is of, as far as it tells; ``None`` for a student's network."""
    state = state_dict_in(path, content)
    told = next((name for name, spec in TEACHERS.items() if spec.told_by in state), None)
    if told is not None:
        return named_by_experiment(told, content)
    if "layer5.conv2d_list.3.weight" in state and "layer6.conv2d_list.3.weight" not in state:
        if _is_of_dacs(content):
            return "dacs"
        raise CheckpointError(
            f"{path}: DACS, CRST and its CBST have the same keys, but read them differently; say which it is with "
            "--network dacs, crst or cbst"
        )
    return None


def variant_of(network: str, path: Path, content: object) -> str:
    """R-MRNet is published in several: which one, its keys say as surely as the ``opts.yaml`` beside it."""
    if network != "mrnet":
        return network
    state = state_dict_in(path, content)
    if "layer6.head.1.weight" not in state:  # no R-MRNet: a trunk to start from
        return network
    batch_norm = "layer5.conv2d_list.0.1.running_mean" in state
    return _MRNET_VARIANTS[batch_norm, "layer5.bottleneck.0.se.0.weight" in state]


def _refuse_other_project(path: Path, network: str, content: object) -> None:
    if TEACHERS[network].like_dacs and _is_of_dacs(content):
        raise CheckpointError(
            f"{path}: a checkpoint of DACS (it has its training configuration), but {network} was named; the keys "
            "are the same, the function is not: use --network dacs"
        )


def _is_of_dacs(content: object) -> bool:
    return isinstance(content, dict) and {"iteration", "config", "model"} <= content.keys()


# ---------------------------------------------------------------------------- programs, libraries, packages


def _from_program(path: Path, classes: Sequence[str], said: Description | None) -> Teacher:
    if said is None:
        raise ConfigError(
            f"{path}: a program does not say what it wants; write {path.with_suffix('.toml').name} beside it, with "
            "mean, std and channels under [input] and kind under [output] (see docs/teachers.md)"
        )
    absent = [key for key in ("mean", "std") if key not in said.tables["input"]]
    if absent:
        raise ConfigError(
            f"{said.path}: [input] {' and '.join(absent)} must be given; for ImageNet's, mean = [0.485, 0.456, 0.406] "
            "and std = [0.229, 0.224, 0.225]"
        )
    preprocessing, procedure = said.preprocessing(PROGRAM_INPUT), said.procedure(Procedure())
    program, size = open_program(
        path,
        len(said.classes or classes),
        procedure.heads if "heads" in said.tables["output"] else None,
        {"none": "probabilities", "scores": "scores"}.get(procedure.softmax, "logits"),
        pair=said.classes is not None and len(said.classes) == 2,
    )
    if size is not None:
        if preprocessing.size not in (None, size):
            raise ConfigError(
                f"{said.path}: [input] size is {preprocessing.size}, but the program takes {size[0]}x{size[1]} alone"
            )
        preprocessing = preprocessing.resized_to(size)
    class_map = join_classes(path, None, classes, said and fitted(said, None, classes, path))
    return Teacher(
        Segmenter(program, preprocessing, procedure, class_map),
        {"network": "program", "weights_sha256": files_sha256(program_files(path))},
    )


def _from_folder(
    path: Path, classes: Sequence[str], said: Description | None, size: tuple[int, int] | None
) -> Teacher:
    resized = set() if said is None else {"size", "longer_side"} & set(said.tables["input"])
    found = open_folder(path, own_size=size is None and not resized)
    if said is not None:
        said = fitted(said, found.outputs, classes, path)
    class_map = join_classes(path, found.outputs, classes, said)
    network = _CountsClasses(found.network, path, class_map, len(classes))
    return Teacher(
        Segmenter(network, found.preprocessing, found.procedure, class_map, batches=True),
        {"network": found.library, "weights_sha256": sha256(path)},
    )


class _CountsClasses(torch.nn.Module):
    """A library's network: whatever goes wrong inside is told as its, and its outputs are counted."""

    def __init__(self, network: nn.Module, path: Path, class_map: Any, num_classes: int) -> None:
        super().__init__()
        self.network = network
        self._path, self._expected = path, len(class_map.outputs) if class_map is not None else num_classes

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        try:
            output: torch.Tensor = self.network(images)
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:  # a network of any library can fail in any way
            if "DefaultCPUAllocator" in str(error):
                raise
            size = f"{images.shape[3]}x{images.shape[2]}"
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{self._path}: the network does not take an input of {size} ({type(error).__name__}: {reason}); give "
                "one that it was made for with --size WIDTHxHEIGHT"
            ) from error
        if not isinstance(output, torch.Tensor) or output.ndim != 4:
            raise CheckpointError(
                f"{self._path}: the network returns no (batch, classes, height, width), so it is none that labels "
                "pixels; name another folder"
            )
        if output.shape[1] != self._expected:
            raise CheckpointError(
                f"{self._path}: {output.shape[1]} outputs, but {self._expected} class names; list its classes, in "
                "order, in a TOML given with --description"
            )
        return output


def _from_plugin(entry: Any, path: Path, classes: Sequence[str]) -> Teacher:
    """What a package's function makes of the path; it is given the class names too."""
    try:
        made = entry.load()(path, tuple(classes))
    except (CheckpointError, ConfigError):
        raise
    except Exception as error:  # of somebody else's package
        raise CheckpointError(
            f"{path}: {entry.value} cannot open it ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(made, Teacher):
        raise CheckpointError(
            f"{entry.value} returned a {type(made).__name__}, but a teachers.Teacher was expected"
        )
    facts = {"network": entry.name, **made.facts}
    if path.is_file():
        facts.setdefault("weights_sha256", sha256(path))
    return replace(made, facts=facts)
