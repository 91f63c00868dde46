"""Every line under "Bad input": one sentence, exit code not 0, before any model is loaded.

The configs name a model folder without weights, so that a run that got as far as loading the model
would end with another message.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import assets
import pytest
from axolotl.integrations.base import load_plugin
from command_line import TRAIN_PAIRS, MakeConfig, RunCli, dataset_entry, output_dir
from datasets import Dataset
from ranks import RANKS, TORCHRUN

from sera_plugin.config import SeraConfig, parse_block
from sera_plugin.host import checks as host_checks
from sera_plugin.runtime.errors import SeraConfigError
from sera_plugin.runtime.files import check_writable
from sera_plugin.training import checks

NO_WEIGHTS = "no file named model.safetensors"
NO_SYSTEM: dict[str, Any] = {
    "chat_template": "jinja",
    "chat_template_jinja": (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
    ),
}
"""Keys for a chat template that takes no system message."""
IN_SYSTEM = {"contrast": {"prompts": [{"positive": "Be kind.", "placement": "system"}]}}
ENDING = r"\[[\d :,-]+\] \[ERROR\] \[axolotl\.sera_plugin\.runtime\.endings\] "
"""What the log puts before the sentence that a run ends with."""


def last_sentence(output: str) -> str:
    """The last line of a run, which nothing but other log lines precede."""
    assert "Traceback" not in output
    sentence = re.fullmatch(f"{ENDING}(.*)", output.strip().splitlines()[-1])
    assert sentence is not None, output[-2000:]
    return sentence[1]


def assert_one_sentence(text: str) -> None:
    assert "\n" not in text, text
    assert text[-1] in ".?", text
    assert not re.search(r"[.?!] +[A-Z]", text), text
    assert len(text) < 400, text


@pytest.fixture(scope="module")
def weightless(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "weightless"
    shutil.copytree(llama, folder)
    (folder / "model.safetensors").unlink()
    return folder


class Start(Protocol):
    def __call__(self, **changes: Any) -> Any: ...


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What Axolotl changes in a process is undone."""
    from axolotl.integrations.base import PluginManager
    from axolotl.utils.tee import close_debug_log

    # The manager of the process keeps the plugins of earlier tests.
    monkeypatch.setattr(PluginManager, "_instance", None)
    before = dict(os.environ)
    yield
    close_debug_log()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def start(host: None, config: MakeConfig, weightless: Path) -> Start:
    """Run what `axolotl train` runs, in this process."""
    from axolotl.cli.args import TrainerCliArgs
    from axolotl.cli.config import load_cfg
    from axolotl.cli.train import do_train

    def run(**changes: Any) -> None:
        path = config(**{"base_model": str(weightless), **changes})
        do_train(load_cfg(str(path)), TrainerCliArgs())

    return run


@pytest.fixture
def refused(start: Start) -> Start:
    """The sentence that refuses a config."""

    def sentence(**changes: Any) -> str:
        with pytest.raises(SeraConfigError) as caught:
            start(**changes)
        text = str(caught.value)
        assert_one_sentence(text)
        return text

    return sentence


def rows(count: int, **columns: Any) -> list[dict[str, Any]]:
    return [row | columns for row in assets.pairs(count)]


def test_a_config_without_faults_gets_as_far_as_the_model(start: Start):
    with pytest.raises(OSError, match=NO_WEIGHTS):
        start()


@pytest.mark.parametrize(
    ("block", "preset"),
    [
        (True, "contrast"),
        ({}, "default"),
        ({"bootstrap": None}, "default"),
        ({"selection": {"keep": None}}, "default"),
    ],
)
def test_a_block_without_values_means_a_preset(
    host: None, config: MakeConfig, weightless: Path, block: Any, preset: str
):
    from axolotl.cli.config import load_cfg

    cfg = load_cfg(str(config(base_model=str(weightless), sera=block)))
    assert cfg.trainer_cls == host_checks.TRAINER
    expected = parse_block({"preset": preset})
    assert expected is not None
    assert cfg.sera.to_dict() == expected.model_dump(exclude_none=True)


