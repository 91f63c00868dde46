"""Signals of a review: further scores of every offline pair, for rules to use. Pure functions.

Every signal maps ``SignalInput`` to numbers of shape (n,), NaN where a pair has no value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sera_plugin.config.parts import SIGNALS, title_of
from sera_plugin.data.margins import PairLogps
from sera_plugin.runtime.errors import RuleError, raised


@dataclass(frozen=True)
class SignalInput:
    """What a signal may look at; arrays have one entry per offline pair.

    Attributes:
        ids: example ids.
        policy: log-probs of both answers under the policy, nats.
        reference: the same under the reference.
        ratios: log πθ/πref of both answers, nats.
        margin: this review's own margins, before they are mixed with the previous review's, nats,
            float64, shape (n,).
        chosen_tokens: tokens of each chosen answer, int64, shape (n,).
        rejected_tokens: the same for the rejected answer.
        round_number: the round that is composed.
        seed: the run's seed.
        column: the values of a column of the training pairs by its name, one per pair; raises
            ``KeyError`` for a name that is no column.
        contrast: how much more the reference prefers the chosen answer when asked for a good one,
            shape (n,); None unless the signal is measured.
        external: by how much scores in the data prefer it, shape (n,), NaN where there are none;
            None unless the signal is measured.
    """

    ids: tuple[str, ...]
    policy: PairLogps
    reference: PairLogps
    ratios: PairLogps
    margin: np.ndarray
    chosen_tokens: np.ndarray
    rejected_tokens: np.ndarray
    round_number: int
    seed: int
    column: Callable[[str], Sequence[Any]]
    contrast: np.ndarray | None = None
    external: np.ndarray | None = None


Signal = Callable[[SignalInput], np.ndarray]


def margin(given: SignalInput) -> np.ndarray:
    """This review's own margin, not mixed with the previous one's; nats."""
    return np.where(np.isfinite(given.margin), given.margin, np.nan)


def contrast(given: SignalInput) -> np.ndarray:
    """The contrast of quality prompts under the reference; see ``scoring.contrast``."""
    assert given.contrast is not None, "a run with this signal measures it before round 1"
    return given.contrast


def external(given: SignalInput) -> np.ndarray:
    """The margins that the data carries, in the columns of ``sera.selection.external``."""
    assert given.external is not None, "a run with this signal reads the columns"
    return given.external


def length(given: SignalInput) -> np.ndarray:
    """Tokens of the chosen answer minus tokens of the rejected one."""
    longer: np.ndarray = given.chosen_tokens - given.rejected_tokens
    return longer


def measured(names: Sequence[str], given: SignalInput) -> dict[str, np.ndarray]:
    """The signals of a review by their short names, float64, shape (n,).

    Args:
        names: names of signals, or ``package.module:function``.
        given: what they look at.

    Raises:
        RuleError: one sentence, if a signal raises or returns anything but a number, or NaN, per
            pair.
        SeraConfigError: if one can't be imported.
    """
    return {title_of(name): _checked(name, SIGNALS.load(name), given) for name in names}


def _checked(name: str, signal: Signal, given: SignalInput) -> np.ndarray:
    count = len(given.ids)
    try:
        found = np.asarray(signal(given))
    except Exception as error:
        raise RuleError(f"{SIGNALS.key}: {name} {raised(error)}.") from error
    if found.shape != (count,):
        raise RuleError(
            f"{SIGNALS.key}: {name} returned shape {found.shape} for {count} pairs; it must return "
            "one number per pair."
        )
    if found.dtype.kind not in "biuf":
        raise RuleError(
            f"{SIGNALS.key}: {name} returned values of type {found.dtype}; it must return real "
            "numbers."
        )
    values = found.astype(np.float64)
    if np.isinf(values).any():
        raise RuleError(
            f"{SIGNALS.key}: {name} returned an infinite value for {int(np.isinf(values).sum())} "
            f"of {count} pairs; it must return finite numbers, or NaN where a pair has no value."
        )
    return values
