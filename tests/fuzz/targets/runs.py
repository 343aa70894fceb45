"""What a run leaves behind, and what it says of itself."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from endauda_cli.workspace import BEST_FILE, METRICS_FILE, ORDER, RUN_FILE, Workspace, next_order
from tests.fuzz.target import Target

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def read_metrics(data: bytes, folder: Path) -> None:
    """What is kept is lines of ours, on steps before the one that it goes on from."""
    from endauda_cli.training.records import lines_before

    path = folder / METRICS_FILE
    path.write_bytes(data)
    for line in lines_before(path, 12):
        assert 0 <= json.loads(line)["step"] < 12


def metrics_seeds() -> Sequence[bytes]:
    lines = b'{"step": 0, "loss": 1.5}\n{"step": 10, "val_miou": null}\n{"step": 11}\n'
    return [lines, lines[:30], b"[1]\n3\nnull\n" + lines, b'{"step": 1e999}\n{"step": NaN}\n{"step": "1"}\n']


def read_meta(data: bytes, folder: Path) -> None:
    """A checkpoint's words: refused, or fit for all that is done with them."""
    from endauda_cli.training.resume import check_meta

    try:
        meta = json.loads(data)
    except (ValueError, RecursionError):
        return
    good = check_meta(folder / "last.pt", meta)
    assert good["step"] >= 0
    assert isinstance(good["data"]["digest"], str)
    assert f"{good['best_miou'] or 0:.2f}"


def meta_seeds() -> Sequence[bytes]:
    meta = {
        "config": {"steps": 12}, "classes": ["road"], "target": "t", "data": {"labels": "x", "digest": "y"},
        "step": 3, "miou": None, "best_miou": 3.5, "best_step": 2, "initialised_from": None,
    }  # fmt: skip
    values: tuple[object, ...] = (None, [], -1, 1e300, 10**400, {"a": 1}, True)
    others = [meta | {key: other} for key in meta for other in values]
    return [json.dumps(one).encode() for one in (meta, *others)]


def read_record(data: bytes, folder: Path) -> None:
    """``config.json``: whatever it holds, the run is found and gets a number that fits."""
    runs = folder / "runs" / "s"
    (runs / "a").mkdir(parents=True, exist_ok=True)
    (runs / "a" / RUN_FILE).write_bytes(data)
    (runs / "a" / BEST_FILE).touch()
    assert Workspace(folder).runs("s") == ["a"]
    assert 0 < next_order(runs / "a", RUN_FILE) <= 1 << 62


def record_seeds() -> Sequence[bytes]:
    return [json.dumps({ORDER: value}).encode() for value in (1, -1, 1 << 62, 1.5, None, "1", [1])] + [
        b"[" * 2000
    ]


TARGETS = (
    Target("run-metrics", read_metrics, metrics_seeds),
    Target("run-meta", read_meta, meta_seeds),
    Target("run-record", read_record, record_seeds),
)
