"""Whether a run's scoring passes can read a prompt once, found out before the first one.

Collectives: those of forward passes, and a gather.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate import Accelerator

from sera_plugin.config import BootstrapConfig, SeraConfig, TrainingConfig
from sera_plugin.data.pairs import TOKENS, OfflinePairs, list_rows
from sera_plugin.runtime.errors import SeraConfigError, in_short
from sera_plugin.runtime.logs import logger
from sera_plugin.runtime.ranks import gathered
from sera_plugin.sampling.engines import Engine, measuring
from sera_plugin.sampling.settings import Sampling
from sera_plugin.scoring.layout import NotPackable
from sera_plugin.scoring.policies import Policies
from sera_plugin.scoring.scorer import Scorer

LOG = logger(__name__)

TOLERANCE = 1e-3
"""Nats by which an answer's log-prob may differ from that of its sequence alone."""

FAILURES = (NotPackable, TypeError, ValueError, IndexError, AttributeError, RuntimeError)
"""How a model says that it can't be called in another way."""

Pair = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Token ids of prompt, chosen and rejected answer."""


@dataclass(frozen=True)
class Checked:
    """What a check of some pairs found.

    Attributes:
        why_not: the end of a sentence that says why a way doesn't work, or None if it does.
        difference: largest difference of an answer's log-prob, nats.
    """

    why_not: str | None
    difference: float = 0.0


def with_shared_prompts(
    scorer: Scorer, wanted: TrainingConfig, policies: Policies, tried: Sequence[Pair]
) -> Scorer:
    """The scorer, which reads a prompt once for all its answers where the model allows it.

    Every rank must call this alike.

    Raises:
        SeraConfigError: one sentence, if the switch is on and it doesn't work.
    """
    if wanted.shared_scoring is False or not tried:
        return scorer
    found = _checked(scorer, policies, tried)
    if found.why_not is None:
        LOG.info(
            "Scoring reads a prompt once for all its answers; log-probs of the pairs tried are "
            "those of each answer alone within %.1e nats.",
            found.difference,
        )
        return replace(scorer, shares=True)
    refuse(wanted.shared_scoring, "shared_scoring", found.why_not)
    LOG.info("Scoring reads a prompt again for each answer, because %s.", found.why_not)
    return scorer


def _checked(scorer: Scorer, policies: Policies, pairs: Sequence[Pair]) -> Checked:
    """Compare the log-probs of some pairs, prompts read once, with those of each answer alone."""
    rows = [(pair[0], answer) for pair in pairs for answer in pair[1:]]
    why_not = None
    with policies.policy() as forward:
        alone = np.concatenate([scorer.own_logps(forward, [row]) for row in rows])
        padded = scorer.own_logps(forward, rows)
        try:
            together = scorer.shared_logps(forward, rows, np.repeat(np.arange(len(pairs)), 2))
        except FAILURES as error:
            together, why_not = alone, said_by(error)
    return compared(alone, padded, together, why_not, "answers share a prompt")


def said_by(error: Exception) -> str:
    """The end of a sentence on one of ``FAILURES``."""
    return str(error) if isinstance(error, NotPackable) else in_short(error)


def compared(
    alone: np.ndarray, padded: np.ndarray, together: np.ndarray, why_not: str | None, when: str
) -> Checked:
    """What all ranks make of log-probs found in another way; nats, shape (answers,).

    Args:
        alone: of each answer alone.
        padded: of all answers in one padded batch. In half precision padding alone changes them by
            more than the tolerance.
        together: in the way that is tried.
        why_not: why it could not be tried, or None.
        when: ends the sentence "log-probs change when".
    """
    allowed = max(TOLERANCE, 4 * float(np.abs(padded - alone).max()))
    difference = float(np.abs(together - alone).max())
    if why_not is None and not difference <= allowed:
        why_not = (
            f"log-probs change by up to {difference:.2g} nats when {when}, with {allowed:.2g} "
            "allowed"
        )
    reasons = [reason for reason in gathered([why_not]) if reason is not None]
    return Checked(reasons[0] if reasons else None, difference)


def with_measured(
    sampling: Sampling,
    config: SeraConfig,
    policy: torch.nn.Module,
    accelerator: Accelerator,
    engine: Engine,
) -> Sampling:
    """The settings, by which an engine that can finds log-probs while it samples.

    In half precision sampling and scoring round differently, and the reference is scored.

    Raises:
        SeraConfigError: one sentence, if the switch is on and they can't be had.
    """
    wanted, why_not = config.training.sampled_logps, None
    if wanted is False or config.bootstrap.fraction == 0:
        return sampling
    if measuring(engine) is None:
        why_not = f"the engine {engine.name} doesn't give them"
    elif _in_half(policy, accelerator):
        why_not = "in half precision sampling and scoring round differently"
    if why_not is None:
        return replace(sampling, measured=True)
    refuse(wanted, "sampled_logps", why_not)
    LOG.info("Log-probs of sampled answers are the scorer's, because %s.", why_not)
    return sampling


def _in_half(model: torch.nn.Module, accelerator: Accelerator) -> bool:
    half = (torch.float16, torch.bfloat16)
    return accelerator.mixed_precision not in (None, "no") or any(
        parameter.dtype in half for parameter in model.parameters()
    )


def refuse(value: bool | str, key: str, why_not: str) -> None:
    """End a run that asks for what doesn't work.

    Raises:
        SeraConfigError: one sentence, if the value is ``true``.
    """
    if value is True:
        raise SeraConfigError(
            f"sera.training.{key}: true can't be used with this run, because {why_not}; write auto "
            "or false."
        )


def tried_pairs(
    pairs: OfflinePairs, bootstrap: BootstrapConfig, max_length: int | None
) -> list[Pair]:
    """The shortest, a middle and the longest pair, this one drawn out to what a row may have.

    So a window of attention that any row is longer than is seen. Empty where no pair has tokens of
    both answers.
    """
    lengths = pairs.prompt_tokens + np.maximum(pairs.chosen_tokens, pairs.rejected_tokens)
    whole = np.flatnonzero(np.minimum(pairs.chosen_tokens, pairs.rejected_tokens) > 0)
    order = whole[np.argsort(lengths[whole], kind="stable")]
    if not len(order):
        return []
    picked = [order[0], order[len(order) // 2], order[-1]]
    rows = pairs.dataset.with_format("arrow")[picked]
    columns = [list_rows(rows.column(name)) for name in TOKENS]
    found = [(prompt, chosen, rejected) for prompt, chosen, rejected in zip(*columns, strict=True)]
    most = int(lengths[whole].max())
    if bootstrap.fraction > 0:
        most = max(most, int(pairs.prompt_tokens.max()) + bootstrap.max_new_tokens)
    most = min(most, max_length or most)
    prompt, *answers = found[-1]
    room = max(1, most - len(prompt))
    longest = [np.resize(answer, room) for answer in answers]
    found[-1] = (prompt, longest[0], longest[1])
    return found
