"""The shells that endauda completes in: their scripts, and where each keeps them.

The scripts themselves are in ``data/completions``; how they ask is in ``terminal.tab``.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from endauda_cli.completion import values
from endauda_cli.errors import ConfigError, did_you_mean
from endauda_cli.files import replacing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_SHELL = {"metavar": "[SHELL]", "autocompletion": values.shells, "show_default": False}
InstallCompletion = Annotated[
    str | None,
    typer.Option("--install-completion", help="Complete on TAB from now on: bash, zsh, fish or powershell; "
                 "without a name, the shell you are in.", **_SHELL)
]  # fmt: skip
ShowCompletion = Annotated[
    str | None, typer.Option("--show-completion", help="Print the script that does it, likewise.", **_SHELL)
]
"""For the help; ``serve_shell`` takes them before, as Typer knows no option whose value may be left out."""


@dataclass(frozen=True)
class Place:
    """Where a shell finds a script.

    Attributes:
        script: the script's own file.
        startup: a file that the shell reads when it starts, and what must stand in it; ``None`` if nothing must.
    """

    script: Path
    startup: tuple[Path, str] | None = None


@dataclass(frozen=True)
class Shell:
    """A shell.

    Attributes:
        name: what the user calls it.
        file: its script in ``data/completions``.
        place: where that goes, from the environment.
    """

    name: str
    file: str
    place: Callable[[Mapping[str, str]], Place]

    def script(self) -> str:
        """What the shell must read."""
        from importlib.resources import files

        return files("endauda_cli").joinpath("data/completions", self.file).read_text(encoding="utf-8")


def serve_shell(words: list[str], load: Callable[[], Any]) -> bool:
    """Do what a shell asks for on TAB, or what ``--install-completion`` and ``--show-completion`` ask for.

    Args:
        words: of the command line; of ``--install-completion --help``, ``--help`` is left.
        load: gives the program's group of commands.

    Returns:
        whether it was asked for.

    Raises:
        ConfigError: if the shell is unknown or its files cannot be written.
    """
    if "_ENDAUDA_COMPLETE" in os.environ:
        from endauda_cli.completion.tab import answer_tab

        answer_tab(load)
        return True
    option, equals, name = words[0].partition("=") if words else ("", "", "")
    if option not in ("--install-completion", "--show-completion"):
        return False
    names = [name, *words[1:]] if equals else list(words[1:])
    if set(names) & {"--help", "-h"}:
        words[:] = ["--help"]
        return False
    if len(names) > 1:
        raise ConfigError(f"{option} takes one shell, but {len(names)} were named: {' '.join(names)}")
    shell = find_shell(names[0] if names else detect_shell())
    if option == "--show-completion":
        print(shell.script(), end="")
    else:
        print("\n".join(install(shell, os.environ)))
    return True


def find_shell(name: str) -> Shell:
    """A shell by its name.

    Raises:
        ConfigError: if there is no script for it.
    """
    name = {"pwsh": "powershell"}.get(name, name)
    if name not in SHELLS:
        raise ConfigError(
            f"no completion for the shell {name!r}, only for {', '.join(SHELLS)}{did_you_mean(name, SHELLS)}"
        )
    return SHELLS[name]


def detect_shell() -> str:
    """The name of the shell that this process was called from.

    Raises:
        ConfigError: if it cannot be told.
    """
    import shellingham

    try:
        return str(shellingham.detect_shell()[0])
    except shellingham.ShellDetectionFailure:
        if named := os.environ.get("SHELL"):
            return Path(named).name
    raise ConfigError(f"which shell this is cannot be told; name it: {', '.join(SHELLS)}")


def install(shell: Shell, environment: Mapping[str, str]) -> list[str]:
    """Put the shell's script in its place; what is there already is left alone.

    Returns:
        what was done, and how it takes effect, in sentences.

    Raises:
        ConfigError: if a file cannot be written.
    """
    place = shell.place(environment)
    said = []
    try:
        said.append(f"{shell.name}: {_written(place.script, shell.script().encode())}")
        if place.startup is not None:
            said.append(f"{shell.name}: {_with_block(*place.startup)}")
    except OSError as error:
        raise ConfigError(
            f"{error.filename}: cannot be written ({error.strerror}); mend it, or put the output of "
            f"'endauda --show-completion {shell.name}' where {shell.name} reads it"
        ) from error
    return [*said, f"It takes effect in every {shell.name} that is started from now on."]


def _written(path: Path, content: bytes) -> str:
    if path.is_file() and path.read_bytes() == content:
        return f"{path} is up to date"
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, content)
    return f"wrote {path}"


BEGIN, END = b"# >>> endauda completion >>>", b"# <<< endauda completion <<<"


def _with_block(path: Path, lines: str) -> str:
    """Give a start-up file our lines, marked, at its end; the rest of it stays as it is, byte by byte."""
    block = b"\n".join((BEGIN, os.fsencode(lines), END))
    content = path.read_bytes() if path.exists() else b""
    begin, end = content.find(BEGIN), content.find(END)
    if block in content:
        return f"{path} is up to date"
    if 0 <= begin < end:
        _replace(path, content[:begin] + block + content[end + len(END) :])
        return f"changed the lines of endauda in {path}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write((b"" if content.endswith(b"\n") or not content else b"\n") + block + b"\n")
    return f"added {len(block.splitlines())} lines at the end of {path}"


def _replace(path: Path, content: bytes) -> None:
    """Write whole or not at all; a link stays a link, and permissions stay."""
    import shutil

    path = path.resolve()
    with replacing(path) as temporary:
        temporary.write_bytes(content)
        if path.exists():
            shutil.copymode(path, temporary)


# ---------------------------------------------------------------------------- their places


def _home(environment: Mapping[str, str], variable: str, otherwise: str) -> Path:
    """A folder that a variable names, else one in the user's home."""
    return Path(environment.get(variable) or Path.home() / otherwise)


