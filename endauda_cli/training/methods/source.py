"""A first teacher: the source's images with their ground truth, or those of several sources."""

from __future__ import annotations

from typing import TYPE_CHECKING

from endauda_cli.training.data import FURTHER
from endauda_cli.training.methods.method import MAIN, Material, Method, labelled_source, labelled_train

if TYPE_CHECKING:
    from endauda_cli.training.data import Stream


class Source(Method):
    """Learn the labelled source, or several: equally many images of each in every batch."""

    @staticmethod
    def streams(material: Material) -> tuple[dict[str, Stream], str]:
        """All labelled images of the sources' train splits; their files hold label ids."""
        streams, words = {MAIN: labelled_source(material)}, ["source"]
        for domain, roots in material.further:
            streams[f"{FURTHER}{domain.name}"] = labelled_train(domain, roots)
        if material.further:
            words += [stream.domain.name for stream in streams.values()]
        return streams, "-".join(words)
