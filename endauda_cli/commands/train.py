"""``endauda train``."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from endauda_cli.adaptation import in_proportion
from endauda_cli.commands.options import DryRun, Located, OnDevice, SourceData, TargetData
from endauda_cli.commands.session import open_session
from endauda_cli.commands.signature import command as make_command
from endauda_cli.config import InferenceConfig, StudentOptions, TrainConfig, check_name
from endauda_cli.errors import ConfigError
from endauda_cli.options import chosen, option, options_of
from endauda_cli.types import BestBy, Precision

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch
    from torch import nn

    from endauda_cli.commands.session import Session
    from endauda_cli.datasets import Sample
    from endauda_cli.plan_results import Plan
    from endauda_cli.results import TrainResult
    from endauda_cli.score_results import EvalResult
    from endauda_cli.students import Network
    from endauda_cli.teachers.starting import Start
    from endauda_cli.training.data import Stream
    from endauda_cli.training.methods import Method
    from endauda_cli.training.run import Run

    Test = Callable[[nn.Module], EvalResult]

_LEARNT, _NETWORK, _IMAGES, _SCHEDULE = "What is learnt", "Network", "Images", "Schedule"
MOST_PROFILED = 1000
"""Steps of which the trace can still be opened."""


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class _Run(StudentOptions):
    """What it is learnt from, and as which run."""

    labels: str | None = option(
        None, "--labels", panel=_LEARNT, complete="label_sets",
        help="Label set, or a folder of label PNGs. [default: the newest label set]",
    )  # fmt: skip
    init: Path | None = option(
        None, "--init", panel=_NETWORK, complete="weights",
        help="Checkpoint to start from, a source model or a backbone: file, run's name, or name of download-weights.",
    )  # fmt: skip
    name: str | None = option(
        None, "--name", panel=_LEARNT, complete="runs",
        help="Name of the run. [default: from network and labels]",
    )  # fmt: skip
    resume: bool = option(
        False, "--resume", panel=_LEARNT, help="Go on with the run; an error if there is none."
    )
    config: Path | None = option(
        None, "--config", panel=_LEARNT,
        help="File with options, such as the config.toml of another run; what is typed or in the environment beats it.",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Train(_Run, TrainConfig, SourceData, TargetData, OnDevice, DryRun, Located):
    """Options of ``train``."""

    drop_mismatched: bool = option(
        False, "--drop-mismatched", panel=_IMAGES,
        help="Leave out images whose labels have another size, and count them: GTA5 has a few. [default: refuse]",
    )  # fmt: skip
    cache: Path | None = option(
        None, "--cache", panel=_IMAGES, help="Folder for decoded images. [default: WORKSPACE/cache]"
    )
    profile: int = option(
        0, "--profile", panel=_SCHEDULE, metavar="STEPS",
        help="Write a trace of so many steps, and a table of the dearest operators, into the run's folder; 0 = none.",
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Checked when the recipe is made of it, with the method's own defaults."""


