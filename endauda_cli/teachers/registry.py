"""The published teachers, as values: each network, and what its project's test-time code does around it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from endauda_cli.segmenter import Procedure, Segmenter, Windows
from endauda_cli.transforms import Preprocessing
from endauda_cli.types import TEACHER_ENTRY_POINTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class TeacherSpec:
    """A published teacher: its network, and what its project's test-time code does around it."""

    title: str
    network: str
    """Key of ``models.TEACHER_NETWORKS``."""
    preprocessing: Preprocessing
    procedure: Procedure
    told_by: str | None = None
    """A key that only its checkpoints have."""
    like_dacs: bool = False
    """Its checkpoints have the keys of DACS, which reads them differently."""


_CAFFE = Preprocessing(size=(1024, 512), filter="bicubic", bgr=True)
_IMAGENET = Preprocessing(
    size=None,
    filter="bilinear",
    bgr=False,
    divisor=255,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
# CRST's own evaluation, published with the flip: logits averaged at full size. It has no certainties; softmax last.
_CRST = TeacherSpec(
    "CRST (MRKLD)", "crst", _IMAGENET, Procedure(flip=True, rescale="input", softmax="last"), like_dacs=True
)
# DAFormer, HRDA and MIC, by mmsegmentation: logits to the input's size, to the image's, then softmax of each pass.
_MMSEG = Preprocessing(
    size=None,
    within=(1024, 512),
    filter="opencv",
    bgr=False,
    mean=(123.675, 116.28, 103.53),
    std=(58.395, 57.12, 57.375),
)
_DAFORMER = TeacherSpec(
    "DAFormer",
    "daformer",
    _MMSEG,
    Procedure(softmax="upsampled", align_corners=False, enlarge="twice"),
    told_by="decode_head.fuse_layer.bottleneck.conv.weight",
)
_HRDA = replace(
    _DAFORMER,
    title="HRDA",
    network="hrda",
    preprocessing=replace(_MMSEG, within=(2048, 1024)),
    procedure=replace(_DAFORMER.procedure, windows=Windows(1024, 512, multiple_of=8)),
    told_by="decode_head.scale_attention.conv_seg.weight",
)
_SEGFORMER = replace(
    _DAFORMER, title="SegFormer", network="segformer", told_by="decode_head.linear_pred.weight"
)
SEGFORMER_OF_NVLABS = replace(
    _SEGFORMER,
    preprocessing=replace(_MMSEG, within=(2048, 1024)),
    procedure=replace(_SEGFORMER.procedure, windows=Windows(1024, 768)),
)
"""The SegFormer project's own files; ``TEACHERS`` has that of DAFormer's project."""

TEACHERS: dict[str, TeacherSpec] = {
    "dacs": TeacherSpec("DACS", "dacs", replace(_CAFFE, filter="bilinear"), Procedure(softmax="last")),
    "crst": _CRST,
    "mrkld": _CRST,
    "lrent": replace(_CRST, title="CRST (LRENT)"),
    "cbst": replace(_CRST, title="CBST, as in CRST's project", network="cbst"),
    "mrnet": TeacherSpec(
        "R-MRNet",
        "mrnet",
        _CAFFE,
        Procedure(scales=(1.0, 1.25), flip=True, softmax="first", heads=(0.5, 1.0)),
        told_by="layer6.head.1.weight",
    ),
    "cbst-mxnet": TeacherSpec(
        "CBST, the original on MXNet",
        "cbst-mxnet",
        replace(_IMAGENET, filter="bicubic", longer_side=2048, multiple_of=8),
        Procedure(flip=True, rescale="input", softmax="first", enlarge="bicubic"),
        told_by="res7a_branch2b1.weight",
    ),
    "daformer": _DAFORMER,
    "hrda": _HRDA,
    "mic": replace(_HRDA, title="MIC", network="mic", told_by=None),  # its files have HRDA's keys
    "segformer": _SEGFORMER,
}
"""By the name that ``export-teacher`` knows them by."""


@dataclass(frozen=True)
class Teacher:
    """A network that is ready to be run, and what an archive is to say of it."""

    segmenter: Segmenter
    facts: Mapping[str, Any] = field(default_factory=dict)
    """JSON values: where it is from. What the segmenter does is told by ``attributes``."""

    def attributes(self, classes: Sequence[str]) -> dict[str, Any]:
        """What an archive of the teacher says about it: origin, preprocessing, passes, map of classes."""
        run = self.segmenter
        made = {**self.facts, **run.preprocessing.facts(), **run.procedure.facts()}
        if run.class_map is not None:
            made["class_map"] = run.class_map.facts(classes)
        if run.temperature != 1 or "temperature_fit" in made:
            made["temperature"] = run.temperature
        return made


def teacher_names() -> list[str]:
    """Networks that ``open_teacher`` knows by name: published ones, and those of installed packages."""
    return [
        *TEACHERS,
        *sorted({entry.name for entry in entry_points(group=TEACHER_ENTRY_POINTS)} - TEACHERS.keys()),
    ]
