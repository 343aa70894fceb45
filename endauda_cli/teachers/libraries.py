"""Store: local folders of segmentation-models-pytorch and transformers, as ``save_pretrained`` leaves them.

Both libraries are optional. Nothing is downloaded, and no code that lies beside the weights is run.
"""

from __future__ import annotations

import io
import json
import warnings
from contextlib import redirect_stdout
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from endauda_cli.errors import CheckpointError, ConfigError
from endauda_cli.segmenter import Procedure
from endauda_cli.transforms import Preprocessing

if TYPE_CHECKING:
    from pathlib import Path

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_PILLOW_FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic"}


class Found(NamedTuple):
    """What a folder holds."""

    library: str
    network: nn.Module
    preprocessing: Preprocessing
    procedure: Procedure
    outputs: tuple[str, ...] | None
    """Names of the classes, if the folder knows them."""


class _Mask(nn.Module):
    """A segmentation-models-pytorch model without the image label that some give beside the mask."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        output = self.model(images)
        mask: Tensor = output if isinstance(output, Tensor) else output[0]
        return mask


class _Logits(nn.Module):
    """A transformers model as images to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values=images).logits
        return logits


def open_folder(folder: Path) -> Found:
    """The network in a folder with a ``config.json``.

    Raises:
        CheckpointError: if there is none, it is damaged, or no semantic segmentation network.
        ConfigError: if the library is not installed.
    """
    config = _read_json(folder / "config.json")
    library = "segmentation-models-pytorch" if "_model_class" in config else "transformers"
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):  # stdout is for the command's result
            warnings.simplefilter("ignore")
            return (
                _open_smp(folder, config) if "_model_class" in config else _open_transformers(folder, config)
            )
    except ImportError as error:
        extra = {"segmentation-models-pytorch": "smp"}.get(library, library)
        raise ConfigError(f"{folder}: needs {library}; pip install 'endauda[{extra}]'") from error
    except (CheckpointError, ConfigError):
        raise
    except Exception as error:  # each library has its own ideas of what can go wrong
        if "weights_only" in str(error):
            raise CheckpointError(
                f"{folder}: holds more than tensors and was not opened, because such a file can run code; ask its "
                "author for model.safetensors"
            ) from error
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{folder}: {library} cannot open it ({reason})") from error


def _open_smp(folder: Path, config: dict[str, Any]) -> Found:
    import segmentation_models_pytorch as smp

    _expect_weights(folder, "model.safetensors")
    # The weights follow; encoder_weights would download those of ImageNet first.
    model = smp.from_pretrained(str(folder), encoder_weights=None, strict=True)
    encoder, weights = config.get("encoder_name"), config.get("encoder_weights")
    mean, std, bgr, divisor = IMAGENET_MEAN, IMAGENET_STD, False, 255.0
    if weights is not None:
        wanted = smp.encoders.get_preprocessing_params(encoder, pretrained=weights)
        mean, std = tuple(wanted["mean"] or (0.0,) * 3), tuple(wanted["std"] or (1.0,) * 3)
        bgr = wanted["input_space"] == "BGR"
        divisor = 255.0 if list(wanted["input_range"] or [0, 1])[1] == 1 else 1.0
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
    return Found("segmentation-models-pytorch", _Mask(model), preprocessing, Procedure(softmax=softmax), None)


def _open_transformers(folder: Path, config: dict[str, Any]) -> Found:
    from transformers import AutoModelForSemanticSegmentation

    logging: Any = import_module("transformers.utils.logging")
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    if not any(folder.glob("*.safetensors")):
        _expect_weights(folder, "pytorch_model.bin")  # read by torch with weights_only
    model = AutoModelForSemanticSegmentation.from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=False, dtype=torch.float32
    )
    names = {int(key): str(value) for key, value in (config.get("id2label") or {}).items()}
    outputs = tuple(names[k] for k in sorted(names)) or None
    if outputs is not None and all(name == f"LABEL_{k}" for k, name in enumerate(outputs)):
        outputs = None  # what transformers writes where nobody named the classes
    # Its post-processing enlarges logits without aligned corners.
    return Found(
        "transformers", _Logits(model), _image_processor(folder), Procedure(align_corners=False), outputs
    )


def _image_processor(folder: Path) -> Preprocessing:
    """Preprocessing as ``preprocessor_config.json`` has it."""
    path = folder / "preprocessor_config.json"
    if not path.exists():
        raise CheckpointError(
            f"{folder}: no preprocessor_config.json, which says how images are normalised; save the image processor "
            "there too, with processor.save_pretrained(folder)"
        )
    found = _read_json(path)
    size = None
    if found.get("do_resize", True) and (wanted := found.get("size")) is not None:
        if isinstance(wanted, int):
            size = (wanted, wanted)
        elif "height" in wanted and "width" in wanted:
            size = (int(wanted["width"]), int(wanted["height"]))
        else:
            raise CheckpointError(
                f"{path}: size {wanted} is not height and width; give --size WIDTHxHEIGHT instead"
            )
    factor = float(found.get("rescale_factor", 1 / 255)) if found.get("do_rescale", True) else 1.0
    normalised = found.get("do_normalize", True)
    return Preprocessing(
        size=size,
        filter=_PILLOW_FILTERS.get(found.get("resample", 2), "bilinear"),
        bgr=False,
        divisor=1 / factor,
        mean=_three(path, found, "image_mean", IMAGENET_MEAN) if normalised else (0.0, 0.0, 0.0),
        std=_three(path, found, "image_std", IMAGENET_STD) if normalised else (1.0, 1.0, 1.0),
    )


def _three(
    path: Path, found: dict[str, Any], key: str, default: tuple[float, float, float]
) -> tuple[float, float, float]:
    values = found.get(key, default)
    if len(values) != 3:
        raise CheckpointError(f"{path}: {key} has {len(values)} numbers, but 3 were expected")
    return float(values[0]), float(values[1]), float(values[2])


def _expect_weights(folder: Path, name: str) -> None:
    if not (folder / name).exists():
        raise CheckpointError(
            f"{folder}: no {name} beside config.json; save the model there with save_pretrained"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent}: a folder without {path.name}; expected what save_pretrained wrote, or a file of weights"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no table, but settings were expected")
    return content
