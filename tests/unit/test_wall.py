"""One wall for the host: outside ``host/`` stands no private name of a host.

Every module is read as a syntax tree. A name that begins with an underscore is our own if the
module defines it; read from ``self``, also if it is set there, or by a class of ours that is
extended. Else it is somebody else's. What may be imported of the hosts is listed below.
"""

from __future__ import annotations

import ast
import functools
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import sera_plugin

pytestmark = pytest.mark.contract

FOLDER = Path(sera_plugin.__file__).parent

PUBLIC = {
    "axolotl.cli.main": {"cli"},
    "axolotl.integrations.base": {"BasePlugin"},
    "transformers": {
        "AutoConfig",
        "AutoModelForCausalLM",
        "AutoModelForSequenceClassification",
        "AutoTokenizer",
        "DynamicCache",
        "GenerationConfig",
        "LogitsProcessor",
        "LogitsProcessorList",
        "PreTrainedModel",
        "PreTrainedTokenizerBase",
        "TrainerCallback",
        "get_linear_schedule_with_warmup",
        "get_scheduler",
        "set_seed",
    },
    "transformers.generation.logits_process": {"TemperatureLogitsWarper", "TopPLogitsWarper"},
    "accelerate": {"Accelerator", "PartialState", "init_empty_weights"},
    "accelerate.utils": {"broadcast_object_list", "gather_object"},
    "accelerate.utils.memory": {"clear_device_cache", "should_reduce_batch_size"},
    "peft": {"LoraConfig", "PeftModel", "get_peft_model"},
    "peft.tuners.tuners_utils": {"BaseTunerLayer"},
}
"""What may be imported outside ``host/``, by module; of TRL, deepspeed and vLLM nothing."""

HOSTS = {name.partition(".")[0] for name in PUBLIC} | {"trl", "deepspeed", "vllm"}

TORCHS = {"runtime/weights.py: module._non_persistent_buffers_set"}
"""Not a host's: torch has no other way to ask which buffers are saved."""


def trees(folder: Path) -> dict[str, ast.Module]:
    return {
        path.relative_to(folder).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(folder.rglob("*.py"))
    }


def is_private(name: object) -> bool:
    # Names like `_value_` are how enum documents what a class may define.
    return isinstance(name, str) and name.startswith("_") and not name.endswith("_")


def is_own(node: ast.AST) -> bool:
    return isinstance(node, ast.expr) and ast.unparse(node) in ("self", "cls", "super()")


def defined(tree: ast.Module) -> set[str]:
    """Private names of a module's functions, classes, methods, fields and variables."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return {name for name in found if is_private(name)}


def kept(tree: ast.Module) -> set[str]:
    """Private names that a module's classes set on ``self``."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    stored = [node for node in nodes if isinstance(node.ctx, ast.Store) and is_own(node.value)]
    return {node.attr for node in stored if is_private(node.attr)}


def homes(modules: dict[str, ast.Module]) -> dict[str, str]:
    """In which module each class stands."""
    return {
        node.name: path
        for path, tree in modules.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }


def inherited(
    path: str, modules: dict[str, ast.Module], home: dict[str, str]
) -> Iterator[ast.Module]:
    """A module, and those whose classes it extends."""
    todo, seen = [path], set()
    while todo:
        here = todo.pop()
        seen.add(here)
        yield modules[here]
        classes = [node for node in ast.walk(modules[here]) if isinstance(node, ast.ClassDef)]
        bases = [ast.unparse(base).split(".")[-1] for node in classes for base in node.bases]
        todo += [home[base] for base in bases if base in home and home[base] not in seen]


