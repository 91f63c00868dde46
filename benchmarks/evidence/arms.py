"""Ways to train: arms as changes to one YAML."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.evidence.regimes import BATCH, Regime
from benchmarks.evidence.world import MOST_WORDS

KEEP = 0.7
PLUGIN, TRAINER = "sera_plugin.SeRAPlugin", "sera_plugin.trainer.SeRATrainer"


GRIDS: dict[str, tuple[tuple[float, float], ...]] = {
    "dpo": ((5e-4, 0.03), (5e-4, 0.1), (5e-4, 0.3), (1.2e-3, 0.1), (1.2e-3, 0.3)),
    "ipo": ((5e-4, 0.1), (5e-4, 0.25), (5e-4, 0.6), (1.2e-3, 0.25), (1.2e-3, 0.6)),
}
"""(learning rate, β) to choose from. IPO's loss asks for a margin of 1/(2β) per token."""


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        sera: the ``sera:`` block, or None for the host alone.
        loss: ``dpo`` or ``ipo``.
        subset: share of the pairs, drawn at random, that is trained on.
        clean: train on the pairs without flipped labels.
        tuned_as: the arm whose learning rate and β are used; empty for this one.
        note: what it shows, for the tables.
        more: other keys of the YAML.
        scored: the pairs carry scores of an outside judge.
        held_out: there are evaluation pairs.
    """

    sera: Mapping[str, Any] | None = None
    loss: str = "dpo"
    subset: float = 1.0
    clean: bool = False
    tuned_as: str = ""
    note: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)
    scored: bool = False
    held_out: bool = False

    @property
    def grid(self) -> tuple[tuple[float, float], ...]:
        """(learning rate, β) to choose from; the same number for every arm."""
        return GRIDS[self.loss]

    def config(self, regime: Regime, rate: float, beta: float, seed: int) -> dict[str, Any]:
        """What this arm changes in the shared YAML."""
        changes: dict[str, Any] = {
            "rl": self.loss,
            "learning_rate": rate,
            "rl_beta": beta,
            "seed": seed,
            "micro_batch_size": BATCH,
            "max_steps": regime.updates,
            "num_epochs": self.rounds(regime),
        }
        changes |= self.more
        if self.sera is not None:
            changes |= {"plugins": [PLUGIN], "trainer_cls": TRAINER, "sera": dict(self.sera)}
        return changes

    def rounds(self, regime: Regime) -> int:
        """Epochs until the updates are used up."""
        first = math.ceil(int(regime.pairs * self.subset + 0.5) / BATCH)
        later = first
        if self.sera is not None:
            later = math.ceil(int(regime.pairs * _round_share(self.sera) + 0.5) / BATCH)
        return 1 + max(1, math.ceil((regime.updates - first) / later))


def _round_share(sera: Mapping[str, Any]) -> float:
    return float(sera["selection"]["keep"] + sera["bootstrap"]["fraction"])


def _sera(
    keep: float = KEEP,
    fraction: float = 0.3,
    selection: Mapping[str, Any] | None = None,
    bootstrap: Mapping[str, Any] | None = None,
    **other: Any,
) -> dict[str, Any]:
    """A ``sera:`` block with every setting that matters, so that new defaults change nothing."""
    return {
        "warmup_rounds": 1,
        "ensemble": 0.3,
        "reference": "fixed",
        **other,
        "selection": {"keep": keep, "margin": "sum", **(selection or {})},
        "bootstrap": {
            "fraction": fraction,
            "num_candidates": 4,
            "prompts": 0.6,
            "pool": "policy_and_offline",
            "sampler": "policy",
            "temperature": 0.7,
            "length_penalty": 0.0,
            "ensemble": True,
            "guard": False,
            "max_new_tokens": MOST_WORDS + 1,
            **(bootstrap or {}),
        },
    }


SELECT = _sera(fraction=0.0)
FULL = _sera()
GUARD = {
    "enabled": True,
    "max_drift": 0.5,
    "max_spread": 6.0,
    "max_length_correlation": 0.3,
    "min_agreement": 0.6,
    "min_accuracy": 0.5,
    "min_prompts": 16,
}
SHIPPED = _sera(bootstrap={"ensemble": False, "guard": GUARD})
"""``sera: true``, written out; a test compares it with the defaults."""
BY_REFERENCE = {"sampler": "reference", "ensemble": False}

ASKS_FOR_QUALITY = {
    "chat_template": "jinja",
    "chat_template_jinja": (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ '<s> ' + m['content'] + ' ' }}"
        "{% elif m['role'] == 'user' %}{{ '<s> any ' if loop.first else '' }}"
        "{{ m['content'] + ' <sep> ' }}{% else %}{{ m['content'] + ' </s>' }}{% endif %}"
        "{% endfor %}"
    ),
}
"""The world's template with the quality word as its system message, which is `any` by default.

