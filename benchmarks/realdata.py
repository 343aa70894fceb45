"""Every figure of the real teachers' ``expected.json``, through the command line.

    python benchmarks/realdata.py [FOLDER] [--npz] [--only trio four six]

FOLDER holds ``camvid/``, ``unpack.py`` and ``expected.json`` (default: ``ENDAUDA_REALDATA``, else
``../shared/realdata`` beside the repository). Each figure is what ``endauda export-teacher --import``,
``fuse`` and ``test --predictions`` print; the exit code is 1 if one differs in a printed digit.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from endauda_cli.cli import main

ROOT = Path(os.environ.get("ENDAUDA_REALDATA", Path(__file__).parents[2] / "shared" / "realdata"))


def endauda(*words: str) -> dict[str, Any]:
    """Run a command in this process and return its ``--json`` result."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main([*words, "--json", "--quiet"])
    if code:
        raise SystemExit(f"endauda {' '.join(words)}: exit code {code}")
    result: dict[str, Any] = json.loads(out.getvalue())["result"]
    return result


def figures(root: Path, workspace: Path, npz: bool, ensembles: list[str]) -> list[tuple[str, float, float]]:
    """(what, expected, found) for every figure of the ensembles and their teachers."""
    expected = json.loads((root / "expected.json").read_text())
    needed = {teacher for ensemble in ensembles for teacher in expected[ensemble]["teachers"]}
    unpacked = workspace / "outputs"
    unpack = [sys.executable, str(root / "unpack.py"), str(unpacked), "--teachers", *sorted(needed)]
    subprocess.run(unpack + (["--npz"] if npz else []), check=True)
    where = ["--workspace", str(workspace), "--target", str(root / "camvid" / "camvid.toml")]
    rows = []
    for name, miou in expected["teachers"].items():
        if name not in needed:
            continue
        endauda("export-teacher", name, "--import", str(unpacked / name), "--split", "val", *where)
        rows.append((name, miou, endauda("test", "--predictions", str(unpacked / name), *where)["miou"]))
    for ensemble in ensembles:
        for key, value in expected[ensemble].items():
            if key in ("teachers", "policy_val"):
                continue
            rule, _, threshold = key.removesuffix("_val").partition("_thr")
            words = ["--rule", rule.removesuffix("_val"), "--threshold", threshold or "0", "--split", "val"]
            label_set = f"{ensemble}-{key}"
            words += ["--policy", "val", "--name", label_set]
            fused = endauda("fuse", "--teachers", *expected[ensemble]["teachers"], *words, *where)
            score = endauda("test", "--predictions", fused["labels"], *where)
            rows.append((f"{ensemble} {key}: mIoU", value["miou"], score["miou"]))
            rows.append((f"{ensemble} {key}: coverage", value["coverage"], score["coverage"]))
            if rule == "plf_val":
                owners = [c["owner"] for c in fused["classes"]]
                if owners != expected[ensemble]["policy_val"]:
                    raise SystemExit(
                        f"{ensemble}: policy {owners}, expected {expected[ensemble]['policy_val']}"
                    )
    return rows


def agrees(expected: float, found: float) -> bool:
    """To the printed digits."""
    return abs(expected - found) <= 0.5e-4 + 1e-9


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT)
    parser.add_argument("--npz", action="store_true", help="import .npz instead of .npy")
    parser.add_argument("--only", nargs="+", default=["trio", "four", "six"], choices=["trio", "four", "six"])
    given = parser.parse_args()
    table = Table("figure", "expected", "endauda", "")
    with tempfile.TemporaryDirectory() as workspace:
        rows = figures(given.folder.resolve(), Path(workspace), given.npz, given.only)
    for what, expected, found in rows:
        table.add_row(
            what, f"{expected:.4f}", f"{found:.4f}", "same" if agrees(expected, found) else "DIFFERS"
        )
    Console(width=100).print(table)
    return 0 if all(agrees(expected, found) for _, expected, found in rows) else 1


if __name__ == "__main__":
    sys.exit(run())
