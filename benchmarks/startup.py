"""How long --help, --version and TAB take, beside an empty Typer program of two commands, in one run.

    python benchmarks/startup.py
    python benchmarks/startup.py --repeat 31 --json
    python benchmarks/startup.py --networks
    python benchmarks/startup.py --networks test "fuse, live" --device cuda --repeat 1

What is timed is a process from its start to its end. The empty program answers TAB after its name in Typer's own
protocol, ``endauda`` answers it in that of its scripts: after its name, after ``fuse --teachers`` and after
``test --weights``, in a workspace of three archives and a run. fish asks the empty program twice for one TAB; one call
is counted. The programs take turns within each repeat; medians, and the median of the ratios within the repeats.

``--networks`` counts the CPU seconds of commands (all, or those named) on one tiny image, from start to end, how many
of them are beyond those of ``python -c "import torch"`` in the same repeat, and how many the same process spends
between its import of torch and the first layer of a network that has run; medians again. What has not run by then
is run once, untimed, to fill numba's cache.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from endauda_cli.completion.tab import LINE, VARIABLE
from endauda_cli.domains import CITYSCAPES

if TYPE_CHECKING:
    from collections.abc import Sequence

EMPTY = """
import typer

app = typer.Typer()


def show_version(asked: bool) -> None:
    if asked:
        print("empty 1.0")
        raise typer.Exit


@app.callback()
def root(version: bool = typer.Option(False, "--version", callback=show_version, is_eager=True)) -> None:
    "An empty program."


@app.command()
def first(name: str = "") -> None:
    "The first command."


@app.command()
def second(name: str = "") -> None:
    "The second command."


app(prog_name="empty")
"""
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed program is compiled once
OURS = ("-c", "from endauda_cli.cli import entry; entry()")
FIRST_LAYER = """
import time
import torch

begin = time.process_time()


def told(module, inputs, output):
    handle.remove()
    with open({path!r}, "w") as file:
        file.write(str(time.process_time() - begin))


