"""Engine: the whole story on a generated street world, through the same engines as the other commands.

A labelled source (``noon``) and an unlabelled target (``dusk``) show the same kind of streets in different
looks. Three teachers were each adapted by an image translation of the source towards the target, simulated
here, that gets a third of the classes right and the rest wrong in its own way; so each is strong in other
classes and over-confident in the rest. Their certainties are exported and fused without any label of the
target, the student learns the fused labels, and all are scored on the target's val images, whose truth
serves for nothing else.
"""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from endauda_cli.checkpoint import load_student
from endauda_cli.config import ExportConfig, FuseConfig, InferenceConfig, TrainConfig
from endauda_cli.datasets import find_samples, load_domain
from endauda_cli.demo import street
from endauda_cli.domains import CITYSCAPES_CLASSES, Task, make_task
from endauda_cli.errors import ConfigError
from endauda_cli.evaluation import PROCEDURE, Scoring, count_network, write_evaluation
from endauda_cli.exporting import export_network
from endauda_cli.fusion.job import Job, fuse
from endauda_cli.fusion.policy_files import POLICY_FILE
from endauda_cli.labels import colourise, read_image, read_train_ids, read_truth, write_label, write_png
from endauda_cli.progress import Note, Reporter, Tick
from endauda_cli.report import Gallery, PictureRow, Report, Row, Table, number, provenance, write_report
from endauda_cli.results import DemoResult, Score
from endauda_cli.score_table import with_intervals
from endauda_cli.scoring import result_of, score_predictions
from endauda_cli.segmenter import Segmenter
from endauda_cli.teachers import open_teacher
from endauda_cli.training.data import Example, Stream
from endauda_cli.training.loop import train
from endauda_cli.training.methods import MAIN, Material
from endauda_cli.training.methods.distill import Distill
from endauda_cli.training.run import Run
from endauda_cli.types import Arch, Backbone, FusionRule, Method
from endauda_cli.workspace import CONFIG_FILE, Workspace, read_json, write_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from endauda_cli.datasets import Sample
    from endauda_cli.domains import Colour
    from endauda_cli.score_results import EvalResult

    LookOf = Callable[[np.random.Generator], street.Look]

SOURCE_IMAGES = 96
TARGET_IMAGES = {"train": 96, "val": 32}
SIZE = (256, 128)
NETWORK_SIZE = (192, 96)
CROP = (144, 72)
DUSK = (0.5, 1.0)
"""How far the target's images are from the source, each by its own degree: 0 is noon, 1 the full shift."""


@dataclass(frozen=True)
class Translation:
    """How a teacher was adapted: it learnt source images that were translated towards the target.

    Attributes:
        right: the classes that the translation gets right.
        turn, dim: what it does to the colour and brightness of all others.
    """

    right: tuple[str, ...]
    turn: float
    dim: float

    def look(self, rng: np.random.Generator) -> street.Look:
        """Of one translated image, by its own degree."""
        return street.translated(street.SOURCE_LOOK, self.right, self.turn, self.dim, rng.uniform(0, 1))


def dusk_look(rng: np.random.Generator) -> street.Look:
    """Of one target image, by its own degree."""
    return street.shifted(street.SOURCE_LOOK, rng.uniform(*DUSK))


TRANSLATIONS = {
    "places": Translation(
        ("road", "sidewalk", "building", "wall", "fence", "vegetation", "terrain", "sky"), turn=0.30, dim=0.3
    ),
    "traffic": Translation(("car", "truck", "bus", "train", "motorcycle", "bicycle"), turn=-0.20, dim=-0.3),
    "people": Translation(("person", "rider", "pole", "traffic light", "traffic sign"), turn=0.5, dim=0.0),
}
"""The teachers; each is strong in other classes, and over-confident in the rest."""

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
TEACHER = replace(RECIPE, method=Method.SOURCE, steps=280, hard_percentile=50)
STUDENT = replace(RECIPE, steps=560, class_balance=False, hard_percentile=0)
"""The published recipe less two parts: the student starts from random weights and sees each image 47 times
(published: 336). In so few steps, weighing rare classes and mining hard pixels mostly lifts wrong labels."""

