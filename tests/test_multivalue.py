"""Options with several values: the pre-pass over the words, on its own."""

from __future__ import annotations

import shlex

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from endauda_cli.cli import app
from endauda_cli.terminal.multivalue import MULTIVALUE, split_commas, spread, spread_completion

values = st.text("abcxyz019_.,/", min_size=1, max_size=6)
flags = st.sampled_from(["--rule", "--threshold", "-q", "--name=x", "--json", "-"])
options = st.sampled_from(sorted(MULTIVALUE))
lines = st.lists(
    st.one_of(values, flags, options, st.just("--"), st.builds("{}={}".format, options, values)), max_size=12
)


@pytest.mark.parametrize(
    ("line", "spread_line"),
    [
        ("fuse --teachers a b c", "fuse --teachers a --teachers b --teachers c"),
        ("fuse -t a b", "fuse -t a -t b"),
        ("fuse --teachers a,b c", "fuse --teachers a,b --teachers c"),
        ("fuse --teachers=a b", "fuse --teachers=a --teachers b"),
        ("fuse --teachers a --teachers b c", "fuse --teachers a --teachers b --teachers c"),
        ("fuse --teachers a b --rule plf", "fuse --teachers a --teachers b --rule plf"),
        ("fuse --rule plf x --teachers a", "fuse --rule plf x --teachers a"),
        ("fuse --teachers a -- b c", "fuse --teachers a -- b c"),
        ("train --augment light colour -q", "train --augment light --augment colour -q"),
        ("fuse --teachers", "fuse --teachers"),
        ("export-teacher a b", "export-teacher a b"),
        ("", ""),
    ],
)
def test_examples(line: str, spread_line: str) -> None:
    assert spread(line.split()) == spread_line.split()


@given(lines)
def test_twice_is_once(line: list[str]) -> None:
    assert spread(spread(line)) == spread(line)


@given(lines)
def test_no_word_is_lost_or_moved(line: list[str]) -> None:
    """Taking away the inserted options leaves the line as it was."""
    result, position = spread(line), 0
    for word in result:
        if position < len(line) and word == line[position]:
            position += 1
        else:
            assert word in MULTIVALUE
    assert position == len(line)


@given(st.lists(values, min_size=1, max_size=5), options)
def test_each_value_gets_its_option(given_values: list[str], option: str) -> None:
    expected = [word for value in given_values for word in (option, value)]
    assert spread([option, *given_values]) == expected
    assert spread([f"{option}={given_values[0]}", *given_values[1:]]) == [
        f"{option}={given_values[0]}", *expected[2:],
    ]  # fmt: skip


@given(lines, lines)
def test_nothing_changes_after_the_double_dash(before: list[str], after: list[str]) -> None:
    line = [word for word in before if word != "--"]
    assert spread([*line, "--", *after]) == [*spread(line), "--", *after]


@given(st.lists(values, min_size=1, max_size=4), st.lists(values, max_size=4))
def test_the_next_option_ends_the_values(given_values: list[str], others: list[str]) -> None:
    line = ["--teachers", *given_values, "--name", *others]
    assert spread(line) == [*spread(line[: len(given_values) + 1]), "--name", *others]


@given(st.lists(st.text("abc ,", max_size=8), max_size=5))
def test_commas(texts: list[str]) -> None:
    parts = split_commas(texts)
    assert all(part and part == part.strip() and "," not in part for part in parts)
    assert split_commas(parts) == parts
    assert split_commas([",".join(texts)]) == parts
    assert split_commas(None) == []


@given(st.lists(st.one_of(values, flags, options), max_size=8), st.booleans())
def test_completion_sees_the_spread_line(words: list[str], between: bool) -> None:
    """Both protocols end in the same words before the cursor, however the line looks."""
    current = "" if between or not words else words[-1]
    before = words if current == "" else words[:-1]
    bash = {"COMP_WORDS": shlex.join(["endauda", *words]), "COMP_CWORD": str(1 + len(before))}
    other = {"_TYPER_COMPLETE_ARGS": shlex.join(["endauda", *words]) + (" " if current == "" else "")}
    spread_completion(bash)
    spread_completion(other)
    seen = shlex.split(bash["COMP_WORDS"])[: int(bash["COMP_CWORD"])]
    assert spread(seen[1:]) in (seen[1:], spread(before))
    if other["_TYPER_COMPLETE_ARGS"].endswith(" "):
        assert shlex.split(other["_TYPER_COMPLETE_ARGS"]) == seen
    else:
        assert shlex.split(other["_TYPER_COMPLETE_ARGS"]) == [*seen, current]


@given(st.text(max_size=20), st.text(max_size=3))
def test_completion_never_raises(line: str, cursor: str) -> None:
    for environment in (
        {"COMP_WORDS": line, "COMP_CWORD": cursor},
        {"COMP_WORDS": line},
        {"_TYPER_COMPLETE_ARGS": line},
    ):
        spread_completion(environment)


def test_only_commands_without_arguments_have_such_options() -> None:
    """A value after the option could else be meant as an argument. And each such option is known here."""
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        several = {flag for p in command.params for flag in p.opts if flag.startswith("-") and p.multiple}
        assert several <= MULTIVALUE, name
        if several:
            assert all(flag.startswith("-") for p in command.params for flag in p.opts), name