A quarter of the prompts that the SFT model has seen have `good` there, and an answer that is the
best of four. So with p = `good` the prompt p⊕x is one of them, word for word.
"""


LAMBDAS = (0.1, 0.3, 0.5, 1.0)
"""The weights of Δ that the paper chose from."""


def _refined(loss: str, weight: float, keep: float = 1.0, baseline: str = "reference") -> Arm:
    """Refinement with λ = ``weight`` alone, or with selection."""
    refine = {"prompt": "good\n", "placement": "system", "weight": weight, "baseline": baseline}
    alone = "" if keep == 1 else ", with selection"
    other = "" if baseline == "reference" else f", baseline {baseline}"
    return Arm(
        _sera(keep=keep, fraction=0.0, refine=refine),
        loss=loss,
        tuned_as=loss if keep == 1 else {"dpo": "select", "ipo": "select-ipo"}[loss],
        note=f"Sr-{loss.upper()}, λ = {weight:.1g}{other}{alone}",
        more=ASKS_FOR_QUALITY,
        scored=True,
    )


def _selects(*, note: str, scored: bool = False, held_out: bool = False, **keys: Any) -> Arm:
    """Selection only, by another rule or from other margins; ``keys`` of ``sera.selection``."""
    return Arm(
        _sera(fraction=0.0, selection=keys),
        tuned_as="select",
        note=note,
        scored=scored,
        held_out=held_out,
    )


def _judged(name: str, note: str) -> Arm:
    judge = {"judge": f"benchmarks.evidence.judges:{name}", "ensemble": False}
    return Arm(_sera(bootstrap=judge), tuned_as="sera", note=note)


ARMS: dict[str, Arm] = {
    "dpo": Arm(note="DPO on all pairs"),
    "ipo": Arm(loss="ipo", note="IPO on all pairs"),
    "random": Arm(subset=KEEP, tuned_as="dpo", note="DPO on a random 70%"),
    "oracle": Arm(clean=True, tuned_as="dpo", note="DPO on the same pairs without flipped labels"),
    "select": Arm(SELECT, note="selection only"),
    "bootstrap": Arm(_sera(keep=1.0), tuned_as="sera", note="bootstrapping only"),
    "full": Arm(FULL, tuned_as="sera", note="as published"),
    "sera": Arm(SHIPPED, note="`sera: true`: selection, bootstrapping, guard"),
    "reference": Arm(
        _sera(bootstrap=BY_REFERENCE),
        tuned_as="sera",
        note="as published, but the reference writes the answers",
    ),
    "sera-reference": Arm(
        _sera(bootstrap={**BY_REFERENCE, "guard": GUARD}),
        tuned_as="sera",
        note="`sera: true`, but the reference writes the answers",
    ),
    "select-ipo": Arm(SELECT, loss="ipo", note="selection only"),
    "bootstrap-ipo": Arm(
        _sera(keep=1.0), loss="ipo", tuned_as="sera-ipo", note="bootstrapping only"
    ),
    "full-ipo": Arm(FULL, loss="ipo", tuned_as="sera-ipo", note="as published"),
    "sera-ipo": Arm(SHIPPED, loss="ipo", note="`sera: true`"),
    "sera-tight": Arm(
        _sera(bootstrap={"ensemble": False, "guard": {**GUARD, "max_spread": 3.0}}),
        tuned_as="sera",
        note="`sera: true`, but the guard's max_spread is 3",
    ),
    "select-no-ensemble": Arm(
        _sera(fraction=0.0, ensemble=0.0), tuned_as="select", note="selection, γ = 0"
    ),
    "select-mean": Arm(
        _sera(fraction=0.0, selection={"margin": "mean"}),
        tuned_as="select",
        note="selection by the margin per token",
    ),
    "full-no-ensemble": Arm(
        _sera(ensemble=0.0, bootstrap={"ensemble": False}), tuned_as="sera", note="γ = 0"
    ),
    "full-policy-pool": Arm(
        _sera(bootstrap={"pool": "policy"}), tuned_as="sera", note="fresh answers alone compete"
    ),
    "full-length-fixed": Arm(
        _sera(bootstrap={"length_penalty": 0.02}), tuned_as="sera", note="length penalty 0.02"
    ),
    "full-length-auto": Arm(
        _sera(bootstrap={"length_penalty": "auto"}), tuned_as="sera", note="length penalty auto"
    ),
    "full-previous": Arm(
        _sera(reference="previous", bootstrap={"ensemble": False}),
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
        _sera(bootstrap={**BY_REFERENCE, "length_penalty": "auto"}),
        tuned_as="sera",
        note="the reference writes, length penalty auto",
    ),
    "full-mixed": Arm(
        _sera(bootstrap={"sampler": "mixed", "ensemble": False}),
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
    "judge-gold": _judged("gold", "gold ranks the fresh answers"),
    "judge-gold-errors": _judged("gold_with_errors", "gold with 20% errors ranks them"),
}
