"""A cache of keys and values that is not copied for every token; see the package's docstring."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache, DynamicLayer, PreTrainedConfig

STEP = 32
"""Tokens that a buffer has room for when it is made."""


def growing_cache(config: PreTrainedConfig) -> DynamicCache:
    """``DynamicCache`` of a model, its layers of full attention with room to grow.

    The host's layers copy all keys and values for each new token, which costs more than reading
    them does. Layers of another kind (sliding windows, states) stay as the host made them.

    Args:
        config: of the model.
    """
    cache = DynamicCache(config=config)
    cache.layers = [
        GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


class GrowingLayer(DynamicLayer):
    """Keys and values, shape (rows, heads, tokens, width), as views of buffers with room.

    Without gradients only: what was read before is written to in place beyond its end.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._buffers: dict[str, torch.Tensor] = {}
        self._views: dict[str, torch.Tensor] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._append("keys", self.keys, key_states)
        self.values = self._append("values", self.values, value_states)
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._let_go()

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        self._let_go()

    def _append(self, name: str, held: torch.Tensor | None, new: torch.Tensor) -> torch.Tensor:
        before = 0 if held is None or held.numel() == 0 else held.shape[-2]
        after = before + new.shape[-2]
        buffer = self._buffers.get(name)
        # The host may have put another tensor in the place of our view.
        if buffer is None or held is not self._views[name] or after > buffer.shape[-2]:
            buffer = new.new_empty((*new.shape[:-2], after + STEP, new.shape[-1]))
            if held is not None and before:
                buffer[..., :before, :] = held
        buffer[..., before:after, :] = new
        self._buffers[name], self._views[name] = buffer, buffer[..., :after, :]
        return self._views[name]

    def _let_go(self) -> None:
        """Of buffers whose rows were just copied, before the next layer's are."""
        # A copy of the layer may have the same ones.
        self._buffers, self._views = {}, {}
