"""Options with several values: the pre-pass over the words, on its own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from endauda_cli.terminal.multivalue import open_option, split_commas, spread

SEVERAL = {"--teachers", "-t", "--augment", "--scales"}
values = st.text("abcxyz019_./", min_size=1, max_size=6)
flags = st.sampled_from(["--rule", "--threshold", "-q", "--name=x", "--json", "-"])
options = st.sampled_from(sorted(SEVERAL))
lines = st.lists(
    st.one_of(values, flags, options, st.just("--"), st.builds("{}={}".format, options, values)), max_size=12
)


@pytest.mark.parametrize(
    ("line", "spread_line"),
    [
        ("fuse --teachers a b c", "fuse --teachers a --teachers b --teachers c"),
        ("fuse -t a b", "fuse -t a -t b"),
        ("fuse --teachers a,b c", "fuse --teachers a --teachers b --teachers c"),
        (
            "fuse --teachers=a,b, c,d --rule x,y",
            "fuse --teachers a --teachers b --teachers c --teachers d --rule x,y",
        ),
        ("fuse --teachers , a", "fuse --teachers , --teachers a"),
        ("fuse --teachers=a b", "fuse --teachers a --teachers b"),
        ("fuse -t=a,b c", "fuse -t a -t b -t c"),
        ("fuse -ta,b=c d", "fuse -t a -t b=c -t d"),
        ("fuse -q -tx", "fuse -q -t x"),
        ("fuse --teachers a --teachers b c", "fuse --teachers a --teachers b --teachers c"),
        ("fuse --teachers a b --rule plf", "fuse --teachers a --teachers b --rule plf"),
        ("fuse --rule plf x --teachers a", "fuse --rule plf x --teachers a"),
        ("fuse --teachers a -- b c", "fuse --teachers a -- b c"),
        ("train --augment light colour -q", "train --augment light --augment colour -q"),
        ("fuse --teachers", "fuse --teachers"),
        ("export-teacher a b", "export-teacher a b"),
        ("test --scales 0.75 1 -1 --flip", "test --scales 0.75 --scales 1 --scales -1 --flip"),
        ("", ""),
    ],
)
def test_examples(line: str, spread_line: str) -> None:
    assert spread(line.split(), SEVERAL) == spread_line.split()


@given(lines)
def test_twice_is_once(line: list[str]) -> None:
    assert spread(spread(line, SEVERAL), SEVERAL) == spread(line, SEVERAL)


@given(lines)
def test_no_word_is_lost_or_moved(line: list[str]) -> None:
    """Taking away the inserted options leaves the line as it was, but for ``=`` after one of ours."""
    end = line.index("--") if "--" in line else len(line)
    taken_apart = [word.split("=", 1) if word.split("=")[0] in SEVERAL else [word] for word in line[:end]]
    line = [*(part for parts in taken_apart for part in parts), *line[end:]]
    result, position = spread(line, SEVERAL), 0
    for word in result:
        if position < len(line) and word == line[position]:
            position += 1
        else:
            assert word in SEVERAL
    assert position == len(line)


@given(st.lists(values, min_size=1, max_size=5), options)
def test_each_value_gets_its_option(given_values: list[str], option: str) -> None:
    expected = [word for value in given_values for word in (option, value)]
    assert spread([option, *given_values], SEVERAL) == expected
    assert spread([f"{option}={given_values[0]}", *given_values[1:]], SEVERAL) == expected


@given(lines, lines)
def test_nothing_changes_after_the_double_dash(before: list[str], after: list[str]) -> None:
    line = [word for word in before if word != "--"]
    assert spread([*line, "--", *after], SEVERAL) == [*spread(line, SEVERAL), "--", *after]


@given(st.lists(values, min_size=1, max_size=4), st.lists(values, max_size=4))
def test_the_next_option_ends_the_values(given_values: list[str], others: list[str]) -> None:
    line = ["--teachers", *given_values, "--name", *others]
    assert spread(line, SEVERAL) == [*spread(line[: len(given_values) + 1], SEVERAL), "--name", *others]


@given(st.lists(values, min_size=1, max_size=5), st.sampled_from([",", ", ", " ,"]))
def test_commas_are_as_good_as_spaces(given_values: list[str], comma: str) -> None:
    together = comma.join(given_values)
    assert spread(["-t", together], SEVERAL) == spread(["-t", *given_values], SEVERAL)
    assert spread([f"-t={together}"], SEVERAL) == spread(
        [f"-t={given_values[0]}", *given_values[1:]], SEVERAL
    )
    assert spread(["--name", together], SEVERAL) == ["--name", together]


@pytest.mark.parametrize(
    ("text", "parts"),
    [("a,b", ["a", "b"]), (" a , ", ["a"]), (",", [","]), ("", [""]), ("a b,c", ["a b", "c"])],
)
def test_split_commas(text: str, parts: list[str]) -> None:
    assert split_commas(text) == parts


@given(st.lists(st.one_of(values, flags, options), max_size=8))
def test_the_option_that_is_still_open(words: list[str]) -> None:
    """One more value would be taken by it, and it has a value already."""
    option = open_option(words, SEVERAL)
    assert spread([*words, "more"], SEVERAL) == [
        *spread(words, SEVERAL),
        *([option] if option else []),
        "more",
    ]


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ("--teachers a", "--teachers"),
        ("--teachers=a", "--teachers"),
        ("-t a b", "-t"),
        ("--teachers", None),
        ("--teachers a --rule", None),
        ("--teachers a --rule plf", None),
        ("--teachers a --", None),
        ("", None),
    ],
)
def test_open_options(line: str, option: str | None) -> None:
    assert open_option(line.split(), SEVERAL) == option
