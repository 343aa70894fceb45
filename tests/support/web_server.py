"""A real HTTP server on the loopback address, which behaves as badly as it is told to.

What it does to a request is a :class:`Manner`: by default it serves files as a good server does, with ranges,
versions and If-Range. Every answer is written down with the bytes of it that were sent.
"""

from __future__ import annotations

import http.server
import select
import socket
import struct
import threading
import time
from collections import defaultdict
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True)
class Manner:
    """How to treat one request."""

    status: int | None = None
    """Answer only this, with ``page`` as body."""
    page: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    """Over those that a good server sends; an empty value leaves one out."""
    cut_after: int | None = None
    """Bytes of the body after which the connection ends."""
    reset: bool = False
    """Whether it then ends with a reset."""
    ignore_range: bool = False
    shift_range: int = 0
    """Send other bytes than were asked for, and say so."""
    chunked: bool = False
    block: int = 1 << 16
    pause_s: float = 0.0
    """Between blocks."""
    before_block: Callable[[int], object] | None = None
    """Called with the position in the file of each block that is about to be sent."""


@dataclass
class Answer:
    """What was asked, and what was answered."""

    path: str
    headers: dict[str, str]
    status: int = 0
    start: int = 0
    sent: int = 0
    """Bytes of the file."""


class Web:
    """What the server serves, and what it did."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.versions: dict[str, str] = {}
        self.usual: dict[str, Manner] = defaultdict(Manner)
        self.next: dict[str, list[Manner]] = defaultdict(list)
        self.answers: list[Answer] = []
        self.url = ""

    def put(self, path: str, content: bytes, version: str | None = '"v1"', **headers: str) -> str:
        """Serve a file; returns its link."""
        self.files[path] = content
        if version is not None:
            self.versions[path] = version
        if headers:
            self.usual[path] = Manner(headers={k.replace("_", "-"): v for k, v in headers.items()})
        return self.url + path

    def sent(self, path: str) -> int:
        """Bytes of a file that were sent, over all answers."""
        return sum(answer.sent for answer in self.answers if answer.path == path)

    def asked(self, path: str) -> list[Answer]:
        return [answer for answer in self.answers if answer.path == path]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    web: Web

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        target = urlsplit(self.path)
        path = unquote(target.path) + (
            f"?{target.query}" if f"{target.path}?{target.query}" in self.web.files else ""
        )
        answer = Answer(path, dict(self.headers.items()))
        self.web.answers.append(answer)
        planned = self.web.next[path]
        manner = planned.pop(0) if planned else self.web.usual[path]
        self.close_connection = True
        with suppress(ConnectionError):
            if manner.status is not None or path not in self.web.files:
                self._page(answer, manner)
            else:
                self._file(answer, manner, self.web.files[path])

    def _page(self, answer: Answer, manner: Manner) -> None:
        answer.status = manner.status or 404
        self._head(
            answer.status, {"Content-Length": str(len(manner.page)), "Content-Type": "text/plain"}, manner
        )
        self.wfile.write(manner.page)

    def _file(self, answer: Answer, manner: Manner, content: bytes) -> None:
        version = self.web.versions.get(answer.path)
        asked = answer.headers.get("Range", "").removeprefix("bytes=").removesuffix("-")
        same = answer.headers.get("If-Range") in (None, version, manner.headers.get("Last-Modified"))
        headers = {"Content-Type": "application/octet-stream"} | ({"ETag": version} if version else {})
        answer.status, start = 200, 0
        if asked and same and not manner.ignore_range:
            answer.status, start = 206, int(asked) + manner.shift_range
            if start >= len(content):
                answer.status = 416
                self._head(416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"}, manner)
                return
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if manner.chunked:
            headers["Transfer-Encoding"] = "chunked"
        else:
            headers["Content-Length"] = str(len(content) - start)
        answer.start = start
        self._head(answer.status, headers, manner)
        end = len(content) if manner.cut_after is None else min(len(content), start + manner.cut_after)
        for position in range(start, end, manner.block):
            if manner.before_block is not None:
                manner.before_block(position)
            if self._client_has_gone():
                return
            block = content[position : min(end, position + manner.block)]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(block), block) if manner.chunked else block)
            answer.sent += len(block)
            time.sleep(manner.pause_s)
        if manner.cut_after is not None:
            time.sleep(0.05)  # what was sent arrives before the end does
        if manner.chunked and end == len(content):
            self.wfile.write(b"0\r\n\r\n")
        if manner.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _client_has_gone(self) -> bool:
        readable, _, _ = select.select([self.connection], [], [], 0)
        return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)

    def _head(self, status: int, headers: dict[str, str], manner: Manner) -> None:
        self.send_response(status)
        for name, value in (headers | {"Connection": "close"} | manner.headers).items():
            if value:
                self.send_header(name, value)
        self.end_headers()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that was killed


@contextmanager
def serve() -> Iterator[Web]:
    """A server for the time of a test."""
    web = Web()
    handler = type("Handler", (_Handler,), {"web": web})
    with _Server(("127.0.0.1", 0), handler) as server:
        web.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield web
        finally:
            server.shutdown()
            thread.join()
