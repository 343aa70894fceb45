"""What engines return: frozen values that the console shows and ``--json`` prints as they are.

Standard library only, so that the console needs no engine to render them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path  # noqa: TC003  the JSON Schema of --json is made from these annotations
from typing import Any, Literal


@dataclass(frozen=True)
class ExportResult:
    """A teacher's archive after an export or import."""

    archive: Path
    teacher: str
    images: int
    """Images of this run's share of the split."""
    skipped: int
    """Of these, how many the archive held already."""
    raw_bytes: int
    """Certainties and labels written by this run, uncompressed."""
    stored_bytes: int
    """The whole archive on disk."""


@dataclass(frozen=True)
class ClassSummary:
    """What became of a class. Shares are 0..1; ``None`` where there is nothing to take a share of."""

    name: str
    owner: str | None
    """The teacher it was taken from (PLF only)."""
    margin: float | None
    """By how much the owner's score exceeds the next teacher's."""
    share: float | None
    """Of all kept pixels."""
    kept: float | None
    """Of the pixels that were of this class before the threshold."""
    overlap: float | None
    """Of those pixels, the ones that more than one class claimed."""
    sureness: float | None = None
    """In how many of random draws of the images the same teacher comes first, 0..1."""


@dataclass(frozen=True)
class FusionScore:
    """How good a teacher or a rule is on target images that have labels; percent. No input of the fusion."""

    name: str
    is_rule: bool
    miou: float | None
    """Over all pixels."""
    kept_miou: float | None
    """Over the pixels that the threshold keeps (rules)."""
    coverage: float | None
    """Share of pixels that the threshold keeps (rules)."""
    iou: dict[str, float | None]
    """Over all pixels."""


@dataclass(frozen=True)
class FusionResult:
    """A finished label set, or the part of one that this process made."""

    labels: Path
    rule: str
    policy: str | None
    used_labels: bool
    teachers: tuple[str, ...]
    threshold: float | None
    images: int
    skipped: int
    """Of these images, how many an earlier run or another process had finished already."""
    coverage: float
    """Share of pixels that kept a label, 0..1."""
    overlap: float
    """Share of pixels that more than one class claimed."""
    unclaimed: float
    """Share of pixels that no class claimed."""
    classes: tuple[ClassSummary, ...]
    disputed: float = 0.0
    """Share of pixels that teachers give different classes."""
    agreement: tuple[tuple[float | None, ...], ...] = ()
    """Per pair of teachers the share of pixels with the same class, of those to which both give one."""
    scores: tuple[FusionScore, ...] = ()
    labelled_images: tuple[str, ...] = ()
    """Target images whose labels the policy looked at; a score on them is no test."""
    waiting_for: int = 0
    """Images of the set that other processes have yet to do; the figures are then of this one's alone."""

    @property
    def leader(self) -> str:
        """What the first teacher of a class is called; consensus has no owners."""
        return "best" if self.rule == "consensus" else "owner"


@dataclass(frozen=True)
class AdvisedEnsemble:
    """Some teachers and a rule, and how good that is."""

    teachers: tuple[str, ...]
    rule: str
    expected: float
    """mIoU with what all teachers together believe, percent: no score, it only compares ensembles."""
    miou: float | None
    """On the labelled images, if labels may be looked at; percent."""
    low: float | None
    """Of the 95 % interval over images, of ``miou`` where there is one, else of ``expected``."""
    high: float | None


@dataclass(frozen=True)
class TeacherAdvice:
    """What a teacher is worth to the others."""

    name: str
    alone: float
    """By the better figure there is: ``miou`` with labels, else ``expected``; percent."""
    adds: float
    """By how many points all teachers together are better than all others together, each by its best rule."""
    witnesses: float
    """As how many it counts: 1 of its own mind, a half as one of two near-copies."""
    copy_of: str | None = None
    """It says the same as this one, and was left out."""


