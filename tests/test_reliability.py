"""Reliability of certainties, against a plain form of the same definitions, and through the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from endauda_cli import reliability
from endauda_cli.datasets import Sample
from endauda_cli.domains import Domain, Layout
from endauda_cli.errors import DataError
from endauda_cli.labels import write_label
from endauda_cli.progress import silent
from endauda_cli.reliability import Seen, calibration_of, fitted, halves, reliability_of, sums_of, tables_of
from tests.support.command_lines import VAL, make_workspace, refused, result_of, succeed

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Array = NDArray[Any]

CLASSES = ("a", "b", "c", "d")


def percents(probabilities: Array) -> Array:
    return np.asarray(100 * probabilities + 1e-9).astype(np.uint8)


def made(seed: int = 0, size: tuple[int, int] = (24, 40), power: float = 1.0) -> tuple[Seen, Array]:
    """A teacher whose probabilities, (C, H, W), are true ones to a power; some pixels lack a label or a true class."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (len(CLASSES), *size))
    true = np.exp(logits) / np.exp(logits).sum(0)
    truth = (rng.random(size) > np.cumsum(true, 0)[:-1]).sum(0).astype(np.uint8)
    said = true**power / (true**power).sum(0)
    labels = said.argmax(0).astype(np.uint8)
    truth[:2], labels[-1] = 255, 255
    return Seen(labels, percents(said), truth), said


def probabilities_of(seen: Seen, temperature: float) -> Array:
    """(C, N) of the pixels that count, as the module's docstring says it."""
    counts = (seen.truth < len(CLASSES)) & (seen.labels != 255)
    planes, labels = seen.planes[:, counts].astype(float), seen.labels[counts]
    missing = np.clip(100 - planes.sum(0), 0, 100)
    share = np.clip((missing - 0.5) / (len(CLASSES) - 1), 0.01, 0.5)
    nobody = np.clip(missing - 0.5 - share * (len(CLASSES) - 1), 0, None)
    others = np.minimum(planes + share, 100)
    where = labels, np.arange(len(labels))
    others[where] = np.minimum(planes[where] + 0.5, 100)
    powers = np.concatenate([others, nobody[None]]) ** (1 / temperature)
    return np.asarray(powers[:-1] / powers.sum(0))


def plain_error(sure: Array, right: Array) -> tuple[float, float, list[tuple[float, float, int]]]:
    """ECE, MCE and bins (mean certainty, accuracy, count), bin by bin."""
    edges = np.linspace(0, 1, 16)
    place = np.clip(np.searchsorted(edges, sure, side="right") - 1, 0, 14)
    bins = [(sure[place == b], right[place == b]) for b in range(15)]
    gaps = [abs(s.mean() - r.mean()) if len(s) else 0.0 for s, r in bins]
    whole = [(float(s.mean()), float(r.mean()), len(s)) if len(s) else (0.0, 0.0, 0) for s, r in bins]
    ece = sum(gap * len(s) / len(sure) for gap, (s, _) in zip(gaps, bins, strict=True))
    return float(ece), float(max(gaps)), whole


@pytest.mark.parametrize("temperature", [1.0, 0.6, 2.5])
def test_equal_to_the_plain_form(temperature: float) -> None:
    seen, _ = made()
    counts = (seen.truth < len(CLASSES)) & (seen.labels != 255)
    p, truth, label = probabilities_of(seen, temperature), seen.truth[counts], seen.labels[counts]
    found = reliability_of(sums_of(seen, tables_of(temperature, len(CLASSES))), CLASSES)
    every = np.arange(len(truth))
    ece, mce, bins = plain_error(p[label, every], truth == label)
    assert (found.ece, found.mce) == pytest.approx((ece, mce))
    assert np.array([(b.confidence or 0, b.accuracy or 0, b.count) for b in found.bins]) == pytest.approx(
        np.array(bins)
    )
    assert found.pixels == counts.sum() == sum(b.count for b in found.bins)
    of_classes = {name: plain_error(p[c], truth == c)[0] for c, name in enumerate(CLASSES)}
    assert found.classwise == pytest.approx(of_classes)
    assert found.classwise_mean == pytest.approx(np.mean(list(of_classes.values())))
    assert found.log_loss == pytest.approx(-np.log(p[truth, every]).mean())
    wanted = np.eye(len(CLASSES))[truth].T
    assert found.brier == pytest.approx(((p - wanted) ** 2).sum(0).mean())


