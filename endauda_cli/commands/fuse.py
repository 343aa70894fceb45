"""``endauda fuse``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from endauda_cli.commands.options import (
    DryRun,
    InputSize,
    Located,
    OnDevice,
    TargetData,
    arch_option,
    backbone_option,
)
from endauda_cli.commands.session import open_session, place, refuse_unknown_teachers
from endauda_cli.commands.signature import command as make_command
from endauda_cli.config import (
    Amp,
    FuseConfig,
    FusionOptions,
    FusionOutput,
    InferenceConfig,
    check_name,
    launched,
)
from endauda_cli.errors import ConfigError
from endauda_cli.options import chosen, option
from endauda_cli.types import CONSENSUS_FILE, Arch, Backbone, FusionRule, PolicyKind, Split

if TYPE_CHECKING:
    from endauda_cli.commands.session import Session
    from endauda_cli.datasets import Sample
    from endauda_cli.fusion.job import Job
    from endauda_cli.fusion.live import NetworkReader
    from endauda_cli.plan_results import Plan
    from endauda_cli.results import Advice, FusionResult

_DECIDING, _OUTPUT, _NETWORKS = "How labels are decided", "What is made", "Networks among the teachers"


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class _Chosen:
    """What is fused, by which rule."""

    teachers: list[str] | None = option(
        None, "--teachers", "-t", panel=_DECIDING, metavar="A B C", complete="teachers",
        help="Archives to fuse; NAME=CHECKPOINT runs a network instead, and stores nothing. "
        "[default: all archives of the workspace]",
    )  # fmt: skip
    rule: FusionRule | None = option(
        None, "--rule", panel=_DECIDING, complete="rules",
        help="consensus: every teacher's vote, weighed by class; plf: each class from the teacher that owns it; "
        "certainty: the highest mean; majority: plain vote; soft-label: mean of certainties by their rank. "
        "[default: consensus; plf for policies that say who owns which class]",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class _Made:
    """What becomes of it."""

    advise: bool = option(
        False, "--advise", panel=_OUTPUT,
        help="Make no labels: say what each teacher adds, which to fuse by which rule, and how sure that is. Labels "
        "are looked at with --policy few-shot or val alone.",
    )  # fmt: skip

    split: Split = option(Split.TRAIN, "--split", help="Images of the target to fuse.", panel=_OUTPUT)
    name: str | None = option(
        None, "--name", panel=_OUTPUT, complete="label_sets",
        help="Name of the label set. [default: the rule, with -SPLIT if it is not train]",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Fuse(
    _Chosen, FusionOptions, _Made, FusionOutput, InputSize, Amp, TargetData, OnDevice, DryRun, Located
):
    """Options of ``fuse``."""

    backbone: Backbone | None = backbone_option(_NETWORKS, "checkpoints that do not say")
    arch: Arch | None = arch_option(_NETWORKS, "checkpoints that do not say")


def run(options: Fuse) -> None:
    """Fuse the teachers' archives into one set of labels for the target.

    Writes label PNGs (train ids, 255 = none), colour previews, the policy and a report. A rerun does only
    what is missing or has changed. Archives are fused on the CPU unless --device says otherwise: reading them
    is what takes the time.

    **Examples**

    - `endauda fuse --teachers dacs crst cbst`
    - `endauda fuse --teachers dacs crst --rule certainty --threshold 70 --name mean70`
    - `endauda fuse --teachers dacs crst=runs/crst.pth`
    - `endauda fuse --advise --policy few-shot --few-shot 10`
    """
    session = open_session("fuse", options, options.device)
    with session.terminal.loading("the rules"):
        from endauda_cli.fusion.job import Job

    _check_advise(options)
    split, rule = options.split, options.rule or _rule_for(options.policy)
    name = options.name
    if name is None:
        name = str(rule) if split == Split.TRAIN else f"{rule}-{split}"
    check_name(name, "--name")
    if name in tuple(Split):
        raise ConfigError(f"--name {name}: that is where ground truth lies; choose another word")
    given = options.teachers or session.workspace.teachers(session.task.source.name)
    checkpoints = dict(word.split("=", 1) for word in given if "=" in word)
    names = tuple(word.partition("=")[0] for word in given)
    for teacher in checkpoints:
        check_name(teacher, "teacher name")
    stored = [teacher for teacher in names if teacher not in checkpoints]
    if stored or not checkpoints:
        refuse_unknown_teachers(session, stored)
    with place(session, options.shard, bool(checkpoints)) as here, session.terminal as terminal:
        delta = None if options.delta is None else str(session.path(Path(options.delta)))
        config = chosen(FuseConfig, options, teachers=names, rule=rule, delta=delta, shard=here.shard)
        samples = session.target_samples_if_any(split, "fusing all images of the archives instead")
        networks = _networks(session, checkpoints, samples, here.device, options) if checkpoints else {}
        source = session.task.source.name
        job = Job(
            session.task,
            {t: networks[t] if t in networks else session.workspace.archive(source, t) for t in names},
            samples,
            lambda: session.target_samples("val", need_labels=True),
            split,
            session.workspace.labels(session.task.target, name),
            here.device,
            here.others,
        )
        terminal.show(_done(session, options, config, job))


def _done(session: Session, options: Fuse, config: FuseConfig, job: Job) -> FusionResult | Advice | Plan:
    """The labels, or what was asked for in their place."""
    from endauda_cli.fusion.job import advice, fuse
    from endauda_cli.planning.fusions import kind_of, plan_fuse
    from endauda_cli.rates import Stopwatch

    root, report = session.workspace.root, session.terminal.report
    if options.dry_run:
        return plan_fuse(config, job, root, report)
    if options.advise:
        return advice(config, job, report)
    watch = Stopwatch("fusing", report)
    result = fuse(config, job, watch.report)
    made = result.images - result.skipped
    watch.store(root, "fuse", kind_of(config.rule, result.teachers), job.device.partition(":")[0], made)
    return result


def _check_advise(options: Fuse) -> None:
    if not options.advise:
        return
    if options.dry_run:
        raise ConfigError("--advise writes nothing anyway; leave --dry-run out")
    if options.rule is not None:
        raise ConfigError(f"--advise tries every rule; leave --rule {options.rule} out")
    if options.policy not in (PolicyKind.AUTO, PolicyKind.FEW_SHOT, PolicyKind.VAL):
        raise ConfigError(
            f"--advise --policy {options.policy}: auto looks at no label, few-shot and val at some; say one of them"
        )
    if options.shard != (1, 1) or launched() > 1:
        raise ConfigError("--advise looks at a few images, in one process; leave --shard and torchrun out")
    if options.teachers is not None and len(options.teachers) < 2:
        raise ConfigError("--advise compares teachers; name two or more with --teachers")


def _rule_for(policy: str) -> FusionRule:
    """``consensus``, unless the policy is of owners, which that rule does not have."""
    if policy in (PolicyKind.AUTO, PolicyKind.FEW_SHOT, PolicyKind.VAL):
        return FusionRule.CONSENSUS
    fitted = policy not in tuple(PolicyKind) and os.path.exists(Path(policy).parent / CONSENSUS_FILE)
    return FusionRule.CONSENSUS if fitted else FusionRule.PLF


def _networks(
    session: Session, checkpoints: dict[str, str], samples: list[Sample] | None, device: str, options: Fuse
) -> dict[str, NetworkReader]:
    """The teachers that are to be run, by name; a teacher whose archive was made by the same network is read."""
    from endauda_cli.progress import phase

    report = session.terminal.report
    with phase(report, "loading torch"):
        import torch

        from endauda_cli.fusion.live import NetworkReader, open_network, refuse_other_archive
        from endauda_cli.teachers import teacher_names

    if samples is None:
        raise ConfigError(
            f"--teachers {'='.join(next(iter(checkpoints.items())))}: a network needs the target's images; "
            "say where they are with --target-data"
        )
    images = {sample.id: sample.image for sample in (*session.labelled_if_any("val"), *samples)}
    inference = InferenceConfig(amp=options.amp, workers=options.workers)
    found = {}
    for name, path in checkpoints.items():
        known = options.arch is None and options.backbone is None and name in teacher_names()
        with phase(report, f"opening {name}"):
            network = open_network(
                session.weights(Path(path)), session.task.classes, inference, torch.device(device),
                name if known else None, options.arch, options.backbone, options.size, report,
            )  # fmt: skip
        refuse_other_archive(name, session.workspace.archive(session.task.source.name, name), network)
        found[name] = NetworkReader(network, session.task.classes, images, kept=options.workers)
    return found


command = make_command(Fuse, run)
