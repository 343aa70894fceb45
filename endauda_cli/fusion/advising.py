"""Engine: which of the teachers to fuse, and by which rule.

Candidates, an ensemble and a rule each, are fused on a sample of images and held against what all teachers together
believe, and against the truth of labelled images where there are some. Drawing the images again says how sure that is.

What was measured on real teachers (``benchmarks/advice.py``, docs/policies.md) makes the advice a cautious one: the
belief of all ranks ensembles well, yet what it finds best is all of them by ``consensus``, which nothing chosen by a
few labels beats on average unless it is better by two standard errors.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from endauda_cli.fusion.candidates import against_belief, against_truth, look, make, mean_iou, witnesses
from endauda_cli.fusion.rules import RULES
from endauda_cli.progress import Reporter, counted
from endauda_cli.results import Advice, AdvisedEnsemble, TeacherAdvice
from endauda_cli.types import FusionRule

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from endauda_cli.archive import TeacherOutputs
    from endauda_cli.datasets import Sample
    from endauda_cli.domains import Task
    from endauda_cli.fusion.candidates import Ensemble, Sight

    Float = NDArray[np.float64]

IMAGES = 50
"""That ensembles are fitted to and compared on, evenly spread."""
ALL_SUBSETS = 6
"""Up to so many teachers every ensemble is tried; of more, the one that is missed least is dropped, again and again."""
TOLERANCE = 0.5
"""Points of expected mIoU that fewer teachers may be below all: half a point of the true one was lost at most."""
ERRORS = 2
"""Standard errors by which labels have to show something better than all teachers by ``consensus``."""
DRAWS, SEED = 200, 0
DEFAULT = str(FusionRule.CONSENSUS)
ORDER = (DEFAULT, *(str(rule) for rule in RULES if rule != DEFAULT))
"""Of equals, the first is taken."""


def advise(
    task: Task,
    readers: Mapping[str, TeacherOutputs],
    copies: Mapping[str, str],
    ids: Sequence[str],
    labelled: Sequence[Sample],
    report: Reporter,
) -> Advice:
    """Which teachers to fuse, and how.

    Args:
        task: source and target.
        readers: teacher name -> what it says; those that repeat another are left out.
        copies: these, name -> of whom.
        ids: images to fuse, of which ``IMAGES`` are looked at.
        labelled: images whose truth may be looked at; without any, agreement decides.
        report: told of progress.

    Raises:
        DataError, ArchiveError: as ``candidates.look``.
    """
    some = [ids[i * len(ids) // IMAGES] for i in range(IMAGES)] if len(ids) > IMAGES else ids
    sight = look(task, readers, some, labelled, report)
    trial = Trial.of(sight, report)
    every = tuple(readers)
    advised, sureness = trial.advised()
    smaller, smaller_sureness = trial.smaller()
    alike = witnesses(sight)
    teachers = [TeacherAdvice(name, trial.best_of((name,)), trial.adds(name), alike[name]) for name in every]
    teachers += [TeacherAdvice(name, trial.best_of((of,)), 0.0, 0.0, of) for name, of in copies.items()]
    rule = [] if advised.rule == DEFAULT else ["--rule", advised.rule]
    return Advice(
        by="labels" if labelled else "agreement",
        advised=advised,
        sureness=sureness,
        smaller=smaller,
        smaller_sureness=smaller_sureness,
        tolerance=TOLERANCE,
        best=trial.shown(*max(trial.candidates, key=trial.figure)),
        rules=tuple(trial.shown(every, rule) for rule in ORDER),
        teachers=tuple(teachers),
        tried=len({ensemble for ensemble, _ in trial.candidates}),
        images=len(sight.ids),
        labelled_images=tuple(sample.id for sample in labelled),
        command=shlex.join(["endauda", "fuse", "--teachers", *advised.teachers, *rule]),
    )


@dataclass(frozen=True)
class Trial:
    """Candidates, and what each of their images has in common with both references.

    Attributes:
        candidates: (ensemble, rule), K of them.
        expected: (K, 1 + draws) mIoU with the belief of all teachers, percent; the first is of all images once.
        true: likewise, with the truth of the labelled images; ``None`` without any.
    """

    candidates: list[tuple[Ensemble, str]]
    expected: Float
    true: Float | None

    @classmethod
    def of(cls, sight: Sight, report: Reporter) -> Trial:
        """Try ensembles of a sight's teachers, all together first."""
        every = tuple(sight.teachers)
        times, times_true = _draws(len(sight.ids)), _draws(len(sight.truths))
        found: dict[tuple[Ensemble, str], tuple[Float, Float | None]] = {}
        belief: Mapping[str, NDArray[np.float32]] = {}
        search = _search(every, found)
        for ensemble in counted(search, _searches(len(every)), "trying ensembles", report):
            made = make(sight, ensemble)
            belief = belief or made.belief
            for rule in ORDER:
                labels = made.labels[rule]
                true = mean_iou(against_truth(labels, sight), times_true) if sight.truths else None
                found[ensemble, rule] = mean_iou(against_belief(labels, belief), times), true
        trues = [true for _, true in found.values() if true is not None]
        expected = np.stack([one for one, _ in found.values()])
        return cls(list(found), expected, np.stack(trues) if trues else None)

    @property
    def every(self) -> Ensemble:
        return self.candidates[0][0]

    def figure(self, candidate: tuple[Ensemble, str]) -> float:
        """The better figure there is: true mIoU, else the expected one."""
        found = self.expected if self.true is None else self.true
        return float(found[self.candidates.index(candidate), 0])

    def best_of(self, ensemble: Ensemble) -> float:
        """The figure of an ensemble by its best rule."""
        return max(self.figure((ensemble, rule)) for rule in ORDER)

    def adds(self, name: str) -> float:
        """What all are better than all others than this one."""
        rest = tuple(other for other in self.every if other != name)
        return self.best_of(self.every) - self.best_of(rest) if rest else self.best_of(self.every)

    def shown(self, ensemble: Ensemble, rule: str) -> AdvisedEnsemble:
        k = self.candidates.index((ensemble, rule))
        drawn = self.expected if self.true is None else self.true
        low, high = np.quantile(drawn[k, 1:], [0.025, 0.975])
        true = None if self.true is None else float(self.true[k, 0])
        return AdvisedEnsemble(ensemble, rule, float(self.expected[k, 0]), true, float(low), float(high))

    def advised(self) -> tuple[AdvisedEnsemble, float]:
        """All teachers by consensus, unless the truth shows another to be better; and in which share of draws."""
        default = self.candidates.index((self.every, DEFAULT))
        if self.true is None:
            return self.shown(*self.candidates[default]), float(
                np.mean(self.expected[:, 1:].argmax(0) == default)
            )
        ahead = self.true - self.true[default]
        shown = ahead - ERRORS * ahead[:, 1:].std(1, keepdims=True) > 0
        best = np.where(shown.any(0), np.where(shown, self.true, -np.inf).argmax(0), default)
        return self.shown(*self.candidates[best[0]]), float(np.mean(best[1:] == best[0]))

    def smaller(self) -> tuple[AdvisedEnsemble, float]:
        """The fewest teachers that are expected to be within the tolerance of all; and in which share of draws."""
        sizes = np.array([len(ensemble) for ensemble, _ in self.candidates])
        enough = self.expected >= self.expected[self.candidates.index((self.every, DEFAULT))] - TOLERANCE
        least = np.where(enough, sizes[:, None], sizes.max() + 1).min(0)
        best = np.where(enough & (sizes[:, None] == least), self.expected, -np.inf).argmax(0)
        same = [self.candidates[k][0] == self.candidates[best[0]][0] for k in best[1:]]
        return self.shown(*self.candidates[best[0]]), float(np.mean(same))


