"""What ``make evidence`` and ``make evidence-all`` run, most telling first."""

from __future__ import annotations

from benchmarks.evidence.arms import ARMS
from benchmarks.evidence.terms import TERMS

SEEDS = 5
"""Seeds of every comparison."""
MOST_SEEDS = 12
"""Seeds of the comparisons with a bar, in ``make evidence-all``."""

DPO = ("dpo", "random", "select", "sera")
IPO = ("ipo", "select-ipo", "sera-ipo")
RULES = tuple(name for name in ARMS if name.startswith("rule-"))
JUDGES = ("judge-gold", "judge-gold-errors")
PARTS = ("bootstrap", "bootstrap-ipo", "reference", "sera-reference")
VARIANTS = (
    "select-free",
    "select-no-ensemble",
    "select-mean",
    "select-uncertainty",
    "select-flip",
    "full-no-ensemble",
    "full-policy-pool",
    "full-length-fixed",
    "full-length-auto",
    "full-previous",
    "full-mixed",
    "sera-tight",
    "reference-length-auto",
)
FILLS = ("fill-kept", "fill-both", "fill-next")
REFINED = ("sr-dpo-zero", "sr-dpo-plain", "sr-dpo-none", "sr-dpo-select", "sr-ipo-select")
FRESH = tuple(name for name, arm in ARMS.items() if arm.fresh)

MAIN = ("dpo-new", "contrast")
"""Of the arms on new seeds, those that run in every regime."""

Plan = tuple[tuple[str, tuple[str, ...]], ...]

PLAN: Plan = (
    ("on-0.4", (*DPO, *IPO, "full", "oracle")),
    ("on-0.2", (*DPO, *IPO, "full")),
    ("few-0.2", (*DPO, *IPO, "full")),
    ("off-0.4", (*DPO, *IPO, "full", "oracle")),
    ("off-0.2", (*DPO, *IPO, "full")),
    ("on-0.0", (*DPO, *IPO)),
    ("off-0.0", (*DPO, *IPO)),
    ("spurious-0.2", ("dpo", "ipo", "select", "sera")),
)
"""Regimes with arms: what there is a bar for, and SeRA as published."""
MORE: Plan = (
    *((regime, (*RULES, *JUDGES)) for regime, _ in PLAN if regime.startswith(("on-", "off-"))),
    ("on-0.4", (*VARIANTS, *PARTS, "full-ipo", *REFINED)),
    ("few-0.2", (*PARTS[:1], *PARTS[2:], *REFINED)),
    ("off-0.2", REFINED),
    *((regime, TERMS) for regime, _ in PLAN if regime.startswith(("on-", "off-"))),
    *((regime, FILLS) for regime in ("on-0.4", "on-0.2", "off-0.4", "on-0.0")),
)
"""Rules, judges, parts, variants, terms and fills; a regime may come more than once."""
NEW: Plan = (
    *((regime, FRESH) for regime, _ in PLAN if regime.startswith(("on-", "off-"))),
    *((regime, MAIN) for regime in ("patterned-0.4", "unasked-0.4", "patterned-0.2")),
    *((regime, MAIN) for regime in ("unasked-0.2", "spurious-0.2", "few-0.2")),
)
"""Arms on worlds that nobody had looked at when they were settled."""
QUICK: Plan = (("quick-0.4", ("dpo", "random", "select", "sera")),)


def planned(plan: Plan) -> dict[str, list[str]]:
    """All arms of each regime."""
    found: dict[str, list[str]] = {}
    for regime, arms in plan:
        found.setdefault(regime, []).extend(arms)
    return found