@pytest.mark.parametrize("changes", [{"sera": None}, {"sera": False}, {"drop": ("sera",)}])
def test_no_block_changes_nothing(
    host: None, config: MakeConfig, caplog: pytest.LogCaptureFixture, changes: dict[str, Any]
):
    from axolotl.cli.config import load_cfg

    changes = changes | {
        "num_epochs": 1,
        "group_by_length": True,
        "drop": ("seed", *changes.get("drop", ())),
    }
    cfg = load_cfg(str(config(**changes)))
    assert cfg.trainer_cls is None
    assert cfg.precompute_ref_log_probs is None
    assert "SeRA sets seed" not in caplog.text
    assert ("sera: null means off" in caplog.text) == (changes.get("sera", False) is None)


@pytest.mark.parametrize(
    ("block", "parts"),
    [
        ({"warmup_round": 2}, ["sera.warmup_round: 2", "did you mean warmup_rounds?"]),
        (
            {"bootstrap": {"fracion": 0.2}},
            ["sera.bootstrap.fracion: 0.2", "did you mean fraction?"],
        ),
        ({"keep": 0.5}, ["sera.keep: 0.5", "did you mean sera.selection.keep?"]),
        ({"selection": {"zzz": 1}}, ["sera.selection.zzz: 1", "source, external, contrast."]),
    ],
)
def test_unknown_keys(refused: Start, block: dict[str, Any], parts: list[str]):
    sentence = refused(sera=block)
    assert all(part in sentence for part in parts), sentence


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("warmup_rounds", 0, "1 or more"),
        ("warmup_rounds", 1.5, "a whole number from 0"),
        ("ensemble", 1.2, "from 0 up to 1"),
        ("ensemble", -0.1, "from 0 up to 1"),
        ("reference", "last", "fixed or previous"),
        ("selection.keep", 0, "a share in (0, 1]"),
        ("selection.keep", -0.5, "a share in (0, 1]"),
        ("selection.keep", 1.5, "a share in (0, 1]"),
        ("selection.keep", float("nan"), "a share in (0, 1]"),
        ("selection.margin", "average", "sum or mean"),
        ("bootstrap.fraction", 1.1, "from 0 up to 1"),
        ("bootstrap.num_candidates", 0, "a whole number from 1"),
        ("bootstrap.prompts", 0, "above 0"),
        ("bootstrap.prompts", 0.1, "at least as large"),
        ("bootstrap.pool", "offline", "policy_and_offline or policy"),
        ("bootstrap.temperature", -1, "from 0"),
        ("bootstrap.top_p", 0, "above 0"),
        ("bootstrap.max_new_tokens", 0, "a whole number from 1"),
        ("bootstrap.length_penalty", "large", "a number or auto"),
        ("bootstrap.ensemble", "maybe", "true or false"),
    ],
)
def test_numbers_and_words_out_of_range(refused: Start, key: str, value: Any, allowed: str):
    *blocks, name = key.split(".")
    block = {name: value}
    for outer in reversed(blocks):
        block = {outer: block}
    sentence = refused(sera=block)
    assert f"sera.{key}" in sentence
    assert str(value) in sentence
    assert allowed in sentence


@pytest.mark.parametrize("value", ["yes please", 3, ["keep"]])
def test_a_block_that_is_no_block(refused: Start, value: Any):
    sentence = refused(sera=value)
    assert sentence == f"sera: {value!r} is not allowed; write a block of keys, true or false."


def test_more_pairs_to_keep_than_there_are(refused: Start):
    sentence = refused(sera={"selection": {"keep": TRAIN_PAIRS + 1}})
    assert f"sera.selection.keep: {TRAIN_PAIRS + 1}" in sentence
    assert f"the {TRAIN_PAIRS} pairs" in sentence
    assert "allowed is a share in (0, 1] or a number up to that" in sentence


@pytest.mark.parametrize("value", ["kto", "orpo", "simpo", "grpo"])
def test_wrong_rl(refused: Start, value: str):
    assert refused(rl=value) == (f"rl: {value} can't be used with sera; allowed are dpo and ipo.")


def test_absent_rl(refused: Start):
    assert refused(drop=("rl",)).startswith("rl: null can't be used with sera")


def test_a_trainer_of_the_user(refused: Start):
    sentence = refused(trainer_cls="my_package.MyTrainer")
    assert "trainer_cls: my_package.MyTrainer" in sentence
    assert host_checks.TRAINER in sentence


def test_naming_our_own_trainer_is_allowed(start: Start):
    with pytest.raises(OSError, match=NO_WEIGHTS):
        start(trainer_cls=host_checks.TRAINER)