def private_touches(
    path: str, modules: dict[str, ast.Module], home: dict[str, str]
) -> Iterator[str]:
    """Private names that are somebody else's, as they stand in the source."""
    tree = modules[path]
    here = defined(tree)
    own = set().union(*(defined(each) | kept(each) for each in inherited(path, modules, home)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if node.attr not in (own if is_own(node.value) else here):
                yield ast.unparse(node)
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("sera_plugin"):
            yield from (f"{node.module}.{a.name}" for a in node.names if is_private(a.name))
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("getattr", "setattr", "hasattr", "delattr")
            and len(node.args) > 1
            and isinstance(node.args[1], ast.Constant)
            and is_private(node.args[1].value)
            and node.args[1].value not in (own if is_own(node.args[0]) else here)
        ):
            yield ast.unparse(node)


def host_imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Module and name of everything that is taken from a host."""
    whole: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in HOSTS:
            yield from ((str(node.module), alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in HOSTS:
                    whole[alias.asname or alias.name] = alias.name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in whole:
            yield whole[ast.unparse(node.value)], node.attr


@functools.cache
def crossings(folder: Path) -> tuple[set[str], set[str]]:
    """Private names and imports that the wall does not let through, by file."""
    outside = {path: tree for path, tree in trees(folder).items() if not path.startswith("host/")}
    home = homes(outside)
    private = {
        f"{path}: {name}"
        for path, tree in outside.items()
        for name in private_touches(path, outside, home)
    }
    imports = {
        f"{path}: {module}.{name}"
        for path, tree in outside.items()
        for module, name in host_imports(tree)
        if name not in PUBLIC.get(module, ())
    }
    return private, imports


def test_no_private_name_of_a_host_is_used_outside_host() -> None:
    found, _ = crossings(FOLDER)
    more = found - TORCHS
    assert not more, (
        f"{sorted(more)}: this is private to somebody else. Move the touch into sera_plugin/host/, "
        "and say in host/contract.py what breaks when the name goes."
    )
    assert found == TORCHS, "a touch is gone; delete it from TORCHS"


def test_only_what_hosts_promise_is_imported_outside_host() -> None:
    _, more = crossings(FOLDER)
    assert not more, (
        f"{sorted(more)}: not among the names that may be imported outside sera_plugin/host/. Call "
        "it from a function in host/ with an entry in host/contract.py; or, if the host documents "
        "it, add it to PUBLIC in this test."
    )


@pytest.mark.parametrize(
    ("module", "name"),
    [(module, name) for module, names in PUBLIC.items() for name in sorted(names)],
)
def test_what_may_be_imported_is_there(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name), (
        f"{module}.{name} is gone, which sera_plugin imports outside host/"
    )


def test_what_may_be_imported_is_imported() -> None:
    used = {
        found
        for path, tree in trees(FOLDER).items()
        if not path.startswith("host/")
        for found in host_imports(tree)
    }
    unused = {(module, name) for module, names in PUBLIC.items() for name in names} - used
    assert not unused, f"delete {sorted(unused)} from PUBLIC: nothing outside host/ imports them"


@pytest.mark.parametrize(
    ("source", "private", "imports"),
    [
        ("def f(trainer): return trainer._metrics", {"trainer._metrics"}, set()),
        ("def f(a): return a.accelerator._dataloaders", {"a.accelerator._dataloaders"}, set()),
        ("def f(x): return getattr(x, '_cfg', None)", {"getattr(x, '_cfg', None)"}, set()),
        ("class A(B):\n def f(self): return self._cfg", {"self._cfg"}, set()),
        ("class A:\n def f(self): self._cfg = 1; return self._cfg", set(), set()),
        ("class A:\n def f(self, x): self._cfg = 1; return x._cfg", {"x._cfg"}, set()),
        ("class A:\n def _f(self, x: A): return x._f", set(), set()),
        ("class A(B):\n def f(self): return super()._f()", {"super()._f"}, set()),
        ("def _own(): ...\ndef f(x): return x._own", set(), set()),
        ("def f(x): return x.__class__", set(), set()),
        ("from torch import _C", {"torch._C"}, set()),
        ("from sera_plugin.data.ids import _mix", set(), set()),
        ("from trl.trainer.utils import pad", set(), {"trl.trainer.utils.pad"}),
        ("from transformers import AutoConfig", set(), set()),
        ("from transformers import Trainer", set(), {"transformers.Trainer"}),
        ("import trl\nx = trl.DPOTrainer", set(), {"trl.DPOTrainer"}),
        ("import trl.models as m\nx = m.utils", set(), {"trl.models.utils"}),
        ("def f():\n from vllm import LLM", set(), {"vllm.LLM"}),
    ],
)
def test_what_crosses_the_wall(
    tmp_path: Path, source: str, private: set[str], imports: set[str]
) -> None:
    (tmp_path / "one.py").write_text(source)
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "two.py").write_text("import trl\ntrl.DPOTrainer._cfg = self._metrics = 1")
    assert crossings(tmp_path) == (
        {f"one.py: {name}" for name in private},
        {f"one.py: {name}" for name in imports},
    )
