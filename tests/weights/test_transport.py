"""Downloads from a real HTTP server that behaves badly: each ends with the right bytes, or with one sentence."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pytest

from endauda_cli.weights import transport
from endauda_cli.weights.transport import BLOCK
from endauda_cli.weights.troubles import SourceError
from tests.support.command_lines import endauda, refused, result_of, succeed
from tests.support.disks import NAMESPACE, may_mount
from tests.support.packages import make_tar
from tests.support.processes import running
from tests.support.web_server import Manner, Web, serve
from tests.support.weights_samples import entry, noise, sha256, write_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTENT = noise(5 * BLOCK + 1234)
FILE = "/a/file.bin"


@pytest.fixture
def web() -> Iterator[Web]:
    with serve() as web:
        yield web


class Desk:
    """A workspace with a manifest of one file, and the command line that fetches it."""

    def __init__(self, root: Path, web: Web) -> None:
        self.root, self.web = root, web
        self.path = root / "weights/one.bin"
        self.part = root / "weights/one.bin.part"
        self.list(urls=[web.put(FILE, CONTENT)])

    def list(self, **fields: Any) -> None:
        self.manifest = write_manifest(self.root, entry(**fields))

    def words(self, *options: str | Path) -> tuple[str | Path, ...]:
        return ("download-weights", "one", "--workspace", self.root, "--manifest", self.manifest, *options)

    def fetch(self, *options: str | Path) -> Any:
        (fetched,) = result_of(*self.words(*options))["fetched"]
        assert self.path.read_bytes() == CONTENT
        assert fetched["sha256"] == sha256(CONTENT) and fetched["size"] == len(CONTENT)
        assert sorted(p.name for p in self.path.parent.iterdir()) == ["one.bin", "weights.lock.json"]
        return fetched

    def refused(self, *options: str | Path) -> str:
        sentence = refused(*self.words(*options))
        assert not self.path.exists()
        return sentence


@pytest.fixture
def desk(tmp_path: Path, web: Web, waits: list[float]) -> Desk:
    return Desk(tmp_path, web)


def test_a_good_server(desk: Desk) -> None:
    fetched = desk.fetch()
    assert fetched["url"] == desk.web.url + FILE and fetched["fetched"] is True
    assert [answer.status for answer in desk.web.answers] == [200]
    assert desk.fetch()["fetched"] is False, "it is there already"
    assert len(desk.web.answers) == 1


# ---------------------------------------------------------------------------- what ends right


@pytest.mark.parametrize("reset", [False, True], ids=["cut", "reset"])
@pytest.mark.parametrize("after", [0, 1, BLOCK, 3 * BLOCK + 77])
def test_a_cut_connection(desk: Desk, after: int, reset: bool, waits: list[float]) -> None:
    desk.web.next[FILE] = [Manner(cut_after=after, reset=reset)]
    desk.fetch()
    again = desk.web.answers[-1]
    assert again.headers.get("Range", "bytes=0-") == f"bytes={again.start}-" and len(waits) == 1
    if not reset:  # a reset may take what was sent with it
        assert desk.web.sent(FILE) == len(CONTENT), "not a byte twice"
    if again.start:
        assert again.headers["If-Range"] == '"v1"' and again.status == 206


def test_ranges_are_ignored(desk: Desk) -> None:
    desk.web.next[FILE] = [Manner(cut_after=2 * BLOCK), Manner(ignore_range=True)]
    desk.fetch()
    assert [answer.status for answer in desk.web.answers] == [200, 200]


def test_the_file_changes_between_two_attempts(desk: Desk) -> None:
    """The server honours If-Range: it sends the new file whole."""
    desk.web.files[FILE] = noise(len(CONTENT), seed=1)

    def change(position: int) -> None:
        if position >= 2 * BLOCK:
            desk.web.put(FILE, CONTENT, '"v2"')

    desk.web.next[FILE] = [Manner(cut_after=3 * BLOCK, before_block=change)]
    desk.fetch()
    assert [answer.status for answer in desk.web.answers] == [200, 200]
    assert desk.web.answers[1].headers["If-Range"] == '"v1"'


@pytest.mark.parametrize("old", ['"v1"', 'W/"v1"'], ids=["strong", "weak"])
def test_the_file_changes_and_the_server_ignores_if_range(desk: Desk, old: str) -> None:
    """The rest of another version (another ETag) is never appended."""
    desk.web.put(FILE, noise(len(CONTENT), seed=1), old)
    desk.web.next[FILE] = [
        Manner(cut_after=3 * BLOCK),
        Manner(headers={"ETag": '"v2"'}, before_block=lambda _: desk.web.put(FILE, CONTENT, '"v2"')),
        Manner(),
    ]
    desk.fetch()
    assert [answer.status for answer in desk.web.answers] == [200, 206, 200]
    assert desk.web.answers[1].headers.get("If-Range") == (None if old.startswith("W/") else old)


@pytest.mark.parametrize(
    "manner",
    [
        Manner(shift_range=-BLOCK),
        Manner(shift_range=+7),
        Manner(headers={"Content-Range": f"bytes {2 * BLOCK}-{len(CONTENT)}/{len(CONTENT) + 1}"}),
        Manner(headers={"Content-Range": f"bytes {2 * BLOCK}-{len(CONTENT) - 1}/*"}),
        Manner(headers={"Content-Range": "items 0-1/2"}),
        Manner(headers={"Content-Range": ""}),
    ],
    ids=["earlier", "later", "other total", "no total", "other unit", "none"],
)
def test_a_range_that_is_not_the_rest(desk: Desk, manner: Manner) -> None:
    desk.web.next[FILE] = [Manner(cut_after=2 * BLOCK), manner]
    desk.fetch()
    assert [answer.status for answer in desk.web.answers] == [200, 206, 200]


def test_a_part_that_is_complete_needs_no_request(desk: Desk) -> None:
    """Killed between the last byte and the rename."""
    desk.fetch()
    os.replace(desk.path, desk.part)
    note = f'{{"url": "{desk.web.url}{FILE}", "validator": null, "total": {len(CONTENT)}}}'
    desk.part.with_name("one.bin.part.json").write_text(note)
    desk.fetch()
    assert len(desk.web.answers) == 1


@pytest.mark.parametrize("extra", [0, 9], ids=["complete", "too long"])
def test_range_not_satisfiable(desk: Desk, extra: int) -> None:
    """A part of unknown total: complete as it is, or longer than the file and begun anew."""
    desk.part.parent.mkdir()
    desk.part.write_bytes(CONTENT + bytes(extra))
    note = f'{{"url": "{desk.web.url}{FILE}", "validator": null, "total": null}}'
    desk.part.with_name("one.bin.part.json").write_text(note)
    desk.fetch()
    assert [answer.status for answer in desk.web.answers] == ([416, 200] if extra else [416])


def test_a_part_without_its_note_is_not_trusted(desk: Desk) -> None:
    desk.part.parent.mkdir()
    desk.part.write_bytes(b"what is this")
    desk.fetch()
    assert [answer.start for answer in desk.web.answers] == [0]


def test_chunks_without_a_length(desk: Desk) -> None:
    desk.web.next[FILE] = [Manner(chunked=True)]
    desk.fetch()


def test_chunks_that_end_too_early(desk: Desk) -> None:
    desk.web.next[FILE] = [Manner(chunked=True, cut_after=2 * BLOCK)]
    desk.fetch()
    assert [answer.start for answer in desk.web.answers] == [0, 2 * BLOCK]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_server_that_is_busy(desk: Desk, waits: list[float], status: int) -> None:
    desk.web.next[FILE] = [Manner(status=status)] * 3
    desk.fetch()
    assert len(waits) == 3
    assert 0.75 <= waits[0] <= 1.25 and 1.5 <= waits[1] <= 2.5 and 3 <= waits[2] <= 5, "it backs off"


def test_no_wait_is_without_end(desk: Desk, waits: list[float]) -> None:
    desk.web.next[FILE] = [Manner(status=503)] * 99
    desk.refused("--attempts", "60")
    assert len(waits) == 59 and max(waits) == 120


def test_retry_after(desk: Desk, waits: list[float]) -> None:
    """In seconds and as a date; what makes no sense is not obeyed."""
    in_a_minute = formatdate(time.time() + 60, usegmt=True)
    desk.web.next[FILE] = [
        Manner(status=status, headers={"Retry-After": after})
        for status, after in ((429, "7"), (503, in_a_minute), (503, "soon"))
    ]
    desk.fetch()
    assert waits[0] == 7 and 57 <= waits[1] <= 60 and 3 <= waits[2] <= 5


def test_a_slow_server(desk: Desk) -> None:
    desk.web.next[FILE] = [Manner(block=BLOCK // 2, pause_s=0.02)]
    desk.fetch()


def test_a_server_that_falls_silent(desk: Desk) -> None:
    """No byte for --timeout seconds is a cut."""
    silent = threading.Event()
    desk.web.next[FILE] = [
        Manner(before_block=lambda position: (position == 2 * BLOCK and silent.wait(5)) or None)
    ]
    desk.fetch("--timeout", "0.3")
    silent.set()
    assert [answer.start for answer in desk.web.answers] == [0, 2 * BLOCK]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects(desk: Desk, status: int) -> None:
    for path, following in (("/1", "/2"), ("/2", "../a/file.bin")):
        desk.web.usual[path] = Manner(status=status, headers={"Location": following})
    desk.list(urls=[desk.web.url + "/1"])
    desk.web.next[FILE] = [Manner(cut_after=BLOCK)]
    assert desk.fetch()["url"] == desk.web.url + "/1"
    assert desk.web.sent(FILE) == len(CONTENT) and len(desk.web.asked("/2")) == 2


def test_mirrors_in_order(desk: Desk, web: Web) -> None:
    """A dead one, one that serves another file, one that breaks in the middle; the bytes of that are kept."""
    web.put("/other", noise(100))
    web.put("/half", CONTENT)
    web.usual["/half"] = Manner(cut_after=BLOCK)
    web.next["/half"] = [Manner(cut_after=2 * BLOCK)] + [Manner(status=500)] * 5
    urls = [f"{web.url}{path}" for path in ("/dead", "/other", "/half", FILE)]
    desk.list(urls=urls, sha256=sha256(CONTENT), size=len(CONTENT))
    assert desk.fetch()["url"] == urls[-1]
    assert web.answers[-1].start == 2 * BLOCK and "If-Range" not in web.answers[-1].headers


def test_bytes_of_another_mirror_are_dropped_without_a_digest(desk: Desk, web: Web) -> None:
    web.put("/half", noise(len(CONTENT), seed=2))
    web.next["/half"] = [Manner(cut_after=2 * BLOCK), Manner(status=404)]
    desk.list(urls=[f"{web.url}/half", f"{web.url}{FILE}"])
    desk.fetch()
    assert web.answers[-1].start == 0


def test_mirror_of_the_user_comes_first(desk: Desk, web: Web) -> None:
    web.put("/lab/weights/one.bin", CONTENT)
    assert desk.fetch("--mirror", f"{web.url}/lab/")["url"] == f"{web.url}/lab/weights/one.bin"
    assert not web.asked(FILE)


def test_a_mirror_of_a_folder_holds_an_archive(desk: Desk, web: Web) -> None:
    """Under the folder's path, as .zip or .tar."""
    archive = make_tar(desk.root / "x", {"a.bin": CONTENT}, "w")
    web.put("/lab/weights/one.tar", archive.read_bytes())
    desk.list(path="weights/one/")
    result_of(*desk.words("--mirror", f"{web.url}/lab"))
    assert (desk.root / "weights/one/a.bin").read_bytes() == CONTENT