@pytest.mark.parametrize("value", [2.5, 1, 0, -1, "3", True, float("inf"), float("nan")])
def test_epochs_not_whole_or_too_few(refused: Start, value: Any):
    sentence = refused(num_epochs=value)
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    assert sentence.startswith(f"num_epochs: {shown} is not allowed")
    assert "a whole number above sera.warmup_rounds: 1" in sentence


def test_epochs_not_above_warmup(refused: Start):
    sentence = refused(num_epochs=3, sera={"warmup_rounds": 3})
    assert sentence.startswith("num_epochs: 3 is not allowed")
    assert "above sera.warmup_rounds: 3" in sentence


def test_no_epochs_is_one_epoch(refused: Start):
    assert refused(drop=("num_epochs",)).startswith("num_epochs: 1 is not allowed")


IN_THE_WAY: dict[str, Any] = {
    "dpo_use_liger_kernel": True,
    "use_liger_kernel": True,
    "streaming": True,
    "pretraining_dataset": [{"path": "somewhere"}],
    "processor_type": "AutoProcessor",
    "is_multimodal": True,
    "group_by_length": True,
    "curriculum_sampling": True,
    "sample_packing": True,
    "auto_find_batch_size": True,
    "relora": True,
    "sequence_parallel_degree": 2,
    "context_parallel_size": 2,
    "tensor_parallel_size": 2,
}


def test_every_unsupported_key_has_an_example():
    assert [key for key, *_ in host_checks._UNSUPPORTED] == list(IN_THE_WAY)


@pytest.mark.parametrize("key", IN_THE_WAY)
def test_options_that_the_method_cant_honour(refused: Start, key: str):
    sentence = refused(**{key: IN_THE_WAY[key]})
    shown = "true" if IN_THE_WAY[key] is True else str(IN_THE_WAY[key])
    assert sentence.startswith(f"{key}: {shown} can't be used with sera because ")
    assert sentence.endswith("; remove the key.")


def test_the_same_options_switched_off_are_fine(start: Start):
    off = {key: 1 if value == 2 else False for key, value in IN_THE_WAY.items()}
    # Axolotl itself refuses `false` for these.
    others = {"pretraining_dataset": None, "processor_type": None, "sequence_parallel_degree": None}
    with pytest.raises(OSError, match=NO_WEIGHTS):
        start(**(off | others))


def test_reference_log_probs_not_cached(refused: Start):
    sentence = refused(precompute_ref_log_probs=False)
    assert sentence.startswith("precompute_ref_log_probs: false can't be used")
    assert sentence.endswith("remove the key or write true.")


def test_vision_dataset(refused: Start, tmp_path: Path):
    data = assets.write_jsonl(tmp_path / "vision.jsonl", rows(16, images=["a.png"]))
    sentence = refused(datasets=[dataset_entry(data)])
    assert sentence.startswith("datasets: the column images makes this a vision dataset")


def test_iterable_dataset():
    dataset = Dataset.from_list(rows(8)).to_iterable_dataset()
    with pytest.raises(SeraConfigError) as caught:
        checks.check_dataset({}, SeraConfig(), dataset)
    assert_one_sentence(str(caught.value))
    assert str(caught.value).startswith("streaming: true can't be used with sera")


@pytest.mark.parametrize("content", ["", "\n \n"])
@pytest.mark.parametrize("key", ["datasets", "test_datasets"])
def test_empty_file(refused: Start, tmp_path: Path, content: str, key: str):
    data = tmp_path / "empty.jsonl"
    data.write_text(content)
    sentence = refused(**{key: [dataset_entry(data)]})
    assert sentence.startswith("datasets: no rows in ")
    assert str(data) in sentence
    assert sentence.endswith("sera needs 2 or more pairs.")


def test_empty_table(refused: Start, tmp_path: Path):
    data = tmp_path / "empty.parquet"
    Dataset.from_list(rows(2)).select([]).to_parquet(data)
    sentence = refused(datasets=[dataset_entry(data) | {"ds_type": "parquet"}])
    assert sentence.startswith(f"datasets: no rows in {data}")


def test_one_row(refused: Start, tmp_path: Path):
    data = assets.write_jsonl(tmp_path / "one.jsonl", rows(1))
    sentence = refused(datasets=[dataset_entry(data)])
    assert sentence.startswith("datasets: 1 pair is left to train on")
    assert sentence.endswith("sera needs 2 or more.")


def test_validation_split_that_takes_everything(refused: Start):
    sentence = refused(val_set_size=0.999, drop=("test_datasets",))
    assert sentence.startswith("val_set_size: 0.999 leaves no pairs to train on")


