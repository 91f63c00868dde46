"""Log-probs of answers from a forward pass without padding, with gradient.

For the time of the pass the head of a causal LM gets the positions that predict an answer's token
and gives numbers of each token in the place of logits. They leave the model as its output, so that
DDP, DeepSpeed and FSDP see them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from sera_plugin.host.packed_step import AnswerTokens
from sera_plugin.scoring.layout import Layout, NotPackable, groups_of, layout
from sera_plugin.scoring.logps import POSITIONS, Forward, causal_lm, head_of

KEPT_LOGITS = 2**23
"""Up to so many numbers, 32 MiB in float32, the softmax of all answer tokens is kept for the
backward pass; beyond it the logits are computed again, some positions at a time."""

NUMBERS = 4
"""Of each token; see ``AnswerTokens``."""


class _Numbers(torch.autograd.Function):
    """Log-prob, entropy, mean logit and hit of each token from logits, shape (k, 4), float32.

    Only the log-prob has a gradient: one-hot − softmax.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
        total = precise.logsumexp(dim=-1)
        logps = precise.gather(-1, tokens[:, None])[:, 0] - total
        hits = (precise.argmax(dim=-1) == tokens).to(precise)
        means = precise.mean(dim=-1)
        chances = (precise - total[:, None]).exp_()
        entropy = total - torch.linalg.vecdot(chances, precise)
        ctx.save_for_backward(chances, tokens)
        ctx.dtype = logits.dtype
        return torch.stack([logps, entropy, means, hits], dim=-1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        chances, tokens = ctx.saved_tensors
        of_logps = gradients[0][:, :1]
        gradient = chances * -of_logps
        gradient.scatter_add_(-1, tokens[:, None], of_logps.to(gradient))
        return gradient.to(ctx.dtype), None


@contextmanager
def giving_numbers(head: torch.nn.Module, laid: Layout) -> Iterator[None]:
    """Let ``head`` give numbers of the answers' tokens in the place of logits, shape (1, k, 4).

    Args:
        head: the module that maps hidden states to logits.
        laid: what the model is called with.
    """
    forward, own = head.forward, "forward" in vars(head)

    def of(hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = _Numbers.apply(forward(hidden), tokens)  # type: ignore[no-untyped-call]
        return found

    def numbers(hidden: torch.Tensor) -> torch.Tensor:
        if hidden.shape[:2] != laid.input_ids.shape:
            raise NotPackable(f"its head is given {tuple(hidden.shape)} at once")
        picked = hidden.flatten(0, 1)[laid.at]
        if len(picked) * vocabulary_of(head) <= KEPT_LOGITS:
            return of(picked, laid.tokens)[None]
        parts = zip(picked.split(POSITIONS), laid.tokens.split(POSITIONS), strict=True)
        return torch.cat([checkpoint(of, *part, use_reentrant=False) for part in parts])[None]

    head.forward = numbers
    try:
        yield
    finally:
        if own:
            head.forward = forward
        else:
            del head.forward


def vocabulary_of(head: torch.nn.Module) -> int:
    """Logits of a position."""
    return int(getattr(head, "out_features", 0) or next(head.parameters()).shape[0])


@dataclass(frozen=True)
class Packed:
    """The forward pass of a training step without padding; see ``host.packed_step.PackedForward``.

    Attributes:
        pad: fills rows; what it is changes nothing.
        shared: whether both answers of a pair stand behind one prompt.
        linear: see ``layout.in_rows``.
        additive: whether the model's attention takes masks that are added.
    """

    pad: int
    shared: bool
    linear: int | None
    additive: bool = False

    def __call__(self, model: Forward, batch: Any) -> AnswerTokens:
        """Numbers of the answers' tokens of a micro-batch, the log-probs with gradient.

        Raises:
            NotPackable: if the model is made otherwise than a check at the start let expect.
        """
        ids = batch["input_ids"]
        laid = layout(groups_of(batch, shared=self.shared), self.pad, self.linear, ids.device)
        return self.of_layout(model, laid, len(ids))

    def of_layout(self, model: Forward, laid: Layout, answers: int) -> AnswerTokens:
        """The same of groups that lie in rows.

        Args:
            model: a causal LM or a wrapper of one.
            laid: its input.
            answers: how many answers there are.
        """
        head = head_of(model)
        if head is None:
            raise NotPackable("it names no module that makes logits")
        inputs = laid.inputs
        if self.additive and laid.mask is not None:
            dtype = getattr(causal_lm(model), "dtype", torch.float32)
            closed = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=laid.mask.device)
            inputs["attention_mask"] = torch.where(laid.mask, closed.new_zeros(()), closed)
        with giving_numbers(head, laid):
            found = model(**inputs, use_cache=False).logits
        if tuple(found.shape) != (1, len(laid.tokens), NUMBERS):
            raise NotPackable("it does not return what its head gives")
        logps, entropy, means, hits = found[0].unbind(dim=-1)
        return AnswerTokens(
            logps, laid.owners, answers, entropy.detach(), means.detach(), hits.detach()
        )
