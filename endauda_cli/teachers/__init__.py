"""Store: teachers. From whatever a user has of one to something that can be run over images.

``registry`` holds what published projects do at test time, as values; ``opening`` is the one way in, over published
checkpoints, ``programs`` (torch.export, TorchScript, ONNX) and folders of other ``libraries``; ``descriptions`` reads
the TOML that says of a foreign network what it does not say itself.
"""

from __future__ import annotations

from endauda_cli.teachers.opening import at_temperature, open_teacher, with_passes
from endauda_cli.teachers.registry import TEACHERS, Teacher, TeacherSpec, teacher_names

__all__ = [
    "TEACHERS",
    "Teacher",
    "TeacherSpec",
    "teacher_names",
    "at_temperature",
    "open_teacher",
    "with_passes",
]
