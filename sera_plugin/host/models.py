"""Helpers around models, batches and the run's config; see the package's docstring."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from axolotl.core.trainers.dpo.trainer import AxolotlDPOTrainer
from axolotl.integrations.base import PluginManager
from datasets import Dataset
from transformers.integrations import deepspeed as _deepspeed
from trl.models.utils import add_hooks, disable_gradient_checkpointing, remove_hooks

# Axolotl patches the function of the same name in trl.trainer.utils; the loss uses this one.
from trl.trainer.dpo_trainer import selective_log_softmax
from trl.trainer.utils import use_adapter

from sera_plugin.data.rounds import ROW_KEY

__all__ = ["disable_gradient_checkpointing", "selective_log_softmax", "use_adapter"]


def plugin_config() -> Any:
    """The validated config of the run, as Axolotl hands it to its plugins."""
    return PluginManager.get_instance().cfg


def tokenized(dataset: Dataset, tokenizer: Any, max_length: int | None) -> Dataset:
    """Preference pairs with token ids, as the trainer of a run has them; needs no model."""
    trainer = AxolotlDPOTrainer.__new__(AxolotlDPOTrainer)
    trainer._tokenizer = tokenizer
    args: Any = SimpleNamespace(
        max_length=max_length, truncation_mode="keep_start", dataset_num_proc=None
    )
    return trainer._prepare_dataset(dataset, tokenizer, args, "train")


@contextmanager
def gathered_weights(model: torch.nn.Module) -> Iterator[None]:
    """All weights of a ZeRO-3 engine on every rank, its hooks off; both are put back on leaving.

    Like TRL's ``unwrap_model_for_generation``, but the hooks also come back if the body raises.
    """
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        remove_hooks(model)
        try:
            yield
        finally:
            add_hooks(model)


class KeyedCollator:
    """The host's collator, which drops what it doesn't know, with the rows' keys beside it.

    Args:
        inner: the host's collator.
    """

    def __init__(self, inner: Callable[..., dict[str, Any]]) -> None:
        self.inner = inner

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch = self.inner(examples)
        if ROW_KEY in examples[0]:
            batch[ROW_KEY] = [example[ROW_KEY] for example in examples]
        return batch


def answer_sums(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    is_answer: torch.Tensor,
    dtype: torch.dtype = torch.float64,
) -> torch.Tensor:
    """Σ log π over each row's answer tokens, shape (rows,), nats, on the logits' device.

    Args:
        logits: what predicts each token, shape (rows, width, vocabulary).
        tokens: int64, shape (rows, width).
        is_answer: nonzero at the answers' tokens, shape (rows, width).
        dtype: in which the sum is taken.
    """
    logps = selective_log_softmax(logits, tokens).to(dtype)
    return logps.masked_fill(is_answer == 0, 0.0).sum(dim=1)


@torch.no_grad()
def logps_of_batch(logits: torch.Tensor, batch: Mapping[str, Any]) -> torch.Tensor:
    """Log-probs of the answers of a training batch, float64 on the CPU, shape (pairs, 2).

    Args:
        logits: what the model gave for the batch, shape (2·pairs, tokens, vocabulary).
        batch: ``input_ids`` and ``completion_mask`` of the chosen, then the rejected answers.
    """
    sums = answer_sums(logits[:, :-1], batch["input_ids"][:, 1:], batch["completion_mask"][:, 1:])
    return torch.stack(sums.chunk(2), dim=1).cpu()


@contextmanager
def whole_models() -> Iterator[None]:
    """Models that are loaded inside have whole weights on every rank, also under ZeRO-3."""
    config = _deepspeed._hf_deepspeed_config_weak_ref
    _deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        _deepspeed._hf_deepspeed_config_weak_ref = config
