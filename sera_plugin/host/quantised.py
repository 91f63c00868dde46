"""What training on a base in 4 bits needs on a CPU."""

from __future__ import annotations

import sys
from typing import Any

import torch

from sera_plugin.runtime.errors import SeraConfigError


def keep_gradients(model: torch.nn.Module) -> int:
    """Let 4-bit layers on the CPU pass gradients after an evaluation; returns how many there are.

    On a CPU with AVX512-BF16 bitsandbytes packs such a layer's weights at the first forward pass
    in evaluation mode. A packed layer has no backward pass and raises nothing, so every layer
    below it trains on a wrong gradient, or on none. Packing also rounds the weights' scales to
    bfloat16, so it can't be undone; it is switched off before the first pass.

    Raises:
        SeraConfigError: one sentence, if layers are packed already or can't be kept from it.
    """
    layers = [layer for layer in _layers(model) if layer.weight.device.type == "cpu"]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
    if any(getattr(layer.weight.quant_state, "packing_format_for_cpu", False) for layer in layers):
        raise _refused("has packed the weights already")
    if layers and not _passes_gradients():
        raise _refused("packs the weights")
    return len(layers)


def _layers(model: torch.nn.Module) -> list[Any]:
    modules: Any = sys.modules.get("bitsandbytes.nn")  # imported if there is such a layer
    if modules is None:
        return []
    return [layer for layer in model.modules() if isinstance(layer, modules.Linear4bit)]


def _passes_gradients() -> bool:
    """Whether a 4-bit layer that is kept from packing passes a gradient after an evaluation."""
    from bitsandbytes.nn import Linear4bit

    layer: Any = Linear4bit(64, 64, bias=False, compute_dtype=torch.float32)
    layer = layer.to("cpu")
    layer.support_avx512bf16_for_cpu = False
    given = torch.ones(1, 64)
    layer.eval()
    with torch.no_grad():
        layer(given)
    layer.train()
    with torch.enable_grad():
        total = layer(given.requires_grad_()).sum()
        if total.requires_grad:
            total.backward()
    return given.grad is not None


def _refused(what: str) -> SeraConfigError:
    import bitsandbytes

    return SeraConfigError(
        f"load_in_4bit: true can't be used on this CPU, because bitsandbytes "
        f"{bitsandbytes.__version__} {what} in a way that passes no gradients after an "
        "evaluation; train on a GPU, or with load_in_8bit: true and adapter: lora."
    )
