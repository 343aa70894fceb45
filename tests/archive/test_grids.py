"""A network's own grid in an archive: numbers back bit by bit, certainties as the network's, damage found."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from endauda_cli.archive import CertaintyReader, CertaintyWriter, grids, shard, verify
from endauda_cli.archive.codecs import DECODER_ERRORS, Chunk, crc32
from endauda_cli.archive.grids import Deriver, GridForm, Grids
from endauda_cli.archive.image_files import ImageFile
from endauda_cli.errors import ArchiveError
from endauda_cli.gridding import grid_maps, has_grid, said_of
from endauda_cli.segmenter import ClassMap, Procedure, Segmenter, certainty_maps
from tests.support.archive_samples import CLASSES, derived, own_grids, said_image, smooth, write

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

FORM = GridForm(((3, 4),), (1.0,), "last", True)
SHARD = "shard-0-of-1-00000.h5"


def logits(seed: int, classes: int, size: tuple[int, int], strength: float = 3) -> torch.Tensor:
    """(C, h, w): smooth, with noise, as the last layer of a network gives them."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, classes, 5, 9, generator=generator)
    fine = torch.randn(classes, *size, generator=generator)
    return strength * F.interpolate(coarse, size, mode="bicubic")[0] + 0.3 * fine


def reference(said: Grids, size: tuple[int, int]) -> NDArray[np.float64]:
    """(C, H, W) percent, not truncated, by torch in double precision."""
    total = torch.zeros(1)
    for numbers, share in zip(said.numbers, said.form.shares, strict=True):
        depth = torch.from_numpy(grids.depths()[numbers].astype(np.float64))
        value = (-depth).softmax(0) if said.form.softmax == "first" else -depth
        total = total + share * enlarged(value, size, said.form.align_corners)
    percent = 100 * (total if said.form.softmax == "first" else total.softmax(0))
    return percent.numpy()


def enlarged(grid: torch.Tensor, size: tuple[int, int], align_corners: bool) -> torch.Tensor:
    return F.interpolate(grid[None], size, mode="bilinear", align_corners=align_corners)[0]


def assert_truncated(percent: NDArray[np.uint8], exact: NDArray[np.float64]) -> None:
    """But for what is as good as a whole number."""
    near = np.abs(exact - np.rint(exact)) < 2e-3
    assert np.array_equal(percent[~near], np.floor(exact)[~near])
    assert np.abs(percent[near] - exact[near]).max(initial=0) < 1.01


sizes = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9)), min_size=1, max_size=3, unique=True)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 99),
    classes=st.integers(1, 6),
    sizes=sizes,
    softmax=st.sampled_from(["first", "last"]),
    corners=st.booleans(),
    taller=st.integers(0, 70),
    wider=st.integers(0, 300),
)
def test_numbers_come_back_and_mean_what_they_say(
    seed: int,
    classes: int,
    sizes: list[tuple[int, int]],
    softmax: Any,
    corners: bool,
    taller: int,
    wider: int,
) -> None:
    said = own_grids(seed, classes, sizes, softmax)
    said = said._replace(form=dataclasses.replace(said.form, align_corners=corners))
    back = grids.unpack(GridForm.from_text(said.form.to_text()), classes, grids.pack(said))
    assert back.form == said.form
    assert all(np.array_equal(a, b) for a, b in zip(back.numbers, said.numbers, strict=True))
    size = (max(h for h, _ in sizes) + taller, max(w for _, w in sizes) + wider)
    assert_truncated(derived(back, *size), reference(said, size))


def test_parts_are_the_whole() -> None:
    """Any classes, in any order, and rows by rows, as threads take them."""
    said = own_grids(3, 5, [(4, 7), (5, 6)])
    whole = derived(said, 50, 90)
    out = np.zeros((3, 50, 90), np.uint8)
    deriver = Deriver(said, (50, 90))
    for first in (32, 0, 16, 48):
        deriver.fill([4, 1, 4], first, min(first + 16, 50), out)
    assert np.array_equal(out, whole[[4, 1, 4]])


