"""`docs/answers.md` has every code that the source can give, and none that it cannot."""

import ast
import re
from pathlib import Path

from batchkit.records import FailureKind

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "answers.md").read_text(encoding="utf-8")
CODES = DOCS.partition("## Codes")[2]

_PLACE = {"Failure": 1, "StopRun": 0, "BadLine": 2}
"""Where the code stands among the arguments."""
_NAMES = {"code", "CODE", "BAD_LINE_CODE", "LEFT_AT_ONCE"}
_ELSEWHERE = {"simulator", "testing.py"}
"""They speak as providers do."""


def words(node):
    """The words that an expression can be."""
    if isinstance(node, ast.IfExp):
        return words(node.body) | words(node.orelse)
    return {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()


def codes_in(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name in _PLACE and len(node.args) > _PLACE[name]:
                yield from words(node.args[_PLACE[name]])
            if name != "error":
                yield from (code for key in node.keywords if key.arg == "code" for code in words(key.value))
        elif isinstance(node, ast.Assign):
            if any(isinstance(target, ast.Name) and target.id in _NAMES for target in node.targets):
                yield from words(node.value)
        elif isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple) and node.value.elts:
            kind, *code = node.value.elts
            if code and ast.unparse(kind).startswith(("kind", "FailureKind.")):
                yield from words(code[0])
        elif isinstance(node, ast.FunctionDef):
            defaults = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            yield from (word for name, default in defaults if name.arg == "code" for word in words(default))


def codes_of_the_source():
    found = set(FailureKind)
    for path in (ROOT / "batchkit").rglob("*.py"):
        if not _ELSEWHERE & set(path.relative_to(ROOT / "batchkit").parts):
            found |= set(codes_in(ast.parse(path.read_text(encoding="utf-8"))))
    return found - {""}


def test_each_code_is_told_with_what_to_do_about_it():
    codes = codes_of_the_source()
    # Those that the walk must know how to find: in each of the ways in which the source names one.
    assert codes >= {"server_failing", "answer_cut", "broken_json", "guardrail_denied", "max_failures"}
    assert codes >= {"invalid_request_line", "credit_balance_too_low", "left_at_once", "unreachable"}
    told = rows()
    assert codes <= told.keys(), codes - told.keys()
    for code, (happened, to_do) in told.items():
        assert happened, code
        assert to_do, code


def test_no_code_is_told_that_the_source_cannot_give():
    assert rows().keys() <= codes_of_the_source()


def rows():
    """What happened and what to do, by code."""
    found = {}
    for names, happened, to_do in re.findall(r"^\| (`.+?) \| (.*?) \| (.*?) \|$", CODES, re.MULTILINE):
        for code in re.findall(r"`([a-z_]+)`", names):
            found[code] = (happened, to_do)
    return found


def test_each_status_of_the_table_that_is_tested_is_told():
    table = DOCS.partition("## The table")[2].partition("## Waits")[0]
    for status in (
        246,
        402,
        404,
        408,
        409,
        412,
        413,
        422,
        425,
        431,
        446,
        500,
        501,
        502,
        503,
        504,
        505,
        524,
        529,
    ):
        assert str(status) in table, status
