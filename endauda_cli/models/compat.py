"""Checkpoints, ours and other projects': read without running code, checked key by key, then loaded.

All knowledge about foreign files is in the tables at the top, but for mmsegmentation's, which is in ``mmseg``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from endauda_cli.errors import CheckpointError
from endauda_cli.models import mmseg
from endauda_cli.models.reading import read_content

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

_Value = TypeVar("_Value")

# Where projects put the state dict inside a larger checkpoint, also one in the other; the first of these counts.
WRAPPERS = (
    "state_dict",  # the community DeepLabv3+, among its epoch and optimizer; Lightning
    "model_state_dict",  # PyTorch's own tutorials
    "model",  # DACS, and many others
    "weights",  # ours
    "ema_model",  # DACS with a mean teacher, where the model itself was not kept
    "module",  # DeepSpeed
    "net",
    "network",
)

# What wrappers of a network add to every key, in any order and as often as it was wrapped.
PREFIXES = (
    "module.",  # torch.nn.DataParallel and DistributedDataParallel
    "_orig_mod.",  # torch.compile
    "model.",  # Lightning modules, and trainers that keep the network so
    "net.",
    "network.",
    "Scale.",  # the DeepLabv2 of ImageNet and COCO that AdaptSegNet, and R-MRNet after it, start from
)

_DEEPEST = 4
"""So many wrappers, one in the other."""

# Keys that a file may have without the network knowing them.
IGNORED_PREFIXES = (
    "fc.",  # ImageNet classifiers: the backbones keep none
    *mmseg.TRAINED_WITH,
)

# Keys that a file may lack; they become 0. PyTorch before 0.4.1 had no such counter, and nothing reads it.
OPTIONAL_SUFFIXES = (".num_batches_tracked",)

# Keys that only one network has; those of backbones without the prefix "backbone.".
_BACKBONE_KEYS = {
    "drn": "layer8.0.weight",
    "resnet": "layer3.22.conv1.weight",
    "mobilenet": "features.17.conv.0.weight",
    "tiny": "stem.0.weight",
}
_ARCH_KEYS = {
    "deeplabv3plus": "decoder.last_conv.8.weight",
    "deeplabv2": "head.conv2d_list.0.weight",
}

# What a network is called -> keys that it has all of; the first that fits counts. Teachers, and those that others
# may be taken for.
_TEACHER_KEYS = {
    "R-MRNet with batch norm": ("layer6.head.1.weight", "layer6.bottleneck.1.running_mean"),
    "R-MRNet with batch norm and SE": ("layer6.head.1.weight", "layer6.bottleneck.2.running_mean"),
    "R-MRNet with group norm and SE": ("layer6.head.1.weight", "layer6.bottleneck.0.se.0.weight"),
    "R-MRNet with group norm": ("layer6.head.1.weight",),
    "a two-headed DeepLabv2 as AdaptSegNet has it": (
        "layer5.conv2d_list.3.weight",
        "layer6.conv2d_list.3.weight",
    ),
    "the DeepLabv2 of DACS and CRST": ("layer5.conv2d_list.3.weight", "layer4.2.conv3.weight"),
    "the ResNet-38 of the original CBST": ("res7a_branch2b1.weight",),
    "HRDA's or MIC's network": ("decode_head.scale_attention.conv_seg.weight",),
    "DAFormer's network": (
        "decode_head.fuse_layer.bottleneck.conv.weight",
        "backbone.patch_embed1.proj.weight",
    ),
    "SegFormer's network": ("decode_head.linear_pred.weight",),
    "an mmsegmentation network (DAFormer and its kin)": ("decode_head.conv_seg.weight",),
    "a SegFormer of transformers": ("decode_head.classifier.weight",),
    "a torchvision network": ("classifier.4.weight", "backbone.layer4.2.conv3.weight"),
}


def load_checkpoint(module: nn.Module, path: Path, content: object = None) -> str | None:
    """Load the file's weights into ``module``, all or nothing; returns what :func:`peeled` says of the file.

    ``content`` is what ``read_content`` found in the file, if that was called already.

    Strict: every key of ``module`` must be in the file with its shape (also both names of a tensor
    that is registered twice, of which the later wins), and the file may have no other keys, but for
    the exceptions in the tables of this module. Otherwise ``CheckpointError``, and ``module`` keeps
    the weights it had.
    """
    content = read_content(path) if content is None else content
    fill(module, path, state_dict_in(path, content))
    return peeled(path, content)


def fill(
    module: nn.Module,
    path: Path,
    state: Mapping[str, Tensor],
    part: tuple[str, tuple[str, ...]] | None = None,
) -> None:
    """As :func:`load_checkpoint`, of a state dict whose names are ``module``'s own.

    ``part`` is what a part of the module is called and what its tensors' names begin with: then the rest of the
    module stays as it is.
    """
    title, prefixes = part or (None, ("",))
    expected = {key: tensor for key, tensor in module.state_dict().items() if key.startswith(prefixes)}
    found = {
        key: tensor
        for key, tensor in state.items()
        if key in expected or not key.startswith(IGNORED_PREFIXES)
    }
    for key, tensor in expected.items():
        if key.endswith(OPTIONAL_SUFFIXES):
            found.setdefault(key, torch.zeros_like(tensor))

    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    misshaped = [key for key in expected if key in found and found[key].shape != expected[key].shape]
    if missing or unexpected or misshaped:
        raise CheckpointError(f"{path}: {_misfit(expected, found, missing, unexpected, misshaped, title)}")
    module.load_state_dict(found, strict=part is None)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The file's tensors by key, on the CPU: without a wrapper around them, without ``module.`` before them.

    Only tensors and plain data are unpickled, so a hostile file cannot run code. MXNet's ``.params`` are read too,
    under torch's names. ``CheckpointError`` when the file is missing, damaged, or holds no state dict.
    """
    return state_dict_in(path, read_content(path))