class TestNetworks:
    """``grid_maps`` beside ``certainty_maps`` of the same outputs."""

    @pytest.mark.parametrize(
        ("procedure", "passes", "temperature"),
        [
            (Procedure(), [(33, 65)], 1.0),
            (Procedure(), [(33, 65)], 1.7),
            (Procedure(align_corners=False), [(32, 64)], 1.0),
            (Procedure(flip=True), [(33, 65), (33, 65)], 1.0),
            (Procedure(softmax="upsampled"), [(33, 65)], 1.0),
            (Procedure(softmax="first"), [(33, 65)], 1.0),
            (Procedure(scales=(1, 1.25)), [(33, 65), (41, 81)], 1.0),
            (Procedure(scales=(1, 1.25), flip=True, softmax="first"), 2 * [(33, 65)] + 2 * [(41, 81)], 1.0),
        ],
    )
    @pytest.mark.parametrize("strength", [6, 15])
    def test_certainties_are_the_networks(
        self, procedure: Procedure, passes: list[tuple[int, int]], temperature: float, strength: float
    ) -> None:
        size = (512, 1024)
        segmenter = Segmenter(torch.nn.Identity(), procedure=procedure, temperature=temperature)
        scene = logits(0, 11, (33, 65), strength)  # each pass sees the same, a little otherwise
        outputs = [enlarged(scene, cells, True) + logits(i, 11, cells, 0.2) for i, cells in enumerate(passes)]
        if procedure.softmax == "first":
            outputs = [output.softmax(0) for output in outputs]
        assert has_grid(segmenter)
        labels, shares, *numbers = grid_maps(segmenter, outputs, size)
        said = said_of(segmenter, shares.numpy(), [grid.numpy() for grid in numbers])
        its_labels, its_percents = certainty_maps(segmenter, outputs, size)
        difference = np.abs(derived(said, *size).astype(int) - its_percents.numpy())
        assert (difference > 0).mean() < 0.003 and (difference > 1).mean() < 1e-5
        assert (labels != its_labels).double().mean() < 1e-5

    def test_sure_networks_are_mostly_nothing(self) -> None:
        segmenter = Segmenter(torch.nn.Identity())
        _, _, numbers = grid_maps(segmenter, [logits(0, 7, (33, 65), 20)], (512, 1024))
        assert 0.3 < (numbers == grids.NOTHING).double().mean() < 0.9

    @pytest.mark.parametrize(
        ("segmenter", "cells"),
        [
            (
                Segmenter(torch.nn.Identity(), procedure=Procedure(enlarge="bicubic", softmax="first")),
                (33, 65),
            ),
            (Segmenter(torch.nn.Identity(), procedure=Procedure(softmax="none")), (33, 65)),
            (Segmenter(torch.nn.Identity(), procedure=Procedure(softmax="first"), temperature=2), (33, 65)),
            (
                Segmenter(
                    torch.nn.Identity(), class_map=ClassMap(tuple("abcdefg"), (0, 0, 1, 2, 3, 4, 5), 6)
                ),
                (33, 65),
            ),
            (Segmenter(torch.nn.Identity()), (129, 257)),
        ],
        ids=["bicubic", "by the network", "temperature of probabilities", "joined classes", "does not pay"],
    )
    def test_what_no_grid_says_stays_percents(self, segmenter: Segmenter, cells: tuple[int, int]) -> None:
        output = logits(0, 7, cells)
        output = output if segmenter.procedure.softmax == "last" else output.softmax(0)
        made, expected = (maps(segmenter, [output], (512, 1024)) for maps in (grid_maps, certainty_maps))
        assert len(made) == 2 and all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))