def test_cut_percents_are_near_the_probabilities_they_were() -> None:
    """What the archive lost costs less than a percent; counting bytes as they are would cost half a percent more."""
    seen, said = made(size=(100, 200))
    counts = (seen.truth < len(CLASSES)) & (seen.labels != 255)
    sure = said.max(0)[counts]
    ece, _, _ = plain_error(sure, seen.truth[counts] == seen.labels[counts])
    found = reliability_of(sums_of(seen, tables_of(1, len(CLASSES))), CLASSES)
    assert found.ece == pytest.approx(ece, abs=2e-3)
    mean = sum((b.confidence or 0) * b.count for b in found.bins) / found.pixels
    assert mean == pytest.approx(sure.mean(), abs=1e-3)
    assert abs(seen.planes.max(0)[counts].mean() / 100 - sure.mean()) > 4e-3


def test_what_no_class_claims_stays_nobodys() -> None:
    """Planes that sum to far less than 100 (classes left out, pixels without a mask) are not scaled up."""
    planes = np.zeros((4, 1, 8), np.uint8)
    planes[1] = 40
    labels, truth = np.ones((1, 8), np.uint8), np.ones((1, 8), np.uint8)
    found = reliability_of(sums_of(Seen(labels, planes, truth), tables_of(1, 4)), CLASSES)
    assert found.log_loss == pytest.approx(-np.log(0.405))


@pytest.mark.parametrize("power", [0.5, 1.5])
def test_the_temperature_is_what_was_done(power: float) -> None:
    seen = made(size=(200, 200), power=power)[0]
    known = (seen.truth < len(CLASSES)) & (seen.labels != 255)
    drawn = Seen(*(np.ascontiguousarray(v[..., known])[..., None, :] for v in seen))
    assert fitted([drawn]) == pytest.approx(power, rel=0.05)  # cut percents hide part of a tail


def test_sequences_stay_together() -> None:
    drives = [f"{drive}_{n:05}" for drive, count in (("a", 3), ("b", 6), ("c", 2)) for n in range(count)]
    half, what = halves(drives)
    assert what == "sequences" and half == [1] * 3 + [0] * 6 + [1] * 2
    assert halves(["x", "y", "z"]) == ([0, 1, 0], "images")
    assert halves([f"a_{n}" for n in range(4)]) == ([0, 1, 0, 1], "images")


class Said:
    """A teacher of images in memory."""

    classes = CLASSES

    def __init__(self, seen: dict[str, Seen]) -> None:
        self.seen = seen
        self.ids = tuple(seen)

    def labels(self, id: str) -> Array:
        return self.seen[id].labels

    def certainty(self, id: str) -> Array:
        return self.seen[id].planes


def street(folder: Path, seen: dict[str, Seen]) -> tuple[list[Sample], Domain]:
    colours = tuple((c, c, c) for c in range(4))
    names, places = dict(enumerate(CLASSES)), (Layout(("*.png",)),)
    domain = Domain("four", CLASSES, colours, names, places, (".",), "labels", others_ignored=True)
    samples = []
    for name, one in seen.items():
        write_label(folder / f"{name}.png", one.truth)
        samples.append(Sample(name, folder / f"{name}.png", folder / f"{name}.png"))
    return samples, domain


