"""A model's weights: the tensors that a rank holds, and whether they still are numbers.

Collectives: one reduction in ``FiniteWeights.check``.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor

from sera_plugin.runtime.errors import BadNumbersError


def named_weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters, then the buffers that are saved with them, by name."""
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
