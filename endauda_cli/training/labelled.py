"""True labels beside the fused ones: the few target images that have some, or the labelled source."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from endauda_cli.datasets import find_samples, one_per_image
from endauda_cli.errors import ConfigError, DataError, did_you_mean
from endauda_cli.labels import read_truth, shows_class
from endauda_cli.patterns import files_below
from endauda_cli.progress import Note, counted
from endauda_cli.threads import ordered_map
from endauda_cli.training.data import LABELLED, MAIN, Example, Stream
from endauda_cli.training.methods.distill import read_fused
from endauda_cli.training.methods.source import Source
from endauda_cli.types import Labelled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from endauda_cli.progress import Reporter
    from endauda_cli.training.methods import Material


def with_true_labels(
    streams: Mapping[str, Stream], whose: str, material: Material, workers: int, report: Reporter
) -> dict[str, Stream]:
    """The streams, and beside them that of true labels.

    A target image that has a true label leaves the main stream: it is never taught its fused label as well.

    Args:
        streams: what a method learns from.
        whose: ``Labelled.TARGET``, ``Labelled.SOURCE``, or a folder of ``IMAGE.png`` with train ids.
        material: where data lies.
        workers: threads that look at truth.
        report: told how many images have true labels.

    Raises:
        DataError: if there are no true labels, or no image without one is left.
        ConfigError: if there is no such folder.
    """
    target = material.task.target
    if whose == Labelled.SOURCE:
        if material.task.source.name == target.name:
            raise DataError(
                f"--labelled source: source and target are both {target.name}, so these would be the true labels of "
                "the very images; say --labelled target, or name another --source"
            )
        true, _ = Source.streams(material)
        report(
            Note(f"--labelled source: {len(true[MAIN].examples)} images of {true[MAIN].domain.name} train")
        )
        return {**streams, LABELLED: true[MAIN]}
    own = whose == Labelled.TARGET
    found = _labelled_target(material, workers, report) if own else _corrected(material, whose)
    known = {example.id for example in found}
    main = streams[MAIN]
    left = main.examples
    if main.domain is target:  # else its images are the source's, whatever they are called
        left = [example for example in left if example.id not in known]
    if not left:
        raise DataError(
            f"--labelled {whose}: all {len(main.examples)} train images of {target.name} have true labels, so none is "
            "left to learn fused labels of; keep the labels of a few of them, or leave --labelled out"
        )
    report(
        Note(
            f"--labelled {whose}: {len(found)} images of {target.name} train have true labels, and are not taught "
            f"fused ones; {len(left)} are"
        )
    )
    return {
        **streams,
        MAIN: replace(main, examples=left, contents=None),
        LABELLED: Stream(found, target, read_truth if own else read_fused, label_ids=own),
    }


def _corrected(material: Material, given: str) -> list[Example]:
    """The target's train images that have a label in a folder of the user's.

    Raises:
        ConfigError: if there is no such folder.
        DataError: if it has none of theirs.
    """
    folder = material.workspace.path(Path(given))
    if not folder.is_dir():
        raise ConfigError(
            f"--labelled {given}: neither {' nor '.join(Labelled)} nor a folder{did_you_mean(given, list(Labelled))}"
        )
    samples = find_samples(material.task.target, material.target_roots, "train")
    pngs = sorted(path for path in files_below(folder) if path.suffix == ".png")
    labels = one_per_image(pngs, {sample.id for sample in samples}, "label map")
    if not labels:
        raise DataError(
            f"--labelled {given}: no label PNG of any of the {len(samples)} train images of "
            f"{material.task.target.name} there; they are called IMAGE.png, as 'endauda import-labels' writes them"
        )
    return [Example(s.id, s.image, labels[s.id]) for s in samples if s.id in labels]


def _labelled_target(material: Material, workers: int, report: Reporter) -> list[Example]:
    """The target's train images whose truth shows a class: a file of nothing but ignored pixels teaches nothing.

    Raises:
        DataError: if there is none.
    """
    target = material.task.target
    samples = find_samples(target, material.target_roots, "train")
    examples = [Example(s.id, s.image, s.label) for s in samples if s.label is not None]

    def teaches(example: Example) -> bool:
        return example.label is not None and shows_class([example.label], target)

    with ThreadPoolExecutor(workers) as pool:
        shown = ordered_map(pool, teaches, examples, 4 * workers)
        told = counted(shown, len(examples), "looking at true labels", report)
        found = [example for example, shows in zip(examples, told, strict=True) if shows]
    if not found:
        there = (
            f"the truth of {len(examples)} of them shows no class" if examples else "no label file is there"
        )
        raise DataError(
            f"--labelled target: none of the {len(samples)} train images of {target.name} has true labels ({there}); "
            "label a few, or say --labelled source"
        )
    return found
