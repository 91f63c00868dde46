"""Log-probs of answer tokens, found where a model turns hidden states into logits.

For the time of a forward pass the head of a causal LM is given only the positions that predict a
token of an answer, a few hundred at a time, and nothing but the tokens' log-probs leaves it. So
prompts and padding are never turned into logits, and no batch has a tensor of all its logits.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

Forward = Callable[..., Any]

POSITIONS = 512
"""Positions that are turned into logits at a time: 256 MB for a vocabulary of 128,000 in fp32."""

_MARK = 100.0
"""Goes through what a model does behind its head; no log-prob is above 0."""


@dataclass
class Found:
    """What the head found; ``logps`` is None if it was called in an unknown way."""

    logps: list[torch.Tensor] | None = field(default_factory=list)

    def untouched(self, logits: torch.Tensor) -> bool:
        """Whether the model returned what its head gave it, so that the log-probs are right."""
        return self.logps is not None and float(logits.reshape(-1)[-1]) == _MARK


@contextmanager
def watching(head: torch.nn.Module, wanted: torch.Tensor, tokens: torch.Tensor) -> Iterator[Found]:
    """Let ``head`` find the log-probs of tokens in place of logits.

    Args:
        head: the module that maps hidden states to logits.
        wanted: positions whose next token is asked for, bool, shape (rows, width).
        tokens: those next tokens in the order of ``wanted``, shape (k,).
    """
    forward, own = head.forward, "forward" in vars(head)
    found = Found()

    def logps_only(hidden: torch.Tensor) -> torch.Tensor:
        if hidden.shape[:2] != wanted.shape:
            found.logps = None
            logits: torch.Tensor = forward(hidden)
            return logits
        picked = hidden[wanted]
        logps = [
            token_logps(forward(part)[None], of_part[None])[0]
            for part, of_part in zip(picked.split(POSITIONS), tokens.split(POSITIONS), strict=True)
        ]
        found.logps = logps
        return torch.full((1, 1, 1), _MARK, dtype=hidden.dtype, device=hidden.device)

    head.forward = logps_only
    try:
        yield found
    finally:
        if own:
            head.forward = forward
        else:
            del head.forward


def token_logps(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """log π of each token as the host's loss takes it, shape of ``tokens``; at least float32.

    Args:
        logits: what predicts each token, shape (rows, width, vocabulary).
        tokens: int64, shape (rows, width).
    """
    precise = torch.promote_types(logits.dtype, torch.float32)
    # Row by row, so that no second tensor of all logits is made.
    rows = [
        row.gather(-1, of_row[:, None])[:, 0] - row.logsumexp(dim=-1)
        for row, of_row in zip((row.to(precise) for row in logits), tokens, strict=True)
    ]
    return torch.stack(rows)


def completion_logps(
    forward: Forward, inputs: Mapping[str, torch.Tensor], is_answer: torch.Tensor
) -> torch.Tensor:
    """Σ log π over each row's answer tokens, float64 on the CPU, shape (rows,), nats.

    The tokens' log-probs are added in their order, whichever way they were found.

    One forward pass; a second one if the model does more behind its head than to return what the
    head gives, which follows from the model alone and so is equal on every rank.

    Args:
        forward: a causal LM or a wrapper of one.
        inputs: ``input_ids`` and ``attention_mask``, padded on the right, shape (rows, width).
        is_answer: the answers' tokens, bool, shape (rows, width); never a row's first token.
    """
    wanted, following = is_answer[:, 1:], inputs["input_ids"][:, 1:]
    row_of = wanted.nonzero()[:, 0].cpu()
    sums = torch.zeros(len(is_answer), dtype=torch.float64)
    head = head_of(forward)
    if head is not None:
        before = torch.nn.functional.pad(wanted, (0, 1))
        with watching(head, before, following[wanted]) as found:
            logits = forward(**inputs, use_cache=False).logits
        if found.untouched(logits):
            return sums.index_add(0, row_of, torch.cat(found.logps or []).double().cpu())
    positions = wanted.any(dim=0).nonzero()
    first = 1 + (int(positions[0]) if len(positions) else wanted.shape[1])
    logits = _logits_from(forward, inputs, first)
    logps = token_logps(logits, inputs["input_ids"][:, first:])
    return sums.index_add(0, row_of, logps[is_answer[:, first:]].double().cpu())


def answer_logps(
    forward: Forward, inputs: Mapping[str, torch.Tensor], is_answer: torch.Tensor, first: int
) -> torch.Tensor:
    """Σ log π over each row's answer tokens from the logits, float64, shape (rows,), nats.

    Args:
        forward: the model to call; gradients and training mode are the caller's matter.
        inputs: ``input_ids`` and ``attention_mask``, padded on the right, shape (rows, width).
        is_answer: nonzero at the answers' tokens, shape (rows, width).
        first: a position from 1 on before which no row has an answer's token.
    """
    logits = _logits_from(forward, inputs, first)
    logps = token_logps(logits, inputs["input_ids"][:, first:]).double()
    return logps.masked_fill(is_answer[:, first:] == 0, 0.0).sum(dim=1)


def _logits_from(forward: Forward, inputs: Mapping[str, torch.Tensor], first: int) -> torch.Tensor:
    """Logits that predict the tokens from position ``first`` (from 1) on."""
    kept = inputs["input_ids"].shape[1] - first + 1
    options = {"logits_to_keep": kept} if keeps_logits(forward) else {}
    logits: torch.Tensor = forward(**inputs, use_cache=False, **options).logits
    return logits[:, logits.shape[1] - kept : -1]


def causal_lm(forward: Forward) -> Any:
    """The causal LM below wrappers such as DDP, DeepSpeed's engine and PEFT."""
    module: Any = forward
    while True:
        inner = getattr(module, "module", None)
        if inner is None and hasattr(module, "get_base_model"):
            inner = module.get_base_model()
        if inner is None or inner is module:
            return module
        module = inner


def head_of(forward: Forward) -> torch.nn.Module | None:
    """The module that maps hidden states to logits, if the model names one."""
    find = getattr(causal_lm(forward), "get_output_embeddings", None)
    return find() if find is not None else None


def keeps_logits(forward: Forward) -> bool:
    """Whether the causal LM can compute the last positions' logits alone."""
    return "logits_to_keep" in inspect.signature(type(causal_lm(forward)).forward).parameters
