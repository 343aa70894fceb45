"""Files of weights, folders of libraries, and the lists and locks of downloads."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import numpy as np
import torch

from endauda_cli.checkpoint import checked_meta
from endauda_cli.models.compat import peeled, state_dict_in
from endauda_cli.models.mmseg import NETWORKS, geometry_of, options_of
from endauda_cli.models.mxnet import FILE_MAGIC, read_params
from endauda_cli.models.reading import read_content
from endauda_cli.teachers.libraries import read_settings
from endauda_cli.weights.lockfile import PATH, read_records
from endauda_cli.weights.manifest import read_manifest
from tests.fuzz.target import Target

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

META = {
    "arch": "deeplabv2", "backbone": "tiny", "classes": ["road", "car"], "size": [96, 48], "source": "gta5",
    "target": "cityscapes", "data": {"digest": "x"}, "config": {}, "step": 3, "miou": None, "best_miou": 0.5,
    "best_step": 2,
}  # fmt: skip
SEEN = {"size": 3, "sha256": "0" * 64}
LOCK = {
    "url": "https://a.b/c",
    "first_seen": "2026-01-01",
    "downloads": {"https://a.b/c": SEEN},
    "files": {"weights/x": SEEN},
}
ARTEFACT = {"name": "one", "what": "weights", "path": "weights/x.pth", "page": "https://a.b/c", "size": 3}


def read_checkpoint(data: bytes, folder: Path) -> None:
    (folder / "x.pth").write_bytes(data)
    content = read_content(folder / "x.pth")
    peeled(folder, content)
    geometry_of(content)
    state = state_dict_in(folder / "x.pth", content)
    for network in NETWORKS:
        try:
            assert max(options_of(network, state, 19)["size"].channels) <= 512
        except ValueError:  # which the door knows
            pass


def read_meta(data: bytes, folder: Path) -> None:
    try:
        meta = json.loads(data)
    except (ValueError, RecursionError):
        return
    checked_meta(folder, meta)
    peeled(folder, meta)


def read_mxnet(data: bytes, _folder: Path) -> None:
    try:
        read_params(data)
    except ValueError:  # which the door knows
        pass


def read_config(data: bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(data)
    read_settings(folder)


def read_lock(data: bytes, folder: Path) -> None:
    (folder / PATH).parent.mkdir()
    (folder / PATH).write_bytes(data)
    for record in read_records(folder).values():
        assert all(folder.resolve() in (folder / path).resolve().parents for path in record.files)


def read_list(data: bytes, folder: Path) -> None:
    (folder / "m.json").write_bytes(data)
    for artefact in read_manifest(folder / "m.json").artefacts.values():
        assert folder.resolve() in artefact.target(folder).resolve().parents


def checkpoints() -> Sequence[bytes]:
    made = []
    for zipped in (True, False):
        buffer = io.BytesIO()
        content = {"format": 1, "weights": {"module.a": torch.ones(2)}, "meta": META, "best": np.float64(1)}
        torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
        made.append(buffer.getvalue())
    adapted = {
        "backbone.patch_embed1.proj.weight": torch.ones(8, 3, 7, 7),
        "head.conv_seg.weight": torch.ones(2),
    }
    adapted |= {
        "decode_head.linear_c1.proj.weight": torch.ones(8, 8),
        "backbone.block1.0.norm1.bias": torch.ones(8),
    }
    config = "hr_crop_size=(384, 384), test_cfg=dict(mode='slide', stride=[512, 512], crop_size=[1024, 1024])"
    nets = {prefix + key: value for prefix in ("model.", "ema_model.") for key, value in adapted.items()}
    buffer = io.BytesIO()
    torch.save({"meta": {"config": config}, "state_dict": nets}, buffer)
    made.append(buffer.getvalue())
    buffer = io.BytesIO()
    np.savez(buffer, a=np.ones(2))
    return [*made, buffer.getvalue()]


def params() -> Sequence[bytes]:
    def number(value: int, size: int) -> bytes:
        return value.to_bytes(size, "little")

    head = FILE_MAGIC + number(1, 8) + number(0xF993FAC9, 4) + number(0, 4) + number(1, 4) + number(2, 8)
    return [head + number(1, 4) + number(0, 8) + bytes(8) + number(1, 8) + number(9, 8) + b"arg:a_bias"]


def texts(*values: object) -> Sequence[bytes]:
    return [json.dumps(value).encode() for value in values]


TARGETS = (
    Target("checkpoint", read_checkpoint, checkpoints),
    Target("checkpoint_meta", read_meta, lambda: texts(META, {"state_dict": {"model": {"a": 1}}})),
    Target("mxnet", read_mxnet, params),
    Target(
        "library_config",
        read_config,
        lambda: texts(
            {"model_type": "segformer", "id2label": {"0": "road"}, "depths": [1, 2], "num_labels": 3},
            {"_model_class": "Unet", "encoder_name": "resnet18", "in_channels": 3},
        ),
    ),
    Target("weights_lock", read_lock, lambda: texts({"format": 1, "artefacts": {"one": LOCK}})),
    Target("weights_list", read_list, lambda: texts({"format": 1, "artefacts": [ARTEFACT]})),
)
