"""The loss as a chain of terms: from the log-probs of a step's pairs to one number. Pure torch.

A step starts with four log-probs per pair. Every term maps it to another step: it may shift the
margins, weigh or flip pairs, or add a number. At the end a base makes the loss of it:

    loss = mean(weight · [(1 − flip)·base(m) + flip·base(−m)]) + extra,   m = margin + shift
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Base:
    """A loss of pairs that depends on their margins alone.

    Attributes:
        name: the host's name of it.
        per_token: whether its margin is of means per token, without β, or of sums, times β.
        needs_reference: whether it looks at πref.
        of: the loss of margins, shape (n,), given β.
    """

    name: str
    per_token: bool
    needs_reference: bool
    of: Callable[[torch.Tensor, float], torch.Tensor]

    def margin(self, ratios: torch.Tensor, tokens: torch.Tensor, beta: float) -> torch.Tensor:
        """The margins of pairs, shape (n,).

        With ρ± = log πθ/πref(y±|x): β·(ρ⁺ − ρ⁻), or ρ⁺/|y⁺| − ρ⁻/|y⁻| per token.

        Args:
            ratios: ρ⁺ and ρ⁻, nats, shape (n, 2).
            tokens: |y⁺| and |y⁻|, shape (n, 2).
            beta: β.
        """
        if self.per_token:
            means = ratios / tokens.clamp(min=1)
            return means[:, 0] - means[:, 1]
        return beta * (ratios[:, 0] - ratios[:, 1])


def _sigmoid(margin: torch.Tensor, beta: float) -> torch.Tensor:
    """DPO (arXiv 2305.18290, eq. 7): −log σ(m)."""
    return -logsigmoid(margin)


def _ipo(margin: torch.Tensor, beta: float) -> torch.Tensor:
    """IPO (arXiv 2310.12036, eq. 17): (m − 1/(2β))²."""
    return (margin - 1 / (2 * beta)) ** 2


def _hinge(margin: torch.Tensor, beta: float) -> torch.Tensor:
    """SLiC (arXiv 2305.10425): max(0, 1 − m)."""
    return torch.relu(1 - margin)


def _robust(smoothing: float) -> Callable[[torch.Tensor, float], torch.Tensor]:
    """Robust DPO (arXiv 2403.00409): [(1 − ε)·ℓ(m) − ε·ℓ(−m)]/(1 − 2ε), ℓ = −log σ."""

    def loss(margin: torch.Tensor, beta: float) -> torch.Tensor:
        right, wrong = -logsigmoid(margin), -logsigmoid(-margin)
        return ((1 - smoothing) * right - smoothing * wrong) / (1 - 2 * smoothing)

    return loss


BASES = ("sigmoid", "ipo", "hinge", "robust")
"""The host's losses that have a base here."""


def base_of(loss: str, smoothing: float = 0.0) -> Base:
    """The base of one of ``BASES``.

    Args:
        loss: the host's name.
        smoothing: the host's label smoothing, which ``robust`` takes.

    Raises:
        KeyError: for any other loss.
    """
    losses = {"sigmoid": _sigmoid, "ipo": _ipo, "hinge": _hinge, "robust": _robust(smoothing)}
    return Base(loss, per_token=loss == "ipo", needs_reference=True, of=losses[loss])


@dataclass(frozen=True)
class Step:
    """The pairs of a micro-batch, on their way to the loss.

    Attributes:
        keys: the rows of the round, as ``RoundRow.key``; n of them.
        policy: log πθ of the chosen and of the rejected answers, with gradient, nats, shape (n, 2).
        reference: the same under πref, without gradient.
        tokens: tokens of the answers as the loss counts them, int64, shape (n, 2).
        beta: β.
        base: what makes a loss of the step.
        logits: what predicts the tokens of the batch, the chosen rows before the rejected ones, or
            None where it is not at hand.
        shift: added to the margins, in their unit, shape (n,).
        weight: of each pair, shape (n,).
        flip: how likely each pair's label is wrong, from 0 to 1, shape (n,).
        extra: added to the loss, a scalar.
        noted: numbers of each pair for the log, shape (n,), by name.
    """

    keys: tuple[str, ...]
    policy: torch.Tensor
    reference: torch.Tensor
    tokens: torch.Tensor
    beta: float
    base: Base
    logits: torch.Tensor | None
    shift: torch.Tensor
    weight: torch.Tensor
    flip: torch.Tensor
    extra: torch.Tensor
    noted: Mapping[str, torch.Tensor] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def of(
        cls,
        keys: Sequence[str],
        policy: torch.Tensor,
        reference: torch.Tensor,
        tokens: torch.Tensor,
        beta: float,
        base: Base,
        logits: torch.Tensor | None = None,
    ) -> Step:
        """The step that no term has changed; arguments as the attributes."""
        zeros = torch.zeros_like(policy[:, 0], requires_grad=False)
        return cls(
            tuple(keys), policy, reference.to(policy), tokens, beta, base, logits,
            shift=zeros, weight=torch.ones_like(zeros), flip=zeros, extra=zeros.new_zeros(()),
        )  # fmt: skip

    @property
    def ratios(self) -> torch.Tensor:
        """log πθ/πref of both answers, shape (n, 2)."""
        return self.policy - self.reference

    @property
    def margin(self) -> torch.Tensor:
        """The base's margins before any shift, shape (n,)."""
        return self.base.margin(self.ratios, self.tokens, self.beta)

    def loss(self) -> torch.Tensor:
        """The loss, a scalar; see the module."""
        margin = self.margin + self.shift
        losses = self.base.of(margin, self.beta)
        if bool((self.flip != 0).any()):
            turned = self.base.of(-margin, self.beta)
            losses = (1 - self.flip) * losses + self.flip * turned
        return (self.weight * losses).mean() + self.extra

    def pairs(self, values: torch.Tensor | Sequence[float]) -> torch.Tensor:
        """Numbers of the pairs as a tensor of the step's type and device, shape (n,)."""
        return torch.as_tensor(values).to(self.shift)