def state_dict_in(path: Path, content: object) -> dict[str, Tensor]:
    """The state dict in what ``read_content`` found in the file ``path``; raises as ``read_state_dict``."""
    state = _unwrap(content)[0]
    if not isinstance(state, Mapping) or not any(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(
            f"{path}: holds {_contents(content)}, but a state dict (names and tensors) was expected; "
            "save one with torch.save(model.state_dict(), path)"
        )
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: entry {key!r:.80} is of type {type(value).__name__}, but a state dict maps names "
                "to tensors and nothing else; save one with torch.save(model.state_dict(), path)"
            )
    state, _ = _evaluated(state)
    prefix = _prefix(state)
    try:
        return mmseg.own_names({key.removeprefix(prefix): value for key, value in state.items()})
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; it is damaged or of another network") from error


def written_names(content: object) -> set[str]:
    """The names in a file's state dict, without wrappings but else as its project wrote them."""
    state = _unwrap(content)[0]
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        return set()
    state, _ = _evaluated(state)
    prefix = _prefix(state)
    return {key.removeprefix(prefix) for key in state}


def peeled(path: Path, content: object) -> str | None:
    """What was left out around a state dict to find the network's own names, as a sentence; ``None`` for nothing."""
    state, wrappers = _unwrap(content)
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        return None
    state, several = _evaluated(state)
    prefix = _prefix(state)
    told = [f"taken from {' / '.join(wrappers)}"] if len(wrappers) > 1 else []
    if several:
        left = f" without {' and '.join(f'{prefix}*' for prefix in several[1:])} beside it"
        told.append(f"{several[0]}*{left if several[1:] else ''}")
    told += [f"without {prefix!r} before every name"] if prefix not in ("", "module.") else []
    return f"{path}: the weights were {' and '.join(told)}" if told else None


