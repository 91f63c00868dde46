"""TRL's preparation of pairs and its loss."""

import ast

import pytest
import torch
import trl
import trl.trainer.dpo_trainer
from axolotl.core.trainers.dpo.trainer import AxolotlDPOTrainer
from datasets import Dataset
from host_source import (
    assert_names,
    assert_parts,
    attributes_of,
    breaks,
    calls,
    in_order,
    names,
    read_from,
    text_of,
    tree_of,
)
from transformers import Trainer
from trl.models import utils as model_utils
from trl.trainer import utils as trainer_utils

from sera_plugin.host import models
from sera_plugin.host.models import selective_log_softmax, whole_models
from sera_plugin.scoring.logps import token_logps

pytestmark = pytest.mark.contract

DPO = trl.DPOTrainer
LOSS = "trl.DPOTrainer.compute_loss"


def test_dpo_trainer_precomputes_in_its_constructor():
    symbol = "trl.DPOTrainer._precompute_ref_logps"
    assert_names(symbol, ["dataset", "name", "batch_size"])
    guarded = [
        node
        for node in ast.walk(tree_of(DPO.__init__))
        if isinstance(node, ast.If)
        and ast.unparse(node.test) == "args.precompute_ref_log_probs"
        and "self.train_dataset = self._precompute_ref_logps" in ast.unparse(node)
    ]
    assert guarded, breaks(symbol)


def test_dpo_trainer_precomputes_for_a_dataset_handed_to_evaluate():
    assert calls(DPO.evaluate, "_precompute_ref_logps"), breaks(
        "trl.DPOTrainer._precompute_ref_logps"
    )


def test_the_loss_reads_the_log_probs_that_we_provide():
    assert_parts(DPO._compute_loss, LOSS, "if self.precompute_ref_logps:")
    for key in ("ref_chosen_logps", "ref_rejected_logps"):
        assert_parts(DPO._compute_loss, LOSS, f"inputs['{key}']")
    assert_parts(DPO.__init__, LOSS, "self.precompute_ref_logps = args.precompute_ref_log_probs")


def test_the_hosts_losses_are_those_that_our_bases_repeat():
    assert calls(DPO.compute_loss, "_compute_loss"), breaks(LOSS)
    assert_parts(
        DPO._compute_loss,
        LOSS,
        "logps = per_token_logps.sum(dim=1)",
        "chosen_logratios = chosen_logps - ref_chosen_logps",
        "chosen_scores = chosen_logratios",
        "per_sequence_loss = -F.logsigmoid(self.beta * delta_score)",
        "per_sequence_loss = torch.relu(1 - self.beta * delta_score)",
        "chosen_avg_score = chosen_scores / chosen_mask.sum(dim=1).clamp(min=1.0)",
        "per_sequence_loss = (ipo_delta - 1 / (2 * self.beta)) ** 2",
        "clean_loss_term = -(1 - self.label_smoothing) * F.logsigmoid(self.beta * delta_score)",
        "(clean_loss_term - flipped_loss_term) / (1 - 2 * self.label_smoothing)",
        "return (loss, outputs) if return_outputs else loss",
    )


def test_the_host_adds_nothing_but_the_routers_loss():
    assert_parts(
        DPO._compute_loss,
        "trl.DPOTrainer.aux_loss_enabled",
        "if self.aux_loss_enabled:",
        "loss = loss + self.router_aux_loss_coef * aux_loss",
    )
    added = [
        node
        for node in ast.walk(tree_of(DPO._compute_loss))
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "loss"
    ]
    assert len(added) == 2, f"the loss is changed elsewhere, too: {breaks(LOSS)}"


def test_dpo_trainer_lists_the_columns_that_a_collator_may_see():
    symbol = "trl.DPOTrainer._set_signature_columns_if_needed"
    lists = [
        node
        for node in ast.walk(tree_of(DPO._set_signature_columns_if_needed))
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List)
    ]
    targets = {ast.unparse(target) for node in lists for target in node.targets}
    assert targets == {"self._signature_columns"}, breaks(symbol)


