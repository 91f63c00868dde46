"""``sera:`` blocks made at random, as YAML text, through the host's real schema.

``SERA_FUZZ=3000`` sets how many; the default fits into the tests of every day.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator

import pytest
import yaml
from axolotl.integrations.base import PluginManager
from axolotl.utils.dict import DictDefault
from examples import EXAMPLES, validated
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from sera_plugin.config import SeraConfig, parse_block
from sera_plugin.host.checks import TRAINER
from sera_plugin.runtime.errors import SeraConfigError

EXAMPLES_MADE = int(os.environ.get("SERA_FUZZ", "300"))
BLOCKS = ("selection", "bootstrap")
KEYS = [*SeraConfig.model_fields, "fraction", "prompts", "keep", "margin", "gather", "top_p",
        "num_candidates", "pool", "temperature", "max_new_tokens", "length_penalty"]  # fmt: skip

# As people write them, or as something that writes YAML might.
PLAIN = [
    "0", "1", "2", "4", "-1", "0.0", "0.3", "0.5", "0.7", "1.0", "1.5", "-0.5", "1e-3", "1.0e-3",
    "1e400", "-1.0e+400", ".inf", "-.inf", ".nan", "0x1F", "0o17", "017", "0b11", "1_000", "1:30",
    "12:30:45", "9" * 25, "2147483647", "2147483648", "~", "null", "true", "no",
    "off", "sum", "mean", "auto", "policy", "policy_and_offline", "fixed", "previous", "2024-01-01",
    "2024-01-01T12:00:00Z", "!!binary aGVsbG8=", "!!set {a, b}", "!!set {1, 2}", "!!omap [a: 1]",
    "!!pairs [a: 1, a: 2]", "!!str 0.3", "!!float 1", "!!int '7'", "''", '""', '"0.3"', "'1'",
    '"\\ud800"', '"\\0\\e[31m\\a"', '"\\u2028\\u202e\\ufeff"', '"\\U0001F642"', "日本語",
    '"a\\nb"', "{<<: {fraction: 0.2}}", "&a [1, *a]", "&b {fraction: *b}", "[]", "{}",
    "&c 0.3", "*c", "!!python/object:os.system {}",
]  # fmt: skip
# Short names, so that a failure can be read.
HUGE = {
    "<huge number>": "1" + "0" * 5000,
    "<long text>": "'" + "x" * 10_000 + "'",
    "<deep>": "[" * 60 + "]" * 60,
}


def quoted(text: str) -> str:
    """A YAML scalar for any text, escaped as JSON would."""
    return '"' + "".join(f"\\U{ord(c):08x}" for c in text) + '"'


any_text = st.text(st.characters(), max_size=12).map(quoted)
scalars = st.one_of(
    st.sampled_from([*PLAIN, *HUGE]),
    st.integers(-(10**30), 10**30).map(str),
    st.floats(-2, 2).map(repr),
    any_text,
)
keys = st.one_of(*[st.sampled_from(KEYS)] * 6, any_text, st.sampled_from(PLAIN))


def nested(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(inner, max_size=3).map(lambda parts: f"[{', '.join(parts)}]") | mapping(inner)


def mapping(values: st.SearchStrategy[str], size: int = 4) -> st.SearchStrategy[str]:
    entries = st.lists(st.tuples(keys, values), max_size=size, unique_by=lambda entry: entry[0])
    return entries.map(lambda found: "{" + ", ".join(f"{k}: {v}" for k, v in found) + "}")


def fitting(name: str) -> st.SearchStrategy[str]:
    """Values that the key may well take."""
    # Of the shares, prompts must not be below fraction.
    share = st.floats(0.5 if name == "prompts" else 0.01, 0.49 if name == "fraction" else 0.99)
    words = {
        "margin": ["sum", "mean"],
        "pool": ["policy", "policy_and_offline"],
        "gather": ["auto", "true", "false"],
        "reference": ["fixed", "previous"],
        "length_penalty": ["auto", "0.1", "-1.0"],
        "warmup_rounds": ["1", "2"],
        "num_candidates": ["1", "4", "1024"],
        "max_new_tokens": ["1", "512"],
    }
    return st.sampled_from(words[name]) if name in words else share.map(repr)


def block(names: list[str], odd: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Known keys, most with values that fit, at times with one that is odd."""
    entry = st.sampled_from([n for n in names if n not in BLOCKS]).flatmap(
        lambda name: st.tuples(
            st.just(name), st.integers(0, 14).flatmap(lambda n: fitting(name) if n else odd)
        )
    )
    entries = st.lists(entry, max_size=4, unique_by=lambda pair: pair[0])
    return entries.map(lambda found: "{" + ", ".join(f"{k}: {v}" for k, v in found) + "}")


