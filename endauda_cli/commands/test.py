"""``endauda test``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from endauda_cli.commands.options import Located, OnDevice, Passes, TargetData, arch_option, backbone_option
from endauda_cli.commands.session import open_session
from endauda_cli.commands.signature import command as make_command
from endauda_cli.errors import ConfigError
from endauda_cli.options import chosen, option
from endauda_cli.types import Arch, Backbone, PredictionIds, Split
from endauda_cli.workspace import check_label_set

if TYPE_CHECKING:
    from endauda_cli.commands.session import Session

_SCORED = "What is scored"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Test(Passes, TargetData, OnDevice, Located):
    """Options of ``test``."""

    weights: Path | None = option(
        None, "--weights", panel=_SCORED, complete="weights",
        help="Checkpoint to score: a file, or a name of download-weights. [default: best.pt, else last.pt, of the "
        "newest run]",
    )  # fmt: skip
    backbone: Backbone | None = backbone_option(_SCORED)
    arch: Arch | None = arch_option(_SCORED)
    predictions: Path | None = option(
        None,
        "--predictions",
        panel=_SCORED,
        help="Score label PNGs that exist instead: IMAGE.png, 255 = none.",
    )
    prediction_ids: PredictionIds = option(
        PredictionIds.AUTO, "--prediction-ids", panel=_SCORED,
        help="What their values are: train ids, or label ids of the target; auto refuses what could be both.",
    )  # fmt: skip
    split: Split = option(Split.VAL, "--split", help="Labelled images of the target.", panel=_SCORED)
    save_images: bool = option(
        True, "--save-images/--no-save-images", panel=_SCORED, help="Write predictions and colour pictures."
    )


def run(options: Test) -> None:
    """Score a checkpoint, or label PNGs that exist, on labelled images of the target.

    Prints the IoU per class and the mean over the classes that occur; writes eval.json, predictions and a
    report beside the checkpoint.

    **Examples**

    - `endauda test`
    - `endauda test --predictions outputs/labels --source synthia`
    """
    from endauda_cli.config import InferenceConfig
    from endauda_cli.progress import Note, phase

    if options.predictions is not None and options.weights is not None:
        raise ConfigError("give either --weights or --predictions")
    session = open_session("test", options, options.device)
    if options.predictions is not None:
        _score_predictions(session, options, session.path(options.predictions))
        return
    with session.terminal.loading("torch"):
        from endauda_cli.checkpoint import load_student
        from endauda_cli.distributed import process_group, rank
        from endauda_cli.evaluation import PROCEDURE, Scoring, count_network, write_evaluation
        from endauda_cli.scoring import COUNTS_FILE, refuse_unlabelled, result_of
        from endauda_cli.segmenter import Segmenter

    split, domain = options.split, session.task.target
    samples = session.target_samples(split, need_labels=True)
    with process_group(session.device()) as where, session.terminal as terminal:
        refuse_unlabelled(samples, domain, split)
        path = (
            session.weights(options.weights)
            if options.weights
            else session.workspace.newest_checkpoint(session.task.source.name)
        )
        with phase(terminal.report, f"opening {path.name}"):
            network = load_student(
                path, session.task.classes, options.arch, options.backbone, options.size, terminal.report
            )
        elsewhere = network.meta.get("target", domain.name) != domain.name
        out = session.workspace.report(
            path, f"test-{path.stem}-{f'{domain.name}-' if elsewhere else ''}{split}"
        )
        if out.parent != path.parent:
            terminal.report(Note(f"{path.parent} cannot be written, so the report goes to {out}"))
        procedure = PROCEDURE.with_passes(options.scales, options.flip)
        segmenter = Segmenter(network.model, network.preprocessing, procedure)
        pictures = out if options.save_images else None
        scoring = Scoring(domain, str(path), split, pictures, boundaries=True)
        inference = chosen(InferenceConfig, options)
        counts = count_network(segmenter, samples, scoring, inference, where, terminal.report)
        result = replace(result_of(counts, domain, str(path), split, pictures), counts=out / COUNTS_FILE)
        if rank() == 0:
            with phase(terminal.report, "writing the report"):
                write_evaluation(out, result, samples, domain, counts)
            terminal.show(result)


def _score_predictions(session: Session, options: Test, folder: Path) -> None:
    """Label PNGs; no network, so torch is not loaded."""
    from endauda_cli.scoring import count_maps, folder_of_maps, refuse_unlabelled, result_of

    split, domain = options.split, session.task.target
    samples = session.target_samples(split, need_labels=True)
    with session.terminal as terminal:
        refuse_unlabelled(samples, domain, split)
        check_label_set(folder, session.task.source.name, session.task.classes)
        maps = folder_of_maps(folder, samples, options.prediction_ids)
        (counts,) = count_maps([maps], samples, domain, terminal.report, options.workers, boundaries=True)
        terminal.show(result_of(counts, domain, maps.scored, split))


command = make_command(Test, run)
