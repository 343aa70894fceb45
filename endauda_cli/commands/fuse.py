"""``endauda fuse``."""

from __future__ import annotations

from typing import Annotated

from endauda_cli import completing
from endauda_cli.commands import options as o
from endauda_cli.config import check_name
from endauda_cli.errors import ConfigError
from endauda_cli.multivalue import split_commas
from endauda_cli.types import FusionRule, Split


def command(
    teachers: Annotated[
        list[str] | None,
        o.option(
            "--teachers",
            "-t",
            metavar="A B C",
            help="Archives to fuse. [default: all of the workspace]",
            autocompletion=completing.teachers,
            callback=split_commas,
            show_default=False,
        ),
    ] = None,
    rule: Annotated[FusionRule, o.option("--rule", help="How labels are fused.")] = FusionRule.PLF,
    policy: Annotated[
        str,
        o.option(
            "--policy",
            metavar="auto|few-shot|val|certainty|paper|FILE",
            autocompletion=completing.policies,
            help="What teachers are trusted by (consensus, plf): their agreement, that and a few labelled target "
            "images, all labelled ones; plf alone: mean certainty, the published lists; or a file.",
        ),
    ] = "auto",
    few_shot: Annotated[
        str,
        o.option(
            "--few-shot",
            metavar="N|A,B,C",
            help="Labelled val images for --policy few-shot: how many, spread evenly, or their names.",
        ),
    ] = "5",
    threshold: Annotated[
        float, o.option("--threshold", help="Keep labels of at least this certainty, in percent.")
    ] = 90,
    window: Annotated[str, o.option("--window", help="Side of plf's window, odd; or HEIGHTxWIDTH.")] = "5",
    renormalise: Annotated[
        bool, o.option("--renormalise", help="Scale each pixel's certainties to a sum of 100 first.")
    ] = False,
    split: Annotated[Split, o.option("--split", help="Images of the target to fuse.")] = Split.TRAIN,
    name: Annotated[
        str | None,
        o.option(
            "--name",
            help="Name of the label set. [default: the rule, with -SPLIT if it is not train]",
            show_default=False,
        ),
    ] = None,
    workers: o.WorkersOption = 2,
    target_data: o.TargetDataOption = None,
    workspace: o.WorkspaceOption = None,
    source: o.SourceOption = None,
    target: o.TargetOption = "cityscapes",
    device: o.DeviceOption = "auto",
    json: o.JsonOption = False,
    quiet: o.QuietOption = False,
    verbose: o.VerboseOption = False,
) -> None:
    """Fuse the teachers' archives into one set of labels for the target.

    Writes label PNGs (train ids, 255 = none), colour previews, the policy and a report. A rerun does only
    what is missing or has changed.

    - `endauda fuse --teachers dacs crst cbst`
    - `endauda fuse --teachers dacs crst --rule certainty --threshold 70 --name mean70`
    """
    from endauda_cli.config import FuseConfig
    from endauda_cli.fusing import fuse

    session = o.open_session(
        "fuse", workspace, source, target, device, json, quiet, verbose, target_data=target_data
    )
    if name is None:
        name = str(rule) if split == Split.TRAIN else f"{rule}-{split}"
    check_name(name, "--name")
    if name in tuple(Split):
        raise ConfigError(f"--name {name}: that is where ground truth lies; choose another word")
    names = tuple(teachers or session.workspace.teachers(session.task.source.name))
    archives = {name: session.workspace.archive(session.task.source.name, name) for name in names}
    o.refuse_unknown_teachers(session, names)
    config = FuseConfig(
        names, rule, policy, few_shot, threshold, o.parse_window(window), renormalise, workers
    )
    with session.terminal as terminal:
        result = fuse(
            config,
            session.task,
            archives,
            session.target_samples_if_any(split, "fusing all images of the archives instead"),
            lambda: session.target_samples("val", need_labels=True),
            split,
            session.workspace.labels(session.task.target, name),
            session.device(),
            terminal.report,
        )
        terminal.show(result)
