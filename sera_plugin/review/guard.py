"""Whether the implicit reward can be trusted to rank the policy's answers. Pure functions on numpy.

Five signals are measured on every review, in units that mean the same for every model: nats per
token, a ratio to the first review, correlations and shares. Past a limit the number of
bootstrapped pairs falls, down to none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np

from sera_plugin.config import GuardConfig

CONFIDENCE = 1.645
"""Standard errors by which a signal must be past its limit: 95% on one side."""


@dataclass(frozen=True)
class SampledCompletions:
    """The different answers that the policy wrote to one prompt; arrays of shape (k,).

    Attributes:
        rewards: r − α·|y|, by which the answers are ranked.
        log_ratios: log πθ/πref, nats.
        tokens: lengths, with the ending.
        times: how often each was sampled.
    """

    rewards: np.ndarray
    log_ratios: np.ndarray
    tokens: np.ndarray
    times: np.ndarray

    def finite(self) -> SampledCompletions:
        """Without answers whose numbers are not finite."""
        good = np.isfinite(self.rewards) & np.isfinite(self.log_ratios)
        return SampledCompletions(*(getattr(self, field.name)[good] for field in fields(self)))


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts or pairs.

    Attributes:
        value: the mean; NaN if there is nothing to take it over.
        error: its standard error; NaN below two.
        count: how many prompts or pairs it is taken over.
    """

    value: float
    error: float
    count: int

    @classmethod
    def mean(cls, values: Sequence[float] | np.ndarray) -> Estimate:
        """Mean and standard error of the values that are finite."""
        kept = np.asarray(values, dtype=float)
        kept = np.sort(kept[np.isfinite(kept)])  # sorted, so that the order of prompts is nothing
        if len(kept) < 2:
            return cls(float(kept[0]) if len(kept) else math.nan, math.nan, len(kept))
        error = float(kept.std(ddof=1)) / math.sqrt(len(kept))
        return cls(float(kept.mean()), error, len(kept))


@dataclass(frozen=True)
class Signals:
    """What the guard looks at.

    Attributes:
        drift: log-ratio per token of the policy's answers, nats: how far it has left πref.
        spread: within-prompt standard deviation of log πθ/πref, nats.
        spread_ratio: ``spread`` over that of the first review that had one, 1 there.
        length_correlation: Spearman correlation of reward and length, mean over prompts.
        agreement: share of best and worst answers that stay best and worst when the reward's
            linear dependence on length is taken out.
        accuracy: share of held-out pairs whose chosen answer has the larger log-ratio.
    """

    drift: Estimate
    spread: Estimate
    spread_ratio: Estimate
    length_correlation: Estimate
    agreement: Estimate
    accuracy: Estimate

    def by_name(self) -> dict[str, Estimate]:
        """The signals by their names."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Decision:
    """What the guard decides.

    Attributes:
        share: of the planned bootstrapped pairs, 0 to 1.
        why: a clause.
        signals: what it was decided by.
    """

    share: float
    why: str
    signals: Signals

    def limit(self, planned: int) -> int:
        """Most bootstrapped pairs of the round: ⌊share·planned + ½⌋."""
        return math.floor(self.share * planned + 0.5)

    def sentence(self, planned: int) -> str:
        """What the guard does to a round with ``planned`` bootstrapped pairs, and why."""
        most = "all" if self.share == 1 else f"at most {self.limit(planned)} of"
        return f"{most} {planned} planned bootstrapped pairs may enter: {self.why}."


def measure(
    prompts: Sequence[SampledCompletions],
    evaluation: np.ndarray | Sequence[float] = (),
    first_spread: float | None = None,
) -> Signals:
    """All signals of one review.

    Args:
        prompts: the policy's answers, one entry per prompt.
        evaluation: margins of held-out pairs, chosen minus rejected.
        first_spread: ``spread`` of the first review, or None at that one.
    """
    finite = [answers.finite() for answers in prompts]
    several = [answers for answers in finite if len(answers.rewards) > 1]
    spread = Estimate.mean([float(np.std(answers.log_ratios)) for answers in several])
    slope = length_slope(several)
    margins = np.asarray(evaluation, dtype=float)
    margins = margins[np.isfinite(margins)]
    return Signals(
        drift=drift(finite),
        spread=spread,
        spread_ratio=_over(spread, first_spread),
        length_correlation=Estimate.mean([spearman(a.rewards, a.tokens) for a in several]),
        agreement=Estimate.mean([_agreement(answers, slope) for answers in several]),
        accuracy=Estimate.mean((np.sign(margins) + 1) / 2),
    )


def drift(prompts: Sequence[SampledCompletions]) -> Estimate:
    """Σ log-ratios over Σ tokens of all the policy's answers, repeats counted, by prompt."""
    sums = np.array(
        [(np.sum(a.times * a.log_ratios), np.sum(a.times * a.tokens)) for a in prompts],
        dtype=float,
    ).reshape(-1, 2)
    sums = sums[sums[:, 1] > 0]
    sums = sums[np.lexsort(sums.T)]
    nats, tokens = sums[:, 0], sums[:, 1]
    count, total = len(sums), float(tokens.sum())
    if count < 2:
        return Estimate(float(nats.sum()) / total if count else math.nan, math.nan, count)
    value = float(nats.sum()) / total
    residuals = nats - value * tokens
    error = math.sqrt(count / (count - 1) * float(residuals @ residuals)) / total
    return Estimate(value, error, count)


