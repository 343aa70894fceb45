"""A first teacher: the source's images with their ground truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from endauda_cli.training.methods.method import MAIN, Material, Method, labelled_source

if TYPE_CHECKING:
    from endauda_cli.training.data import Stream


class Source(Method):
    """Learn the labelled source."""

    @staticmethod
    def streams(material: Material) -> tuple[dict[str, Stream], str]:
        """All labelled images of the source's train split; their files hold label ids."""
        return {MAIN: labelled_source(material)}, "source"
