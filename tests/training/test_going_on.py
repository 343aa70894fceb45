"""Runs that were made from something else, by somebody else, or that are written by two at once."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from endauda_cli import checkpoint
from endauda_cli.domains import IGNORE
from endauda_cli.errors import CheckpointError, ConfigError, DataError, EndaudaError, WorkspaceError
from endauda_cli.files import WriterLock
from endauda_cli.labels import write_label
from endauda_cli.progress import Note, Tick, silent
from endauda_cli.training import cache, data
from endauda_cli.training.contents import survey
from endauda_cli.training.data import Stream
from endauda_cli.training.methods.distill import read_fused
from endauda_cli.training.records import lines_before
from endauda_cli.training.resume import check_meta
from endauda_cli.workspace import ORDER
from tests.support.command_lines import refused, succeed
from tests.support.training_runs import CONFIG, TinySet, run

if TYPE_CHECKING:
    from pathlib import Path

SHORT: dict[str, Any] = {"steps": 2, "validate_every": 0, "save_every": 1}
LINE = (
    "train", "--backbone", "tiny", "--size", "64x32", "--crop", "32x16", "--batch-size", "2", "--steps", "2",
    "--device", "cpu", "--target", "tiny.toml", "--source", "tiny.toml", "--quiet",
)  # fmt: skip


def words(data: TinySet, *more: str) -> tuple[str, ...]:
    target = str(data.toml)
    line = tuple(target if word == "tiny.toml" else word for word in LINE)
    roots = ("--target-data", str(data.root), "--source-data", str(data.root))
    return (*line, "--workspace", str(data.root), *roots, *more)


def same_size_and_time(path: Path, content: bytes) -> None:
    """Write a file as ``rsync -t`` and ``cp -p`` do, so that only its content tells."""
    before = path.stat()
    assert len(content) == before.st_size
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def swapped_label(path: Path) -> None:
    """Other labels in a file of equal size: two lines of an uncompressed picture change places."""
    with Image.open(path) as image:
        label = np.asarray(image)
    Image.fromarray(label).save(path, compress_level=0)
    before = path.read_bytes()
    Image.fromarray(label[::-1]).save(path, compress_level=0)
    after = path.read_bytes()
    path.write_bytes(before)
    same_size_and_time(path, after)


def test_labels_corrected_at_equal_size_are_another_run(tiny_set: TinySet, tmp_path: Path) -> None:
    label = tiny_set.root / "fused" / "1.png"
    with Image.open(label) as image:
        Image.fromarray(np.asarray(image)).save(label, compress_level=0)
    out = tmp_path / "run"
    run(tiny_set, out, **SHORT)
    assert run(tiny_set, out, **SHORT).resumed_from == 2, "nothing has changed"
    swapped_label(label)
    with pytest.raises(
        ConfigError, match=r"on other images or labels .*files or their class table have changed"
    ):
        run(tiny_set, out, **SHORT)


def test_the_cache_is_of_the_labels_that_are_there(tiny_set: TinySet, tmp_path: Path) -> None:
    label = tiny_set.root / "fused" / "0.png"
    with Image.open(label) as image:
        Image.fromarray(np.asarray(image)).save(label, compress_level=0)
    stream = Stream(tiny_set.examples(), tiny_set.domain, read_fused)

    def rows() -> Any:
        contents = survey(stream, 2, silent)
        return np.array(data.load_rows(CONFIG, stream, contents, tmp_path / "cache", silent).labels[0])

    before = rows()
    swapped_label(label)
    assert np.array_equal(rows(), before[::-1])


def test_images_corrected_at_equal_size_are_another_run(tiny_set: TinySet, tmp_path: Path) -> None:
    image = tiny_set.root / "images" / "train" / "2.png"
    with Image.open(image) as picture:
        pixels = np.asarray(picture)
    Image.fromarray(pixels).save(image, compress_level=0)
    out = tmp_path / "run"
    run(tiny_set, out, **SHORT)
    before = image.stat()
    Image.fromarray(255 - pixels).save(image, compress_level=0)
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert image.stat().st_size == before.st_size
    with pytest.raises(ConfigError, match="on other images or labels"):
        run(tiny_set, out, **SHORT)


def test_a_corrected_class_table_is_another_source_run(tiny_set: TinySet) -> None:
    line = words(tiny_set, "--method", "source", "--name", "first")
    succeed(*line)
    text = tiny_set.toml.read_text()
    tiny_set.toml.write_text(text.replace('"7" = "road", "26" = "car"', '"7" = "car", "26" = "road"'))
    assert "class table have changed" in refused(*(word for word in line if word != "--quiet"))


def test_best_is_not_that_of_a_former_class_table(tiny_set: TinySet) -> None:
    line = words(tiny_set, "--labels", str(tiny_set.root / "fused"), "--name", "it", "--validate-every", "1")
    first = succeed(*line, "--json")
    assert first.result["best_miou"] is not None
    assert succeed(*line, "--json").result["best_miou"] == first.result["best_miou"]
    text = tiny_set.toml.read_text()
    tiny_set.toml.write_text(text.replace('"7" = "road", "26" = "car"', '"7" = "car", "26" = "road"'))
    again = succeed(*line, "--json")
    assert again.result["best_miou"] is None
    assert "best.pt was chosen by the former ones; score both checkpoints" in again.err


def test_a_run_of_an_earlier_version_has_no_digest_of_contents(tiny_set: TinySet, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(tiny_set, out, **SHORT)
    content = torch.load(out / "last.pt", weights_only=True)
    del content["meta"]["data"]["content"], content["meta"]["data"]["truth"]
    torch.save(content, out / "last.pt")
    assert run(tiny_set, out, **SHORT).resumed_from == 2


def test_one_writer_per_run(tiny_set: TinySet, tmp_path: Path) -> None:
    """Another process trains it: the second is told which, and touches nothing."""
    out = tmp_path / "run"
    holder = (
        "import sys; from pathlib import Path; from endauda_cli.files import WriterLock\n"
        f"assert WriterLock(Path({str(tmp_path / '.run.lock')!r})).acquire(); print('held', flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(
            WorkspaceError, match=rf"process {other.pid} on .* is training this run now; .*with --name"
        ):
            run(tiny_set, out, **SHORT)
        assert not out.exists()
        run(tiny_set, tmp_path / "another", **SHORT)
        other.stdin.close()
        other.wait(10)
    assert run(tiny_set, out, **SHORT).steps == 2
    assert not (tmp_path / ".run.lock").exists()


def test_the_lock_is_held_while_it_trains(tiny_set: TinySet, tmp_path: Path) -> None:
    held = []

    def look(event: Tick | Note) -> None:
        if isinstance(event, Tick) and event.task == "training":
            held.append(WriterLock(tmp_path / ".run.lock").acquire())

    run(tiny_set, tmp_path / "run", look, **SHORT)
    assert held
    assert not any(held)


def test_order_of_runs_is_written(tiny_set: TinySet, tmp_path: Path) -> None:
    orders = []
    for name in ("b", "a", "b"):
        run(tiny_set, tmp_path / name, **SHORT | {"steps": 2})
        orders.append(json.loads((tmp_path / name / "config.json").read_text())[ORDER])
    assert orders[0] < orders[1]
    assert orders[2] == orders[0], "a finished run is not made newer by looking at it"


def test_more_steps_go_on_and_fewer_are_refused(tiny_set: TinySet) -> None:
    line = words(tiny_set, "--labels", str(tiny_set.root / "fused"), "--name", "it")
    succeed(*line)
    longer = [word for word in line if word != "--quiet"]
    longer[longer.index("--steps") + 1] = "4"
    told = succeed(*longer).err
    assert "goes on at step 2 of 4" in told and "--steps 4 instead of 2: the learning rate" in told
    assert checkpoint.read_meta(tiny_set.root / "runs" / "tiny" / "it" / "last.pt")["step"] == 4
    assert "with --steps 4, not 2; name another with --name" in refused(*line)


# ---------------------------------------------------------------------------- samples and truth


def test_every_second_image_without_labels_is_no_reason_to_refuse(tiny_set: TinySet, tmp_path: Path) -> None:
    """Left and right camera in turn, of which only one is labelled."""
    notes: list[str] = []
    for labelled in (0, 1):
        labels = np.full((402, 4, 4), IGNORE, np.uint8)
        labels[labelled::2] = 1
        labels[401 - labelled, 0, 0], labels[labelled, 0, 1] = 0, 2
        data.tell_histogram(labels, tiny_set.domain, lambda event: notes.append(getattr(event, "text", "")))
    assert not [note for note in notes if "never show" in note]
    rare = np.zeros((1000, 4, 4), np.uint8)
    rare[777], rare[501] = 1, 2
    notes.clear()
    data.tell_histogram(rare, tiny_set.domain, lambda event: notes.append(getattr(event, "text", "")))
    assert len(notes) == 1
    assert "images)" not in notes[0]
    rare[::2, 0], rare[1::2, 0], rare[:, 1] = 1, 1, 2
    notes.clear()
    data.tell_histogram(rare, tiny_set.domain, lambda event: notes.append(getattr(event, "text", "")))
    assert "(200 of 1000 images)" in notes[0]


def test_truth_without_any_class_keeps_no_best_and_says_so(tiny_set: TinySet) -> None:
    line = words(tiny_set, "--labels", str(tiny_set.root / "fused"), "--name", "it", "--validate-every", "1")
    for path in (tiny_set.root / "truth" / "val").iterdir():
        write_label(path, np.full((32, 64), IGNORE, np.uint8))
    ended = succeed(*line)
    assert "the labels of all 2 val images show no class of tiny" in ended.err
    assert "no best.pt is kept" in ended.err


# ---------------------------------------------------------------------------- records that say something else


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step", "12"), ("step", -1), ("step", True), ("step", 1 << 70), ("config", [1]), ("classes", "road"),
        ("data", None), ("data", {"digest": 3}), ("best_miou", "high"), ("best_step", {}), ("miou", [1.0]),
        ("target", 7), ("initialised_from", 3),
    ],
)  # fmt: skip
def test_a_checkpoint_that_says_something_else(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: object
) -> None:
    good = {
        "config": {}, "classes": ["road"], "target": "t", "data": {"labels": "x", "digest": "y"}, "step": 3,
        "miou": None, "best_miou": 3.5, "best_step": 2, "initialised_from": None,
    }  # fmt: skip
    last = tmp_path_factory.getbasetemp() / "last.pt"
    assert check_meta(last, good) is good
    with pytest.raises(CheckpointError, match=r"last\.pt: its \w+ is .*copy the file again"):
        check_meta(last, good | {key: value})


@pytest.mark.parametrize("part", ["optimizer", "loss"])
@pytest.mark.parametrize("value", [None, {}, {"state": 3, "param_groups": []}, [1], {"state": {}}])
def test_a_checkpoint_with_a_state_of_another_form(
    tiny_set: TinySet, tmp_path: Path, part: str, value: object
) -> None:
    out = tmp_path / "run"
    run(tiny_set, out, **SHORT)
    content = torch.load(out / "last.pt", weights_only=True)
    content[part] = value
    torch.save(content, out / "last.pt")
    with pytest.raises(CheckpointError, match=r"last\.pt: its optimizer or loss is .*copy the file again"):
        run(tiny_set, out, **SHORT)


def test_metrics_that_are_no_lines_of_ours_are_dropped(tiny_set: TinySet, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    good = ['{"step": 0, "loss": 1.0}', '{"step": 3, "loss": null}']
    bad = [
        "[1, 2]", "3", '"step"', "null", '{"loss": 2}', '{"step": "1"}', '{"step": true}', '{"step": -1}',
        '{"step": 1', "[" * 100_000, '{"step": ' + "9" * 5000 + "}", "\x1b[2J", '{"step": NaN}', '{"step": 9}',
    ]  # fmt: skip
    path.write_bytes("\n".join([good[0], *bad, good[1]]).encode() + b"\n\xff\xfe\n")
    assert lines_before(path, 5) == good
    out = tmp_path / "run"
    out.mkdir()
    path.rename(out / "metrics.jsonl")
    run(tiny_set, out, **SHORT)
    assert [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()] == [0, 1]


@pytest.mark.parametrize("name", ["metrics.jsonl", "last.pt"])
def test_a_pipe_in_place_of_a_record_is_not_waited_for(tiny_set: TinySet, tmp_path: Path, name: str) -> None:
    out = tmp_path / "run"
    out.mkdir()
    os.mkfifo(out / name)
    with pytest.raises(EndaudaError, match=name.replace(".", r"\.")):
        run(tiny_set, out, **SHORT)


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"order": 1e999}', "[]", '{"order": "' + "x" * 10_000 + '"}']
)
def test_a_config_of_another_form_ends_nothing(tiny_set: TinySet, tmp_path: Path, content: str) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.json").write_text(content)
    run(tiny_set, out, **SHORT)
    assert json.loads((out / "config.json").read_text())["config"]["steps"] == 2


# ---------------------------------------------------------------------------- file systems that cannot do it all


def no_fallocate(descriptor: int, offset: int, size: int) -> None:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def no_map(*args: Any, **kwargs: Any) -> Any:
    raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))


def test_a_disk_without_fallocate_and_maps(
    tiny_set: TinySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(tiny_set, tmp_path / "one" / "run", **SHORT)
    monkeypatch.setattr(os, "posix_fallocate", no_fallocate)
    monkeypatch.setattr(np, "memmap", no_map)
    found = run(tiny_set, tmp_path / "two" / "run", **SHORT)
    assert found.last_loss == expected.last_loss
    assert run(tiny_set, tmp_path / "two" / "again", **SHORT).last_loss == expected.last_loss


def test_why_a_cache_cannot_be_written(
    tiny_set: TinySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "posix_fallocate", read_only)
    with pytest.raises(
        DataError, match="can only be read; work on another one, or name another folder with --cache"
    ):
        run(tiny_set, tmp_path / "run", **SHORT)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"a file stands where a folder is needed"):
        cache.cached_rows(
            tmp_path / "file", "t", [tiny_set.toml], "r", (1,), lambda i: np.zeros(1, np.uint8), 1, silent
        )


def test_a_cache_that_was_copied_in_part_is_filled_again(tiny_set: TinySet, tmp_path: Path) -> None:
    expected = run(tiny_set, tmp_path / "one", **SHORT)
    for large in (tmp_path / "cache").glob("*.bin"):
        os.truncate(large, 100)
    assert run(tiny_set, tmp_path / "two", **SHORT).last_loss == expected.last_loss
