"""Helpers around models, batches and the run's config. Collectives: a gather in ``fingerprint``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from axolotl.integrations.base import PluginManager
from torch.distributed.fsdp import FSDPModule
from transformers.integrations import deepspeed as _deepspeed
from trl.models.utils import add_hooks, disable_gradient_checkpointing, remove_hooks
from trl.trainer import dpo_trainer
from trl.trainer.utils import selective_log_softmax as _of_utils
from trl.trainer.utils import use_adapter

from sera_plugin.data.rounds import ROW_KEY
from sera_plugin.runtime.ranks import gathered
from sera_plugin.runtime.weights import content_of, named_weights, pieces_of

__all__ = ["disable_gradient_checkpointing", "use_adapter"]

# Axolotl patches the one in trl.trainer.utils, so where the loss holds a name of its own, as up to
# TRL 1.15, that one is what the loss calls.
selective_log_softmax = getattr(dpo_trainer, "selective_log_softmax", _of_utils)


# Neither changes log-probs, and the host sets both as it goes along.
_IRRELEVANT = {"use_cache", "_name_or_path"}


def plugin_config() -> Any:
    """The validated config of the run, as Axolotl hands it to its plugins."""
    return PluginManager.get_instance().cfg


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


@contextmanager
def kept_types(model: torch.nn.Module) -> Iterator[None]:
    """What is loaded into a model's parameters inside gets the types that they had before.

    PEFT loads an adapter in float32, also one that TRL trains in bfloat16, as it does on a
    quantised base; a resumed run would go on in another precision.
    """
    types = {name: parameter.dtype for name, parameter in model.named_parameters()}
    yield
    for name, parameter in model.named_parameters():
        if parameter.dtype != types.get(name, parameter.dtype):
            parameter.data = parameter.data.to(types[name])


def fingerprint(model: torch.nn.Module, without: Collection[torch.nn.Parameter] = ()) -> str:
    """32 hex digits of all weights, by name; equal on every rank, which must all call it.

    Ranks that hold whole weights find the same value whatever their number. Ranks that hold
    shares of the weights (ZeRO-3, FSDP2) hash their own, and the value depends on the shares.

    Args:
        model: the model below DDP and the like.
        without: parameters that don't take part.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # A forward pass may leave whole weights behind, and a fresh process has shares.
            module.reshard()
    excluded = {id(parameter) for parameter in without}
    digest = hashlib.blake2b(digest_size=16)
    digest.update(_settings(model).encode())
    for name, tensor in named_weights(model):
        if id(tensor) in excluded:
            continue
        digest.update(name.encode())
        for piece in pieces_of(tensor):
            digest.update(f"\0{piece.dtype}{tuple(piece.shape)}\0".encode())
            digest.update(content_of(piece))
    shares = dict.fromkeys(gathered([digest.hexdigest()]))
    return hashlib.blake2b("".join(shares).encode(), digest_size=16).hexdigest()


def attention_of(model: Any) -> str | None:
    """The host's name of a model's way to attend, such as ``sdpa``."""
    found = getattr(getattr(model, "config", None), "_attn_implementation", None)
    return None if found is None else str(found)


def adapter_weights(model: torch.nn.Module, kept: str | None) -> list[torch.nn.Parameter]:
    """Parameters of all PEFT adapters but the one named ``kept``."""
    found = []
    for module in model.modules():
        for attribute in getattr(module, "adapter_layer_names", ()):
            adapters = getattr(module, attribute, None)
            if isinstance(adapters, torch.nn.ModuleDict):
                named = ((name, tuple(part.parameters())) for name, part in adapters.items())
            elif isinstance(adapters, torch.nn.ParameterDict):
                named = ((name, (part,)) for name, part in adapters.items())
            else:
                continue
            found += [p for name, parameters in named if name != kept for p in parameters]
    return found


def _settings(model: torch.nn.Module) -> str:
    """What log-probs follow from beside the weights."""
    config: Any = getattr(model, "config", None)
    values = config.to_dict() if hasattr(config, "to_dict") else {}
    scales = {
        name: module.scaling
        for name, module in model.named_modules()
        if isinstance(getattr(module, "scaling", None), dict)
    }
    known = {name: value for name, value in values.items() if name not in _IRRELEVANT}
    kernels: list[Any] = [torch.__version__, transformers.__version__]
    kernels.append(getattr(config, "_attn_implementation", None))
    return json.dumps([known, scales, kernels], sort_keys=True, default=str)
