"""The pictures of the README and the tutorial: ``python docs/draw.py FOLDER``, after ``python -m tests.support.pages
docs/tutorial.md FOLDER``, which leaves the demo in FOLDER/demo and the tutorial's folder beside it. The page is as a
Chromium shows it, after ``endauda test --all`` and ``endauda test`` in the demo's folder."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from endauda_cli.archive import CertaintyReader
from endauda_cli.domains import CITYSCAPES
from endauda_cli.inspecting import heat
from endauda_cli.labels import colourise, read_image, read_train_ids
from endauda_cli.report import Gallery, PictureRow, contact_sheet
from tests.support.browser import Browser

HERE = Path(__file__).parent
SCENES = ("dusk_val_003", "dusk_val_001")
CLASSES, PALETTE = CITYSCAPES.classes, CITYSCAPES.palette


def demo(folder: Path) -> Image.Image:
    """Scenes of the demo in two lines each: photograph and teachers; fused, how sure, student, truth."""
    sheets = []
    for scene in SCENES:
        labels = {
            name: read_train_ids(folder / path / f"{scene}.png", len(CLASSES))
            for name, path in {
                "majority": "labels/dusk/majority-val",
                "fused labels (consensus)": "labels/dusk/consensus-val",
                "student": "runs/noon/student/test-last-val",
                "truth (only to score)": "Warehouse/dusk/labels/val",
            }.items()
        }
        top, sure = {"target image": read_image(folder / f"Warehouse/dusk/images/val/{scene}.png")}, []
        for name in ("places", "traffic", "traffic-later", "people"):
            with CertaintyReader(folder / "certainty/noon" / name) as archive:
                top[f"teacher {name}"] = colourise(archive.labels(scene), PALETTE)
                sure.append(archive.certainty(scene).max(0))
        bottom = {name: colourise(label, PALETTE) for name, label in labels.items()}
        bottom = {"teachers' certainty": heat(np.mean(sure, 0).astype(np.uint8)), **bottom}
        for line in (top, bottom):
            sheets.append(contact_sheet(Gallery("", list(line), [PictureRow("", list(line.values()))])))
    return Image.fromarray(np.concatenate(sheets))


def rows(report: Path, count: int, tile: int = 128, gap: int = 4) -> Image.Image:
    """The first rows of a report's sheet."""
    sheet = Image.open(report)
    head = (sheet.height - gap) % (tile + gap)
    return sheet.crop((0, 0, sheet.width, head + gap + count * (tile + gap)))


def page(folder: Path) -> Image.Image:
    """Two views of a score's page on a desk, in light, and one on a phone, in dark."""
    file = folder / "runs/noon/student/test-last-val/report.html"
    views = (
        ("iou-per-class", 760, False, 0),
        ("worst-images", 760, False, 50),
        ("worst-images", 360, True, 150),
    )
    shots = []
    with Browser() as browser:
        for place, width, dark, at in views:
            browser.open(file, (width, 700), dark)
            browser.ask(f"document.getElementById('{place}').scrollIntoView({{behavior: 'instant'}})")
            browser.ask("document.querySelectorAll('.card input').forEach((slider) => {"
                        f"slider.value = {at}; slider.dispatchEvent(new Event('input')) }})")  # fmt: skip
            shots.append(Image.open(io.BytesIO(browser.picture())).convert("RGB"))
    gap = 16
    sheet = Image.new("RGB", (sum(s.width for s in shots) + gap * (len(shots) - 1), 700), "white")
    left = 0
    for shot in shots:
        sheet.paste(shot, (left, 0))
        left += shot.width + gap
    return sheet


def save(picture: Image.Image, name: str, colours: int = 96) -> None:
    """Few colours: pages are to load at once."""
    picture.convert("RGB").quantize(colours, dither=Image.Dither.NONE).save(HERE / name, optimize=True)


if __name__ == "__main__":
    world = Path(sys.argv[1])
    save(demo(world / "demo"), "demo.png")
    save(page(world / "demo"), "page.png", 256)
    save(Image.open(world / "mine/dusk_train_000_classes.png"), "tutorial-classes.png")
    save(rows(world / "mine/labels/mine/eight/report/gallery.png", 3), "tutorial-disputed.png")
