"""Scores against cityscapesScripts itself, where it is installed.

``pip install --no-deps cityscapesscripts pyquaternion``: its dependencies would bring a ``typing`` for Python 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from endauda_cli.datasets import Sample
from endauda_cli.domains import CITYSCAPES
from endauda_cli.progress import silent
from endauda_cli.scoring import score_predictions
from tests.support.command_lines import put_label

if TYPE_CHECKING:
    from pathlib import Path

official: Any = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")

ID_OF = {CITYSCAPES.train_id(i): i for i in CITYSCAPES.label_ids if CITYSCAPES.train_id(i) != 255}
IGNORED = (0, 1, 4, 6, 10, 14, 30)


@pytest.mark.parametrize("absent", [(), (16,), (3, 4, 16, 17)])
@pytest.mark.parametrize("undecided", [0.0, 0.1])
def test_scores_are_cityscapesscripts(absent: tuple[int, ...], undecided: float, tmp_path: Path) -> None:
    """19 classes, areas that are ignored, classes that occur nowhere, pixels without a prediction."""
    rng = np.random.default_rng(len(absent))
    classes = [c for c in range(19) if c not in absent]
    to_ids = np.array([ID_OF.get(c, 0) for c in range(256)], np.uint8)
    samples, theirs, truths = [], [], []
    for image in ("a", "b", "c"):
        truth = rng.choice(classes, (16, 24)).astype(np.uint8).repeat(4, 0).repeat(4, 1)
        said = np.where(rng.random(truth.shape) < 0.3, rng.choice(classes, truth.shape), truth).astype(
            np.uint8
        )
        said[rng.random(truth.shape) < undecided] = 255
        ids = to_ids[truth]
        ids[rng.random(truth.shape) < 0.1] = rng.choice(IGNORED)
        put_label(tmp_path / "ours" / f"{image}.png", said)
        put_label(tmp_path / "theirs" / f"{image}.png", to_ids[said])
        put_label(tmp_path / f"{image}_truth.png", ids)
        samples.append(Sample(image, tmp_path / f"{image}.png", tmp_path / f"{image}_truth.png"))
        theirs.append(str(tmp_path / "theirs" / f"{image}.png"))
        truths.append(str(tmp_path / f"{image}_truth.png"))
    official.args.evalInstLevelScore = official.args.JSONOutput = False
    official.args.quiet = True
    expected = official.evaluateImgLists(theirs, truths, official.args)
    ours = score_predictions(tmp_path / "ours", samples, CITYSCAPES, silent)
    for name, value in ours.strict_iou.items():
        score = expected["classScores"][name]
        assert value is None if np.isnan(score) else value == 100 * score, name
    assert sum(value is None for value in ours.strict_iou.values()) == len(absent)
    assert ours.strict_miou == pytest.approx(100 * expected["averageScoreClasses"], rel=1e-12)
    if not undecided:
        assert ours.iou == ours.strict_iou