def _draws(images: int) -> Float:
    """(1 + DRAWS, N) how often each image counts: once, and as drawn with replacement."""
    if not images:
        return np.zeros((1 + DRAWS, 0))
    drawn = np.random.default_rng(SEED).multinomial(images, np.full(images, 1 / images), DRAWS)
    return np.concatenate([np.ones((1, images)), drawn])


def _searches(teachers: int) -> int:
    """How many ensembles are tried."""
    return 2**teachers - 1 if teachers <= ALL_SUBSETS else teachers * (teachers + 3) // 2 - 2


def _search(
    every: Ensemble, found: Mapping[tuple[Ensemble, str], tuple[Float, Float | None]]
) -> Iterator[Ensemble]:
    """All ensembles, the largest first; of many teachers, those that follow by leaving one out, again and again.

    Args:
        every: all teachers.
        found: what the caller has made of the ensembles so far.
    """
    if len(every) <= ALL_SUBSETS:
        for size in range(len(every), 0, -1):
            yield from combinations(every, size)
        return
    yield every
    left = every
    while len(left) > 1:
        fewer = list(combinations(left, len(left) - 1))
        yield from fewer
        left = max(fewer, key=lambda own: max(float(found[own, rule][0][0]) for rule in ORDER))
    for name in every:
        if ((name,), DEFAULT) not in found:
            yield (name,)
