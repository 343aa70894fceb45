"""How a run begins: from nothing, from weights, or where it was stopped; never on top of another run."""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from dataclasses import MISSING, asdict, fields
from typing import TYPE_CHECKING, Any

import torch

from endauda_cli import __version__, checkpoint
from endauda_cli.config import TrainConfig
from endauda_cli.distributed import rank, world_size
from endauda_cli.errors import CheckpointError, ConfigError, DataError, WorkspaceError
from endauda_cli.files import WriterLock, cannot_write
from endauda_cli.models import load_checkpoint
from endauda_cli.models.compat import fill
from endauda_cli.options import options_of
from endauda_cli.progress import Note, Reporter
from endauda_cli.students import build, to_record
from endauda_cli.training.data import images_of
from endauda_cli.training.methods import MAIN
from endauda_cli.training.parentage import origin
from endauda_cli.training.run import make_state
from endauda_cli.training.starting import initialise, try_out
from endauda_cli.workspace import LAST_FILE, ORDER, RUN_FILE, next_order, write_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from endauda_cli.models import Student
    from endauda_cli.training.contents import Contents
    from endauda_cli.training.run import Run, TrainState

VOLATILE = (
    "save_every",
    "validate_every",
    "workers",
    "keep",
    "precision",
    "compile",
    "recompute",
    "network",  # what it is built from is compared, not where it was found
    "patience",
)
"""Options that may differ when a run goes on: they do not change what is learnt."""


def check(config: TrainConfig, run: Run) -> None:
    """Refuse what cannot be trained on, before anything is read or written.

    Raises:
        EndaudaError: says what is missing or does not divide.
    """
    last, streams = run.out / LAST_FILE, run.streams
    if run.resume and not last.exists():
        raise CheckpointError(f"{last}: no such checkpoint to resume; run without --resume to start")
    if not streams[MAIN].examples:
        raise DataError("there is no image to train on")
    if config.batch_size % world_size():
        raise ConfigError(f"--batch-size {config.batch_size} does not divide over {world_size()} processes")
    part = config.batch_size // world_size() / config.accumulate
    if part < 2 or part != int(part):
        parts = f", and each of its {config.accumulate} parts" if config.accumulate > 1 else ""
        raise ConfigError(
            f"--batch-size {config.batch_size}: every one of {world_size()} processes needs 2 or more{parts}"
        )
    if config.true_images % world_size():
        raise ConfigError(
            f"--labelled-share {config.labelled_share:g}: {config.true_images} of the {config.batch_size} images of a "
            f"batch, which do not divide over {world_size()} processes"
        )
    if images_of(config, MAIN) % world_size():
        raise ConfigError(
            f"--domains {' '.join(config.domains)}: {images_of(config, MAIN)} images of each in a batch, which do not "
            f"divide over {world_size()} processes"
        )
    for examples in (stream.examples for stream in streams.values()):
        missing = [(e.id, e.label) for e in examples if e.label is not None and not e.label.is_file()]
        if missing:
            image, label = missing[0]
            raise DataError(
                f"{label}: no such label file, needed for image {image} "
                f"({len(missing)} of {len(examples)} are absent); fuse the train split, or name its labels with "
                "--labels"
            )


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """While open, no other process writes this run; the first rank holds it for all.

    Raises:
        WorkspaceError: if another process does, and says which.
    """
    if rank() > 0:
        yield
        return
    lock = WriterLock(out.with_name(f".{out.name}.lock"))
    try:
        held = lock.acquire()
    except OSError as error:
        raise WorkspaceError(f"{out}: {cannot_write(error)}") from error
    if not held:
        raise WorkspaceError(
            f"{out}: {lock.holder} is training this run now; wait for it, or name another with --name"
        )
    try:
        yield
    finally:
        lock.release()


def data_record(run: Run, contents: Mapping[str, Contents]) -> dict[str, str]:
    """What a run learns from. ``digest`` is that of earlier versions: names and sizes."""
    digest, whole = hashlib.sha256(), hashlib.sha256()
    for name, stream in run.streams.items():
        digest.update(stream.domain.name.encode())
        for example in stream.examples:
            sizes = example.image.stat().st_size, (example.label or example.image).stat().st_size
            digest.update(f"{example.id}\0{sizes}\n".encode())
        whole.update(f"{name} {' '.join(filter(None, contents[name]))}\n".encode())
    first = run.streams[MAIN].examples[0]
    return {
        "labels": str((first.label or first.image).parent),
        "digest": digest.hexdigest()[:32],
        "content": whole.hexdigest()[:32],
        "truth": run.truth,
    }


