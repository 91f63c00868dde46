"""Arms with terms of the loss, each picked in tuning among settings of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.evidence.arm import SHIPPED, Arm, sera_block

REVIEWED = [1.0, 1.0]
"""``selection.keep`` of arms that review all pairs and drop none: a list is reviewed at 1, too."""


def with_term(name: str, **settings: Any) -> Arm:
    """DPO on all pairs with one term."""
    shown = ", ".join(f"{key} {value}" for key, value in settings.items())
    return Arm(
        sera_block(keep=1.0, fraction=0.0, loss=[{name: settings}]),
        note=f"{name}: {shown}",
        scored=name == "offset",
    )


def reviewed(name: str, **settings: Any) -> Arm:
    """The same for a term that reads reviews."""
    shown = ", ".join(f"{key} {value}" for key, value in settings.items())
    sera = sera_block(keep=REVIEWED, fraction=0.0, loss=[{name: settings}])
    return Arm(sera, note=f"{name}: {shown}")


def _explore(alpha: float) -> Arm:
    return Arm(
        {**SHIPPED, "loss": [{"explore": {"alpha": alpha}}]},
        note=f"`preset: default` with explore: alpha {alpha:g}",
    )


SETTINGS: Mapping[str, Mapping[str, Arm]] = {
    "entropy": {f"entropy-{a:g}": with_term("entropy", alpha=a) for a in (0.95, 0.8, 1.2)},
    "anchor": {f"anchor-{a:g}": with_term("anchor", alpha=a) for a in (0.2, 0.05, 1.0)},
    "offset": {
        "offset-log-1": with_term("offset", alpha=1.0, function="log"),
        "offset-log-0.3": with_term("offset", alpha=0.3, function="log"),
        "offset-identity-0.3": with_term("offset", alpha=0.3, function="identity"),
    },
    "uncertainty": {
        "uncertainty-lower-0.1": reviewed("uncertainty", weight=0.1, penalty="lower"),
        "uncertainty-lower-0.5": reviewed("uncertainty", weight=0.5, penalty="lower"),
        "uncertainty-damp-0.5": reviewed("uncertainty", weight=0.5, penalty="damp"),
    },
    "posterior": {
        "posterior-weight": reviewed("posterior", signal="margin", use="weight"),
        "posterior-flip": reviewed("posterior", signal="margin", use="flip"),
    },
    "re-po": {
        f"re-po-{eta:g}": with_term("posterior", source="on_the_fly", use="flip", reliability=eta)
        for eta in (0.9, 0.7)
    },
    "explore": {f"explore-{alpha:g}": _explore(alpha) for alpha in (1e-3, 1e-2)},
}
"""Term -> arms with its settings, the default or the paper's first."""

NOTES = {
    "sr-dpo": "Sr-DPO, λ tuned",
    "sr-ipo": "Sr-IPO, λ tuned",
    "entropy": "H-DPO's entropy, α tuned",
    "anchor": "RPO's likelihood of the chosen answer, α tuned",
    "offset": "ODPO's offset from the scores of a judge with 20% errors, α and f tuned",
    "uncertainty": "less is asked of pairs whose margins differ between reviews, λ tuned",
    "posterior": "weights or soft labels from the policy's own margins",
    "re-po": "RE-PO: labels doubted at every step, η at the start tuned",
    "explore": "`preset: default` with SELM's optimism, α tuned",
}
LAMBDAS_FIRST = ("0.3", "0.1", "0.5", "1")
TERMS = tuple(NOTES)


def _term(name: str) -> Arm:
    if name.startswith("sr-"):
        loss = name.removeprefix("sr-")
        among = tuple(f"{name}-{weight}" for weight in LAMBDAS_FIRST)
        return Arm(loss=loss, note=NOTES[name], among=among, near=loss)
    base = "sera" if name == "explore" else "dpo"
    return Arm(note=NOTES[name], among=tuple(SETTINGS[name]), near=base)


ARMS: dict[str, Arm] = {
    **{name: arm for arms in SETTINGS.values() for name, arm in arms.items()},
    **{name: _term(name) for name in TERMS},
}
