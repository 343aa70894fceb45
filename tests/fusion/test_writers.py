"""Several processes on one label set: parts of one recipe side by side, and never two recipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from endauda_cli import files
from endauda_cli.errors import ConfigError
from endauda_cli.fusion.writers import only_recipe
from endauda_cli.progress import silent
from tests.support import ROOT
from tests.support.command_lines import (
    CITIES,
    TRAIN,
    files_of,
    make_archive,
    make_workspace,
    refused,
    result_of,
    succeed,
)
from tests.support.processes import running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SET = CITIES / "gtFine/it"
SLOWLY = """
import sys, time
from endauda_cli.cli import main
from endauda_cli.fusion import job
made = job.fuse_one
job.fuse_one = lambda *of: (time.sleep(float(sys.argv[1])), made(*of))[1]
sys.exit(main(sys.argv[2:]))
"""
WRITE_SLOWLY = """
import sys, time
import numpy as np
from endauda_cli.archive import CertaintyWriter
from endauda_cli.domains import CITYSCAPES_CLASSES
from tests.support.command_lines import TRAIN, opinion, scene, seed_of
with CertaintyWriter(sys.argv[1], classes=CITYSCAPES_CLASSES, shard_size=2) as writer:
    for image in TRAIN:
        label, certainty = opinion("dacs", scene(seed_of(image)), seed_of(image))
        writer.write(image, label, np.ascontiguousarray(certainty.transpose(2, 0, 1)))
        print(image, flush=True)
        if image != TRAIN[-1]:
            sys.stdin.readline()
"""


@pytest.fixture
def city(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(make_workspace(tmp_path))
    return tmp_path


@pytest.fixture(params=["system", "lease"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """``lease``: as on a share without locks."""
    if request.param == "lease":
        monkeypatch.setattr(files, "lock_file", lambda *of: False)
    return str(request.param)


def until(found: object) -> None:
    assert callable(found)
    deadline = time.monotonic() + 60
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def fusing_slowly(city: Path, kind: str, *words: str, pause: float = 1) -> Iterator[subprocess.Popen[str]]:
    """A process that fuses the set ``it``, from the moment on at which it holds the set."""
    program = SLOWLY
    if kind == "lease":
        program = f"from endauda_cli import files; files.lock_file = lambda descriptor: False\n{program}"
    line = [sys.executable, "-c", program, str(pause), "fuse", "--name", "it", "--quiet", "--json", *words]
    with running(*line, cwd=city) as process:
        until(lambda: list((city / SET).glob(".fuse-*.lock")) and (city / SET / "fusion.jsonl").exists())
        yield process


def labels(city: Path, name: str = "it") -> dict[str, bytes]:
    found = files_of(city / CITIES / "gtFine" / name)
    return {key: data for key, data in found.items() if "leftImg8bit" in key}


# ---------------------------------------------------------------------------- in one process


def test_one_recipe_at_a_time(tmp_path: Path, kind: str) -> None:
    me = rf"process {os.getpid()} on {os.uname().nodename} is fusing labels with other options"
    with only_recipe(tmp_path / "it", "one", (1, 2), silent):
        with (
            only_recipe(tmp_path / "it", "one", (2, 2), silent),
            only_recipe(tmp_path / "it", "one", (1, 1), silent),
        ):
            pass
        with pytest.raises(ConfigError, match=me), only_recipe(tmp_path / "it", "two", (1, 2), silent):
            pass
        with only_recipe(tmp_path / "other", "two", (1, 1), silent):
            pass
    with only_recipe(tmp_path / "it", "two", (1, 1), silent):
        pass
    assert not list((tmp_path / "it").iterdir())


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "it").write_text("")
    with pytest.raises(ConfigError, match="a file stands where a folder is needed"):
        with only_recipe(tmp_path / "it", "one", (1, 1), silent):
            pass


# ---------------------------------------------------------------------------- in several


@pytest.mark.slow
def test_other_options_are_refused_while_a_process_fuses(city: Path, kind: str) -> None:
    with fusing_slowly(city, kind, "--rule", "plf") as first:
        said = refused("fuse", "--rule", "majority", "--name", "it")
        assert f"process {first.pid} on {os.uname().nodename} is fusing labels with other options" in said
        assert "give these another --name" in said
        result_of("fuse", "--rule", "majority", "--name", "other")  # the advice
        assert refused("fuse", "--rule", "plf", "--threshold", "10", "--shard", "1/2", "--name", "it")
        _, err = first.communicate(timeout=60)
        assert first.returncode == 0, err
    assert json.loads((city / SET / "fusion.json").read_text())["rule"] == "plf"
    result_of("fuse", "--rule", "plf", "--name", "alone")
    assert labels(city) == labels(city, "alone")
    assert not list((city / SET).glob(".fuse*"))
    assert result_of("fuse", "--rule", "majority", "--name", "it")["skipped"] == 0


@pytest.mark.slow
def test_the_same_line_twice_waits_and_finds_it_done(city: Path, kind: str) -> None:
    with fusing_slowly(city, kind, "--rule", "plf", pause=0.5) as first:
        outcome = succeed("fuse", "--rule", "plf", "--name", "it", "--quiet", "--json")
        assert (
            f"process {first.pid} on {os.uname().nodename} fuses the same labels; waiting for it"
            in outcome.err
        )
        assert outcome.result["skipped"] == len(TRAIN)
        first.communicate(timeout=60)
        assert first.returncode == 0


@pytest.mark.slow
def test_a_killed_process_blocks_nobody(city: Path, kind: str) -> None:
    with fusing_slowly(city, kind, "--rule", "plf") as first:
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert list((city / SET).glob(".fuse-*.lock"))
    assert result_of("fuse", "--rule", "majority", "--name", "it")["skipped"] == 0
    assert not list((city / SET).glob(".fuse*"))
    assert json.loads((city / SET / "fusion.json").read_text())["rule"] == "majority"


@pytest.mark.slow
def test_an_archive_that_grows_while_it_is_fused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without images of the target, what the archive holds is fused; with another teacher, what is missing is told."""
    monkeypatch.chdir(tmp_path)
    make_archive(tmp_path, "crst", TRAIN)
    archive = tmp_path / "certainty/gta5/dacs"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITE_SLOWLY, str(archive)], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert writer.stdin is not None and writer.stdout is not None
    try:
        for number, _ in enumerate(TRAIN, 1):
            writer.stdout.readline()
            result = result_of("fuse", "--teachers", "dacs", "--name", "it", "--rule", "majority")
            assert (result["images"], result["skipped"]) == (number, number - 1)
            if number < len(TRAIN):
                said = refused("fuse", "--teachers", "crst", "dacs", "--name", "both")
                assert f"dacs: its archive lacks {len(TRAIN) - number} of {len(TRAIN)} images" in said
                writer.stdin.write("\n")
                writer.stdin.flush()
        assert writer.wait(60) == 0
    finally:
        writer.kill()
        writer.communicate()
    assert result_of("fuse", "--teachers", "crst", "dacs", "--name", "both")["images"] == len(TRAIN)
    result_of("fuse", "--teachers", "dacs", "--name", "whole", "--rule", "majority")
    assert labels(tmp_path) == labels(tmp_path, "whole")
