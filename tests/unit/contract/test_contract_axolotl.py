"""What Axolotl loads, builds and hands to its plugins."""

import dataclasses
import inspect

import axolotl.cli.config
import axolotl.cli.inference
import axolotl.cli.train
import axolotl.common.datasets
import axolotl.core.builders.base
import axolotl.core.builders.rl
import axolotl.loaders
import axolotl.utils.config
import pytest
from axolotl.core.trainers.dpo import DPOStrategy
from axolotl.core.trainers.dpo.trainer import AxolotlDPOTrainer
from axolotl.integrations.base import BasePlugin, PluginManager
from axolotl.utils.chat_templates import extract_chat_template_args, get_chat_template
from axolotl.utils.dict import DictDefault
from host_source import (
    assert_names,
    assert_parts,
    breaks,
    calls,
    found,
    in_order,
    names,
    parts_of,
    required,
    text_of,
)
from transformers import AutoModelForCausalLM

from sera_plugin.host.models import plugin_config
from sera_plugin.host.round_trainer import RoundTrainer

pytestmark = pytest.mark.contract

BUILDER = axolotl.core.builders.rl.HFRLTrainerBuilder
TRAINER = "axolotl.core.trainers.dpo.trainer.AxolotlDPOTrainer"
MANAGER = "axolotl.integrations.base.PluginManager"
PAIRS = "axolotl.common.datasets.load_preference_datasets"


def test_axolotls_training_step_collects_garbage():
    assert calls(AxolotlDPOTrainer.training_step, "collect"), (
        "AxolotlDPOTrainer.training_step no longer calls gc.collect, so gc.freeze in "
        "RoundTrainer._prepare_for_training can go"
    )


def test_the_rl_builder_honours_trainer_cls():
    builder = object.__new__(BUILDER)
    model, reference = object(), object()
    builder.cfg = DictDefault(rl="dpo", trainer_cls="collections.OrderedDict")
    builder.cfg.rl = axolotl.core.builders.rl.RLType.DPO
    builder.model, builder.model_ref = model, reference
    found, positional = builder._get_trainer_cls({})
    assert found.__name__ == "OrderedDict", "HFRLTrainerBuilder no longer honours cfg.trainer_cls"
    assert positional == [model, reference], (
        "HFRLTrainerBuilder no longer hands the model and the reference to a trainer_cls"
    )


def test_the_rl_builder_drops_the_model_for_a_plugins_trainer():
    assert "trainer_cls_args = []" in parts_of(BUILDER._get_trainer_cls), (
        "HFRLTrainerBuilder may now hand the model to a plugin's get_trainer_cls; plugin.py could "
        "use that in the place of trainer_cls"
    )


def test_axolotl_builds_dpo_and_ipo_with_the_class_that_we_extend():
    assert DPOStrategy.get_trainer_class() is AxolotlDPOTrainer, breaks(TRAINER)
    assert issubclass(RoundTrainer, AxolotlDPOTrainer)


def test_axolotl_always_passes_max_steps():
    builder = axolotl.core.builders.base.TrainerBuilderBase
    functions = [function for _, function in inspect.getmembers(builder, inspect.isfunction)]
    wanted = "training_args_kwargs['max_steps'] = self.cfg.max_steps or total_num_steps or -1"
    assert any(wanted in text_of(function) for function in functions), (
        "axolotl.core.builders.base sets max_steps in another way; look at "
        "RoundTrainer.set_initial_training_values and SeRAPlugin.load_datasets"
    )


def test_axolotl_hands_on_no_key_that_changes_what_a_log_ratio_is():
    source = text_of(DPOStrategy.set_training_args_kwargs)
    for key in ("f_divergence_type", "ld_alpha"):
        assert key not in source, f"Axolotl sets {key} now, which refinement doesn't know"


def test_axolotl_inference_takes_rl_away_and_says_so():
    assert "load_cfg(config, inference=True, rl=None, **kwargs)" in text_of(
        axolotl.cli.inference.do_cli
    ), "axolotl inference loads its config in another way; look at SeRAPlugin.register"


