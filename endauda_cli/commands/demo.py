"""``endauda demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from endauda_cli.commands import options as o


def command(
    out: Annotated[Path, o.option("--out", help="Folder for the demo's workspace.")] = Path("demo"),
    seed: Annotated[int, o.option("--seed", help="Of the world and of all training.")] = 0,
    device: o.DeviceOption = "auto",
    json: o.JsonOption = False,
    quiet: o.QuietOption = False,
    verbose: o.VerboseOption = False,
) -> None:
    """Show the whole story on a generated street world: archives, labels, student, scores.

    Takes minutes on a CPU and downloads nothing. Leaves a workspace with the usual tree and report.html.

    **Examples**

    - `endauda demo`
    - `endauda demo --out streets --seed 1`
    """
    from endauda_cli.config import check_seed
    from endauda_cli.terminal.console import Terminal

    check_seed(seed)
    terminal = Terminal("demo", json, quiet, verbose)
    with terminal.loading("torch"):
        from endauda_cli.demo.story import run_demo
        from endauda_cli.distributed import pick_device

    with terminal:
        terminal.show(run_demo(out, seed, pick_device(device), terminal.report))