def test_dataset_smaller_than_a_batch(refused: Start, tmp_path: Path):
    data = assets.write_jsonl(tmp_path / "seven.jsonl", rows(7))
    sentence = refused(datasets=[dataset_entry(data)])
    assert sentence.startswith("datasets: 7 pairs are fewer than one batch of 8")
    assert "micro_batch_size" in sentence


def test_reviewed_round_smaller_than_a_batch_that_is_dropped(refused: Start):
    block = {"selection": {"keep": 2}, "bootstrap": {"fraction": 0}}
    sentence = refused(sera=block, dataloader_drop_last=True)
    assert sentence.startswith("dataloader_drop_last: true can't be used here")
    assert "a round of 2 pairs" in sentence


def test_no_pair_fits(refused: Start):
    sentence = refused(sequence_len=4)
    assert "0 pairs are left" in sentence
    assert "sequence_len: 4" in sentence


LOSSDIFF: dict[str, Any] = {"selection": {"rule": "lossdiff_irm"}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sera": LOSSDIFF, "drop": ("test_datasets",)}, "sera.selection.rule: lossdiff_irm needs"),
        ({"sera": LOSSDIFF, "dpo_loss_type": ["hinge"]}, "dpo_loss_type: ['hinge'] can't be used"),
        (
            {"sera": LOSSDIFF, "deepspeed": {"zero_optimization": {"stage": 1}}},
            "deepspeed: {'zero_optimization': {'stage': 1}} can't be used with sera.selection.rule",
        ),
        (
            {"sera": {"selection": {"rule": "external"}}},
            "sera.selection.external.chosen: score_chosen is no column of the training pairs",
        ),
        (
            {"sera": {"preset": "contrast", "selection": {"trusted": "checked"}}},
            "sera.selection.trusted: checked is no column of the training pairs, which have",
        ),
        (
            {"sera": {"selection": {"rule": "nowhere:at_all"}}},
            "sera.selection.rule: nowhere:at_all can't be imported",
        ),
        (
            {"sera": {"selection": {"keep": [0.9, 0.8, 0.7]}}},
            "sera.selection.keep: [0.9, 0.8, 0.7] has 3 entries for 2 reviewed rounds",
        ),
        (
            {"sera": {"bootstrap": {"judge": "nowhere:at_all"}}},
            "sera.bootstrap.judge: nowhere:at_all can't be imported",
        ),
        (
            {"sera": {"bootstrap": {"judge": "/nowhere/at/all"}}},
            "sera.bootstrap.judge: /nowhere/at/all holds no model",
        ),
    ],
)
def test_rule_or_judge_that_can_not_work(
    refused: Start, changes: dict[str, Any], words: str
) -> None:
    assert refused(**changes).startswith(words)


@pytest.mark.parametrize(
    ("refine", "words"),
    [
        ({"weight": -0.1}, "sera.refine.weight: -0.1 is not allowed"),
        ({"prompt": "nowhere.txt"}, "sera.refine.prompt: 'nowhere.txt' is not a file"),
        ({"prompt": " "}, "sera.refine.prompt: ' ' is empty"),
        (
            {"prompt": "be kind " * 40},
            "sequence_len: 128 leaves no room for the prompt of sera.refine",
        ),
    ],
)
def test_bad_refinement(refused: Start, refine: dict[str, Any], words: str):
    assert refused(sera={"refine": refine}).startswith(words)


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"loss": [{"entropy": {"alpha": 0}}]}, "sera.loss.entropy.alpha: 0 is not allowed"),
        ({"loss": [{"anchor": {"alpha": -1}}]}, "sera.loss.anchor.alpha: -1 is not allowed"),
        ({"loss": ["offset"]}, "sera.loss.offset needs scores, and sera.selection.external.chosen"),
        ({"loss": ["explore"], "bootstrap": False}, "sera.loss.explore needs answers of the"),
        (
            {"loss": [{"posterior": {"signal": "contrst"}}]},
            "sera.loss.posterior.signal: contrst is not measured; allowed are margin, and more",
        ),
        (
            {"loss": [{"uncertainty": {"spread": "column", "column": "sprd"}}]},
            "sera.loss.uncertainty.column: sprd is no column of the training pairs, which have",
        ),
        ({"loss": ["nowhere:at_all"]}, "sera.loss: nowhere:at_all can't be imported"),
    ],
)
def test_bad_terms_of_the_loss(refused: Start, block: dict[str, Any], words: str):
    assert refused(sera=block).startswith(words)


