"""``--json``: documents of all commands against ``docs/results.schema.json``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import typer
from jsonschema import Draft202012Validator

from endauda_cli.cli import app
from tests.support import ROOT
from tests.support.command_lines import SIZE_FLAGS, TRAIN, Outcome, endauda, make_workspace, put_outputs
from tests.support.results_schema import RESULTS, schema, text

if TYPE_CHECKING:
    from pathlib import Path

FILE = ROOT / "docs" / "results.schema.json"


def strict(node: Any) -> Any:
    """The schema without room for fields that it does not name: a program may meet new ones, a test may not."""
    if isinstance(node, list):
        return [strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    closed = {"additionalProperties": False} if node.get("type") == "object" and "properties" in node else {}
    return {key: strict(value) for key, value in node.items()} | closed


VALIDATOR = Draft202012Validator(strict(schema()))


def document(outcome: Outcome) -> Any:
    """Exactly one, and of the schema."""
    content = json.loads(outcome.out)
    VALIDATOR.validate(content)
    assert ("error" in content) == (outcome.code != 0)
    return content


def test_the_file_is_what_the_code_makes() -> None:
    """Mend with: python -m tests.support.results_schema > docs/results.schema.json"""
    assert FILE.read_text(encoding="utf-8") == text()
    Draft202012Validator.check_schema(json.loads(text()))


def test_every_command_has_a_result() -> None:
    group: Any = typer.main.get_command(app)
    assert {name for name, _ in group.loaded()} == set(RESULTS)


def test_the_page_names_the_version_and_every_kind() -> None:
    page = FILE.with_name("json.md").read_text(encoding="utf-8")
    assert f'"schema": {schema()["properties"]["schema"]["const"]}' in page
    for kind in ("UsageError", "Interrupted", "SystemError", "InternalError"):
        assert kind in page and kind in text()


def test_a_schema_that_can_fail() -> None:
    good = json.loads('{"schema": 1, "command": "fuse", "error": {"kind": "DataError", "message": "x"}}')
    assert VALIDATOR.is_valid(good)
    changes: tuple[dict[str, Any], ...] = (
        {"schema": 0},
        {"error": {"kind": "DataError"}},
        {"result": {}},
        {"more": 1},
    )
    for change in changes:
        assert not VALIDATOR.is_valid(good | change)
    assert not VALIDATOR.is_valid({"schema": 1, "command": "fuse"})


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("city"))


def test_real_documents(city: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a whole story, results and refusals."""
    monkeypatch.chdir(city)
    put_outputs(city / "outputs", "mrnet", TRAIN)
    export = ("export-teacher", "mrnet", "--import", "outputs", "--json")
    assert document(endauda(*export))["result"]["images"] == len(TRAIN)
    assert document(endauda(*export))["result"]["skipped"] == len(TRAIN)
    fuse = ("fuse", "--teachers", "dacs", "crst", "cbst", "--json")
    for options in (
        (),
        ("--rule", "plf", "--split", "val", "--score"),
        ("--rule", "majority", "--shard", "1/2", "--name", "part"),
    ):
        assert document(endauda(*fuse, *options))["result"]["teachers"] == ["dacs", "crst", "cbst"]
    train = ("train", *SIZE_FLAGS, "--labels", "consensus", "--steps", "2", "--name", "run", "--json")
    assert document(endauda(*train, "--validate-every", "1"))["result"]["steps"] == 2
    assert document(endauda("test", "--json"))["result"]["images"] == 2
    assert document(endauda("test", "--predictions", "nowhere", "--json"))["error"]["kind"] == "DataError"
    for words in (
        ("dacs", "--verify"),
        ("dacs", "--image", TRAIN[0], "--out", "pictures"),
        ("dacs", "--export", "back"),
    ):
        assert document(endauda("inspect", *words, "--json"))["result"]["archive"]
    assert document(endauda("report", "--json"))["result"]["runs"][0]["name"] == "run"
    assert document(endauda("download-weights", "--json"))["result"]["artefacts"]
    assert document(endauda("download-weights", "gta5/source", "--offline", "--json"))["result"]["failures"]
    shard = next((city / "certainty/gta5/crst").glob("shard-*.h5"))
    shard.write_bytes(shard.read_bytes()[:1000])
    found = document(endauda("inspect", "crst", "--verify", "--json"))
    assert found["result"]["intact"] is False and found["error"]["kind"] == "ArchiveError"
    assert document(endauda(*fuse, "--name", "other"))["error"]["kind"] == "ArchiveError"
    assert document(endauda("demo", "--out", str(city), "--json"))["error"]["kind"] == "ConfigError"
    assert document(endauda("--nonsense", "--json"))["command"] is None
