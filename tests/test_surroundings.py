"""What the caller leaves around the process: limits, variables of launchers and libraries, disks."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from endauda_cli.doctor.disk import check_disk
from endauda_cli.terminal.ending import shortened
from tests.support.command_lines import make_workspace, shell
from tests.support.processes import running

if TYPE_CHECKING:
    from pathlib import Path

FUSE = ("fuse", "--rule", "majority", "--split", "val", "--quiet")


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("city"))


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [300_000, 500_000, 600_000, 650_000])
def test_a_small_address_space(city: Path, kilobytes: int) -> None:
    line = f"ulimit -v {kilobytes}; exec {sys.executable} -m endauda_cli {' '.join(FUSE)}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=city, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "the address space of this process is limited to" in done.stderr
    assert "ulimit -v unlimited" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("value", ["0", "many"])
def test_variables_that_numba_does_not_load_with(city: Path, value: str) -> None:
    """They are meant for other programs."""
    done = shell(*FUSE, cwd=city, NUMBA_NUM_THREADS=value, NUMBA_DISABLE_JIT="1")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "WORLD_SIZE is 2, but RANK and MASTER_ADDR and MASTER_PORT are not set; start with torchrun"),
        (
            {"RANK": "x", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
            "RANK is 'x', not a number from 0 to 1",
        ),
        (
            {"RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "99999"},
            "MASTER_PORT is '99999', not a number",
        ),
    ],
)
def test_a_launch_without_its_variables(city: Path, variables: dict[str, str], message: str) -> None:
    done = shell(*FUSE, cwd=city, WORLD_SIZE="2", **variables)
    assert done.returncode == 1
    assert message in done.stderr
    assert "a bug" not in done.stderr


@pytest.mark.slow
def test_a_port_in_use_and_a_rank_that_waits(city: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        meeting = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        done = shell(*FUSE, cwd=city, **meeting)
        assert (done.returncode, "is in use by another program" in done.stderr) == (1, True), done.stderr
    with running(sys.executable, "-m", "endauda_cli", *FUSE, cwd=city, env=meeting) as waits:
        time.sleep(15)  # for a second rank that never comes
        waits.send_signal(signal.SIGTERM)
        assert waits.wait(10) == 128 + signal.SIGTERM


def test_a_disk_that_can_only_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(
        os,
        "statvfs",
        lambda _: SimpleNamespace(f_flag=os.ST_RDONLY, f_frsize=1, f_bavail=1, f_blocks=2, f_bfree=1),
    )
    space = check_disk(tmp_path, None, None, 0)[0]
    assert (space.state, space.mend) == ("broken", None)
    assert "can only be read; copy it to another one" in space.text


def test_a_word_longer_than_any_path_is_not_echoed() -> None:
    assert len(shortened(f"--name {'x' * 100_000}: too long")) < 300
    assert shortened("a plain sentence") == "a plain sentence"
