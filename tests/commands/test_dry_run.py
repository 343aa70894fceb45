"""``--dry-run``: what would be done and why; nothing is written; refused as the real run would be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from endauda_cli.cli import COMMANDS
from endauda_cli.labels import write_label
from endauda_cli.progress import Tick, silent
from endauda_cli.rates import RATES_FILE, Rate, Stopwatch, find_rate
from tests.support.command_lines import (
    CITIES,
    SIZE_FLAGS,
    TRAIN,
    VAL,
    make_workspace,
    put_outputs,
    refused,
    result_of,
    succeed,
)

if TYPE_CHECKING:
    from pathlib import Path

TRAINED = ("train", *SIZE_FLAGS, "--steps", "4", "--name", "student")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(make_workspace(tmp_path))
    return tmp_path


def tree(root: Path) -> dict[str, tuple[int, int]]:
    """Everything that lies there, folders too: size and time."""
    found = {}
    for place, folders, files in os.walk(root):
        for name in (*folders, *files):
            status = os.lstat(os.path.join(place, name))
            found[os.path.join(place, name)] = status.st_size, status.st_mtime_ns
    return found


def plan(*words: str) -> Any:
    """The plan of a line, which leaves everything as it was."""
    before = tree(os.curdir)  # type: ignore[arg-type]
    said = result_of(*words, "--dry-run")
    assert tree(os.curdir) == before  # type: ignore[arg-type]
    return said


def counts(said: Any) -> tuple[int, int, int]:
    (one,) = said["work"]
    return one["done"], one["missing"], one["changed"]


def why(said: Any) -> str:
    return str(said["work"][0]["why"])


# ---------------------------------------------------------------------------- fuse


def test_a_fusion_is_missing_done_and_changed(here: Path) -> None:
    said = plan("fuse", "--name", "x")
    assert counts(said) == (0, 5, 0) and why(said) == "not fused yet"
    assert said["time"]["value"] is None and "no rate yet" in said["time"]["source"]
    assert said["disk"]["value"] > 0 and "a guess" in said["disk"]["source"]
    succeed("fuse", "--name", "x")
    said = plan("fuse", "--name", "x")
    assert counts(said) == (5, 0, 0) and "made of the same archives by the same options" in why(said)
    assert said["time"] == said["disk"] == {"value": 0, "source": "nothing to do"}
    said = plan("fuse", "--name", "x", "--threshold", "50")
    assert counts(said) == (0, 0, 5) and why(said) == "--threshold 50.0 instead of 90.0"
    assert said["time"]["value"] > 0 and "images/s over 5 images here" in said["time"]["source"]
    assert "kB per image of x" in said["disk"]["source"] and said["memory"]["value"] > 1e6
    (here / CITIES / "gtFine/x" / f"{TRAIN[2]}.png").unlink()
    assert counts(plan("fuse", "--name", "x")) == (4, 0, 1)


def test_an_archive_that_says_something_else(here: Path) -> None:
    succeed("fuse", "--teachers", "dacs", "crst", "--rule", "majority")
    put_outputs(here / "outputs", "cbst", (*TRAIN, *VAL))
    for path in (here / "certainty/gta5/crst").iterdir():
        path.unlink()
    succeed("export-teacher", "crst", "--import", here / "outputs", "--split", "train", "val")
    said = plan("fuse", "--teachers", "dacs", "crst", "--rule", "majority")
    assert counts(said) == (0, 0, 5) and why(said) == "the archive of crst says something else than then"


def test_a_stopped_fusion_goes_on(here: Path) -> None:
    succeed("fuse", "--rule", "majority")
    folder = here / CITIES / "gtFine/majority"
    (folder / "fusion.json").unlink()
    journal = folder / "fusion.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:3]))
    for image in TRAIN[2:]:
        (folder / f"{image}.png").unlink()
    said = plan("fuse", "--rule", "majority")
    assert (
        counts(said) == (2, 3, 0) and why(said) == "2 images are there, made of the same; the others are not"
    )


def test_what_a_policy_is_chosen_by_is_not_computed(here: Path) -> None:
    succeed("fuse", "--name", "x")
    for path in (here / "certainty/gta5/.agreement").iterdir():
        path.unlink()
    said = plan("fuse", "--name", "x")
    assert counts(said) == (0, 0, 5) and "has to be found again" in why(said)


# ---------------------------------------------------------------------------- export-teacher


def test_an_export_is_missing_and_done(here: Path) -> None:
    outputs = put_outputs(here / "outputs", "dacs", (*TRAIN, *VAL))
    line = ("export-teacher", "other", "--import", str(outputs), "--split", "train", "val")
    said = plan(*line)
    assert counts(said) == (0, 7, 0) and why(said) == "not exported yet"
    assert "MB per image of cbst, which has" in said["disk"]["source"]
    succeed(*line[:-1])
    said = plan(*line)
    assert counts(said) == (5, 2, 0) and why(said) == "the archive holds 5 images, but not these"
    assert said["time"]["value"] > 0 and "over 5 images here" in said["time"]["source"]
    succeed(*line)
    assert counts(plan(*line)) == (7, 0, 0)
    write_label(outputs / f"{VAL[0]}.png", np.zeros((32, 64), np.uint8))
    assert "made of files that changed since" in refused(*line, "--dry-run") == refused(*line)


def test_a_network_with_other_weights_is_refused_as_it_would_be(here: Path) -> None:
    succeed("fuse", "--rule", "majority")
    succeed(*TRAINED)
    line = (
        "export-teacher",
        "student",
        "--weights",
        "runs/gta5/student/last.pt",
        "--split",
        "val",
        "--device",
        "cpu",
    )
    said = plan(*line)
    assert counts(said) == (0, 2, 0) and said["device"] == "cpu"
    succeed(*line)
    assert counts(plan(*line)) == (2, 0, 0)
    succeed("train", *SIZE_FLAGS, "--steps", "2", "--name", "student2")
    other = tuple(word.replace("/student/", "/student2/") for word in line)
    assert "made with" in refused(*other, "--dry-run") == refused(*other)
    flipped = refused(*line, "--flip", "--dry-run")
    assert "made with" in flipped


# ---------------------------------------------------------------------------- train


def test_a_run_is_new_stopped_and_done(here: Path) -> None:
    succeed("fuse", "--rule", "majority")
    said = plan(*TRAINED)
    assert counts(said) == (0, 4, 0) and why(said) == "no checkpoint yet"
    assert "MB of decoded images that are not cached yet" in said["disk"]["source"]
    succeed(*TRAINED)
    taken = sum(
        path.stat().st_size for path in (*here.glob("cache/*.bin"), here / "runs/gta5/student/last.pt")
    )
    assert said["disk"]["value"] == pytest.approx(taken, rel=0.02)
    assert counts(plan(*TRAINED)) == (4, 0, 0)
    longer = (*TRAINED[:-4], "--steps", "9", "--name", "student")
    said = plan(*longer, "--keep", "1")
    assert counts(said) == (4, 5, 0) and why(said) == "the run goes on from its checkpoint at step 4"
    assert said["disk"]["value"] == 0 and said["time"]["value"] > 0
    other = (*TRAINED, "--seed", "7")
    assert "holds a run with --seed" in refused(*other, "--dry-run") == refused(*other)


# ---------------------------------------------------------------------------- test


def test_scores_are_planned_row_by_row(here: Path) -> None:
    succeed("fuse", "--rule", "majority")
    succeed(*TRAINED)
    said = plan("test", "--all")
    assert [one["what"] for one in said["work"]] == [
        "label maps cbst",
        "label maps crst",
        "label maps dacs",
        "network student",
    ]
    assert {(one["done"], one["missing"]) for one in said["work"]} == {(0, 2)}
    assert said["time"]["value"] is None
    succeed("test", "--all")
    said = plan("test", "--all")
    assert (
        said["time"]["value"] > 0 and said["work"][-1]["why"] == "scored before, and is scored anew each time"
    )
    assert said["disk"]["value"] == 0
    assert "no such file of weights" in refused("test", "--weights", "nothing.pt", "--dry-run")
    lacking = ("test", "--predictions", "outputs")
    (here / "outputs").mkdir()
    assert refused(*lacking, "--dry-run") == refused(*lacking)


# ---------------------------------------------------------------------------- all


@pytest.mark.parametrize("words", ["fuse --teachers nobody", "train --labels nothing", "test --split test"])
def test_what_is_refused_is_refused(words: str, here: Path) -> None:
    before = tree(here)
    assert refused(*words.split(), "--dry-run")
    assert tree(here) == before


def test_the_text_names_what_and_why(here: Path) -> None:
    said = succeed("fuse", "--rule", "majority", "--dry-run").out
    for part in (
        "labels majority by majority",
        "not fused yet",
        "5 images",
        "disk: ",
        "memory: ",
        "time: unknown",
    ):
        assert part in said
    assert "a dry run: nothing was written" in said


def test_the_four_commands_have_it(here: Path) -> None:
    for name in COMMANDS:
        known = "--dry-run" in succeed(name, "--help").out
        assert known == (name in ("export-teacher", "fuse", "train", "test")), name


# ---------------------------------------------------------------------------- rates


def put_rates(root: Path, *lines: Any) -> None:
    (root / RATES_FILE).write_text(
        "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    )


def rate(**changes: Any) -> dict[str, Any]:
    plain = {"command": "fuse", "what": "plf", "device": "cpu", "machine": os.uname().nodename, "images": 10}
    return (
        plain
        | {"setup": 1.0, "setup_cpu": 2.0, "seconds": 5.0, "cpu_seconds": 8.0, "peak_bytes": 9}
        | changes
    )


def test_the_rate_of_most_images_counts_and_only_this_machines(tmp_path: Path) -> None:
    put_rates(
        tmp_path,
        rate(images=20),
        rate(images=30, what="majority"),
        rate(images=500, machine="elsewhere"),
        rate(images=500, device="cuda"),
        rate(images=500, command="test"),
        rate(),
    )
    found = find_rate(tmp_path, "fuse", "plf", "cpu")
    assert found is not None and (found.images, found.time_of(40), found.cpu_of(40)) == (
        20,
        1 + 40 / 4,
        2 + 16,
    )
    other = find_rate(tmp_path, "fuse", "consensus", "cpu")
    assert other is not None and (other.images, other.what) == (30, "majority")
    assert find_rate(tmp_path, "train", "plf", "cpu") is None
    assert find_rate(tmp_path / "nothing", "fuse", "plf", "cpu") is None


@pytest.mark.parametrize(
    "line",
    [
        "", "[", "[1]", "null", "[" * 100_000, '"x"', '{"command": "fuse"}', rate(images=0), rate(images="9"),
        rate(seconds=0), rate(seconds=float("nan")), rate(setup=-1), rate(peak_bytes=10**30), rate(more=1),
    ],
)  # fmt: skip
def test_a_line_of_a_stranger_is_none(line: Any, tmp_path: Path) -> None:
    put_rates(tmp_path, line)
    assert find_rate(tmp_path, "fuse", "plf", "cpu") is None


def test_a_workspace_that_cannot_be_written_to_keeps_no_rates(tmp_path: Path) -> None:
    watch = Stopwatch("fusing", silent)
    for done in range(3):
        watch.report(Tick("fusing", done, 2))
    watch.store(tmp_path / "nothing", "fuse", "plf", "cpu", 2)
    watch.store(tmp_path, "fuse", "plf", "cpu", 0)
    assert list(tmp_path.iterdir()) == []
    watch.store(tmp_path, "fuse", "plf", "cpu", 2)
    found = find_rate(tmp_path, "fuse", "plf", "cpu")
    assert isinstance(found, Rate) and found.images == 2 and found.peak_bytes > 1e6


def test_what_this_process_took_is_known() -> None:
    line = (
        "import time; began = time.time(); from endauda_cli.rates import spent; time.sleep(0.3); "
        "print(time.time() - began, *spent())"
    )
    run = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True)
    least, seconds, cpu = map(float, run.stdout.split())
    assert least - 0.02 <= seconds < least + 60 and 0 < cpu < seconds + 0.1
