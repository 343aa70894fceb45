"""An archive whose export was stopped before its first shard is one for everybody who looks at folders."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from endauda_cli.archive import CertaintyWriter, layout
from endauda_cli.completion import values
from endauda_cli.domains import CITYSCAPES_CLASSES
from tests.support.command_lines import TRAIN, make_cityscapes, opinion, result_of, scene, seed_of, succeed

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A workspace with one archive, all of whose images wait for a shard."""
    root = make_cityscapes(tmp_path)

    def export() -> None:
        with CertaintyWriter(root / "certainty/gta5/dacs", classes=CITYSCAPES_CLASSES) as writer:
            for image in TRAIN:
                label, certainty = opinion("dacs", scene(seed_of(image)), seed_of(image))
                writer.write(image, label, np.ascontiguousarray(certainty.transpose(2, 0, 1)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export()
    assert not list(root.rglob("*.h5"))
    return root


def test_fuse_takes_it(stopped: Path) -> None:
    result = result_of("fuse", "--rule", "majority", "--workspace", stopped)
    assert (result["teachers"], result["images"]) == (["dacs"], len(TRAIN))


def test_inspect_and_doctor_tell_of_it(stopped: Path) -> None:
    assert result_of("inspect", "dacs", "--workspace", stopped)["facts"]["images"].startswith(str(len(TRAIN)))
    told = succeed("doctor", "--no-speed", "--workspace", stopped, "--json").out
    findings = [f["text"] for group in json.loads(told)["result"]["groups"] for f in group["findings"]]
    assert any("dacs" in text and str(len(TRAIN)) in text for text in findings), findings


def test_tab_offers_it_and_its_images(stopped: Path) -> None:
    class Line:
        params = {"workspace": str(stopped), "source": None, "target": "cityscapes", "archive": "dacs"}  # noqa: RUF012

    assert values.archives(Line, "") == [("dacs", f"{len(TRAIN)} images")]
    assert [image for image, _ in values.images(Line, "")] == sorted(TRAIN)


def test_what_is_damaged_says_nothing(tmp_path: Path) -> None:
    assert not layout.has_images(tmp_path) and layout.image_ids(tmp_path) == set()
    part = layout.part(tmp_path, "0-of-1")
    part.mkdir()
    layout.waiting_image(part, "0" * 64).write_bytes(b"\xff" * 100)
    (tmp_path / "shard-0-of-1-00000.json").write_text("[" * 100_000)
    (tmp_path / "shard-x.json").write_text("{}")
    assert layout.image_ids(tmp_path) == set()
    assert [path.name for path in layout.manifests(tmp_path)] == ["shard-0-of-1-00000.json"]