handle = torch.nn.modules.module.register_module_forward_hook(told)
from endauda_cli.cli import entry
entry()
"""
"""Writes down how many CPU seconds there were between torch and the first layer of a network."""
SHELLS = ("bash", "zsh", "fish", "powershell")


@dataclass(frozen=True)
class Call:
    """A process: what it is called here, what it is measured against, words and environment."""

    name: str
    against: str
    program: tuple[str, ...]
    words: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


def calls(empty: Path) -> list[Call]:
    """Each of ours after the one of the empty program that it is measured against."""
    theirs = (str(empty),)
    found = []
    for word in ("--help", "--version"):
        base = f"empty {word}"
        found += [Call(base, base, theirs, (word,)), Call(word, base, OURS, (word,))]
    for shell in SHELLS:
        base = f"empty TAB in {shell}"
        asked = {
            "_EMPTY_COMPLETE": f"complete_{shell}", "COMP_WORDS": "empty ", "COMP_CWORD": "1",
            "_TYPER_COMPLETE_ARGS": "empty ", "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        }  # fmt: skip
        found += [Call(base, base, theirs, (), asked)]
        for words in ("", "fuse --teachers ", "test --weights "):
            line = f"endauda {words}"
            found += [Call(f"{line}TAB in {shell}", base, OURS, (), {VARIABLE: shell, LINE: line})]
    return found


def make_workspace(root: Path) -> None:
    """Only names and records, which are all that TAB looks at."""
    for teacher in ("dacs", "crst", "cbst"):
        archive = root / "certainty/gta5" / teacher
        archive.mkdir(parents=True)
        images = {f"image_{i}": [1024, 2048, "0" * 32] for i in range(64)}
        for shard in range(46):  # 2975 images at 64
            (archive / f"shard-0-of-1-{shard:05}.json").write_text(json.dumps({"images": images}))
    run = root / "runs/gta5/student"
    run.mkdir(parents=True)
    (run / "last.pt").touch()
    (run / "metrics.jsonl").write_text('{"step": 41}\n')
    (run / "config.json").write_text('{"config": {"steps": 100}}')


def seconds(call: Call, workspace: Path) -> float:
    """From start to end; it must end well, and say something."""
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *call.program, *call.words],
        cwd=workspace, env=os.environ | call.environment, capture_output=True, check=True,
    )  # fmt: skip
    taken = time.perf_counter() - begin
    if not done.stdout:
        raise SystemExit(f"{call.name}: no answer; {done.stderr.decode()}")
    return taken


def measure(repeat: int) -> list[dict[str, object]]:
    with tempfile.TemporaryDirectory() as folder:
        empty, workspace = Path(folder) / "empty.py", Path(folder) / "workspace"
        empty.write_text(EMPTY, encoding="utf-8")
        make_workspace(workspace)
        all_calls = calls(empty)
        times: dict[str, list[float]] = {call.name: [] for call in all_calls}
        for call in all_calls:  # once for the caches
            seconds(call, workspace)
        for _ in range(repeat):
            for call in all_calls:
                times[call.name].append(seconds(call, workspace))
    return [
        {
            "call": call.name,
            "ms": 1000 * statistics.median(times[call.name]),
            "empty_ms": 1000 * statistics.median(times[call.against]),
            "ratio": statistics.median(
                ours / theirs for ours, theirs in zip(times[call.name], times[call.against], strict=True)
            ),
        }
        for call in all_calls
        if call.name != call.against
    ]


COLUMNS = ("ms", "ms", ".0f"), ("empty program, ms", "empty_ms", ".0f"), ("ratio", "ratio", ".2f")
NETWORK_COLUMNS = (
    ("CPU s", "cpu_s", ".2f"),
    ("beyond import torch", "beyond_torch_s", ".2f"),
    ("by the clock", "clock_s", ".2f"),
    ("first layer after torch", "first_layer_s", ".2f"),
)
"""Of the tables: title, key, how it is shown."""
STUDENT = "runs/gta5/student/last.pt"
TORCH = "import torch"
COMMANDS = {
    "train, 1 step": "train --labels plf --backbone mobilenet --steps 1 --crop 32x32 --batch-size 2 --name {}",
    "test": f"test --weights {STUDENT}",
    "export-teacher": f"export-teacher {{}} --weights {STUDENT}",
    "fuse, archives": "fuse --teachers stored other --name archives-{}",
    "fuse, live": f"fuse --teachers live={STUDENT} stored --name live-{{}}",
    "test --predictions": "test --predictions predictions",
}
"""Lines of words, with a name that is new in each repeat."""
WITHOUT_NETWORK = ("fuse, archives", "test --predictions")
MADE_FIRST = ("train, 1 step", "student"), ("export-teacher", "stored"), ("export-teacher", "other")
REPEATS, NETWORK_REPEATS = 15, 3
"""By default; a command with a network takes seconds, on a card most of all."""


def make_images(root: Path) -> None:
    """One image of noise in each split, with labels, and a prediction, as Cityscapes has them."""
    rng = np.random.default_rng(0)
    data, size = root / "Warehouse/Cityscapes/data", (32, 64)
    ids = sorted(i for i in CITYSCAPES.label_ids if CITYSCAPES.train_id(i) is not None)
    train_ids = rng.integers(0, len(CITYSCAPES.classes), size, np.uint8)
    for split in ("train", "val"):
        files = {
            f"leftImg8bit/{split}/a/{split}_000019_leftImg8bit": rng.integers(0, 255, (*size, 3), np.uint8),
            f"gtFine/{split}/a/{split}_000019_gtFine_labelIds": rng.choice(ids, size).astype(np.uint8),
        }
        for name, pixels in files.items():
            (data / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(data / f"{name}.png")
    for path in (data / "gtFine/plf/train", root / "predictions/val"):
        path.parent.mkdir()
        Image.fromarray(train_ids).save(path.with_name(f"{path.name}_000019_leftImg8bit.png"))


class Spent(NamedTuple):
    """By a process and its threads, from start to end."""

    cpu: float
    clock: float


def spent_by(program: str, words: Sequence[str], workspace: Path) -> Spent:
    """Seconds of a process; it must end well."""
    begin = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, "-c", program, *words], cwd=workspace, stdout=said, stderr=said
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(words)}: {said.read().decode()}")
    return Spent(used.ru_utime + used.ru_stime, time.perf_counter() - begin)


class Begun(NamedTuple):
    """What a process spent, and how many CPU seconds of it before the first layer, after torch."""

    spent: Spent
    first_layer: float = math.nan


def measure_networks(commands: Sequence[str], repeat: int, device: str) -> list[dict[str, object]]:
    """Of each command, its CPU seconds and those beyond an import of torch in the same repeat."""

    def begun(command: str, name: str) -> Begun:
        words = [*COMMANDS[command].format(name).split(), "--device", device, "--quiet"]
        if command in WITHOUT_NETWORK:
            return Begun(spent_by(OURS[1], words, workspace))
        note = workspace / "first_layer"
        spent = spent_by(FIRST_LAYER.format(path=str(note)), [*words, "--size", "64x32"], workspace)
        return Begun(spent, float(note.read_text()))

    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        make_images(workspace)
        for command, name in MADE_FIRST:
            begun(command, name)
        for command in commands:  # for the caches
            if command not in dict(MADE_FIRST):
                begun(command, "first")
        rounds = []
        for number in range(repeat):
            torch = Begun(spent_by(TORCH, (), workspace))
            rounds.append({TORCH: torch} | {command: begun(command, f"n{number}") for command in commands})
    return [
        {
            "call": name,
            "cpu_s": statistics.median(one[name].spent.cpu for one in rounds),
            "beyond_torch_s": statistics.median(one[name].spent.cpu - one[TORCH].spent.cpu for one in rounds),
            "clock_s": statistics.median(one[name].spent.clock for one in rounds),
            "first_layer_s": statistics.median(one[name].first_layer for one in rounds),
        }
        for name in (TORCH, *commands)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--repeat",
        type=int,
        help=f"how often each is run (default: {REPEATS}; {NETWORK_REPEATS} with --networks)",
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--networks", nargs="*", choices=COMMANDS, metavar="COMMAND",
        help=f"CPU seconds of commands that need a network, all without any: {'; '.join(COMMANDS)}",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="of the networks (default: cpu)")
    given = parser.parse_args()
    of_networks = given.networks is not None
    repeat = given.repeat or (NETWORK_REPEATS if of_networks else REPEATS)
    rows = (
        measure_networks(given.networks or list(COMMANDS), repeat, given.device)
        if of_networks
        else measure(repeat)
    )
    about = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    if given.json:
        print(json.dumps({"repeat": repeat, "machine": about, "calls": rows}, indent=1))
        return 0
    table = Table(title=f"Start to end, medians of {repeat}")
    table.add_column("")
    columns = NETWORK_COLUMNS if of_networks else COLUMNS
    for title, _, _ in columns:
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(str(row["call"]), *(f"{row[key]:{shown}}" for _, key, shown in columns))
    console = Console()
    console.print(table)
    console.print(about)
    return 0


if __name__ == "__main__":
    sys.exit(main())
