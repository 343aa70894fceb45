"""The JSON Schema of what ``--json`` prints, made from the result dataclasses.

``python -m tests.support.results_schema > docs/results.schema.json`` writes it.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
from itertools import pairwise
from typing import Any

from pydantic import TypeAdapter

from endauda_cli import label_results, overview_results, plan_results, results, score_results
from endauda_cli.label_results import LabelExport, LabelImport
from endauda_cli.overview_results import WorkspaceReport
from endauda_cli.plan_results import Plan
from endauda_cli.results import (
    Advice,
    CheckupResult,
    ConfigResult,
    DemoResult,
    DeployResult,
    DownloadResult,
    ExportResult,
    FusionResult,
    InspectResult,
    MergeResult,
    TrainResult,
    WeightsList,
)
from endauda_cli.score_results import EvalResult, ScoreTable
from endauda_cli.terminal import answer
from endauda_cli.terminal.answer import SCHEMA, Failure

RESULTS: dict[str, tuple[type, ...]] = {
    "export-teacher": (ExportResult, Plan),
    "fuse": (FusionResult, Advice, Plan),
    "train": (TrainResult, Plan),
    "test": (EvalResult, ScoreTable, Plan),
    "download-weights": (WeightsList, DownloadResult),
    "inspect": (InspectResult,),
    "merge": (MergeResult,),
    "deploy": (DeployResult,),
    "export-labels": (LabelExport,),
    "import-labels": (LabelImport,),
    "report": (WorkspaceReport,),
    "demo": (DemoResult,),
    "doctor": (CheckupResult,),
    "config show": (ConfigResult,),
}
"""What each command's ``result`` may be."""


def schema() -> dict[str, Any]:
    """Of any document that a command prints."""
    definitions: dict[str, Any] = {}
    for kind in (*dict.fromkeys(kind for kinds in RESULTS.values() for kind in kinds), Failure):
        made = TypeAdapter(kind).json_schema(mode="serialization", ref_template="#/$defs/{model}")
        definitions |= made.pop("$defs", {}) | {kind.__name__: made}
    told = (results, score_results, overview_results, label_results, plan_results, answer)
    for name, docs in {name: docs for module in told for name, docs in _field_docs(module).items()}.items():
        for field, text in docs.items():
            if name in definitions:
                definitions[name]["properties"][field]["description"] = text
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "What endauda prints with --json",
        "type": "object",
        "required": ["schema", "command"],
        "properties": {
            "schema": {"const": SCHEMA, "description": _line(answer, "SCHEMA")},
            "command": {"type": ["string", "null"]},
            "result": {"description": "What was done; with an error, the part of it that was."},
            "error": {"$ref": "#/$defs/Failure"},
        },
        "anyOf": [{"required": ["result"]}, {"required": ["error"]}],
        "allOf": [
            {
                "if": {"properties": {"command": {"const": command}}},
                "then": {
                    "properties": {"result": {"anyOf": [{"$ref": f"#/$defs/{k.__name__}"} for k in kinds]}}
                },
            }
            for command, kinds in RESULTS.items()
        ],
        "$defs": dict(sorted(definitions.items())),
    }


def text() -> str:
    """As the file holds it."""
    return json.dumps(schema(), indent=1) + "\n"


def _field_docs(module: Any) -> dict[str, dict[str, str]]:
    """Class -> field -> the sentence under it."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = _docs(node.body)
    return found


def _docs(body: list[ast.stmt]) -> dict[str, str]:
    docs = {}
    for statement, following in pairwise(body):
        named = (
            statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        )
        if isinstance(named, ast.Name) and isinstance(following, ast.Expr):
            if isinstance(following.value, ast.Constant) and isinstance(following.value.value, str):
                docs[named.id] = " ".join(following.value.value.split())
    return docs


def _line(module: Any, name: str) -> str:
    return _docs(ast.parse(inspect.getsource(module)).body)[name]


if __name__ == "__main__":
    sys.stdout.write(text())
