"""Engine: what labels were made from, as digests: another one, and they are made again.

The *fingerprint* is of what all images of a set have in common, the *inputs* of an image of what it has alone.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any

from endauda_cli.domains import DOMAINS
from endauda_cli.errors import DataError
from endauda_cli.files import IMAGE_BYTES, file_sha256
from endauda_cli.fusion.rules import RULES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from endauda_cli.archive import TeacherOutputs
    from endauda_cli.domains import Domain
    from endauda_cli.fusion.image import Fusion

OF_A_TEACHER = ("network", "weights_sha256", "temperature", "created_by")
"""What an archive knows of the network that it is from, for the record of a label set."""
JOURNAL_VERSION = 2
"""Grows when the counts in a journal's lines change."""


class NotKeptError(Exception):
    """Archives would have to be read through to know."""


def fingerprint(fusion: Fusion) -> str:
    """What all images of a set have in common; another fingerprint means another set."""
    told = asdict(fusion.config) | _told(fusion)
    options = {name: told[name] for name in sorted(RULES[fusion.config.rule].options)}
    parts = [JOURNAL_VERSION, fusion.config.rule, fusion.config.teachers, fusion.task.classes, options]
    target, built_in = fusion.task.target, DOMAINS.get(fusion.task.target.name)
    known = dict(zip(built_in.classes, built_in.palette, strict=True)) if built_in else {}
    if any(known.get(name) != colour for name, colour in zip(target.classes, target.palette, strict=True)):
        parts.append(["palette", target.palette])  # the user's own, in a file that may be edited
    return _digest(parts)


def inputs_digest(fusion: Fusion, image: str) -> str:
    """What went into an image's labels and counts."""
    digests = "".join(reader.digest(image) for reader in fusion.readers.values())
    if image in fusion.truths:
        digests += file_digest(fusion.truths[image]) + table_digest(fusion.task.target)
        # Other rules are scored too, whatever they depend on.
        digests += json.dumps(_told(fusion), default=str)
    return hashlib.sha256(digests.encode()).hexdigest()[:32]


def archive_record(
    outputs: TeacherOutputs, facts: Mapping[str, Any], images: Sequence[str]
) -> dict[str, Any]:
    """What a label set's record says of a teacher: a digest of all it said, and what is known of its network."""
    digest = hashlib.sha256("".join(outputs.digest(image) for image in images).encode())
    known = {key: facts[key] for key in OF_A_TEACHER if facts.get(key) is not None}
    return {"digest": digest.hexdigest()[:32]} | known


def file_digest(path: Path) -> str:
    """SHA-256 of a label file.

    Raises:
        DataError: if it cannot be read.
    """
    try:
        return file_sha256(path, IMAGE_BYTES)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def table_digest(domain: Domain) -> str:
    """Of how a label file of the domain is read: another table makes another truth of the same file."""
    return _digest([*domain.label_table, domain.classes])


def _told(fusion: Fusion) -> dict[str, Any]:
    """The recipe as plain values."""
    model = fusion.recipe.model
    told = asdict(replace(fusion.recipe, model=None))
    if model is not None:
        arrays = b"".join(getattr(model, field.name).tobytes() for field in fields(model))
        told["model"] = hashlib.sha256(arrays).hexdigest()
    return told


def _digest(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:32]