def start(
    config: TrainConfig, run: Run, data: dict[str, str], report: Reporter, write: bool = True
) -> TrainState:
    """A fresh state, or that of ``last.pt`` if the folder holds a run with these options.

    Without ``write`` nothing is written, for a plan.

    Raises:
        EndaudaError: if the folder holds another run, or weights do not fit.
    """
    torch.manual_seed(config.seed)
    num_classes = len(run.task.classes)
    network = run.trained(config)
    student = build(network, num_classes)
    last = run.out / LAST_FILE
    content = checkpoint.load(last) if last.exists() else None
    if content is None:
        if run.init is not None:
            if wrapped := initialise(student, run.init, run.network, run.task.classes):
                report(Note(wrapped))
            data |= {"init": str(run.init), "init_sha256": checkpoint.sha256(run.init)}
        else:
            report(
                Note("no --init: the network starts from random weights, not from a source model", "warning")
            )
    else:
        meta = check_meta(last, content["meta"])
        _refuse_other_run(config, run, data, meta)
        data |= meta["data"] | {key: data[key] for key in ("content", "truth")}
        own = content.get("student", content["weights"])  # the averaged ones are beside it
        _fill(student, last, own)
    layers = None
    if run.network is not None or config.layer_decay != 1:
        layers = try_out(student, network, config, num_classes)
    state = make_state(student, config, num_classes, run.device, network.preprocessing, layers)
    state.initialised_from = str(run.init) if run.init is not None else None
    state.ramp = _ramp(config, run)
    if content is None:
        if state.ramp:
            report(
                Note(f"mining and class weights set in over the first {state.ramp} steps (--ramp 0: at once)")
            )
    else:
        _take_up(state, last, content)
        report(Note(f"{run.out} goes on at step {state.step} of {config.steps}"))
        _tell_what_changed(config, meta, report)
        if (
            state.best_step is not None
            and run.truth
            and meta["data"].get("truth") not in (None, "", run.truth)
        ):
            state.best_miou = state.best_step = state.last_miou = None
            state.best_agreement, state.last_agreement, state.idle = None, None, 0
            report(Note(_other_truth(state.step, config), "warning"))
    state.origin = origin(run, data, content["meta"] if content is not None else {})
    if write and state.step < config.steps and rank() == 0:
        told = {ORDER: next_order(run.out, RUN_FILE), **describe(config, run, data, None), **state.origin}
        write_text(run.out / RUN_FILE, json.dumps(told, indent=1, default=str) + "\n")
    return state


def _ramp(config: TrainConfig, run: Run) -> int:
    """The recipe is one for weights that know something: the hardest fifth of what random ones see is noise.

    240 steps of a tiny network from random weights, CamVid val: 5.4 mIoU with all of it from the first step, 17.2 with
    all of it after half of the steps, 25.8 after all of them, 20.3 without.
    """
    if config.ramp is not None:
        return config.ramp
    strict = config.hard_percentile > 0 or config.class_balance
    return config.steps if run.init is None and strict else 0


def _tell_what_changed(config: TrainConfig, meta: dict[str, Any], report: Reporter) -> None:
    """What makes the rest of the run another than it would have been, and is allowed."""
    before, processes = meta["config"].get("steps"), meta.get("processes", 1)
    if before != config.steps:
        report(
            Note(
                f"--steps {config.steps} instead of {before}: the learning rate falls to 0 there, so it rises now"
            )
        )
    if processes != world_size():
        report(
            Note(
                f"processes: {world_size()} instead of {processes}; the batches are the same, dropout and norms not"
            )
        )


def _take_up(state: TrainState, last: Path, content: dict[str, Any]) -> None:
    """The state as the checkpoint has it."""
    meta = content["meta"]
    try:
        state.optimizer.load_state_dict(content["optimizer"])
        state.loss.load_state_dict(content["loss"])
        state.method.load_state_dict(content.get("method", {}))
    except Exception as error:  # torch raises whatever it meets in states of another form
        raise _unfit(last, "optimizer or loss", type(error).__name__) from error
    state.step, state.best_miou, state.best_step = meta["step"], meta["best_miou"], meta["best_step"]
    state.last_miou, state.initialised_from = meta["miou"], meta["initialised_from"]
    state.last_agreement, state.best_agreement = meta.get("agreement"), meta.get("best_agreement")
    state.idle = meta.get("idle", 0)
    state.ramp, state.empty = meta.get("ramp", 0), meta.get("empty", 0)
    if state.average is not None:
        _fill(state.average.student, last, content["weights"])


def _other_truth(step: int, config: TrainConfig) -> str:
    scored = "the labels or the class table that this run is validated by were changed since its last step"
    if step < config.steps:
        return f"{scored}: best.pt is chosen anew from here on"
    return f"{scored}: best.pt was chosen by the former ones; score both checkpoints with 'endauda test'"


def _fill(student: Student, last: Path, state: Any) -> None:
    """By its own names, which no wrapping is taken from where they are another library's."""
    if student.network is student:
        load_checkpoint(student, last, {"weights": state})
    else:
        fill(student, last, state)