def length_slope(prompts: Sequence[SampledCompletions]) -> float:
    """Least-squares reward per token within prompts; 0 if no prompt has answers of two lengths."""
    pairs = []
    for answers in prompts:
        tokens = answers.tokens - answers.tokens.mean()
        pairs.append((float(tokens @ answers.rewards), float(tokens @ tokens)))
    both = math.fsum(pair[0] for pair in pairs)
    square = math.fsum(pair[1] for pair in pairs)
    return both / square if square > 0 else 0.0


def spearman(left: np.ndarray, right: np.ndarray) -> float:
    """Spearman's rank correlation with mean ranks for ties; NaN if a side is constant."""
    x, y = _ranks(left), _ranks(right)
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale > 0 else math.nan


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _agreement(answers: SampledCompletions, slope: float) -> float:
    plain, free = answers.rewards, answers.rewards - slope * answers.tokens
    best = plain[free == free.max()].max() == plain.max()
    worst = plain[free == free.min()].min() == plain.min()
    return (float(best) + float(worst)) / 2


def _over(spread: Estimate, first: float | None) -> Estimate:
    if first is None:
        first = spread.value
    if not first > 0:
        return Estimate(math.nan, math.nan, 0)
    return Estimate(spread.value / first, spread.error / first, spread.count)


def decide(signals: Signals, limits: GuardConfig) -> Decision:
    """How many of the planned pairs a round may take.

    A signal lowers the number only if it is past its limit by more than its sampling error allows
    (1.645 standard errors), and has no say if fewer than ``min_prompts`` prompts (or held-out
    pairs) stand behind it. From the limit on the share falls in a straight line: to 0 at twice
    ``max_drift``, ``max_spread`` and ``max_length_correlation``, and where the disagreement
    1 − agreement is twice what ``min_agreement`` allows. Below ``min_accuracy`` it is 0. The
    smallest share counts.
    """
    if not limits.enabled:
        return Decision(1.0, "the guard is off", signals)
    checks = list(_checks(signals, limits))
    if not checks:
        return Decision(1.0, f"no signal has {limits.min_prompts} prompts behind it", signals)
    reasons = [reason for share, reason in checks if share < 1]
    why = "; ".join(reasons) or "no signal is past its limit"
    return Decision(min(share for share, _ in checks), why, signals)


def _checks(signals: Signals, limits: GuardConfig) -> Iterator[tuple[float, str]]:
    """The share that each signal with a say allows, and what would be the reason."""

    def known(estimate: Estimate) -> bool:
        return estimate.count >= limits.min_prompts and math.isfinite(estimate.error)

    correlation = signals.length_correlation
    above = (
        ("max_drift", signals.drift, "the log-ratio of the policy's answers is {} nats per token"),
        ("max_spread", signals.spread_ratio, "the reward's spread is {} times the first review's"),
        (
            "max_length_correlation",
            Estimate(abs(correlation.value), correlation.error, correlation.count),
            "reward and length correlate by {} (without its sign)",
        ),
    )
    for key, estimate, words in above:
        limit = getattr(limits, key)
        if known(estimate):
            least = estimate.value - CONFIDENCE * estimate.error
            text = words.format(f"{estimate.value:.3g} ± {CONFIDENCE * estimate.error:.2g}")
            yield _ramp(least, limit), f"{text}, above sera.bootstrap.guard.{key}: {limit:g}"
    if known(signals.agreement):
        most = signals.agreement.value + CONFIDENCE * signals.agreement.error
        yield (
            _ramp(1 - most, 1 - limits.min_agreement),
            f"{signals.agreement.value:.0%} of best and worst answers stay so without the reward's "
            f"dependence on length, below sera.bootstrap.guard.min_agreement: "
            f"{limits.min_agreement:g}",
        )
    if known(signals.accuracy):
        most = signals.accuracy.value + CONFIDENCE * signals.accuracy.error
        yield (
            float(most >= limits.min_accuracy),
            f"{signals.accuracy.value:.1%} of held-out pairs are ranked as labelled, below "
            f"sera.bootstrap.guard.min_accuracy: {limits.min_accuracy:g}",
        )


def _ramp(value: float, limit: float) -> float:
    """1 up to the limit, 0 from twice the limit on, a straight line between."""
    if value <= limit:
        return 1.0
    return max(0.0, 2 - value / limit) if limit > 0 else 0.0
