"""What ``fuse`` would do."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from endauda_cli.fusion.choosing import common_size
from endauda_cli.fusion.counting import is_line
from endauda_cli.fusion.inputs import NotKeptError, archive_record, fingerprint, inputs_digest
from endauda_cli.fusion.job import copies_among, images_of, open_teachers, prepare
from endauda_cli.fusion.journal import Journal, finished, refuse_other_set
from endauda_cli.fusion.rules import RULES
from endauda_cli.options import options_of
from endauda_cli.plan_results import Expected, PlannedWork
from endauda_cli.planning import LABEL_BYTES, NOTHING, expected
from endauda_cli.workspace import RECORD_FILE, read_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from endauda_cli.config import FuseConfig
    from endauda_cli.fusion.image import Readers
    from endauda_cli.fusion.job import Job
    from endauda_cli.plan_results import Plan
    from endauda_cli.progress import Reporter

FILES = 2
"""Per image: the labels and their preview, of nearly the same size."""


def plan_fuse(config: FuseConfig, job: Job, root: Path, report: Reporter) -> Plan:
    """Of a fusion; see ``fusion.job.fuse``.

    Raises:
        EndaudaError: as that one, before the first image.
    """
    with ExitStack() as stack:
        readers, facts = open_teachers(config, job, stack, report)
        ids = images_of(job, readers)
        refuse_other_set(job.out, job.about)
        copies = copies_among(config, readers, facts, ids, report)
        readers = {name: reader for name, reader in readers.items() if name not in copies}
        config = replace(config, teachers=tuple(readers))
        number, of = config.shard
        mine = ids[number - 1 :: of]
        done, changed, why = _state(config, job, readers, facts, ids, mine, report)
        size = common_size(readers, ids[0])
    missing = len(mine) - done - changed
    work = PlannedWork(f"labels {job.out.name} by {config.rule}", "images", done, missing, changed, why)
    left = missing + changed
    disk = _disk(job.out, size, left) if left else NOTHING
    device = job.device.partition(":")[0]
    return expected(
        root, "fuse", job.out, device, [work], disk, [(kind_of(config.rule, config.teachers), left)]
    )


def kind_of(rule: str, teachers: Sequence[str]) -> str:
    """What rates call a fusion: each teacher more is read through."""
    return f"{rule} of {len(teachers)}"


def _state(
    config: FuseConfig,
    job: Job,
    readers: Readers,
    facts: Mapping[str, Mapping[str, Any]],
    ids: list[str],
    mine: Sequence[str],
    report: Reporter,
) -> tuple[int, int, str]:
    """Images that are done, those that are changed, and why."""
    there = set(finished(job.out)) & set(mine)
    if not there:
        return 0, 0, "not fused yet"
    differences = _differences(config, job.out, readers, facts, ids)
    try:
        fusion, _ = prepare(config, job, readers, ids, report, kept_only=True)
    except NotKeptError:
        why = ", ".join(differences) or "what the rule goes by is not kept and has to be found again"
        return 0, len(there), f"{why}; an image whose labels would be the same is kept"
    whole_line = partial(is_line, fusion)
    journal = Journal(job.out, fingerprint(fusion), job.about, ids, mine, config.shard, whole_line)
    done = sum(journal.find(image, inputs_digest(fusion, image)) is not None for image in mine)
    changed = sum(
        image in there and journal.find(image, inputs_digest(fusion, image)) is None for image in mine
    )
    if changed:
        return (
            done,
            changed,
            ", ".join(differences) or "teachers, options or label files are others than then",
        )
    if done == len(mine):
        return done, 0, "every image is there, made of the same archives by the same options"
    return done, 0, f"{done:,} images are there, made of the same; the others are not"


def _differences(
    config: FuseConfig,
    out: Path,
    readers: Readers,
    facts: Mapping[str, Mapping[str, Any]],
    ids: Sequence[str],
) -> list[str]:
    """How the label set's record differs from what would be made now."""
    record = read_json(out / RECORD_FILE) or {}
    before, archives = (
        value if isinstance(value := record.get(key), dict) else {} for key in ("config", "archives")
    )
    now, known = json.loads(json.dumps(asdict(config), default=str)), options_of(type(config))
    found = []
    for key in ("rule", "teachers", "policy", *sorted(RULES[config.rule].options)):
        if key in now and key in before and before[key] != now[key]:
            name = f"--{known[key].name}" if key in known else f"--{key}"
            found.append(f"{name} {_word(now[key])} instead of {_word(before[key])}")
    for name, reader in readers.items():
        then = archives.get(name)
        if not isinstance(then, dict):
            continue
        is_now = archive_record(reader, facts[name], ids)
        if then.get("weights_sha256") != is_now.get("weights_sha256"):
            found.append(f"the weights of {name} are others than then")
        elif then.get("digest") != is_now["digest"]:
            found.append(f"the archive of {name} says something else than then")
    return found


def _word(value: Any) -> str:
    return " ".join(map(str, value))[:80] if isinstance(value, list) else str(value)[:80]


def _disk(out: Path, size: tuple[int, int], images: int) -> Expected:
    """By the bytes that the journal of this label set has, else of another one of the target."""
    for folder in (out, *sorted(path for path in out.parent.glob("*") if path != out and path.is_dir())):
        sizes = list(finished(folder).values())
        if sizes:
            each = FILES * sum(sizes) / len(sizes)
            return Expected(
                images * each, f"{each / 1e3:.3g} kB per image of {folder.name}, which has {len(sizes):,}"
            )
    each = FILES * LABEL_BYTES * size[0] * size[1]
    return Expected(
        images * each, f"a guess: {each / 1e3:.3g} kB per image of this size; no label set here to go by"
    )
