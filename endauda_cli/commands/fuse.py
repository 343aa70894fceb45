"""``endauda fuse``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from endauda_cli.commands import options as o
from endauda_cli.completion import values
from endauda_cli.config import check_name
from endauda_cli.errors import ConfigError
from endauda_cli.types import CONSENSUS_FILE, Arch, Backbone, Border, FusionRule, PolicyKind, Split, Unclaimed

if TYPE_CHECKING:
    from endauda_cli.datasets import Sample
    from endauda_cli.fusion.live import NetworkReader

deciding = o.panel("How labels are decided")
output = o.panel("What is made")
details = o.panel("Fine points of the rules")
networks = o.panel("Networks among the teachers")


def command(
    teachers: Annotated[
        list[str] | None,
        deciding(
            "--teachers",
            "-t",
            metavar="A B C",
            help="Archives to fuse; NAME=CHECKPOINT runs a network instead, and stores nothing. "
            "[default: all archives of the workspace]",
            autocompletion=values.teachers,
            show_default=False,
        ),
    ] = None,
    rule: Annotated[
        FusionRule | None,
        deciding(
            "--rule",
            help="consensus: every teacher's vote, weighed by class; plf: each class from the teacher that owns it; "
            "certainty: the highest mean; majority: plain vote; soft-label: mean of certainties by their rank. "
            "[default: consensus; plf for policies that say who owns which class]",
            autocompletion=values.rules,
            show_default=False,
        ),
    ] = None,
    policy: Annotated[
        str,
        deciding(
            "--policy",
            metavar="POLICY",
            autocompletion=values.policies,
            help="How it is found out which teacher is good at which class: auto, by their agreement, without labels; "
            "few-shot, by that and a few labelled target images; val, by all labelled ones; a policy file. "
            "With --rule plf also certainty (their mean) and paper (the published lists).",
        ),
    ] = "auto",
    few_shot: Annotated[
        list[str] | None,
        deciding(
            "--few-shot",
            metavar="N|A B C",
            help="Labelled val images for --policy few-shot: how many, spread evenly, or their names. [default: 5]",
            autocompletion=values.labelled_images,
            show_default=False,
        ),
    ] = None,
    threshold: Annotated[
        float, deciding("--threshold", help="Keep labels of at least this certainty, in percent.")
    ] = 90,
    window: Annotated[
        str, details("--window", metavar="N|HxW", help="Side of plf's window, odd; or height and width.")
    ] = "5",
    border: Annotated[
        Border,
        details(
            "--border",
            help="What plf's window is divided by at the image's border: its whole size, as published, or its "
            "pixels inside.",
        ),
    ] = Border.REFERENCE,
    unclaimed: Annotated[
        Unclaimed,
        details(
            "--unclaimed", help="Pixels that no class is claimed for: the rule's vote, or left unlabelled."
        ),
    ] = Unclaimed.VOTE,
    delta: Annotated[
        Path | None,
        details(
            "--delta",
            help="Typical certainty of each rank (soft-label), ascending: .npy or JSON. "
            "[default: estimated from the teachers]",
            show_default=False,
        ),
    ] = None,
    renormalise: Annotated[
        bool, details("--renormalise", help="Scale each pixel's certainties to a sum of 100 first.")
    ] = False,
    split: Annotated[Split, output("--split", help="Images of the target to fuse.")] = Split.TRAIN,
    name: Annotated[
        str | None,
        output(
            "--name",
            help="Name of the label set. [default: the rule, with -SPLIT if it is not train]",
            autocompletion=values.label_sets,
            show_default=False,
        ),
    ] = None,
    score: Annotated[
        bool | None,
        output(
            "--score/--no-score",
            help="Score teachers and rules in the report, where the target has labels; nothing is chosen by it. "
            "[default: not for train]",
            show_default=False,
        ),
    ] = None,
    shard: Annotated[
        str, output("--shard", metavar="I/N", help="Do the I-th of N parts, for several processes.")
    ] = "1/1",
    backbone: Annotated[
        Backbone | None,
        networks("--backbone", help="Of checkpoints that do not say. [default: drn]"),
    ] = None,
    arch: Annotated[
        Arch | None,
        networks("--arch", help="Of checkpoints that do not say. [default: deeplabv3plus]"),
    ] = None,
    size: o.SizeOption = None,
    amp: o.AmpOption = False,
    target_data: o.TargetDataOption = None,
    workspace: o.WorkspaceOption = None,
    source: o.SourceOption = None,
    target: o.TargetOption = "cityscapes",
    workers: o.WorkersOption = 2,
    device: o.DeviceOption = "auto",
    json: o.JsonOption = False,
    quiet: o.QuietOption = False,
    verbose: o.VerboseOption = False,
) -> None:
    """Fuse the teachers' archives into one set of labels for the target.

    Writes label PNGs (train ids, 255 = none), colour previews, the policy and a report. A rerun does only
    what is missing or has changed. Archives are fused on the CPU unless --device says otherwise: reading them
    is what takes the time.

    **Examples**

    - `endauda fuse --teachers dacs crst cbst`
    - `endauda fuse --teachers dacs crst --rule certainty --threshold 70 --name mean70`
    - `endauda fuse --teachers dacs crst=runs/crst.pth`
    """
    from endauda_cli.config import FuseConfig

    session = o.open_session(
        "fuse", workspace, source, target, device, json, quiet, verbose, target_data=target_data
    )
    with session.terminal.loading("the rules"):
        from endauda_cli.fusion.job import fuse

    rule = rule or _rule_for(policy)
    if name is None:
        name = str(rule) if split == Split.TRAIN else f"{rule}-{split}"
    check_name(name, "--name")
    if name in tuple(Split):
        raise ConfigError(f"--name {name}: that is where ground truth lies; choose another word")
    given = teachers or session.workspace.teachers(session.task.source.name)
    checkpoints = dict(word.split("=", 1) for word in given if "=" in word)
    names = tuple(word.partition("=")[0] for word in given)
    for teacher in checkpoints:
        check_name(teacher, "teacher name")
    archives = {name: session.workspace.archive(session.task.source.name, name) for name in names}
    stored = [name for name in names if name not in checkpoints]
    if stored or not checkpoints:
        o.refuse_unknown_teachers(session, stored)
    with o.place(session, shard, bool(checkpoints)) as place, session.terminal as terminal:
        config = FuseConfig(
            names, rule, policy, ",".join(few_shot or ("5",)), threshold, o.parse_window(window), renormalise, border,
            unclaimed, None if delta is None else str(session.path(delta)), place.shard, score, workers,
        )  # fmt: skip
        samples = session.target_samples_if_any(split, "fusing all images of the archives instead")
        options = (arch, backbone, o.parse_size(size, "--size"), amp, workers)
        networks = _networks(session, checkpoints, samples, place.device, *options) if checkpoints else {}
        result = fuse(
            config,
            session.task,
            archives,
            samples,
            lambda: session.target_samples("val", need_labels=True),
            split,
            session.workspace.labels(session.task.target, name),
            place.device,
            terminal.report,
            networks,
            place.others,
        )
        terminal.show(result)


def _rule_for(policy: str) -> FusionRule:
    """``consensus``, unless the policy is of owners, which that rule does not have."""
    if policy in (PolicyKind.AUTO, PolicyKind.FEW_SHOT, PolicyKind.VAL):
        return FusionRule.CONSENSUS
    fitted = policy not in tuple(PolicyKind) and (Path(policy).parent / CONSENSUS_FILE).exists()
    return FusionRule.CONSENSUS if fitted else FusionRule.PLF


def _networks(
    session: o.Session,
    checkpoints: dict[str, str],
    samples: list[Sample] | None,
    device: str,
    arch: str | None,
    backbone: str | None,
    size: tuple[int, int] | None,
    amp: bool,
    workers: int,
) -> dict[str, NetworkReader]:
    """The teachers that are to be run, by name; a teacher whose archive was made by the same network is read."""
    from endauda_cli.config import InferenceConfig
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
    found = {}
    for name, path in checkpoints.items():
        known = arch is None and backbone is None and name in teacher_names()
        with phase(report, f"opening {name}"):
            network = open_network(
                session.weights(Path(path)), session.task.classes, InferenceConfig(1, amp, workers),
                torch.device(device), name if known else None, arch, backbone, size,
            )  # fmt: skip
        refuse_other_archive(name, session.workspace.archive(session.task.source.name, name), network)
        found[name] = NetworkReader(network, session.task.classes, images, kept=workers)
    return found
