"""The training loop of transformers, whose rounds ``RoundTrainer`` makes its own."""

import ast
import inspect

import pytest
import torch
import trl
from accelerate import Accelerator
from axolotl.core.trainers.dpo.trainer import AxolotlDPOTrainer
from host_source import assert_names, assert_parts, breaks, calls, in_order, names, tree_of
from torch.utils.data import DataLoader, SequentialSampler
from transformers import Trainer, TrainingArguments

from sera_plugin.host.round_trainer import RoundTrainer

pytestmark = pytest.mark.contract

LOOP = Trainer._inner_training_loop
STEPS = [
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
]


def of_trainer(name):
    return breaks(f"transformers.Trainer.{name}")


def test_round_trainer_overrides_methods_that_exist():
    ours = {"rounds", "batching", "trained_tokens", "facts", "evaluate_on", "train_on"}
    ours |= {"name_method", "log_metrics_of_round", "ensure_checkpoint", "loss_of", "show_weights"}
    ours |= {"_packed_loss", "_objective_loss"}
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


def test_set_initial_training_values_takes_args_and_dataloader():
    assert_names("transformers.Trainer.set_initial_training_values", ["args", "dataloader"])


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
    assert trainer.set_initial_training_values(args, loader) == (3, 3, 10, 30, 4, 5, 9), of_trainer(
        "set_initial_training_values"
    )


def test_the_loop_unpacks_seven_numbers_in_our_order():
    (target,) = [
        node.targets[0]
        for node in ast.walk(tree_of(LOOP))
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
    ], of_trainer("set_initial_training_values")


def test_the_loop_prepares_in_the_order_that_we_hook_into():
    assert in_order(LOOP, *STEPS) == STEPS, of_trainer("_prepare_for_training")


def test_the_loop_runs_the_rounds_from_the_resumed_one_to_the_last():
    loops = [
        ast.unparse(node.iter) for node in ast.walk(tree_of(LOOP)) if isinstance(node, ast.For)
    ]
    assert loops == ["range(epochs_trained, num_train_epochs)"], (
        f"RoundTrainer._run_epoch takes epoch + 1 as the round: {of_trainer('_run_epoch')}"
    )


def test_the_loop_calls_run_epoch_by_keywords_alone():
    (call,) = calls(LOOP, "_run_epoch")
    assert call.args == [], of_trainer("_run_epoch")
    assert sorted(keyword.arg for keyword in call.keywords) == sorted(names(Trainer._run_epoch)), (
        of_trainer("_run_epoch")
    )


