"""Engine: teachers that say the same are one witness: an archive and its copy must not outvote a third.

A copy is a second archive under another name, or the same network exported again, with a temperature for example:
then every certainty is another one, but labels are not, nor which class comes second at a pixel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from endauda_cli.progress import Note, Reporter, phase
from endauda_cli.types import FusionRule, PolicyKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from endauda_cli.archive import TeacherOutputs

    Attributes = Mapping[str, Any]

SAME_LABELS = 0.999
"""Share of an image's pixels. Different networks reach 0.98 on their best image of CamVid, 0.95 on average."""
SAME_SECOND = 0.98
"""Share of the pixels at which both name one class as the second: different networks agree on far fewer."""
FIRST_IMAGES, MORE_IMAGES = 4, 32
"""Who differs shows it in the first; who does not is looked at again."""
SMALL = 4096
"""Pixels that the images compared have together at least: so few may be the same by chance."""
OF_THE_FILE = frozenset(
    {
        "teacher",
        "temperature",
        "temperature_fit",
        "amp",
        "codec",
        "created_by",
        "scale",
        "unit",
        "source",
        "target",
    }
)
"""Attributes that are not of the network and how it was run, as far as labels go."""


def copies(
    readers: Mapping[str, TeacherOutputs], facts: Mapping[str, Attributes], ids: Sequence[str]
) -> dict[str, tuple[str, str]]:
    """Teachers that say what one before them says: name -> (that one, how it shows).

    Args:
        readers: teacher name -> what it says.
        facts: of some of them, where it is from: attributes of archives, facts of networks.
        ids: the images to fuse.
    """
    found: dict[str, tuple[str, str]] = {}
    for name in readers:
        for other in readers:
            if other == name:
                break
            if other in found:
                continue
            why = _sameness(readers[other], readers[name], facts.get(other, {}), facts.get(name, {}), ids)
            if why is not None:
                found[name] = other, why
                break
    return found


def votes_count(rule: str, policy: str) -> bool:
    """Whether a copy would change the labels. Where it is written who owns which class, it would not."""
    written = policy == PolicyKind.PAPER or policy not in tuple(PolicyKind)
    return not (rule == FusionRule.PLF and written)


def one_witness_each(
    readers: dict[str, TeacherOutputs], facts: Mapping[str, Attributes], ids: Sequence[str], report: Reporter
) -> dict[str, str]:
    """The copies among the teachers, name -> of whom; each is said to the user."""
    with phase(report, "comparing the teachers"):
        found = copies(readers, facts, ids)
    for name, (other, why) in found.items():
        report(
            Note(
                f"{name} says the same as {other} ({why}): counted once, as {other}; name the one to keep with "
                "--teachers",
                "warning",
            )
        )
    return {name: other for name, (other, _) in found.items()}


def _sameness(
    one: TeacherOutputs,
    other: TeacherOutputs,
    facts: Attributes,
    facts_of_other: Attributes,
    ids: Sequence[str],
) -> str | None:
    """How it shows that two are one; ``None`` if they are not."""
    if all(one.digest(image) == other.digest(image) for image in ids):
        return "the same labels and certainties"
    digest = facts.get("weights_sha256")
    if digest is not None and _of_the_network(facts) == _of_the_network(facts_of_other):
        return "the same weights, run the same way"
    first = _spread(ids, FIRST_IMAGES)
    more = [image for image in _spread(ids, MORE_IMAGES) if image not in first]
    pixels = equal = 0
    for image in (*first, *more):
        same = _agreement(one, other, image)
        if same is None:
            return None
        pixels, equal = pixels + same[0], equal + same[1]
    if pixels < SMALL:
        return None
    return f"the same label on {np.floor(10_000 * equal / pixels) / 100:g} % of the pixels"


def _of_the_network(facts: Attributes) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if key not in OF_THE_FILE}


def _spread(ids: Sequence[str], number: int) -> list[str]:
    step = max(1, -(-len(ids) // number))
    return list(ids[::step])


def _agreement(one: TeacherOutputs, other: TeacherOutputs, image: str) -> tuple[int, int] | None:
    """Pixels of an image and how many have equal labels; ``None`` if the two differ there."""
    if one.digest(image) == other.digest(image):
        size = one.size(image)
        return size[0] * size[1], size[0] * size[1]
    label, label_of_other = one.labels(image), other.labels(image)
    if label.shape != label_of_other.shape:
        return None
    equal = int(np.count_nonzero(label == label_of_other))
    if equal < SAME_LABELS * label.size:
        return None
    second, second_of_other = _second(one.certainty(image)), _second(other.certainty(image))
    known = (second >= 0) & (second_of_other >= 0)
    if np.count_nonzero((second == second_of_other) & known) < SAME_SECOND * np.count_nonzero(known):
        return None
    return label.size, equal


def _second(certainty: NDArray[np.uint8]) -> NDArray[np.int16]:
    """(H, W) the class that alone comes second at each pixel; -1 where several do, or none is above 0."""
    if len(certainty) < 3:
        return np.full(certainty.shape[1:], -1, np.int16)
    order = np.argpartition(certainty, -3, axis=0)[-3:]
    three = np.take_along_axis(certainty, order, 0)
    within = np.argsort(three, axis=0, kind="stable")
    third, second, first = np.take_along_axis(three, within, 0)
    alone = (third < second) & (second < first)
    which = np.take_along_axis(order, within, 0)[1]
    return np.where(alone, which, -1).astype(np.int16)
