"""The networks: tables of numbers, and the functions that build from them.

Everything below is a kernel (tensors in, tensors out) except ``compat`` and ``reading``, which read files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from endauda_cli.errors import ConfigError
from endauda_cli.models.compat import load_checkpoint, read_state_dict
from endauda_cli.models.deeplab import (
    ASPP,
    AtrousHead,
    Decoder,
    DeepLabV2,
    DeepLabV3Plus,
    ParameterGroups,
    Student,
    parameter_groups,
)
from endauda_cli.models.drn import DRN
from endauda_cli.models.layers import FeatureExtractor, NormLayer, UncountedBatchNorm2d
from endauda_cli.models.mobilenet import MobileNetV2
from endauda_cli.models.resnet import ResNet
from endauda_cli.models.teachers import TEACHER_NETWORKS
from endauda_cli.models.tiny import TinyNet

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    # students
    "ARCHS",
    "BACKBONES",
    "BackboneSpec",
    "Student",
    "build_student",
    "ParameterGroups",
    "parameter_groups",
    # teachers
    "TEACHER_NETWORKS",
    "build_teacher",
    # checkpoints
    "load_checkpoint",
    "read_state_dict",
]


_T = TypeVar("_T")


@dataclass(frozen=True)
class BackboneSpec:
    """A backbone, and the numbers of the DeepLab parts that sit on it."""

    build: Callable[[NormLayer], FeatureExtractor]
    output_stride: int
    deep_channels: int
    low_level_channels: int
    aspp_dilations: tuple[int, int, int]  # grow with the resolution of the deep features
    aspp_channels: int = 256
    decoder_channels: int = 256
    decoder_reduced_channels: int = 48  # low-level features in the decoder: few, so that they do not dominate
    head_dilations: tuple[int, ...] = (6, 12, 18, 24)  # of DeepLabv2


BACKBONES: dict[str, BackboneSpec] = {
    "drn": BackboneSpec(
        DRN, output_stride=8, deep_channels=512, low_level_channels=256, aspp_dilations=(12, 24, 36)
    ),
    "resnet": BackboneSpec(
        ResNet, output_stride=16, deep_channels=2048, low_level_channels=256, aspp_dilations=(6, 12, 18)
    ),
    "mobilenet": BackboneSpec(
        MobileNetV2, output_stride=16, deep_channels=320, low_level_channels=24, aspp_dilations=(6, 12, 18)
    ),
    # For images of about 96 x 192: 12 x 24 deep features, so small dilations.
    "tiny": BackboneSpec(
        TinyNet,
        output_stride=8,
        deep_channels=96,
        low_level_channels=40,
        aspp_dilations=(2, 4, 8),
        aspp_channels=48,
        decoder_channels=48,
        decoder_reduced_channels=16,
        head_dilations=(2, 4, 6, 8),
    ),
}


def _deeplabv3plus(spec: BackboneSpec, num_classes: int) -> DeepLabV3Plus:
    return DeepLabV3Plus(
        spec.build(UncountedBatchNorm2d),
        ASPP(spec.deep_channels, spec.aspp_channels, spec.aspp_dilations),
        Decoder(
            spec.aspp_channels,
            spec.low_level_channels,
            num_classes,
            channels=spec.decoder_channels,
            reduced_channels=spec.decoder_reduced_channels,
        ),
    )


def _deeplabv2(spec: BackboneSpec, num_classes: int) -> DeepLabV2:
    return DeepLabV2(
        spec.build(nn.BatchNorm2d), AtrousHead(spec.deep_channels, num_classes, spec.head_dilations)
    )


ARCHS: dict[str, Callable[[BackboneSpec, int], Student]] = {
    "deeplabv3plus": _deeplabv3plus,
    "deeplabv2": _deeplabv2,
}


def build_student(arch: str, backbone: str, num_classes: int) -> Student:
    """A student with fresh random weights, in train mode, on the CPU; nothing is ever downloaded.

    ``deeplabv3plus`` returns logits of the image's size, ``deeplabv2`` of the deep features' size
    (``BACKBONES[backbone].output_stride``).
    """
    make = _choice(ARCHS, arch, "architecture")
    spec = _choice(BACKBONES, backbone, "backbone")
    return make(spec, num_classes)


# ---------------------------------------------------------------------------- teachers


def build_teacher(name: str, num_classes: int, **options: Any) -> nn.Module:
    """A published teacher's network with fresh random weights, in train mode, on the CPU.

    Takes what the teacher's own preprocessing makes (see ``teachers.TEACHERS``); returns logits (B, C, h, w) at an
    eighth of the size, ``mrnet`` those of its two heads; ``daformer``, ``segformer``, ``hrda`` and ``mic`` at a
    quarter.

    Args:
        name: key of ``TEACHER_NETWORKS``.
        num_classes: outputs.
        options: of those four, ``size`` of the encoder (``b5`` as published, ``b0`` to ``b4``) and others that
            ``mmseg.options_of`` finds for a file; of ``hrda`` and ``mic``, ``crop``, the side of a detail crop (512).
    """
    return _choice(TEACHER_NETWORKS, name, "teacher network")(num_classes, **options)


def _choice(table: Mapping[str, _T], name: str, kind: str) -> _T:
    if name not in table:
        raise ConfigError(f"{kind} {name!r} is unknown; choose one of {', '.join(table)}")
    return table[name]
