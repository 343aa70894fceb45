"""One file over HTTP into a ``.part`` file that is gone on with after a cut, a timeout or a kill.

Requests carries the bytes (TLS, proxies, pools); what it has no answer to is here:

- Every block is appended as it comes, so the length of the part is always where to go on. A note beside it
  (``.part.json``) says of which link, version and total it is.
- Going on takes a 206 whose Content-Range begins where the part ends and whose total and version are those of the
  note. A 200 begins anew; a 416 ends the download if the part is complete and begins anew if not.
- A web page is never taken for the file, whatever its type is said to be.
- Redirects are followed by hand: never in a circle, never from https to http.
"""

from __future__ import annotations

import json
import random
import re
import time
from dataclasses import asdict, dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from endauda_cli import __version__
from endauda_cli.errors import DownloadError
from endauda_cli.files import free_bytes, size_text, sync
from endauda_cli.weights.troubles import Cut, SourceError, disk_errors, network_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import requests

    Opener = Callable[[requests.Session, str, Mapping[str, str], float], requests.Response]
    """Sends a GET for a link with these headers and this timeout; follows what has to be followed."""

BLOCK = 64 * 1024
"""Bytes that a kill can lose at most."""
MAX_REDIRECTS = 10
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that may be others in a while."""
TICK_EVERY_S = 0.1
_PAGE_START = re.compile(rb"\s*<(!doctype\s+html|html|head|\?xml)", re.IGNORECASE)
_NUMBER = r"[0-9]{1,18}"
"""Longer ones are nonsense, which int() would even refuse."""
_CONTENT_RANGE = re.compile(rf"bytes ({_NUMBER})-({_NUMBER})/({_NUMBER}|\*)")


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server, and how often to ask again."""

    timeout_s: float = 30.0
    """Without a byte; then the connection counts as cut."""
    attempts: int = 5
    """That bring nothing new; any new byte starts the count anew."""
    backoff_s: float = 1.0
    """Before the second attempt; doubles from each to the next."""
    longest_wait_s: float = 120.0
    """A server that asks for more (Retry-After) is not waited for."""


@dataclass(frozen=True)
class Version:
    """Which version of which file a part is the beginning of."""

    url: str
    validator: str | None
    """ETag or Last-Modified; a server that sends neither is trusted as long as the total stays the same."""
    total: int | None
    name: str | None = None
    """Of the file, if the server says it."""


