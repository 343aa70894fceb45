"""No command but ``download-weights`` opens a connection, or asks for an address: here every try is an error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from endauda_cli.models import build_student
from tests.support.command_lines import SIZE_FLAGS, TEACHERS, TRAIN, make_workspace, put_outputs

WATCH = """
import os, socket, sys
TRIES = os.environ["TRIES"]
def tried(*args, **kwargs):
    with open(TRIES, "a") as file:
        file.write(f"{sys.argv} {args[-2:]}\\n")
    raise OSError("no network")
socket.socket.connect = socket.socket.connect_ex = tried
socket.create_connection = socket.getaddrinfo = socket.gethostbyname = tried
sys.addaudithook(lambda event, args: tried(event, args) if event in ("socket.connect", "socket.getaddrinfo") else None)
"""
"""As ``sitecustomize``, so that it holds in each process that a command starts."""

STUDENT = ("--arch", "deeplabv3plus", "--backbone", "tiny", "--device", "cpu")
LINES: tuple[tuple[str, ...], ...] = (
    ("--version",),
    ("--help",),
    ("doctor",),
    ("config", "show"),
    ("download-weights", "--list"),
    ("inspect", "dacs", "--verify"),
    ("export-teacher", "imported", "--import", "outputs"),
    ("fuse", "--teachers", *TEACHERS),
    ("fuse", "--teachers", "dacs", "crst", "cbst", "--split", "val", "--policy", "val", "--name", "by-val"),
    ("train", *SIZE_FLAGS, "--steps", "2", "--validate-every", "1", "--name", "it", "--device", "cpu"),
    ("test", "--device", "cpu"),
    ("test", "--predictions", "Warehouse/Cityscapes/data/gtFine/by-val"),
)  # fmt: skip


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_workspace(tmp_path_factory.mktemp("offline"))
    put_outputs(root / "outputs", "dacs", TRAIN)
    hooks = root / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(WATCH)
    return root


def offline(city: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = [
        str(city / "hooks"),
        str(Path(__file__).parents[2]),
        *filter(None, [os.environ.get("PYTHONPATH")]),
    ]
    variables = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths), "TRIES": str(city / "tries"), "HOME": str(city / "home"),
        "HF_HOME": str(city / "hub"), "TORCH_HOME": str(city / "torch"),
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "endauda_cli", *words],
        cwd=city, env=variables | environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_the_watch_sees_a_connection(city: Path) -> None:
    done = offline(city, "download-weights", "gta5/source", "--attempts", "1")
    assert done.returncode != 0
    assert (city / "tries").exists()
    (city / "tries").unlink()


@pytest.mark.slow
def test_no_command_opens_a_connection(city: Path) -> None:
    for words in LINES:
        done = offline(city, *words)
        assert done.returncode == 0, (words, done.stderr)
        assert not (city / "tries").exists(), (words, (city / "tries").read_text())


@pytest.mark.slow
def test_a_network_is_run_without_a_connection(city: Path) -> None:
    """And what was left out around its weights is said."""
    state = build_student("deeplabv3plus", "tiny", 19).state_dict()
    wrapped = {f"_orig_mod.module.{key}": value for key, value in state.items()}
    torch.save({"epoch": 3, "model": {"state_dict": wrapped}}, city / "tiny.pth")
    done = offline(city, "export-teacher", "mine", "--weights", "tiny.pth", *STUDENT, "--size", "64x32")
    assert done.returncode == 0, done.stderr
    assert "taken from model / state_dict and without '_orig_mod.module.' before every name" in done.stderr
    assert not (city / "tries").exists(), (city / "tries").read_text()


@pytest.mark.slow
def test_completion_opens_no_connection(city: Path) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert offline(city, "--show-completion", shell).returncode == 0
    line = "endauda fuse --teachers "
    done = offline(city, _ENDAUDA_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD="3", COMP_LINE=line)
    assert not (city / "tries").exists(), done.stderr
