"""Parts of the page that compare arms over several regimes."""

from __future__ import annotations

from itertools import product

import numpy as np

from benchmarks.evidence import goals
from benchmarks.evidence.arm import FRESH_SEEDS, NEW_SEEDS
from benchmarks.evidence.arms import ARMS
from benchmarks.evidence.checked import ARMS as OF_HUNDRED
from benchmarks.evidence.checked import COMPARED
from benchmarks.evidence.comparisons import FEWEST, HEAD, Row, compared
from benchmarks.evidence.gates import CHECKED
from benchmarks.evidence.gates import key as gate_key
from benchmarks.evidence.plan import FRESH, JUDGES, RULES
from benchmarks.evidence.regimes import REGIMES, TUNED_IN
from benchmarks.evidence.runs import tuned
from benchmarks.evidence.statistics import Interval
from benchmarks.evidence.summary import Summary
from benchmarks.evidence.tables import table
from benchmarks.evidence.terms import TERMS

POOLED = (
    "select",
    "sera",
    "random",
    "full",
    "select-ipo",
    "sera-ipo",
    "full-ipo",
    "bootstrap",
    "bootstrap-ipo",
    "reference",
    "sera-reference",
    *RULES,
    *JUDGES,
)
OLD = tuple(name for name in REGIMES if name.startswith(("on-", "off-", "few-", "spurious-")))
SIX = ("on-0.4", "on-0.2", "on-0.0", "off-0.4", "off-0.2", "off-0.0")
ASKED = ("patterned-0.4", "patterned-0.2", "spurious-0.2", "few-0.2")
NEWER = (*SIX, *ASKED, "unasked-0.4", "unasked-0.2")

ALL_REGIMES = (
    "Difference of gold reward to plain training with the same loss: of every seed the mean over "
    "the regimes that the arm has run in, then the mean over the seeds that all of them have, with "
    "a 95% interval by Student's t. Bold where p is below 0.05 after Holm's correction over the "
    "rows. Only `select`, `sera`, `select-ipo` and `sera-ipo` have a learning rate and β of their "
    "own; `random` takes those of `dpo`, and rules, judges and parts those of `select` or `sera`: "
    "their rows are of **untuned** arms."
)
OF_TERMS = (
    "Each term on all pairs, against plain training with the same loss (`explore` against `sera`), "
    "on worlds of the first seeds. Of DPO's or IPO's grid every term had the three best points, "
    "and then its own settings at the best of these: four to six tuning runs, where DPO and IPO "
    "had five. All tuning is in one world, which is not reported. In brackets the seeds, three or "
    "more; bold and p as above, over the rows of this table."
)
OF_SIGNALS = (
    f"On worlds from {NEW_SEEDS} on, which nobody had looked at before. `dpo-new` is DPO with the "
    "most thorough tuning, a grid of five and the neighbours of its best point; `select-new` and "
    "`sera-new` had the grid of five; the others had the three best points "
    "of DPO's grid, and `rdpo` and `cdpo` another ε. All are tuned by their mean over two worlds, "
    "which are not reported; `contrast-untuned` takes what was picked for `dpo-new`. `dpo-longer` "
    "has a third more updates than every other arm, so it "
    "takes more processor time than `contrast` does. In brackets the seeds, three or more; bold "
    "and p as above, over the rows of this table. Pooled are the regimes whose SFT model was shown "
    "`good`."
)

OF_GATES = (
    "From forward passes of the SFT model alone, on the pairs of new worlds: in how many of them "
    "the gate of `preset: contrast` opens, how well the contrast tells flipped labels from right "
    "ones (AUC, 0.5 is chance), the share of wrong labels that it estimates (ε), the true one, and "
    "the share of right labels by weight, with all weights 1 where the gate is closed. Means over "
    "worlds with 95% intervals. Where it is closed the run is DPO with the same learning rate and "
    "β. *Checked* are pairs picked at random whose labels were put right and are trusted "
    "(`selection.trusted`). `python -m benchmarks.evidence.gates` repeats it."
)

OF_CHECKED = (
    "A hundred of the labels, picked at random, are put right and marked, for every arm of this "
    "table but `dpo-new`, on the same new worlds. All have as many updates, but for "
    "`checked-alone`, which may have a third of them; it had the whole grid and the neighbours of "
    "its best point, as `dpo-new` did, whose learning rate and β `checked-dpo` takes. The two "
    "others take those of `contrast-weight`. In brackets the seeds; bold and p as above, over the "
    "rows of this table. Pooled are the regimes whose SFT model was shown `good`."
)

OF_GOALS = (
    "What was to be reached, set before these runs: *holds* if the 95% interval lies above what "
    "was to be exceeded, *fails* if below. How both compare at equal distance is in the sweeps "
    "over β below."
)


def base_of(arm: str) -> str:
    """Plain training with the same loss, on the same seeds."""
    if ARMS[arm].fresh:
        return "dpo-new"
    return "sera" if arm == "explore" else ARMS[arm].loss


def headline(summary: Summary, arm: str) -> str:
    """The pooled difference of an arm, as words."""
    row = Row.of(summary, arm, base_of(arm), OLD)
    if row is None:
        return "not run"
    gap = row.difference
    return (
        f"{gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}], {row.share:+.1%} of DPO's gain "
        f"({gap.seeds} seeds, {len(row.pairs)} regimes)"
    )


def all_regimes(summary: Summary) -> str:
    """The first table: a pooled row per arm, and nothing by regime."""
    pairs = [*((arm, base_of(arm)) for arm in POOLED), ("select", "random"), ("sera", "select")]
    rows = [row[: len(HEAD)] for row in compared(summary, pairs, OLD)]
    return f"## All regimes together\n\n{ALL_REGIMES}\n\n{table(HEAD, rows)}"