def test_a_mirror_that_is_no_link(desk: Desk) -> None:
    assert "--mirror lab: a link that begins with https:// or http:// was expected" in desk.refused(
        "--mirror", "lab"
    )


def test_a_link_whose_name_leads_out(desk: Desk, web: Web) -> None:
    """The name of a file in a folder is the last part of the link, whatever is hidden in it."""
    url = web.put("/../../../evil.bin", CONTENT).replace("/../../../", "/%2e%2e%2f%2e%2e%2f%2e%2e%2f")
    desk.list(path="weights/deep/one/", urls=[url])
    result_of(*desk.words())
    assert (desk.root / "weights/deep/one/evil.bin").read_bytes() == CONTENT
    assert len(list(desk.root.parent.rglob("evil.bin"))) == 1


def test_a_proxy_of_the_environment(desk: Desk, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is the proxy here: it is asked for the whole address of another host."""
    web.put("/there/one.bin", CONTENT)
    desk.list(urls=["http://weights.invalid/there/one.bin"])
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, web.url)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert desk.fetch()["url"] == "http://weights.invalid/there/one.bin"
    assert web.answers[-1].headers["Host"] == "weights.invalid"


# ---------------------------------------------------------------------------- what ends with a sentence


def instructions(desk: Desk) -> str:
    return (
        f"; open https://example.org/page in a browser, save the file as {desk.path}, then run "
        "'endauda download-weights one --from-file weights/one.bin'"
    )


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_dead_link(desk: Desk, status: int, waits: list[float]) -> None:
    desk.web.next[FILE] = [Manner(status=status)]
    found = desk.refused()
    assert found.startswith(f"one cannot be fetched: {desk.web.url}{FILE}: the server answers {status} ")
    assert found.endswith(instructions(desk)) and waits == []


def test_a_server_that_stays_busy(desk: Desk, waits: list[float]) -> None:
    desk.web.next[FILE] = [Manner(status=503)] * 99
    found = desk.refused()
    assert "the server answers 503 Service Unavailable, 5 times in a row; open" in found and len(waits) == 4
    assert "2 times in a row" in desk.refused("--attempts", "2")


def test_a_server_that_asks_to_wait_for_too_long(desk: Desk, waits: list[float]) -> None:
    desk.web.next[FILE] = [Manner(status=429, headers={"Retry-After": "7200"})]
    assert "answers 429 Too Many Requests and asks to come back in 120 minutes" in desk.refused()
    assert waits == []


def test_nobody_listens(desk: Desk) -> None:
    desk.list(urls=["http://127.0.0.1:9/one.bin"])
    assert "the connection failed (Connection refused), 5 times in a row" in desk.refused()


@pytest.mark.parametrize("named", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_web_page_is_never_the_file(desk: Desk, named: str) -> None:
    page = b"\n<!DOCTYPE html><html><body>Sign in</body></html>"
    desk.web.put(FILE, page, Content_Type=named)
    desk.web.next[FILE] = [Manner(headers={"Content-Type": named}, block=1, pause_s=0.001)]
    assert f"{FILE}: a web page came instead of a file" in desk.refused(), "nor one letter after the other"
    assert f"{FILE}: a web page came instead of a file" in desk.refused()
    assert not any(page in path.read_bytes() for path in desk.root.rglob("*") if path.is_file())


def test_a_length_that_is_too_long(desk: Desk) -> None:
    """The server promises more than it ever sends: what came is not taken for the whole."""
    lie = {"Content-Length": str(len(CONTENT) + 500)}
    desk.web.usual[FILE] = Manner(headers=lie, ignore_range=True)
    assert "the connection ended too early, 5 times in a row" in desk.refused()
    desk.web.usual[FILE] = Manner()
    desk.web.next[FILE] = [Manner(headers=lie)]
    desk.fetch()
    assert [answer.status for answer in desk.web.answers[-2:]] == [200, 416], "asked again, it knows better"


def test_a_length_that_is_too_short(desk: Desk) -> None:
    """Nobody can tell from the answer, but the digest can."""
    desk.web.usual[FILE] = Manner(headers={"Content-Length": str(len(CONTENT) - 500)})
    desk.list(urls=[desk.web.url + FILE], sha256=sha256(CONTENT))
    assert f"but {sha256(CONTENT)} was expected" in desk.refused()
    assert not desk.part.exists(), "wrong bytes are not gone on with"
    desk.list(urls=[desk.web.url + FILE], size=len(CONTENT))
    assert (
        f"the server has {len(CONTENT) - 500:,} bytes, but {len(CONTENT):,} were expected" in desk.refused()
    )


def test_another_size_is_refused_before_it_comes(desk: Desk) -> None:
    desk.list(urls=[desk.web.url + FILE], size=99)
    assert f"the server has {len(CONTENT):,} bytes, but 99 were expected" in desk.refused()
    assert not desk.part.exists()


def test_more_chunks_than_expected(desk: Desk) -> None:
    desk.web.usual[FILE] = Manner(chunked=True)
    desk.list(urls=[desk.web.url + FILE], size=BLOCK)
    assert f"more than the {BLOCK:,} bytes came" in desk.refused()


def test_another_digest(desk: Desk) -> None:
    desk.list(urls=[desk.web.url + FILE], sha256="0123abcd")
    assert f"has the SHA-256 {sha256(CONTENT)}, but 0123abcd was expected; open" in desk.refused()
    desk.list(urls=[desk.web.url + FILE], sha256=sha256(CONTENT)[:8])
    desk.fetch()


def test_a_compressed_answer(desk: Desk) -> None:
    desk.web.usual[FILE] = Manner(headers={"Content-Encoding": "gzip"})
    assert "comes compressed, which was not asked for" in desk.refused()


@pytest.mark.parametrize(
    "following",
    ["http://[", "http://a:99999999/", "http://a:b/", "http://\xe9" + "a" * 70 + ".org/", "http:///x"],
)
def test_a_redirect_that_makes_no_sense(desk: Desk, following: str) -> None:
    desk.web.usual["/1"] = Manner(status=302, headers={"Location": following})
    desk.list(urls=[desk.web.url + "/1"])
    found = desk.refused()
    assert found.startswith(f"one cannot be fetched: {desk.web.url}/1: ") and found.endswith(
        instructions(desk)
    )


def test_numbers_that_make_no_sense(desk: Desk) -> None:
    """They count as not said."""
    digits = "9" * 5000
    desk.web.next[FILE] = [
        Manner(status=503, headers={"Retry-After": digits}),
        Manner(status=503, headers={"Retry-After": "Mon, 31 Dec 9999999999 23:59:59 GMT"}),
        Manner(cut_after=BLOCK),
        Manner(headers={"Content-Range": f"bytes {BLOCK}-{digits}/{digits}"}),
        Manner(cut_after=BLOCK),
        Manner(status=416, headers={"Content-Range": f"bytes */{digits}"}),
        Manner(headers={"Content-Length": digits}),
    ]
    desk.fetch()


def test_a_server_that_steers_the_terminal(desk: Desk) -> None:
    desk.web.usual["/1"] = Manner(status=302, headers={"Location": "ftp://x/\x1b[2J"})
    desk.list(urls=[desk.web.url + "/1"])
    assert "leads to ftp://x/\\x1b[2J, which" in desk.refused()


def test_no_password_or_token_is_told(desk: Desk) -> None:
    """Neither on the terminal nor in the lock file, which is passed on; the server gets them."""
    private = desk.web.url.replace("http://", "http://me:GEHEIM@")
    desk.list(urls=[f"{private}/gone?X-Amz-Signature=GEHEIM&id=7"])
    words = desk.words("--mirror", f"{private}/lab?sv=1&token=GEHEIM")
    for verbose in ("--quiet", "--verbose"):
        outcome = endauda(*words, verbose)
        assert outcome.code == 1 and "GEHEIM" not in outcome.out + outcome.err
        assert "//***@" in outcome.err and "/lab/weights/one.bin?sv=1&token=***: the server" in outcome.err
        assert "/gone?X-Amz-Signature=***&id=7: the server" in outcome.err
    desk.web.put("/lab/weights/one.bin", CONTENT)
    found = desk.fetch("--mirror", f"{private}/lab?sv=1&token=GEHEIM")
    assert "GEHEIM" not in str(found) + (desk.root / "weights/weights.lock.json").read_text()
    assert desk.web.answers[-1].headers["Authorization"].startswith("Basic ")
    desk.path.unlink()
    assert "warning" not in succeed(*words).err, "its digest is known by the link without the token"


def test_a_proxy_that_is_not_there(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.list(urls=["http://weights.invalid/one.bin"])
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://me:GEHEIM@127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    found = desk.refused()
    assert "the connection to the proxy failed (Connection refused)" in found and "GEHEIM" not in found


def test_certificates_that_are_not_there(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere")
    desk.list(urls=["https://127.0.0.1:9/one.bin"])
    found = desk.refused()
    assert "invalid path: /nowhere); check REQUESTS_CA_BUNDLE; open" in found


@pytest.mark.parametrize("name", ["b" * 400, "%E5%AD%97" * 80], ids=["too long", "long when quoted"])
def test_a_link_with_a_long_name(desk: Desk, name: str) -> None:
    desk.list(path="weights/one/", urls=[desk.web.url + f"/{name}"])
    desk.web.put(f"/{unquote(name)}", CONTENT)
    result_of(*desk.words())
    (there,) = (desk.root / "weights/one").iterdir()
    assert there.name == ("download" if name[0] == "b" else unquote(name))


def test_a_note_that_was_damaged(desk: Desk) -> None:
    desk.part.parent.mkdir()
    for note in (f'{{"url": "{desk.web.url}{FILE}", "validator": 5, "total": null}}', "[" * 200_000):
        desk.part.write_bytes(CONTENT[:100])
        desk.part.with_name("one.bin.part.json").write_text(note)
        desk.fetch()
        desk.path.unlink()


def test_redirects_in_a_circle(desk: Desk) -> None:
    desk.web.usual["/1"] = Manner(status=302, headers={"Location": "/2"})
    desk.web.usual["/2"] = Manner(status=302, headers={"Location": "/1"})
    desk.list(urls=[desk.web.url + "/1"])
    assert "/1: leads in a circle (back to " in desk.refused()


def test_redirects_without_end(desk: Desk) -> None:
    for i in range(20):
        desk.web.usual[f"/{i}"] = Manner(status=302, headers={"Location": f"/{i + 1}"})
    desk.list(urls=[desk.web.url + "/0"])
    assert "/0: leads on and on (10 redirects)" in desk.refused()


@pytest.mark.parametrize("following", ["file:///etc/passwd", "ftp://example.org/x"])
def test_a_redirect_to_something_else(desk: Desk, following: str) -> None:
    desk.web.usual["/1"] = Manner(status=302, headers={"Location": following})
    desk.list(urls=[desk.web.url + "/1"])
    assert f"leads to {following}, which is not a web address" in desk.refused()


def test_no_way_from_https_to_http() -> None:
    transport.check_hop("http://a/x", "https://b/x")
    with pytest.raises(SourceError, match="out of the encrypted connection; not followed"):
        transport.check_hop("https://a/x", "http://b/x")


def test_offline(desk: Desk) -> None:
    found = desk.refused("--offline")
    assert found == "one is not there, and --offline asks nobody" + instructions(desk)
    assert desk.web.answers == []
    desk.fetch()
    desk.fetch("--offline")


def test_unencrypted_without_a_digest_is_warned_of(desk: Desk) -> None:
    assert "warning: http://127.0.0.1" in succeed(*desk.words()).err
    desk.path.unlink()
    assert "warning" not in succeed(*desk.words()).err, "its digest is in the lock file now"


# ---------------------------------------------------------------------------- cuts and kills

MANY = noise(120 * BLOCK + 17, seed=5)

KILLED = """
import os, random, signal, sys, time
from endauda_cli.cli import main
from endauda_cli.weights import transport
import requests, endauda_cli.terminal.console, endauda_cli.weights  # once, not in each child
transport.random.uniform = lambda low, high: 0.0
kills, part, words = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
moments, done = random.Random(3), 0

def length():
    return os.path.getsize(part) if os.path.exists(part) else 0

while True:
    begin, child = length(), os.fork()
    if child == 0:
        os._exit(main(words))
    if done < kills:
        enough = begin + moments.randrange(0, 3 * transport.BLOCK)
        while length() < enough and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.0005)
        time.sleep(moments.uniform(0, 0.005))
        os.kill(child, signal.SIGKILL)
        done += 1
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, status
        break