def test_run_epoch_has_the_parameters_that_we_replace():
    assert_names(
        "transformers.Trainer._run_epoch",
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
    assert_parts(
        Trainer._run_epoch,
        "transformers.Trainer._run_epoch",
        "skip_first_batches(train_dataloader, steps_trained_in_current_epoch)",
        "steps_in_epoch % self.args.gradient_accumulation_steps",
        "range(num_update_steps_trained, num_update_steps_per_epoch)",
        "(step + 1) % self.args.gradient_accumulation_steps == 0 or step + 1 == steps_in_epoch",
        "self.state.epoch = epoch + (step + 1) / steps_in_epoch",
        "self.state.global_step += 1",
    )


def test_a_loss_of_zero_and_a_later_sum_make_the_hosts_update():
    assert_parts(
        Trainer._run_epoch,
        "transformers.Trainer._run_epoch",
        "self.current_gradient_accumulation_steps = len(batch_samples)",
        "tr_loss_step = self.training_step(model, inputs, num_items_in_batch)",
        "self._tr_loss += tr_loss_step",
    )
    symbol = "transformers.Trainer.training_step"
    assert_names(symbol, ["model", "inputs", "num_items_in_batch"])
    assert_parts(
        Trainer.training_step,
        symbol,
        "inputs = self._prepare_inputs(inputs)",
        "loss = loss / self.current_gradient_accumulation_steps",
        "kwargs['scale_wrt_gas'] = False",
        "self.accelerator.backward(loss, **kwargs)",
    )


def test_init_training_state_returns_epochs_and_batches_done():
    symbol = "transformers.Trainer._init_training_state"
    assert_names(
        symbol,
        [
            "max_steps",
            "num_update_steps_per_epoch",
            "num_train_epochs",
            "resume_from_checkpoint",
            "trial",
        ],
    )
    assert_parts(
        Trainer._init_training_state,
        symbol,
        "return (epochs_trained, steps_trained_in_current_epoch)",
        # in micro-batches
        "steps_trained_in_current_epoch *= self.args.gradient_accumulation_steps",
        "not self.args.ignore_data_skip",
    )


def test_prepare_for_training_takes_and_returns_what_we_pass_on():
    symbol = "transformers.Trainer._prepare_for_training"
    assert_names(symbol, ["max_steps", "train_dataloader", "resume_from_checkpoint"])
    assert_parts(Trainer._prepare_for_training, symbol, "return (model, train_dataloader)")
    (call,) = calls(LOOP, "_prepare_for_training")
    assert len(call.args) == 3, breaks(symbol)
    assert not call.keywords, breaks(symbol)


def test_a_checkpoint_is_loaded_before_or_in_prepare_for_training():
    # `open_run` scores the reference and must find weights that are final.
    why = of_trainer("_prepare_for_training")
    assert calls(Trainer._prepare_for_training, "_load_optimizer_and_scheduler"), why
    order = in_order(Trainer.train, "_load_from_checkpoint", "inner_training_loop")
    assert order[0] == "_load_from_checkpoint", why
    assert "inner_training_loop" in order, f"Trainer.train calls its loop by another name: {why}"


def test_finalize_training_passes_through():
    symbol = "transformers.Trainer._finalize_training"
    assert_names(symbol, ["trial", "num_train_samples", "start_time"])
    (call,) = calls(LOOP, "_finalize_training")
    assert len(call.args) == 3, breaks(symbol)


def test_save_checkpoint_takes_model_and_trial_and_writes_the_state_last():
    assert_names("transformers.Trainer._save_checkpoint", ["model", "trial"])
    earlier = ["save_model", "_save_optimizer_and_scheduler", "_save_rng_state"]
    order = in_order(Trainer._save_checkpoint, "save_to_json", *earlier)
    for name in earlier:
        assert order.index(name) < order.index("save_to_json"), (
            f"{name} now follows trainer_state.json, which says that a checkpoint is whole: "
            f"{of_trainer('_save_checkpoint')}"
        )


def test_a_checkpoint_is_saved_in_a_folder_named_after_the_step():
    symbol = "transformers.trainer_utils.PREFIX_CHECKPOINT_DIR"
    assert_parts(
        Trainer._save_checkpoint,
        symbol,
        "checkpoint_folder = f'{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}'",
        "run_dir = self._get_output_dir(trial=trial)",
    )
    assert_parts(Trainer._get_output_dir, symbol, "run_dir = self.args.output_dir")


def test_get_dataloader_has_the_parameters_that_we_pass():
    symbol = "transformers.Trainer._get_dataloader"
    ours = {"dataset", "description", "batch_size", "sampler_fn", "is_training"}
    assert ours <= set(names(Trainer._get_dataloader)), breaks(symbol)
    assert_parts(
        Trainer._get_dataloader, symbol, "dataloader_params['sampler'] = sampler_fn(dataset)"
    )
    prepared = calls(Trainer._get_dataloader, "prepare")
    assert any(
        ast.unparse(call.func) == "self.accelerator.prepare"
        and ast.unparse(call.args[0]).startswith("DataLoader(")
        for call in prepared
    ), breaks("accelerate.Accelerator._dataloaders")


def test_get_train_sampler_takes_a_dataset():
    symbol = "transformers.Trainer._get_train_sampler"
    assert_names(symbol, ["train_dataset"])
    default = inspect.signature(Trainer._get_train_sampler).parameters["train_dataset"].default
    assert default is None, breaks(symbol)
    assert_parts(Trainer.get_train_dataloader, symbol, "sampler_fn=self._get_train_sampler")


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
    assert [batch["rows"] for batch in loader] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]], of_trainer(
        "_get_train_sampler"
    )
    assert any(loader is known for known in trainer.accelerator._dataloaders), breaks(
        "accelerate.Accelerator._dataloaders"
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
    assert_names("transformers.Trainer.get_total_train_batch_size", ["args"])


def test_trainer_log_takes_a_dict_first():
    assert names(Trainer.log)[0] == "logs", "Trainer.log: look at log_metrics_of_round"
    assert calls(trl.DPOTrainer.log, "clear"), (
        "DPOTrainer.log no longer flushes its averages, so log_metrics_of_round may call it"
    )


def test_is_in_train_is_true_when_the_loop_begins():
    begun = [
        node.lineno
        for node in ast.walk(tree_of(Trainer.train))
        if isinstance(node, ast.Assign) and ast.unparse(node) == "self.is_in_train = True"
    ]
    called = [call.lineno for call in calls(Trainer.train, "inner_training_loop")]
    assert begun, of_trainer("is_in_train")
    assert min(begun) < min(called), of_trainer("is_in_train")


def test_accelerator_keeps_its_loaders_in_a_list():
    assert isinstance(Accelerator(cpu=True)._dataloaders, list), breaks(
        "accelerate.Accelerator._dataloaders"
    )
