"""Choices that the command line shows. Free of torch and numpy, so that ``--help`` and TAB stay instant.

Each enum has a table of the same keys next to the code that implements it; a test holds them equal.
"""

from __future__ import annotations

from enum import StrEnum


class FusionRule(StrEnum):
    """How archives become one label map (``fusion.RULES``)."""

    PLF = "plf"
    CERTAINTY = "certainty"
    MAJORITY = "majority"
    SOFT_LABEL = "soft-label"
    CONSENSUS = "consensus"


class Border(StrEnum):
    """What a window that reaches over the image's border is divided by."""

    REFERENCE = "reference"
    INSIDE = "inside"


class Unclaimed(StrEnum):
    """What becomes of pixels that no class is claimed for."""

    VOTE = "vote"
    IGNORE = "ignore"


class PolicyKind(StrEnum):
    """Named ways to choose which teacher owns which class (``policy.POLICIES``)."""

    AUTO = "auto"
    FEW_SHOT = "few-shot"
    VAL = "val"
    CERTAINTY = "certainty"
    PAPER = "paper"


CONSENSUS_FILE = "consensus.npz"
"""Beside the ``policy.json`` of labels of the rule ``consensus``: what it was fitted to."""


class Backbone(StrEnum):
    """Feature extractors (``models.BACKBONES``)."""

    DRN = "drn"
    RESNET = "resnet"
    MOBILENET = "mobilenet"
    TINY = "tiny"


class Arch(StrEnum):
    """Segmentation networks (``models.ARCHS``)."""

    DEEPLABV3PLUS = "deeplabv3plus"
    DEEPLABV2 = "deeplabv2"


class TeacherName(StrEnum):
    """Published teachers (``teachers.TEACHERS``)."""

    DACS = "dacs"
    CRST = "crst"
    MRKLD = "mrkld"
    LRENT = "lrent"
    CBST = "cbst"
    MRNET = "mrnet"
    CBST_MXNET = "cbst-mxnet"


TEACHER_ENTRY_POINTS = "endauda.teachers"
"""Group of entry points by which other packages add teachers (``docs/teachers.md``)."""


class Method(StrEnum):
    """What ``train`` learns from (``training.METHODS``)."""

    DISTILL = "distill"
    SOURCE = "source"


class Codec(StrEnum):
    """Lossless compressions of certainty planes (``archive.CODECS``)."""

    SOFTMAX = "softmax"
    JPEGLS = "jpegls"
    DELTA_ZSTD = "delta-zstd"
    ZSTD = "zstd"
    GZIP = "gzip"


class Split(StrEnum):
    """Parts of a data set."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"
