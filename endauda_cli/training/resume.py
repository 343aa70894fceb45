"""How a run begins: from nothing, from weights, or where it was stopped; never on top of another run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from endauda_cli import __version__, checkpoint
from endauda_cli.distributed import world_size
from endauda_cli.errors import CheckpointError, ConfigError, DataError
from endauda_cli.models import build_student, load_checkpoint, read_state_dict
from endauda_cli.progress import Note, Reporter
from endauda_cli.training.methods import MAIN
from endauda_cli.training.run import make_state
from endauda_cli.workspace import LAST_FILE, RUN_FILE, write_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from endauda_cli.config import TrainConfig
    from endauda_cli.models import Student
    from endauda_cli.training.data import Stream
    from endauda_cli.training.run import Run, TrainState

VOLATILE = ("save_every", "validate_every", "workers")
"""Options that may differ when a run goes on: they do not change what is learnt."""
FLAGS = {"learning_rate": "lr"}
"""Options whose flag is not called as the field of ``TrainConfig``."""


def check(config: TrainConfig, streams: Mapping[str, Stream]) -> None:
    """Refuse what cannot be trained on.

    Raises:
        DataError, ConfigError: say what is missing or does not divide.
    """
    if not streams[MAIN].examples:
        raise DataError("there is no image to train on")
    if config.batch_size % world_size():
        raise ConfigError(f"--batch-size {config.batch_size} does not divide over {world_size()} processes")
    if config.batch_size // world_size() < 2:
        raise ConfigError(
            f"--batch-size {config.batch_size}: every one of {world_size()} processes needs 2 or more"
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


def data_record(streams: Mapping[str, Stream]) -> dict[str, str]:
    """What a run learns from. The digest takes names and sizes: a changed label PNG nearly always has another
    size, and reading all of them at each start would take minutes on a network share."""
    digest = hashlib.sha256()
    for stream in streams.values():
        digest.update(stream.domain.name.encode())
        for example in stream.examples:
            sizes = example.image.stat().st_size, (example.label or example.image).stat().st_size
            digest.update(f"{example.id}\0{sizes}\n".encode())
    first = streams[MAIN].examples[0]
    return {"labels": str((first.label or first.image).parent), "digest": digest.hexdigest()[:32]}


def start(config: TrainConfig, run: Run, data: dict[str, str], report: Reporter) -> TrainState:
    """A fresh state, or that of ``last.pt`` if the folder holds a run with these options.

    Raises:
        EndaudaError: if the folder holds another run, or weights do not fit.
    """
    torch.manual_seed(config.seed)
    num_classes = len(run.task.classes)
    student = build_student(config.arch, config.backbone, num_classes)
    last = run.out / LAST_FILE
    content = checkpoint.load(last) if last.exists() else None
    if content is None:
        if run.resume:
            raise CheckpointError(f"{last}: no such checkpoint to resume; run without --resume to start")
        if run.init is not None:
            initialise(student, run.init)
            data |= {"init": str(run.init), "init_sha256": checkpoint.sha256(run.init)}
        else:
            report(
                Note("no --init: the network starts from random weights, not from a source model", "warning")
            )
        told = json.dumps(describe(config, run, data, None), indent=1, default=str)
        write_text(run.out / RUN_FILE, told + "\n")
    else:
        _refuse_other_run(config, run, data, content["meta"])
        data |= content["meta"]["data"]
        load_checkpoint(student, last)
    state = make_state(student, config, num_classes, run.device)
    state.initialised_from = str(run.init) if run.init is not None else None
    if content is not None:
        meta = content["meta"]
        state.optimizer.load_state_dict(content["optimizer"])
        state.loss.load_state_dict(content["loss"])
        state.method.load_state_dict(content.get("method", {}))
        state.step, state.best_miou, state.best_step = meta["step"], meta["best_miou"], meta["best_step"]
        state.last_miou, state.initialised_from = meta["miou"], meta["initialised_from"]
        report(Note(f"{run.out} goes on at step {state.step} of {config.steps}"))
    return state


def initialise(student: Student, path: Path) -> None:
    """Start from a checkpoint of the whole network, or of its backbone alone (ImageNet).

    Raises:
        CheckpointError: if it is neither.
    """
    whole = set(student.state_dict())
    backbone = {key.removeprefix("backbone.") for key in whole if key.startswith("backbone.")}
    found = set(read_state_dict(path))
    load_checkpoint(student.backbone if found & backbone and not found & whole else student, path)


def _refuse_other_run(config: TrainConfig, run: Run, data: dict[str, str], meta: dict[str, Any]) -> None:
    holds, other = f"{run.out} holds a run", "; name another with --name, or delete that folder"
    before, now = meta["config"], _plain(asdict(config))
    for key in now:
        if key not in VOLATILE and before.get(key) != now[key]:
            flag = FLAGS.get(key, key.replace("_", "-"))
            raise ConfigError(f"{holds} with --{flag} {before.get(key)}, not {now[key]}{other}")
    for key, value in (("classes", list(run.task.classes)), ("target", run.task.target.name)):
        if meta[key] != value:
            raise ConfigError(f"{holds} with {key} {meta[key]}, not {value}{other}")
    if meta["data"]["digest"] != data["digest"]:
        raise ConfigError(
            f"{holds} on other images or labels ({meta['data']['labels']}, now {data['labels']}, or its "
            f"files have changed){other}"
        )
    if run.init is not None and checkpoint.sha256(run.init) != meta["data"].get("init_sha256"):
        raise ConfigError(f"{holds} from {meta['data'].get('init', 'random weights')}, not {run.init}{other}")


def _plain(value: Any) -> Any:
    """Tuples as lists and enums as strings, as JSON has them."""
    return json.loads(json.dumps(value))


def describe(config: TrainConfig, run: Run, data: dict[str, str], state: TrainState | None) -> dict[str, Any]:
    """What a checkpoint says of itself: plain values only."""
    meta: dict[str, Any] = {
        "endauda": __version__,
        "torch": torch.__version__,
        "arch": config.arch,
        "backbone": config.backbone,
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
            "initialised_from": state.initialised_from,
        }
    plain: dict[str, Any] = _plain(meta)
    return plain
