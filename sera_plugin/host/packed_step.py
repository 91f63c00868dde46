"""A training step of the host whose forward pass has no padding: its loss and its log.

The log's numbers are those that TRL takes from the logits of a padded batch, under the same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from trl import DPOTrainer


@dataclass(frozen=True)
class AnswerTokens:
    """Numbers of every answer token of a micro-batch, in any order.

    Attributes:
        logps: log πθ of the token, nats, float32 or better, with gradient, shape (k,).
        owners: the answer that it belongs to: chosen answers from 0, then rejected ones, int64,
            shape (k,).
        answers: how many answers there are.
        entropy: of the distribution that the token was drawn from, nats, shape (k,).
        logits: mean of the logits, shape (k,).
        hits: 1 where the token is the likeliest, else 0, shape (k,).
    """

    logps: torch.Tensor
    owners: torch.Tensor
    answers: int
    entropy: torch.Tensor
    logits: torch.Tensor
    hits: torch.Tensor

    def sums(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of the values of each answer's tokens, added up in float64, shape (answers,)."""
        zeros = values.new_zeros(self.answers, dtype=torch.float64)
        return zeros.index_add(0, self.owners, values.double()).to(values.dtype)

    def pairs(self, values: torch.Tensor) -> torch.Tensor:
        """The same of chosen and rejected answers, shape (pairs, 2)."""
        return torch.stack(self.sums(values).chunk(2), dim=1)

    def part(self, first: int, last: int) -> AnswerTokens:
        """The same of the pairs from ``first`` on and before ``last`` alone."""
        pairs = self.answers // 2
        pair, rejected = self.owners % pairs, self.owners >= pairs
        mine = (pair >= first) & (pair < last)
        owners = pair - first + (last - first) * rejected
        return AnswerTokens(
            self.logps[mine], owners[mine], 2 * (last - first), self.entropy[mine],
            self.logits[mine], self.hits[mine],
        )  # fmt: skip


class PackedForward(Protocol):
    """Computes a micro-batch without padding."""

    def __call__(self, model: Any, batch: Mapping[str, torch.Tensor]) -> AnswerTokens:
        """Numbers of the answers' tokens of a batch of the host's collator."""


def reference_of(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Log-probs of both answers under πref, shape (pairs, 2)."""
    return torch.stack([batch["ref_chosen_logps"], batch["ref_rejected_logps"]], dim=1)


def token_counts(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Tokens of both answers as the loss counts them, int64, shape (pairs, 2)."""
    return torch.stack(batch["completion_mask"].sum(dim=1).chunk(2), dim=1)


def beyond_pairs(trainer: Any) -> str | None:
    """Why the host's loss is not a function of the four log-probs of each pair, or None if it is.

    Args:
        trainer: a ``DPOTrainer``.
    """
    if len(trainer.loss_types) > 1 or list(trainer.loss_weights) != [1.0]:
        return "the loss is a sum of several"
    if trainer.ld_alpha is not None:
        return "dpo_ld_alpha (ld_alpha) weighs tokens by their place"
    if trainer.f_divergence_type != "reverse_kl":
        return f"f_divergence_type is {trainer.f_divergence_type}"
    if trainer.use_weighting:
        return "dpo_use_weighting weighs pairs by their logits"
    if trainer.aux_loss_enabled:
        return "the router's loss of a mixture of experts is taken over padded batches"
    return None


MIXING = {"aot", "aot_unpaired", "sft"}
"""Losses of the host that look at the pairs of a micro-batch together."""


def mixes_pairs(trainer: Any) -> bool:
    """Whether the host's loss depends on which pairs share a micro-batch.

    Args:
        trainer: a ``DPOTrainer``.
    """
    return bool(MIXING & set(map(str, trainer.loss_types)) or trainer.aux_loss_enabled)


def log_step(trainer: DPOTrainer, batch: Mapping[str, torch.Tensor], found: AnswerTokens) -> None:
    """Put a step's numbers into the host's running averages, as its own loss does."""
    metrics, gather = trainer._metrics["train"], trainer.accelerator.gather
    totalled = trainer.accelerator.gather_for_metrics
    counts = token_counts(batch) - _unpredicted(batch)

    def per_token(values: torch.Tensor, tokens: torch.Tensor) -> float:
        value, count = totalled(values.sum()).sum(), totalled(tokens.sum()).sum()
        return (value / count).item() if count > 0 else 0.0

    metrics["entropy"].append(per_token(found.entropy, counts))
    seen = totalled(batch["attention_mask"].sum()).sum().item()
    trainer._total_train_tokens += seen
    metrics["num_tokens"] = [trainer._total_train_tokens]
    logits, hits = found.pairs(found.logits), found.pairs(found.hits)
    metrics["logits/chosen"].append(per_token(logits[:, 0], counts[:, 0]))
    metrics["logits/rejected"].append(per_token(logits[:, 1], counts[:, 1]))
    metrics["mean_token_accuracy"].append(per_token(hits[:, 0], counts[:, 0]))
    policy = found.pairs(found.logps.detach())
    rewards = trainer.beta * (policy - reference_of(batch).to(policy))
    correct = (rewards[:, 0] > rewards[:, 1]).float()
    for name, values in {
        "rewards/chosen": rewards[:, 0],
        "rewards/rejected": rewards[:, 1],
        "rewards/accuracies": correct,
        "rewards/margins": rewards[:, 0] - rewards[:, 1],
        "logps/chosen": policy[:, 0],
        "logps/rejected": policy[:, 1],
    }.items():
        metrics[name].append(gather(values.contiguous()).mean().item())


def _unpredicted(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Answer tokens that stand first in their rows, which nothing predicts, shape (pairs, 2)."""
    return torch.stack(batch["completion_mask"][:, 0].chunk(2), dim=1)