INFERENCE = InferenceConfig(batch_size=4)
PICTURED_SCENES = 5
PAGE = "report.html"
MARKER_FILE = "demo.json"
"""Says that a folder is a demo's, and its seed."""


@dataclass(frozen=True)
class _Demo:
    """What every part of the demo needs."""

    workspace: Workspace
    task: Task
    seed: int
    device: torch.device
    report: Reporter

    def samples(self, split: str) -> list[Sample]:
        roots = self.workspace.data_roots(self.task.target)
        return find_samples(self.task.target, roots, split, need_labels=split == "val")


def run_demo(out: Path, seed: int, device: torch.device, report: Reporter) -> DemoResult:
    """Run the demo.

    Args:
        out: folder for its workspace.
        seed: of the world and of all training; the same seed gives the same world.
        device: where networks run.
        report: told of progress.

    Raises:
        EndaudaError: if the folder holds something else, or a file cannot be written.
    """
    started = time.monotonic()
    workspace = Workspace(out.resolve())
    _claim(workspace, seed)
    with _one_thread():
        scores = _run(workspace, seed, device, report)
    return DemoResult(workspace.root, seed, scores, workspace.root / PAGE, time.monotonic() - started)


def _run(workspace: Workspace, seed: int, device: torch.device, report: Reporter) -> tuple[Score, ...]:
    report(Note("1/5 drawing a street world at noon and at dusk; all in all this takes minutes"))
    write_world(workspace, seed, report)
    task = make_task(
        load_domain(str(workspace.root / "noon.toml")), load_domain(str(workspace.root / "dusk.toml"))
    )
    demo = _Demo(workspace, task, seed, device, report)
    report(Note(f"2/5 training {len(TRANSLATIONS)} teachers, each on noon translated to dusk in its own way"))
    checkpoints = {name: _train_teacher(demo, name) for name in TRANSLATIONS}
    report(Note("3/5 storing how certain they are of the dusk images"))
    for name, checkpoint in checkpoints.items():
        for split in TARGET_IMAGES:
            _export(demo, name, checkpoint, split)
    report(Note(f"4/5 fusing them by {len(FusionRule)} rules"))
    for rule in FusionRule:
        _fuse(demo, rule, "train", "auto")
        # The policy was chosen on the train images; val is only scored.
        policy = workspace.labels(task.target, rule) / POLICY_FILE
        _fuse(demo, rule, "val", str(policy))
    report(Note("5/5 training the student on the plf labels, then scoring everybody"))
    student = _train_student(demo)
    results = {f"teacher {name}": _test(demo, path) for name, path in checkpoints.items()}
    for rule in FusionRule:
        folder = workspace.labels(task.target, f"{rule}-val")
        results[f"{rule} labels"] = score_predictions(folder, demo.samples("val"), task.target, report)
    results["student"] = _test(demo, student)
    scores = tuple(
        Score(name, r.miou, r.coverage, r.iou, ours=name in ("plf labels", "student"))
        for name, r in results.items()
    )
    _write_page(demo, workspace.root / PAGE, scores, results)
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


def _claim(workspace: Workspace, seed: int) -> None:
    """Take an empty folder, or go on in that of a demo with the same seed; never touch anything else."""
    marker = workspace.root / MARKER_FILE
    found = read_json(marker)
    if found is None:
        if workspace.root.exists() and (not workspace.root.is_dir() or any(workspace.root.iterdir())):
            raise ConfigError(f"{workspace.root}: not an empty folder; name a new one with --out")
        write_text(marker, json.dumps({"seed": seed}) + "\n")
    elif found.get("seed") != seed:
        raise ConfigError(
            f"{workspace.root}: holds the demo with --seed {found.get('seed')}; name another folder with --out, or "
            "delete this one"
        )


