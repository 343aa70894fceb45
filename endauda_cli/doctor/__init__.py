"""Engine: what works on this machine and in this workspace, and what the next step lacks.

=============== =========================================================
``program``     the packages: there, new enough, fitting, working
``devices``     what computes, and why a card does not
``speed``       codecs, measured
``place``       which workspace, source and target, and who says so
``steps``       images, archives, labels, students, scores
``disk``        room, and what it has to hold
=============== =========================================================

Whatever is broken is a finding. So nothing here imports torch, NumPy or h5py before it is asked to, nor anything of
endauda that does; and nothing writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from endauda_cli.config import ArchiveOptions
from endauda_cli.doctor.devices import check_devices
from endauda_cli.doctor.disk import check_disk
from endauda_cli.doctor.place import Asked, find_place
from endauda_cli.doctor.program import check_program
from endauda_cli.doctor.speed import CodecSpeed, measure_codecs, time_of
from endauda_cli.doctor.steps import Steps, look_at_steps
from endauda_cli.results import CheckupResult, Finding, FindingGroup
from endauda_cli.types import Codec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from endauda_cli.progress import Reporter

__all__ = ["Asked", "check_up"]


def check_up(asked: Asked, device: str, measure: bool, report: Reporter) -> CheckupResult:
    """Look at everything, quick things first.

    Args:
        asked: which workspace, source and target.
        device: ``auto`` or torch's name; it has to compute something.
        measure: whether to measure the codecs, which takes seconds.
        report: told of progress.
    """
    place, found = find_place(asked)
    program = check_program(report)
    devices = check_devices(device)
    steps = Steps((), None, 0, None)
    if place is not None and place.task is not None:
        steps = look_at_steps(place, place.task, report)
    speeds: dict[str, CodecSpeed] = {}
    codecs: list[Finding] = []
    if measure:
        speeds, codecs = measure_codecs(report)
        codecs += time_of(steps.work, speeds) if steps.work is not None else []
    disk: list[Finding] = []
    if place is not None:
        default = speeds.get(str(Codec(ArchiveOptions().codec).of_planes))
        smaller = steps.smaller or (default.smaller if default is not None else None)
        disk = check_disk(place.workspace.root, steps.work, smaller, steps.archives)
    groups = (
        FindingGroup("Program", tuple(program)),
        FindingGroup("Devices", tuple(devices)),
        FindingGroup("Codecs (MB of certainties per second and core)", tuple(codecs)),
        FindingGroup("Disk", tuple(disk)),
        FindingGroup("Workspace", tuple(found)),
        FindingGroup("Steps", steps.findings),
    )
    everything = [finding for group in groups for finding in group.findings]
    return CheckupResult(
        usable=all(finding.state != "broken" for finding in everything),
        groups=tuple(group for group in groups if group.findings),
        next=_next(everything),
    )


def _next(findings: Iterable[Finding]) -> str | None:
    """What mends the first thing that everything needs, else the first one that a step needs."""
    findings = list(findings)
    urgent = [f for f in findings if f.state == "broken"] or [f for f in findings if f.state == "missing"]
    return next((f.mend for f in urgent if f.mend is not None), None)
