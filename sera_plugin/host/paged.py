"""Continuous batching of transformers, with draws of our own; see the package's docstring."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, PreTrainedModel
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.cache import group_layers_by_attn_type
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingLogitsProcessorList,
)
from transformers.utils import is_flash_attn_2_available

BLOCK = 256
"""Tokens of a block of the cache; flash attention takes no other size."""

PREFILL = 2048
"""Tokens of prompts that are read in one forward pass."""

MEMORY = 0.8
"""Share of the free memory that the cache may take; the logits need some too."""

_LOG = "ContinuousBatchingLogger"


@dataclass(frozen=True)
class PagedRequest:
    """An answer that is wanted.

    Attributes:
        prompt: token ids.
        room: most tokens of the answer.
        draws: uniforms that its tokens follow, float64, shape (room,), or None for greedy decoding.
    """

    prompt: Sequence[int]
    room: int
    draws: np.ndarray | None = None


class SeededDraws(ContinuousBatchingLogitsProcessor):
    """Leaves of each row's tokens only the one that the request's own number draws.

    The manager copies one number per row to the device before each pass, here the place of the
    row's uniform in a table of all. The place follows from how many tokens the request has in the
    cache, which holds however requests are batched, interrupted or computed ahead.
    """

    def __init__(
        self,
        requests: Mapping[str, PagedRequest],
        choose: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        device: torch.device,
    ) -> None:
        self.supported_kwargs = {}
        self.ignored_kwargs = ()
        tables = [request.draws for request in requests.values() if request.draws is not None]
        self._draws = torch.from_numpy(np.concatenate(tables)).to(device)
        self._choose = choose
        ends = np.cumsum([len(table) for table in tables])
        self._first = {
            name: int(end) - len(table) - len(request.prompt)
            for (name, request), table, end in zip(requests.items(), tables, ends, strict=True)
        }

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> torch.Tensor:
        places = [
            self._first[request.state.request_id] + request.state.position_offset
            for request in requests_with_new_token
        ]
        # A pass computed ahead may be one token too many; what it draws is dropped.
        return torch.tensor(places, dtype=torch.int32).clamp(max=len(self._draws) - 1)

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        numbers = self._draws[tensor_arg[: scores.shape[0]].long()]
        return self._choose(scores, numbers[:, None])


def paged_answers(
    model: PreTrainedModel,
    requests: Mapping[str, PagedRequest],
    stops: Sequence[int],
    warpers: Sequence[Any] = (),
    choose: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> dict[str, list[int]]:
    """Completions by the names of their requests, token ids, the stop token included.

    Args:
        model: a causal LM without wrappers, in evaluation mode.
        requests: what is wanted; each has a prompt and room for at least one token.
        stops: token ids that end an answer.
        warpers: logits processors that go before the draw.
        choose: 0 at the token that a row's logits and uniform (rows, 1) draw, −∞ elsewhere; None
            for greedy decoding.

    Raises:
        RuntimeError: if an answer is missing; with "out of memory." in it if memory ran out.
    """
    dtype, mixed = _dtype_of_values(model)
    devices = [model.device] if model.device.type == "cuda" else []
    kind = _attention(model, dtype, mixed)
    with _paged_attention(model, kind), _quiet(), torch.random.fork_rng(devices):
        start: Any = model.init_continuous_batching
        manager = start(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=sorted(stops)),
            continuous_batching_config=_sizes(model, requests),
        )
        if choose is not None:
            draws = SeededDraws(requests, choose, model.device)
            processors = ContinuousBatchingLogitsProcessorList(
                LogitsProcessorList([*warpers, draws])
            )
            processors.tensors_required = 1
            manager.logit_processor = processors
        for name, request in requests.items():
            manager.add_request(
                list(request.prompt), request_id=name, max_new_tokens=request.room,
                eos_token_id=sorted(stops),
            )  # fmt: skip
        manager.batch_processor = _processor(manager, dtype)
        manager.start()
        try:
            manager.stop()  # when all requests are through
        finally:
            if manager.is_running():
                manager.stop(hard_stop=True)
            manager.destroy()
    return _collected(manager, requests)


def _collected(manager: Any, requests: Mapping[str, PagedRequest]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    while (result := manager.get_result()) is not None:
        if result.is_finished():
            found[result.request_id] = result.generated_tokens
    lost = [name for name in requests if name not in found]
    if lost:
        if manager.fatal_error is not None:
            raise manager.fatal_error
        raise RuntimeError(
            f"sera.bootstrap.engine: transformers_paged lost {len(lost)} of {len(requests)} "
            "answers; use transformers."
        )
    return found


def _sizes(
    model: PreTrainedModel, requests: Mapping[str, PagedRequest]
) -> ContinuousBatchingConfig:
    """A cache in which all answers have room, so that none is ever put out."""
    groups = len(group_layers_by_attn_type(model.config)[0])
    # The scheduler may take a block more than the tokens need.
    blocks = sum((len(r.prompt) + r.room) // BLOCK + 2 for r in requests.values())
    return ContinuousBatchingConfig(
        block_size=BLOCK,
        num_blocks=groups * blocks,
        max_batch_tokens=max(
            len(requests), min(PREFILL, sum(len(r.prompt) for r in requests.values()))
        ),
        max_requests_per_batch=len(requests),
        max_memory_percent=MEMORY,
        seed=0,
        disable_nccl_graph_mixing=False,
    )


def _processor(manager: Any, dtype: torch.dtype) -> Any:
    """The manager's batch processor, with a cache of the values' type and not of the weights'.

    Made in this thread: in the manager's own one the current GPU would be the first.
    """
    model = manager.model
    manager.model = SimpleNamespace(
        config=model.config,
        device=model.device,
        dtype=dtype,
        tp_plan=getattr(model, "tp_plan", {}),
    )
    try:
        processor = manager._create_batch_processor()
    except MemoryError as error:
        raise RuntimeError(f"No room for a cache ({error}): out of memory.") from error
    finally:
        manager.model = model
    update = processor.cache.update

    def in_one_type(key_states: Any, value_states: Any, *rest: Any, **named: Any) -> Any:
        return update(key_states.to(dtype), value_states.to(dtype), *rest, **named)

    processor.cache.update = in_one_type
    return processor


def _dtype_of_values(model: PreTrainedModel) -> tuple[torch.dtype, bool]:
    """The type of the values, and whether keys have another one.

    Under autocast the values come from a linear layer in half precision, while rotary embeddings
    may widen the keys; attention then narrows them again.
    """
    cache = DynamicCache(config=model.config)
    inputs = torch.zeros((1, 1), dtype=torch.long, device=model.device)
    model(input_ids=inputs, past_key_values=cache, use_cache=True)
    layer: Any = cache.layers[0]
    return layer.values.dtype, layer.keys.dtype != layer.values.dtype


def _attention(model: PreTrainedModel, dtype: torch.dtype, mixed: bool) -> str:
    """The kind of attention over blocks: flash attention where it can be used."""
    own = model.config._attn_implementation
    if mixed:
        return "sdpa"
    if own.startswith("flash_attention"):
        return own
    half = dtype in (torch.float16, torch.bfloat16)
    on_gpu = model.device.type == "cuda" and is_flash_attn_2_available()
    return "flash_attention_2" if half and on_gpu and model._supports_flash_attn else "sdpa"


@contextmanager
def _paged_attention(model: PreTrainedModel, kind: str) -> Iterator[None]:
    """The model with attention over blocks; its own is put back."""
    own = model.config._attn_implementation
    model.set_attn_implementation(f"paged|{kind}")
    try:
        yield
    finally:
        model.set_attn_implementation(own)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the manager's notes on each batch."""
    log = logging.getLogger(_LOG)
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)
