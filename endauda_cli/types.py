"""Choices that the command line shows. Free of torch and numpy, so that ``--help`` and TAB stay instant.

Each enum has a table of the same keys next to the code that implements it; a test holds them equal.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class Described(StrEnum):
    """A choice with a few words on it, which TAB shows."""

    about: str

    def __new__(cls, value: str, about: str = "") -> Self:
        member = str.__new__(cls, value)
        member._value_, member.about = value, about
        return member


class FusionRule(Described):
    """How archives become one label map (``fusion.rules.RULES``)."""

    PLF = "plf", "each class from the teacher that owns it"
    CERTAINTY = "certainty", "the highest mean certainty"
    MAJORITY = "majority", "plain vote"
    SOFT_LABEL = "soft-label", "certainties by their rank"
    CONSENSUS = "consensus", "votes, by how far each teacher is to be trusted"


class Border(StrEnum):
    """What a window that reaches over the image's border is divided by."""

    REFERENCE = "reference"
    INSIDE = "inside"


class Unclaimed(StrEnum):
    """What becomes of pixels that no class is claimed for."""

    VOTE = "vote"
    IGNORE = "ignore"


class PolicyKind(Described):
    """Named ways to choose which teacher owns which class (``fusion.choosing.POLICIES``)."""

    AUTO = "auto", "agreement of the teachers; no labels"
    FEW_SHOT = "few-shot", "agreement, and a few labelled images"
    VAL = "val", "all labelled images"
    CERTAINTY = "certainty", "mean certainty"
    PAPER = "paper", "the published lists"


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
    DAFORMER = "daformer"
    HRDA = "hrda"
    MIC = "mic"
    SEGFORMER = "segformer"


class ClassMapName(Described):
    """Data sets whose classes are joined with Cityscapes' 19 (``data/classes``)."""

    ADE20K = "ade20k", "150 classes; no traffic sign, rider, train"
    COCO_STUFF = "coco-stuff", "171 classes; no pole, rider"
    MAPILLARY_V1 = "mapillary-v1.2", "65 classes, or 66"
    MAPILLARY_V2 = "mapillary-v2.0", "124 classes"
    IDD = "idd", "26 classes of level 3; no train"
    KITTI_360 = "kitti-360", "Cityscapes' 19 train ids"
    BDD100K = "bdd100k", "Cityscapes' 19 train ids"
    ACDC = "acdc", "Cityscapes' 19 train ids"
    DARK_ZURICH = "dark-zurich", "Cityscapes' 19 train ids"


TEACHER_ENTRY_POINTS = "endauda.teachers"
"""Group of entry points by which other packages add teachers (``docs/teachers.md``)."""
STUDENT_ENTRY_POINTS = "endauda.students"
"""The same of students (``docs/students.md``)."""


class Optimizer(Described):
    """What ``train`` moves the weights by (``training.optimizers.OPTIMIZERS``)."""

    SGD = "sgd", "with Nesterov momentum, as published for DeepLabs"
    ADAMW = "adamw", "for transformers"


class Method(StrEnum):
    """What ``train`` learns from (``training.methods.METHODS``)."""

    DISTILL = "distill"
    SOURCE = "source"
    DACS = "dacs"
    CBST = "cbst"
    CRST = "crst"
    MRNET = "mrnet"
    RECTIFY = "rectify"


class Regulariser(Described):
    """What ``train --method crst`` holds the network's confidence back by (``training.methods.crst``)."""

    MRKLD = "mrkld", "its divergence from the uniform distribution"
    LRENT = "lrent", "soft pseudo labels of a high entropy"
    MRENT = "mrent", "its entropy"
    MRL2 = "mrl2", "the square of its probabilities"


class Labelled(Described):
    """Whose true labels ``train`` mixes into every batch."""

    TARGET = "target", "the target's train images that have some"
    SOURCE = "source", "all of the source's train images"


