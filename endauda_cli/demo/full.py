"""The demo with teachers of the published methods: each adapted from noon to dusk, from a network of noon alone.

``RUNS`` says all that they differ in from the demo's recipe; ``benchmarks/methods.py`` measures them by the same table.
The methods are those of ``train --method``; docs/methods.md has their published constants, which are of larger networks
and a hundred times as many steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from endauda_cli.config import TrainConfig
from endauda_cli.demo.parts import Demo, Ensemble
from endauda_cli.demo.story import CROP, IN_THE_FOLDER, NETWORK_SIZE, RECIPE, STUDENT, train_run
from endauda_cli.options import options_of
from endauda_cli.teachers.starting import named
from endauda_cli.training.methods import METHODS, Material
from endauda_cli.training.starting import fitting
from endauda_cli.types import FusionRule, Method

if TYPE_CHECKING:
    from collections.abc import Mapping

    from endauda_cli.students import Network

BASE = replace(RECIPE, class_balance=False, often_balance=False, hard_percentile=0)
SOURCE, TWO_HEADS = "source only", "source only, two heads"


@dataclass(frozen=True)
class Adapted:
    """A run.

    Attributes:
        method: of ``train``.
        changes: of the recipe.
        after: the run whose weights it begins with; ``None`` is random ones.
        network: of ``train --network``; ``None`` is the demo's.
    """

    method: Method
    changes: Mapping[str, Any] = field(default_factory=dict)
    after: str | None = SOURCE
    network: str | None = None


_ROUNDS = {
    "steps": 282,
    "learning_rate": 0.04,
    "portion": 0.1,
    "power": 0.9,
    "freeze_norms": False,
    "mirror": False,
    "label_scale": 1.0,
    "source_portion": 0.25,
    "source_portion_most": 0.25,
}
"""Of self-training: three rounds of 94 steps. One image of five is of the source, as published, so that batch norms see
the target: from its statistics alone a network of noon gains three points."""
RUNS = {
    SOURCE: Adapted(Method.SOURCE, {"steps": 280}, after=None),
    TWO_HEADS: Adapted(Method.SOURCE, {"steps": 280}, after=None, network="mrnet-tiny"),
    "dacs": Adapted(Method.DACS, {"steps": 140, "learning_rate": 0.02, "nesterov": False, "sure": 0.9}),
    "cbst": Adapted(Method.CBST, _ROUNDS),
    "crst": Adapted(Method.CRST, {**_ROUNDS, "regulariser_weight": 0.005}),
    "mrnet": Adapted(
        Method.MRNET,
        {
            "steps": 280,
            "learning_rate": 0.05,
            "memory_from": 0,
            "deceive_auxiliary": 0.0,  # a step with discriminators takes five times as long
            "deceive_main": 0.0,
        },
        after=TWO_HEADS,
        network="mrnet-tiny",
    ),
}
"""In the order in which they are trained."""
TEACHERS = tuple(name for name, run in RUNS.items() if run.method != Method.SOURCE)


def recipe(run: Adapted) -> TrainConfig:
    """What a run is trained by, but for the seed."""
    return replace(BASE, method=run.method, **run.changes)


def command_line(run: Adapted) -> list[str]:
    """Words after ``endauda train`` that train by a run's recipe, in a folder of the demo's.

    Left out is what the method, and the folder's ``endauda.toml``, say anyway; the weights that the run begins with are
    the caller's to name.
    """
    wanted, known = recipe(run), options_of(TrainConfig)
    anyway = {name: getattr(TrainConfig(), name) for name in known}
    anyway |= {"balance_area": CROP[0] * CROP[1] // 32, **METHODS[run.method].defaults}
    anyway |= {name: getattr(STUDENT, name) for name in IN_THE_FOLDER}
    words = [] if run.network is None else ["--network", run.network]
    for name, option in known.items():
        value = getattr(wanted, name)
        if value != anyway[name]:
            words += option.line(_NOTHING[name] if value is None else value)
    return words


_NOTHING = {"scale_jitter": (1.0, 1.0), "source_size": NETWORK_SIZE}
"""How to say that what a method does by default is not done."""


def train_adapted(demo: Demo) -> dict[str, Path]:
    """The teachers' checkpoints, and before them those of the networks that they begin with."""
    made: dict[str, Path] = {}
    for name, run in RUNS.items():
        config = recipe(run)
        kind = METHODS[run.method]
        roots = (demo.workspace.data_roots(demo.task.source), demo.workspace.data_roots(demo.task.target))
        streams, _ = kind.streams(Material(demo.task, demo.workspace, *roots))
        network = None if run.network is None else _network(demo, run.network)
        if network is not None:
            network = fitting(network, config, len(demo.task.classes))
        init = None if run.after is None else made[run.after]
        folder = f"teacher-{name}" if name in TEACHERS else name.replace(", ", "-").replace(" ", "-")
        made[name] = train_run(
            demo, folder, config, kind.narrowed(streams, replace(config, seed=demo.seed)), init, network
        )
    return made


def _network(demo: Demo, name: str) -> Network:
    start = named(name, None, demo.task.classes, Path)
    assert start is not None
    return start.network


ADAPTED = Ensemble(
    TEACHERS,
    train_adapted,
    "each by a published method from a network of noon alone",
    "Each teacher was adapted from noon to dusk by a published method (DACS, CBST, CRST, R-MRNet), from a network that "
    "had learnt noon alone.",
    FusionRule.CONSENSUS,
    start=SOURCE,
    full=True,
)
"""The teachers of ``--full``."""