class TestArchives:
    def test_beside_planes_and_verified(self, tmp_path: Path) -> None:
        images = {f"x{i}": (said_image if i % 2 else smooth)(i, 3, 20, 30) for i in range(4)}
        path = write(tmp_path / "a", images)
        with CertaintyReader(path) as reader:
            assert [str(reader.codec(id)) for id in reader.ids] == ["softmax", "grid"] * 2
            assert all(np.array_equal(reader.certainty(id), image[1]) for id, image in images.items())
            assert np.array_equal(reader.planes("x1", [2, 0]), images["x1"][1][[2, 0]])
            assert np.array_equal(reader.labels("x3"), images["x3"][0])
        assert verify(path).intact

    def test_of_several_forms_in_a_shard(self, tmp_path: Path) -> None:
        label = np.zeros((40, 60), np.uint8)
        forms = {
            f"x{i}": own_grids(i, 3, sizes) for i, sizes in enumerate([[(3, 4)], [(4, 3)], [(3, 4), (4, 3)]])
        }
        with CertaintyWriter(tmp_path / "a", classes=CLASSES) as writer:
            for id, said in forms.items():
                writer.store(writer.code_grids(id, label, said))
        with CertaintyReader(tmp_path / "a") as reader:
            for id, said in forms.items():
                assert np.array_equal(reader.certainty(id), derived(said, 40, 60))
        assert verify(tmp_path / "a").intact

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"numbers": (np.zeros((2, 3, 4), np.uint16),)}, "grids of shapes"),
            ({"numbers": (np.zeros((3, 3, 4), np.int16),)}, "other numbers"),
            ({"numbers": (np.full((3, 3, 4), grids.LARGEST + 1, np.uint16),)}, "other numbers"),
            ({"form": GridForm(((10, 20),), (1.0,), "last", True), "numbers": (np.zeros((3, 10, 20), np.uint16),)},
             "do not fit an image of 30x20"),
        ],
    )  # fmt: skip
    def test_refuses_what_does_not_fit(self, tmp_path: Path, changed: dict[str, Any], message: str) -> None:
        with (
            CertaintyWriter(tmp_path / "a", classes=CLASSES) as writer,
            pytest.raises(ArchiveError, match=f"image 'x'.*{message}"),
        ):
            writer.code_grids(
                "x", np.zeros((20, 30), np.uint8), own_grids(0, 3, [(3, 4)])._replace(**changed)
            )

    def test_flipped_bytes_are_found(self, tmp_path: Path) -> None:
        images = {f"x{i}": said_image(i, 3, 24, 32) for i in range(3)}
        path = write(tmp_path / "a", images)
        whole, generator = (path / SHARD).read_bytes(), np.random.default_rng(0)
        for position in generator.integers(0, len(whole), 60):
            damaged = bytearray(whole)
            damaged[position] ^= int(generator.integers(1, 256))
            (path / SHARD).write_bytes(damaged)
            try:
                with CertaintyReader(path) as reader:
                    assert all(np.array_equal(reader.certainty(id), images[id][1]) for id in reader.ids)
            except ArchiveError as error:
                assert SHARD in str(error)
            assert not verify(path).intact


class TestStrangers:
    @pytest.mark.parametrize(
        "text",
        [
            "", "null", "[]", "{}", "[" * 100_000,
            json.dumps({"sizes": [[3, 4]], "shares": [1.0], "softmax": "middle", "align_corners": True}),
            json.dumps({"sizes": [[3, -4]], "shares": [1.0], "softmax": "last", "align_corners": True}),
            json.dumps({"sizes": [[3, 4]], "shares": [float("nan")], "softmax": "last", "align_corners": True}),
            json.dumps({"sizes": [[3, 4]] * 100, "shares": [0.01] * 100, "softmax": "last", "align_corners": True}),
            json.dumps({"sizes": [[3, 4, 5]], "shares": [1.0], "softmax": "last", "align_corners": True}),
            json.dumps({"sizes": [["3", "4"]], "shares": [1.0], "softmax": "last", "align_corners": True}),
        ],
    )  # fmt: skip
    def test_a_form_that_is_none(self, text: str) -> None:
        with pytest.raises((ValueError, TypeError, KeyError, RecursionError)):
            GridForm.from_text(text)

    def test_a_form_that_asks_for_more_than_its_image(self, tmp_path: Path) -> None:
        coded = shard.code_grids("x", smooth(0, 3, 20, 30)[0], own_grids(0, 3, [(3, 4)]))
        huge = GridForm(((60_000, 60_000),), (1.0,), "last", True)
        (tmp_path / "x.image").write_bytes(shard.image_file(coded._replace(form=huge)))
        with pytest.raises(ArchiveError, match="do not fit their image"):
            ImageFile(tmp_path / "x.image", CLASSES)

    @pytest.mark.parametrize(
        "change",
        [
            lambda data: b"",
            lambda data: data[:-2],
            lambda data: data[: len(data) // 2] + b"\xff\xd9",
            lambda data: data.replace(b"\xff\xf7\x00\x0b\x10\x00\x09", b"\xff\xf7\x00\x0b\x10\xff\x09"),
            lambda data: data[:2] + b"\xff\xe8\xff\xff" + data[2:],
        ],
        ids=["empty", "no end", "half", "another height", "a segment that never ends"],
    )
    def test_a_stream_that_is_none(self, change: Any) -> None:
        (chunk,) = grids.pack(own_grids(0, 3, [(3, 4)]))
        data = change(bytes(chunk.data))
        with pytest.raises((ValueError, *DECODER_ERRORS)):
            grids.unpack(FORM, 3, [Chunk(data, False, crc32(data))])
