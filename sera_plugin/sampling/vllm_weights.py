"""The policy's weights as vLLM knows them: names of the base model, adapters merged.

Weights are made whole piece by piece under ZeRO-3, so no process holds them all. A layer with an
adapter is merged on its own and then gets its weights back bit by bit: merging and unmerging all
of them, as TRL does, leaves rounding errors in the frozen base model, which is the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

Gather = Callable[[list[nn.Parameter]], AbstractContextManager[None]]
"""Makes parameters whole on every rank for a while; all ranks must use it alike."""

_WRAPPED = ("modules_to_save.default.", "_checkpoint_wrapped_module.", "base_layer.")


def weights_of(model: nn.Module, gather: Gather) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors in the model's order; a tensor is whole until the next one is asked for.

    Args:
        model: the policy without the wrappers of DDP and DeepSpeed, with or without an adapter.
        gather: see ``Gather``.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    owner = {
        id(parameter): name
        for name in layers
        for parameter in model.get_submodule(name).parameters()
    }
    done: set[str] = set()
    for name, parameter in model.named_parameters():
        layer = owner.get(id(parameter))
        if layer is None:
            if not _dropped(name):
                with gather([parameter]):
                    yield _plain(model, name), parameter.data
        elif layer not in done:
            done.add(layer)
            yield from _merged(model, layer, layers[layer], gather)


def _merged(
    model: nn.Module, name: str, layer: BaseTunerLayer, gather: Gather
) -> Iterator[tuple[str, torch.Tensor]]:
    assert isinstance(layer, nn.Module)
    with gather(list(layer.parameters())), _with_adapter(layer) as base:
        for inner, parameter in base.named_parameters():
            yield _plain(model, f"{name}.{inner}"), parameter.data


@contextmanager
def _with_adapter(layer: BaseTunerLayer) -> Iterator[nn.Module]:
    """The layer under the adapter with the active adapter in its weights."""
    base = layer.get_base_layer()
    own = [(parameter, parameter.data) for parameter in base.parameters()]
    with torch.no_grad():
        for parameter, data in own:
            parameter.data = data.clone()
        try:
            layer.merge()
            yield base
        finally:
            if layer.merged:
                layer.unmerge()
            for parameter, data in own:
                parameter.data = data


def _dropped(name: str) -> bool:
    """Whether a parameter is the copy that a trained module replaces."""
    return "original_module" in name


def _plain(model: nn.Module, name: str) -> str:
    """The name that the parameter has in the base model."""
    if isinstance(model, PeftModel):
        name = name.removeprefix("base_model.model.")
    for part in _WRAPPED:
        name = name.replace(part, "")
    return name
