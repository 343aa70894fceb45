"""Limits that a process is given: its address space. Standard library only."""

from __future__ import annotations

import sys

from endauda_cli.errors import ConfigError

if sys.platform != "win32":
    import resource

LEAST_SPACE = 600 << 20
"""Address space below which the compiler of machine code ends the process by an abort, without a word."""


def address_space() -> int | None:
    """The limit on this process's address space (``ulimit -v``), in bytes, if there is one."""
    if sys.platform == "win32":
        return None
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def check_space() -> None:
    """Refuse to begin where the libraries could not even be loaded.

    Raises:
        ConfigError: says what the limit is.
    """
    limit = address_space()
    if limit is None:
        return
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return
    if limit - taken < LEAST_SPACE:
        raise ConfigError(
            f"the address space of this process is limited to {limit / 1e9:.1f} GB, too little to load the libraries; "
            "allow more (ulimit -v unlimited)"
        )
