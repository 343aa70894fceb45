"""Store: what a transformers folder's processor does to an image, as ``Preprocessing``, and what it tells OneFormer.

The library's own processor says what its settings mean, those too that are absent; and on a small picture it is
compared with what would be done here, so a setting that nobody here knows of is refused, never passed over.
"""

from __future__ import annotations

import math
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from endauda_cli.errors import CheckpointError
from endauda_cli.students.families import TASK, task_in
from endauda_cli.students.settings import numbers_in, read_json
from endauda_cli.transforms import Preprocessing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers."""
_STRETCH = ("MaskFormer", "Mask2Former")
"""Processors whose ``size_divisor`` is of resized sides, not of padded ones."""
_LARGEST_SIDE = 1 << 15
_TRIED = ((75, 50), (64, 96))
"""(width, height) of pictures on which both are compared."""
_MOST_LEVELS = 4.0
"""Of 255, on average: resizing differs that much between libraries at the picture's borders, and no more."""
_GIVE_SIZE = "give --size WIDTHxHEIGHT, to which whole images are resized instead"


def preprocessing_of(folder: Path, own_size: bool) -> Preprocessing:
    """What a folder's processor does, where that can be done here exactly.

    Args:
        folder: of ``save_pretrained``.
        own_size: the processor says what images are resized to; else the user does, and cropping and padding, which
            belong to the processor's size, are left out.

    Raises:
        CheckpointError: if there is none, or names the setting that cannot be honoured.
    """
    found = _settings_in(folder)
    if found is None:
        raise CheckpointError(
            f"{folder}: no preprocessor_config.json, which says how images are normalised; save the image processor "
            "there too, with processor.save_pretrained(folder)"
        )
    path, settings = found
    return _of_processor(path, _processor(folder, settings), own_size)


def family_preprocessing(folder: Path, model_type: str) -> Preprocessing:
    """What a student of a folder is given, whose images the recipe resizes: the folder's processor's values, or, where
    it has none, those of its kind of network, else ImageNet's.

    Raises:
        CheckpointError: names the setting that cannot be honoured.
    """
    found = _settings_in(folder)
    path, processor = (
        (folder / _ALONE, processor_of(model_type))
        if found is None
        else (found[0], _processor(folder, found[1]))
    )
    made = _of_processor(path, processor, own_size=False)
    resample = getattr(processor, "resample", None)
    return replace(made, filter=_FILTERS.get(2 if resample is None else int(resample), "bilinear"))


_ALONE, _WITH_OTHERS = "preprocessor_config.json", "processor_config.json"
"""Where a processor of images is kept, alone or, since transformers 5, with a tokenizer beside it."""


