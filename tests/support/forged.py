"""Archives that a stranger made: every checksum fits, and what they say is not so."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from endauda_cli.archive import layout, manifest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def rewrite(path: Path, **changes: Any) -> None:
    """Changes fields of ``archive.json`` or of a manifest, and its checksum with them."""
    content = json.loads(path.read_bytes())
    content.pop("checksum")
    path.write_bytes(manifest._to_json({**content, **changes}))


def fit(shard: Path, data: bytes, images: Mapping[str, Any] | None = None) -> None:
    """A shard of these bytes, and its manifest made to fit."""
    shard.write_bytes(data)
    changes: dict[str, Any] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    rewrite(layout.manifest_path(shard), **changes, **({} if images is None else {"images": images}))


def rename_image(archive: Path, old: str, new: object) -> None:
    """Another id for an image, in the manifest of its shard."""
    for path in layout.manifests(archive):
        images = json.loads(path.read_bytes())["images"]
        if old in images:
            images[new] = images.pop(old)
            rewrite(path, images=images)