def models(name: str) -> list[str]:
    return list(type(getattr(SeraConfig(), name)).model_fields)


odd = st.recursive(scalars, nested, max_leaves=6)
near = st.tuples(
    block(list(SeraConfig.model_fields), odd),
    *(block(models(name), odd) for name in BLOCKS),
).map(
    lambda three: (
        f"{three[0][:-1]}{', ' if three[0] != '{}' else ''}"
        f"selection: {three[1]}, bootstrap: {three[2]}}}"
    )
)
documents = st.one_of(near, near, odd, mapping(odd), st.text(st.characters(), max_size=30))


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    """The host logs every config it reads."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(autouse=True)
def _own_plugin_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PluginManager, "_instance", None)
    monkeypatch.setattr(PluginManager, "_cfg", None)


DEMO = yaml.safe_load((EXAMPLES / "demo.yml").read_text(encoding="utf-8"))


def read(text: str) -> DictDefault | None:
    """The config as the host reads it, or None if it can't read the YAML at all."""
    for name, value in HUGE.items():
        text = text.replace(name, value)
    try:
        return DictDefault({**DEMO, **yaml.safe_load(f"sera: {text}\n")})
    # PyYAML passes on what int(), float() and chr() raise; a list within itself has no end.
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError, KeyError):
        return None


def assert_one_sentence(sentence: str) -> None:
    assert sentence.isprintable(), ascii(sentence)
    assert sentence.isascii() or set(re.sub(r"[ -~]", "", sentence)) <= set("αγ|"), sentence
    assert sentence[-1] in ".?", sentence
    assert not re.search(r"[.?!] +[A-Z]", re.sub(r"'.*'|\".*\"|\{.*\}|\[.*\]", "", sentence))
    assert "sera" in sentence
    assert len(sentence) < 500


@settings(
    max_examples=EXAMPLES_MADE,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=EXAMPLES_MADE == 300,
)
@given(documents)
@example("{selection: {keep: !!binary aGVsbG8=}}")
@example("{bootstrap: !!set {fraction, prompts}}")
@example("{selection: &a {keep: *a}}")
@example("{? [1, 2] : 3}")
@example("{2024-01-01: 1}")
@example("{null: 1}")
@example("{ensemble: <huge number>}")
@example('{"\\ud800": "\\ud800"}')
@example('{"\\U0001F642": {"\\x1f": 1}}')
@example("{to_dict: 1, items: 2, keys: 3, get: 4}")
@example("[{fraction: 0.2}]")
@example("{warmup_rounds: 2147483647}")
@example("{loss: [0]}")
@example("true")
@example("{}")
def test_a_block_is_accepted_or_refused_with_one_sentence(text: str) -> None:
    cfg = read(text)
    if cfg is None:
        event("no YAML")
        return
    try:
        checked = validated(cfg, 1)
    except SeraConfigError as error:
        event("refused")
        assert_one_sentence(str(error))
    else:
        assert checked.trainer_cls in (TRAINER, None)
        event("accepted" if checked.trainer_cls else "off")
        accepted = parse_block(
            checked.sera.to_dict() if hasattr(checked.sera, "to_dict") else checked.sera
        )
        assert isinstance(accepted, SeraConfig) == (checked.trainer_cls == TRAINER)