class Loss(Described):
    """What ``train`` takes the teachers' word for."""

    HARD = "hard", "the fused label"
    SOFT = "soft", "their mean certainty of every class"
    WEIGHTED = "weighted", "the fused label, as far as they are certain of it"


class BestBy(Described):
    """What the best checkpoint of a run is chosen by."""

    MIOU = "miou", "the score on labelled target images"
    AGREEMENT = "agreement", "the fused labels of images held out; no label is looked at"


class Precision(Described):
    """What ``train`` computes in (``training.precision``)."""

    AUTO = "auto", "bf16 on cards that have it, else fp32"
    BF16 = "bf16", "bfloat16 where it helps, the loss in float32"
    TF32 = "tf32", "float32 with TensorFloat-32 products, on cards alone"
    FP32 = "fp32", "float32"


class Format(Described):
    """What ``deploy`` writes (``deploying.formats.FORMATS``)."""

    ONNX = "onnx", "runs nearly everywhere: onnxruntime, TensorRT, OpenVINO, browsers"
    PT2 = "pt2", "torch.export's, for torch and what compiles it"
    TORCHSCRIPT = "torchscript", "for C++ and telephones that have torch"
    SAFETENSORS = "safetensors", "the weights alone, for this program and code of one's own"


class LabelFormatName(Described):
    """What ``export-labels`` writes and ``import-labels`` reads (``annotating.formats.FORMATS``)."""

    CITYSCAPES = "cityscapes", "label ids, as its server takes them"
    CVAT = "cvat", "CVAT for images 1.1: masks that can be edited"
    LABEL_STUDIO = "label-studio", "tasks with brushes, by the teachers' agreement"
    COCO_PANOPTIC = "coco-panoptic", "segments as colours, and a JSON file"
    ULTRALYTICS = "ultralytics", "images, masks and data.yaml"


class Accuracy(Described):
    """What a deployed network computes in."""

    FLOAT32 = "float32", "as trained"
    FLOAT16 = "float16", "half the size; fast on cards"
    INT8 = "int8", "a quarter of the size; ONNX alone"


class MergeBy(Described):
    """How ``merge`` chooses among the runs that it averages."""

    UNIFORM = "uniform", "all of them, equally"
    AGREEMENT = "agreement", "those that raise the agreement with fused labels; no label is looked at"
    MIOU = "miou", "those that raise the score on a few labelled target images"


class Codec(Described):
    """How archives keep certainties: as the network's own grid, or compressed planes (``archive.CODECS``)."""

    GRID = "grid", "the network's own grid, smallest and fastest to write; else softmax"
    SOFTMAX = "softmax", "percents, smallest of these; read by endauda alone"
    JPEGLS = "jpegls", "JPEG-LS"
    DELTA_ZSTD = "delta-zstd", "differences, then Zstandard"
    ZSTD = "zstd", "Zstandard"
    GZIP = "gzip", "read everywhere"

    @property
    def of_planes(self) -> Codec:
        """What planes are coded by that no grid says."""
        return Codec.SOFTMAX if self is Codec.GRID else self


class FittedOn(Described):
    """What ``--temperature`` may be fitted on."""

    AUTO = "auto", "fit on the target's val, else the source"
    VAL = "val", "fit on the target's val"
    SOURCE = "source", "fit on the source"


class Augmentation(StrEnum):
    """Photometric changes (``augmentation.AUGMENTATIONS``)."""

    COLOUR = "colour"
    LIGHT = "light"
    TEXTURE = "texture"
    JITTER = "jitter"
    BLUR = "blur"


class PredictionIds(Described):
    """What the values of predictions mean that other programs wrote."""

    AUTO = "auto", "train ids, or what palette or values say without doubt"
    TRAIN = "train", "positions in the list of classes"
    LABEL = "label", "label ids of the data set's own files"


class Split(StrEnum):
    """Parts of a data set."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"
