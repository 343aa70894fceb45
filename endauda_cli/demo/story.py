"""Engine: the whole story on a generated street world, through the same engines as the other commands.

A labelled source (``noon``) and an unlabelled target (``dusk``) show the same kind of streets in different
looks. The teachers' certainties are exported and fused without any label of the target, the student learns the
fused labels, and all are scored on the target's val images, whose truth serves for nothing else.

Who the teachers are is an ``Ensemble``: ``translated`` has one adapted by simulated image translations of the source
towards the target, ``full`` one adapted by the published methods.
"""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from endauda_cli.checkpoint import load_student
from endauda_cli.config import ExportConfig, FuseConfig, InferenceConfig, TrainConfig
from endauda_cli.datasets import load_domain
from endauda_cli.demo import street
from endauda_cli.demo.page import write_page
from endauda_cli.demo.parts import Demo
from endauda_cli.domains import CITYSCAPES_CLASSES, make_task
from endauda_cli.errors import ConfigError
from endauda_cli.evaluation import PROCEDURE, Scoring, count_network, write_evaluation
from endauda_cli.exporting import export_network
from endauda_cli.files import toml_line
from endauda_cli.fusion.job import Job, fuse
from endauda_cli.fusion.policy_files import POLICY_FILE
from endauda_cli.labels import write_label, write_png
from endauda_cli.options import options_of
from endauda_cli.progress import Note, Reporter, Tick
from endauda_cli.results import DemoResult, Score
from endauda_cli.score_table import with_intervals
from endauda_cli.scoring import result_of, score_predictions
from endauda_cli.segmenter import Segmenter
from endauda_cli.teachers import open_teacher
from endauda_cli.training.loop import train
from endauda_cli.training.methods import Material
from endauda_cli.training.methods.distill import Distill
from endauda_cli.training.run import Run
from endauda_cli.types import Arch, Backbone, FusionRule
from endauda_cli.workspace import CONFIG_FILE, Workspace, read_json, write_text

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from pathlib import Path

    from endauda_cli.demo.parts import Ensemble, Translation
    from endauda_cli.score_results import EvalResult
    from endauda_cli.students import Network
    from endauda_cli.training.data import Stream

    LookOf = Callable[[np.random.Generator], street.Look]

SOURCE_IMAGES = 96
TARGET_IMAGES = {"train": 96, "val": 32}
SIZE = (256, 128)
NETWORK_SIZE = (192, 96)
CROP = (144, 72)
DUSK = (0.5, 1.0)
"""How far the target's images are from the source, each by its own degree: 0 is noon, 1 the full shift."""


def dusk_look(rng: np.random.Generator) -> street.Look:
    """Of one target image, by its own degree."""
    return street.shifted(street.SOURCE_LOOK, rng.uniform(*DUSK))


RECIPE = TrainConfig(
    backbone=Backbone.TINY,
    arch=Arch.DEEPLABV3PLUS,
    batch_size=8,
    learning_rate=0.05,
    size=NETWORK_SIZE,
    crop=CROP,
    balance_area=CROP[0] * CROP[1] // 32,  # as the reference's 64 x 64 is of its crop
    save_every=10**6,
    ramp=0,
)
STUDENT = replace(RECIPE, steps=560, class_balance=False, hard_percentile=0)
"""The published recipe less two parts: the student starts from random weights and sees each image 47 times
(published: 336). In so few steps, weighing rare classes and mining hard pixels mostly lifts wrong labels."""
IN_THE_FOLDER = (
    "backbone", "steps", "learning_rate", "size", "crop", "batch_size", "class_balance", "hard_percentile",
)  # fmt: skip
"""What of it the folder's ``endauda.toml`` says."""

INFERENCE = InferenceConfig(batch_size=4)
PICTURED_SCENES = 5
PAGE = "report.html"
MARKER_FILE = "demo.json"
"""Says that a folder is a demo's, and its seed."""


def run_demo(out: Path, seed: int, device: torch.device, report: Reporter, ensemble: Ensemble) -> DemoResult:
    """Run the demo.

    Args:
        out: folder for its workspace.
        seed: of the world and of all training; the same seed gives the same world.
        device: where networks run.
        report: told of progress.
        ensemble: of teachers.

    Raises:
        EndaudaError: if the folder holds something else, or a file cannot be written.
    """
    started = time.monotonic()
    workspace = Workspace(out.resolve())
    _claim(workspace, seed, ensemble)
    with _one_thread():
        scores = _run(workspace, seed, device, report, ensemble)
    return DemoResult(workspace.root, seed, scores, workspace.root / PAGE, time.monotonic() - started)


