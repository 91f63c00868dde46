"""What ``sera_plugin.host`` relies on in Axolotl, TRL, transformers and accelerate.

A failure here means that the host has changed: read the symbol that the message names and adapt
``sera_plugin/host/`` before anything else is changed.
"""

import ast
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import inspect
import re
import textwrap
from pathlib import Path

import axolotl.cli.train
import axolotl.common.datasets
import axolotl.core.builders.base
import axolotl.core.builders.rl
import pytest
import torch
import transformers
import trl
import trl.distributed
import trl.trainer.dpo_trainer
from accelerate import Accelerator
from axolotl.core.trainers.dpo import DPOStrategy
from axolotl.core.trainers.dpo.trainer import AxolotlDPOTrainer
from axolotl.integrations.base import BasePlugin, PluginManager
from axolotl.utils.dict import DictDefault
from datasets import Dataset
from torch.utils.data import DataLoader, SequentialSampler
from transformers import Trainer, TrainingArguments
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching import (
    cache as paged_cache,
)
from transformers.generation.continuous_batching import (
    cb_logits_processors,
    continuous_api,
    input_outputs,
    model_runner,
)
from trl.generation import vllm_client, vllm_generation
from trl.models import utils as model_utils
from trl.trainer import utils as trainer_utils

from sera_plugin import host
from sera_plugin.host.models import plugin_config, selective_log_softmax, whole_models
from sera_plugin.host.round_trainer import RoundTrainer


def names(function):
    return [name for name in inspect.signature(function).parameters if name != "self"]


def tree_of(function):
    return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))


def calls(function, name):
    """The calls of ``name`` or ``<anything>.name`` in the source of a function."""
    return [
        node
        for node in ast.walk(tree_of(function))
        if isinstance(node, ast.Call)
        and name == (getattr(node.func, "attr", None) or getattr(node.func, "id", None))
    ]


def calls_in_order(function, *wanted):
    """Those of the ``wanted`` names that a function calls, in the order of their lines."""
    found = [(call.lineno, name) for name in wanted for call in calls(function, name)]
    return [name for _, name in sorted(found)]


def text_of(function):
    """The source without comments and with one kind of quotes."""
    return ast.unparse(tree_of(function))


def assert_names(function, expected):
    assert names(function) == expected, (
        f"{function.__module__}.{function.__qualname__} has other parameters; look at its override "
        "or call in sera_plugin/host/"
    )


@pytest.mark.parametrize("package", ["axolotl", "trl", "transformers", "accelerate"])
def test_the_installed_versions_are_the_ones_that_were_read(package):
    read = re.search(rf"{package} (\d[\d.]*\d)", host.__doc__)
    assert read, f"host/'s docstring no longer says which {package} was read"
    assert importlib.metadata.version(package) == read[1], (
        f"{package} was read at {read[1]}; read the symbols of host/'s docstring again in the "
        "installed version and write its number there"
    )


def test_every_symbol_of_the_docstring_has_a_test():
    here = inspect.getsource(inspect.getmodule(test_every_symbol_of_the_docstring_has_a_test))
    symbols = {s.split(".")[-1] for s in re.findall(r"``([\w.]+)``", host.__doc__)}
    untested = {s for s in symbols if here.count(s) == 0}
    assert not untested, f"host/'s docstring names {untested}, which no test here looks at"


def test_round_trainer_overrides_methods_that_exist():
    ours = {"rounds", "batching", "trained_tokens", "max_steps_of_config", "facts", "evaluate_on"}
    ours |= {"collate_with", "log_metrics_of_round", "ensure_checkpoint", "loss_of"}
    ours |= {"_write_true_rewards"}
    own = {
        name
        for name, member in vars(RoundTrainer).items()
        if not name.startswith("__") and (callable(member) or isinstance(member, property))
    }
    missing = {name for name in own - ours if not hasattr(AxolotlDPOTrainer, name)}
    assert not missing, f"the host no longer has {missing}, so our overrides are never called"
    taken = {name for name in ours if hasattr(AxolotlDPOTrainer, name)}
    assert not taken, f"the host now has {taken} of its own; rename ours"


@pytest.mark.parametrize(
    "name",
    [
        "set_initial_training_values",
        "_init_training_state",
        "_prepare_for_training",
        "_run_epoch",
        "_finalize_training",
        "_inner_training_loop",
        "_get_dataloader",
    ],
)
def test_nothing_between_us_and_transformers_overrides_the_loop(name):
    assert getattr(AxolotlDPOTrainer, name) is getattr(Trainer, name), (
        f"AxolotlDPOTrainer, its mixins or DPOTrainer now override Trainer.{name}; read that one"
    )