_OPTIONAL = (type(None),)
_META: dict[str, tuple[type, ...]] = {
    "config": (dict,),
    "classes": (list,),
    "target": (str,),
    "data": (dict,),
    "step": (int,),
    "miou": (int, float, *_OPTIONAL),
    "best_miou": (int, float, *_OPTIONAL),
    "best_step": (int, *_OPTIONAL),
    "initialised_from": (str, *_OPTIONAL),
}
_LATER: dict[str, tuple[type, ...]] = {
    "agreement": (int, float, *_OPTIONAL),
    "best_agreement": (int, float, *_OPTIONAL),
    "idle": (int,),
}
"""Not in checkpoints of earlier versions."""
_DATA: dict[str, tuple[type, ...]] = {"labels": (str,), "digest": (str,)}
_MOST_STEPS = 1 << 62


def check_meta(last: Path, meta: Any) -> dict[str, Any]:
    """What a checkpoint says of its run, if it says all that is needed to go on.

    Raises:
        CheckpointError: names what is missing or of another kind.
    """
    whole = meta if isinstance(meta, dict) else {}
    data = whole.get("data")
    later = {key: kinds for key, kinds in _LATER.items() if key in whole}
    for kinds_of, found in ((_META | later, whole), (_DATA, data if isinstance(data, dict) else {})):
        for key, kinds in kinds_of.items():
            value = found.get(key)
            if not isinstance(value, kinds) or isinstance(value, bool) or key not in found:
                raise _unfit(last, key, value)
    for key in ("step", "miou", "best_miou", "best_step", *later):
        if not 0 <= (whole[key] or 0) <= _MOST_STEPS:  # NaN is not, either
            raise _unfit(last, key, whole[key])
    return whole


def _unfit(last: Path, key: str, value: object) -> CheckpointError:
    kind = (
        "absent"
        if value is None
        else type(value).__name__
        if isinstance(value, (dict, list))
        else repr(value)
    )
    return CheckpointError(
        f"{last}: its {key} is {kind:.80}, so the run cannot go on from it; copy the file again from where it was "
        "made, or name another run with --name"
    )


def _plain(value: Any) -> Any:
    """Tuples as lists and enums as strings, as JSON has them."""
    return json.loads(json.dumps(value))


_DEFAULTS = _plain({f.name: f.default for f in fields(TrainConfig) if f.default is not MISSING})
"""What an earlier version did, which did not know the option."""


def _refuse_other_run(config: TrainConfig, run: Run, data: dict[str, str], meta: dict[str, Any]) -> None:
    holds, other = f"{run.out} holds a run", "; name another with --name, or delete that folder"
    before, now = meta["config"], _plain(asdict(config))
    for key in now:
        if key == "steps" and isinstance(before.get(key), int) and before[key] <= now[key]:
            continue
        was = before.get(key, _DEFAULTS.get(key))
        if key not in VOLATILE and was != now[key]:
            found = f"{holds} with --{options_of(TrainConfig)[key].name} {was!s:.80}, not {now[key]}"
            raise ConfigError(f"{found}{other}")
    if _plain(_network(config, run).get("network")) != meta.get("network"):
        raise ConfigError(f"{holds} of another network than {run.trained(config).title}{other}")
    for key, value in (("classes", list(run.task.classes)), ("target", run.task.target.name)):
        if meta[key] != value:
            raise ConfigError(f"{holds} with {key} {meta[key]!s:.500}, not {value}{other}")
    known = "content" if isinstance(meta["data"].get("content"), str) else "digest"  # not in earlier versions
    if meta["data"][known] != data[known]:
        raise ConfigError(
            f"{holds} on other images or labels ({meta['data']['labels']}, now {data['labels']}, or its "
            f"files or their class table have changed){other}"
        )
    if run.init is not None and checkpoint.sha256(run.init) != meta["data"].get("init_sha256"):
        raise ConfigError(f"{holds} from {meta['data'].get('init', 'random weights')}, not {run.init}{other}")


def _network(config: TrainConfig, run: Run) -> dict[str, Any]:
    """What the network is built from: by the names of ours, else by all that it takes."""
    if run.network is None:
        return {"arch": config.arch, "backbone": config.backbone}
    return {"network": to_record(run.network)}


def describe(config: TrainConfig, run: Run, data: dict[str, str], state: TrainState | None) -> dict[str, Any]:
    """What a checkpoint says of itself: plain values only."""
    meta: dict[str, Any] = {
        "endauda": __version__,
        "torch": torch.__version__,
        **_network(config, run),
        "classes": run.task.classes,
        "size": config.size,
        "source": run.task.source.name,
        "target": run.task.target.name,
        "data": data,
        "config": asdict(config),
    }
    if state is not None:
        meta |= {
            "step": state.step,
            "miou": state.last_miou,
            "best_miou": state.best_miou,
            "best_step": state.best_step,
            "agreement": state.last_agreement,
            "best_agreement": state.best_agreement,
            "idle": state.idle,
            "initialised_from": state.initialised_from,
            **state.origin,
            "ramp": state.ramp,
            "empty": state.empty,
            "processes": world_size(),
        }
    plain: dict[str, Any] = _plain(meta)
    return plain
