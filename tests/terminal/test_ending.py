"""How command lines end: exit codes, one JSON document, crashes, signals; in real processes where it matters."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import torch
import typer

from endauda_cli import cli, signals
from endauda_cli.cli import app
from endauda_cli.errors import ArchiveError
from endauda_cli.progress import Tick
from endauda_cli.signals import Stopped
from endauda_cli.terminal import crash, ending
from endauda_cli.terminal.answer import Answer, current
from tests.support import ROOT
from tests.support.command_lines import (
    SIZE_FLAGS,
    TEACHERS,
    TRAIN,
    broken_module,
    endauda,
    files_of,
    make_workspace,
    put_outputs,
    shell,
    succeed,
)
from tests.support.processes import running

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

Captured = pytest.CaptureFixture[str]
PROGRESS = re.compile(r"  in |^[a-z ]+ (\d+/\d+| \d+s)$")
"""What logs say of work that takes two seconds: how long it took, or how far it is."""
RUN = [sys.executable, "-m", "endauda_cli"]
COMMANDS = ("export-teacher", "fuse", "train", "test", "download-weights", "inspect", "demo")


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's state folder."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv(crash.DEBUG_VARIABLE, raising=False)
    return tmp_path / "state" / "endauda"


@pytest.fixture
def city(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace, the current folder."""
    monkeypatch.chdir(tmp_path)
    return make_workspace(tmp_path)


def run(error: BaseException | None, *words: str) -> int:
    """End a command line with this error."""

    def program() -> None:
        if error is not None:
            raise error

    return ending.run(program, words or ("fuse",))


# ---------------------------------------------------------------------------- one document


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("wrong", [("--nonsense",), ("--workspace",)])
def test_usage_errors(command: str, wrong: tuple[str, ...]) -> None:
    """Exit 2, in the style of other errors; as JSON too, wherever the flag stands."""
    outcome = endauda(command, *wrong)
    assert (outcome.code, outcome.out) == (2, "")
    sentence, help = outcome.err.splitlines()
    assert sentence.startswith("endauda: ") and wrong[0] in sentence and not sentence.endswith(".")
    assert help.endswith(f"'endauda {command} --help' tells more")
    assert help.startswith(f"Usage: endauda {command} ") or wrong == ("--workspace",)
    outcome = endauda(command, "--json", *wrong)
    assert outcome.code == 2
    document = json.loads(outcome.out)
    assert document["command"] == command and set(document) == {"schema", "command", "error"}
    assert document["error"]["kind"] == "UsageError" and wrong[0] in document["error"]["message"]
    assert document["error"]["message"] in outcome.err


