"""Files of mmsegmentation and its kin (DAFormer, HRDA, MIC, SegFormer and what was made from them), in our names.

What such a file holds beside the network that its project evaluates is left out: adapted networks are saved with
their mean teacher and the encoder that they started from, and some projects train further heads. All tables are at
the top. Kernels: state dicts and values in, the same out.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from endauda_cli.models.mit import MLP_RATIO, REDUCTIONS, STAGES, MiTSize

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

NETWORKS = ("daformer", "hrda", "mic", "segformer")
"""Keys of ``TEACHER_NETWORKS`` whose files are such."""

TAKEN = ("model.", "ema_model.")
"""Networks in an adapted one's file, the first that is there is taken: the student, which is evaluated, or its mean."""
LEFT = ("imnet_model.", "mic.")
"""What lies beside them: an ImageNet encoder under a head that was never trained, MIC's own teacher."""

TRAINED_WITH = ("auxiliary_head.", "cls_head.", "proj_head.")
"""Heads that only training uses: SePiCo, PiPa, and mmsegmentation's own."""

_REFIGN = ("m_backbone.", "m_head.", "imnet_backbone.", "alignment_backbone.", "alignment_head.")
"""What Refign's Lightning files hold beside ``backbone.`` and ``head.``."""

NVLABS = "decode_head.linear_c1.proj.weight"
"""A key that only the SegFormer project's own files have."""
_ENCODER = "backbone.patch_embed1.proj.weight"

_LARGEST = MiTSize((64, 128, 320, 512), (3, 8, 40, 3))
"""Channels and blocks that no published encoder exceeds; a forged file may claim any number."""
_WIDEST = 1024

_HEADS = {  # a key that only it has -> where its width and its classes are seen
    "decode_head.scale_attention.conv_seg.weight": (
        "decode_head.head.embed_layers.0.proj.weight",
        "decode_head.head.conv_seg.weight",
    ),
    "decode_head.linear_pred.weight": (
        "decode_head.linear_c.0.proj.weight",
        "decode_head.linear_pred.weight",
    ),
    "decode_head.embed_layers.0.proj.weight": (
        "decode_head.embed_layers.0.proj.weight",
        "decode_head.conv_seg.weight",
    ),
}


# ---------------------------------------------------------------------------- names


def parts(state: Mapping[str, object]) -> list[str]:
    """Prefixes of the networks in a file of an adapted one, that to take first; empty for any other file."""
    there = dict.fromkeys(key.partition(".")[0] + "." for key in state)
    found = [prefix for prefix in (*TAKEN, *LEFT) if prefix in there]
    adapted = len(found) == len(there) and found and found[0] in TAKEN and found != ["model."]
    return found if adapted else []


