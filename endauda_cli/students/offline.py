"""Libraries at work without a network: whatever a folder says, nothing but ``download-weights`` opens a connection."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING, Any

from endauda_cli.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator

_SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY")
_CALLS = (
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "urllib.Request",
    "http.client.connect",
)
"""What Python's audit calls the ways to another machine."""

_closed = 0
_watching = False


@contextmanager
def offline() -> Iterator[None]:
    """No connections, no remarks on stdout or stderr (whose words would be the folder's) while a library opens one.

    Raises:
        CheckpointError: where the library tries to connect.
    """
    global _closed, _watching
    for name in _SWITCHES:  # read when the library is imported first
        os.environ[name] = "1"
    constants: Any = sys.modules.get("huggingface_hub.constants")
    if constants is not None:
        constants.HF_HUB_OFFLINE = True
    if not _watching:
        sys.addaudithook(_refuse_connections)
        _watching = True
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    _closed += 1
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):  # stdout is for the command's result
            warnings.simplefilter("ignore")
            yield
    finally:
        _closed -= 1
        logging.disable(before)


def _refuse_connections(event: str, _arguments: tuple[Any, ...]) -> None:
    if _closed and event in _CALLS:
        raise CheckpointError(
            "it names something that is not in the folder and would have to be downloaded; nothing was"
        )
