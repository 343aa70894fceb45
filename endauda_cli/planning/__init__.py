"""Engine: what a command would do, and what that is expected to take; nothing is written.

Each plan goes through the checks that its command makes before it works, by the same functions, and raises what these
raise. What only the work itself can find (a damaged image in the middle, another process that writes there) is found
by the work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from endauda_cli.files import free_bytes
from endauda_cli.plan_results import Expected, Plan
from endauda_cli.rates import find_rate, spent

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from endauda_cli.plan_results import PlannedWork

UNKNOWN = Expected(None, "unknown: no rate yet; 'endauda doctor' measures this machine")
NOTHING = Expected(0, "nothing to do")
LABEL_BYTES = 128_000 / (1024 * 2048)
"""Of a label PNG, per pixel, where the workspace has none to go by: measured on fused labels, see ``labels``."""


def expected(
    root: Path,
    command: str,
    out: Path,
    device: str,
    work: Sequence[PlannedWork],
    disk: Expected,
    parts: Sequence[tuple[str, int]],
) -> Plan:
    """A plan with the time and memory that the workspace's own rates let expect.

    The real line starts, opens and checks what this one did; what that took until here is known.

    Args:
        root: the workspace.
        command: its name.
        out: where it writes.
        device: where it computes, such as ``cpu``.
        work: what there is to do.
        disk: what it takes there.
        parts: how many images there are of each kind of work, by the name that rates call it.
    """
    plan = Plan(command, out, device, tuple(work), disk, free_bytes(out), UNKNOWN, UNKNOWN, UNKNOWN)
    parts = [(what, images) for what, images in parts if images]
    if not parts:
        return plan.with_(disk=NOTHING, memory=NOTHING, time=NOTHING, cpu=NOTHING)
    rates = [(find_rate(root, command, what, device), what, images) for what, images in parts]
    known = [(rate, what, images) for rate, what, images in rates if rate is not None]
    if len(known) < len(rates):
        return plan
    seconds, cpu = spent()
    told = f"{seconds:.2g} s to start; " + "; ".join(
        f"{rate.images_per_second:.3g} images/s{'' if rate.what == what else f' of {rate.what}'} over "
        f"{rate.images:,} images here, {rate.setup:.2g} s before them"
        for rate, what, _ in known
    )
    peak = max(rate.peak_bytes for rate, _, _ in known)
    return plan.with_(
        memory=Expected(peak, f"the most that {command} had here") if peak else UNKNOWN,
        time=Expected(seconds + sum(rate.time_of(images) for rate, _, images in known), told),
        cpu=Expected(cpu + sum(rate.cpu_of(images) for rate, _, images in known), told),
    )