# --- transformers: the training loop ------------------------------------------------------------


def test_set_initial_training_values_takes_args_and_dataloader():
    assert_names(Trainer.set_initial_training_values, ["args", "dataloader"])


def test_set_initial_training_values_returns_seven_numbers_in_our_order(tmp_path):
    args = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        num_train_epochs=3,
        use_cpu=True,
        report_to=[],
    )
    trainer = Trainer(torch.nn.Linear(1, 1), args)
    loader = DataLoader(range(10), batch_size=2)
    # 10 pairs, 5 micro-batches, 3 updates, 3 rounds.
    assert trainer.set_initial_training_values(args, loader) == (3, 3, 10, 30, 4, 5, 9), (
        "Trainer.set_initial_training_values returns something else; look at "
        "RoundTrainer.set_initial_training_values"
    )


def test_the_loop_unpacks_seven_numbers_in_our_order():
    (target,) = [
        node.targets[0]
        for node in ast.walk(tree_of(Trainer._inner_training_loop))
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and getattr(node.value.func, "attr", "") == "set_initial_training_values"
    ]
    assert [element.id for element in target.elts] == [
        "num_train_epochs",
        "num_update_steps_per_epoch",
        "num_examples",
        "num_train_samples",
        "total_train_batch_size",
        "steps_in_epoch",
        "max_steps",
    ], "Trainer._inner_training_loop unpacks other values of set_initial_training_values"


def test_the_loop_prepares_in_the_order_that_we_hook_into():
    order = calls_in_order(
        Trainer._inner_training_loop,
        "free_memory",
        "get_train_dataloader",
        "set_initial_training_values",
        "_init_training_state",
        "_prepare_for_training",
        "on_train_begin",
        "_evaluate",
        "on_epoch_begin",
        "_run_epoch",
        "_finalize_training",
    )
    assert order == [
        "free_memory",
        "get_train_dataloader",
        "set_initial_training_values",
        "_init_training_state",
        "_prepare_for_training",
        "on_train_begin",
        "_evaluate",
        "on_epoch_begin",
        "_run_epoch",
        "_finalize_training",
    ], "Trainer._inner_training_loop calls its steps in another order"


def test_the_loop_runs_the_rounds_from_the_resumed_one_to_the_last():
    loops = [
        ast.unparse(node.iter)
        for node in ast.walk(tree_of(Trainer._inner_training_loop))
        if isinstance(node, ast.For)
    ]
    assert loops == ["range(epochs_trained, num_train_epochs)"], (
        "Trainer._inner_training_loop counts epochs in another way; RoundTrainer._run_epoch takes "
        "epoch + 1 as the round"
    )


def test_the_loop_calls_run_epoch_by_keywords_alone():
    (call,) = calls(Trainer._inner_training_loop, "_run_epoch")
    assert call.args == [], "Trainer._run_epoch is called with positional arguments"
    assert sorted(keyword.arg for keyword in call.keywords) == sorted(names(Trainer._run_epoch)), (
        "Trainer._inner_training_loop passes other keywords to _run_epoch"
    )


def test_run_epoch_has_the_parameters_that_we_replace():
    assert_names(
        Trainer._run_epoch,
        [
            "model",
            "epoch",
            "train_dataloader",
            "steps_in_epoch",
            "num_update_steps_per_epoch",
            "trial",
            "ignore_keys_for_eval",
            "start_time",
            "resume_from_checkpoint",
            "epochs_trained",
            "steps_trained_in_current_epoch",
        ],
    )


def test_run_epoch_reads_its_own_arguments_and_skips_what_was_trained():
    source = text_of(Trainer._run_epoch)
    for piece in (
        "skip_first_batches(train_dataloader, steps_trained_in_current_epoch)",
        "steps_in_epoch % self.args.gradient_accumulation_steps",
        "range(num_update_steps_trained, num_update_steps_per_epoch)",
        "(step + 1) % self.args.gradient_accumulation_steps == 0 or step + 1 == steps_in_epoch",
        "self.state.epoch = epoch + (step + 1) / steps_in_epoch",
        "self.state.global_step += 1",
    ):
        assert piece in source, f"Trainer._run_epoch no longer has `{piece}`"


def test_init_training_state_returns_epochs_and_batches_done():
    assert_names(
        Trainer._init_training_state,
        [
            "max_steps",
            "num_update_steps_per_epoch",
            "num_train_epochs",
            "resume_from_checkpoint",
            "trial",
        ],
    )
    source = text_of(Trainer._init_training_state)
    assert "return (epochs_trained, steps_trained_in_current_epoch)" in source, (
        "Trainer._init_training_state returns something else; look at our override"
    )
    assert "steps_trained_in_current_epoch *= self.args.gradient_accumulation_steps" in source, (
        "Trainer._init_training_state no longer counts in micro-batches; look at our override"
    )
    assert "not self.args.ignore_data_skip" in source, (
        "Trainer._init_training_state treats ignore_data_skip in another way"
    )