def test_judged_on_other_images_than_fitted_to(tmp_path: Path) -> None:
    """Images of one half want another temperature than those of the other: each is judged with the wrong one."""
    seen = {f"{n}": made(n, (60, 60), power=(0.5, 2.0)[n % 2])[0] for n in range(6)}
    samples, domain = street(tmp_path, seen)
    found = calibration_of(Said(seen), samples, domain, None, silent)  # type: ignore[arg-type]
    assert found.fitted_on == "images" and 0.6 < found.temperature < 1.7
    sides = [sum_of([one for n, one in enumerate(seen.values()) if n % 2 == side]) for side in (0, 1)]
    right_for = [fitted([of_side]) for of_side in sides]
    assert right_for[0] == pytest.approx(0.5, rel=0.1) and right_for[1] == pytest.approx(2, rel=0.1)
    crossed = sums_of(sides[0], tables_of(right_for[1], 4)) + sums_of(sides[1], tables_of(right_for[0], 4))
    assert found.after.log_loss == pytest.approx(reliability_of(crossed, CLASSES).log_loss, rel=0.02)
    assert found.after.log_loss > found.log_loss
    given = calibration_of(Said(seen), samples, domain, 1.0, silent)  # type: ignore[arg-type]
    assert given.fitted_on == "given" and given.after == reliability_of(sum_sums(seen), CLASSES)


def sum_of(parts: list[Seen]) -> Seen:
    """As one image of one row, of the pixels that count."""
    known = [(one.truth < 4) & (one.labels != 255) for one in parts]
    cut = [Seen(*(v[..., k] for v in one)) for one, k in zip(parts, known, strict=True)]
    return Seen(*(np.concatenate(part, -1)[..., None, :] for part in zip(*cut, strict=True)))


def sum_sums(seen: dict[str, Seen]) -> reliability.Sums:
    total = reliability.Sums.empty(4)
    for one in seen.values():
        total = total + sums_of(one, tables_of(1, 4))
    return total


def test_nothing_to_judge(tmp_path: Path) -> None:
    one = made()[0]._replace(truth=np.full((24, 40), 255, np.uint8))
    samples, domain = street(tmp_path, {"x": one})
    for temperature, words in ((1.0, "no pixel has both"), (None, "--temperature")):
        with pytest.raises(DataError, match=words):
            calibration_of(Said({"x": one}), samples, domain, temperature, silent)  # type: ignore[arg-type]


def test_through_the_command_line(tmp_path: Path) -> None:
    root = make_workspace(tmp_path)
    here = ("--workspace", root)
    one = result_of("test", *here, "--archive", "crst", "--calibration")
    calibration = one["calibration"]
    assert len(calibration["bins"]) == 15 and calibration["fitted_on"] == "images"
    assert sum(b["count"] for b in calibration["bins"]) == len(VAL) * 32 * 64 == calibration["pixels"]
    assert set(calibration["classwise"]) == set(one["iou"]) == set(calibration["after"]["classwise"])
    assert result_of("test", *here, "--archive", "crst")["calibration"] is None
    given = result_of("test", *here, "--archive", "crst", "--calibration", "--temperature", "2")[
        "calibration"
    ]
    assert (given["temperature"], given["fitted_on"]) == (2, "given") and given["ece"] == calibration["ece"]
    assert given["after"]["log_loss"] != given["log_loss"]
    outcome = succeed("test", *here, "--archive", "crst", "dacs", "--calibration")
    assert "crst as they are" in outcome.out and "dacs at T" in outcome.out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (("--archive", "crst", "--temperature", "2"), "--calibration"),
        (("--archive", "crst", "--calibration", "--temperature", "-1"), "number from 0.01 to 100"),
        (("--predictions", "outputs", "--calibration"), "archives"),
    ],
)
def test_refused(tmp_path: Path, line: tuple[str, ...], words: str) -> None:
    root = make_workspace(tmp_path)
    assert words in refused("test", "--workspace", root, *line)
