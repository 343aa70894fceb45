"""``endauda demo``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from endauda_cli.commands.options import OnDevice, Told
from endauda_cli.commands.signature import command as make_command
from endauda_cli.options import option


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Demo(OnDevice, Told):
    """Options of ``demo``."""

    out: Path = option(Path("demo"), "--out", help="Folder for the demo's workspace.")
    seed: int = option(0, "--seed", help="Of the world and of all training.")
    full: bool = option(
        False,
        "--full",
        help="Adapt four teachers by published methods (dacs, cbst, crst, mrnet) instead of simulated ones.",
    )


def run(options: Demo) -> None:
    """Show the whole story on a generated street world: archives, labels, student, scores.

    Takes minutes on a CPU and downloads nothing. Leaves a workspace with the usual tree and report.html.

    **Examples**

    - `endauda demo`
    - `endauda demo --out streets --seed 1`
    - `endauda demo --full --out full`
    """
    from endauda_cli.config import check_seed

    check_seed(options.seed)
    terminal = options.terminal("demo")
    with terminal.loading("torch"):
        from endauda_cli.demo.full import ADAPTED
        from endauda_cli.demo.story import run_demo
        from endauda_cli.demo.translated import TRANSLATED
        from endauda_cli.distributed import pick_device

    with terminal:
        ensemble = ADAPTED if options.full else TRANSLATED
        device = pick_device(options.device)
        terminal.show(run_demo(options.out, options.seed, device, terminal.report, ensemble))


command = make_command(Demo, run)