def test_prepare_for_training_takes_and_returns_what_we_pass_on():
    assert_names(
        Trainer._prepare_for_training, ["max_steps", "train_dataloader", "resume_from_checkpoint"]
    )
    assert "return (model, train_dataloader)" in text_of(Trainer._prepare_for_training), (
        "Trainer._prepare_for_training returns something else; look at our override"
    )
    (call,) = calls(Trainer._inner_training_loop, "_prepare_for_training")
    assert len(call.args) == 3, "_prepare_for_training is called in another way"
    assert not call.keywords, "_prepare_for_training is called with keywords"


def test_a_checkpoint_is_loaded_before_or_in_prepare_for_training():
    # `open_run` scores the reference and must find weights that are final.
    assert calls(Trainer._prepare_for_training, "_load_optimizer_and_scheduler"), (
        "Trainer._prepare_for_training no longer loads the checkpoint's optimizer"
    )
    order = calls_in_order(Trainer.train, "_load_from_checkpoint", "inner_training_loop")
    assert order[0] == "_load_from_checkpoint", (
        "Trainer.train no longer loads the model's weights before the loop"
    )
    assert "inner_training_loop" in order, "Trainer.train calls its loop by another name"


def test_finalize_training_passes_through():
    assert_names(Trainer._finalize_training, ["trial", "num_train_samples", "start_time"])
    (call,) = calls(Trainer._inner_training_loop, "_finalize_training")
    assert len(call.args) == 3, "_finalize_training is called in another way"


def test_save_checkpoint_takes_model_and_trial_and_writes_the_state_last():
    assert_names(Trainer._save_checkpoint, ["model", "trial"])
    source = text_of(Trainer._save_checkpoint)
    state = source.index("save_to_json")
    for earlier in ("self.save_model(", "_save_optimizer_and_scheduler(", "_save_rng_state("):
        assert source.index(earlier) < state, (
            f"{earlier} now follows trainer_state.json; look at sera_plugin/checkpoints.py"
        )


def test_get_dataloader_has_the_parameters_that_we_pass():
    ours = {"dataset", "description", "batch_size", "sampler_fn", "is_training"}
    assert ours <= set(names(Trainer._get_dataloader)), (
        "Trainer._get_dataloader has other parameters; look at RoundTrainer._run_epoch"
    )
    source = text_of(Trainer._get_dataloader)
    assert "dataloader_params['sampler'] = sampler_fn(dataset)" in source, (
        "Trainer._get_dataloader no longer calls sampler_fn with the dataset"
    )
    assert "self.accelerator.prepare(DataLoader(" in source, (
        "Trainer._get_dataloader no longer prepares its loader"
    )


def test_get_train_sampler_takes_a_dataset():
    assert_names(Trainer._get_train_sampler, ["train_dataset"])
    assert inspect.signature(Trainer._get_train_sampler).parameters["train_dataset"].default is None
    assert "sampler_fn=self._get_train_sampler" in text_of(Trainer.get_train_dataloader), (
        "Trainer.get_train_dataloader no longer asks _get_train_sampler"
    )


def test_a_loader_that_transformers_makes_is_noted_by_accelerate_and_keeps_its_order(tmp_path):
    args = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to=[], remove_unused_columns=False
    )
    trainer = Trainer(torch.nn.Linear(1, 1), args, data_collator=lambda rows: {"rows": rows})
    loader = trainer._get_dataloader(
        dataset=list(range(10)),
        description="Round 1",
        batch_size=4,
        sampler_fn=SequentialSampler,
        is_training=True,
    )
    assert [batch["rows"] for batch in loader] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]], (
        "Trainer._get_dataloader changes the order of a sequential sampler"
    )
    assert any(loader is known for known in trainer.accelerator._dataloaders), (
        "accelerate.Accelerator._dataloaders no longer holds prepared loaders; look at how "
        "RoundTrainer._run_epoch forgets the loader of a round"
    )


