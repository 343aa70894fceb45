"""Policies and fitted rules as files: ``policy.json``, the follow-up project's ``.npy``, ``consensus.npz``."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from endauda_cli.errors import PolicyError
from endauda_cli.files import read_text
from endauda_cli.fusion.array_files import read_arrays, read_npy, write_arrays
from endauda_cli.fusion.rules import policies
from endauda_cli.fusion.rules.consensus import BINS, COLUMNS, ROWS, Consensus
from endauda_cli.types import CONSENSUS_FILE, PolicyKind

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from endauda_cli.fusion.array_files import Expected
    from endauda_cli.fusion.rules.policies import Policy

POLICY_FILE = "policy.json"
LARGEST_SHOWN = 10**9
"""Numbers above are cut short where they are shown."""


def read_policy(path: Path, classes: Sequence[str], teachers: Sequence[str]) -> Policy:
    """A policy from JSON ``[["road", "dacs"], ...]`` (names or numbers), or from the follow-up's ``.npy``.

    Raises:
        PolicyError: if the file is absent, of another form, or names what is not there.
    """
    try:
        pairs: Any = read_npy(path).tolist() if path.suffix == ".npy" else json.loads(read_text(path))
    except FileNotFoundError as error:
        kinds = ", ".join(PolicyKind)
        raise PolicyError(f"--policy {path!s:.200}: neither one of {kinds} nor a file that exists") from error
    except OSError as error:
        raise PolicyError(
            f"{path}: cannot be read: {error.strerror or error}; name a policy file with --policy"
        ) from error
    except (ValueError, RecursionError) as error:
        raise PolicyError(f"{path}: neither JSON nor a NumPy file ({error!s:.120})") from error
    if isinstance(pairs, dict):  # as written beside fused labels
        pairs = pairs.get("pairs")
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise PolicyError(f'{path}: expected a list of pairs such as [["road", "dacs"], ...]')
    numbered = [(_index(path, c, classes, "class"), _index(path, t, teachers, "teacher")) for c, t in pairs]
    return policies.make_policy(numbered, len(classes), len(teachers), str(path))


def policy_record(policy: Policy, classes: Sequence[str], teachers: Sequence[str]) -> dict[str, Any]:
    """The policy as plain values for ``policy.json``; ``read_policy`` reads it back."""
    record: dict[str, Any] = {
        "kind": policy.kind,
        "used_labels": policy.used_labels,
        "labelled_images": list(policy.labelled),
        "pairs": [[classes[c], teachers[t]] for c, t in policy.pairs],
    }
    if policy.scores is not None:
        record["scores"] = {
            name: {classes[c]: None if np.isnan(v) else round(v, 6) for c, v in enumerate(row)}
            for name, row in zip(teachers, policy.scores, strict=True)
        }
    if policy.sureness is not None:
        record["sureness"] = dict(zip(classes, policy.sureness, strict=True))
    return record


def _index(path: Path, value: Any, names: Sequence[str], what: str) -> int:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value // 1:
        number = int(value)
        if abs(number) > LARGEST_SHOWN:
            some = "classes" if what == "class" else "teachers"
            raise PolicyError(f"{path}: {what} {_short(value)}, but {some} are 0 to {len(names) - 1}")
        return number
    if value not in names:
        raise PolicyError(f"{path}: {what} {_short(value)} is not one of {', '.join(names)}")
    return list(names).index(value)


MODEL_ARRAYS = tuple(field.name for field in fields(Consensus))


def model_arrays(model: Consensus) -> dict[str, NDArray[Any]]:
    return {name: getattr(model, name) for name in MODEL_ARRAYS}


def expected_arrays(teachers: int, classes: int) -> Expected:
    """Types and shapes of ``MODEL_ARRAYS``: compiled loops go by them."""
    return {
        "edges": (np.uint8, (teachers, classes, BINS - 1)),
        "evidence": (np.float32, (teachers, classes * classes * BINS + 1, classes)),
        "prior": (np.float32, (ROWS * COLUMNS, classes)),
        "powers": (np.float64, (teachers,)),
        "weights": (np.float64, (teachers,)),
        "iou": (np.float64, (classes,)),
        "union": (np.float64, (classes,)),
    }


def model_of(arrays: dict[str, NDArray[Any]]) -> Consensus:
    """The fitted rule of arrays as ``model_arrays`` gives them.

    Raises:
        ValueError: if one holds what is no number, or a weight is none.
    """
    for name in MODEL_ARRAYS:
        if np.isnan(arrays[name]).any():
            raise ValueError(f"{name} holds what is no number")
    weights = arrays["weights"]
    if not ((weights > 0) & (weights <= 1)).all():
        raise ValueError("weights are not all above 0 and at most 1")
    return Consensus(**{name: arrays[name] for name in MODEL_ARRAYS})


def write_consensus(
    policy_file: Path, model: Consensus, classes: Sequence[str], teachers: Sequence[str]
) -> None:
    """Write the fitted rule beside its ``policy.json``; ``read_consensus`` reads it back."""
    names = {"classes": np.array(classes), "teachers": np.array(teachers)}
    write_arrays(policy_file.with_name(CONSENSUS_FILE), model_arrays(model) | names)


def read_consensus(policy_file: Path, classes: Sequence[str], teachers: Sequence[str]) -> Consensus:
    """The fitted rule that lies beside a ``policy.json``.

    Raises:
        PolicyError: if there is none, or it was fitted to other teachers or classes.
    """
    file = policy_file.with_name(CONSENSUS_FILE)
    try:
        named = read_arrays(file, {"classes": (np.str_, (None,)), "teachers": (np.str_, (None,))})
        found = tuple(named["teachers"].tolist()), tuple(named["classes"].tolist())
        if found != (tuple(teachers), tuple(classes)):
            raise PolicyError(
                f"{file}: fitted to the teachers {' '.join(found[0])!s:.80} and {len(found[1])} classes, not to "
                f"{' '.join(teachers)} and {len(classes)}; use --policy auto"
            )
        return model_of(read_arrays(file, expected_arrays(len(teachers), len(classes))))
    except FileNotFoundError as error:
        raise PolicyError(
            f"{policy_file}: there is no {CONSENSUS_FILE} beside it, which rule consensus needs; name the "
            "policy.json of labels of that rule, or use --policy auto"
        ) from error
    except ValueError as error:
        raise PolicyError(f"{file}: cannot be read ({error}); fuse again with --policy auto") from error


def fitted_teachers(policy_file: Path) -> tuple[str, ...]:
    """Those that the rule beside a ``policy.json`` was fitted to; none if that cannot be told."""
    try:
        return tuple(
            read_arrays(policy_file.with_name(CONSENSUS_FILE), {"teachers": (np.str_, (None,))})[
                "teachers"
            ].tolist()
        )
    except (OSError, ValueError):
        return ()


def _short(value: object) -> str:
    """For a message: as it was read, but of no more than a line."""
    text = f"{value!r}"
    return text if len(text) <= 80 else f"{text[:80]}…"