def run(options: Train) -> None:
    """Train a student on fused labels, or a model or teacher from the labelled source.

    Checkpoints, report.html, config.toml, metrics.jsonl and TensorBoard events go to runs/SOURCE/NAME. The same line
    again goes on where the run was stopped.

    **Examples**

    - `endauda train --backbone drn`
    - `endauda train --labels plf --init gta5/source --validate-every 1000`
    - `endauda train --config runs/gta5/NAME/config.toml --seed 1 --name OTHER`
    - `endauda train --labelled target --labelled-share 0.2`
    - `endauda train --labelled corrected/cityscapes`
    - `endauda train --method dacs --init runs/gta5/source/last.pt`
    - `endauda train --method source --domains gta5 synthia`
    """
    together = _together(options)
    session = open_session("train", options, options.device, together)
    with session.terminal.loading("torch"):
        from endauda_cli.augmentation import AUGMENTATIONS
        from endauda_cli.distributed import process_group
        from endauda_cli.students import mirrored
        from endauda_cli.training.certainties import with_certainties
        from endauda_cli.training.holding_out import hold_out
        from endauda_cli.training.labelled import with_true_labels
        from endauda_cli.training.methods import METHODS, Material
        from endauda_cli.training.pairs import matched
        from endauda_cli.training.run import Run
        from endauda_cli.training.starting import fitting

    for flag, changes in (("--augment", options.augment), ("--strong", options.strong)):
        for change in changes:
            if change not in AUGMENTATIONS:
                raise ConfigError(f"{flag} {change}: choose among {', '.join(AUGMENTATIONS)}")
    if not 0 <= options.profile <= MOST_PROFILED:
        raise ConfigError(f"--profile {options.profile}: 0 (none) to {MOST_PROFILED} steps; 20 tell enough")
    method, task, workspace = METHODS[options.method], session.task, session.workspace
    start = _started(session, options, method.network)
    own = _defaults(options, start, method)
    own["domains"] = (task.source.name, *(domain.name for domain, _ in session.further)) if together else ()
    config = chosen(TrainConfig, options, **own)
    roots = session.source_roots, session.target_roots
    material = Material(task, workspace, *roots, options.labels, session.further)
    streams, word = method.streams(material)
    if options.name is not None:
        check_name(options.name, "--name")
    out = workspace.run(task.source.name, options.name or f"{_network(start, options).word}-{word}")
    with process_group(session.device()) as where, session.terminal as terminal:
        if config.labelled is not None:
            streams = with_true_labels(streams, config.labelled, material, config.workers, terminal.report)
        streams = matched(streams, options.drop_mismatched, options.workers, terminal.report)
        streams = method.narrowed(streams, config)
        streams, held_out = hold_out(streams, config.hold_out)
        streams = with_certainties(streams, config.loss, material)
        if start is not None:
            init = start.init
        else:
            init = session.weights(options.init) if options.init is not None else None
        cache = options.cache or workspace.root / "cache"
        network = _network(start, options)
        if start is not None:
            network = fitting(network, config, len(task.classes))
            if method.flip:
                network = mirrored(network)
        validate, agree, truth = _tests(session, config, network, held_out, (cache, out), where)
        said = _recipe(session, options, config, streams, init)
        run = Run(
            task,
            streams,
            out,
            cache,
            where,
            init,
            options.resume,
            validate,
            truth,
            agree,
            said,
            options.profile,
            None if start is None else network,
        )
        terminal.show(_done(session, options, config, run, network.word))


def _done(session: Session, options: Train, config: TrainConfig, run: Run, word: str) -> TrainResult | Plan:
    """The run, or what it would be."""
    from endauda_cli.planning.runs import plan_train
    from endauda_cli.rates import Stopwatch
    from endauda_cli.training.loop import train

    root, report = session.workspace.root, session.terminal.report
    if options.dry_run:
        return plan_train(config, run, root, word, report)
    watch = Stopwatch("training", report)
    result = train(config, run, watch.report)
    seen = (result.steps - result.resumed_from) * config.batch_size
    watch.store(root, "train", word, run.device.type, seen)
    return result


def _together(options: Train) -> tuple[str, ...]:
    """The sources that are learnt at once; what was typed beats what a file or the environment says.

    Raises:
        ConfigError: if one source was named too, or the folder of one.
    """
    told = f"--domains {' '.join(options.domains)}"
    if not options.domains or ("source" in options.typed and "domains" not in options.typed):
        return ()
    if "source" in options.typed:
        raise ConfigError(f"{told}: takes the place of --source {options.source}; leave one of them out")
    if options.source_data is not None:
        raise ConfigError(
            f"{told}: --source-data is of one source; put the data sets where the workspace has them"
        )
    return options.domains


def _started(session: Session, options: Train, own: str | None) -> Start | None:
    """What is trained, where that is no DeepLab; ``own`` is the method's network, unless a DeepLab is asked for."""
    from endauda_cli.progress import phase

    deeplab = any(name in options.given for name in ("arch", "backbone"))
    if options.network is None and options.init is None and (own is None or deeplab):
        return None
    init = None if options.init is None else session.weights(options.init)
    with phase(session.terminal.report, "finding the network"):
        from endauda_cli.teachers.starting import named

        start = named(options.network, init, session.task.classes, lambda said: session.path(Path(said)))
        if start is None and own is not None and not deeplab:
            start = named(own, init, session.task.classes, lambda said: session.path(Path(said)))
    # Those in endauda.toml are defaults, which a network that was typed replaces.
    given = [f"--{name}" for name in ("arch", "backbone") if name in options.typed]
    if start is not None and given:
        raise ConfigError(
            f"{' and '.join(given)}: of DeepLabs, but {start.network.title} was named; leave one of them out"
        )
    return start


def _network(start: Start | None, options: Train) -> Network:
    from endauda_cli.students import deeplab

    return deeplab(options.arch, options.backbone) if start is None else start.network


