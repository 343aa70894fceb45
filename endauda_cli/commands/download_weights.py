"""``endauda download-weights``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from endauda_cli.commands.options import AtWorkspace
from endauda_cli.commands.signature import command as make_command
from endauda_cli.errors import ConfigError, DownloadError
from endauda_cli.options import option


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class DownloadWeights(AtWorkspace):
    """Options of ``download-weights``."""

    names: list[str] | None = option(
        None, complete="published",
        help="Which, or patterns such as 'gta5/*'; without any, what there is gets listed.",
    )  # fmt: skip
    show_list: bool = option(False, "--list", help="List them: name, state, licence, place, size, score.")
    from_file: Path | None = option(
        None, "--from-file", help="Check and install a file that you have fetched yourself (for one name)."
    )
    offline: bool = option(False, "--offline", help="Ask nobody; only check what is there.")
    mirror: str | None = option(
        None, "--mirror", metavar="URL",
        help="Web folder with files under their workspace paths; asked first.",
    )  # fmt: skip
    manifest: Path | None = option(
        None, "--manifest",
        help="List of your own, in the format of docs/weights.md. [default: the published weights]",
    )  # fmt: skip
    timeout: float = option(30, "--timeout", help="Seconds without a byte after which to connect anew.")
    attempts: int = option(
        5, "--attempts", help="Connections that bring nothing new before a link is given up."
    )


def run(options: DownloadWeights) -> None:
    """Fetch published weights and pseudo labels, and verify them.

    A download that was stopped goes on where it was. Each file is compared with its digest (or with what was first
    seen, in weights/weights.lock.json), and each checkpoint is opened without running code and laid against its
    network before it gets its name. Proxies are taken from HTTP_PROXY, HTTPS_PROXY and NO_PROXY.

    **Examples**

    - `endauda download-weights`
    - `endauda download-weights gta5/source gta5/ours/drn`
    - `endauda download-weights dacs --from-file ~/Downloads/dacs.zip`
    """
    from endauda_cli.weights import FetchOptions, Patience, fetch_weights, list_weights, read_manifest
    from endauda_cli.workspace import find_workspace

    if options.timeout <= 0 or options.attempts < 1:
        raise ConfigError("--timeout must be above 0 and --attempts at least 1")
    if options.from_file is not None and not options.names:
        raise ConfigError("--from-file needs the name of what the file is")
    found = find_workspace(options.workspace)
    published = read_manifest(options.manifest)
    with options.terminal("download-weights") as terminal:
        if options.show_list or not options.names:
            terminal.show(list_weights(found, published, options.names or ()))
            return
        fetch = FetchOptions(
            options.mirror,
            None if options.from_file is None else found.path(options.from_file.expanduser()),
            options.offline,
            Patience(timeout_s=options.timeout, attempts=options.attempts),
        )
        result = fetch_weights(found, published, options.names, fetch, terminal.report)
        terminal.show(result)
    failed = result.failures
    if len(failed) + len(result.fetched) > 1 and failed:
        raise DownloadError(
            f"not there: {', '.join(f.name for f in failed)} (reasons above); run again to retry"
        )
    if failed:
        raise DownloadError(failed[0].reason)


command = make_command(DownloadWeights, run)
