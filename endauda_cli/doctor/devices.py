"""What can compute: CUDA cards, and why they cannot; the CPU's cores and memory that this process may use."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from endauda_cli.doctor.program import WHEELS, failure, import_quietly, reinstall_torch
from endauda_cli.errors import ConfigError
from endauda_cli.files import size_text
from endauda_cli.options import cores
from endauda_cli.results import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

SYSTEM = Path("/")
"""Where the system's own files lie."""
HIDING = ("", "-1", "NoDevFiles")
"""Values of ``CUDA_VISIBLE_DEVICES`` that hide every card."""


def check_devices(device: str) -> list[Finding]:
    """The CPU, the cards, and a small computation on the device that was asked for."""
    findings = [_cpu()]
    try:
        torch = import_quietly("torch")
    except Exception:  # told of among the packages
        return findings
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        usable = bool(torch.cuda.is_available())
    findings += _cards(torch) if usable else [_no_cuda(torch, [str(w.message) for w in told])]
    if sys.platform == "darwin" and torch.backends.mps.is_available():
        findings.append(Finding("mps", "note", "this Mac's GPU; --device auto does not use it"))
    findings.append(_computation(device))
    return findings


# ---------------------------------------------------------------------------- the processor


def _cpu() -> Finding:
    all_cores, usable, share = os.cpu_count() or 1, cores(), cpu_share()
    total, free = memory()
    facts: dict[str, Any] = {
        "cores": all_cores, "usable_cores": usable, "cgroup_cores": share, "memory": total, "free_memory": free,
    }  # fmt: skip
    text = f"{usable} core{'s' * (usable > 1)}" + (f" of {all_cores}" if usable < all_cores else "")
    if total is not None:
        text += f", {size_text(total)} of memory"
        text += "" if free is None else f" ({size_text(free)} free)"
    try:
        facts["threads"] = import_quietly("torch").get_num_threads()
        text += f", torch uses {facts['threads']} thread{'s' * (facts['threads'] > 1)}"
    except Exception:
        facts["threads"] = None
    if share is not None and share < usable:
        text += f"; but this container gets the time of {share:g} only, which more threads fight over"
        return Finding("cpu", "note", text, f"export OMP_NUM_THREADS={max(1, round(share))}", facts)
    return Finding("cpu", "ok", text, facts=facts)


def usable_cores() -> float:
    """How many cores' time this process gets at most."""
    share = cpu_share()
    return cores() if share is None else min(cores(), share)


def cpu_share(system: Path = SYSTEM) -> float | None:
    """How many cores' time the control group grants; ``None`` where there is no limit."""
    shares = []
    for folder in _control_groups("cpu", system):
        words = (_read(folder / "cpu.max") or "").split()
        if not words:
            words = [_read(folder / f"cpu.cfs_{kind}_us") or "" for kind in ("quota", "period")]
        quota, period = [*words, "", ""][:2]
        if quota.isdigit() and period.isdigit() and int(period):
            shares.append(int(quota) / int(period))
    return min(shares, default=None)


def memory(system: Path = SYSTEM) -> tuple[int | None, int | None]:
    """Bytes in all and free, of the machine or of what the control group grants."""
    total, free = _machine_memory(system)
    for folder in _control_groups("memory", system):
        limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
        if limit is not None and (total is None or limit < total):
            total = limit
            free = max(0, limit - used) if free is None else min(free, max(0, limit - used))
    return total, free


def _machine_memory(system: Path) -> tuple[int | None, int | None]:
    rows = dict(line.partition(":")[::2] for line in (_read(system / "proc/meminfo") or "").splitlines())
    kilobytes = [re.search(r"\d+", rows.get(key, "")) for key in ("MemTotal", "MemAvailable")]
    if kilobytes[0] is not None:
        total, free = (None if found is None else 1024 * int(found[0]) for found in kilobytes)
        return total, free
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), None
    except (AttributeError, OSError, ValueError):  # Windows
        return None, None


def _control_groups(controller: str, system: Path) -> Iterator[Path]:
    """Folders of this process's control group and of those around it, of either version."""
    mount = system / "sys/fs/cgroup"
    for line in (_read(system / "proc/self/cgroup") or "").splitlines():
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        # Inside a container the path may be that of the world outside; its own group is then the root.
        root = mount / controller if controllers else mount
        folder = root / group.lstrip("/")
        yield from (f for f in (folder, *folder.parents) if f == root or root in f.parents)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None


