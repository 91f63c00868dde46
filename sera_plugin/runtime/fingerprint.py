"""Identity of a model: a hash of its weights and of what else its log-probs follow from.

Collectives: one gather in ``fingerprint``.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Collection, Iterator
from typing import Any

import torch
import transformers
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from sera_plugin.runtime.objects import gathered

# Neither changes log-probs, and the host sets both as it goes along.
_IRRELEVANT = {"use_cache", "_name_or_path"}


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
    for name, tensor in _weights(model):
        if id(tensor) in excluded:
            continue
        digest.update(name.encode())
        for piece in pieces_of(tensor):
            digest.update(f"\0{piece.dtype}{tuple(piece.shape)}\0".encode())
            digest.update(content_of(piece))
    shares = dict.fromkeys(gathered([digest.hexdigest()]))
    return hashlib.blake2b("".join(shares).encode(), digest_size=16).hexdigest()


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


def _weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}", buffer


def pieces_of(tensor: Any) -> Iterator[torch.Tensor]:
    """The plain tensors that this rank holds of a weight."""
    if hasattr(tensor, "ds_tensor"):  # ZeRO-3
        yield from pieces_of(tensor.ds_tensor)
        return
    if isinstance(tensor, DTensor):  # FSDP2
        yield from pieces_of(tensor.to_local())
        return
    if hasattr(tensor, "__tensor_flatten__"):  # quantized weights of torchao
        for part in (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]):
            if isinstance(part, torch.Tensor):
                yield from pieces_of(part)
        return
    yield tensor
    quantized = getattr(tensor, "quant_state", None)  # bitsandbytes
    if quantized is not None:
        for _, part in sorted(quantized.as_dict(packed=True).items()):
            yield part


def content_of(tensor: torch.Tensor) -> Any:
    """The bytes of a tensor; random ones if it is on disk or nowhere, so that no key matches."""
    status = getattr(tensor, "status", None)  # of ZeRO-3's shares
    if tensor.is_meta or (status is not None and status.name != "AVAILABLE"):
        return secrets.token_bytes(16)
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8).cpu().numpy()