def write_world(workspace: Workspace, seed: int, report: Reporter) -> None:
    """Write the images, the labels (of the source and of the target's val images) and the TOML files."""
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
    noon |= {f"noon-{name}": translation.look for name, translation in TRANSLATIONS.items()}
    draw(0, "noon", "train", SOURCE_IMAGES, noon, True)
    for stream, (split, count) in enumerate(TARGET_IMAGES.items(), 1):
        draw(stream, "dusk", split, count, {"dusk": dusk_look}, split == "val")
    for name in TRANSLATIONS:
        write_text(workspace.root / f"noon-{name}.toml", _toml("noon", ("train",), f"noon-{name}"))
    for name, splits in (("noon", ("train",)), ("dusk", ("train", "val"))):
        write_text(workspace.root / f"{name}.toml", _toml(name, splits))
    write_text(workspace.root / CONFIG_FILE, _defaults())


def _toml(name: str, splits: tuple[str, ...], images: str | None = None) -> str:
    lines = [f'name = "{images or name}"', f"classes = {list(CITYSCAPES_CLASSES)}".replace("'", '"')]
    for split in splits:
        lines += [f"[{split}]", f'images = "Warehouse/{images or name}/images/{split}/*.png"']
        if name == "noon" or split == "val":
            lines.append(f'labels = "Warehouse/{name}/labels/{split}/*.png"')
    return "\n".join(lines) + "\n"


def _defaults() -> str:
    """Defaults that make the plain command lines work in the demo's workspace."""
    lines = [
        "# Defaults of the commands in this folder; run them from here.",
        'source = "noon.toml"',
        'target = "dusk.toml"',
        "[fuse]",
        f"teachers = {list(TRANSLATIONS)}".replace("'", '"'),
        "threshold = 0",
        "[train]",
        f'backbone = "{STUDENT.backbone}"',
        f"steps = {STUDENT.steps}",
        f"lr = {STUDENT.learning_rate}",
        f'size = "{STUDENT.size[0]}x{STUDENT.size[1]}"',
        f'crop = "{STUDENT.crop[0]}x{STUDENT.crop[1]}"',
        f"batch-size = {STUDENT.batch_size}",
        f"class-balance = {str(STUDENT.class_balance).lower()}",
        f"hard-percentile = {STUDENT.hard_percentile}",
    ]
    return "\n".join(lines) + "\n"


def _train_teacher(demo: _Demo, name: str) -> Path:
    domain = load_domain(str(demo.workspace.root / f"noon-{name}.toml"))
    samples = find_samples(domain, demo.workspace.data_roots(domain), "train", need_labels=True)
    examples = [Example(s.id, s.image, s.label) for s in samples if s.label is not None]
    return _train(demo, f"teacher-{name}", TEACHER, {MAIN: Stream(examples, domain, read_truth)})


def _train_student(demo: _Demo) -> Path:
    roots = demo.workspace.data_roots(demo.task.target)
    streams, _ = Distill.streams(Material(demo.task, demo.workspace, (), roots, FusionRule.PLF))
    return _train(demo, "student", STUDENT, streams)


def _train(demo: _Demo, name: str, recipe: TrainConfig, streams: dict[str, Stream]) -> Path:
    out = demo.workspace.run(demo.task.source.name, name)
    run = Run(demo.task, streams, out, demo.workspace.root / "cache", demo.device)
    return train(replace(recipe, seed=demo.seed), run, _named(demo.report, name)).checkpoint


def _export(demo: _Demo, name: str, checkpoint: Path, split: str) -> None:
    teacher = open_teacher(checkpoint, demo.task.classes)
    archive = demo.workspace.archive(demo.task.source.name, name)
    config = ExportConfig(teacher=name, inference=INFERENCE)
    samples = demo.samples(split)
    report = _named(demo.report, f"{name} {split}")
    export_network(config, demo.task, teacher, samples, archive, demo.device, report)


def _fuse(demo: _Demo, rule: str, split: str, policy: str) -> None:
    archives = {name: demo.workspace.archive(demo.task.source.name, name) for name in TRANSLATIONS}
    name = rule if split == "train" else f"{rule}-{split}"
    config = FuseConfig(teachers=tuple(TRANSLATIONS), rule=rule, policy=policy, threshold=0.0)
    out = demo.workspace.labels(demo.task.target, name)
    report = _named(demo.report, name)
    fuse(config, Job(demo.task, archives, demo.samples(split), list, split, out), report)


def _test(demo: _Demo, checkpoint: Path) -> EvalResult:
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