@pytest.mark.parametrize("name", ["entropy", "anchor", "posterior", "uncertainty", "explore"])
def test_terms_beside_a_loss_without_a_base(refused: Start, name: str):
    sentence = refused(dpo_loss_type=["sigmoid_norm"], sera={"loss": [name]})
    words = f"dpo_loss_type: ['sigmoid_norm'] can't be used with sera.loss: {name}, which"
    assert sentence.startswith(words)
    assert sentence.endswith("allowed are sigmoid, ipo, hinge and robust.")


def test_empty_file_of_the_quality_prompt(refused: Start, tmp_path: Path):
    (tmp_path / "p.txt").write_text("\n")
    sentence = refused(sera={"refine": {"prompt": str(tmp_path / "p.txt")}})
    assert sentence.endswith("p.txt' is an empty file; write p into it.")


def test_chat_template_without_a_system_role(refused: Start, start: Start):
    refine = {"prompt": "be kind"}
    sentence = refused(**NO_SYSTEM, sera={"refine": refine | {"placement": "system"}})
    assert sentence == (
        "sera.refine.placement: system can't be used because the chat template takes no system "
        "message; set it to user_prefix."
    )
    with pytest.raises(OSError, match=NO_WEIGHTS):
        start(**NO_SYSTEM, sera={"bootstrap": False, "refine": refine})


@pytest.mark.parametrize("loss", [["hinge"], ["sigmoid", "sft"], ["sigmoid_norm"]])
def test_refinement_of_another_loss(refused: Start, loss: list[str]):
    more = {"dpo_loss_weights": [1.0, 1.0]} if len(loss) > 1 else {}
    sentence = refused(dpo_loss_type=loss, **more, sera={"refine": {"prompt": "be kind"}})
    assert sentence.startswith(f"dpo_loss_type: {loss} can't be used with sera.refine")


def test_refinement_switched_off_is_not_looked_at(start: Start):
    with pytest.raises(OSError, match=NO_WEIGHTS):
        start(sera={"refine": {"weight": 0, "prompt": "nowhere.txt"}}, dpo_loss_type=["hinge"])


def test_one_epoch_without_reviews(start: Start, refused: Start):
    off: dict[str, Any] = {"selection": False, "bootstrap": False}
    with pytest.raises(OSError, match=NO_WEIGHTS):
        start(num_epochs=1, sera=off)
    assert refused(num_epochs=0.5, sera=off) == (
        "num_epochs: 0.5 is not allowed; a round is an epoch, so it must be a whole number from 1."
    )


