"""Reading the host's source as syntax trees."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import textwrap
from typing import Any

from sera_plugin.host.contract import TOUCHES


def found(symbol: str) -> Any:
    """What a symbol of the table names.

    Raises:
        AssertionError: says what breaks, if it is gone.
    """
    path = symbol.split(".")
    owner, rest = _module(path)
    for name in rest:
        if not hasattr(owner, name):
            there = inspect.isclass(owner) and name in attributes_of(owner)
            assert there, breaks(symbol)
            return None
        owner = getattr(owner, name)
    return owner


def _module(path: list[str]) -> tuple[Any, list[str]]:
    """The module that a dotted name begins with, and the names that follow."""
    for end in range(len(path), 0, -1):
        try:
            return importlib.import_module(".".join(path[:end])), path[end:]
        except ModuleNotFoundError:
            continue
    raise ModuleNotFoundError(path[0])


def breaks(symbol: str) -> str:
    """What the table says of a symbol that has changed."""
    return str({entry.symbol: entry for entry in TOUCHES}[symbol])


def attributes_of(owner: type) -> set[str]:
    """Names that the methods of a class and its bases set on ``self``, and its annotated fields."""
    names = {name for base in owner.__mro__ for name in getattr(base, "__annotations__", {})}
    for base in owner.__mro__:
        if base.__module__ == "builtins":
            continue
        for node in ast.walk(tree_of(base)):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and getattr(node.value, "id", None) == "self"
            ):
                names.add(node.attr)
    return names


def names(function: Any) -> list[str]:
    """Its parameters."""
    return [name for name in inspect.signature(function).parameters if name != "self"]


def required(function: Any) -> list[str]:
    """Its parameters without a default."""
    found = inspect.signature(function).parameters.items()
    return [name for name, p in found if p.default is inspect.Parameter.empty and name != "self"]


@functools.cache
def tree_of(of: Any) -> ast.Module:
    return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(of))))


@functools.cache
def text_of(of: Any) -> str:
    """The source without comments and with one kind of quotes."""
    return ast.unparse(tree_of(of))


@functools.cache
def parts_of(of: Any) -> frozenset[str]:
    """Every statement, expression and keyword of the source, and the head of every ``if``."""
    nodes = list(ast.walk(tree_of(of)))
    whole = {ast.unparse(n) for n in nodes if isinstance(n, (ast.stmt, ast.expr, ast.keyword))}
    return frozenset(whole | {f"if {ast.unparse(n.test)}:" for n in nodes if isinstance(n, ast.If)})


def calls(of: Any, name: str) -> list[ast.Call]:
    """The calls of ``name`` or ``<anything>.name``."""
    return [
        node
        for node in ast.walk(tree_of(of))
        if isinstance(node, ast.Call)
        and name == (getattr(node.func, "attr", None) or getattr(node.func, "id", None))
    ]


def in_order(of: Any, *wanted: str) -> list[str]:
    """Those of the ``wanted`` names that are called, in the order of their lines."""
    found = [(call.lineno, name) for name in wanted for call in calls(of, name)]
    return [name for _, name in sorted(found)]


def read_from(of: Any, owner: str) -> set[str]:
    """Names that are read from ``owner``, such as ``self`` or ``self.model``."""
    return {
        node.attr
        for node in ast.walk(tree_of(of))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == owner
    }


def assert_names(symbol: str, expected: list[str]) -> None:
    """Check that a function of the table has these parameters and no others."""
    assert names(found(symbol)) == expected, f"its parameters: {breaks(symbol)}"


def assert_parts(of: Any, symbol: str, *pieces: str) -> None:
    """Check that the source has these statements, expressions, keywords and heads of ``if``.

    Args:
        of: a function or a class of the host.
        symbol: the entry of the table that relies on them.
        pieces: as Python writes them.
    """
    there = parts_of(of)
    for piece in pieces:
        assert piece in there, f"{of.__qualname__} no longer has `{piece}`: {breaks(symbol)}"