def test_an_option_before_its_command() -> None:
    outcome = endauda("--json", "fuse")
    assert outcome.code == 2 and "No such option: --json; options of fuse stand after it" in outcome.err


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (("fuse", "--workspace", "nowhere"), "ConfigError"),
        (("fuse",), "WorkspaceError"),
        (("export-teacher", "x"), "ConfigError"),
        (("train",), "WorkspaceError"),
        (("test",), "DataError"),
        (("inspect", "dacs"), "WorkspaceError"),
        (("download-weights", "nothing"), "ConfigError"),
        (("download-weights", "gta5/source", "--offline"), "DownloadError"),
        (("demo", "--seed", "-1"), "ConfigError"),
    ],
)
def test_errors_are_documents(
    words: tuple[str, ...], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder without anything."""
    monkeypatch.chdir(tmp_path)
    outcome = endauda(*words, "--json")
    document = json.loads(outcome.out)
    assert outcome.code == 1 and document["schema"] == 1 and document["command"] == words[0]
    assert document["error"]["kind"] in (kind, "NoImagesError"), document
    assert outcome.err.strip().endswith(document["error"]["message"])


def test_json_from_elsewhere(city: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the environment or endauda.toml: errors are documents all the same."""
    monkeypatch.setenv("ENDAUDA_FUSE_JSON", "1")
    outcome = endauda("fuse", "--teachers", "nobody")
    assert outcome.code == 1 and outcome.error["kind"] == "WorkspaceError"
    assert endauda("fuse", "--threshold", "x").error["kind"] == "UsageError"
    monkeypatch.delenv("ENDAUDA_FUSE_JSON")
    (city / "endauda.toml").write_text("[fuse]\njson = true\n")
    assert endauda("fuse", "--teachers", "nobody").error["kind"] == "WorkspaceError"
    (city / "endauda.toml").write_text("[nonsense]\n")
    assert endauda("fuse", "--json").error["kind"] == "ConfigError"


def test_a_result_and_why_it_is_not_all(city: Path) -> None:
    """Of several downloads, those that came."""
    outcome = endauda("download-weights", "gta5/source", "synthia/ours/drn", "--offline", "--json")
    document = json.loads(outcome.out)
    assert outcome.code == 1
    assert [f["name"] for f in document["result"]["failures"]] == ["gta5/source", "synthia/ours/drn"]
    assert document["error"]["kind"] == "DownloadError"


def test_other_ranks_are_silent(city: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "")  # nobody's
    assert succeed("inspect", "dacs", "--json").out
    monkeypatch.setenv("RANK", "1")
    assert succeed("inspect", "dacs", "--json").out == ""
    outcome = endauda("fuse", "--teachers", "nobody", "--json")
    assert (outcome.code, outcome.out) == (1, "") and "nobody" in outcome.err


def test_one_answer_per_command_line() -> None:
    assert run(None, "fuse", "--json") == 0
    assert current().words == () and not current().as_json


# ---------------------------------------------------------------------------- what a user can mend


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError(), "memory ran out; use fewer --workers, or close"),
        (
            RuntimeError("[enforce fail at alloc.cpp] DefaultCPUAllocator: not enough memory: 9"),
            "memory ran out;",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried"),
            "the memory of the graphics card ran out; use fewer",
        ),
        (RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel"), "nvidia-smi"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
        (OSError(errno.ENOSPC, "No space left on device"), "endauda: the disk is full; free some space"),
        (
            OSError(errno.EMFILE, "Too many open files", "a.png"),
            "a.png: too many open files; allow more (ulimit -n",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x/y"),
            "/x/y: permission denied; choose another",
        ),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "d"), "d: Is a directory; choose another path"),
        (ModuleNotFoundError("No module named 'llvmlite'", name="llvmlite"), "'llvmlite'; see what"),
        (ImportError("cannot import name 'jit' from 'numba'", name="numba"), "does not fit: cannot import"),
        (OSError("libcublas.so.12: cannot open shared object file: No such file"), "-m pip check' says and"),
    ],
)
def test_what_a_user_can_mend(error: Exception, sentence: str, state: Path, capsys: Captured) -> None:
    assert run(error) == 1
    err = capsys.readouterr().err
    assert err.startswith("endauda: ") and sentence in err and err.count("\n") == 1
    assert not state.exists(), "no report of a crash"


def test_a_module_of_ours_that_is_missing_is_a_bug(state: Path, capsys: Captured) -> None:
    assert run(ModuleNotFoundError("No module named 'endauda_cli.x'", name="endauda_cli.x")) == 1
    assert "a bug of endauda" in capsys.readouterr().err and state.exists()


