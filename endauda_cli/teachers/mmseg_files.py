"""DAFormer, HRDA, MIC and SegFormer opened: what their files say of their size, and of how they are tested."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from endauda_cli.domains import CITYSCAPES_CLASSES
from endauda_cli.errors import CheckpointError, ConfigError
from endauda_cli.models import mmseg
from endauda_cli.models.compat import state_dict_in, written_names
from endauda_cli.models.hrda import CROP, MULTIPLE
from endauda_cli.models.mit import MIT_SIZES
from endauda_cli.segmenter import Windows
from endauda_cli.teachers.registry import SEGFORMER_OF_NVLABS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from endauda_cli.teachers.registry import TeacherSpec

_SIDES = (64, 8192)
"""Of windows, crops and images that a file's configuration may ask for."""


def fitted(
    spec: TeacherSpec, path: Path, content: object, classes: Sequence[str]
) -> tuple[TeacherSpec, dict[str, Any]]:
    """The teacher as this file is tested, and what ``build_teacher`` builds its network from.

    Args:
        spec: as published.
        path: of the file.
        content: what ``read_content`` found in it.
        classes: those wanted. Of a network with Cityscapes' 19 they may be some.

    Raises:
        CheckpointError: if the file is of no such network, or asks for what makes no sense.
    """
    state = state_dict_in(path, content)
    of_19 = None
    if set(classes) <= set(CITYSCAPES_CLASSES):
        of_19 = [CITYSCAPES_CLASSES.index(name) for name in classes]
    try:
        options = mmseg.options_of(spec.network, state, len(classes), of_19)
    except ValueError as error:
        raise CheckpointError(
            f"{path}: {error}; it is damaged or of another network than {spec.title}'s"
        ) from error
    if mmseg.NVLABS in written_names(content):
        spec = SEGFORMER_OF_NVLABS
    told = mmseg.geometry_of(content)
    sides = [n for n in (told.crop, *(told.windows or ()), *(told.within or ())) if n is not None]
    if any(not _SIDES[0] <= side <= _SIDES[1] for side in sides):
        raise CheckpointError(
            f"{path}: its configuration asks for windows or images of {', '.join(map(str, sides))} pixels; expected "
            f"{_SIDES[0]} to {_SIDES[1]}"
        )
    if _two_scales(spec):
        options["crop"] = told.crop or CROP
        if options["crop"] % MULTIPLE:
            raise CheckpointError(
                f"{path}: its configuration asks for detail crops of {told.crop} pixels; expected a multiple of "
                f"{MULTIPLE}"
            )
    try:
        return _tested(spec, told), options
    except ConfigError as error:
        raise CheckpointError(f"{path}: its configuration asks for {error}") from error


def _tested(spec: TeacherSpec, told: mmseg.Geometry) -> TeacherSpec:
    procedure, preprocessing = spec.procedure, spec.preprocessing
    multiple = MULTIPLE if _two_scales(spec) else 1
    if told.windows is not None:
        procedure = replace(procedure, windows=Windows(*told.windows, multiple))
    elif told.whole and not _two_scales(spec):
        procedure = replace(procedure, windows=None)
    if told.within is not None:
        preprocessing = replace(preprocessing, within=told.within)
    return replace(spec, procedure=procedure, preprocessing=preprocessing)


def _two_scales(spec: TeacherSpec) -> bool:
    return spec.network in ("hrda", "mic")


def facts_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """What an archive says about the network."""
    size = options["size"]
    named = next((name for name, known in MIT_SIZES.items() if known == size), None)
    encoder = (
        f"mit-{named}" if named else f"mit of {list(size.channels)} channels, {list(size.depths)} blocks"
    )
    return {"encoder": encoder} | ({"crop": options["crop"]} if "crop" in options else {})


def named_by_experiment(name: str, content: object) -> str:
    """HRDA's keys are MIC's too, and mean the same; the experiment's name tells whose file it is."""
    meta = content.get("meta") if isinstance(content, dict) else None
    experiment = meta.get("exp_name") if isinstance(meta, dict) else None
    return "mic" if name == "hrda" and isinstance(experiment, str) and "_mic_" in experiment else name