print(done)
"""


def test_many_random_cuts(desk: Desk) -> None:
    """Not a byte is fetched twice: what a cut connection has delivered is kept to the last byte."""
    rng = random.Random(1)
    desk.web.put(FILE, MANY)
    cuts = [rng.randrange(0, 2 * BLOCK) for _ in range(50)]
    desk.web.next[FILE] = [Manner(cut_after=cut) for cut in cuts]
    (fetched,) = result_of(*desk.words("--attempts", "50"))["fetched"]
    assert desk.path.read_bytes() == MANY and fetched["sha256"] == sha256(MANY)
    assert len(desk.web.answers) == 51 and desk.web.sent(FILE) == len(MANY)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_many_random_kills_and_cuts(tmp_path: Path, web: Web) -> None:
    """25 cuts and 25 kill -9s. The server lets the client write each block before it sends the next, so that
    the system's buffers do not hide what was fetched: at most one block is on its way when the kill comes."""
    desk = Desk(tmp_path, web)
    web.put(FILE, MANY)

    def when_written(position: int) -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                if desk.part.stat().st_size >= position:
                    break
            except FileNotFoundError:
                pass
            time.sleep(0.001)
        time.sleep(0.002)

    rng = random.Random(2)
    web.usual[FILE] = Manner(block=BLOCK, before_block=when_written)
    web.next[FILE] = [
        Manner(block=BLOCK, before_block=when_written, cut_after=rng.randrange(1, 2 * BLOCK))
        for _ in range(25)
    ]
    line = [
        sys.executable,
        "-W",
        "error",
        "-c",
        KILLED,
        "25",
        desk.part,
        *desk.words("--quiet", "--attempts", "50"),
    ]
    done = subprocess.run([str(word) for word in line], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.split()[-1]) == (0, "25"), done.stderr
    assert desk.path.read_bytes() == MANY
    interrupted = len(web.asked(FILE)) - 1
    assert interrupted >= 40, "most of the kills came in the middle"
    twice = web.sent(FILE) - len(MANY)
    assert 0 <= twice <= 25 * BLOCK
    assert not desk.part.exists()
    assert result_of(*desk.words("--list"))["artefacts"][0]["state"] == "verified"


