"""Every example config passes the host's real schema and the plugin's own checks.

Axolotl's ``load_cfg`` asks the machine for its GPU and the hub for the base model's config. Here
the machine is described by hand instead, and the same steps are taken before that point: plugins
are registered on the raw YAML, then the host's schema, merged with ours, validates it.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest
import yaml
from axolotl.integrations.base import PluginManager
from axolotl.prompt_strategies.dpo import load as load_dpo
from axolotl.utils.dict import DictDefault
from examples import EXAMPLES, validated
from trl import import_utils

from sera_plugin.config import SeraConfig, parse_block
from sera_plugin.host.checks import TRAINER
from sera_plugin.runtime.errors import SeraConfigError

CONFIGS = {
    "demo.yml": 1,
    "llama3_sera.yml": 1,
    "llama3_sera_vllm.yml": 3,
    "llama3_sera_zero3.yml": 8,
    "mistral_sera_ipo.yml": 1,
    "qwen_sera_qlora.yml": 1,
    "smollm2_sera.yml": 1,
}
"""Config to the number of GPUs it is written for."""


@pytest.fixture(autouse=True)
def _own_plugin_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's plugin manager lives as long as the process; each test gets a fresh one. One
    example is for a machine with vLLM."""
    monkeypatch.setattr(PluginManager, "_instance", None)
    monkeypatch.setattr(PluginManager, "_cfg", None)
    monkeypatch.setattr(import_utils, "is_vllm_available", lambda: True)


def raw(name: str) -> DictDefault:
    return DictDefault(yaml.safe_load((EXAMPLES / name).read_text(encoding="utf-8")))


def test_every_example_is_tested() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("*.yml")) == sorted(CONFIGS)


@pytest.mark.parametrize(("name", "gpus"), CONFIGS.items())
def test_example_passes_the_hosts_schema(name: str, gpus: int) -> None:
    written = raw(name)
    cfg = validated(raw(name), gpus)
    assert cfg.trainer_cls == TRAINER
    assert cfg.precompute_ref_log_probs is True
    block = parse_block(cfg.sera.to_dict())
    assert block == parse_block(written.sera.to_dict())
    assert isinstance(block, SeraConfig)


@pytest.mark.parametrize(("name", "gpus"), CONFIGS.items())
def test_example_has_no_key_that_the_host_ignores(name: str, gpus: int) -> None:
    written, cfg = raw(name).to_dict(), validated(raw(name), gpus).to_dict()
    lost = sorted(set(written) - set(cfg))
    assert not lost
    for key in ("datasets", "test_datasets"):
        for before, after in zip(written.get(key, ()), cfg.get(key, ()), strict=True):
            assert before.items() <= {k: after.get(k) for k in before}.items()


@pytest.mark.parametrize("name", CONFIGS)
def test_example_names_a_dataset_type_of_the_host(name: str) -> None:
    cfg = raw(name)
    for number, dataset in enumerate(cfg.datasets):
        assert load_dpo(dataset.type, cfg, dataset_idx=number) is not None


@pytest.mark.parametrize(("name", "gpus"), CONFIGS.items())
@pytest.mark.parametrize("path", ["ensemble", "selection.keep", "bootstrap.fraction"])
def test_misspelled_key_is_refused(name: str, gpus: int, path: str) -> None:
    cfg = raw(name)
    *blocks, key = path.split(".")
    block = cfg.sera
    for part in blocks:
        block = block[part]
    block[key + "s"] = block.pop(key)
    with pytest.raises(SeraConfigError) as error:
        validated(cfg, gpus)
    assert str(error.value).startswith(f"sera.{path}s: ")
    assert f"did you mean {key}?" in str(error.value)


@pytest.mark.parametrize("name", CONFIGS)
def test_header_shows_the_launch_line(name: str) -> None:
    header = (EXAMPLES / name).read_text(encoding="utf-8").split("plugins:")[0]
    assert f"axolotl train example_configs/{name}" in header


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("make_demo")


def test_demo_pairs_are_noisy_and_apart_from_the_held_out_ones(demo: ModuleType) -> None:
    train, held_out = demo.preference_pairs()
    truth = {question.text: question for question in demo.questions()}
    for row in train + held_out:
        question = truth[row["messages"][0]["content"]]
        assert question.is_true(row["chosen"]["content"]) is not row["flipped"]
        assert question.is_true(row["rejected"]["content"]) is row["flipped"]
    share = sum(row["flipped"] for row in train) / len(train)
    assert share == pytest.approx(demo.NOISE, abs=0.05)
    assert not any(row["flipped"] for row in held_out)
    asked = [row["messages"][0]["content"] for row in train + held_out]
    assert len(set(asked)) == len(asked)
    assert demo.preference_pairs() == (train, held_out)


def test_demo_tokenizer_knows_every_word(demo: ModuleType) -> None:
    tokenizer = demo.word_tokenizer()
    for row in demo.preference_pairs()[0]:
        for text in (row["messages"][0]["content"], row["chosen"]["content"]):
            assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]
            assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize(("name", "gpus"), CONFIGS.items())
def test_example_can_be_switched_off(name: str, gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERA", "off")
    cfg = validated(raw(name), gpus)
    assert cfg.sera is False
    assert cfg.trainer_cls is None
    assert not cfg.precompute_ref_log_probs
