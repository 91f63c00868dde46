"""Ways to train."""

from __future__ import annotations

from typing import Any

from benchmarks.evidence import checked, signals, terms
from benchmarks.evidence.arm import (
    ASKS_FOR_QUALITY,
    BY_REFERENCE,
    FULL,
    GUARD,
    KEEP,
    SELECT,
    SHIPPED,
    Arm,
    sera_block,
)

LAMBDAS = (0.1, 0.3, 0.5, 1.0)
"""The weights of Δ that the paper chose from."""


def _refined(loss: str, weight: float, keep: float = 1.0, baseline: str = "reference") -> Arm:
    """Refinement with λ = ``weight`` alone, or with selection."""
    refine = {"prompt": "good\n", "placement": "system", "weight": weight, "baseline": baseline}
    alone = "" if keep == 1 else ", with selection"
    other = "" if baseline == "reference" else f", baseline {baseline}"
    return Arm(
        sera_block(keep=keep, fraction=0.0, refine=refine),
        loss=loss,
        tuned_as=loss if keep == 1 else {"dpo": "select", "ipo": "select-ipo"}[loss],
        note=f"Sr-{loss.upper()}, λ = {weight:.1g}{other}{alone}",
        more=ASKS_FOR_QUALITY,
        scored=True,
    )


def _selects(*, note: str, scored: bool = False, held_out: bool = False, **keys: Any) -> Arm:
    """Selection only, by another rule or from other margins; ``keys`` of ``sera.selection``."""
    return Arm(
        sera_block(fraction=0.0, selection=keys),
        tuned_as="select",
        note=note,
        scored=scored,
        held_out=held_out,
    )


def _judged(name: str, note: str) -> Arm:
    judge = {"judge": f"benchmarks.evidence.judges:{name}", "ensemble": False}
    return Arm(sera_block(bootstrap=judge), tuned_as="sera", note=note)


def _fills(fill: str, note: str) -> Arm:
    """``preset: default``, places of pairs that fell short filled as ``selection.fill`` says."""
    shipped = {**SHIPPED, "selection": {**SHIPPED["selection"], "fill": fill}}
    return Arm(shipped, note=f"`preset: default`, filled with {note}")


ARMS: dict[str, Arm] = {
    "dpo": Arm(note="DPO on all pairs"),
    "ipo": Arm(loss="ipo", note="IPO on all pairs"),
    "random": Arm(subset=KEEP, tuned_as="dpo", note="DPO on a random 70%"),
    "oracle": Arm(clean=True, tuned_as="dpo", note="DPO on the same pairs without flipped labels"),
    "select": Arm(SELECT, note="selection only"),
    "bootstrap": Arm(sera_block(keep=1.0), tuned_as="sera", note="bootstrapping only"),
    "full": Arm(FULL, tuned_as="sera", note="as published"),
    "sera": Arm(SHIPPED, note="`preset: default`: selection, bootstrapping, guard"),
    "reference": Arm(
        sera_block(bootstrap=BY_REFERENCE),
        tuned_as="sera",
        note="as published, but the reference writes the answers",
    ),
    "sera-reference": Arm(
        sera_block(bootstrap={**BY_REFERENCE, "guard": GUARD}),
        tuned_as="sera",
        note="`preset: default`, but the reference writes the answers",
    ),
    "select-ipo": Arm(SELECT, loss="ipo", note="selection only"),
    "bootstrap-ipo": Arm(
        sera_block(keep=1.0), loss="ipo", tuned_as="sera-ipo", note="bootstrapping only"
    ),
    "full-ipo": Arm(FULL, loss="ipo", tuned_as="sera-ipo", note="as published"),
    "sera-ipo": Arm(SHIPPED, loss="ipo", note="`preset: default`"),
    "sera-tight": Arm(
        sera_block(bootstrap={"ensemble": False, "guard": {**GUARD, "max_spread": 3.0}}),
        tuned_as="sera",
        note="`preset: default`, but the guard's max_spread is 3",
    ),
    "select-no-ensemble": Arm(
        sera_block(fraction=0.0, ensemble=0.0), tuned_as="select", note="selection, γ = 0"
    ),
    "select-mean": Arm(
        sera_block(fraction=0.0, selection={"margin": "mean"}),
        tuned_as="select",
        note="selection by the margin per token",
    ),
    "full-no-ensemble": Arm(
        sera_block(ensemble=0.0, bootstrap={"ensemble": False}), tuned_as="sera", note="γ = 0"
    ),
    "full-policy-pool": Arm(
        sera_block(bootstrap={"pool": "policy"}),
        tuned_as="sera",
        note="fresh answers alone compete",
    ),
    "full-length-fixed": Arm(
        sera_block(bootstrap={"length_penalty": 0.02}), tuned_as="sera", note="length penalty 0.02"
    ),
    "full-length-auto": Arm(
        sera_block(bootstrap={"length_penalty": "auto"}),
        tuned_as="sera",
        note="length penalty auto",
    ),
    "full-previous": Arm(
        sera_block(reference="previous", bootstrap={"ensemble": False}),
        tuned_as="sera",
        note="reference: previous policy",
    ),
    **{f"sr-dpo-{weight:g}": _refined("dpo", weight) for weight in LAMBDAS},
    **{f"sr-ipo-{weight:g}": _refined("ipo", weight) for weight in LAMBDAS},
    "sr-dpo-zero": _refined("dpo", 1e-12),
    "sr-dpo-plain": _refined("dpo", 0.3, baseline="plain"),
    "sr-dpo-none": _refined("dpo", 0.1, baseline="none"),
    "sr-dpo-select": _refined("dpo", 0.3, KEEP),
    "sr-ipo-select": _refined("ipo", 0.3, KEEP),
    "reference-length-auto": Arm(
        sera_block(bootstrap={**BY_REFERENCE, "length_penalty": "auto"}),
        tuned_as="sera",
        note="the reference writes, length penalty auto",
    ),
    "full-mixed": Arm(
        sera_block(bootstrap={"sampler": "mixed", "ensemble": False}),
        tuned_as="sera",
        note="policy and reference write half of the answers each",
    ),
    "select-free": _selects(note="margins from the training steps", source="training"),
    "select-uncertainty": _selects(note="margin − its standard deviation", uncertainty=1.0),
    "select-flip": _selects(note="clearly negative pairs are flipped", on_negative="flip"),
    "rule-band": _selects(rule="band", note="percentiles 20 to 90"),
    "rule-bottom": _selects(rule="bottom", note="smallest margins"),
    "rule-random": _selects(rule="random", note="random pairs in every round"),
    "rule-threshold": _selects(rule="threshold", note="margins above 0, at most 70%"),
    "rule-lossdiff": _selects(
        rule="lossdiff_irm", held_out=True, note="LossDiff-IRM, 200 evaluation pairs"
    ),
    "rule-external": _selects(
        rule="external",
        external={"mode": "only"},
        scored=True,
        note="scores of an outside judge with 20% errors",
    ),
    "rule-fused": _selects(
        rule="external", scored=True, note="these scores and the implicit margins"
    ),
    "fill-kept": _fills("kept", "kept pairs again"),
    "fill-both": _fills("kept_and_bootstrapped", "kept and bootstrapped pairs again"),
    "fill-next": _fills("next_best", "the next-best pairs without a negative margin"),
    "judge-gold": _judged("gold", "gold ranks the fresh answers"),
    "judge-gold-errors": _judged("gold_with_errors", "gold with 20% errors ranks them"),
    **terms.ARMS,
    **signals.ARMS,
    **checked.ARMS,
}
