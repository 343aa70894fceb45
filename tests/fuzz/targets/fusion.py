"""Policies, fitted rules, journals and records of label sets."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import numpy as np

from endauda_cli.domains import CITYSCAPES
from endauda_cli.fusion.journal import Journal, refuse_other_set
from endauda_cli.fusion.policy_files import read_consensus, read_policy, write_consensus
from endauda_cli.fusion.rank_certainty import read_delta
from endauda_cli.fusion.rules.consensus import fit
from endauda_cli.types import CONSENSUS_FILE
from endauda_cli.workspace import JOURNAL_FILE, RECORD_FILE, RUN_FILE, Workspace, check_label_set, next_order
from tests.fuzz.target import Target

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

CLASSES, TEACHERS = ("road", "car", "sky"), ("dacs", "crst")
ABOUT = {"source": "gta5", "target": "cityscapes", "split": "train"}
HEAD = {"fingerprint": "f", **ABOUT}


def read_policy_file(name: str) -> Callable[[bytes, Path], None]:
    def read(data: bytes, folder: Path) -> None:
        path = folder / name
        path.write_bytes(data)
        owners = read_policy(path, CLASSES, TEACHERS).owners
        assert len(owners) == len(CLASSES) and set(owners) <= {0, 1}

    return read


def read_delta_file(name: str) -> Callable[[bytes, Path], None]:
    def read(data: bytes, folder: Path) -> None:
        path = folder / name
        path.write_bytes(data)
        assert len(read_delta(path, 3)) == 3

    return read


def read_fitted(data: bytes, folder: Path) -> None:
    (folder / CONSENSUS_FILE).write_bytes(data)
    model = read_consensus(folder / "policy.json", CLASSES, TEACHERS)
    assert model.evidence.shape == (2, 37, 3) and model.edges.shape == (2, 3, 3)


def read_journal(data: bytes, folder: Path) -> None:
    """Nothing outside the label set goes, whatever the journal says."""
    labels, precious = folder / "labels", folder / "precious.png"
    labels.mkdir()
    precious.touch()
    (labels / JOURNAL_FILE).write_bytes(data)
    try:
        refuse_other_set(labels, ABOUT)
        journal = Journal(labels, "f", ABOUT, ("a", "b"), ("a", "b"))
        journal.find("a", "i")
        journal.begin()
    finally:
        assert precious.exists()


def read_record(data: bytes, folder: Path) -> None:
    workspace = Workspace(folder)
    labels, run = workspace.labels(CITYSCAPES, "it"), workspace.run("gta5", "it")
    for path in (labels / RECORD_FILE, run / RUN_FILE, run / "last.pt"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    assert workspace.label_sets(CITYSCAPES, "gta5") in ([], ["it"])
    assert workspace.newest_checkpoint("gta5") == run / "last.pt"
    assert next_order(labels.with_name("new"), RECORD_FILE) > 0
    check_label_set(labels, "gta5", CITYSCAPES.classes)


def policies() -> Sequence[bytes]:
    pairs = [["road", "dacs"], ["car", 1], [2, 0]]
    return [json.dumps(value).encode() for value in (pairs, {"kind": "auto", "pairs": pairs})]


def deltas() -> Sequence[bytes]:
    return [b"[1, 2.5, 90]", b'{"delta": [1, 2, 3], "images": 3}']


def arrays() -> Sequence[bytes]:
    return [_saved(np.array([[0, 1], [1, 0], [2, 1]])), _saved(np.array([1.0, 5, 80]))]


def fitted() -> Sequence[bytes]:
    import tempfile
    from pathlib import Path

    labels = np.random.default_rng(0).integers(0, 3, (2, 300)).astype(np.uint8)
    certainties = np.random.default_rng(1).integers(0, 100, (2, 300, 3)).astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "policy.json"
        write_consensus(path, fit(labels, certainties, 3), CLASSES, TEACHERS)
        return [path.with_name(CONSENSUS_FILE).read_bytes()]


def journals() -> Sequence[bytes]:
    lines = [{"id": image, "inputs": "i", "bytes": 3} for image in ("a", "b", "ulm/0003", "../precious")]
    return [
        "".join(json.dumps(line) + "\n" for line in (head, *some)).encode()
        for head in (HEAD, {**HEAD, "fingerprint": "old"})
        for some in (lines, lines[:3])
    ]


def records() -> Sequence[bytes]:
    classes = [{"name": name} for name in CITYSCAPES.classes]
    record = {**ABOUT, "classes": classes, "order": 17, "rule": "plf", "teachers": ["dacs"]}
    return [json.dumps(record).encode(), json.dumps(record | {"split": "val", "order": 10**30}).encode()]


def _saved(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


TARGETS = (
    Target("policy-json", read_policy_file("policy.json"), policies),
    Target("policy-npy", read_policy_file("policy.npy"), arrays),
    Target("delta-json", read_delta_file("delta.json"), deltas),
    Target("delta-npy", read_delta_file("delta.npy"), arrays),
    Target("consensus-npz", read_fitted, fitted),
    Target("journal", read_journal, journals),
    Target("fusion-record", read_record, records),
)
