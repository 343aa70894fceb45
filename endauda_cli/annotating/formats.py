"""The formats, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from endauda_cli.annotating import cityscapes, coco_panoptic, cvat, label_studio, ultralytics
from endauda_cli.types import LabelFormatName

if TYPE_CHECKING:
    from endauda_cli.annotating.kinds import LabelFormat

FORMATS: dict[str, LabelFormat] = {
    LabelFormatName.CITYSCAPES: cityscapes.FORMAT,
    LabelFormatName.CVAT: cvat.FORMAT,
    LabelFormatName.LABEL_STUDIO: label_studio.FORMAT,
    LabelFormatName.COCO_PANOPTIC: coco_panoptic.FORMAT,
    LabelFormatName.ULTRALYTICS: ultralytics.FORMAT,
}