def _settings_in(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The file that says how images are prepared, and what is in it of that; ``None`` where there is none."""
    whole, alone = folder / _WITH_OTHERS, folder / _ALONE
    if whole.exists() and isinstance(settings := read_json(whole).get("image_processor"), dict):
        path = whole
    elif alone.exists():
        path, settings = alone, read_json(alone)
    else:
        return None
    _refuse_numbers(path, settings)
    return path, settings


def processor_of(model_type: str, **settings: Any) -> Any:
    """The processor of a kind of network, with the library's own values but for those given."""
    library: Any = import_module("transformers")
    names: Any = import_module("transformers.models.auto.image_processing_auto").IMAGE_PROCESSOR_MAPPING_NAMES
    found = names.get(model_type, "SegformerImageProcessor")
    several = found.values() if isinstance(found, dict) else [found] if isinstance(found, str) else found
    name = next((str(name) for name in several if name), "SegformerImageProcessor")
    return getattr(library, name)(**settings)


def write_processor(folder: Path, model_type: str, preprocessing: Preprocessing) -> None:
    """A ``preprocessor_config.json`` that does what is done here."""
    assert preprocessing.size is not None
    width, height = preprocessing.size
    pillow = {name: number for number, name in _FILTERS.items()}
    processor = processor_of(
        model_type, do_resize=True, size={"height": height, "width": width},
        resample=pillow.get(preprocessing.filter, 2), do_rescale=True, rescale_factor=1 / preprocessing.divisor,
        do_normalize=True, image_mean=list(preprocessing.mean), image_std=list(preprocessing.std),
        do_flip_channel_order=preprocessing.bgr,
    )  # fmt: skip
    for other in ("do_center_crop", "do_pad", "keep_aspect_ratio", "do_reduce_labels"):
        if getattr(processor, other, None):
            setattr(processor, other, False)
    if getattr(processor, "ensure_multiple_of", 1) not in (1, None):
        processor.ensure_multiple_of = 1
    processor.save_pretrained(str(folder))


def _of_processor(path: Path, processor: Any, own_size: bool) -> Preprocessing:
    def said(name: str) -> Any:
        return getattr(processor, name, None)

    def flag(name: str) -> bool:
        return bool(said(name))

    size, longer_side, shorter_side, resampling = None, None, None, "bilinear"
    if own_size and flag("do_resize"):
        size, longer_side, shorter_side = _size(path, _plain(said("size")))
        resample = said("resample")
        if resample is not None and int(resample) not in _FILTERS:
            raise CheckpointError(
                f"{path}: resample {int(resample)} is a filter that is not known here, but nearest (0), bilinear (2) "
                f"or bicubic (3) was expected; {_GIVE_SIZE}"
            )
        resampling = _FILTERS[2 if resample is None else int(resample)]
    stretches = own_size and flag("do_resize") and type(processor).__name__.startswith(_STRETCH)
    divisor = int(said("size_divisor") or 1) if stretches else 1
    if own_size and flag("do_center_crop") and (size is None or _side_pair(said("crop_size")) != size):
        raise CheckpointError(
            f"{path}: do_center_crop cuts the middle out of images, and the rest would have no labels; {_GIVE_SIZE}"
        )
    factor = float(said("rescale_factor") or 0.0) if flag("do_rescale") else 1.0
    mean = _three(path, "image_mean", said("image_mean")) if flag("do_normalize") else (0.0, 0.0, 0.0)
    std = _three(path, "image_std", said("image_std")) if flag("do_normalize") else (1.0, 1.0, 1.0)
    if not factor > 0 or not min(std) > 0 or not all(map(math.isfinite, (factor, *mean, *std))):
        raise CheckpointError(
            f"{path}: rescale_factor {factor:g} and image_std {std} must be above 0, and image_mean finite; correct "
            "them, or save the processor again with processor.save_pretrained(folder)"
        )
    made = Preprocessing(
        size=size,
        longer_side=longer_side,
        shorter_side=shorter_side,
        round_up=divisor,
        filter=resampling,
        bgr=flag("do_flip_channel_order"),
        divisor=1 / factor,
        mean=mean,
        std=std,
    )
    for width, height in _TRIED:
        _compare(path, processor, made, width, height, own_size)
    return made


def _processor(folder: Path, settings: Mapping[str, Any]) -> Any:
    import transformers

    library: Any = transformers  # not typed
    # OneFormer's list of classes is for its training, and lies on a hub.
    without = {"class_info_file": None} if settings.get("class_info_file") else {}
    return library.AutoImageProcessor.from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=False, **without
    )


def _refuse_numbers(path: Path, settings: Mapping[str, Any]) -> None:
    """Sizes that no image has, before anything is made in them."""
    for key, number in numbers_in(settings):
        sized = any(word in key for word in ("size", "height", "width", "edge", "multiple", "divisor"))
        least = 1 if sized else -_LARGEST_SIDE
        if isinstance(number, int) and not least <= number <= _LARGEST_SIDE and "pixels" not in key:
            raise CheckpointError(
                f"{path}: {key!r:.80} is {str(number)[:20]}, but a number from {least} to {_LARGEST_SIDE} was "
                "expected; correct it, or save the processor again"
            )


def _plain(size: Any) -> dict[str, int]:
    """A size as the sides that it says, whatever the library keeps it in."""
    if size is None:
        return {}
    if isinstance(size, int):
        return {"height": size, "width": size}
    return {key: int(value) for key, value in dict(size).items() if value is not None}


def _side_pair(size: Any) -> tuple[int, int] | None:
    sides = _plain(size)
    return (sides["width"], sides["height"]) if {"height", "width"} <= sides.keys() else None


