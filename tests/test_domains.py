"""The built-in domains against the published tables, and what happens when two domains meet."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from endauda_cli.domains import (
    CITYSCAPES,
    CITYSCAPES_CLASSES,
    DOMAINS,
    GTA5,
    IGNORE,
    Domain,
    make_task,
    palette_of,
)
from endauda_cli.errors import ConfigError, DataError
from tests import support

TABLES = json.loads((support.DATA / "labels.json").read_text())


def domain_of(classes: tuple[str, ...], ids: dict[int, str] | None = None, **options: object) -> Domain:
    values: dict[str, object] = {
        "name": "mine",
        "classes": classes,
        "palette": palette_of(classes),
        "label_ids": ids if ids is not None else dict(enumerate(classes)),
        "layouts": (),
        "roots": (),
        "labels_root": "labels/mine",
        **options,
    }
    return Domain(**values)  # type: ignore[arg-type]


def ids_of(domain: Domain) -> dict[str, int]:
    """Label id -> train id of what is not ignored, with strings as keys as JSON has them."""
    found = {str(i): domain.train_id(i) for i in domain.label_ids}
    return {i: t for i, t in found.items() if t is not None and t != IGNORE}


# ---------------------------------------------------------------------------- published tables


def test_cityscapes_and_gta5_are_the_published_tables() -> None:
    assert TABLES["ignore_label"] == IGNORE
    for domain in (CITYSCAPES, GTA5):
        assert list(domain.classes) == TABLES["classes_19"]
        assert ids_of(domain) == TABLES["label_id_to_train_id_19"]
        assert [list(colour) for colour in domain.palette] == TABLES["palette_19_rgb"]
    names = {str(i): name for i, name in CITYSCAPES.label_ids.items()}
    assert names == TABLES["cityscapes_label_id_names"]
    assert {34: "license plate"}.items() == GTA5.label_ids.items() - CITYSCAPES.label_ids.items()


def test_synthia_is_the_published_table() -> None:
    synthia = DOMAINS["synthia"]
    assert list(synthia.classes) == TABLES["classes_16"]
    assert ids_of(synthia) == TABLES["synthia_label_id_to_train_id_16"]
    published = {int(i): name.lower() for i, name in TABLES["synthia_label_id_names"].items()}
    assert published[10] == "pedestrian"  # Cityscapes calls the class person, and classes are joined by name
    assert synthia.label_ids == published | {10: "person"}
    assert list(DOMAINS["synthia-13"].classes) == TABLES["classes_13"]
    assert DOMAINS["synthia-19"].classes == CITYSCAPES_CLASSES


def test_synthia_colours_are_those_of_the_classes() -> None:
    """The reference paints 16 classes with the first 16 of 19 colours, so that its sky is a terrain."""
    by_name = dict(zip(CITYSCAPES_CLASSES, CITYSCAPES.palette, strict=True))
    for name in ("synthia", "synthia-13", "synthia-19"):
        domain = DOMAINS[name]
        assert [by_name[c] for c in domain.classes] == list(domain.palette)


@pytest.mark.parametrize(("source", "classes"), [("gta5", 19), ("synthia", 16)])
def test_cityscapes_seen_with_the_sources_classes(source: str, classes: int) -> None:
    target = make_task(DOMAINS[source], CITYSCAPES).target
    assert ids_of(target) == TABLES[f"label_id_to_train_id_{classes}"]
    assert target.name == "cityscapes"


def test_thirteen_of_sixteen() -> None:
    target = make_task(DOMAINS["synthia"], CITYSCAPES).target
    thirteen = target.subsets["mIoU-13"]
    assert [target.classes.index(name) for name in thirteen] == TABLES["classes_13_indices_in_16"]
    assert DOMAINS["synthia-13"].subsets == {}
    assert GTA5.subsets == {}


# ---------------------------------------------------------------------------- train ids


def test_train_id_of_classes_of_ignored_and_of_unknown_ids() -> None:
    ids = {3: "road", 9: "void", 200: "car"}
    strict, lax = domain_of(("car", "road"), ids), domain_of(("car", "road"), ids, others_ignored=True)
    for domain in (strict, lax):
        assert (domain.train_id(3), domain.train_id(200), domain.train_id(9)) == (1, 0, IGNORE)
        assert domain.train_id(IGNORE) == IGNORE  # known everywhere, if not given a meaning
    assert strict.train_id(4) is None
    assert lax.train_id(4) == IGNORE
    assert domain_of(("car", "road"), {255: "car"}).train_id(255) == 0


names = st.text("abcdefgh ", min_size=1, max_size=6)


@given(classes=st.lists(names, min_size=2, max_size=40, unique=True), data=st.data())
def test_train_ids_round_trip(classes: list[str], data: st.DataObject) -> None:
    """id -> train id -> name is what the table says, in any order of ids, through any subset of classes."""
    ids = data.draw(
        st.lists(st.integers(0, 65535), min_size=len(classes), max_size=len(classes), unique=True)
    )
    domain = domain_of(tuple(classes), dict(zip(ids, classes, strict=True)))
    for i, name in zip(ids, classes, strict=True):
        train_id = domain.train_id(i)
        assert train_id is not None
        assert domain.classes[train_id] == name
    fewer = data.draw(st.lists(st.sampled_from(classes), min_size=2, unique=True))
    seen = domain.with_classes(domain_of(tuple(fewer)))
    for i, name in zip(ids, classes, strict=True):
        train_id = seen.train_id(i)
        assert train_id is not None
        assert (seen.classes[train_id] if train_id != IGNORE else None) == (name if name in fewer else None)
        if train_id != IGNORE:
            assert seen.palette[train_id] == domain.palette[classes.index(name)]


@given(count=st.integers(2, 255))
def test_own_classes_get_distinct_colours(count: int) -> None:
    palette = palette_of(tuple(f"class {i}" for i in range(count)))
    assert len(set(palette)) == count
    assert (0, 0, 0) not in palette
    assert all(0 <= value <= 255 for colour in palette for value in colour)


# ---------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("road",), "mine: 1 classes, but 2 to 255 are possible"),
        (tuple(map(str, range(256))), "mine: 256 classes"),
        (("road", "car", "road"), "mine: class 'road' is listed twice"),
    ],
)
def test_class_lists_that_are_refused(classes: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        domain_of(classes)


def test_palette_of_another_length_is_refused() -> None:
    with pytest.raises(DataError, match="mine: 1 colours for 2 classes"):
        domain_of(("road", "car"), palette=((0, 0, 0),))


def test_source_with_a_class_that_the_target_lacks_is_refused() -> None:
    mine = domain_of(("road", "tram"))
    with pytest.raises(DataError, match=r"mine and cityscapes disagree: class 'tram' of mine is not in"):
        make_task(mine, CITYSCAPES)


def test_target_alone_brings_its_own_classes() -> None:
    assert make_task(None, CITYSCAPES).classes == CITYSCAPES.classes
    with pytest.raises(ConfigError, match="target empty has no classes"):
        make_task(None, _without_classes())


def _without_classes() -> Domain:
    domain = dataclasses.replace(domain_of(("road", "car")), name="empty")
    object.__setattr__(domain, "classes", ())
    return domain
