"""Parts by name: what is built in, what a user adds, and the page that shows how."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator
from snippets import EXTENDING, sera_blocks, write_modules
from transformers import AutoTokenizer

from sera_plugin.config import BootstrapConfig, SelectionConfig, parse_block
from sera_plugin.config.parts import ENGINES, JUDGES, RULES, SIGNALS, TERMS, Registry
from sera_plugin.data.candidates import Prompt
from sera_plugin.review.judges import JudgeParts, court_of, judge_of
from sera_plugin.review.judging import PoolJudge, checked
from sera_plugin.review.rules import Evidence
from sera_plugin.review.selection import rule_of
from sera_plugin.runtime.errors import EngineError, SeraConfigError
from sera_plugin.sampling.engines import check_answers, check_engine, engine_class
from sera_plugin.sampling.settings import EngineParts, Sampling
from sera_plugin.training.checks import check_methods

SETTINGS = Sampling(2, 0.7, 1.0, 8, 32, (2,), frozenset({2}), 0, 1000)
PROMPTS = [Prompt("a", (5, 6)), Prompt("b", (7,))]


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The ``sera:`` blocks of docs/extending.md, whose modules can be imported."""
    names = write_modules(EXTENDING, tmp_path)
    assert names == ["my_signal.py", "my_rule.py", "my_judge.py", "my_engine.py", "my_terms.py"]
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in names:
        monkeypatch.delitem(sys.modules, Path(name).stem, raising=False)
    return sera_blocks(EXTENDING)


def evidence(**signals: np.ndarray) -> Evidence:
    margin = np.array([1.0, 2.0, 3.0, 4.0])
    return Evidence(tuple("abcd"), margin, np.zeros(4), None, None, 2, 2, 7, signals)


@pytest.mark.parametrize("registry", [RULES, SIGNALS, JUDGES, ENGINES, TERMS], ids=lambda r: r.key)
def test_every_part_that_is_built_in_is_there(registry: Registry) -> None:
    for name in registry.names:
        assert registry.check(name) == name
        assert callable(registry.load(name))


def test_a_parameter_of_a_rule_is_a_key_of_the_block() -> None:
    for name in RULES.names:
        _, *parameters = signature(RULES.load(name)).parameters
        assert set(parameters) <= set(SelectionConfig.model_fields)


def test_the_schema_names_the_parts() -> None:
    rule = SelectionConfig.model_json_schema()["properties"]["rule"]
    assert rule["anyOf"][0] == {"enum": list(RULES.names)}
    signals = SelectionConfig.model_json_schema()["properties"]["signals"]
    assert signals["items"]["anyOf"][0] == {"enum": list(SIGNALS.names)}
    bootstrap = BootstrapConfig.model_json_schema()["properties"]
    assert bootstrap["engine"]["anyOf"][0] == {"enum": list(ENGINES.names)}
    assert bootstrap["judge"]["anyOf"][0] == {"enum": ["implicit", "contrast"]}