def _write_page(demo: _Demo, page: Path, scores: tuple[Score, ...], results: dict[str, EvalResult]) -> None:
    """The report: mIoU table, IoU per class with the policy, and scenes as everybody labels them."""
    classes, palette = demo.task.classes, demo.task.target.palette
    owners = {c: t for c, t in _policy_pairs(demo)}
    best = max(range(len(scores)), key=lambda i: scores[i].miou or 0)
    summary = [Row([s.name, number(s.miou), number(s.coverage, 1)], frozenset([1] if i == best else []), s.ours)
               for i, s in enumerate(scores)]  # fmt: skip
    per_class = []
    for name in classes:
        values = [s.iou[name] for s in scores]
        top = max((v for v in values if v is not None), default=None)
        marked = frozenset(i + 1 for i, v in enumerate(values) if v is not None and v == top)
        per_class.append(Row([name, *(number(v, 1) for v in values), owners[name]], marked))
    report = Report(
        title="endauda demo",
        intro=[
            f"A generated street world, seed {demo.seed}: {SOURCE_IMAGES} labelled source images (noon), "
            f"{TARGET_IMAGES['train']} unlabelled target images (dusk), scored on {TARGET_IMAGES['val']} others.",
            "Each teacher learnt from source images translated towards the target. Its translation gets right what it "
            f"is named after ({', '.join(TRANSLATIONS)}), and the other classes wrong.",
            "Labels were fused without any label of the target (policy auto, threshold 0: every pixel counts); "
            "the student learnt the plf labels of the unlabelled images.",
        ],
        sections=[
            Table("mIoU in percent", ["", "mIoU", "coverage"], summary),
            _looks(demo),
            _gallery(demo, results, palette),
            Table("IoU in percent per class", ["class", *(s.name for s in scores), "owner"], per_class),
            provenance({"workspace": str(demo.workspace.root), "device": str(demo.device)}),
        ],
    )
    write_report(page, report)


def _policy_pairs(demo: _Demo) -> list[tuple[str, str]]:
    record = read_json(demo.workspace.labels(demo.task.target, FusionRule.PLF) / POLICY_FILE)
    assert record is not None
    return [(c, t) for c, t in record["pairs"]]


def _looks(demo: _Demo) -> Gallery:
    """Source images, what each teacher learnt from, and target images."""
    folders = {
        "noon (source)": "noon",
        **{f"for {name}": f"noon-{name}" for name in TRANSLATIONS},
        "dusk (target)": "dusk",
    }
    rows = []
    for i in range(2):
        files = [
            demo.workspace.root / "Warehouse" / folder / "images" / "train" /
            f"{'dusk' if folder == 'dusk' else 'noon'}_train_{i:03}.png" for folder in folders.values()
        ]  # fmt: skip
        rows.append(PictureRow(f"street {i}", [read_image(file) for file in files]))
    return Gallery(
        "The two looks of the world, and the source as translated for each teacher",
        list(folders),
        rows,
        side_by_side=True,
    )


def _gallery(demo: _Demo, results: dict[str, EvalResult], palette: tuple[Colour, ...]) -> Gallery:
    """Scenes as everybody labels them: the story from left to right, then the rules that were not trained on."""
    folders = {name.removesuffix(" labels"): r.pictures or Path(r.scored) for name, r in results.items()}
    others = [rule.value for rule in FusionRule if rule != FusionRule.PLF]
    story = [name for name in folders if name not in others]
    rows = []
    for sample in demo.samples("val")[:PICTURED_SCENES]:
        assert sample.label is not None
        maps = {
            name: read_train_ids(folder / f"{sample.id}.png", len(demo.task.classes))
            for name, folder in folders.items()
        }
        shown = [*(maps[name] for name in story), read_truth(sample.label, demo.task.target)]
        shown += [maps[name] for name in others]
        pictures = [read_image(sample.image), *(colourise(one, palette) for one in shown)]
        rows.append(PictureRow(sample.id, pictures))
    legend = list(zip(demo.task.classes, palette, strict=True))
    return Gallery("Target scenes", ["image", *story, "truth", *others], rows, legend, side_by_side=True)
