"""What is not typed: environment, endauda.toml, built-in values; and what ``config show`` says of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import typer

from endauda_cli.cli import COMMANDS, app
from endauda_cli.terminal.parsing import Command, Group
from endauda_cli.terminal.settings import COMMON, IN_NO_FILE, NAMES_TOO, PATHS, variable
from endauda_cli.types import FusionRule
from tests.support.command_lines import CITIES, endauda, make_workspace, refused, result_of, succeed

FUSED = CITIES / "gtFine"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ENDAUDA_") and name != "ENDAUDA_REALDATA"]:
        monkeypatch.delenv(name)


@pytest.fixture
def city(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace of this test's own, the current folder."""
    monkeypatch.chdir(make_workspace(tmp_path))
    return tmp_path


def commands() -> dict[str, Command]:
    group = typer.main.get_command(app)
    assert isinstance(group, Group)
    return dict(group.loaded())


def shown(*words: str) -> dict[tuple[str, str], tuple[Any, str]]:
    """``config show`` as (command, option): (value, origin)."""
    rows = result_of("config", "show", *words)["rows"]
    return {(row["command"], row["option"]): (row["value"], row["origin"]) for row in rows}


# ---------------------------------------------------------------------------- precedence


def test_precedence_of_flag_environment_and_file(city: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = ("fuse", "--teachers", "dacs", "--rule", "certainty")
    assert result_of(*line)["threshold"] == 90
    (city / "endauda.toml").write_text('[fuse]\nthreshold = 60\nname = "mine"\nrule = "majority"\n')
    result = result_of(*line)
    assert (result["threshold"], result["rule"], result["labels"]) == (
        60,
        "certainty",
        str(city / FUSED / "mine"),
    )
    monkeypatch.setenv("ENDAUDA_FUSE_THRESHOLD", "70")
    assert result_of(*line)["threshold"] == 70
    assert result_of(*line, "--threshold", "80")["threshold"] == 80


def test_file_is_found_from_below_and_by_option(city: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (city / "endauda.toml").write_text("[fuse]\nthreshold = 60\nteachers = ['dacs']\n")
    (city / "deep/er").mkdir(parents=True)
    monkeypatch.chdir(city / "deep/er")
    assert result_of("fuse")["threshold"] == 60
    monkeypatch.chdir("/")
    for words in (("--workspace", city), (f"--workspace={city}",), ("--workspace", "/", "--workspace", city)):
        assert result_of("fuse", *words)["threshold"] == 60
    monkeypatch.setenv("ENDAUDA_WORKSPACE", str(city))
    assert result_of("fuse")["threshold"] == 60


def test_a_byte_order_mark_is_no_part_of_the_file(city: Path) -> None:
    (city / "endauda.toml").write_bytes(b"\xef\xbb\xbf[fuse]\r\nthreshold = 60\r\n")
    assert shown()["fuse", "threshold"][0] == "60"


@pytest.mark.parametrize("value", ['"dacs,crst"', '["dacs", "crst"]', '["dacs,crst"]'])
def test_several_values_in_the_file(city: Path, value: str) -> None:
    (city / "endauda.toml").write_text(f"[fuse]\nteachers = {value}\n")
    assert result_of("fuse")["teachers"] == ["dacs", "crst"]


@pytest.mark.parametrize("value", ["dacs crst", "dacs,crst"])
def test_several_values_in_the_environment(city: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("ENDAUDA_FUSE_TEACHERS", value)
    assert result_of("fuse")["teachers"] == ["dacs", "crst"]


def test_the_whole_chain(city: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each place beats the one before; the last is a typed option."""
    file = city / "endauda.toml"
    option = ("fuse", "workers")
    assert shown("fuse")[option] == (0, "built-in")
    file.write_text("workers = 3\n")
    assert shown("fuse")[option] == ("3", str(file))
    file.write_text("workers = 3\n[fuse]\nworkers = 4\n")
    assert shown("fuse")[option] == ("4", f"{file} [fuse]")
    monkeypatch.setenv("ENDAUDA_WORKERS", "5")
    assert shown("fuse")[option] == ("5", "ENDAUDA_WORKERS")
    assert shown("train")["train", "workers"] == ("5", "ENDAUDA_WORKERS")
    monkeypatch.setenv("ENDAUDA_FUSE_WORKERS", "6")
    assert shown("fuse")[option] == ("6", "ENDAUDA_FUSE_WORKERS")
    assert shown("train")["train", "workers"] == ("5", "ENDAUDA_WORKERS")
    monkeypatch.setenv("ENDAUDA_FUSE_WORKERS", "-1")
    assert "(the value is from ENDAUDA_FUSE_WORKERS)" in refused("fuse")
    assert succeed("fuse", "--workers", "1", "--rule", "majority")


def test_what_is_empty_is_not_set(city: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENDAUDA_FUSE_RULE", "")
    assert shown("fuse")["fuse", "rule"][1] == "built-in"


def test_one_line_sets_the_target_of_all_commands(city: Path) -> None:
    (city / "street.toml").write_text(
        "name = 'street'\nclasses = ['road', 'sky']\n[train]\nimages = '*.png'\n", encoding="utf-8"
    )
    (city / "endauda.toml").write_text("target = 'street.toml'\n")
    for command in ("export-teacher", "fuse", "train", "test", "inspect"):
        assert shown(command)[command, "target"][0] == "street.toml"
    assert "certainty/street" in refused("fuse")


# ---------------------------------------------------------------------------- a further file


def test_a_file_of_options_stands_between_the_environment_and_the_workspace(
    city: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (city / "endauda.toml").write_text("[train]\nsteps = 3\nseed = 3\nlr = 0.3\nwarm-up = 3\n")
    (city / "it.toml").write_text("[train]\nsteps = 4\nseed = 4\nlr = 0.4\n[fuse]\nthreshold = 5\n")
    monkeypatch.setenv("ENDAUDA_TRAIN_SEED", "5")
    monkeypatch.setenv("ENDAUDA_TRAIN_CONFIG", "it.toml")
    found = shown("train")
    assert found["train", "steps"] == ("4", "it.toml [train]")
    assert found["train", "seed"] == ("5", "ENDAUDA_TRAIN_SEED")
    assert found["train", "warm-up"] == ("3", f"{city / 'endauda.toml'} [train]")
    assert found["train", "config"] == ("it.toml", "ENDAUDA_TRAIN_CONFIG")
    assert shown("fuse")["fuse", "threshold"][1] == "built-in", "the file is train's"
    monkeypatch.delenv("ENDAUDA_TRAIN_CONFIG")
    message = refused("train", "--config", "it.toml", "--steps", "0", "--labels", "none")
    assert message == "--steps 0: must be at least 1", "what is typed beats the file"
    (city / "it.toml").write_text("[train]\nsteps = 0\n")
    for words in (("--config", "it.toml"), ("--config=it.toml",), ("--config", "nil", "--config", "it.toml")):
        assert refused("train", *words).endswith("(the value is from it.toml [train])")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nstepz = 70\n", "[train] has no option 'stepz'; did you mean steps?"),
        ("[trian]\nsteps = 70\n", "[trian] is no command; did you mean train?"),
        ("steps = 70\n", "steps stands outside a table"),
        ("[train]\nconfig = 'other.toml'\n", "[train] has no option 'config'"),
        ("[train]\nmirror = 1\n", "[train] mirror is 1; expected true or false"),
        ("[train\n", "not valid TOML"),
    ],
)
def test_mistakes_in_a_file_of_options(city: Path, text: str, message: str) -> None:
    (city / "it.toml").write_text(text)
    assert message in refused("train", "--config", "it.toml")


@pytest.mark.parametrize("file", ["none.toml", ".", "x" * 5000, "a\0b"])
def test_a_file_of_options_that_is_none(city: Path, file: str) -> None:
    assert "no such file; name a run's config.toml" in refused("train", "--config", file)


# ---------------------------------------------------------------------------- every option


@pytest.mark.slow
def test_every_option_can_be_set_in_both_places(city: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``--help`` of any command offers, but where the workspace is, ENDAUDA_* and endauda.toml can say."""
    tables, wanted = [], {}
    for name, command in commands().items():
        _, _, sub = name.partition(" ")
        for option in command.options():
            if option.key in IN_NO_FILE:
                continue
            toml, text = (
                ("true", "true")
                if option.switch
                else ('["a", "b"]', "a b")
                if option.several
                else ('"7"', "7")
            )
            wanted[name, option.key] = (option, text)
            if not sub:
                tables.append((name, option.key, toml))
    lines = [
        f"[{name}]\n" + "".join(f"{key} = {v}\n" for n, key, v in tables if n == name) for name in COMMANDS
    ]
    (city / "endauda.toml").write_text("\n".join(lines))
    for name, key, _ in tables:
        value, origin = shown(name)[name, key]
        assert origin == f"{city / 'endauda.toml'} [{name}]", (name, key)
        assert value in (True, "7", ["a", "b"])
    (city / "endauda.toml").unlink()
    for (name, key), (_, text) in wanted.items():
        if key not in ("json", "quiet", "changed"):  # of this very command, too
            monkeypatch.setenv(variable(key, name), text)
    found = shown()
    for (name, key), (option, text) in wanted.items():
        if key not in ("json", "quiet", "changed"):
            expected = ["a", "b"] if option.several else text
            assert found[name, key] == (expected, variable(key, name)), (name, key)


def test_common_options_mean_the_same_everywhere() -> None:
    """What may stand above the tables has one help text."""
    for key in set(COMMON) - {"workers"}:
        helps = {
            param.help  # type: ignore[attr-defined]
            for command in commands().values()
            for param in command.params
            if f"--{key}" in param.opts
        }
        assert len(helps) == 1, key


def test_switches_in_both_places(city: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (city / "endauda.toml").write_text("[train]\nclass-balance = false\nmirror = true\n")
    assert shown("train")["train", "class-balance"][0] is False
    monkeypatch.setenv("ENDAUDA_FUSE_JSON", "1")
    assert endauda("fuse", "--rule", "majority", "--quiet").result["rule"] == FusionRule.MAJORITY
    monkeypatch.setenv("ENDAUDA_FUSE_JSON", "no")
    assert "labels, previews" in succeed("fuse", "--rule", "majority", "--quiet").out


# ---------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[fuse]\ntreshold = 70\n", "[fuse] has no option 'treshold'; did you mean threshold?"),
        ("[fuse]\nzzz = 70\n", "[fuse] has no option 'zzz'; known are amp, arch, "),
        ("[fues]\nthreshold = 70\n", "[fues] is no command; did you mean fuse?"),
        ("[zzz]\nthreshold = 70\n", "[zzz] is no command; known are export-teacher, fuse,"),
        (
            "threshold = 70\n",
            "threshold stands outside a table, as only options of all commands do; known are source,",
        ),
        (
            "sourec = 'gta5'\n",
            "sourec stands outside a table, as only options of all commands do; did you mean source?",
        ),
        ("[fuse\n", "not valid TOML"),
        ("[fuse]\nthreshold = [1, 2]\n", "[fuse] threshold is [1, 2]; it takes one value"),
        ("[fuse]\nthreshold = true\n", "[fuse] threshold is True; expected what one would type"),
        ("[fuse]\namp = 'yes'\n", "[fuse] amp is 'yes'; expected true or false"),
        ("[fuse]\nteachers = [1979-05-27]\n", "expected what one would type"),
        ("[fuse.rule]\nname = 'plf'\n", "[fuse] rule is {'name': 'plf'}; expected what one would type"),
        ("[fuse]\nworkspace = 'x'\n", "[fuse] has no option 'workspace'"),
        ("fuse = 3\n", "fuse stands outside a table"),
        (f"[fuse]\nworkers = {'9' * 5000}\n", "not valid TOML"),
        (f"[fuse]\nworkers = 0x{'f' * 5000}\n", "[fuse] workers is a number of thousands of digits"),
        (f"x = {'[' * 5000}{']' * 5000}\n", "not valid TOML"),
    ],
)
def test_mistakes_in_the_file(city: Path, text: str, message: str) -> None:
    (city / "endauda.toml").write_text(text)
    for words in (("fuse",), ("config", "show")):
        found = refused(*words)
        assert found.startswith(str(city / "endauda.toml")) and message in found
    assert succeed("fuse", "--help")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "ENDAUDA_FUSE_TRESHOLD",
            "70",
            "ENDAUDA_FUSE_TRESHOLD is no option of fuse; did you mean ENDAUDA_FUSE_THRESHOLD?",
        ),
        ("ENDAUDA_FUSE_X", "", "ENDAUDA_FUSE_X is no option of fuse"),
        ("ENDAUDA_FUSE_WORKSPACE", ".", "is no option of fuse; did you mean ENDAUDA_WORKSPACE?"),
        ("ENDAUDA_FUSE_THRESHOLD", "0.5", "(the value is from ENDAUDA_FUSE_THRESHOLD)"),
        ("ENDAUDA_FUSE_WINDOW", "4", "(the value is from ENDAUDA_FUSE_WINDOW)"),
    ],
)
def test_mistakes_in_the_environment(
    city: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    assert message in refused("fuse")


@pytest.mark.parametrize(
    ("text", "origin"),
    [("[fuse]\nthreshold = 'high'\n", "endauda.toml [fuse]"), ("workers = 1.5\n", "endauda.toml")],
)
def test_a_value_of_the_wrong_type_says_where_it_is(city: Path, text: str, origin: str) -> None:
    """Usage errors of Typer, which knows nothing of the file; 1.5 workers are not one worker."""
    (city / "endauda.toml").write_text(text)
    outcome = endauda("fuse")
    message = " ".join(outcome.err.replace("│", " ").split())
    assert outcome.code == 2 and "Invalid value for" in message
    assert f"{city / origin})" in message.replace(" ", "") or origin in message


def test_variables_that_nobody_reads_are_pointed_at(city: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENDAUDA_TRAIN_BACKBON", "drn")
    assert "no option of train; did you mean ENDAUDA_TRAIN_BACKBONE?" in refused("config", "show")
    monkeypatch.delenv("ENDAUDA_TRAIN_BACKBON")
    monkeypatch.setenv("ENDAUDA_SUORCE", "gta5")
    outcome = succeed("config", "show")
    assert "ENDAUDA_SUORCE is no option of any command; did you mean ENDAUDA_SOURCE?" in outcome.err


def test_config_show(city: Path) -> None:
    (city / "endauda.toml").write_text("[fuse]\nteachers = ['dacs', 'crst']\n")
    out = succeed("config", "show", "--changed").out
    assert "teachers" in out and "dacs crst" in out and "threshold" not in out
    assert "known are export-teacher" in refused("config", "show", "nothing")
    assert "did you mean train?" in refused("config", "show", "trian")
    out = succeed("config", "show", "train").out
    assert "all archives" not in out and "deeplabv3plus" in out


def test_settings_of_a_command_below_another(city: Path) -> None:
    (city / "endauda.toml").write_text("[config.show]\nchanged = true\n[fuse]\nthreshold = 70\n")
    assert shown().keys() == {("fuse", "threshold"), ("config show", "changed")}
    (city / "endauda.toml").write_text("[config]\nchanged = true\n")
    assert "[config] has no option 'changed'; put it under [config.show]" in refused("config", "show")


@pytest.mark.parametrize(
    ("words", "environment", "message"),
    [
        (("--workers", "many"), {}, "'many': Input should be a valid integer"),
        (("--workers=1.5",), {}, "'1.5': Input should be a valid integer"),
        ((), {"ENDAUDA_WORKERS": "many"}, "'many': Input should be a valid integer"),
    ],
)
def test_a_bad_number_is_named(
    city: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    environment: dict[str, str],
    message: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    outcome = endauda("fuse", *words)
    assert outcome.code == 2 and message in outcome.err


@pytest.mark.parametrize(
    ("value", "good"), [("", True), ("1", True), ("x", False), ("0", False), ("-1", False)]
)
def test_world_size_of_another_launcher(
    city: Path, monkeypatch: pytest.MonkeyPatch, value: str, good: bool
) -> None:
    monkeypatch.setenv("WORLD_SIZE", value)
    if good:
        assert succeed("fuse", "--rule", "majority")
    else:
        assert "WORLD_SIZE is " in refused("fuse", "--rule", "majority")


# ---------------------------------------------------------------------------- paths in the file


def test_paths_in_the_file_mean_the_workspace(city: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the command is run, and whether they are there yet or not; names stay names."""
    (city / "street.toml").write_text("classes = ['road', 'sky']\n[train]\nimages = '*.png'\n")
    (city / "weights").mkdir()
    (city / "weights/a.pth").touch()
    (city / "deep").mkdir()
    (city / "deep/street.toml").write_text("this is another")
    (city / "endauda.toml").write_text(
        "target = 'street.toml'\n[train]\ncache = 'decoded'\nlabels = 'plf'\ninit = 'gta5/source'\n"
        "[test]\nweights = 'weights/a.pth'\npredictions = 'mine'\n[inspect]\nout = '/tmp'\n"
        "[fuse]\nteachers = ['dacs', 'mine=weights/a.pth']\n[export-teacher]\nsource = 'gta5'\n"
    )
    monkeypatch.chdir(city / "deep")
    found = {key: value for key, (value, _) in shown().items()}
    for key, value in {
        ("train", "target"): f"{city}/street.toml",
        ("train", "cache"): f"{city}/decoded",
        ("train", "labels"): "plf",
        ("train", "init"): "gta5/source",
        ("test", "weights"): [f"{city}/weights/a.pth"],
        ("test", "predictions"): [f"{city}/mine"],
        ("inspect", "out"): "/tmp",
        ("fuse", "teachers"): ["dacs", f"mine={city}/weights/a.pth"],
        ("export-teacher", "source"): "gta5",
    }.items():
        assert found[key] == value


def test_all_options_that_take_a_path_are_known() -> None:
    paths = {
        parameter.opts[0].removeprefix("--")
        for command in commands().values()
        for parameter in command.params
        if getattr(getattr(parameter, "type_descriptor", None), "annotation", None) is Path
    }
    assert paths - set(IN_NO_FILE) <= {*PATHS, *NAMES_TOO}


@pytest.mark.parametrize(
    "text", ["x = " + "[" * 20000, "workers = " + "9" * 5000, "a" + ".a" * 3000 + " = ", "\0"], ids=range(4)
)
def test_nonsense_in_the_file_is_one_sentence(city: Path, text: str) -> None:
    (city / "endauda.toml").write_text(text)
    assert refused("fuse").startswith(f"{city / 'endauda.toml'}: not valid TOML (")