@pytest.mark.slow
def test_two_processes_at_once(tmp_path: Path, web: Web) -> None:
    """One fetches, the other waits and finds it there."""
    desk = Desk(tmp_path, web)
    web.usual[FILE] = Manner(block=BLOCK // 4, pause_s=0.05)
    line = [sys.executable, "-W", "error", "-m", "endauda_cli", *map(str, desk.words("--json"))]
    processes = [
        subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    outcomes = [(*process.communicate(timeout=120), process.returncode) for process in processes]
    assert [code for _, _, code in outcomes] == [0, 0], outcomes
    assert sorted('"fetched": true' in out for out, _, _ in outcomes) == [False, True]
    assert desk.path.read_bytes() == CONTENT and len(web.answers) == 1
    assert sum("another process is fetching it; waiting" in err for _, err, _ in outcomes) == 1


def test_interrupt(tmp_path: Path, web: Web) -> None:
    """Ctrl-C ends with 130, leaves a part, and the next run goes on."""
    import signal

    desk = Desk(tmp_path, web)
    web.next[FILE] = [Manner(block=BLOCK // 4, pause_s=0.5)]
    line = [sys.executable, "-m", "endauda_cli", *map(str, desk.words())]
    with running(*line) as process:
        end = time.monotonic() + 30
        while time.monotonic() < end and not (desk.part.exists() and desk.part.stat().st_size):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err
    assert "endauda: interrupted while fetching " in err and " are kept; go on with: " in err
    assert result_of(*desk.words("--list"))["artefacts"][0]["state"] == "partial"
    desk.fetch()
    assert web.answers[-1].start > 0


# ---------------------------------------------------------------------------- disks


def test_too_little_disk_is_seen_before(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "free_bytes", lambda _folder: 1000)
    found = desk.refused()
    assert "0.3 MB are still to come, but 0.0 MB are free; free some space" in found
    assert not desk.part.exists() or desk.part.stat().st_size == 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_a_disk_that_fills_up(desk: Desk, tmp_path: Path) -> None:
    """What fits is kept, and gone on with when there is room."""
    program = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (150_000,) * 2)\n" + (
        "from endauda_cli.cli import entry; entry()"
    )
    line = [sys.executable, "-W", "error", "-c", program, *map(str, desk.words("--quiet"))]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    last = done.stderr.splitlines()[-1]
    assert last.endswith("one.bin.part: cannot be written (File too large); free some space and run the same "
                         "command again, it goes on from there")  # fmt: skip
    assert desk.part.stat().st_size == 150_000
    desk.fetch()
    assert desk.web.answers[-1].start == 150_000


SMALL_DISK = """
import subprocess, sys
from pathlib import Path
from endauda_cli.cli import main

disk, words = sys.argv[1], sys.argv[2:]
def mount(options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", disk], check=True)
mount("size=160k")
assert main(words) == 1
begun = Path(disk, "one.bin.part").stat().st_size
assert begun >= 65536, begun
mount("remount,size=8m")
assert main(words) == 0
print(begun, Path(disk, "one.bin").read_bytes().hex())
"""


def test_a_small_disk(desk: Desk, tmp_path: Path) -> None:
    """A real one that is full in the middle of a file whose length the server did not say."""
    if not may_mount(tmp_path):
        pytest.skip("may not mount a small disk here")
    (tmp_path / "weights").mkdir()
    desk.web.next[FILE] = [Manner(chunked=True)]
    line = [*NAMESPACE, sys.executable, "-W", "error", "-c", SMALL_DISK, tmp_path / "weights"]
    done = subprocess.run(
        [str(word) for word in [*line, *desk.words("--quiet", "--json")]],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "one.bin.part: cannot be written (No space left on device); free some space" in done.stderr
    begun, content = done.stdout.split()[-2:]
    assert bytes.fromhex(content) == CONTENT
    assert desk.web.answers[-1].start == int(begun)