class Part:
    """A file that grows, and the note beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.note = path.with_name(f"{path.name}.json")
        self.version = self._read_note()
        if self.version is None:
            self.restart()

    @property
    def length(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def is_complete(self) -> bool:
        return self.version is not None and self.version.total == self.length

    def begin(self, version: Version) -> None:
        """Empty it, for a version. The note comes first: bytes without a note are dropped, not trusted."""
        self.restart()
        self.note.write_text(json.dumps(asdict(version)), encoding="utf-8")
        self.version = version

    def restart(self) -> None:
        remove_part(self.path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.version = None

    def _read_note(self) -> Version | None:
        try:
            version = Version(**json.loads(self.note.read_text(encoding="utf-8")))
            return version if isinstance(version.validator, str | None) else None
        except (OSError, ValueError, TypeError, RecursionError):
            return None


def fetch(
    session: requests.Session,
    url: str,
    opener: Opener,
    path: Path,
    size: int | None,
    digest_known: bool,
    patience: Patience,
    tick: Callable[[int, int | None, str], None],
) -> str | None:
    """Fetch a link into a part file, going on with what is there, until it is complete and on disk.

    Args:
        session: of this process.
        url: the link.
        opener: sends the requests.
        path: of the part.
        size: bytes that are expected, or ``None``.
        digest_known: whether the caller can tell a wrong whole from a right one; then bytes of another
            mirror are gone on with.
        patience: how long to wait, how often to ask.
        tick: is told of bytes that are there, bytes in all (or ``None``), and what goes on.

    Returns:
        The file's name, if the server says one that is plain.

    Raises:
        SourceError: if this link does not give the file.
        DownloadError: if the disk is full or cannot be written.
    """
    with disk_errors(path):
        part = Part(path)
        if part.version is not None and part.version.url != url and not digest_known:
            part.restart()  # another mirror's file may be another file
        failures, furthest = 0, part.length
        while not part.is_complete:
            try:
                _attempt(session, url, opener, part, size, patience, tick)
                break
            except Cut as cut:
                failures = failures + 1 if part.length <= furthest else 1
                furthest = max(furthest, part.length)
                if failures >= patience.attempts:
                    raise SourceError(f"{url}: {cut}, {failures} times in a row") from cut
                wait = _back_off(patience, failures) if cut.wait_s is None else cut.wait_s
                tick(
                    part.length, part.version.total if part.version else size, f"{cut}; again in {wait:.0f} s"
                )
                time.sleep(wait)
        sync(part.path)
        return part.version.name if part.version is not None else None


def _attempt(
    session: requests.Session,
    url: str,
    opener: Opener,
    part: Part,
    size: int | None,
    patience: Patience,
    tick: Callable[[int, int | None, str], None],
) -> None:
    """One request, and all of its answer that comes."""
    start = part.length
    headers = {"Accept-Encoding": "identity", "User-Agent": f"endauda/{__version__}"}
    if start:
        headers["Range"] = f"bytes={start}-"
        validator = part.version.validator if part.version is not None and part.version.url == url else None
        if validator is not None and not validator.startswith("W/"):
            headers["If-Range"] = validator
    with network_errors(url), opener(session, url, headers, patience.timeout_s) as response:
        status = response.status_code
        if status == 416 and start:
            return _unsatisfiable(response, part)
        if status in PASSING:
            raise Cut(f"the server answers {_status(response)}", _retry_after(response, url, patience))
        if status not in (200, 206):
            raise SourceError(f"{url}: the server answers {_status(response)}")
        if is_page(response):
            raise SourceError(f"{url}: a web page came instead of a file")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise SourceError(f"{url}: the file comes compressed, which was not asked for")
        total = _total_of_rest(response, part, url) if status == 206 else _length(response)
        if size is not None and total is not None and total != size:
            raise SourceError(f"{url}: the server has {total:,} bytes, but {size:,} were expected")
        if status == 200:
            part.begin(Version(url, _validator(response), total, _file_name(response)))
        _refuse_full_disk(part, total)
        _append(response, part, total if total is not None else size, tick)


def _append(
    response: requests.Response,
    part: Part,
    total: int | None,
    tick: Callable[[int, int | None, str], None],
) -> None:
    length, told = part.length, 0.0
    with part.path.open("ab", buffering=0) as file:
        # read1: what a cut connection has delivered is kept, not only whole blocks of it.
        while block := response.raw.read1(BLOCK, decode_content=False):
            if total is not None and length + len(block) > total:
                raise SourceError(f"{response.url}: more than the {total:,} bytes came that were expected")
            view = memoryview(block)
            while view:
                view = view[file.write(view) :]
            length += len(block)
            if time.monotonic() - told >= TICK_EVERY_S:
                told = time.monotonic()
                tick(length, total, "")
    tick(length, total, "")
    if total is not None and length < total:
        raise Cut(f"the connection ended after {length:,} of {total:,} bytes")


def _total_of_rest(response: requests.Response, part: Part, url: str) -> int:
    """The whole file's length, if a 206 is the rest of the part; else the part is dropped and begun anew."""
    text = response.headers.get("Content-Range", "")
    match = _CONTENT_RANGE.fullmatch(text.strip())
    known = part.version.total if part.version is not None else None
    fits = (
        match is not None
        and match[3] != "*"
        and int(match[1]) == part.length > 0
        and int(match[1]) <= int(match[2]) < int(match[3])
        and known in (None, int(match[3]))
    )
    if not fits or match is None:
        part.restart()
        raise Cut(f"the server sends {text or 'no range'!r} instead of the rest; from the beginning")
    validator = _validator(response)
    if (
        part.version is not None
        and part.version.url == url
        and None not in (part.version.validator, validator)
    ):
        if part.version.validator != validator:
            part.restart()
            raise Cut("the file has changed on the server; from the beginning")
    return int(match[3])


def _unsatisfiable(response: requests.Response, part: Part) -> None:
    """A 416: nothing lies behind the part. It is complete, or no beginning of this file."""
    match = re.fullmatch(rf"bytes \*/({_NUMBER})", response.headers.get("Content-Range", "").strip())
    if match is None or int(match[1]) != part.length:
        part.restart()
        raise Cut("the server has nothing behind what is there; from the beginning")


def follow(
    session: requests.Session, url: str, headers: Mapping[str, str], timeout_s: float
) -> requests.Response:
    """GET a link and those that it leads to.

    Raises:
        SourceError: if they lead in a circle, too far, or from https to http.
    """
    seen = [url]
    while True:
        response = session.get(
            url, headers=dict(headers), stream=True, allow_redirects=False, timeout=timeout_s
        )
        if not response.is_redirect:
            return response
        response.close()
        following = urljoin(url, response.headers["Location"])
        check_hop(url, following)
        if following in seen:
            raise SourceError(f"{seen[0]}: leads in a circle (back to {following})")
        if len(seen) > MAX_REDIRECTS:
            raise SourceError(f"{seen[0]}: leads on and on ({MAX_REDIRECTS} redirects)")
        seen.append(url := following)


def check_hop(url: str, following: str) -> None:
    """Refuse a link that leads to another kind of link, or out of an encrypted connection.

    Raises:
        SourceError: says from where to where.
    """
    before, after = urlsplit(url).scheme, urlsplit(following).scheme
    if after not in ("http", "https"):
        raise SourceError(f"{url}: leads to {following}, which is not a web address")
    if (before, after) == ("https", "http"):
        raise SourceError(f"{url}: leads to {following}, out of the encrypted connection; not followed")


