"""What ``--dry-run`` expects against what the same line then takes, on the real teachers' maps.

    python benchmarks/dry_run.py [FOLDER]

FOLDER is as in ``realdata.py``. Each line is first run on something else, so that the workspace has a rate, then dry,
then for good: seconds, CPU seconds and bytes written, of a process of its own each time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(os.environ.get("ENDAUDA_REALDATA", Path(__file__).parents[2] / "shared" / "realdata"))
LABELLED = "espnetv2"
"""A teacher that labelled the train images, too."""
STUDENT = (
    "--backbone",
    "tiny",
    "--size",
    "480x360",
    "--crop",
    "240x180",
    "--batch-size",
    "4",
    "--device",
    "cpu",
)


def run(words: list[str]) -> tuple[Any, float, float]:
    """A line's result, its seconds and its CPU seconds."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    line = [sys.executable, "-m", "endauda_cli", *words, "--json", "--quiet"]
    said = subprocess.run(line, check=True, capture_output=True, text=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(said)["result"], time.monotonic() - began, cpu


def size_of(folder: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def compare(first: list[str], line: list[str], workspace: Path) -> None:
    """One row."""
    run(first)
    plan, _, planning = run([*line, "--dry-run"])
    before = size_of(workspace)
    _, seconds, cpu = run(line)
    written = size_of(workspace) - before
    told = [plan[key]["value"] for key in ("time", "cpu", "disk")]
    shown = ["unknown" if value is None else f"{value:.3g}" for value in (*told[:2], told[2] / 1e6)]
    print(
        f"| `{' '.join(line[:2])}` | {shown[0]} | {seconds:.3g} | {shown[1]} | {cpu:.3g} | {shown[2]} | "
        f"{written / 1e6:.3g} | {planning:.3g} |",
        flush=True,
    )


def main(root: Path) -> None:
    """All rows."""
    with tempfile.TemporaryDirectory() as place:
        workspace = Path(place)
        names = json.loads((root / "expected.json").read_text())["trio"]["teachers"]
        outputs = workspace / "outputs"
        subprocess.run(
            [sys.executable, str(root / "unpack.py"), str(outputs), "--teachers", *{*names, LABELLED}],
            check=True,
        )
        where = ["--workspace", place, "--target", str(root / "camvid" / "camvid.toml")]
        imports = [
            ["export-teacher", n, "--import", str(outputs / n), "--split", "val", *where] for n in names
        ]
        print("| line | s expected | s | CPU s expected | CPU s | MB expected | MB | CPU s of the dry run |")
        print("|---|---|---|---|---|---|---|---|")
        compare(imports[0], imports[1], workspace)
        run(imports[2])
        fuse = ["fuse", "--split", "val", "--rule", "plf", *where]
        compare([*fuse, "--name", "first"], [*fuse, "--name", "second", "--threshold", "50"], workspace)
        train = ["train", "--labels", str(outputs / LABELLED), *STUDENT, *where]
        compare(
            [*train, "--steps", "20", "--name", "first"],
            [*train, "--steps", "60", "--name", "second"],
            workspace,
        )
        test = ["test", "--predictions", str(outputs / names[0]), *where]
        compare(test, ["test", "--predictions", str(outputs / names[1]), *where], workspace)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT)
    main(parser.parse_args().folder)