def test_prompts_that_leave_no_room(refused: Start, start: Start, weightless: Path, tmp_path: Path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(weightless)
    prompt = "apple river stone cloud"
    length = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    # One token each, so that Axolotl keeps the pairs: prompt and answer just fit.
    pairs = [{"prompt": prompt, "chosen": "a", "rejected": "b"}] * 16
    data = assets.write_jsonl(tmp_path / "tight.jsonl", pairs)
    form = {
        "field_prompt": "prompt",
        "field_chosen": "chosen",
        "field_rejected": "rejected",
        "prompt_format": "{prompt}",
        "chosen_format": "{chosen}",
        "rejected_format": "{rejected}",
    }
    entry = dataset_entry(data) | {"type": form}
    del entry["field_messages"]
    changes = {
        "datasets": [entry],
        "drop": ("test_datasets", "evals_per_epoch"),
        "sequence_len": length + 1,
    }
    sentence = refused(**changes)
    assert sentence.startswith(f"sequence_len: {length + 1} leaves no room for an answer")
    assert f"the shortest prompt has {length} tokens" in sentence
    with pytest.raises(OSError, match=NO_WEIGHTS):
        start(**changes, sera={"bootstrap": {"fraction": 0}})


def test_tokenizer_without_eos(refused: Start, weightless: Path, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(weightless, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings.pop("eos_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    sentence = refused(base_model=str(folder))
    assert sentence.startswith("special_tokens.eos_token: the tokenizer has no EOS token")


ZERO_3 = {"zero_optimization": {"stage": 3}}


@pytest.mark.parametrize(
    ("block", "key"),
    [
        ({"reference": "previous"}, "sera.reference: previous"),
        ({"bootstrap": {"ensemble": True}}, "sera.bootstrap.ensemble: true"),
    ],
)
@pytest.mark.parametrize(
    ("host", "name"),
    [
        ({"deepspeed": ZERO_3}, "DeepSpeed ZeRO-3"),
        ({"deepspeed": "file"}, "DeepSpeed ZeRO-3"),
        ({"fsdp": ["full_shard"]}, "FSDP"),
        ({"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": True}}, "FSDP"),
    ],
)
def test_keeping_an_earlier_policy_of_a_sharded_model(
    refused: Start, tmp_path: Path, block: dict, key: str, host: dict[str, Any], name: str
):
    if host.get("deepspeed") == "file":
        path = tmp_path / "zero3.json"
        path.write_text(json.dumps(ZERO_3))
        host = {"deepspeed": str(path)}
    sentence = refused(sera=block, **host)
    assert sentence.startswith(f"{key} can't be used under {name}")
    assert sentence.endswith("allowed are ZeRO-1, ZeRO-2 and DDP.")


@pytest.mark.parametrize("stage", [1, 2])
def test_keeping_an_earlier_policy_under_lower_stages(stage: int):
    cfg = {"rl": "dpo", "num_epochs": 2, "deepspeed": {"zero_optimization": {"stage": stage}}}
    for config in (SeraConfig(reference="previous"), SeraConfig(bootstrap={"ensemble": True})):
        checks.check_config(cfg, config)


def test_two_earlier_policies_at_once(refused: Start):
    sentence = refused(sera={"reference": "previous", "bootstrap": {"ensemble": True}})
    assert "sera.bootstrap.ensemble: true" in sentence
    assert "sera.reference: previous" in sentence


def test_switch_that_is_neither_on_nor_off(refused: Start, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SERA", "of")
    assert refused().startswith("SERA: 'of' in the environment is not allowed; write SERA=off")


def test_missing_seed_is_no_error(start: Start, caplog: pytest.LogCaptureFixture):
    with pytest.raises(OSError, match=NO_WEIGHTS):
        start(drop=("seed",))
    assert "seed is not set; SeRA sets seed: 42" in caplog.text
    assert '"seed": 42' in caplog.text


@pytest.mark.parametrize(("asked", "total"), [(5, 5), (1000, 3 * TRAIN_PAIRS // 8)])
def test_max_steps_is_no_error(host: None, config: MakeConfig, asked: int, total: int):
    from axolotl.cli.config import load_cfg
    from axolotl.integrations.base import PluginManager

    cfg = load_cfg(str(config(max_steps=asked)))
    assert PluginManager.get_instance().load_datasets(cfg).total_num_steps == total


@pytest.mark.parametrize(("asked", "said"), [(8, True), (9, False)])
def test_a_run_that_never_reviews_is_warned_of(
    host: None, config: MakeConfig, caplog: pytest.LogCaptureFixture, asked: int, said: bool
):
    from axolotl.cli.config import load_cfg
    from axolotl.integrations.base import PluginManager

    cfg = load_cfg(str(config(max_steps=asked)))
    PluginManager.get_instance().load_datasets(cfg)
    sentence = (
        "max_steps: 8 ends the run before its first review, which comes after 8 updates "
        "(sera.warmup_rounds: 1); this run is plain DPO."
    )
    assert (sentence in caplog.text) == said


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"dpo_label_smoothing": 0.1}, "dpo_label_smoothing: 0.1 has no effect, because TRL's"),
        ({"dpo_label_smoothing": 0.1, "dpo_loss_type": ["robust"]}, ""),
        ({"lora_model_dir": "a", "adapter": "lora"}, "lora_model_dir: a gives no weights to"),
        ({"early_stopping_patience": 3}, "early_stopping_patience: 3 has no effect on a DPO run"),
    ],
)
def test_keys_without_effect_are_named(keys: dict[str, Any], sentence: str):
    found = host_checks.without_effect({"rl": "dpo"} | keys)
    assert len(found) == bool(sentence)
    assert all(one.startswith(sentence) for one in found)
    for one in found:
        assert_one_sentence(one)


def test_a_misspelt_plugin_gets_a_hint():
    with pytest.raises(AttributeError, match=r"SeraPlugin; did you mean sera_plugin\.SeRAPlugin\?"):
        load_plugin("sera_plugin.SeraPlugin")
    with pytest.raises(AttributeError, match="module 'sera_plugin' has no attribute 'Plugin'"):
        load_plugin("sera_plugin.Plugin")


@pytest.mark.cli
def test_the_trainer_without_the_plugin_says_so(config: MakeConfig, run_cli: RunCli):
    path = config(trainer_cls="sera_plugin.trainer.SeRATrainer", drop=("plugins", "sera"))
    output = run_cli("train", path, "--launcher", "python", expect_failure=True)
    last = last_sentence(output)
    assert last.startswith("trainer_cls: sera_plugin.trainer.SeRATrainer can't train")
    assert "list sera_plugin.SeRAPlugin under plugins:" in last


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "many"])
def test_max_steps_out_of_range(refused: Start, value: Any):
    sentence = refused(max_steps=value)
    assert sentence.startswith(f"max_steps: {str(value).lower()} is not allowed")
    assert "a whole number from 1" in sentence


@pytest.mark.cli
@pytest.mark.parametrize("module", ["sera_plugin.host.checks", "sera_plugin.review.metrics"])
def test_missing_dependency_never_trains_plain_dpo(
    config: MakeConfig, real_cli: RunCli, tmp_path: Path, module: str
):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        "            raise ImportError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
    )
    path = config()
    output = real_cli(
        "train",
        path,
        "--launcher",
        "python",
        env={"PYTHONPATH": str(tmp_path)},
        expect_failure=True,
    )
    last = last_sentence(output)
    assert_one_sentence(last)
    assert f"{module} can't be imported" in last
    assert "pip install sera_plugin" in last
    assert "'loss'" not in output
    assert not (output_dir(path) / "model.safetensors").exists()


