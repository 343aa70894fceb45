"""Policies and fitted rules as files: ``policy.json``, the follow-up project's ``.npy``, ``consensus.npz``."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from endauda_cli.errors import DataError, PolicyError
from endauda_cli.files import cannot_write, replacing
from endauda_cli.fusion.rules import policies
from endauda_cli.fusion.rules.consensus import Consensus
from endauda_cli.types import CONSENSUS_FILE, PolicyKind

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from endauda_cli.fusion.rules.policies import Policy

POLICY_FILE = "policy.json"


def read_policy(path: Path, classes: Sequence[str], teachers: Sequence[str]) -> Policy:
    """A policy from JSON ``[["road", "dacs"], ...]`` (names or numbers), or from the follow-up's ``.npy``.

    Raises:
        PolicyError: if the file is absent, of another form, or names what is not there.
    """
    try:
        if path.suffix == ".npy":
            pairs: Any = np.load(path, allow_pickle=False).tolist()
        else:
            pairs = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        kinds = ", ".join(PolicyKind)
        raise PolicyError(f"--policy {path}: neither one of {kinds} nor a file that exists") from error
    except (OSError, ValueError, EOFError) as error:
        raise PolicyError(f"{path}: neither JSON nor a NumPy file ({error})") from error
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
    if isinstance(value, (int, float)) and not isinstance(value, bool) and float(value).is_integer():
        return int(value)
    if value not in names:
        raise PolicyError(f"{path}: {what} {value!r} is not one of {', '.join(names)}")
    return list(names).index(value)


MODEL_ARRAYS = tuple(field.name for field in fields(Consensus))


def model_arrays(model: Consensus) -> dict[str, NDArray[Any]]:
    return {name: getattr(model, name) for name in MODEL_ARRAYS}


def read_arrays(file: Path) -> dict[str, NDArray[Any]]:
    # Through memory: NumPy leaves a file open that turns out to be cut short.
    with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as stored:
        return dict(stored)


def write_arrays(file: Path, arrays: dict[str, NDArray[Any]]) -> None:
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    try:
        with replacing(file) as temporary:
            temporary.write_bytes(content.getvalue())
    except OSError as error:
        raise DataError(f"{file}: {cannot_write(error)}") from error


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
        arrays = read_arrays(file)
        found = tuple(arrays["teachers"].tolist()), tuple(arrays["classes"].tolist())
        model = Consensus(**{name: arrays[name] for name in MODEL_ARRAYS})
    except FileNotFoundError as error:
        raise PolicyError(
            f"{policy_file}: there is no {CONSENSUS_FILE} beside it, which rule consensus needs; name the "
            "policy.json of labels of that rule, or use --policy auto"
        ) from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise PolicyError(f"{file}: cannot be read ({error}); fuse again with --policy auto") from error
    if found != (tuple(teachers), tuple(classes)):
        raise PolicyError(
            f"{file}: fitted to the teachers {' '.join(found[0])} and {len(found[1])} classes, not to "
            f"{' '.join(teachers)} and {len(classes)}; use --policy auto"
        )
    return model
