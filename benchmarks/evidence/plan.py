"""What ``make evidence`` runs, most telling first."""

from __future__ import annotations

from benchmarks.evidence.arms import ARMS

SEEDS = 5
"""Fewest seeds of a comparison; more are added where a verdict is undecided."""

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
REFINED = ("sr-dpo", "sr-ipo", "sr-dpo-select", "sr-ipo-select")

Plan = tuple[tuple[str, tuple[str, ...]], ...]

PLAN: Plan = (
    ("on-0.4", (*DPO, *IPO, "full", "oracle")),
    ("on-0.2", (*DPO, *IPO, "full")),
    ("few-0.2", (*DPO, *IPO, "full")),
    ("off-0.4", (*DPO, *IPO, "full", "oracle")),
    ("off-0.2", (*DPO, *IPO, "full")),
    ("on-0.4", (*RULES, *JUDGES)),
    ("off-0.2", (*RULES, *JUDGES)),
    ("on-0.2", (*RULES, *JUDGES)),
    ("off-0.4", (*RULES, *JUDGES)),
    ("on-0.0", ("dpo", "select", "sera", *RULES, *JUDGES)),
    ("off-0.0", ("dpo", "select", "sera", *RULES, *JUDGES)),
    ("on-0.4", (*VARIANTS, *PARTS, "full-ipo", *REFINED)),
    ("few-0.2", (*PARTS[:1], *PARTS[2:], *REFINED)),
    ("off-0.2", REFINED),
    ("spurious-0.2", ("dpo", "ipo", "select", "sera")),
    ("on-0.0", ("random", *IPO)),
    ("off-0.0", ("random", *IPO)),
)
"""Regimes with arms; a regime may come more than once."""
QUICK: Plan = (("quick-0.4", ("dpo", "random", "select", "sera")),)


def planned(plan: Plan) -> dict[str, list[str]]:
    """All arms of each regime."""
    found: dict[str, list[str]] = {}
    for regime, arms in plan:
        found.setdefault(regime, []).extend(arms)
    return found