def own_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A network's state dict with the names that ours has; others come back as they are.

    Raises ValueError if a tensor that must be turned around is none.
    """
    if _ENCODER not in state:
        return state
    if "head.conv_seg.weight" in state and not any(key.startswith("decode_head.") for key in state):
        state = {
            re.sub(r"^head\.", "decode_head.", key): tensor
            for key, tensor in state.items()
            if not key.startswith(_REFIGN)
        }
    if NVLABS in state:  # the same function with the four maps joined from coarse to fine
        state = {
            re.sub(
                r"^decode_head\.linear_c([1-4])\.", lambda m: f"decode_head.linear_c.{int(m[1]) - 1}.", key
            ): t
            for key, t in state.items()
        }
        fuse = state.get("decode_head.linear_fuse.conv.weight")
        width = 0 if fuse is None or fuse.ndim == 0 else fuse.shape[0]
        if fuse is None or width > _WIDEST or fuse.shape != (width, len(STAGES) * width, 1, 1):
            raise ValueError("'decode_head.linear_fuse.conv.weight' is no convolution that joins four maps")
        state["decode_head.linear_fuse.conv.weight"] = torch.cat(fuse.chunk(len(STAGES), 1)[::-1], 1)
    return state


# ---------------------------------------------------------------------------- numbers


def options_of(
    network: str, state: Mapping[str, Tensor], num_classes: int, of_19: Sequence[int] | None = None
) -> dict[str, Any]:
    """What ``models.build_teacher`` is to be called with so that the state dict fits, ``num_classes`` among it.

    Args:
        network: key of ``TEACHER_NETWORKS``.
        state: of a network on a MiT, in our names; that it is of this one is seen when it is loaded.
        num_classes: classes that are wanted.
        of_19: which they are of Cityscapes' 19, with which networks of fewer are published.

    Raises:
        ValueError: says what the numbers are that no such network has.
    """
    made: dict[str, Any] = {"size": _encoder_size(state), "num_classes": num_classes}
    for head, (width, outputs) in _HEADS.items():
        if head in state:
            made["width"] = _side(state, width, 0)
            if of_19 is not None and num_classes != 19 and _side(state, outputs, 0) == 19:
                made |= {"num_classes": 19, "kept": tuple(of_19)}
            if head == "decode_head.linear_pred.weight" and network == "segformer":
                made["unused"] = _side(state, "decode_head.conv_seg.weight", 1)
            break
    return made


def _encoder_size(state: Mapping[str, Tensor]) -> MiTSize:
    channels, depths = [], []
    for stage, most, deepest in zip(STAGES, _LARGEST.channels, _LARGEST.depths, strict=True):
        channels.append(_side(state, f"backbone.patch_embed{stage}.proj.weight", 0, most))
        numbers = {
            int(found[1])
            for key in state
            if (found := re.match(rf"backbone\.block{stage}\.(\d{{1,4}})\.", key))
        }
        if not numbers or max(numbers) >= deepest:
            held = max(numbers) + 1 if numbers else 0
            raise ValueError(f"stage {stage} of its encoder has {held} blocks, and a MiT has 1 to {deepest}")
        depths.append(max(numbers) + 1)
    if any(c % channels[0] for c in channels):
        raise ValueError(
            f"its encoder has {channels} channels, which its heads of {channels[0]} do not divide"
        )
    for stage, c, reduction in zip(STAGES, channels, REDUCTIONS, strict=True):
        inner, key = f"backbone.block{stage}.0.", "attn.sr.weight"
        if (reduction > 1) != (inner + key in state):
            raise ValueError(f"stage {stage} of its encoder is no MiT's ({inner}{key})")
        if _side(state, f"{inner}mlp.fc1.weight", 0, MLP_RATIO * c) != MLP_RATIO * c:
            raise ValueError(f"stage {stage} of its encoder is no MiT's ({inner}mlp.fc1.weight)")
    return MiTSize(tuple(channels), tuple(depths))  # type: ignore[arg-type]


def _side(state: Mapping[str, Tensor], key: str, axis: int, most: int = _WIDEST) -> int:
    """One length of a tensor. Raises ValueError where it is missing or none that a network has."""
    if key not in state:
        raise ValueError(f"it has no {key!r}")
    shape = state[key].shape
    if len(shape) <= axis or not 0 < shape[axis] <= most:
        raise ValueError(f"{key!r} has shape {tuple(shape)}, and no such network is larger than {most} there")
    return shape[axis]


# ---------------------------------------------------------------------------- geometry


class Geometry(NamedTuple):
    """What a file's own configuration says of how its network is tested; ``None`` where it says nothing."""

    crop: int | None = None
    """Side of HRDA's detail crops."""
    windows: tuple[int, int] | None = None
    """Side and stride of windows that are slid."""
    whole: bool = False
    """The image in one piece is said."""
    within: tuple[int, int] | None = None
    """(longer, shorter) side that images are resized to."""


_PAIR = r"[\(\[]\s*(\d{1,5})\s*,\s*(\d{1,5})\s*[\)\]]"
_MOST_TEXT = 1 << 20


def geometry_of(content: object) -> Geometry:
    """The geometry in ``meta.config``, the training configuration as text, in Python's or JSON's notation."""
    meta = content.get("meta") if isinstance(content, dict) else None
    text = meta.get("config") if isinstance(meta, dict) else None
    if not isinstance(text, str) or len(text) > _MOST_TEXT:
        return Geometry()
    crop = _numbers(text, rf"\bhr_crop_size\b['\"]?\s*[=:]\s*{_PAIR}")
    within = _numbers(text, rf"MultiScaleFlipAug['\"]\s*,\s*['\"]?img_scale['\"]?\s*[=:]\s*{_PAIR}")
    # The network's own, not one within it: the only one that has a mode.
    tested = re.search(
        r"\btest_cfg['\"]?\s*[=:]\s*(?:dict\(|\{)([^{}]{0,400}?\bmode['\"]?\s*[=:][^{}]{0,400})", text
    )
    said = tested[1] if tested else ""
    mode = re.search(r"\bmode['\"]?\s*[=:]\s*['\"](\w+)['\"]", said)
    side = _numbers(said, rf"\bcrop_size['\"]?\s*[=:]\s*{_PAIR}")
    stride = _numbers(said, rf"\bstride['\"]?\s*[=:]\s*{_PAIR}")
    slides = mode is not None and mode[1] == "slide" and _square(side) and _square(stride)
    return Geometry(
        crop[0] if crop is not None and _square(crop) else None,
        (side[0], stride[0]) if slides and side is not None and stride is not None else None,
        mode is not None and mode[1] == "whole",
        within and (max(within), min(within)),
    )


def _numbers(text: str, pattern: str) -> tuple[int, int] | None:
    found = re.search(pattern, text)
    return None if found is None else (int(found[1]), int(found[2]))


def _square(pair: tuple[int, int] | None) -> bool:
    return pair is not None and pair[0] == pair[1] > 0