def test_the_host_tokenizes_prompts_as_we_do():
    from trl.data_utils import _tokenize

    symbol = "trl.DPOTrainer._prepare_dataset"
    assert_parts(_tokenize, symbol, "result = processing_class(text=input)")
    source = text_of(_tokenize)
    assert "tokenize=True, return_dict=True, **apply_chat_template_kwargs" in source, breaks(symbol)
    assert "add_generation_prompt=True" in text_of(DPO._prepare_dataset), breaks(symbol)


def test_dpo_trainer_tokenizes_into_the_columns_that_we_read():
    symbol = "trl.DPOTrainer._prepare_dataset"
    source = text_of(DPO._prepare_dataset)
    for column in ("prompt_ids", "chosen_ids", "rejected_ids"):
        assert column in source, f"it no longer makes {column}: {breaks(symbol)}"
    # Prompts that fill max_length are dropped, which OfflinePairs.of relies on.
    assert_parts(DPO._prepare_dataset, symbol, "len(example['prompt_ids']) < args.max_length")


def test_tokens_without_a_trainer():
    """``tokenized`` calls TRL's preparation on a trainer that was never constructed."""
    symbol = "trl.DPOTrainer._prepare_dataset"
    assert_names(symbol, ["dataset", "processing_class", "args", "dataset_name"])
    assert read_from(DPO._prepare_dataset, "self") <= {"_tokenizer"}, (
        f"tokenized sets no other attribute: {breaks(symbol)}"
    )


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
    assert batch["completion_mask"].tolist() == [[0, 0, 1, 1], [0, 0, 1, 0]], (
        "DataCollatorForPreference marks other tokens as the answer; look at Scorer._batch"
    )
    assert batch["ref_chosen_logps"].tolist() == [-1.5], "look at RoundDataset.__getitem__"
    assert batch["ref_rejected_logps"].tolist() == [-2.5], "look at RoundDataset.__getitem__"


def test_compute_loss_gives_the_logits_of_the_whole_batch():
    symbol = "trl.DPOTrainer.compute_loss"
    assert_names(symbol, ["model", "inputs", "return_outputs", "num_items_in_batch"])
    assert AxolotlDPOTrainer.compute_loss is DPO.compute_loss, (
        "Axolotl has a compute_loss of its own; look at RoundTrainer.compute_loss"
    )
    assert_parts(
        DPO._compute_loss,
        symbol,
        "outputs = model(**model_kwargs)",
        "shift_logits = outputs.logits[..., :-1, :]",
        "return (loss, outputs) if return_outputs else loss",
    )


def test_the_loss_of_a_batch_leaves_the_running_averages_alone():
    touched = {
        node.attr
        for target in changed(DPO._compute_loss)
        for node in ast.walk(target)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self"
    }
    assert touched == {"_metrics", "_total_train_tokens"}, (
        f"the loss changes {touched}: {breaks('trl.DPOTrainer._total_train_tokens')}"
    )


def changed(function):
    """What a function assigns to or appends to."""
    for node in ast.walk(tree_of(function)):
        if isinstance(node, ast.Assign):
            yield from (_base(target) for target in node.targets)
        elif isinstance(node, (ast.AugAssign, ast.AnnAssign)):
            yield _base(node.target)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "append":
            yield _base(node.func.value)


def _base(target):
    """``self._metrics`` of ``self._metrics[mode][name]``."""
    while isinstance(target, ast.Subscript):
        target = target.value
    return target


