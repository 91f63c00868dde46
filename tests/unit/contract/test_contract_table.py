"""The table of ``host/contract.py`` is whole: what it names is there, and ``host/`` uses it."""

import ast
import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
from pathlib import Path

import pytest
from host_source import attributes_of, found

from sera_plugin import host
from sera_plugin.host.contract import READ, TOUCHES

pytestmark = pytest.mark.contract

FOLDER = Path(host.__file__).parent
TREES = {
    path.stem: ast.parse(path.read_text(encoding="utf-8"))
    for path in FOLDER.glob("*.py")
    if path.stem != "contract"
}
SYMBOLS = {entry.symbol for entry in TOUCHES}
NAMES = {entry.name for entry in TOUCHES}
HOSTS = (
    "axolotl",
    "trl",
    "transformers",
    "accelerate",
    "deepspeed",
    "peft",
    "vllm",
    "bitsandbytes",
)


@pytest.mark.parametrize("package", READ)
def test_the_installed_versions_are_the_ones_that_were_read(package):
    assert importlib.metadata.version(package) == READ[package], (
        f"{package} was read at {READ[package]}: run `pytest -m contract`, read what fails in the "
        "installed version, and write its number in host/contract.py"
    )


def test_no_symbol_is_in_the_table_twice():
    assert len(SYMBOLS) == len(TOUCHES)


@pytest.mark.parametrize("entry", TOUCHES, ids=lambda entry: entry.symbol)
def test_every_symbol_is_there(entry):
    if entry.needs and importlib.util.find_spec(entry.needs) is None:
        pytest.skip(f"{entry.needs} is not installed; `make test-vllm` looks for it")
    found(entry.symbol)


def imported():
    """What ``host/`` imports from its hosts, with the module that says so."""
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in HOSTS:
                yield from ((module, f"{node.module}.{alias.name}") for alias in node.names)


def test_everything_that_host_imports_is_in_the_table_unless_its_package_exports_it():
    promised = ("transformers", "accelerate")
    missing = {
        f"{module}.py: {symbol}"
        for module, symbol in imported()
        if symbol not in SYMBOLS and symbol.rpartition(".")[0] not in promised
    }
    assert not missing, f"say in host/contract.py what breaks when these go: {sorted(missing)}"


def own_names():
    """Names that ``host/`` defines itself: functions, classes, parameters and attributes."""
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                yield node.name
            elif (
                isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and getattr(node.value, "id", "") == "self"
            ):
                yield node.attr


def classes():
    """The classes of ``host/`` with a base of a host's."""
    for info in pkgutil.iter_modules(host.__path__, "sera_plugin.host."):
        module = importlib.import_module(info.name)
        for _, ours in inspect.getmembers(module, inspect.isclass):
            bases = [base for base in ours.__mro__[1:] if base.__module__.split(".")[0] in HOSTS]
            if ours.__module__ == info.name and bases:
                yield ours, bases


def overridden():
    """Names that a class of ``host/`` overrides."""
    for ours, bases in classes():
        theirs = {name for base in bases for name in vars(base)}
        yield from (
            (ours.__name__, name)
            for name in vars(ours)
            if name in theirs and not name.startswith(("__", "_abc"))
        )


def test_every_name_that_a_class_of_host_overrides_is_in_the_table():
    missing = {f"{ours}.{name}" for ours, name in overridden() if name not in NAMES}
    assert not missing, f"say in host/contract.py what breaks when these go: {sorted(missing)}"


def test_every_underscored_name_that_host_reads_is_its_own_or_in_the_table():
    theirs = {name for _, bases in classes() for name in attributes_of(bases[0])}
    own = set(own_names()) - theirs - {name for _, name in overridden()}
    missing = {
        f"{module}.py:{node.lineno}: {ast.unparse(node)}"
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and node.attr not in NAMES | own
    }
    assert not missing, f"say in host/contract.py what breaks when these go: {sorted(missing)}"


def test_everything_in_the_table_is_used():
    used = {symbol.rpartition(".")[2] for _, symbol in imported()}
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                used.add(node.attr)
            elif isinstance(node, ast.FunctionDef):
                used.add(node.name)
    unused = {entry.symbol for entry in TOUCHES if entry.name not in used}
    assert not unused, f"host/ no longer uses {sorted(unused)}; delete them from host/contract.py"