def _unwrap(content: object) -> tuple[object, tuple[str, ...]]:
    """The state dict in a checkpoint, and the names that it lay under."""
    names: tuple[str, ...] = ()
    while isinstance(content, Mapping) and len(names) < _DEEPEST:
        name = next((name for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if name is None:
            break
        content, names = content[name], (*names, name)
    return content, names


def _evaluated(state: Mapping[str, _Value]) -> tuple[Mapping[str, _Value], list[str]]:
    """Of a file that holds several networks, the one that its project evaluates, and what :func:`mmseg.parts` says."""
    outer = _prefix(state)
    several = mmseg.parts({key.removeprefix(outer): None for key in state})
    if not several:
        return state, []
    prefix = outer + several[0]
    return {k.removeprefix(prefix): value for k, value in state.items() if k.startswith(prefix)}, several


def _prefix(state: Mapping[str, object]) -> str:
    """What wrappers have added to every key."""
    prefix = ""
    while state:
        more = next((p for p in PREFIXES if all(key.startswith(prefix + p) for key in state)), None)
        if more is None:
            break
        prefix += more
    return prefix


def _contents(content: object) -> str:
    """What a file holds, in a few words."""
    if not isinstance(content, Mapping):
        return f"an object of type {type(content).__name__}"
    if not content:
        return "an empty dict"
    names = [f"{name!r:.80}" for name in content]
    return f"a dict of {', '.join(names[:4])}{' and more' if len(names) > 4 else ''}"


# ---------------------------------------------------------------------------- what does not fit, in words


def _misfit(
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    missing: list[str],
    unexpected: list[str],
    misshaped: list[str],
    title: str | None,
) -> str:
    found_name, expected_name = (title, title) if title else (_network(found), _network(expected))
    kinds = {"missing": missing, "unexpected": unexpected, "misshaped": misshaped}
    first = "first: " + next(f"{kind} {keys[0]!r}" for kind, keys in kinds.items() if keys)
    if found_name and expected_name and found_name != expected_name:
        return (
            f"holds {found_name}, but {expected_name} was expected; "
            f"choose the network it was saved from, or another checkpoint; {first}"
        )
    network = expected_name or "the network"
    if missing:
        return (
            f"has no {missing[0]!r}, which {network} needs{_more(missing)}; "
            "it is incomplete or of another network"
        )
    if unexpected:
        return (
            f"has {unexpected[0]!r}, which {network} does not know{_more(unexpected)}; "
            "it is of another network"
        )
    if classes := _classes(expected, found, misshaped):
        return (
            f"has {classes[0]} classes, but {classes[1]} were expected; "
            f"choose the source data set it was trained on, or a checkpoint of {classes[1]} classes; {first}"
        )
    key = misshaped[0]
    return (
        f"{key!r} has shape {tuple(found[key].shape)}, but {tuple(expected[key].shape)} was expected"
        f"{_more(misshaped)}; it is of another network"
    )


def _network(state: Mapping[str, Tensor]) -> str | None:
    """The network in words, as far as the keys tell; None when they tell nothing."""
    for name, keys in _TEACHER_KEYS.items():
        if all(key in state for key in keys):
            return name
    arch = next((name for name, key in _ARCH_KEYS.items() if key in state), None)
    backbone = next((name for name, key in _BACKBONE_KEYS.items() if f"backbone.{key}" in state), None)
    if arch and backbone:
        return f"{arch} with backbone {backbone}"
    bare = next((name for name, key in _BACKBONE_KEYS.items() if key in state), None)
    return f"a {bare} without 'backbone.' in its keys" if bare else None


def _classes(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], misshaped: list[str]
) -> tuple[int, int] | None:
    """(found, expected) number of classes, if that alone is what differs.

    It is when all misshaped tensors differ in their first dimension only, and all by the same
    numbers: any other difference between networks also changes what the next layer takes in.
    """
    if not all(found[key].shape[1:] == expected[key].shape[1:] and found[key].ndim for key in misshaped):
        return None
    pairs = {(found[key].shape[0], expected[key].shape[0]) for key in misshaped}
    return pairs.pop() if len(pairs) == 1 else None


def _more(keys: list[str]) -> str:
    return f" (and {len(keys) - 1:,} more)" if len(keys) > 1 else ""
