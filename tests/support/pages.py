"""The pages of ``docs/`` and the README as something to run: their files, command lines and Python.

A fenced block that begins with a file's name in a comment (``# mine.toml``) is that file. ``bash`` blocks are
command lines, ``python`` blocks a program, ``text`` blocks what a command printed. ``python -m tests.support.pages
docs/tutorial.md FOLDER`` follows a page in a folder, as a reader would; that is where its figures come from.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

_FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_FILE = re.compile(r"# (?P<name>[\w./-]+\.(?:toml|py))\b")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: the word after the fence.
        text: what is in it.
        line: where it begins in the page.
    """

    language: str
    text: str
    line: int

    @property
    def file(self) -> str | None:
        """The name of the file that the block is, if its first line names one."""
        match = _FILE.match(self.text)
        return match["name"] if match and self.language in ("toml", "python") else None

    @property
    def lines(self) -> list[str]:
        """Command lines, those that go on after a backslash joined; without comments."""
        whole = self.text.replace("\\\n", " ").splitlines()
        return [words for line in whole if (words := line.strip()) and not words.startswith("#")]


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(match["language"], match["text"], text.count("\n", 0, match.start()) + 1)
        for match in _FENCE.finditer(text)
    ]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def inline(page: Path) -> list[str]:
    """What stands between single backticks; line ends in it are blanks."""
    return [" ".join(match.split()) for match in _INLINE.findall(prose(page))]


def follow(page: Path, folder: Path, run: Callable[[str, Path], None]) -> None:
    """Do what a page says, block by block: write its files, run its command lines.

    Args:
        page: the page.
        folder: where the reader starts; ``cd`` leads on from there.
        run: runs one command line in a folder.
    """
    for line, here in _steps(page, folder):
        run(line, here)


def _steps(page: Path, here: Path) -> Iterator[tuple[str, Path]]:
    for block in blocks(page):
        if block.file:
            (here / block.file).parent.mkdir(parents=True, exist_ok=True)
            (here / block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "bash":
            for line in block.lines:
                if line.startswith("cd "):
                    here = here / shlex.split(line)[1]
                else:
                    yield line, here


def in_shell(line: str, here: Path) -> None:
    """Run a command line as a reader would, with this checkout's program."""
    print(f"$ {line}", flush=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        ["bash", "-c", line], cwd=here, env=os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}, check=True
    )


class Document(HTMLParser):
    """A page taken apart; ``faults`` are what a reader of its source would stumble over."""

    EMPTY = frozenset(("meta", "img", "input", "br", "link", "path", "circle"))

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.faults: list[str] = []
        self.headings: list[int] = []
        self.pictures: list[dict[str, str | None]] = []
        self.links: list[str] = []
        self.loaded: list[str | None] = []
        self.ids: list[str] = []
        self.fields: list[str] = []
        self.labels: list[str] = []
        self.feed(page)
        self.close()
        self.faults += [f"<{tag}> is never closed" for tag in self.open]
        self.faults += [f"id {id} is there twice" for id in self.ids if self.ids.count(id) > 1]
        self.faults += [f"a picture without words: {one}" for one in self.pictures if not one.get("alt")]
        self.faults += [
            f"loads {one}" for one in self.loaded if one is None or not one.startswith("data:image/")
        ]
        self.faults += [f"{field} has no label" for field in self.fields if field not in self.labels]
        self.faults += [
            f"no place {link}" for link in self.links if link[0] == "#" and link[1:] not in self.ids
        ]
        if self.headings[:1] != [1] or self.headings.count(1) != 1:
            self.faults.append("it begins with one h1")
        self.faults += [f"h{b} after h{a}" for a, b in pairwise(self.headings) if b > a + 1]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        if tag not in self.EMPTY:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "img":
            self.pictures.append(told)
        if tag == "a":
            self.links.append(told["href"] or "")
        if tag in ("input", "select"):
            self.fields.append(told.get("id") or "a field")
        if tag == "label":
            self.labels.append(told.get("for") or "")
        self.loaded += [told[name] for name in ("src", "srcset", "data", "action", "poster") if name in told]
        if told.get("id"):
            self.ids.append(str(told["id"]))

    def handle_endtag(self, tag: str) -> None:
        if tag in self.EMPTY:
            return
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> at line {self.getpos()[0]} closes nothing")


def assert_well_made(page: str, links: bool = False) -> Document:
    """Balanced, with words for pictures and fields, headings in order; its script is the only one and its own.

    Args:
        page: its source.
        links: whether it may lead to files beside it.
    """
    document = Document(page)
    assert not document.faults, document.faults
    assert links or all(link.startswith("#") for link in document.links), document.links
    assert page.count("<script") == 1
    script = page.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page
    )
    return document


def assert_self_contained(page: str, links: bool = False) -> None:
    """No address in it leads anywhere: neither to a file nor to the network; but for ``links`` that are clicked."""
    assert_well_made(page, links)
    style = page.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style and "@import" not in style
    assert "http://" not in page and "https://" not in page


if __name__ == "__main__":
    follow(Path(sys.argv[1]), Path(sys.argv[2]), in_shell)