def terms(summary: Summary) -> list[str]:
    """Terms of the loss, pooled and by regime, with what tuning picked."""
    regimes = [r for r in SIX if any((r, term) in summary.arms for term in TERMS)]
    rows = compared(summary, [(arm, base_of(arm)) for arm in TERMS], regimes)
    if not rows:
        return []
    return [
        f"## Terms of the loss\n\n{OF_TERMS}\n\n{table((*HEAD, *regimes), rows)}",
        "What tuning picked:\n\n" + _picked(summary, TERMS, regimes),
    ]


def signals(summary: Summary) -> list[str]:
    """Arms on new seeds, pooled and by regime, and what their signals knew."""
    pooled, apart = _pooled_and_apart(summary, "dpo-new")
    regimes = [*pooled, *apart]
    arms = [arm for arm in FRESH if arm != "dpo-new" and arm not in OF_HUNDRED]
    rows = compared(summary, [(arm, "dpo-new") for arm in arms], pooled, apart)
    if not rows:
        return []
    return [
        f"## A signal from outside the policy\n\n{OF_SIGNALS}\n\n"
        + table((*HEAD, *pooled, *apart), rows),
        f"{OF_GOALS}\n\n"
        + table(goals.HEAD, goals.goals(summary, ("contrast", "contrast-weight"))),
        "Of the difference to `dpo-new`, from as many seeds: the share of the way to "
        "`oracle-new`; and the share of "
        "DPO's own gain.\n\n" + _ways(summary, arms, regimes),
        "What tuning picked:\n\n" + _picked(summary, FRESH, regimes),
        *checked_labels(summary),
    ]


def checked_labels(summary: Summary) -> list[str]:
    """What can be made of a hundred checked labels."""
    pooled, apart = _pooled_and_apart(summary, "checked-dpo")
    rows = compared(summary, COMPARED, pooled, apart)
    if not rows:
        return []
    text = f"## A hundred checked labels\n\n{OF_CHECKED}\n\n"
    return [text + table((*HEAD, *pooled, *apart), rows)]


def _pooled_and_apart(summary: Summary, arm: str) -> tuple[list[str], list[str]]:
    """Regimes that an arm has run in: where the SFT model was shown `good`, and the others."""
    found = [regime for regime in NEWER if (regime, arm) in summary.arms]
    return [r for r in found if REGIMES[r].asked], [r for r in found if not REGIMES[r].asked]


def gates(summary: Summary) -> list[str]:
    """What the gate of the preset said in new worlds, from forward passes alone."""
    rows, known, settings = [], summary.results.found, summary.settings
    for regime, checked in product(REGIMES, CHECKED):
        keys = [gate_key(regime, seed, settings, checked) for seed in FRESH_SEEDS]
        found = [known[key] for key in keys if key in known]
        if not found:
            continue
        aucs = [one["auc"] for one in found if one["auc"] is not None]
        rows.append(
            (
                f"{regime}, {checked} checked" if checked else regime,
                f"{sum(one['open'] for one in found)} of {len(found)}",
                str(Interval.of(aucs)).replace("+", "") if aucs else "-",
                str(Interval.of([one["error"] for one in found])).replace("+", ""),
                f"{np.mean([one['wrong'] for one in found]):.2f}",
                f"{np.mean([one['weighted_right'] for one in found]):.2f}",
            )
        )
    if not rows:
        return []
    head = ("regime", "gate open", "AUC", "ε", "wrong labels", "right labels by weight")
    return [f"## What the gate does\n\n{OF_GATES}\n\n{table(head, rows)}"]


def _picked(summary: Summary, arms: tuple[str, ...], regimes: list[str]) -> str:
    where = list(dict.fromkeys(TUNED_IN.get(regime, regime) for regime in regimes))
    rows = []
    for arm in arms:
        cells = []
        for regime in where:
            found = tuned(regime, arm, summary.settings, summary.results)
            own = f"{found[0].removeprefix(arm + '-')}; " if found and found[0] != arm else ""
            cells.append(f"{own}{found[1]:g}, {found[2]:g}" if found else "-")
        if set(cells) != {"-"}:
            rows.append((f"`{arm}`", *cells))
    return table(("arm: setting; lr, β", *(f"tuned in {name}" for name in where)), rows)


def _ways(summary: Summary, arms: list[str], regimes: list[str]) -> str:
    rows = []
    for arm in arms:
        cells = []
        for regime in regimes:
            base, mine = summary.arms[regime, "dpo-new"], summary.arms.get((regime, arm))
            oracle = summary.arms.get((regime, "oracle-new"))
            if mine is None or len(mine.shared(base)) < FEWEST:
                cells.append("-")
                continue
            seeds = mine.shared(base)
            gap = np.mean([mine.gains[s] - base.gains[s] for s in seeds])
            own = gap / np.mean([base.gains[s] for s in seeds])
            both = [s for s in seeds if oracle is not None and s in oracle.gains]
            way = sum(oracle.gains[s] - base.gains[s] for s in both) if oracle else 0.0
            part = sum(mine.gains[s] - base.gains[s] for s in both)
            far = f"{part / way:.0%}" if way > 0 and not regime.endswith("0.0") else "-"
            cells.append(f"{far}; {own:+.0%}")
        if set(cells) != {"-"}:
            rows.append((f"`{arm}`", *cells))
    return table(("arm", *regimes), rows)