def _size(path: Path, wanted: dict[str, int]) -> tuple[tuple[int, int] | None, int | None, int | None]:
    """((width, height), longer side, shorter side) that images are resized to; ``None`` where that is not said."""
    if wanted.keys() == {"height", "width"}:
        return (wanted["width"], wanted["height"]), None, None
    if wanted.keys() == {"longest_edge"}:
        return None, wanted["longest_edge"], None
    if "shortest_edge" in wanted and wanted.keys() <= {"shortest_edge", "longest_edge"}:
        return None, wanted.get("longest_edge"), wanted["shortest_edge"]
    shown = ", ".join(f"{key} {value}" for key, value in wanted.items()) or "nothing"
    raise CheckpointError(f"{path}: size says {shown}, but height and width were expected; {_GIVE_SIZE}")


def _three(path: Path, key: str, values: Any) -> tuple[float, float, float]:
    if isinstance(values, int | float):
        values = (values,) * 3
    if not isinstance(values, list | tuple) or len(values) != 3:
        raise CheckpointError(
            f"{path}: {key} is {values!r:.80}, but 3 numbers were expected: only networks that take colour images are "
            "run"
        )
    return float(values[0]), float(values[1]), float(values[2])


def _compare(
    path: Path, processor: Any, made: Preprocessing, width: int, height: int, own_size: bool
) -> None:
    """Refuse where the library's processor makes something else of a picture."""
    across = np.broadcast_to(np.linspace(20, 235, width), (height, width))
    down = np.broadcast_to(np.linspace(20, 235, height)[:, None], (height, width))
    picture = np.stack([across, down, 255 - across * 0.6], -1).astype(np.uint8)
    switches = {} if own_size else {"do_resize": False, "do_center_crop": False}
    if getattr(processor, "do_split_image", False):
        switches |= {"do_split_image": False, "do_pad": False}  # `universal.windows` does it, after all else
    if not own_size and hasattr(processor, "do_pad"):
        switches["do_pad"] = False
    theirs = processor(images=picture, return_tensors="pt", **switches)["pixel_values"].float()
    ours = made.normalise(torch.from_numpy(np.ascontiguousarray(made.resize(picture)))[None])
    name = type(processor).__name__
    if theirs.shape != ours.shape:
        sizes = [f"{x.shape[-1]}x{x.shape[-2]}" for x in (theirs, ours)]
        raise CheckpointError(
            f"{path}: {name} makes {sizes[0]} of an image of {width}x{height}, where {sizes[1]} was expected, by a "
            f"setting that is not known here (such as do_pad, keep_aspect_ratio); {_GIVE_SIZE}"
        )
    levels = (theirs - ours).abs() * torch.tensor(made.std)[:, None, None] * made.divisor
    if not levels.mean() <= _MOST_LEVELS:
        raise CheckpointError(
            f"{path}: {name} makes other values of an image than its settings for resizing, rescaling, normalising and "
            f"the order of channels explain (by {levels.mean():.0f} of 255); run the network outside and --import its "
            "outputs"
        )


# ---------------------------------------------------------------------------- words


_VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
"""Files that a tokenizer of CLIP is read from, one kind or the other."""


def task_of(folder: Path, settings: Mapping[str, Any], length: int) -> list[int]:
    """OneFormer's words for semantic segmentation as so many numbers, padded with 0: those of a student's folder, else
    by the folder's tokenizer.

    Args:
        folder: with the tokenizer's files.
        settings: of its ``config.json``.
        length: how many the network takes.

    Raises:
        CheckpointError: if the files are not there.
    """
    if TASK in settings:
        return task_in(settings, length)
    if not any(all((folder / name).is_file() for name in names) for names in _VOCABULARIES):
        raise CheckpointError(
            f"{folder}: no {_VOCABULARIES[0][0]} and no {' with '.join(_VOCABULARIES[1])}, but OneFormer is told its "
            "task in words; save the whole processor there, with OneFormerProcessor.save_pretrained(folder)"
        )
    library: Any = import_module("transformers")
    tokenizer = library.AutoTokenizer.from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=False
    )
    words = tokenizer("the task is semantic", padding="max_length", max_length=length, truncation=True)
    pairs = zip(words["input_ids"], words["attention_mask"], strict=True)
    return [int(token) if counts else 0 for token, counts in pairs]
