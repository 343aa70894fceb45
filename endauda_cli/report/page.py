"""A page as a file: one HTML document that needs no other, and its pictures beside it."""

from __future__ import annotations

import base64
import hashlib
import platform
import shlex
import sys
import time
from contextlib import suppress
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from endauda_cli import __version__
from endauda_cli.labels import write_png
from endauda_cli.masking import masked, printable
from endauda_cli.report.components import Budget, draw, slug
from endauda_cli.report.pictures import contact_sheet
from endauda_cli.report.sections import Gallery, Row, Table
from endauda_cli.workspace import make_folder, write_text

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from endauda_cli.report.sections import Report

    UInt8 = NDArray[np.uint8]

PROGRAMS = ("endauda", "__main__.py")


def write_report(path: Path, report: Report, images: Container[str] = ()) -> None:
    """Write the page to ``path``, and its pictures to a folder beside it that is called as the page: a folder of
    labels or predictions holds no other PNGs than these.

    Args:
        path: ``report.html``.
        report: the page. Each gallery becomes ``report/gallery[-n].png``, each figure ``report/<name>.png``.
        images: ids of images with a PNG of their own beside the page, which is left alone; other pictures there that
            earlier versions called ``report.png`` and ``report-<name>.png`` are removed.

    Raises:
        WorkspaceError: if it cannot be written.
    """
    write_text(path, html(report))
    folder, earlier = path.with_suffix(""), []
    pictures: dict[str, UInt8] = {}
    galleries = [section for section in report.sections if isinstance(section, Gallery) and section.rows]
    for number, gallery in enumerate(galleries, 1):
        suffix = f"-{number}" if len(galleries) > 1 else ""
        pictures[f"gallery{suffix}"] = contact_sheet(gallery)
        earlier.append(f"{path.stem}{suffix}")
    for figure in report.figures:
        pictures[figure.name] = figure.picture
        earlier.append(f"{path.stem}-{figure.name}")
    if pictures:
        make_folder(folder)
    for name, picture in pictures.items():
        if f"{folder.name}/{name}" not in images:
            write_png(folder / f"{name}.png", picture)
    for name in earlier:
        if name not in images:
            with suppress(OSError):
                path.with_name(f"{name}.png").unlink()


def html(report: Report) -> str:
    """The whole document. Its policy lets it load nothing, and run no script but its own."""
    budget = Budget()
    sections, places = [], {"content"}
    for section in report.sections:
        place = slug(section.title)
        while place in places:
            place += "-more"
        places.add(place)
        sections.append((section, place, draw(section, budget)))
    environment = Environment(
        loader=PackageLoader("endauda_cli"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    script = _file("report.js")
    page: str = environment.get_template("report.html").render(
        title=report.title,
        intro=report.intro,
        headline=report.headline,
        sections=sections,
        style=Markup(_file("report.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=__version__,
        date=time.strftime("%Y-%m-%d %H:%M %Z"),
    )
    return printable(page)  # a file's name may be no text


def provenance(inputs: Mapping[str, str | None], title: str = "How this was made") -> Table:
    """A section that says what was done with which inputs: the command line, those of the inputs that are known, when
    and by which versions."""
    told = {
        "command": command_line(),
        **inputs,
        "written": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "by": f"endauda {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}",
    }
    return Table(title, ["", ""], [Row([key, value]) for key, value in told.items() if value], left=True)


def command_line() -> str | None:
    """The line that started this process; ``None`` if that was no ``endauda``."""
    words = sys.argv or [""]
    return masked(shlex.join(["endauda", *words[1:]])) if Path(words[0]).name in PROGRAMS else None


@cache
def _file(name: str) -> str:
    return files("endauda_cli").joinpath("templates", name).read_text(encoding="utf-8")
