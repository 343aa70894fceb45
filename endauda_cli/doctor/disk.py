"""The disk of the workspace: whether it can be written, what is free, and what archives would take."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from endauda_cli.files import free_bytes, size_text
from endauda_cli.results import Finding

if TYPE_CHECKING:
    from endauda_cli.doctor.speed import Workload

MOUNTS = Path("/proc/self/mountinfo")
SHARES = re.compile(
    r"nfs\d?|cifs|smb\w*|afs|9p|ceph|lustre|beegfs\w*|gpfs|glusterfs|fuse\.(sshfs|ceph\w*|gluster\w*|s3fs|rclone)"
)
"""File systems that several machines share, where locks are a matter of configuration."""
USUAL_TEACHERS = 4
"""Archives that room is reckoned for where there are fewer: as many as the paper fuses."""


def check_disk(
    folder: Path, work: Workload | None, smaller: float | None, archives: int, mounts: Path = MOUNTS
) -> list[Finding]:
    """Looks at the disk of a folder.

    Args:
        folder: the workspace.
        work: the target's images, if there are any.
        smaller: raw bytes per byte of an archive, if that was measured.
        archives: how many there are.
        mounts: the system's list of mounted file systems.
    """
    kind = file_system(folder, mounts)
    findings = [_space(folder, kind)]
    if kind is not None and SHARES.fullmatch(kind):
        text = f"a network share ({kind}): locks may not hold there, so never let two processes write under one --shard"
        findings.append(Finding("network", "note", text, facts={"file_system": kind}))
    if work is not None and smaller is not None:
        findings.append(_room(folder, work, smaller, archives))
    return findings


def _space(folder: Path, kind: str | None) -> Finding:
    facts: dict[str, Any] = {"file_system": kind}
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        return Finding("space", "note", f"{folder}: its disk cannot be asked ({error.strerror})", facts=facts)
    facts |= {"free": usage.free, "total": usage.total}
    text = f"{size_text(usage.free)} free of {size_text(usage.total)}"
    if usage.total == 0:  # some network shares say so
        text = "its disk does not say how large it is"
    text += "" if kind is None else f" ({kind})"
    if not os.access(folder, os.W_OK | os.X_OK):
        why, mend = _cannot_be_written(folder)
        return Finding("space", "broken", f"{folder} {why}; {text}", mend, facts)
    return Finding("space", "ok", f"writable, {text}", facts=facts)


def _cannot_be_written(folder: Path) -> tuple[str, str | None]:
    """Why, and the line that helps if this user can help it."""
    with suppress(OSError, AttributeError):  # Windows has neither
        if os.statvfs(folder).f_flag & os.ST_RDONLY:
            why = (
                "lies on a disk that can only be read; copy it to another one, or have it mounted for writing"
            )
            return why, None
        if os.geteuid() not in (0, folder.stat().st_uid):
            return "cannot be written to by this user; ask its owner, or work in a folder of your own", None
    return "cannot be written to by this user", f"chmod u+rwx {shlex.quote(str(folder))}"


def _room(folder: Path, work: Workload, smaller: float, archives: int) -> Finding:
    each, count = work.raw_bytes / smaller, max(archives, USUAL_TEACHERS)
    facts = {"bytes_per_teacher": round(each), "teachers": count, "times_smaller": smaller}
    text = (
        f"estimated {size_text(each)} per teacher's archive of {work.images} images, {size_text(count * each)} for "
        f"{count} teachers"
    )
    free = free_bytes(folder)
    missing = max(0, count - archives) * each
    if free is not None and missing > free:
        text += f"; but {size_text(free)} are free, so clear some, or use a workspace on a larger disk"
        return Finding("archives", "note", text, facts=facts)
    return Finding("archives", "ok", text, facts=facts)


def file_system(folder: Path, mounts: Path) -> str | None:
    """The kind of file system that a folder lies on; ``None`` where the system does not say."""
    try:
        lines = mounts.read_text(encoding="utf-8").splitlines()
        place = folder.resolve()
    except (OSError, UnicodeDecodeError):
        return None
    best: tuple[int, str] | None = None
    for line in lines:
        fields, _, about = line.partition(" - ")
        if len(fields.split()) < 5 or not about.split():
            continue
        point = Path(re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), fields.split()[4]))
        # Of two mounts at one point the later one is seen.
        if (place == point or point in place.parents) and (best is None or len(point.parts) >= best[0]):
            best = len(point.parts), about.split()[0]
    return None if best is None else best[1]