def is_page(response: requests.Response) -> bool:
    """Whether an answer says of itself that it is a web page."""
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return kind in ("text/html", "application/xhtml+xml")


def begins_a_page(path: Path) -> bool:
    """Whether a file is a web page, whatever it was said to be."""
    with path.open("rb") as file:
        return _PAGE_START.match(file.read(1024)) is not None


def read_text(url: str, patience: Patience, tell: Callable[[str], None], limit: int = 16 << 20) -> str:
    """A web page's text, with the same patience; ``tell`` hears what is waited for.

    Raises:
        SourceError: if it does not come, or is larger than ``limit`` bytes.
    """
    with new_session() as session:
        for attempt in range(1, patience.attempts + 1):
            try:
                with (
                    network_errors(url),
                    follow(
                        session, url, {"User-Agent": f"endauda/{__version__}"}, patience.timeout_s
                    ) as response,
                ):
                    if response.status_code in PASSING:
                        wait = _retry_after(response, url, patience)
                        raise Cut(f"the server answers {_status(response)}", wait)
                    if response.status_code != 200:
                        raise SourceError(f"{url}: the server answers {_status(response)}")
                    return page_text(response, limit)
            except Cut as cut:
                if attempt == patience.attempts:
                    raise SourceError(f"{url}: {cut}, {attempt} times in a row") from cut
                wait = _back_off(patience, attempt) if cut.wait_s is None else cut.wait_s
                tell(f"{cut}; again in {wait:.0f} s")
                time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def page_text(response: requests.Response, limit: int = 1 << 20) -> str:
    """The text of an answer, at most ``limit`` bytes of it."""
    content = bytearray()
    for block in response.iter_content(BLOCK):
        content += block
        if len(content) > limit:
            raise SourceError(f"{response.url}: the page is larger than {size_text(limit)}")
    return content.decode("utf-8", errors="replace")


# ---------------------------------------------------------------------------- small things


def is_plain_name(name: str) -> bool:
    """Whether a name that a stranger chose can be that of a file, in the folder where it is put."""
    if name in ("", ".", "..") or not name.isprintable() or re.search(r"[/\\:]", name):
        return False
    return len(name.encode()) <= 255


def new_session() -> requests.Session:
    """Connections to reuse; proxies and certificates come from HTTP(S)_PROXY, NO_PROXY and REQUESTS_CA_BUNDLE."""
    import requests

    return requests.Session()


def _status(response: requests.Response) -> str:
    return f"{response.status_code} {response.reason or ''}".strip()


def _length(response: requests.Response) -> int | None:
    text = response.headers.get("Content-Length", "")
    return int(text) if re.fullmatch(_NUMBER, text) else None


def _validator(response: requests.Response) -> str | None:
    """The version of an answer; a weak ETag tells only that it is another one."""
    etag: str | None = response.headers.get("ETag")
    modified: str | None = response.headers.get("Last-Modified")
    return etag if etag is not None and (modified is None or not etag.startswith("W/")) else modified


def _back_off(patience: Patience, failures: int) -> float:
    """Seconds to wait; spread, so that many clients do not come back together."""
    wait = patience.backoff_s * 2.0 ** min(failures - 1, 30) * random.uniform(0.75, 1.25)
    return min(wait, patience.longest_wait_s)


def _file_name(response: requests.Response) -> str | None:
    """Of Content-Disposition; the last part of it, if that is plain."""
    message = Message()
    message["Content-Disposition"] = response.headers.get("Content-Disposition", "")
    name = re.split(r"[/\\]", message.get_filename() or "")[-1].strip()
    return name if is_plain_name(name) else None


def _retry_after(response: requests.Response, url: str, patience: Patience) -> float | None:
    """Seconds that the server asks to wait.

    Raises:
        SourceError: if that is too long.
    """
    text = response.headers.get("Retry-After", "").strip()
    if not text:
        return None
    if re.fullmatch(_NUMBER, text):
        wait = float(text)
    else:
        try:
            wait = max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
        except (ValueError, OverflowError):
            return None
    if wait > patience.longest_wait_s:
        raise SourceError(
            f"{url}: the server answers {_status(response)} and asks to come back in {wait / 60:.0f} minutes"
        )
    return wait


def _refuse_full_disk(part: Part, total: int | None) -> None:
    free = free_bytes(part.path.parent)
    if total is None or free is None or free >= total - part.length:
        return
    raise DownloadError(
        f"{part.path}: {size_text(total - part.length)} are still to come, but {size_text(free)} are free; "
        "free some space and run the same command again"
    )


def remove_part(path: Path) -> None:
    """Forget a part and its note."""
    for leftover in (path, path.with_name(f"{path.name}.json")):
        leftover.unlink(missing_ok=True)