@dataclass(frozen=True)
class Advice:
    """Which teachers to fuse, and by which rule. No labels were made."""

    by: Literal["labels", "agreement"]
    advised: AdvisedEnsemble
    """All by consensus, unless labels show another to be better by two standard errors: measured on real teachers, that
    loses least (docs/policies.md)."""
    sureness: float
    """Share of draws of the images in which it is the same, 0..1."""
    smaller: AdvisedEnsemble
    """The fewest teachers whose ``expected`` is within ``tolerance`` of all."""
    smaller_sureness: float
    tolerance: float
    best: AdvisedEnsemble
    """The highest figure of all that were tried, chance included."""
    rules: tuple[AdvisedEnsemble, ...]
    """All teachers, by each rule."""
    teachers: tuple[TeacherAdvice, ...]
    tried: int
    """Ensembles."""
    images: int
    """That ensembles were fitted to and compared on."""
    labelled_images: tuple[str, ...]
    """Whose labels were looked at: do not score on them."""
    command: str
    """That follows the advice."""


@dataclass(frozen=True)
class TrainResult:
    """A finished run."""

    run: Path
    arch: str
    backbone: str
    """Empty where the network has no name for it."""
    steps: int
    resumed_from: int
    """The step at which this process took over, 0 for a fresh run."""
    images: int
    seconds: float
    images_per_second: float | None
    last_loss: float | None
    last_miou: float | None
    """Of ``last.pt`` on the labelled target images, if validation was asked for; percent."""
    best_miou: float | None
    best_step: int | None
    checkpoint: Path
    initialised_from: str | None
    labelled_images: int = 0
    """Images with true labels that were mixed in, beside ``images``."""
    held_out_images: int = 0
    """Images with fused labels that were not trained on."""
    last_agreement: float | None = None
    """Mean IoU of ``last.pt`` with the fused labels of the images held out, if there are some; percent."""
    best_agreement: float | None = None
    """Likewise, of ``best.pt``; and ``best_miou`` is that of ``best.pt``, whatever that was chosen by."""
    best_by: str = "miou"
    """What ``best.pt`` was chosen by: ``miou`` or ``agreement``."""
    stopped_early: bool = False
    """Whether the run ended before its last step, because it had stopped getting better."""
    precision: str = "fp32"
    empty_steps: int = 0
    """Steps whose batch had no label, which learnt nothing."""
    folder: Path | None = None
    """The student as its library's ``save_pretrained`` writes it, if it is of transformers or smp."""


@dataclass(frozen=True)
class DeployResult:
    """A network as a file for other programs, checked against its checkpoint."""

    file: Path
    description: Path
    """TOML beside it: classes, pre- and postprocessing."""
    checkpoint: Path
    format: str
    precision: str
    size: tuple[int, int] | None
    """(width, height) that images are resized to; ``None`` where they keep their own."""
    dynamic: bool
    """Whether the file takes inputs of other heights and widths."""
    bytes: int
    float32_bytes: int
    """Of the checkpoint's weights in float32, without what it takes to train on."""
    images: int
    """Real images of the target that both were run on."""
    equal: float
    """Percent of their pixels that the file and the checkpoint label alike."""
    calibrated_on: int = 0
    """Target images that int8's ranges were measured on; 0 in other precisions, and where they are found as it runs."""
    images_per_second: float | None = None
    """Of the network alone, one image at a time, on this machine's CPU, if that was asked for."""
    checkpoint_images_per_second: float | None = None
    """Likewise, of the checkpoint in torch."""
    threads: int | None = None
    """That both had."""


@dataclass(frozen=True)
class MergedRun:
    """A checkpoint that was offered to a merge."""

    checkpoint: Path
    used: bool
    score: float | None
    """Alone: agreement or mIoU, percent; ``None`` if nothing was scored."""
    alike: float
    """Percent of the pixels of some target images that it, with statistics measured as the merge's are, and the merged
    network label alike."""


@dataclass(frozen=True)
class MergeResult:
    """The average of several runs."""

    checkpoint: Path
    by: str
    runs: tuple[MergedRun, ...]
    score: float | None
    """Of the merged network, as of its runs."""
    scored_images: tuple[str, ...]
    """That chose; if by ``miou``, their labels were looked at, so a score on them is no test."""
    statistics_images: int
    """Target images that the batch statistics were re-estimated on; 0 if they were averaged, or there are none."""
    alike: float
    """Percent of pixels that two of the runs label alike, in the mean; above the runs' likeness with the merge it is a
    sign that they lie in different valleys and cannot be averaged."""


