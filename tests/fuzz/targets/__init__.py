"""All targets: each module of this package has some in its ``TARGETS``."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.fuzz.target import Target


def all_targets() -> dict[str, Target]:
    """By name."""
    found = [
        t for module in iter_modules(__path__) for t in import_module(f"{__name__}.{module.name}").TARGETS
    ]
    assert len({target.name for target in found}) == len(found)
    return {target.name: target for target in sorted(found, key=lambda target: target.name)}