def _run(
    workspace: Workspace, seed: int, device: torch.device, report: Reporter, ensemble: Ensemble
) -> tuple[Score, ...]:
    report(Note("1/5 drawing a street world at noon and at dusk; all in all this takes minutes"))
    write_world(workspace, seed, report, ensemble.translations)
    write_defaults(workspace, ensemble.teachers)
    task = make_task(
        load_domain(str(workspace.root / "noon.toml")), load_domain(str(workspace.root / "dusk.toml"))
    )
    demo = Demo(workspace, task, seed, device, report)
    report(Note(f"2/5 training {len(ensemble.teachers)} teachers, {ensemble.how}"))
    checkpoints = ensemble.train(demo)
    report(Note("3/5 storing how certain they are of the dusk images"))
    for name in ensemble.teachers:
        for split in TARGET_IMAGES:
            _export(demo, name, checkpoints[name], split)
    report(Note(f"4/5 fusing them by {len(FusionRule)} rules"))
    for rule in FusionRule:
        _fuse(demo, ensemble, rule, "train", "auto")
        # The policy was chosen on the train images; val is only scored.
        policy = workspace.labels(task.target, rule) / POLICY_FILE
        _fuse(demo, ensemble, rule, "val", str(policy))
    report(Note(f"5/5 training the student on the {ensemble.rule} labels, then scoring everybody"))
    student = _train_student(demo, ensemble, checkpoints)
    results = {
        f"teacher {name}" if name in ensemble.teachers else name: _test(demo, path)
        for name, path in checkpoints.items()
    }
    for rule in FusionRule:
        folder = workspace.labels(task.target, f"{rule}-val")
        results[f"{rule} labels"] = score_predictions(folder, demo.samples("val"), task.target, report)
    results["student"] = _test(demo, student)
    scores = tuple(
        Score(name, r.miou, r.coverage, r.iou, ours=name in (f"{ensemble.rule} labels", "student"))
        for name, r in results.items()
    )
    intro = [
        f"A generated street world, seed {seed}: {SOURCE_IMAGES} labelled source images (noon), "
        f"{TARGET_IMAGES['train']} unlabelled target images (dusk), scored on {TARGET_IMAGES['val']} others.",
        ensemble.intro,
        "Labels were fused without any label of the target (policy auto, threshold 0: every pixel counts); "
        f"the student learnt the {ensemble.rule} labels of the unlabelled images.",
    ]
    write_page(demo, ensemble, workspace.root / PAGE, intro, scores, results, PICTURED_SCENES)
    return scores