@pytest.mark.parametrize(
    "name", ["_train_batch_size", "is_in_train", "callback_handler", "accelerator", "state"]
)
def test_the_trainer_has_the_attributes_that_we_read(name, tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    assert hasattr(Trainer(torch.nn.Linear(1, 1), args), name), (
        f"transformers.Trainer.{name} is gone; look for it in sera_plugin/host/"
    )


def test_get_total_train_batch_size_takes_args():
    assert_names(Trainer.get_total_train_batch_size, ["args"])


def test_trainer_log_takes_a_dict_first():
    assert names(Trainer.log)[0] == "logs", "Trainer.log: look at log_metrics_of_round"
    assert calls(trl.DPOTrainer.log, "clear"), (
        "DPOTrainer.log no longer flushes its averages, so log_metrics_of_round may call it"
    )


def test_is_in_train_is_true_when_the_loop_begins():
    source = text_of(Trainer.train)
    assert source.index("self.is_in_train = True") < source.index("inner_training_loop("), (
        "Trainer.train sets is_in_train elsewhere; look at RoundTrainer._precompute_ref_logps"
    )


# --- accelerate ---------------------------------------------------------------------------------


def test_accelerator_keeps_its_loaders_in_a_list():
    assert isinstance(Accelerator(cpu=True)._dataloaders, list), (
        "accelerate.Accelerator._dataloaders is no list; look at RoundTrainer._run_epoch"
    )


# --- TRL ----------------------------------------------------------------------------------------


def test_dpo_trainer_precomputes_in_its_constructor():
    assert_names(trl.DPOTrainer._precompute_ref_logps, ["dataset", "name", "batch_size"])
    guarded = [
        node
        for node in ast.walk(tree_of(trl.DPOTrainer.__init__))
        if isinstance(node, ast.If)
        and ast.unparse(node.test) == "args.precompute_ref_log_probs"
        and "self.train_dataset = self._precompute_ref_logps" in ast.unparse(node)
    ]
    assert guarded, (
        "trl.DPOTrainer.__init__ no longer calls _precompute_ref_logps when "
        "precompute_ref_log_probs is set; our override would never be asked"
    )


def test_dpo_trainer_precomputes_for_a_dataset_handed_to_evaluate():
    assert calls(trl.DPOTrainer.evaluate, "_precompute_ref_logps"), (
        "trl.DPOTrainer.evaluate no longer calls _precompute_ref_logps; look at with_reference"
    )


def test_the_loss_reads_the_log_probs_that_we_provide():
    source = text_of(trl.DPOTrainer._compute_loss)
    assert "if self.precompute_ref_logps:" in source, (
        "trl.DPOTrainer._compute_loss no longer looks at precompute_ref_logps"
    )
    for key in ("ref_chosen_logps", "ref_rejected_logps"):
        assert f"inputs['{key}']" in source, (
            f"trl.DPOTrainer._compute_loss no longer reads inputs['{key}']; look at RoundDataset"
        )
    assert "self.precompute_ref_logps = args.precompute_ref_log_probs" in text_of(
        trl.DPOTrainer.__init__
    ), "trl.DPOTrainer.precompute_ref_logps comes from somewhere else"


def test_the_loss_is_found_where_we_shift_the_reference():
    assert_names(trl.DPOTrainer._compute_loss, ["model", "inputs", "return_outputs"])
    assert calls(trl.DPOTrainer.compute_loss, "_compute_loss"), (
        "trl.DPOTrainer.compute_loss no longer calls _compute_loss, so Δ never enters the loss"
    )
    source = text_of(trl.DPOTrainer._compute_loss)
    for line in (
        "chosen_logratios = chosen_logps - ref_chosen_logps",
        "per_sequence_loss = -F.logsigmoid(self.beta * delta_score)",
        "chosen_avg_score = chosen_scores / chosen_mask.sum(dim=1).clamp(min=1.0)",
        "per_sequence_loss = (ipo_delta - 1 / (2 * self.beta)) ** 2",
    ):
        assert line in source, (
            f"the loss no longer has `{line}`; look at refinement.reference_shift"
        )
    assert "return (loss, outputs) if return_outputs else loss" in source


def test_the_loss_notes_the_rewards_that_we_write_again():
    source = text_of(trl.DPOTrainer._compute_loss)
    assert "mode = 'train' if self.model.training else 'eval'" in source
    for line in (
        "chosen_rewards = self.beta * chosen_logratios.detach()",
        "reward_accuracies = (chosen_rewards > rejected_rewards).float()",
        "margins = chosen_rewards - rejected_rewards",
    ):
        assert line in source, f"the loss no longer has `{line}`; look at _write_true_rewards"
    noted = set(re.findall(r"self\._metrics\[mode\]\['(rewards/\w+)'\]\.append", source))
    ours = set(re.findall(r"'(rewards/\w+)'", text_of(RoundTrainer._write_true_rewards)))
    assert noted == ours, "TRL notes other rewards; look at _write_true_rewards"


def test_dpo_trainer_lists_the_columns_that_a_collator_may_see():
    source = text_of(trl.DPOTrainer._set_signature_columns_if_needed)
    assert "self._signature_columns = [" in source, (
        "DPOTrainer._set_signature_columns_if_needed sets something else than _signature_columns"
    )


def test_axolotl_hands_on_no_key_that_changes_what_a_log_ratio_is():
    source = text_of(DPOStrategy.set_training_args_kwargs)
    for key in ("f_divergence_type", "ld_alpha"):
        assert key not in source, f"Axolotl sets {key} now, which refinement doesn't know"


def test_the_host_tokenizes_prompts_as_we_do():
    from trl.data_utils import _tokenize

    source = text_of(_tokenize)
    assert "result = processing_class(text=input)" in source, "look at QualityWriter.ids"
    assert "tokenize=True, return_dict=True, **apply_chat_template_kwargs" in source
    assert "add_generation_prompt=True" in text_of(trl.DPOTrainer._prepare_dataset)


def test_axolotls_chat_templates_are_chosen_as_we_do():
    from axolotl.utils.chat_templates import extract_chat_template_args, get_chat_template

    assert names(extract_chat_template_args) == ["cfg", "ds_cfg"], "look at chat_templates"
    assert names(get_chat_template) == ["user_choice", "jinja_template", "tokenizer"]
    assert extract_chat_template_args(cfg={}) == ("tokenizer_default", None)


def test_the_collator_passes_our_columns_on_and_cuts_at_max_length():
    collator = trl.trainer.dpo_trainer.DataCollatorForPreference(pad_token_id=0, max_length=4)
    rows = [
        {"prompt_ids": [1, 2], "chosen_ids": [3, 4, 5], "rejected_ids": [6], "sera_id": "a/offline"}
        | {"ref_chosen_logps": -1.5, "ref_rejected_logps": -2.5}
    ]
    batch = collator(rows)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4], [1, 2, 6, 0]], (
        "DataCollatorForPreference cuts or pads in another way; look at Scorer._batch"
    )
    assert batch["completion_mask"].tolist() == [[0, 0, 1, 1], [0, 0, 1, 0]]
    assert batch["ref_chosen_logps"].tolist() == [-1.5], "look at RoundDataset.__getitem__"
    assert batch["ref_rejected_logps"].tolist() == [-2.5], "look at RoundDataset.__getitem__"