@pytest.mark.cli
@pytest.mark.parametrize(
    ("changes", "start_of_sentence"),
    [
        ({"sera": {"ensembel": 0.3}}, "sera.ensembel: 0.3 is not a key of SeRA; did you mean"),
        ({"val_set_size": 0.999, "drop": ("test_datasets",)}, "val_set_size: 0.999 leaves no"),
        (
            {"sera": {"preset": "contrast"}, "dpo_loss_type": ["sigmoid_norm"]},
            "dpo_loss_type: ['sigmoid_norm'] can't be used with sera.selection.use: weight, which "
            "changes the loss of each pair; allowed are sigmoid, ipo, hinge and robust.",
        ),
        (
            {"sera": {"preset": "contrast", "selection": IN_SYSTEM}, **NO_SYSTEM},
            "sera.selection.contrast.prompts.placement: system can't be used because the chat "
            "template takes no system message; set it to user_prefix.",
        ),
        (
            {"sera": {"bootstrap": {"judge": "contrast"}, "selection": IN_SYSTEM}, **NO_SYSTEM},
            "sera.selection.contrast.prompts.placement: system can't be used because the chat",
        ),
        (
            {"sera": {"bootstrap": {"rejected": "reference", "sampler": "policy"}}},
            "sera.bootstrap.sampler: policy can't be used with sera.bootstrap.rejected: reference",
        ),
    ],
)
def test_the_command_line_ends_with_the_sentence(
    config: MakeConfig, run_cli: RunCli, weightless: Path, changes: dict, start_of_sentence: str
):
    path = config(**{"base_model": str(weightless), **changes})
    output = run_cli("train", path, "--launcher", "python", expect_failure=True)
    sentence = last_sentence(output)
    assert sentence.startswith(start_of_sentence)
    assert_one_sentence(sentence)
    assert NO_WEIGHTS not in output


@pytest.mark.cli
def test_several_ranks_end_with_the_sentence_of_one(config: MakeConfig, run_cli: RunCli):
    sentence = "sera.ensembel: 0.3 is not a key of SeRA; did you mean ensemble?"
    path = config(sera={"ensembel": 0.3})
    output = run_cli("train", path, *TORCHRUN, env=RANKS, expect_failure=True)
    before, _, table = output.partition("ChildFailedError")
    assert len(re.findall(f"{ENDING}{re.escape(sentence)}", before)) == 1
    assert before.count(sentence) == 1
    # What torchrun makes of a rank's failure ends with the sentence, too.
    *_, last, border = table.strip().splitlines()
    assert last == f"  traceback : {sentence}"
    assert not border.strip("=")
    assert "sera_plugin/config/parsing.py" not in output