@pytest.mark.slow
def test_an_engine_is_imported_without_a_trainer_of_trl() -> None:
    code = (
        "import sys\n"
        "from sera_plugin.config.parts import ENGINES\n"
        "for name in ENGINES.names: ENGINES.load(name)\n"
        "print([m for m in sys.modules if m.startswith('trl.trainer')])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


NUMBER = 3


@pytest.mark.parametrize(
    ("registry", "value", "words"),
    [
        (RULES, "nowhere:at_all", "can't be imported (ModuleNotFoundError: No module named"),
        (SIGNALS, f"{__name__}:absent", "can't be imported (AttributeError: "),
        (JUDGES, f"{__name__}:NUMBER", "is no function; write package.module:function."),
        (ENGINES, f"{__name__}:NUMBER", "is no class; write package.module:Class."),
        (RULES, "broken_module:rule", "can't be imported (ZeroDivisionError: division by zero)"),
    ],
)
def test_a_part_that_is_not_there_is_one_sentence(
    registry: Registry,
    value: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "broken_module.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SeraConfigError) as refused:
        registry.load(value)
    assert str(refused.value).startswith(f"{registry.key}: {value} {words}")
    assert "\n" not in str(refused.value)


def test_the_blocks_of_the_page_are_allowed(page: list[dict[str, Any]]) -> None:
    assert len(page) == 5
    for block in page:
        config = parse_block(block)
        assert config is not None
        check_methods({"rl": "dpo"}, config)
        check_engine({}, config)


def test_one_line_makes_a_part_built_in(
    page: list[dict[str, Any]], llama: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "ours.py").write_text(
        "class Same:\n"
        "    identity = 'same:1'\n"
        "    def __call__(self, questions):\n"
        "        return [1.0 for _ in questions]\n"
        "def same(parts):\n"
        "    return Same()\n"
        "def above(evidence, threshold):\n"
        "    return evidence.margin - threshold\n"
    )
    for registry, name, place in (
        (RULES, "ours", "ours:above"),
        (SIGNALS, "surprise", "my_signal:surprise"),
        (JUDGES, "same", "ours:same"),
        (ENGINES, "phrases", "my_engine:Phrases"),
    ):
        monkeypatch.setitem(registry.entries, name, place)  # type: ignore[arg-type]
    selection = {"rule": "ours", "threshold": 1.5, "signals": ["surprise"]}
    config = parse_block(
        {"selection": selection, "bootstrap": {"judge": "same", "engine": "phrases"}}
    )
    assert config is not None
    check_methods({}, config)
    check_engine({}, config)
    assert rule_of(config.selection)(evidence()).tolist() == [-0.5, 0.5, 1.5, 2.5]
    assert engine_class("phrases").name == "phrases"
    tokenizer, accelerator = AutoTokenizer.from_pretrained(llama), Accelerator(cpu=True)
    parts = JudgeParts(config.bootstrap, tokenizer, accelerator)
    court = court_of(parts, tmp_path, lambda: None)
    assert court is not None
    assert not isinstance(court.judge, PoolJudge)
    assert checked(court.judge, []) == []
    with pytest.raises(ValueError, match="'our' is unknown; did you mean ours"):
        RULES.check("our")


def test_the_implicit_reward_needs_no_court(tmp_path: Path) -> None:
    tokenizer: Any = None
    accelerator = Accelerator(cpu=True)
    assert judge_of(JudgeParts(BootstrapConfig(), tokenizer, accelerator)) is None
    off = BootstrapConfig(fraction=0.0, judge="nowhere:at_all")
    for config in (BootstrapConfig(), off):
        parts = JudgeParts(config, tokenizer, accelerator)
        assert court_of(parts, tmp_path, lambda: None) is None


def test_the_rule_of_the_page(page: list[dict[str, Any]]) -> None:
    rule = rule_of(SelectionConfig(rule="my_rule:expected"))
    found = rule(evidence(surprise=np.array([4.0, 1.0, 3.0, 2.0])))
    np.testing.assert_array_equal(found, [np.nan, 2.0, np.nan, 4.0])


def test_the_engine_of_the_page(page: list[dict[str, Any]], llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama)
    parts: Any = EngineParts(BootstrapConfig(), {}, Accelerator(cpu=True), None, tokenizer)
    engine = engine_class("my_engine:Phrases").start(parts)

    def draws(prompt: Prompt, copy: int, count: int) -> np.ndarray:
        return np.full(count, copy / 2)

    model: Any = None
    answers = engine.sample(model, PROMPTS, SETTINGS, draws, synced=False)
    check_answers(engine, answers, PROMPTS, SETTINGS)
    for each in answers:
        texts = [tokenizer.decode(ids[:-1]) for ids in each]
        assert texts == ["apple river stone", "green cloud"]
    for wrong, words in (
        (answers[:1], "returned 2 answers to 1 prompts; it must return 2 to each of 2."),
        ([each[:1] for each in answers], "returned 2 answers to 2 prompts; it must return 2 to"),
    ):
        with pytest.raises(EngineError, match=words):
            check_answers(engine, wrong, PROMPTS, SETTINGS)
    with pytest.raises(EngineError, match="an answer of 4 tokens where there is room for 2"):
        check_answers(engine, answers, PROMPTS, replace(SETTINGS, max_new_tokens=2))
    config = parse_block({"bootstrap": {"engine": "my_engine:Phrases", "sampler": "mixed"}})
    assert config is not None
    with pytest.raises(SeraConfigError, match="sampler: mixed can't be used with the engine"):
        check_engine({}, config)


class Half:
    name = "half"
    pads = cuts = False


def test_a_class_that_is_no_engine_is_refused(page: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(SeraConfigError) as refused:
        engine_class(f"{__name__}:Half")
    assert str(refused.value) == (
        f"sera.bootstrap.engine: {__name__}:Half has no token_budget, start, serving, sample; an "
        "engine is a class with name, pads, cuts, token_budget, start, serving, sample."
    )
    (tmp_path / "double.py").write_text(
        "from my_engine import Phrases\nclass Double(Phrases):\n    name = 'vllm'\n"
    )
    with pytest.raises(SeraConfigError, match="has the name of a built-in engine, vllm"):
        engine_class("double:Double")