def _defaults(options: Train, start: Start | None, method: type[Method]) -> dict[str, Any]:
    """Fields of the recipe that were not said, as network and method have them."""
    area = options.crop[0] * options.crop[1]
    defaults = {"balance_area": max(1, area // 32), **_suiting(start, options.steps), **method.defaults}
    own = {name: value for name, value in defaults.items() if name not in options.given}
    if "size" in options.given and "source_size" in own:
        crop = own.get("crop", options.crop)
        own["source_size"] = in_proportion(own["source_size"], defaults["size"], options.size, crop)
    return own


def _suiting(start: Start | None, steps: int) -> dict[str, Any]:
    """The network's own defaults; a short run warms up in its first twentieth."""
    suiting = {} if start is None else dict(start.recipe)
    return suiting | ({"warm_up": min(suiting["warm_up"], steps // 20)} if "warm_up" in suiting else {})


def _recipe(
    session: Session, options: Train, config: TrainConfig, streams: Mapping[str, Stream], init: Path | None
) -> dict[str, str | float | bool | list[str]]:
    """What would have to be written in a file of options for the same recipe from the same material."""
    from endauda_cli.training.methods import MAIN

    workspace, target = session.workspace, session.task.target
    folder = streams[MAIN].labels
    of_workspace = folder is not None and folder == workspace.labels(target, folder.name)
    found: dict[str, Any] = {
        "labels": folder and (folder.name if of_workspace else workspace.written(folder)),
        "network": options.network and _written(session, options.network),
        "init": init and options.init and workspace.written(init),
        "source_data": options.source_data and workspace.written(options.source_data),
        "target_data": options.target_data and workspace.written(options.target_data),
        "drop_mismatched": options.drop_mismatched,
        "labelled": config.labelled and _written(session, config.labelled),
    }

    def named(domain: str | None) -> str | None:
        return workspace.written(Path(domain)) if domain and domain.endswith(".toml") else domain

    found["source"] = None if config.domains else named(options.source)
    found["target"] = named(options.target)
    found["domains"] = [named(domain) for domain in options.domains] if config.domains else []
    known = options_of(Train)
    others = {f.name: getattr(config, f.name) for f in fields(TrainConfig) if f.name in known}
    found = others | found
    words = {known[name].name: known[name].words(value) for name, value in found.items()}
    return {key: value for key, value in words.items() if value is not None}


def _written(session: Session, network: str) -> str:
    """A folder as it can be found from elsewhere, else the name."""
    folder = session.path(Path(network))
    return session.workspace.written(folder) if folder.is_dir() else network


def _tests(
    session: Session,
    config: TrainConfig,
    network: Network,
    held_out: Sequence[Sample],
    folders: tuple[Path, Path],
    device: torch.device,
) -> tuple[Test | None, Test | None, str]:
    """What scores a network on labelled images of the target, and on fused labels of images held out, where that is
    wanted; and a digest of the labels that the best is chosen by. ``folders``: of caches, and of the run."""
    from endauda_cli.evaluation import Scoring, evaluate
    from endauda_cli.labels import shows_class
    from endauda_cli.progress import Note
    from endauda_cli.segmenter import Segmenter
    from endauda_cli.training.contents import digest_of_truth
    from endauda_cli.training.methods.distill import read_fused
    from endauda_cli.training.precision import chosen_precision
    from endauda_cli.training.validating import ValidationImages

    cache, out = folders
    if not config.validate_every:
        return None, None, ""
    target, report = session.task.target, session.terminal.report
    without_labels = config.best_by == BestBy.AGREEMENT
    if without_labels:
        samples = session.labelled_if_any("val")
    else:
        samples = session.target_samples("val", need_labels=True)
    half = chosen_precision(config.precision, device) == Precision.BF16
    inference = InferenceConfig(amp=half, workers=config.workers)

    def test_on(samples: Sequence[Sample], scoring: Scoring) -> Test | None:
        paths = [sample.image for sample in samples]
        preprocessing = replace(network.preprocessing, size=config.size)
        images = ValidationImages(paths, preprocessing, config, cache, (out, scoring.split), report)

        def test(model: nn.Module) -> EvalResult:
            images.fill()
            segmenter = Segmenter(model, preprocessing, network.tested, batches=True)
            return evaluate(segmenter, samples, scoring, inference, device, report, images)

        return test if samples else None

    files = [sample.label for sample in samples if sample.label is not None]
    if files and not shows_class(files, target):
        nothing = "nothing can be scored" + ("" if without_labels else " and no best.pt is kept")
        report(
            Note(
                f"--validate-every {config.validate_every}: the labels of all {len(files)} val images show no class "
                f"of {target.name}, only what is ignored, so {nothing}",
                "warning",
            )
        )
    validate = test_on(samples, Scoring(target, str(out)))
    agree = test_on(held_out, Scoring(target, str(out), "train", read=read_fused))
    deciding = [s.label for s in held_out if s.label is not None] if without_labels else files
    return validate, agree, digest_of_truth(target, deciding)


command = make_command(Train, run)