def test_do_train_asks_the_plugins_for_the_datasets_first():
    steps = ["load_datasets", "load_preference_datasets_fn", "train_fn", "post_train_unload"]
    assert in_order(axolotl.cli.train.do_train, *steps) == steps, (
        "axolotl.cli.train.do_train no longer calls the plugins in this order; look at SeRAPlugin"
    )
    assert names(PluginManager.load_datasets) == names(BasePlugin.load_datasets), (
        "PluginManager.load_datasets passes other arguments to plugins"
    )
    assert names(BasePlugin.load_datasets) == ["cfg", "preprocess"], (
        "BasePlugin.load_datasets has other parameters; look at SeRAPlugin.load_datasets"
    )


def test_plugins_are_registered_with_the_raw_config():
    assert names(BasePlugin.register) == ["cfg"], "look at SeRAPlugin.register"
    assert names(BasePlugin.get_input_args) == [], "look at SeRAPlugin.get_input_args"


def test_plugin_manager_hands_out_the_config():
    manager = PluginManager.get_instance()
    before = manager.cfg
    try:
        manager.cfg = DictDefault(sera=True)
        assert plugin_config().sera is True, breaks(MANAGER)
    finally:
        manager.cfg = before
    assert PluginManager.get_instance() is manager, breaks(MANAGER)


def test_common_datasets_loads_preference_data_by_keyword():
    load = found(PAIRS)
    kind = inspect.signature(load).parameters["cfg"].kind
    assert kind is inspect.Parameter.KEYWORD_ONLY, breaks(PAIRS)
    assert required(load) == ["cfg"], breaks(PAIRS)
    fields = [f.name for f in dataclasses.fields(axolotl.common.datasets.TrainDatasetMeta)]
    assert fields == ["train_dataset", "eval_dataset", "total_num_steps"], (
        "axolotl.common.datasets.TrainDatasetMeta has other fields; look at SeRAPlugin"
    )


def test_load_tokenizer_takes_the_config():
    symbol = "axolotl.loaders.load_tokenizer"
    assert required(found(symbol)) == ["cfg"], breaks(symbol)


def test_the_modules_of_lora_target_linear_are_named_without_the_head(llama):
    symbol = "axolotl.loaders.adapter.find_all_linear_names"
    names = found(symbol)(AutoModelForCausalLM.from_pretrained(llama))
    layers = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert set(names) == layers, breaks(symbol)


def test_axolotls_chat_templates_are_chosen_as_we_do():
    module = "axolotl.utils.chat_templates"
    assert_names(f"{module}.extract_chat_template_args", ["cfg", "ds_cfg"])
    assert_names(f"{module}.get_chat_template", ["user_choice", "jinja_template", "tokenizer"])
    assert extract_chat_template_args(cfg={}) == ("tokenizer_default", None), breaks(
        f"{module}.extract_chat_template_args"
    )
    assert "{%" in get_chat_template("chatml"), breaks(f"{module}.get_chat_template")


def test_a_config_is_validated_in_the_steps_that_we_copied():
    symbol = "axolotl.utils.config.validate_config"
    steps = ["prepare_plugins", "validate_config", "normalize_config", "plugin_set_cfg"]
    assert in_order(axolotl.cli.config.load_cfg, *steps) == steps, breaks(symbol)
    assert_names(symbol, ["cfg", "capabilities", "env_capabilities"])
    for name in ("prepare_plugins", "plugin_set_cfg"):
        assert_names(f"axolotl.cli.config.{name}", ["cfg"])
    assert required(axolotl.utils.config.normalize_config) == ["cfg"], breaks(
        "axolotl.utils.config.normalize_config"
    )


def test_a_reference_model_is_loaded_without_the_configs_adapter():
    symbol = "axolotl.loaders.ModelLoader"
    loader = axolotl.loaders.ModelLoader
    assert {"cfg", "tokenizer", "reference_model"} <= set(names(loader.__init__)), breaks(symbol)
    assert_parts(loader.__init__, symbol, "self.reference_model: bool = reference_model")