def _bash(environment: Mapping[str, str]) -> Place:
    """Where the bash-completion package loads from, and, if it is not there, the start-up file."""
    data = _home(environment, "XDG_DATA_HOME", ".local/share") / "bash-completion"
    script = _home(environment, "BASH_COMPLETION_USER_DIR", str(data)) / "completions/endauda"
    lines = f'if [ -z "${{BASH_COMPLETION_VERSINFO-}}" ] && [ -r {_quoted(script)} ]; then . {_quoted(script)}; fi'
    return Place(script, (Path.home() / ".bashrc", lines))


def _zsh(environment: Mapping[str, str]) -> Place:
    folder = _home(environment, "XDG_DATA_HOME", ".local/share") / "zsh/site-functions"
    lines = (
        f"fpath=({_quoted(folder)} $fpath)\n"
        "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit -i; }\n"
        "autoload -Uz _endauda && compdef _endauda endauda"
    )
    return Place(folder / "_endauda", (_home(environment, "ZDOTDIR", "") / ".zshrc", lines))


def _fish(environment: Mapping[str, str]) -> Place:
    return Place(_home(environment, "XDG_CONFIG_HOME", ".config") / "fish/completions/endauda.fish")


def _powershell(environment: Mapping[str, str]) -> Place:
    profile = _powershell_profile()
    script = profile.parent / "endauda.completion.ps1"
    lines = (
        'if (Test-Path "$PSScriptRoot/endauda.completion.ps1") { . "$PSScriptRoot/endauda.completion.ps1" }'
    )
    return Place(script, (profile, lines))


def _powershell_profile() -> Path:
    """As PowerShell itself says; where there is none, where it would look."""
    import shutil
    import subprocess

    for program in filter(None, map(shutil.which, ("pwsh", "powershell"))):
        try:
            asked = subprocess.run(
                [program, "-NoProfile", "-NonInteractive", "-Command", "$PROFILE"],
                capture_output=True, text=True, timeout=30, check=True,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError):
            continue
        if path := asked.stdout.strip():
            return Path(path)
    folder = "Documents/PowerShell" if sys.platform == "win32" else ".config/powershell"
    return Path.home() / folder / "Microsoft.PowerShell_profile.ps1"


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", r"'\''") + "'"


SHELLS = {
    shell.name: shell
    for shell in (
        Shell("bash", "endauda", _bash),
        Shell("zsh", "_endauda", _zsh),
        Shell("fish", "endauda.fish", _fish),
        Shell("powershell", "endauda.ps1", _powershell),
    )
}
