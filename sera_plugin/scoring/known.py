"""Log-probs that are known before a scoring pass, as from sampling. Collectives: the pass's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sera_plugin.runtime.logs import logger
from sera_plugin.scoring.completions import CompletionList, Completions, Tokens
from sera_plugin.scoring.scorer import Scored

LOG = logger(__name__)

COMPARED = 8
"""Answers whose log-probs are found again by the scorer, to see that both agree."""

TOLERANCE = 1e-3
"""Nats per 100 tokens by which they may differ in float32, where rounding gives about a hundredth
of it."""


def completed(
    rows: Sequence[Tokens],
    known: Sequence[float | None],
    score: Callable[[Completions], Scored],
    label: str,
) -> Scored:
    """Σ log π(y|x) of all rows, nats: what is known, and the scorer's where nothing is.

    A few of those that are known are scored too. If one differs by more than the tolerance, none
    is used. Every rank must call this alike.

    Args:
        rows: token ids of prompts and answers.
        known: log-probs, None where there is none; an answer that has one is finite.
        score: scores some rows.
        label: of the pass, for the log.
    """
    given = np.array([np.nan if value is None else value for value in known], dtype=np.float64)
    has = np.flatnonzero(np.isfinite(given))
    again = has[:COMPARED]
    asked = np.sort(np.concatenate([np.flatnonzero(~np.isfinite(given)), again]))
    done = score(CompletionList([rows[row] for row in asked]))
    found = given.copy()
    found[asked] = done.logps
    if not len(has):
        return Scored(found, done.tokens, done.padded_tokens)
    lengths = np.array([len(rows[row][1]) for row in again])
    difference = np.abs(found[again] - given[again]) / np.maximum(1.0, lengths / 100)
    # Where the scorer's is no number, that counts; such answers are set aside.
    finite = np.isfinite(difference)
    worst = float(difference[finite].max()) if finite.any() else 0.0
    if worst <= TOLERANCE:
        LOG.info(
            "%s: log-probs of %d answers are those found while sampling; of %d the scorer's "
            "differ by %.1e nats at most.",
            label,
            len(has) - len(again),
            len(again),
            worst,
        )
        return Scored(found, done.tokens, done.padded_tokens)
    LOG.warning(
        "%s: log-probs found while sampling differ from the scorer's by %.2g nats per 100 tokens, "
        "with %g allowed, so all are scored; sera.training.sampled_logps: false says so at once.",
        label,
        worst,
        TOLERANCE,
    )
    whole = score(CompletionList(rows))
    tokens, padded = done.tokens + whole.tokens, done.padded_tokens + whole.padded_tokens
    return Scored(whole.logps, tokens, padded)
