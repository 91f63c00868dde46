"""Medians, spreads and slopes; the bars and what was found. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Ratio:
    """Ratios of turns that ran one after the other."""

    median: float
    low: float
    high: float
    turns: int

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
        """Turn by turn.

        Raises:
            ValueError: if the numbers of turns differ or are zero.
        """
        if len(ours) != len(theirs) or not len(ours):
            raise ValueError(f"{len(ours)} and {len(theirs)} turns can't be paired")
        found = np.asarray(ours, dtype=np.float64) / np.asarray(theirs, dtype=np.float64)
        return cls(float(np.median(found)), float(found.min()), float(found.max()), len(found))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class Bar:
    """A line of the table: what is compared, the bar if there is one, and what was found."""

    what: str
    limit: float | None
    found: float | None
    text: str

    @property
    def verdict(self) -> str:
        if self.limit is None:
            return ""
        if self.found is None:
            return "not measured"
        if self.found <= self.limit:
            return "reached"
        return f"missed by {self.found - self.limit:.2g}"

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}


def slope(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Exponent k of seconds ~ size^k, by least squares on logarithms; 1 is linear growth."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def line(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Seconds per item and fixed seconds of a straight line, each size with the same weight."""
    x, y = np.asarray(sizes, dtype=np.float64), np.asarray(seconds, dtype=np.float64)
    per_item, fixed = np.polyfit(x, y, 1, w=1 / y)
    return float(per_item), float(fixed)


def ratio_of(runs: Mapping[str, list[dict]], ours: str, theirs: str, what: str) -> Ratio | None:
    """Ratio of two variants over the turns that both ran in, or None if there are none."""
    turns = list(zip(runs.get(ours, ()), runs.get(theirs, ()), strict=False))
    if not turns:
        return None
    return Ratio.of([a[what] for a, _ in turns], [b[what] for _, b in turns])


_RUNS = (
    ("selection only, rescoring, host's collection in both", "select-host-gc", "plain", 0.45),
    ("selection only, free margins, host's collection in both", "free-host-gc", "plain", 0.38),
    ("full SeRA, host's collection in both", "full-host-gc", "plain", 0.65),
    ("the same, rescoring, with training.merged: true", "select-merged", "plain", 0.45),
    ("the same, free margins, with training.merged: true", "free-merged", "plain", 0.38),
    ("the same, full SeRA, with training.merged: true", "full-merged", "plain", 0.65),
    ("selection only, rescoring, as shipped", "select", "plain", None),
    ("selection only, free margins, as shipped", "free", "plain", None),
    ("full SeRA, as shipped", "full", "plain", None),
    ("our collection alone: rescoring, against the host's", "select", "select-host-gc", None),
)


_UNCOLLECTED = (
    ("selection only, rescoring", "select-host-gc", "plain-reference", 0.60),
    ("selection only, free margins", "free-host-gc", "plain-reference", 0.50),
    ("plain DPO through the plugin", "through", "plain-reference", 0.62),
    ("plain DPO through the plugin, nothing frozen", "through-host-gc", "plain-reference", None),
)


def _uncollected(
    runs: Mapping[str, list[dict]], ours: str, theirs: str, what: str, limit: float | None
) -> Bar:
    """A ratio to plain DPO with a precomputed reference, the host's collection out of both."""
    what += ", against plain DPO with precomputed reference, collection out of both"
    turns = list(zip(runs.get(ours, ()), runs.get(theirs, ()), strict=False))
    if not turns:
        return Bar(what, limit, None, "-")
    sides = zip(*turns, strict=True)
    ratio = Ratio.of(*([run["seconds"] - run["collection_seconds"] for run in s] for s in sides))
    return Bar(what, limit, ratio.median, str(ratio))


def bars(results: Mapping[str, Any]) -> list[Bar]:
    """The table of what was to be reached, from a file of results."""
    found = []
    runs = results.get("runs", {})
    for what, ours, theirs, limit in _RUNS if runs else ():
        wall = ratio_of(runs, ours, theirs, "seconds")
        cpu = ratio_of(runs, ours, theirs, "cpu_seconds")
        text = "-" if wall is None else f"{wall}; processor time {cpu}"
        found.append(Bar(what, limit, wall.median if wall else None, text))
    for what, ours, theirs, limit in _UNCOLLECTED if runs else ():
        found.append(_uncollected(runs, ours, theirs, what, limit))
    if runs:
        found.append(_gpu_memory(runs))
    if "steps" in results:
        found += _step_bars(results["steps"])
    if "passes" in results:
        found += _pass_bars(results["passes"])
    return found