def test_compute_loss_gives_the_logits_of_the_whole_batch():
    assert_names(
        trl.DPOTrainer.compute_loss, ["model", "inputs", "return_outputs", "num_items_in_batch"]
    )
    assert AxolotlDPOTrainer.compute_loss is trl.DPOTrainer.compute_loss, (
        "Axolotl has a compute_loss of its own; look at RoundTrainer.compute_loss"
    )
    source = text_of(trl.DPOTrainer._compute_loss)
    for piece in (
        "outputs = model(**model_kwargs)",
        "shift_logits = outputs.logits[..., :-1, :]",
        "return (loss, outputs) if return_outputs else loss",
    ):
        assert piece in source, f"trl.DPOTrainer._compute_loss no longer has {piece!r}"


def test_a_checkpoint_is_saved_in_a_folder_named_after_the_step():
    source = text_of(Trainer._save_checkpoint)
    assert "checkpoint_folder = f'{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}'" in source
    assert "run_dir = self._get_output_dir(trial=trial)" in source
    assert "run_dir = self.args.output_dir" in text_of(Trainer._get_output_dir)


def test_dpo_trainer_tokenizes_into_the_columns_that_we_read():
    source = text_of(trl.DPOTrainer._prepare_dataset)
    for column in ("prompt_ids", "chosen_ids", "rejected_ids"):
        assert column in source, f"DPOTrainer._prepare_dataset no longer makes {column}"
    assert "len(example['prompt_ids']) < args.max_length" in source, (
        "DPOTrainer._prepare_dataset keeps prompts that fill max_length; look at OfflinePairs.of"
    )


def test_the_loss_uses_the_log_softmax_that_we_score_with():
    assert selective_log_softmax is trl.trainer.dpo_trainer.selective_log_softmax, (
        "scores and loss must come from one function; look at the imports of host/"
    )
    assert calls(trl.DPOTrainer._compute_loss, "selective_log_softmax"), (
        "trl.DPOTrainer._compute_loss takes log-probs from another function"
    )
    assert_names(trainer_utils.selective_log_softmax, ["logits", "index"])


def test_the_helpers_of_trl_have_the_parameters_that_we_pass():
    assert_names(
        model_utils.disable_gradient_checkpointing, ["model", "gradient_checkpointing_kwargs"]
    )
    assert_names(model_utils.add_hooks, ["model"])
    assert_names(model_utils.remove_hooks, ["model"])
    assert_names(trainer_utils.use_adapter, ["model", "adapter_name"])


