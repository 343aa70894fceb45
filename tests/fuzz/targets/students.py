"""What a checkpoint says of a student that is no DeepLab: from it a network is built."""

from __future__ import annotations

import json
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from endauda_cli.checkpoint import load_student
from endauda_cli.errors import ConfigError
from endauda_cli.models.mit import MiTSize
from endauda_cli.segmenter import Procedure, Windows
from endauda_cli.students import Network, build, to_record
from endauda_cli.students.families import plain_options
from endauda_cli.transforms import Preprocessing
from tests.fuzz.target import Target

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CLASSES = ["road", "car", "sky"]
SEGFORMER = {
    "model_type": "segformer", "depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16], "decoder_hidden_size": 16,
    "num_attention_heads": [1, 1, 2, 2], "sr_ratios": [4, 2, 1, 1], "mlp_ratios": [2, 2, 2, 2],
}  # fmt: skip
BEIT = {
    "model_type": "beit", "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16,
    "image_size": 32, "patch_size": 16, "out_indices": [1, 2, 3, 4], "pool_scales": [1, 2],
    "use_relative_position_bias": True,
}  # fmt: skip
EOMT = {
    "model_type": "eomt", "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "mlp_ratio": 1,
    "image_size": 32, "patch_size": 8, "num_upscale_blocks": 1, "num_blocks": 1, "num_queries": 7,
    "num_register_tokens": 1,
}  # fmt: skip
SWIN = {
    "model_type": "swin", "image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2], "window_size": 2, "out_features": ["stage1", "stage2", "stage3", "stage4"],
}  # fmt: skip
MASKS = {
    "backbone_config": SWIN, "num_queries": 7, "hidden_dim": 32, "num_attention_heads": 2, "encoder_layers": 1,
    "encoder_feedforward_dim": 16, "dim_feedforward": 16, "decoder_layers": 3,
}  # fmt: skip
MASK2FORMER = {"model_type": "mask2former", "feature_size": 32, "mask_feature_size": 32, **MASKS}
ONEFORMER = {
    "model_type": "oneformer", "conv_dim": 32, "mask_dim": 32, "query_dec_layers": 1, "task_seq_len": 5,
    "task_tokens": [3, 1, 2, 0, 0], **MASKS,
}  # fmt: skip
SMP = {"_model_class": "Unet", "encoder_name": "mobilenet_v2", "decoder_channels": [16, 8, 8, 8, 8]}
MIT = plain_options({"size": MiTSize((8, 8, 16, 16), (1, 1, 1, 1)), "width": 16})


def read_student(data: bytes, folder: Path) -> None:
    """A network is built of the record, or a sentence says why not; there are no weights for it either way."""
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        return
    path = folder / "last.pt"
    path.touch()
    meta = {"classes": CLASSES, "size": [64, 32], "network": record}
    load_student(path, CLASSES, content={"weights": {"none": torch.zeros(1)}, "meta": meta})


def seeds() -> Sequence[bytes]:
    images = Preprocessing(size=None, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    settings: list[tuple[str, dict[str, Any]]] = [
        ("teacher", {"name": "daformer", "options": MIT, "heads": [1.0]}),
        ("teacher", {"name": "dacs"}),
        ("package", {"name": "mine"}),
    ]
    if find_spec("transformers") is not None:
        settings += [("transformers", one) for one in (SEGFORMER, BEIT, EOMT)]
        if find_spec("scipy") is not None:
            settings += [("transformers", one) for one in (MASK2FORMER, ONEFORMER)]
    if find_spec("segmentation_models_pytorch") is not None:
        settings.append(("smp", SMP))
    made = Procedure(align_corners=False, softmax="scores", windows=Windows(32, 24))
    networks = [Network(family, "a", "b", said, images, made, made) for family, said in settings]
    for network in networks:  # so that importing the libraries counts as no hang
        with suppress(ConfigError):
            build(network, len(CLASSES))
    return [json.dumps(to_record(network)).encode() for network in networks]


TARGETS = (Target("student", read_student, seeds, tries=30),)
