"""A student of a library's network as a folder that its library opens, beside our own checkpoint."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from endauda_cli.checkpoint import load_student
from endauda_cli.errors import CheckpointError
from endauda_cli.students.offline import offline
from endauda_cli.teachers.processors import write_processor

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

KEPT = ("transformers", "smp")
"""Families whose libraries have such folders."""


def keep(path: Path, classes: Sequence[str], folder: Path) -> None:
    """Write what ``save_pretrained`` of the library writes, with class names and preprocessing; an earlier one goes.

    Args:
        path: checkpoint of a student of a family in ``KEPT``.
        classes: its classes' names.
        folder: where it is written.

    Raises:
        CheckpointError: if it cannot be.
    """
    loaded = load_student(path, classes)
    model: Any = loaded.model.network
    made = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(made, ignore_errors=True)
        with offline():
            if loaded.network.family == "smp":
                # By the encoder's weights the library knows its preprocessing.
                model._hub_mixin_config["encoder_weights"] = loaded.network.settings.get("encoder_weights")
                model.save_pretrained(str(made))
            else:
                model.config.id2label = dict(enumerate(classes))
                model.config.label2id = {name: k for k, name in enumerate(classes)}
                model.save_pretrained(str(made))
                write_processor(made, model.config.model_type, loaded.preprocessing)
        shutil.rmtree(folder, ignore_errors=True)
        made.replace(folder)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot be written ({error.strerror or error}); the student is in {path} all the same"
        ) from error
