"""A model's weights: their identity, and whether they still are numbers.

Collectives: one gather in ``fingerprint``, one reduction in ``FiniteWeights.check``.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Collection, Iterator
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from sera_plugin.runtime.errors import BadNumbersError
from sera_plugin.runtime.ranks import gathered

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


class FiniteWeights:
    """Raises an error when training has ruined weights. Every rank must make one and call it.

    Args:
        model: the policy, wrapped or not.
        accelerator: the trainer's accelerator.
    """

    def __init__(self, model: torch.nn.Module, accelerator: Accelerator) -> None:
        self._model = model
        self._accelerator = accelerator
        self._at_start = self._bad()

    def check(self, step: int) -> None:
        """Look at all trained weights; ranks with shares of them look at their own.

        Raises:
            BadNumbersError: if more parameters than at the start hold NaN or an infinity.
        """
        bad = self._bad()
        if bad > self._at_start:
            raise BadNumbersError(
                f"step {step}: {bad} parameters have weights that are not finite numbers and "
                "nothing is saved; resume from the last checkpoint with a lower learning_rate or "
                "another precision."
            )

    def _bad(self) -> int:
        bad = torch.zeros((), device=self._accelerator.device)
        for parameter in self._model.parameters():
            if parameter.requires_grad:
                finite = [bool(p.isfinite().all()) for p in pieces_of(parameter) if _at_hand(p)]
                bad += not all(finite)
        return int(self._accelerator.reduce(bad, reduction="sum"))


def _at_hand(piece: torch.Tensor) -> bool:
    status = getattr(piece, "status", None)  # of ZeRO-3's shares
    floating = piece.is_floating_point() and not piece.is_meta
    return floating and (status is None or status.name == "AVAILABLE")