def _gpu_memory(runs: Mapping[str, list[dict]]) -> Bar:
    what = "peak GPU memory in training steps, against plain DPO"
    if any("cuda_step_peak_gib" not in run for turns in runs.values() for run in turns):
        return Bar(what, 0.8, None, "needs a GPU")
    name = next((n for n in ("select", "free", "full") if n in runs), "plain")
    ratio = ratio_of(runs, name, "plain", "cuda_step_peak_gib")
    return Bar(what, 0.8, ratio.median if ratio else None, str(ratio or "-"))


def _per_token(done: Mapping[str, Any], clock: str) -> Ratio:
    """Seconds per token that came out, ours against naive; both score the same tokens."""
    ours, theirs = done[f"fast_{clock}"], done[f"naive_{clock}"]
    if "fast_tokens" in done:
        ours = np.divide(ours, done["fast_tokens"])
        theirs = np.divide(theirs, done["naive_tokens"])
    return Ratio.of(ours, theirs)


_STEPS = (("sorted", 0.80), ("packed", 0.60), ("shared", 0.55), ("merged", 0.55))


def _step_bars(steps: Mapping[str, Any]) -> list[Bar]:
    found = []
    for way, limit in _STEPS:
        ratio = Ratio.of(steps["seconds"][way], steps["seconds"]["host"])
        text = f"{ratio} of processor time"
        found.append(Bar(f"training step, {way}, against the host's", limit, ratio.median, text))
    for way in ("packed", "shared", "merged"):
        ours, host = steps["memory_mib"][way], steps["memory_mib"]["host"]
        whole = ours["peak"] / host["peak"]
        above = [one["peak"] - one["before"] for one in (ours, host)]
        text = (
            f"{above[0] / above[1]:.2f} ({above[0]:,.0f} of {above[1]:,.0f} MiB); the whole "
            f"process {whole:.2f} ({ours['peak']:,.0f} of {host['peak']:,.0f} MiB)"
        )
        what = f"resident memory that an update adds, vocabulary {steps['vocabulary']:,}, {way}"
        limit = None if way == "merged" else 0.6
        found.append(Bar(what, limit, above[0] / above[1], text))
    worst = max(value for ways in steps["gradients"].values() for value in ways.values())
    text = f"{worst:.1e} at most, over {', '.join(steps['gradients'])}"
    if "gradients_exact" in steps:
        host = max(ways["host"] for ways in steps["gradients_exact"].values())
        text += f"; the host's own is {host:.1e} from the gradient in float64"
    found.append(Bar("gradient of an update against the host's, fp32", 1e-5, worst, text))
    return found


def _pass_bars(passes: Mapping[str, Any]) -> list[Bar]:
    found = []
    for name in ("scoring", "generation"):
        wall, cpu = (_per_token(passes[name], clock) for clock in ("seconds", "cpu_seconds"))
        text = f"{wall}; processor time {cpu}"
        found.append(Bar(f"{name} against naive", 0.5, wall.median, text))
    if "shared" in passes:
        found += _shared_bars(passes["shared"])
    scoring, margins = passes["scoring"], passes["margins"]
    padding = scoring["fast_padding"]
    found.append(
        Bar(
            "padding share in scoring",
            0.05,
            padding,
            f"{padding:.1%} (naive {scoring['naive_padding']:.1%})",
        )
    )
    found.append(
        Bar(
            "margins against the slow reference, fp32",
            1e-4,
            margins["difference"],
            f"{margins['difference']:.1e} at most, of margins of {margins['mean_size']:.2g}",
        )
    )
    return found


_SHARED = (
    ("pass", "scoring {} answers of a prompt, read once for all"),
    ("review", "the same, and log-probs of its candidates from sampling: a review's scoring"),
)


def _shared_bars(shared: Mapping[str, Any]) -> list[Bar]:
    found = []
    for what, words in _SHARED:
        ratio = Ratio.of(*(shared[f"{what}_cpu_seconds"][way] for way in ("once", "each")))
        text = f"{ratio} of processor time"
        if what == "pass":
            tokens = shared["tokens"]["once"] / shared["tokens"]["each"]
            text += f"; {tokens:.2f} of the tokens"
        name = f"{words.format(shared['answers'])}, against the scorer without"
        found.append(Bar(name, 0.65, ratio.median, text))
    return found
