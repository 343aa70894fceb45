"""Store: what a torch.export ``.pt2`` holds, looked at before torch opens it.

torch unpickles some of its members freely, evaluates its expressions of sizes as Python, runs its guards, imports what
its tree specifications name, and loads machine code that was packed with it. So each member is compared with what
an exported network needs: tensors, a graph of torch's own operators, arithmetic. All else is refused by name.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_UNPACKED = 20
"""How many times its size a file may hold: torch itself stores without compressing, and weights hardly compress."""
_SLACK_BYTES = 16 << 20
_MAX_MEMBERS = 100_000

_PLAIN = re.compile(
    r"(?:archive_format|archive_version|version|byteorder|\.data/(?:version|serialization_id)|\.format_version"
    r"|\.storage_alignment|extra(?:_files)?/.*|data/(?:weights|constants)/\w+_(?:weights|constants)_config\.json"
    r"|data/(?:weights|constants)/(?:weight|tensor)_\d+)"
)
_GRAPHS = re.compile(r"models/.*\.json|serialized_exported_program\.json")
_PICKLES = re.compile(
    r"data/(?:sample_inputs|weights|constants)/[^/]*\.pt|serialized_(?:state_dict|constants|example_inputs)\.pt"
)
_OPERATORS = re.compile(
    r"torch\.ops\.(?:aten|prims|prim|torchvision|quantized|quantized_decomposed|higher_order)\.\w+(?:\.\w+)?"
    r"|_operator\.\w+|math\.\w+|torch\.(?:_?sym_\w+|_check\w*)"
)
_REACH_OUT = ("from_file",)
"""Operators of torch that open files."""
_ARITHMETIC = frozenset(
    (
        "FloorDiv ModularIndexing Where PythonMod Mod CleanDiv CeilToInt FloorToInt CeilDiv LShift RShift "
        "PowByNatural FloatPow FloatTrueDiv IntTrueDiv IsNonOverlappingAndDenseIndicator TruncToFloat TruncToInt "
        "RoundToInt RoundDecimal ToFloat Identity Max Min Abs Add Mul Pow Integer Float Rational Symbol Piecewise And "
        "Or Not Eq Ne Lt Le Gt Ge Equality Unequality StrictLessThan LessThan StrictGreaterThan GreaterThan floor "
        "ceiling sqrt max min abs "
    ).split()
)
_OF_TENSORS = frozenset(("size", "stride", "shape", "storage_offset", "ndim", "dim", "numel"))
_EXPRESSION_NODES = (
    ast.Expression, ast.Name, ast.Load, ast.Constant, ast.Call, ast.keyword, ast.BinOp, ast.UnaryOp, ast.BoolOp,
    ast.Compare, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.Tuple, ast.Attribute, ast.Subscript,
    ast.IfExp,
)  # fmt: skip


def refuse_code(path: Path) -> None:
    """Make sure that torch.export.load() of the file makes tensors and a graph, and nothing else.

    Raises:
        ValueError: the end of a sentence that says what is in it, if it can run code or is no such file.
    """
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        if len(infos) > _MAX_MEMBERS or len({info.filename.casefold() for info in infos}) != len(infos):
            raise ValueError("it has members of one name, or far too many")
        if sum(info.file_size for info in infos) > MAX_UNPACKED * path.stat().st_size + _SLACK_BYTES:
            raise ValueError(
                f"it would take {sum(info.file_size for info in infos):,} bytes, unpacked; no network packs like that"
            )
        pickled: set[str] = set()
        # Before torch 2.8 there was no folder around the members.
        folded = not any(info.filename == "serialized_exported_program.json" for info in infos)
        for info in infos:
            name = info.filename.partition("/")[2] if folded else info.filename
            if not name or info.is_dir():
                continue
            if _GRAPHS.fullmatch(name):
                _check_graph(name, _json(name, archive.read(info)))
            elif _PICKLES.fullmatch(name):
                _check_pickle(name, archive.read(info))
            elif not _PLAIN.fullmatch(name):
                raise ValueError(
                    f"it holds {name!r:.80}, which is neither tensors nor a graph and could run code"
                )
            elif name.endswith("_config.json"):
                pickled |= _pickled(name, _json(name, archive.read(info)))
        for info in infos:
            if (name := info.filename.partition("/")[2]) in pickled:
                _check_pickle(name, archive.read(info))


def _json(name: str, data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its {name!r:.80} is no JSON") from error


def _pickled(name: str, config: Any) -> set[str]:
    """Members that the configuration of weights or constants says are pickled."""
    folder = name.rpartition("/")[0]
    tables = config.get("config") if isinstance(config, dict) else None
    if not isinstance(tables, dict) or not all(isinstance(entry, dict) for entry in tables.values()):
        raise ValueError(f"its {name!r:.80} is not what torch writes")
    return {f"{folder}/{entry.get('path_name')}" for entry in tables.values() if entry.get("use_pickle")}


def _check_pickle(name: str, data: bytes) -> None:
    try:
        torch.load(io.BytesIO(data), map_location="meta", weights_only=True)
    except Exception as error:  # of a reader of damaged files: almost any
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"holds {found[1]:.80} beside tensors" if found else "is no pickle of tensors alone"
        raise ValueError(f"its {name!r:.80} {what} and was not opened, because it can run code") from error


def _check_graph(name: str, graph: Any) -> None:
    for key, text in _texts(graph):
        if key in ("target", "as_operator"):
            called = text.startswith(("torch", "_operator", "math", "#"))
            if called and (not _OPERATORS.fullmatch(text) or any(word in text for word in _REACH_OUT)):
                raise ValueError(f"its graph calls {text!r:.80}, which is no operator of a network")
        elif key in ("expr_str", "guards_code") and not is_arithmetic(text):
            raise ValueError(
                f"its graph holds {text!r:.80} as a size, which is no arithmetic and could run code"
            )
        elif key.endswith("_spec") and ("__enum__" in text or "defaultdict" in text):
            raise ValueError(f"its {name!r:.80} names Python modules to import, which could run code")


def _texts(graph: Any) -> Iterator[tuple[str, str]]:
    """All strings with the key that they stand under, the nearest one."""
    waiting = [("", graph)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, dict):
            waiting += [(str(inner), one) for inner, one in value.items()]
        elif isinstance(value, list):
            waiting += [(key, one) for one in value]


def is_arithmetic(text: str) -> bool:
    """Whether an expression of sizes only computes: numbers, names, and functions that are known."""
    if len(text) > 100_000:
        return False
    try:
        tree = ast.parse(text, mode="eval")
        return all(map(_only_computes, ast.walk(tree)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _only_computes(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Name(id=name)):
            return name in _ARITHMETIC
        case ast.Call(func=ast.Attribute()):
            return True  # the attribute is looked at by itself
        case ast.Call():
            return False
        case ast.Attribute(attr=name):
            return name in _OF_TENSORS
        case ast.Name(id=name):
            return not name.startswith("_")
        case ast.Constant(value=str() as text):
            return text.isidentifier() and not text.startswith("_")
        case ast.BinOp(op=ast.Pow(), right=right):
            return isinstance(right, ast.Constant) and isinstance(right.value, int) and abs(right.value) <= 64
    return isinstance(node, _EXPRESSION_NODES)
