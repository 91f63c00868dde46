"""θ + α·(θ − θ_start): tensors, and adapters whose B·A was 0 at the start. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sera_plugin.runtime.errors import RunError

BLOCK = 2**20
"""Weights that are worked on at a time: 4 MiB of each operand in float32."""

LOW_RANK = {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"}
"""Parts of the names of an adapter's factors."""

STARTS_AT_ZERO = (True, "gaussian", "eva", "mica")
"""Values of ``init_lora_weights`` with which B·A is 0 before the first update, and the base model
stays as it is."""

NOT_LINEAR = ("use_dora", "use_qalora", "use_bdlora", "arrow_config", "monteclora_config",
              "velora_config")  # fmt: skip
"""Keys of an adapter that may take it out of proportion to ``lora_alpha``."""


def extrapolated(end: torch.Tensor, start: torch.Tensor, alpha: float) -> torch.Tensor:
    """end + α·(end − start), computed in float32 and cast to the dtype of ``end``.

    ``start`` is first cast to that dtype, in which the run held it, so a weight that training has
    not moved stays as it is. Tensors of whole numbers are those of ``end``.

    Args:
        end: trained weights of any shape.
        start: the same before training.
        alpha: how far to go beyond the end.

    Raises:
        OverflowError: a result is not a finite number in the dtype.
    """
    if not end.is_floating_point():
        return end.clone()
    wide = torch.promote_types(end.dtype, torch.float32)
    result = torch.empty(end.shape, dtype=end.dtype)
    blocks = (tensor.reshape(-1).split(BLOCK) for tensor in (end, start, result))
    for trained, begun, target in zip(*blocks, strict=True):
        moved = trained.to(wide)
        target.copy_(moved + alpha * (moved - begun.to(end.dtype).to(wide)))
        if not target.isfinite().all():
            raise OverflowError(f"not finite in {end.dtype}")
    return result


def check_adapter(config: Mapping[str, Any]) -> None:
    """Refuse an adapter whose change of the weights can't be scaled exactly.

    Args:
        config: ``adapter_config.json``.

    Raises:
        RunError: one sentence.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise RunError(f"adapter_config.json: peft_type: {kind} can't be extrapolated, only LORA.")
    if not isinstance(config.get("lora_alpha"), (int, float)):
        raise RunError("adapter_config.json holds no lora_alpha.")
    for key in NOT_LINEAR:
        if config.get(key):
            raise RunError(
                f"adapter_config.json: {key} can't be extrapolated exactly, because the weights "
                "are not linear in the adapter; plain LoRA and rslora can."
            )
    begun = config.get("init_lora_weights", True)
    if begun not in STARTS_AT_ZERO:
        raise RunError(
            f"adapter_config.json: init_lora_weights: {begun} can't be extrapolated, because B·A "
            "was not 0 when the run began; true, gaussian, eva and mica can."
        )


def scaled(config: Mapping[str, Any], alpha: float) -> dict[str, Any]:
    """An adapter's config with all ``lora_alpha`` times 1 + α, which scales ΔW = s·B·A.

    s is lora_alpha / r or lora_alpha / √r, so this is exact where rounding (1 + α)·B to the stored
    dtype is not.
    """
    pattern = config.get("alpha_pattern") or {}
    return {
        **config,
        "lora_alpha": _times(config["lora_alpha"], alpha),
        "alpha_pattern": {name: _times(value, alpha) for name, value in pattern.items()},
    }


def _times(value: float, alpha: float) -> float:
    grown = value * (1 + alpha)
    return int(grown) if grown == int(grown) else grown


def is_low_rank(name: str) -> bool:
    """Whether a tensor of an adapter is a factor, and not a weight that was trained whole."""
    return not LOW_RANK.isdisjoint(name.split("."))


def base_name(name: str) -> str:
    """The name in the base model of a weight that an adapter holds whole."""
    inner = name.removeprefix("base_model.model.")
    return inner.replace(".base_layer.", ".").replace(".modules_to_save.", ".")
