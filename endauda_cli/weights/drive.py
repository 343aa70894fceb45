"""Google Drive: share links as files, its page before large files, and its listing of folders.

The two pages are read as they are today; if Google changes them, this is the place. (gdown reads the same pages. It is
not used, because it keeps to itself what going on and verifying are built on here: versions, ranges, digests.)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote, urlencode, urljoin, urlsplit

from endauda_cli.weights.transport import (
    Patience,
    check_hop,
    follow,
    is_page,
    is_plain_name,
    page_text,
    read_text,
)
from endauda_cli.weights.troubles import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import requests

SITE = "https://drive.google.com"
MAX_DEPTH = 8
MAX_FILES = 100_000
_HOSTS = ("drive.google.com", "docs.google.com", "drive.usercontent.google.com")
_ID = re.compile(r"[\w-]{10,}", re.ASCII)


@dataclass(frozen=True)
class DriveFile:
    """A file in a folder."""

    path: str
    """Relative to the folder, each part checked to be a plain name."""
    id: str

    @property
    def url(self) -> str:
        return file_url(self.id)


def file_url(id: str) -> str:
    """The share link of a file."""
    return f"{SITE}/file/d/{id}/view"


def file_id(url: str) -> str | None:
    """Of a share or download link of a file; ``None`` for all other links."""
    return _id_in(url, r"/(?:file/)?d/([\w-]+)(?:/|$)", ("/uc", "/open", "/download"))


def folder_id(url: str) -> str | None:
    """Of a share link of a folder; ``None`` for all other links."""
    return _id_in(url, r"/drive/(?:u/\d+/)?folders/([\w-]+)(?:/|$)", ("/folderview", "/embeddedfolderview"))


def _id_in(url: str, pattern: str, with_query: tuple[str, ...]) -> str | None:
    parts = urlsplit(url)
    if parts.hostname not in _HOSTS and f"{parts.scheme}://{parts.netloc}" != SITE:
        return None
    if match := re.match(pattern, parts.path):
        return match[1]
    found = parse_qs(parts.query).get("id", [""])[0] if parts.path in with_query else ""
    return found if _ID.fullmatch(found) else None


def open_file(
    session: requests.Session, url: str, headers: Mapping[str, str], timeout_s: float
) -> requests.Response:
    """GET a file; where Drive asks first whether to load what it cannot scan for viruses, say yes.

    Raises:
        SourceError: if it is not shared with everyone, or its quota is used up.
    """
    address = f"{SITE}/uc?export=download&id={file_id(url)}"
    response = follow(session, address, headers, timeout_s)
    if not is_page(response):
        return response
    if response.status_code == 206:  # a piece of the page
        response.close()
        response = follow(session, address, _whole(headers), timeout_s)
    with response:
        if response.status_code not in (200, 206):
            return response
        page = page_text(response)
    form = _Form()
    form.feed(page)
    if form.action is None:
        raise SourceError(f"{url}: {_why(response.url, page)}")
    target = urljoin(response.url, form.action)
    check_hop(response.url, target)
    response = follow(session, f"{target}?{urlencode(form.fields)}", headers, timeout_s)
    if is_page(response) and response.status_code == 200:
        with response:
            raise SourceError(f"{url}: {_why(response.url, page_text(response))}")
    return response


def list_folder(url: str, patience: Patience, tell: Callable[[str], None]) -> list[DriveFile]:
    """All files in a shared folder and the folders below it; ``tell`` hears what is waited for.

    Raises:
        SourceError: if the folder cannot be listed.
    """
    root = folder_id(url)
    files: list[DriveFile] = []
    seen = {root}
    below = [("", root, 0)]
    while below:
        prefix, id, depth = below.pop(0)
        page = read_text(f"{SITE}/embeddedfolderview?id={quote(id or '')}", patience, tell)
        listing = _Listing()
        listing.feed(page)
        if listing.title is None and not listing.links:
            raise SourceError(f"{url}: {_why('', page)}")
        for link, title in listing.links:
            path = f"{prefix}{_plain_name(title, url)}"
            if (file := file_id(link)) is not None and "docs.google.com" not in link:
                files.append(DriveFile(path, file))
            elif (folder := folder_id(link)) is not None and folder not in seen and depth < MAX_DEPTH:
                seen.add(folder)
                below.append((f"{path}/", folder, depth + 1))
        if len(files) > MAX_FILES:
            raise SourceError(f"{url}: holds more than {MAX_FILES:,} files")
    return files


def _plain_name(title: str, url: str) -> str:
    """A name in a listing, which anybody can have chosen."""
    name = title.strip()
    if not is_plain_name(name):
        raise SourceError(f"{url}: holds a file called {title!r}, which is no plain name")
    return name


def _whole(headers: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in headers.items() if key not in ("Range", "If-Range")}


def _why(url: str, page: str) -> str:
    """What a page that is not the file says, in words."""
    if urlsplit(url).hostname == "accounts.google.com" or "ServiceLogin" in page:
        return "Google Drive asks to sign in: the file is not shared with everyone"
    text = page.lower()
    if "quota exceeded" in text or "too many users have viewed or downloaded" in text:
        return "Google Drive's download quota of this file is used up; try again tomorrow"
    title = re.search(r"<title[^>]*>(.*?)</title>", page, re.IGNORECASE | re.DOTALL)
    return f"Google Drive shows a page instead ({title[1].strip() if title else 'without a title'})"


class _Form(HTMLParser):
    """Action and fields of the form that asks before a large file."""

    def __init__(self) -> None:
        super().__init__()
        self.action: str | None = None
        self.fields: dict[str, str] = {}
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "form" and given.get("id") in ("download-form", "downloadForm"):
            self.action, self._inside = given.get("action"), True
        elif (
            tag == "input" and self._inside and given.get("type") == "hidden" and (name := given.get("name"))
        ):
            self.fields[name] = given.get("value") or ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "form"


class _Listing(HTMLParser):
    """Links of a folder's listing with the text in them, and the page's title."""

    def __init__(self) -> None:
        super().__init__()
        self.title: str | None = None
        self._link: str | None = None
        self._texts: list[str] = []
        self._titled = False
        self.links: list[tuple[str, str]] = []
        self._in_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self._in_title = tag == "title"
        if tag == "a":
            self._link, self._texts, self._titled = given.get("href"), [], False
        elif "flip-entry-title" in (given.get("class") or "").split():
            self._texts, self._titled = [], True  # beside it stand a date and an owner

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title = data.strip()
        elif self._link is not None:
            self._texts.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._in_title = False
        if self._link is None or (tag != "a" and not (tag == "div" and self._titled)):
            return
        if text := "".join(self._texts).strip():
            self.links.append((self._link, text))
        self._link, self._titled = None, False