def test_trl_gathers_weights_in_the_steps_that_we_copied():
    order = calls_in_order(
        model_utils._unwrap_model_for_generation,
        "GatheredParameters",
        "remove_hooks",
        "add_hooks",
    )
    assert order == ["GatheredParameters", "remove_hooks", "add_hooks"], (
        "trl.models.utils gathers ZeRO-3 weights in another way; look at gathered_weights"
    )


def test_the_adapters_reference_is_named_as_we_name_it():
    source = text_of(trl.DPOTrainer.compute_ref_log_probs)
    assert "adapter_name='ref' if 'ref' in unwrapped_model.peft_config else None" in source, (
        "TRL names the reference adapter in another way; look at Policies.reference"
    )


def test_dpo_trainer_keeps_the_attributes_that_we_read():
    source = text_of(trl.DPOTrainer.__init__)
    for name in ("beta", "ref_model", "loss_types", "_tokenizer"):
        assert f"self.{name} = " in source, (
            f"trl.DPOTrainer.{name} is gone; look for it in sera_plugin/trainer.py"
        )


# --- Axolotl ------------------------------------------------------------------------------------


def test_axolotls_training_step_collects_garbage():
    assert calls(AxolotlDPOTrainer.training_step, "collect"), (
        "AxolotlDPOTrainer.training_step no longer calls gc.collect, so gc.freeze in "
        "RoundTrainer._prepare_for_training can go"
    )


def test_the_rl_builder_honours_trainer_cls():
    builder = object.__new__(axolotl.core.builders.rl.HFRLTrainerBuilder)
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
    source = text_of(axolotl.core.builders.rl.HFRLTrainerBuilder._get_trainer_cls)
    assert "trainer_cls_args = []" in source, (
        "HFRLTrainerBuilder may now hand the model to a plugin's get_trainer_cls; plugin.py could "
        "use that in the place of trainer_cls"
    )


def test_axolotl_builds_dpo_and_ipo_with_the_class_that_we_extend():
    assert DPOStrategy.get_trainer_class() is AxolotlDPOTrainer, (
        "Axolotl builds rl: dpo with another class; RoundTrainer must extend that one"
    )
    assert issubclass(RoundTrainer, AxolotlDPOTrainer)


def test_axolotl_always_passes_max_steps():
    builder = axolotl.core.builders.base.TrainerBuilderBase
    sources = [text_of(f) for _, f in inspect.getmembers(builder, inspect.isfunction)]
    wanted = "training_args_kwargs['max_steps'] = self.cfg.max_steps or total_num_steps or -1"
    assert any(wanted in source for source in sources), (
        "axolotl.core.builders.base sets max_steps in another way; look at "
        "RoundTrainer.set_initial_training_values and SeRAPlugin.load_datasets"
    )


def test_do_train_asks_the_plugins_for_the_datasets_first():
    order = calls_in_order(
        axolotl.cli.train.do_train, "load_datasets", "load_preference_datasets_fn", "train_fn"
    )
    assert order == ["load_datasets", "load_preference_datasets_fn", "train_fn"], (
        "axolotl.cli.train.do_train no longer uses PluginManager.load_datasets; look at "
        "SeRAPlugin.load_datasets"
    )
    assert names(PluginManager.load_datasets) == names(BasePlugin.load_datasets), (
        "PluginManager.load_datasets passes other arguments to plugins"
    )
    assert names(BasePlugin.load_datasets) == ["cfg", "preprocess"]


def test_plugins_are_registered_with_the_raw_config():
    assert_names(BasePlugin.register, ["cfg"])
    assert_names(BasePlugin.get_input_args, [])


def test_plugin_manager_hands_out_the_config():
    manager = PluginManager.get_instance()
    before = manager.cfg
    try:
        manager.cfg = DictDefault(sera=True)
        assert plugin_config().sera is True, (
            "axolotl.integrations.base.PluginManager.cfg is not what was set; look at plugin_config"
        )
    finally:
        manager.cfg = before
    assert PluginManager.get_instance() is manager, "PluginManager is no single instance"