@dataclass(frozen=True)
class ClassFacts:
    """What a teacher says about a class over a whole archive (or a sample of it)."""

    name: str
    share: float
    """Of all pixels, 0..1."""
    certainty: float | None
    """Mean certainty of the class where the teacher gives it, percent."""


@dataclass(frozen=True)
class WrittenBack:
    """An archive's images as files again."""

    folder: Path
    images: int
    bytes: int
    """Of all files."""
    unreadable: int
    """Images left out because they are damaged."""


@dataclass(frozen=True)
class InspectResult:
    """What an archive holds."""

    archive: Path
    facts: dict[str, str]
    classes: tuple[ClassFacts, ...]
    pictures: tuple[Path, ...]
    verified: str | None
    """The outcome of ``--verify`` in a sentence; without it, of damage that was met."""
    intact: bool | None
    exported: WrittenBack | None = None


@dataclass(frozen=True)
class ListedWeights:
    """A published artefact, and what of it is in the workspace. ``None`` is not known."""

    name: str
    what: str
    path: str
    """Where it goes, relative to the workspace."""
    page: str
    """The page to open in a browser."""
    urls: tuple[str, ...]
    size: int | None
    sha256: str | None
    licence: str | None
    miou: float | None
    """Published score on Cityscapes val, percent."""
    note: str | None
    state: str
    """``absent``, ``partial`` (a download was cut), ``verified`` (digests are those of the manifest or of the
    first download), or ``foreign`` (something lies there that is not proven to be it)."""


@dataclass(frozen=True)
class WeightsList:
    """What there is to download."""

    artefacts: tuple[ListedWeights, ...]


@dataclass(frozen=True)
class FetchedWeights:
    """An artefact that is now in the workspace, verified."""

    name: str
    path: Path
    fetched: bool
    """False if it was there already."""
    url: str | None
    """Where it came from; ``None`` for what was found in place."""
    size: int
    """Of all its files, bytes."""
    sha256: str | None
    """Of its file; ``None`` if it is a folder."""
    checks: tuple[str, ...]
    """What opening its checkpoints came to, a sentence each."""
    next_steps: tuple[str, ...]
    """Command lines that use it."""


@dataclass(frozen=True)
class WeightsFailure:
    """An artefact that could not be had, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class DownloadResult:
    """What became of the artefacts that were named."""

    fetched: tuple[FetchedWeights, ...]
    failures: tuple[WeightsFailure, ...]


@dataclass(frozen=True)
class Score:
    """A line of the demo's table; percent."""

    name: str
    miou: float | None
    coverage: float
    iou: dict[str, float | None]
    ours: bool = False


@dataclass(frozen=True)
class DemoResult:
    """The demo's outcome."""

    workspace: Path
    seed: int
    scores: tuple[Score, ...]
    report: Path
    seconds: float


@dataclass(frozen=True)
class Finding:
    """One thing that ``doctor`` looked at."""

    name: str
    state: Literal["ok", "note", "missing", "broken"]
    """``note`` works, but is worth knowing; ``missing`` is what a step lacks, ``broken`` what every command needs."""
    text: str
    mend: str | None = None
    """A command line that mends it, to be copied."""
    facts: dict[str, Any] = field(default_factory=dict)
    """The same in figures, for scripts: versions, bytes, bytes per second, counts."""


@dataclass(frozen=True)
class FindingGroup:
    """What was found of one subject."""

    title: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class CheckupResult:
    """What works on this machine and in this workspace, and what the next step lacks."""

    usable: bool
    """False if something is broken that every command needs."""
    groups: tuple[FindingGroup, ...]
    next: str | None
    """The command line that mends the first thing that is broken or missing."""


@dataclass(frozen=True)
class ConfigRow:
    """An option that is not typed.

    Attributes:
        command: whose.
        option: without dashes before it.
        value: what it is then.
        origin: the variable, or file and table; or ``built-in``.
        variable: the environment variable that would set it.
    """

    command: str
    option: str
    value: str | int | float | bool | tuple[str, ...] | list[str] | None
    origin: str
    variable: str


@dataclass(frozen=True)
class ConfigResult:
    """What all options are set to.

    Attributes:
        workspace: where they were looked up.
        file: its endauda.toml, if there is one.
        rows: one per option of each command.
    """

    workspace: Path
    file: Path | None
    rows: tuple[ConfigRow, ...]
