"""What goes wrong with disks and networks, in the user's words."""

from __future__ import annotations

import http.client
import re
from typing import TYPE_CHECKING, Any

from endauda_cli.errors import DownloadError
from endauda_cli.masking import masked, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import requests

    Opener = Callable[[requests.Session, str, Mapping[str, str], float], requests.Response]
    """Sends a GET for a link with these headers and this timeout; follows what has to be followed."""


class SourceError(DownloadError):
    """A link does not give the file; another mirror may."""


class Cut(Exception):
    """The attempt ended, but the next may go on."""

    def __init__(self, why: str, wait_s: float | None = None) -> None:
        super().__init__(why)
        self.wait_s = wait_s


def shown(text: str) -> str:
    """A message or link for the terminal: without passwords and tokens in links, and without what servers may
    have slipped in to steer the terminal."""
    return printable(masked(text))


class disk_errors:
    """Tells of a disk that is full or cannot be written; what is there stays."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError):
            raise DownloadError(
                f"{self.path}: cannot be written ({error.strerror or error}); free some space and run the same "
                "command again, it goes on from there"
            ) from error


class network_errors:
    """Tells what the HTTP library raises as a cut, or as a link that cannot be used."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, (Cut, DownloadError)):
            return
        import requests
        import urllib3

        if isinstance(error, requests.exceptions.SSLError):
            raise SourceError(
                f"{self.url}: the server's certificate is not accepted ({reason(error)})"
            ) from error
        if isinstance(
            error, ValueError
        ):  # InvalidURL and InvalidSchema are, and what idna and urlsplit raise
            raise SourceError(
                f"{self.url}: cannot be asked ({error}); check the link and the proxy"
            ) from error
        timeouts = (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)
        if isinstance(error, timeouts):
            raise Cut("the server sends nothing") from error
        if isinstance(_innermost(error), (urllib3.exceptions.IncompleteRead, http.client.IncompleteRead)):
            raise Cut("the connection ended too early") from error
        if isinstance(error, (requests.exceptions.RequestException, urllib3.exceptions.HTTPError)):
            whose = (
                "connection to the proxy"
                if isinstance(error, requests.exceptions.ProxyError)
                else "connection"
            )
            raise Cut(f"the {whose} failed ({reason(error)})") from error
        if isinstance(error, OSError) and error.errno is None:  # not the disk
            raise SourceError(f"{self.url}: cannot be asked ({error}); check REQUESTS_CA_BUNDLE") from error


def reason(error: BaseException) -> str:
    """An error in a few words: those around the innermost repeat it with the addresses of objects."""
    inner = _innermost(error)
    words = getattr(inner, "strerror", None) or str(inner) or type(inner).__name__
    return re.sub(r"<[^>]*>:? ?", "", str(words)).strip()


def _innermost(error: BaseException) -> BaseException:
    inner = error
    while (below := getattr(inner, "reason", None) or inner.__cause__ or inner.__context__) is not None:
        if not isinstance(below, BaseException) or below is inner:
            break
        inner = below
    return inner