@pytest.mark.parametrize(
    ("library", "words"), [("rich", "fuse"), ("typer", "--version"), ("h5py", "fuse"), ("torch", "doctor")]
)
def test_an_installation_without_a_library(library: str, words: str, tmp_path: Path) -> None:
    """Also without one that errors are printed by. The doctor tells of torch what it tells of all."""
    lack = f"ModuleNotFoundError(\"No module named '{library}'\", name='{library}')"
    broken_module(tmp_path / "fakes", library, lack)
    path = os.pathsep.join([str(tmp_path / "fakes"), str(ROOT)])
    done = shell(*words.split(), cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "a bug" not in done.stderr
    assert f"No module named '{library}'" in done.stdout + done.stderr
    if words != "doctor":
        assert done.stderr.count("\n") == 1 and "-m pip check' says" in done.stderr


def test_options_that_save_memory_are_there() -> None:
    group: Any = typer.main.get_command(app)
    for command, advice in ending.LESS_MEMORY.items():
        flags = {flag for parameter in group.load(command).params for flag in parameter.opts}
        for word in advice.replace(",", "").split():
            assert not word.startswith("--") or word in flags


def test_errors_of_ours(capsys: Captured) -> None:
    path = "/a" * 100
    assert run(ArchiveError(f"{path}: damaged")) == 1
    assert capsys.readouterr().err == f"endauda: {path}: damaged\n"


def test_colour_on_demand_only(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    for variable in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    run(ArchiveError("damaged"))
    assert capsys.readouterr().err == "endauda: damaged\n"
    monkeypatch.setenv("FORCE_COLOR", "1")
    run(ArchiveError("damaged"))
    assert capsys.readouterr().err.startswith("\x1b[1;31mendauda:")
    monkeypatch.setenv("NO_COLOR", "1")
    run(ArchiveError("damaged"))
    assert "31m" not in capsys.readouterr().err


# ---------------------------------------------------------------------------- crashes


def broken(secret: str) -> None:
    raise ValueError(f"cannot open https://me:{secret}@example.org/x?token={secret}&a=b")


def crashed(words: tuple[str, ...]) -> int:
    return ending.run(lambda: broken("hunter" + "2"), words)


def test_crash_report(state: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv("ENDAUDA_FUSE_RULE", "plf")
    monkeypatch.setenv("ENDAUDA_MIRROR", "https://me:hunter2@example.org")
    assert crashed(("fuse", "--mirror", "https://h/?api_key=hunter2", "--json")) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["kind"] == "InternalError"
    assert 2 <= err.count("\n") <= 3 and "Traceback" not in err
    (report,) = state.iterdir()
    assert str(report) in err and report.name.endswith(f"-{os.getpid()}.txt")
    assert "ValueError: cannot open https://***@example.org/x?token=***&a=b" in err
    assert "endauda_cli/terminal/ending.py:" in err, "this test's own lines are not of the package"
    text = report.read_text()
    assert "hunter2" not in text + err + out
    for expected in ("endauda 0", "torch ", "typer ", "Python 3", "ENDAUDA_FUSE_RULE=plf", "--mirror", "Traceback",
                     "in broken", "ValueError"):  # fmt: skip
        assert expected in text, text
    assert report.stat().st_mode & 0o077 == 0, "for the user's eyes"


def test_crash_reports_do_not_pile_up(state: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    state.mkdir(parents=True)
    for i in range(30):
        path = state / f"crash-20250101-0000{i:02}-1.txt"
        path.write_text("old")
        os.utime(path, (i, i))
    (state / "notes.txt").write_text("mine")
    crashed(("fuse",))
    left = sorted(path.name for path in state.iterdir())
    assert len(left) == crash.KEPT_REPORTS + 1 and "notes.txt" in left
    assert "crash-20250101-000029-1.txt" in left and "crash-20250101-000000-1.txt" not in left


def test_crash_without_a_place(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """The temporary folder; without that, no report, but the message."""
    state.parent.write_text("a file is in the way")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    assert crashed(("fuse",)) == 1
    (report,) = temporary.iterdir()
    assert str(report) in capsys.readouterr().err
    monkeypatch.setattr("tempfile.tempdir", str(state.parent))
    assert crashed(("fuse",)) == 1
    assert "no report could be written" in capsys.readouterr().err


def test_debug_shows_the_traceback(state: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv(crash.DEBUG_VARIABLE, "1")
    assert crashed(("fuse",)) == 1
    assert "Traceback" in (err := capsys.readouterr().err) and "in broken" in err
    assert not state.exists()


# ---------------------------------------------------------------------------- pipes


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [("--help",), ("fuse", "--help"), ("inspect", "dacs"), ("inspect", "dacs", "--json"), ("download-weights",),
     ("fuse", "--rule", "majority", "--verbose"), ("--version",), ("fuse", "--nonsense")],
)  # fmt: skip
def test_a_reader_that_leaves(words: tuple[str, ...], city: Path) -> None:
    """As ``| head`` may: silent; neither an error nor Python's words at its end."""
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run(
        [*RUN, *words], cwd=city, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120
    )
    os.close(write)
    assert process.returncode == (2 if "--nonsense" in words else 0), process.stderr
    told = [line for line in process.stderr.splitlines() if not PROGRESS.search(line)]
    assert told == [] or "--nonsense" in words


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", ["--help", "fuse --help", "--version", "inspect dacs", "inspect dacs --json"]
)
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams(words: str, closed: str, city: Path) -> None:
    """What nobody listens to is not said; all else is done, and nothing lands in a file that took its place."""
    before = files_of(city)
    process = in_shell(f"{words} {closed}", city)
    assert process.returncode == 0 and "endauda:" not in process.stderr, process.stderr
    assert bool(process.stdout) == (">&-" not in closed.replace("2>&-", "")) and files_of(city) == before


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
@pytest.mark.parametrize("words", ["fuse --help", "--version", "inspect dacs", "inspect dacs --json"])
def test_result_onto_a_full_disk(words: str, city: Path) -> None:
    process = in_shell(f"{words} >/dev/full", city)
    last = process.stderr.splitlines()[-1]
    assert process.returncode == 1 and last.startswith("endauda: the disk is full"), process.stderr
    assert "Traceback" not in process.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "variables", [{"PYTHONIOENCODING": "ascii:strict"}, {"COLUMNS": "0"}, {"COLUMNS": "99999999"}]
)
@pytest.mark.parametrize("words", ["fuse --help", "fuse --teachers nobody"])
def test_words_are_printed_anywhere(words: str, variables: dict[str, str], city: Path) -> None:
    process = in_shell(words, city, **variables)
    assert process.returncode == ("nobody" in words), process.stderr
    assert len((process.stdout + process.stderr).strip()) > 60


def test_the_current_folder_is_gone(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    for words in ("fuse", "doctor", f"inspect dacs --workspace {shlex.quote(str(tmp_path))}"):
        line = f"cd gone && rmdir ../gone && {shlex.join(RUN)} {words} --json; mkdir ../gone"
        process = subprocess.run(
            ["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert json.loads(process.stdout)["error"]["kind"] == "ConfigError"
        told = "endauda: the current folder was deleted meanwhile; change into one that exists\n"
        assert process.stderr.endswith(told), process.stderr


def in_shell(line: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """``endauda`` with redirections."""
    program = shlex.join(RUN)
    return subprocess.run(
        ["sh", "-c", f"{program} {line}"], cwd=cwd, env=os.environ | environment, capture_output=True, text=True,
        timeout=120, stdin=subprocess.DEVNULL,
    )  # fmt: skip


# ---------------------------------------------------------------------------- signals


def started(
    cwd: Path, *words: str | Path, **environment: str
) -> AbstractContextManager[subprocess.Popen[str]]:
    return running(*RUN, *words, cwd=cwd, env=environment)


def wait_for(process: subprocess.Popen[str], done: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while process.poll() is None and not done() and time.monotonic() < end:
        time.sleep(0.01)


def stop(process: subprocess.Popen[str], *numbers: int, gap: float = 0.0) -> tuple[int, str, str]:
    for number in numbers:
        process.send_signal(number)
        time.sleep(gap)
    out, err = process.communicate(timeout=60)
    if begun(process.returncode, err):
        assert "Traceback" not in err and "Exception ignored" not in err, err
    return process.returncode, out, err


def begun(code: int, err: str) -> bool:
    """Whether a process that Ctrl-C ended had come to this program: before that, Python says whatever it says."""
    return code != -signal.SIGINT and "Fatal Python error: init" not in err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_training_is_saved_and_gone_on_with(city: Path, number: int) -> None:
    succeed("fuse", "--rule", "majority")
    train = ("train", *SIZE_FLAGS, "--save-every", "99999", "--steps", "100000", "--name", "a name")
    metrics = city / "runs/gta5/a name/metrics.jsonl"
    with started(city, *train) as process:
        wait_for(process, lambda: metrics.exists() and metrics.read_text().count("\n") >= 2)
        code, out, err = stop(process, number)
    assert (code, out) == (128 + number, "")
    last = err.splitlines()[-1]
    assert last.startswith("endauda: interrupted at step ") and " of 100000 (saved); go on with: " in last
    assert last.endswith("-m endauda_cli train --backbone tiny --size 64x32 --crop 32x16 --batch-size 2 "
                         "--save-every 99999 --steps 100000 --name 'a name'")  # fmt: skip
    step = int(last.split("at step ")[1].split()[0])
    outcome = succeed(*train[:-4], "--steps", "100000", "--name", "a name", "--resume", "--help")
    assert outcome.code == 0
    content = torch.load(city / "runs/gta5/a name/last.pt", weights_only=True)
    assert content["meta"]["step"] == step


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.05, 0.15, 0.3, 0.5, 0.8, 1.2, 1.8])
@pytest.mark.parametrize("twice", [False, True])
def test_interrupt_at_any_moment(city: Path, delay: float, twice: bool) -> None:
    """Of starting Python, parsing, importing torch and working; in JSON too."""
    words = (
        ("train", *SIZE_FLAGS, "--steps", "100000", "--json")
        if twice
        else ("fuse", "--rule", "plf", "--json")
    )
    succeed("fuse", "--rule", "majority")
    with started(city, *words) as process:
        time.sleep(0.1 + delay)  # before, there is no Python to ask
        code, out, err = stop(process, *([signal.SIGINT] * (1 + twice)), gap=0.02)
    if code == 0 and not twice:
        return  # it was done
    if not begun(code, err) or ("interrupted before it began" in err and delay < 0.3):
        return
    assert code == 130, err
    assert err.splitlines()[-1].startswith("endauda: interrupted")
    assert json.loads(out)["error"]["kind"] == "Interrupted"


@pytest.mark.slow
def test_a_second_interrupt_does_not_wait(city: Path) -> None:
    """Not even for a step that takes long."""
    succeed("fuse", "--rule", "majority")
    train = ("train", "--backbone", "tiny", "--size", "1024x512", "--crop", "1024x512", "--batch-size", "24")
    metrics = city / "runs/gta5/deeplabv3plus-tiny-majority/metrics.jsonl"
    with started(city, *train, "--steps", "1000", "--json", OMP_NUM_THREADS="1") as process:
        wait_for(process, metrics.exists)
        time.sleep(0.5)
        code, out, err = stop(process, signal.SIGINT, signal.SIGINT, gap=signals.ECHO_S + 0.1)
    assert code == 130
    assert err.splitlines()[-1].startswith("endauda: interrupted at step ")
    assert json.loads(out)["error"]["kind"] == "Interrupted"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["export", "fuse", "test", "demo"])
def test_interrupted_work_is_gone_on_with(city: Path, number: int, command: str, tmp_path: Path) -> None:
    """While threads work."""
    if command == "export":
        for kind in range(60):
            put_outputs(city / "outputs" / str(kind), "mrnet", TRAIN)
            for path in (city / "outputs" / str(kind)).iterdir():
                path.rename(path.with_name(f"{kind}_{path.name}"))
        # without images of the target, all outputs are taken
        (city / "Warehouse").rename(city / "Elsewhere")
        words = ["export-teacher", "mrnet", "--import", "outputs"]
    elif command == "fuse":
        words = ["fuse", "--rule", "soft-label", "--split", "val"]
    elif command == "test":
        words = ["test", "--predictions", "predictions"]
        put_outputs(city / "predictions", "dacs", ("lindau_000000_000019_leftImg8bit",))
    else:
        words = ["demo", "--out", "new"]
    with started(city, *words, "--verbose") as process:
        if command == "demo":
            wait_for(process, (city / "new" / "demo.json").exists)
        elif command == "export":
            wait_for(process, (city / "certainty/gta5/mrnet").exists)
        else:
            time.sleep(1.0)
        code, _, err = stop(process, number)
    if command in ("fuse", "test") and code in (0, 1):
        return  # over before the signal came
    assert code == 128 + number, err
    last = err.splitlines()[-1]
    assert last.startswith("endauda: interrupted") and f"-m endauda_cli {words[0]} " in last
    if command == "export":
        assert succeed(*words, "--json").result["images"] == 300


@pytest.mark.slow
def test_a_signal_that_is_ignored_stays_so(city: Path) -> None:
    """As a shell starts what is to run in the background."""
    line = [sys.executable, "-c", "import signal, os, sys\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
            f"os.execv({sys.executable!r}, {[*RUN, 'fuse', '--rule', 'majority']!r})"]  # fmt: skip
    with running(*line, cwd=city) as process:
        for _ in range(5):
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "majority of" in out, err


@pytest.mark.slow
def test_sighup_is_left_alone(city: Path) -> None:
    with started(city, "demo", "--out", "new") as process:
        wait_for(process, (city / "new" / "demo.json").exists)
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGHUP


# in this process, what the handlers do


def test_signals_by_what_is_done() -> None:
    left: list[int] = []
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with signals.handled(lambda stopped: left.append(stopped.exit_code)):
        signal.raise_signal(signal.SIGTERM)
        assert left == [143], "nothing is being done"
    with signals.handled(lambda stopped: left.append(stopped.exit_code)):
        with pytest.raises(Stopped) as raised, signals.working():
            signal.raise_signal(signal.SIGINT)
        assert raised.value.exit_code == 130
        with pytest.raises(Stopped), signals.working():
            signals.remind()  # the exception may have got lost in a destructor
    with signals.handled(lambda stopped: left.append(stopped.exit_code)), signals.working():
        with signals.deferred():
            assert signals.asked() is None
            signal.raise_signal(signal.SIGTERM)
            signals.remind()
            assert signals.asked() is not None
            signal.raise_signal(signal.SIGINT)  # passed on by torchrun, say
            assert left == [143]
            time.sleep(signals.ECHO_S + 0.05)
            signal.raise_signal(signal.SIGINT)
            assert set(left) == {143} and len(left) > 1, "the first one counts"
        with pytest.raises(Stopped):
            signals.remind()
    assert signals.asked() is None
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


class _Closing:
    """Something whose destructor takes its time."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.001)


def _ended_by_a_destructor() -> None:
    del_me = _Closing()
    del del_me


def _ended_by_a_weak_reference() -> None:
    class Plain:
        pass

    plain = Plain()
    kept = weakref.ref(plain, lambda _: signal.raise_signal(signal.SIGINT))
    del plain
    assert kept() is None


@pytest.mark.parametrize("ended", [_ended_by_a_destructor, _ended_by_a_weak_reference])
def test_a_signal_in_the_midst_of_what_python_drops_comes_again(
    ended: Callable[[], None], capfd: pytest.CaptureFixture[str]
) -> None:
    """Python drops an exception there and prints it: the work would go on, the user would see a traceback."""
    left: list[int] = []
    with signals.handled(lambda stopped: left.append(stopped.exit_code)):
        with pytest.raises(Stopped) as raised, signals.working():
            ended()
            for _ in range(1000):
                time.sleep(0.01)
        assert raised.value.exit_code == 130
        with pytest.raises(Stopped), signals.working():  # raised elsewhere meanwhile: not once more
            signals.remind()
        time.sleep(3 * signals.AGAIN_S)
    assert not left and capfd.readouterr().err == ""


def test_what_else_a_destructor_raises_is_told() -> None:
    told: list[object] = []
    before, sys.unraisablehook = sys.unraisablehook, lambda dropped: told.append(dropped.exc_value)
    try:
        with signals.handled(lambda stopped: None):

            class Bad:
                def __del__(self) -> None:
                    raise OSError("full")

            Bad()
    finally:
        sys.unraisablehook = before
    assert [str(error) for error in told] == ["full"]


def test_deferred_in_a_library() -> None:
    with signals.deferred():
        signal.raise_signal(signal.SIGINT)
        assert signals.asked() is not None
        time.sleep(signals.ECHO_S + 0.05)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("ticks", "sentence"),
    [
        ([], "interrupted; there is nothing to keep yet; start again with: "),
        (
            [Tick("loading torch", 0, None)],
            "interrupted while loading torch; there is nothing to keep yet; start ",
        ),
        (
            [Tick("training", 412, 1000, unit="steps", kept=412)],
            "interrupted at step 412 of 1000 (saved); go on ",
        ),
        (
            [Tick("training", 412, 1000, unit="steps", kept=400)],
            "interrupted at step 412 of 1000 (step 400 is saved);",
        ),
        (
            [Tick("training", 9, 1000, unit="steps", kept=0)],
            "interrupted at step 9 of 1000 (none is saved); start a",
        ),
        (
            [Tick("fusing", 3, 9, kept=3), Tick("compiling", 0, None)],
            "interrupted while fusing, 3 of 9 images are k",
        ),
        (
            [Tick("a.pth", 5, 9000000, "", "bytes", 2500000)],
            "interrupted while fetching a.pth, 2.5 MB of 9.0 MB are",
        ),
        (
            [Tick("caching images", 9, 9, kept=9), Tick("testing", 1, 4)],
            "interrupted while testing; what was finish",
        ),
    ],
)
def test_what_is_kept(ticks: list[Tick], sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/endauda"])
    answer = Answer(["train", "--name", "a b", "--mirror", "https://me:secret@h/"])
    for tick in ticks:
        answer.note(tick)
    told = ending.interruption(answer)
    assert told.startswith(sentence)
    assert told.endswith("endauda train --name 'a b' --mirror 'https://***@h/'") or "***@h" in told
    assert "secret" not in told and "\n" not in told


def test_typer_aborts_are_ours(capsys: Captured) -> None:
    assert run(KeyboardInterrupt()) == 130
    assert run(typer.Abort()) == 1
    assert "Aborted" not in capsys.readouterr().err
    assert cli.main(["--version"]) == 0
    assert TEACHERS