def test_the_loss_uses_the_log_softmax_that_we_measure_batches_with():
    symbol = "trl.trainer.dpo_trainer.selective_log_softmax"
    assert selective_log_softmax is trl.trainer.dpo_trainer.selective_log_softmax, breaks(symbol)
    assert calls(DPO._compute_loss, "selective_log_softmax"), breaks(symbol)
    assert calls(models.answer_sums, "selective_log_softmax"), breaks(symbol)
    assert names(trainer_utils.selective_log_softmax) == ["logits", "index"], breaks(symbol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_we_score_as_the_loss_does(dtype):
    logits, tokens = torch.randn(3, 7, 50, dtype=dtype), torch.randint(50, (3, 7))
    assert torch.equal(token_logps(logits, tokens), selective_log_softmax(logits, tokens))
    half = logits.to(torch.bfloat16)
    assert torch.equal(token_logps(half, tokens), selective_log_softmax(half.float(), tokens))


def test_the_helpers_of_trl_have_the_parameters_that_we_pass():
    assert_names(
        "trl.models.utils.disable_gradient_checkpointing",
        ["model", "gradient_checkpointing_kwargs"],
    )
    assert_names("trl.models.utils.add_hooks", ["model"])
    assert_names("trl.models.utils.remove_hooks", ["model"])
    assert_names("trl.trainer.utils.use_adapter", ["model", "adapter_name"])


def test_trl_gathers_weights_in_the_steps_that_we_copied():
    steps = ["GatheredParameters", "remove_hooks", "add_hooks"]
    assert in_order(model_utils._unwrap_model_for_generation, *steps) == steps, breaks(
        "trl.models.utils.remove_hooks"
    )


def test_the_adapters_reference_is_named_as_we_name_it():
    assert_parts(
        DPO.compute_ref_log_probs,
        "trl.trainer.utils.use_adapter",
        "adapter_name='ref' if 'ref' in unwrapped_model.peft_config else None",
    )


def test_dpo_trainer_keeps_the_attributes_that_we_read():
    read = {"beta", "ref_model", "loss_types", "label_smoothing", "_tokenizer"}
    missing = read - attributes_of(DPO)
    assert not missing, f"trl.DPOTrainer no longer has {missing}; look for them in sera_plugin/"


def test_the_dataset_that_a_round_hands_out_has_rows_as_the_hosts():
    # RoundDataset hands out plain lists, as a row of a `Dataset` does.
    row = Dataset.from_dict({"prompt_ids": [[1, 2]]})[0]
    assert row == {"prompt_ids": [1, 2]}, "datasets hands out rows in another form"
    assert type(row["prompt_ids"]) is list, "the collator of TRL adds lists"


def test_models_can_be_loaded_whole_beside_zero3():
    from transformers.integrations import deepspeed

    symbol = "transformers.integrations.deepspeed._hf_deepspeed_config_weak_ref"
    config = deepspeed.HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})
    assert deepspeed.is_deepspeed_zero3_enabled()
    with whole_models():
        assert not deepspeed.is_deepspeed_zero3_enabled(), breaks(symbol)
    assert deepspeed.is_deepspeed_zero3_enabled(), breaks(symbol)
    assert config.is_zero3()
    deepspeed.unset_hf_deepspeed_config()


def test_a_batch_is_moved_as_in_training():
    assert names(Trainer._prepare_inputs) == ["inputs"], breaks(
        "transformers.Trainer._prepare_inputs"
    )


def test_a_packed_step_logs_what_the_hosts_loss_logs():
    assert_parts(
        DPO._compute_loss,
        "trl.DPOTrainer._metrics",
        "self._metrics[mode]['entropy'].append(entropy)",
        "self._total_train_tokens += num_tokens_in_batch",
        "self._metrics[mode]['num_tokens'] = [self._total_train_tokens]",
        "self._metrics[mode]['logits/chosen'].append(avg_chosen_logits)",
        "self._metrics[mode]['mean_token_accuracy'].append(accuracy)",
        "reward_accuracies = (chosen_rewards > rejected_rewards).float()",
        "self._metrics[mode]['logps/chosen'].append(self.accelerator.gather(chosen_logps).mean().item())",
    )


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("loss_weights", "zip(self.loss_types, self.loss_weights, strict=True)"),
        ("ld_alpha", "if self.ld_alpha is None:"),
        ("f_divergence_type", "if self.f_divergence_type == 'reverse_kl':"),
        ("use_weighting", "if self.use_weighting:"),
    ],
)
def test_what_makes_a_loss_need_more_than_the_pairs_log_probs(name, where):
    assert_parts(DPO._compute_loss, f"trl.DPOTrainer.{name}", where)