def test_common_datasets_loads_preference_data_by_keyword():
    load = inspect.signature(axolotl.common.datasets.load_preference_datasets)
    assert load.parameters["cfg"].kind is inspect.Parameter.KEYWORD_ONLY, (
        "axolotl.common.datasets.load_preference_datasets: look at preference_data.py"
    )
    required = [n for n, p in load.parameters.items() if p.default is inspect.Parameter.empty]
    assert required == ["cfg"], (
        f"axolotl.common.datasets.load_preference_datasets now needs {required}"
    )
    fields = [f.name for f in dataclasses.fields(axolotl.common.datasets.TrainDatasetMeta)]
    assert fields == ["train_dataset", "eval_dataset", "total_num_steps"], (
        "axolotl.common.datasets.TrainDatasetMeta has other fields; look at SeRAPlugin"
    )


def test_load_tokenizer_takes_the_config():
    load_tokenizer = importlib.import_module("axolotl.loaders").load_tokenizer
    required = [
        n
        for n, p in inspect.signature(load_tokenizer).parameters.items()
        if p.default is inspect.Parameter.empty
    ]
    assert required == ["cfg"], "axolotl.loaders.load_tokenizer: look at preference_data.py"


def test_the_datasets_that_we_score_are_map_style():
    # RoundDataset hands out plain lists, as a row of a `Dataset` does.
    row = Dataset.from_dict({"prompt_ids": [[1, 2]]})[0]
    assert row == {"prompt_ids": [1, 2]}, "datasets hands out rows in another form"
    assert type(row["prompt_ids"]) is list, "the collator of TRL adds lists"


def test_generate_fills_gaps_in_our_settings_from_the_models():
    source = text_of(transformers.GenerationMixin._prepare_generation_config)
    assert "self.generation_config.to_dict()" in source, (
        "generate no longer mixes the model's own generation settings into ours, so "
        "sera_plugin.sampling.sampler need not hide them"
    )


def test_continuous_batching_has_the_hooks_that_we_use():
    manager = continuous_api.ContinuousBatchingManager
    assert_names(
        transformers.GenerationMixin.init_continuous_batching,
        ["generation_config", "continuous_batching_config", "workload_hints"],
    )
    wanted = ["input_ids", "request_id", "max_new_tokens", "eos_token_id"]
    assert set(wanted) <= set(names(manager.add_request))
    assert {"timeout"} <= set(names(manager.get_result))
    assert {"hard_stop"} <= set(names(manager.stop))
    text = text_of(manager._create_batch_processor)
    assert "logit_processor=self.logit_processor" in text, "draws are handed over in another way"
    assert "getattr(self, 'batch_processor', None)" in text, "a processor is no longer used again"
    found = set(re.findall(r"self\.model\.(\w+)", text))
    assert found == {"config", "device", "dtype"}, (
        f"the batch processor is made from the model's {found}; look at host/paged.py"
    )
    assert "getattr(self.model, 'tp_plan', {})" in text
    assert "self.fatal_error = error" in text_of(manager._handle_critical_error)


def test_continuous_batching_lets_us_draw_by_position():
    batch = text_of(input_outputs.ContinuousBatchingIOs.prepare_batch_tensors)
    moved = batch.index("state.position_offset += query_length")
    assert moved < batch.index("logits_processors.prepare_tensor_args"), (
        "RequestState.position_offset no longer counts the tokens of the pass that is prepared"
    )
    assert_names(
        cb_logits_processors.ContinuousBatchingLogitsProcessorList.prepare_tensor_args,
        ["requests_in_batch", "arg_storage"],
    )
    required = cb_logits_processors.ContinuousBatchingLogitsProcessor.__abstractmethods__
    assert required == {"fill_defaults", "prepare_tensor_args", "__call__"}
    source = inspect.getsource(cb_logits_processors.ContinuousBatchingLogitsProcessorList)
    assert "self.tensors_required" in source
    assert "self.do_sample" in text_of(model_runner.ModelRunner._sample), (
        "what is sampled no longer is the only token that our processor leaves"
    )


def test_the_paged_cache_is_as_we_size_it():
    update = names(paged_cache.PagedAttentionCache.update)
    assert update[:2] == ["key_states", "value_states"], "look at _processor in host/paged.py"
    config = transformers.LlamaConfig(num_hidden_layers=3)
    assert len(paged_cache.group_layers_by_attn_type(config)[0]) == 1
    fields = {f.name for f in dataclasses.fields(ContinuousBatchingConfig)}
    assert {"block_size", "num_blocks", "max_batch_tokens", "max_requests_per_batch"} <= fields


def test_tokens_without_a_trainer():
    """``host.tokenized`` calls TRL's preparation on a trainer that was never constructed."""
    wanted = ["dataset", "processing_class", "args", "dataset_name"]
    assert names(trl.DPOTrainer._prepare_dataset) == wanted
    used = {
        node.attr
        for node in ast.walk(tree_of(trl.DPOTrainer._prepare_dataset))
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) == "self"
    }
    assert used <= {"_tokenizer"}, "look at tokenized, which sets no other attribute"


