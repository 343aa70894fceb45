"""Runs targets under atheris, each in a process of its own, and prints a table; exits with 1 if one has findings.

What is found stays in ``findings/NAME``; the corpus that grows stays in ``--corpus``.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("names", nargs="*", help="targets; all without any")
    parser.add_argument("--runs", type=int, default=500_000, help="executions of each")
    parser.add_argument("--minutes", type=float, default=20, help="of each, at most")
    parser.add_argument(
        "--hang", type=int, default=2, help="seconds that one input may take; more on a busy machine"
    )
    parser.add_argument("--corpus", type=Path, help="folder that keeps what reaches new code")
    parser.add_argument("--jobs", type=int, default=1, help="targets at once")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments, rest = parser.parse_known_args()
    if arguments.one:
        _fuzz(arguments.one, arguments.corpus, rest)
        return 0
    from tests.fuzz.targets import all_targets

    names = arguments.names or list(all_targets())
    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = list(pool.map(lambda name: _run(name, arguments), names))
    print(f"\n{'target':24} {'executions':>12} {'seconds':>8} {'MB':>6}  findings")
    for name, runs, seconds, memory, found in results:
        print(f"{name:24} {runs:12,} {seconds:8.0f} {memory:6}  {found or '-'}")
    return int(any(found for *_, found in results))


def _run(name: str, arguments: argparse.Namespace) -> tuple[str, int, float, int, str]:
    corpus = (arguments.corpus or Path(tempfile.mkdtemp(prefix="fuzz-"))) / name
    findings = HERE / "findings" / name
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    before = set(findings.iterdir())
    command = [
        *(sys.executable, "-m", "tests.fuzz", "--one", name, "--corpus", str(corpus)),
        *(
            f"-runs={arguments.runs}",
            f"-max_total_time={int(arguments.minutes * 60)}",
            f"-timeout={arguments.hang}",
        ),
        *(f"-artifact_prefix={findings}/", "-rss_limit_mb=0", "-print_final_stats=1", "-max_len=65536"),
    ]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    (corpus.parent / f"{name}.log").write_text(done.stdout + done.stderr)
    runs = re.findall(r"stat::number_of_executed_units:\s*(\d+)", done.stderr) or re.findall(
        r"(?m)^#(\d+)", done.stderr
    )
    memory = re.findall(r"(?:rss: (\d+)Mb|peak_rss_mb:\s*(\d+))", done.stderr)
    found = sorted(path.name[:20] for path in set(findings.iterdir()) - before)
    found += re.findall(r"=== Uncaught Python exception: ===\n(.*)", done.stdout + done.stderr)
    ended = "" if done.returncode == 0 or found else f"exit {done.returncode}, see {corpus.parent}/{name}.log"
    if not any(findings.iterdir()):
        findings.rmdir()
    print(f"{name}: {runs[-1] if runs else 0} executions", flush=True)
    return (
        *(name, int(runs[-1]) if runs else 0, time.monotonic() - began),
        max((int(a or b) for a, b in memory), default=0),
        ", ".join(found) or ended,
    )


def _fuzz(name: str, corpus: Path, words: list[str]) -> None:
    import atheris  # type: ignore[import-untyped]

    with atheris.instrument_imports(include=["endauda_cli", "json", "tomllib"]):
        from endauda_cli.errors import EndaudaError
        from tests.fuzz.targets import all_targets

        target = all_targets()[name]
    shared_memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=shared_memory if shared_memory.is_dir() else None))

    def once(data: bytes) -> None:
        folder.mkdir(exist_ok=True)
        try:
            target.read(data, folder)
        except EndaudaError:
            pass
        finally:
            if any(folder.iterdir()):
                shutil.rmtree(folder)

    for number, data in enumerate(target.inputs()):
        (corpus / f"seed-{number}").write_bytes(data)
    once(target.inputs()[0])  # what is imported and compiled at first use does not count as a hang
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    atheris.Setup([sys.argv[0], str(corpus), *words], once)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
