"""A first teacher: the source's images with their ground truth."""

from __future__ import annotations

from endauda_cli.datasets import find_samples
from endauda_cli.labels import read_truth
from endauda_cli.training.data import Example, Stream
from endauda_cli.training.methods.method import MAIN, Material, Method


class Source(Method):
    """Learn the labelled source."""

    @staticmethod
    def streams(material: Material) -> tuple[dict[str, Stream], str]:
        """All labelled images of the source's train split; their files hold label ids."""
        source = material.task.source
        samples = find_samples(source, material.source_roots, "train", need_labels=True)
        examples = [Example(s.id, s.image, s.label) for s in samples if s.label is not None]
        return {MAIN: Stream(examples, source, read_truth)}, "source"
