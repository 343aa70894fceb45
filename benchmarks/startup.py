"""How long --help, --version and TAB take, beside an empty Typer program of two commands, in one run.

    python benchmarks/startup.py
    python benchmarks/startup.py --repeat 31 --json

What is timed is a process from its start to its end. The empty program answers TAB after its name in Typer's own
protocol, ``endauda`` answers it in that of its scripts: after its name, after ``fuse --teachers`` and after
``test --weights``, in a workspace of three archives and a run. fish asks the empty program twice for one TAB; one call
is counted. The programs take turns within each repeat; medians, and the median of the ratios within the repeats.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from endauda_cli.completion.tab import LINE, VARIABLE

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
OURS = ("-c", "from endauda_cli.cli import entry; entry()")
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


def main() -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=15, help="how often each is run (default: 15)")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = measure(given.repeat)
    about = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    if given.json:
        print(json.dumps({"repeat": given.repeat, "machine": about, "calls": rows}, indent=1))
        return 0
    table = Table(title=f"Start to end, medians of {given.repeat}")
    table.add_column("")
    for title in ("ms", "empty program, ms", "ratio"):
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(str(row["call"]), f"{row['ms']:.0f}", f"{row['empty_ms']:.0f}", f"{row['ratio']:.2f}")
    console = Console()
    console.print(table)
    console.print(about)
    return 0


if __name__ == "__main__":
    sys.exit(main())
