"""What was to be reached, with what was found."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.evidence.arms import ARMS
from benchmarks.evidence.plan import MOST_SEEDS
from benchmarks.evidence.statistics import holm
from benchmarks.evidence.summary import KL_LIMIT, NOT_WORSE, ArmRuns, Summary

ONE_SIDED = 0.025
"""Adjusted p below which a bar holds after Holm."""


@dataclass(frozen=True)
class Bar:
    """A line of the table of what was to be reached.

    Attributes:
        text: what is compared.
        regime: where.
        wanted: what was to be reached.
        found: one of ``VERDICTS``.
        detail: the numbers.
        p: of the one-sided test that the difference is not what was wanted; None without a test.
        holm: whether it holds after Holm over all lines that have a test.
        insensitive: whether a random 70% of the pairs passes the same line.
    """

    text: str
    regime: str
    wanted: str
    found: str
    detail: str
    p: float | None = None
    holm: str = "-"
    insensitive: str = "-"


def bars(summary: Summary) -> list[Bar]:
    """What holds, what fails, and what needs more seeds."""
    found = []
    for regime in summary.regimes:
        arms = summary.of(regime)
        for name, base in COMPARED:
            if name in arms and base in arms:
                bar = _bar(arms[name], arms[base])
                found.append(replace(bar, insensitive=_insensitive(bar, arms, base)))
        if "oracle" in arms and regime.endswith("0.4"):
            found.append(_half_way(summary, regime))
    return _adjusted(found)


def _adjusted(found: list[Bar]) -> list[Bar]:
    tested = [bar for bar in found if bar.p is not None]
    values = dict(zip(map(id, tested), holm([bar.p or 0.0 for bar in tested]), strict=True))
    return [
        replace(bar, holm="holds" if values[id(bar)] < ONE_SIDED else "no longer")
        if bar.found == "holds" and bar.p is not None
        else bar
        for bar in found
    ]


COMPARED = (
    ("select", "dpo"),
    ("select-ipo", "ipo"),
    ("select", "random"),
    ("sera", "dpo"),
    ("sera-ipo", "ipo"),
    ("sera", "select"),
    ("sera-ipo", "select-ipo"),
)


def _bar(mine: ArmRuns, other: ArmRuns) -> Bar:
    better = (
        other.arm in ("random", "select", "select-ipo")
        or (mine.arm == "select" and mine.regime == "on-0.4")
        or (mine.arm == "sera" and mine.regime == "few-0.2")
    )
    seeds = len(mine.shared(other))
    verdict, ratio = mine.verdict(other), mine.mean("kl") / max(other.mean("kl"), 1e-9)
    holds = verdict == "better" or (verdict == "not worse" and not better)
    # Not worse and not better: with more seeds the interval may yet leave 0 behind.
    fails = verdict == "worse" or (better and mine.against(other).high < 0)
    wanted = "better" if better else "not worse"
    if mine.arm.startswith("sera") and other.arm in ("dpo", "ipo"):
        wanted += f", KL at most × {KL_LIMIT:g}"
        holds, fails = holds and ratio <= KL_LIMIT, fails or ratio > KL_LIMIT
    open_yet = "not shown" if seeds >= MOST_SEEDS else "undecided"
    found = "holds" if holds else "fails" if fails else open_yet
    detail = f"{mine.against(other)}, {seeds} seeds, KL × {ratio:.1f}"
    floor = 0.0 if better else NOT_WORSE * other.gain.mean
    p = mine.against(other).p_above(floor)
    return Bar(f"`{mine.arm}` against `{other.arm}`", mine.regime, wanted, found, detail, p)


def _insensitive(bar: Bar, arms: dict[str, ArmRuns], base: str) -> str:
    """Of a line that asks for *not worse*: whether it tells an arm from throwing pairs away."""
    if not bar.wanted.startswith("not worse"):
        return "-"
    if base != "dpo" or "random" not in arms:
        return "not run"
    return "yes" if arms["random"].verdict(arms["dpo"]) in ("better", "not worse") else "no"


def _half_way(summary: Summary, regime: str) -> Bar:
    """Share of the way from DPO to the oracle that the best arm without gold labels goes.

    The oracle is DPO on the same pairs without flipped labels, at a learning rate and β that were
    tuned for few wrong labels: the ``dpo`` of the clean regime.
    """
    arms = summary.of(regime)
    clean = regime.split("-")[0] + "-0.0"
    plain, oracle = arms["dpo"], summary.arms[clean, "dpo"]
    others = [name for name in arms if name not in ("dpo", "oracle") and not _told(name)]

    def share(name: str) -> float:
        seeds = [s for s in arms[name].shared(plain) if s in oracle.gains]
        way = sum(oracle.gains[s] - plain.gains[s] for s in seeds)
        return sum(arms[name].gains[s] - plain.gains[s] for s in seeds) / way

    best = max(others, key=share)
    told = [f"`{name}` {share(name):.0%}" for name in arms if name.startswith("judge-")]
    way = oracle.against(plain).mean
    detail = f"{share(best):.0%} of {way:.2f}; told by a judge: {', '.join(told) or '-'}"
    found = "holds" if share(best) >= 0.5 else "fails"
    text = f"`{best}`, the best, from `dpo` to the tuned oracle"
    return Bar(text, regime, "half of the way", found, detail)


def _told(arm: str) -> bool:
    """Whether an arm hears of the gold reward, if only through a judge who errs."""
    told = ARMS[arm].scored and "refine" not in (ARMS[arm].sera or {})
    return told or arm.startswith("judge-")