@contextmanager
def _one_thread() -> Iterator[None]:
    """Networks this small are faster on one core than on two that wait for each other at every layer; and the
    figures then do not depend on the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _claim(workspace: Workspace, seed: int, ensemble: Ensemble) -> None:
    """Take an empty folder, or go on in that of the same demo with the same seed; never touch anything else."""
    marker = workspace.root / MARKER_FILE
    found = read_json(marker)
    if found is None:
        if workspace.root.exists() and (not workspace.root.is_dir() or any(workspace.root.iterdir())):
            raise ConfigError(f"{workspace.root}: not an empty folder; name a new one with --out")
        write_text(marker, json.dumps({"seed": seed} | ({"full": True} if ensemble.full else {})) + "\n")
    elif bool(found.get("full")) != ensemble.full:
        raise ConfigError(
            f"{workspace.root}: holds the demo {'without' if ensemble.full else 'with'} --full; name another folder "
            "with --out, or delete this one"
        )
    elif found.get("seed") != seed:
        raise ConfigError(
            f"{workspace.root}: holds the demo with --seed {found.get('seed')}; name another folder with --out, or "
            "delete this one"
        )


def write_world(
    workspace: Workspace, seed: int, report: Reporter, translations: Mapping[str, Translation]
) -> None:
    """Write the images, the labels (of the source and of the target's val images) and the data sets' TOML files.

    The source is drawn once more as each translation shows it.
    """
    total = SOURCE_IMAGES + sum(TARGET_IMAGES.values())
    done = 0
    report(Tick("drawing the world", 0, total))

    def draw(
        stream: int, name: str, split: str, count: int, looks: dict[str, LookOf], labelled: bool
    ) -> None:
        nonlocal done
        for i in range(count):
            rng = np.random.default_rng([seed, stream, i])
            scene = street.draw_scene(rng, *SIZE)
            file = f"{name}_{split}_{i:03}.png"
            for data_set, look_of in looks.items():
                folder = workspace.root / "Warehouse" / data_set / "images" / split
                folder.mkdir(parents=True, exist_ok=True)
                write_png(folder / file, street.paint(scene, look_of(rng), rng))
            if labelled:
                folder = workspace.root / "Warehouse" / name / "labels" / split
                folder.mkdir(parents=True, exist_ok=True)
                write_label(folder / file, scene.label)
            done += 1
            report(Tick("drawing the world", done, total))

    noon: dict[str, LookOf] = {"noon": lambda rng: street.SOURCE_LOOK}
    noon |= {f"noon-{name}": translation.look for name, translation in translations.items()}
    draw(0, "noon", "train", SOURCE_IMAGES, noon, True)
    for stream, (split, count) in enumerate(TARGET_IMAGES.items(), 1):
        draw(stream, "dusk", split, count, {"dusk": dusk_look}, split == "val")
    for name in translations:
        write_text(workspace.root / f"noon-{name}.toml", _toml("noon", ("train",), f"noon-{name}"))
    for name, splits in (("noon", ("train",)), ("dusk", ("train", "val"))):
        write_text(workspace.root / f"{name}.toml", _toml(name, splits))


def _toml(name: str, splits: tuple[str, ...], images: str | None = None) -> str:
    lines = [toml_line("name", images or name), toml_line("classes", list(CITYSCAPES_CLASSES))]
    for split in splits:
        lines += [f"[{split}]", toml_line("images", f"Warehouse/{images or name}/images/{split}/*.png")]
        if name == "noon" or split == "val":
            lines.append(toml_line("labels", f"Warehouse/{name}/labels/{split}/*.png"))
    return "\n".join(lines) + "\n"


def write_defaults(workspace: Workspace, teachers: Collection[str]) -> None:
    """Write the defaults that make the plain command lines work in the demo's workspace."""
    lines = [
        "# Defaults of the commands in this folder; run them from here.",
        'source = "noon.toml"',
        'target = "dusk.toml"',
        "[fuse]",
        toml_line("teachers", list(teachers)),
        "threshold = 0",
        "[train]",
    ]
    known = options_of(TrainConfig)
    lines += [
        toml_line(known[name].name, known[name].words(getattr(STUDENT, name))) for name in IN_THE_FOLDER
    ]
    write_text(workspace.root / CONFIG_FILE, "\n".join(lines) + "\n")


def _train_student(demo: Demo, ensemble: Ensemble, checkpoints: dict[str, Path]) -> Path:
    roots = demo.workspace.data_roots(demo.task.target)
    streams, _ = Distill.streams(Material(demo.task, demo.workspace, (), roots, ensemble.rule))
    init = None if ensemble.start is None else checkpoints[ensemble.start]
    return train_run(demo, "student", STUDENT, streams, init)


def train_run(
    demo: Demo,
    name: str,
    recipe: TrainConfig,
    streams: dict[str, Stream],
    init: Path | None = None,
    network: Network | None = None,
) -> Path:
    """The checkpoint of a run of the demo's."""
    out = demo.workspace.run(demo.task.source.name, name)
    run = Run(demo.task, streams, out, demo.workspace.root / "cache", demo.device, init, network=network)
    return train(replace(recipe, seed=demo.seed), run, _named(demo.report, name)).checkpoint


def _export(demo: Demo, name: str, checkpoint: Path, split: str) -> None:
    teacher = open_teacher(checkpoint, demo.task.classes)
    archive = demo.workspace.archive(demo.task.source.name, name)
    config = ExportConfig(teacher=name, inference=INFERENCE)
    samples = demo.samples(split)
    report = _named(demo.report, f"{name} {split}")
    export_network(config, demo.task, teacher, samples, archive, demo.device, report)


def _fuse(demo: Demo, ensemble: Ensemble, rule: str, split: str, policy: str) -> None:
    archives = {name: demo.workspace.archive(demo.task.source.name, name) for name in ensemble.teachers}
    name = rule if split == "train" else f"{rule}-{split}"
    config = FuseConfig(teachers=ensemble.teachers, rule=rule, policy=policy, threshold=0.0)
    out = demo.workspace.labels(demo.task.target, name)
    report = _named(demo.report, name)
    fuse(config, Job(demo.task, archives, demo.samples(split), list, split, out), report)


def _test(demo: Demo, checkpoint: Path) -> EvalResult:
    network = load_student(checkpoint, demo.task.classes)
    samples, domain, out = demo.samples("val"), demo.task.target, checkpoint.parent / "test-last-val"
    segmenter = Segmenter(network.model, network.preprocessing, PROCEDURE)
    report = _named(demo.report, checkpoint.parent.name)
    scoring = Scoring(domain, str(checkpoint), save=out)
    counts = count_network(segmenter, samples, scoring, INFERENCE, demo.device, report)
    result = with_intervals(result_of(counts, domain, scoring.scored, scoring.split, out), counts, domain)
    write_evaluation(out, result, samples, domain, counts)
    return result


def _named(report: Reporter, name: str) -> Reporter:
    """The same reporter; bars say whose work it is, and the notes that single commands make are dropped."""

    def named(event: Tick | Note) -> None:
        if isinstance(event, Tick):
            report(replace(event, task=f"{name}: {event.task}"))

    return named