def test_models_can_be_loaded_whole_beside_zero3():
    from transformers.integrations import deepspeed

    config = deepspeed.HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})
    assert deepspeed.is_deepspeed_zero3_enabled()
    with whole_models():
        assert not deepspeed.is_deepspeed_zero3_enabled(), (
            "transformers no longer asks _hf_deepspeed_config_weak_ref; look at whole_models"
        )
    assert deepspeed.is_deepspeed_zero3_enabled()
    assert config.is_zero3()
    deepspeed.unset_hf_deepspeed_config()


def test_the_loss_of_a_batch_leaves_the_running_averages_alone():
    text = inspect.getsource(trl.DPOTrainer._compute_loss)
    touched = set(re.findall(r"self\.(_\w+)(?:\[mode\]\[[^]]+\])?(?:\.append\(| [+]?= )", text))
    assert touched == {"_metrics", "_total_train_tokens"}, (
        f"DPOTrainer._compute_loss changes {touched}; look at RoundTrainer.loss_of"
    )


def test_trls_vllm_generation_starts_and_sends_as_we_use_it():
    generation = vllm_generation.VLLMGeneration
    passed = {
        *("model", "accelerator", "processing_class", "mode", "server_base_url", "server_timeout"),
        *("gpu_memory_utilization", "max_model_length", "enable_sleep_mode", "trust_remote_code"),
    }
    assert passed <= set(names(generation.__init__))
    start = text_of(generation._init_vllm)
    assert start.rstrip().endswith("accelerator.wait_for_everyone()"), (
        "a failed start no longer leaves one wait to the other ranks; look at host.vllm.connect"
    )
    assert "self.vllm_client = VLLMClient(" in start
    assert "self.vllm_client.init_communicator(" in start
    assert "self.llm = LLM(" in start
    assert "self.llm.sleep(level=2)" in start
    push = text_of(generation._push_param_to_vllm)
    assert "self.vllm_client.update_named_param(name, param)" in push
    assert "load_weights([(name, param)])" in push
    assert names(vllm_generation.extract_logprobs) == ["all_outputs"]
    assert names(trl.distributed.DistributedBackend.gather_params) == ["params"]


def test_trls_generate_still_overwrites_the_weights_that_were_sent():
    text = text_of(vllm_generation.VLLMGeneration.generate)
    assert "collective_rpc('reload_weights')" in text, (
        "TRL issue 5312 may be solved; host.vllm.Colocated may use VLLMGeneration.generate"
    )


def test_trls_client_asks_and_fails_as_we_read_it():
    client = vllm_client.VLLMClient
    asked = {"prompts", "n", "temperature", "top_p", "max_tokens", "logprobs", "generation_kwargs"}
    assert asked <= set(names(client.generate))
    text = text_of(client.generate)
    assert "raise Exception(f'Request failed: {response.status_code}" in text
    for field in ("prompt_ids", "completion_ids", "logprobs", "logprob_token_ids"):
        assert f"json_response['{field}']" in text
    assert "timeout" not in text, "TRL's client has a time limit of its own now"
    assert "self.session = requests.Session()" in text_of(client.__init__)


@pytest.mark.parametrize(
    "module", ["trl/scripts/vllm_serve.py", "axolotl/scripts/vllm_serve_lora.py"]
)
def test_both_servers_have_the_endpoints_that_are_called(module):
    package, *rest = module.split("/")
    folder = Path(importlib.util.find_spec(package).origin).parent
    source = folder.joinpath(*rest).read_text(encoding="utf-8")
    for path in ("generate", "init_communicator", "update_named_param", "reset_prefix_cache"):
        assert f'@app.post("/{path}/"' in source, f"{module} has no /{path}/"
    assert '@app.post("/close_communicator/"' in source
    assert '@app.get("/health/"' in source
    assert '@app.get("/get_world_size/"' in source
    assert "generation_kwargs.update(request.generation_kwargs)" in source, "seeds don't arrive"
    assert "prompt_token_ids" in source
    assert 'logprobs_mode="processed_logprobs"' in source


def test_the_dynamic_cache_keeps_layers_that_we_may_replace():
    cache = transformers.DynamicCache(config=transformers.LlamaConfig(num_hidden_layers=3))
    assert isinstance(cache.layers, list)
    assert [type(layer) for layer in cache.layers] == [transformers.DynamicLayer] * 3
    update = transformers.DynamicLayer.update
    assert names(update)[:2] == ["key_states", "value_states"]
    assert calls_in_order(update, "lazy_initialization", "cat") == [
        "lazy_initialization",
        "cat",
        "cat",
    ]