@pytest.mark.cli
def test_the_command_of_the_plugin_ends_with_the_sentence_under_accelerate_too(
    config: MakeConfig, real_cli: RunCli
):
    path = config(sera={"ensembel": 0.3})
    output = real_cli("sera", "train", path, expect_failure=True)
    assert last_sentence(output) == (
        "sera.ensembel: 0.3 is not a key of SeRA; did you mean ensemble?"
    )


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("file/out", "is not a folder"),
        ("file", "is not a folder"),
        ("link/out", "is not a folder"),
        ("/proc/sys/out", ""),
        ("taken", "sera is not a folder"),
        ("a\0b", "null"),
    ],
)
def test_output_that_cant_be_written(refused: Start, tmp_path: Path, place: str, why: str):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/sera").write_text("in the way")
    folder = str(tmp_path / place)
    before = sorted(tmp_path.iterdir())
    sentence = refused(output_dir=folder)
    assert sentence.startswith(f"output_dir: {folder!a} can't be written (")
    assert why in sentence
    assert sorted(tmp_path.iterdir()) == before


def test_checking_the_output_leaves_nothing(tmp_path: Path):
    check_writable(tmp_path / "a/b/sera")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("\\ud800", "surrogate"),
        ("\\udfff x", "surrogate"),
        ('"', "JSON parse error"),
        ("\x01", "JSON parse error"),
    ],
    ids=["high", "low", "quote", "control"],
)
def test_data_that_is_no_text(refused: Start, tmp_path: Path, text: str, why: str):
    data = tmp_path / "train.jsonl"
    good = "".join(json.dumps(row) + "\n" for row in rows(9))
    bad = json.dumps(rows(1)[0]).replace('"content": "', f'"content": "{text}', 1)
    data.write_text(f"{good}{bad}\n{good}")
    sentence = refused(datasets=[dataset_entry(data)])
    assert sentence.startswith(f"datasets: {data}")
    assert why in sentence
    assert ("a lone surrogate is not text" in sentence) == (why == "surrogate")


@pytest.mark.parametrize(("name", "length"), [("data-*.arrow", -100), ("state.json", 5)])
def test_prepared_data_that_cant_be_read(start: Start, tmp_path: Path, name: str, length: int):
    changes = {
        "dataset_prepared_path": str(tmp_path / "prepared"),
        "drop": ("test_datasets", "evals_per_epoch"),
    }
    with pytest.raises(OSError, match=NO_WEIGHTS):
        start(**changes)
    (path,) = (tmp_path / "prepared").glob(f"*/{name}")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(SeraConfigError) as caught:
        start(**changes)
    sentence = str(caught.value)
    assert_one_sentence(sentence)
    assert sentence.startswith(f"dataset_prepared_path: {path.parent} can't be read (")
    assert sentence.endswith("delete it and the data is prepared again.")


@pytest.mark.cli
def test_an_audit_without_weights_is_refused_with_a_sentence(
    config: MakeConfig, run_cli: RunCli, weightless: Path, llama: Path, tmp_path: Path
):
    path = config(base_model=str(weightless))
    args = ("--policy", llama, "--out", tmp_path / "out")
    output = run_cli("sera", "audit", path, *args, expect_failure=True)
    assert "Traceback" not in output
    last = output.strip().splitlines()[-1]
    assert last.startswith(f"Error: base_model: {weightless}: Axolotl can't use it (OSError: ")


@pytest.mark.cli
@pytest.mark.parametrize(
    ("changes", "column"),
    [
        ({"base_model": None}, None),
        ({"datasets": "pairs.jsonl"}, None),
        ({"plugins": 5}, None),
        ({}, {}),
        ({}, {"prompt": None}),
        ({}, {"prompt": ["a", "list"]}),
    ],
)
def test_commands_refuse_foreign_configs_and_data_with_a_sentence(
    config: MakeConfig, run_cli: RunCli, llama: Path, tmp_path: Path, changes: dict, column: Any
):
    if column is not None:
        pairs = [{"chosen": f"{n} good", "rejected": "bad"} | column for n in range(24)]
        data = assets.write_jsonl(tmp_path / "pairs.jsonl", pairs)
        changes = {"datasets": [{"path": str(data), "ds_type": "json", "split": "train"}]}
    path = config(**changes)
    for command in (("plan", path), ("audit", path, "--policy", llama, "--out", tmp_path / "out")):
        output = run_cli("sera", *command, expect_failure=True)
        assert "Traceback" not in output
        assert output.strip().splitlines()[-1].startswith("Error: ")