def _number(path: Path) -> int | None:
    text = _read(path) or ""
    return int(text) if text.isdigit() else None


# ---------------------------------------------------------------------------- cards


def _cards(torch: Any) -> list[Finding]:
    driver = _driver()
    return [_card(torch, number, driver) for number in range(torch.cuda.device_count())]


def _card(torch: Any, number: int, driver: str | None) -> Finding:
    name = f"cuda:{number}"
    try:
        about = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
    except Exception as error:
        return Finding(name, "note", f"cannot be asked: {failure(error)}", "nvidia-smi")
    capability = f"{about.major}.{about.minor}"
    text = f"{about.name}, {size_text(free)} of {size_text(total)} free, compute capability {capability}"
    facts = {
        "name": about.name, "memory": total, "free_memory": free, "compute_capability": capability,
        "driver": driver, "cuda": torch.version.cuda or torch.version.hip,
    }  # fmt: skip
    text += "" if driver is None else f", driver {driver}"
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    return Finding(name, "ok", f"{text}, torch for {built}", facts=facts)


def _no_cuda(torch: Any, warned: list[str]) -> Finding:
    """Why there is none, most telling reason first."""
    driver, built = _driver(), torch.version.cuda or torch.version.hip
    facts = {"driver": driver, "cuda": built}
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if driver is None:
        return Finding("cuda", "ok", "no NVIDIA driver on this machine; the CPU is used", facts=facts)
    if built is None:
        text = (
            f"there is an NVIDIA driver ({driver}), but torch {torch.__version__} is a build for the CPU only"
        )
        index = (
            f" --index-url {WHEELS}/cu126" if sys.platform == "win32" else ""
        )  # where PyPI has none for CUDA
        return Finding("cuda", "note", text, f"pip install --force-reinstall torch torchvision{index}", facts)
    if hidden is not None and hidden.strip() in HIDING:
        text = f"CUDA_VISIBLE_DEVICES is {hidden!r}, which hides every card"
        return Finding("cuda", "note", text, "unset CUDA_VISIBLE_DEVICES", facts)
    try:
        torch.cuda.init()
        reason = "; ".join(map(failure, map(RuntimeError, warned))) or "torch sees no card"
    except Exception as error:
        reason = failure(error)
    if "too old" in reason:
        text = (
            f"driver {driver} is too old for torch's CUDA {built}; update it, or choose a torch for an older CUDA "
            "at https://pytorch.org/get-started/locally/"
        )
        return Finding("cuda", "note", text, facts=facts)
    return Finding(
        "cuda", "note", f"there is an NVIDIA driver ({driver}), but: {reason}", "nvidia-smi", facts
    )


def _driver() -> str | None:
    """The version of NVIDIA's driver, if there is one."""
    found = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", _read(Path("/proc/driver/nvidia/version")) or "")
    if found is not None:
        return found[0]
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        asked = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return answer[0] if answer else None


# ---------------------------------------------------------------------------- does it compute


def _computation(device: str) -> Finding:
    """A convolution on the device, compared with what the CPU says."""
    name = f"--device {device}"
    try:
        torch, distributed = import_quietly("torch"), import_quietly("endauda_cli.distributed")
        chosen = distributed.pick_device(device)
        began = time.perf_counter()
        image = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
        weight = torch.linspace(-1, 1, 8 * 3 * 3 * 3).reshape(8, 3, 3, 3)
        expected = torch.nn.functional.conv2d(image, weight)
        got = torch.nn.functional.conv2d(image.to(chosen), weight.to(chosen)).cpu()
        took = time.perf_counter() - began
    except ConfigError as error:
        return Finding(name, "broken", str(error).removeprefix(f"{name}: "), "endauda doctor --device auto")
    except Exception as error:
        mend = "endauda doctor --device cpu" if device != "cpu" else reinstall_torch()
        return Finding(name, "broken", f"does not compute: {failure(error)}", mend)
    if not torch.allclose(expected, got, rtol=0.01, atol=0.05):  # cards may multiply in TF32
        off = float((expected - got).abs().max())
        return Finding(name, "broken", f"{chosen} computes wrongly: a convolution is off by {off:g}")
    return Finding(
        name,
        "ok",
        f"{chosen} computes a convolution as it should",
        facts={"device": str(chosen), "seconds": took},
    )
