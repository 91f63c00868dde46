"""What is compared: regimes of data, and arms as changes to one YAML."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.evidence.world import MOST_WORDS

BATCH = 32
KEEP = 0.7
MANY, FEW = 2_000, 200
SEEDS = 5
"""Fewest seeds of a comparison; more are added where a verdict is undecided."""
PLUGIN, TRAINER = "sera_plugin.SeRAPlugin", "sera_plugin.trainer.SeRATrainer"


@dataclass(frozen=True)
class Regime:
    """The preference data of a comparison.

    Attributes:
        source: ``on`` for pairs sampled from the SFT model, ``off`` for other writers.
        noise: share of flipped labels.
        pairs: how many.
        epochs: passes over them in plain DPO; every arm gets as many updates.
        spurious: whether a meaningless word goes with the chosen answers.
    """

    source: str = "on"
    noise: float = 0.2
    pairs: int = MANY
    epochs: int = 3
    spurious: bool = False

    @property
    def updates(self) -> int:
        """Optimizer updates of every arm."""
        return self.epochs * math.ceil(self.pairs / BATCH)


REGIMES = {
    "on-0.0": Regime(noise=0.0),
    "on-0.2": Regime(noise=0.2),
    "on-0.4": Regime(noise=0.4),
    "off-0.0": Regime("off", noise=0.0),
    "off-0.2": Regime("off", noise=0.2),
    "off-0.4": Regime("off", noise=0.4),
    "few-0.0": Regime(noise=0.0, pairs=FEW, epochs=15),
    "few-0.2": Regime(noise=0.2, pairs=FEW, epochs=15),
    "few-0.4": Regime(noise=0.4, pairs=FEW, epochs=15),
    "spurious-0.2": Regime(noise=0.2, spurious=True),
    "quick-0.4": Regime(noise=0.4, pairs=640),
    "tiny-0.2": Regime(noise=0.2, pairs=64),
}

RATES = (5e-4, 1.2e-3)
BETAS = {"dpo": (0.03, 0.1, 0.3), "ipo": (0.5, 2.0, 8.0)}
"""IPO's β: the loss asks for a margin of 1/(2β) per token."""


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
    """

    sera: Mapping[str, Any] | None = None
    loss: str = "dpo"
    subset: float = 1.0
    clean: bool = False
    tuned_as: str = ""
    note: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def grid(self) -> list[tuple[float, float]]:
        """(learning rate, β) to choose from; the same number for every arm."""
        return [(rate, beta) for rate in RATES for beta in BETAS[self.loss]]

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


def _refined(keep: float, loss: str) -> Arm:
    """Refinement alone, or with selection; λ well below the smallest β of DPO."""
    refine = {"prompt": "good\n", "weight": 0.01 if loss == "dpo" else 0.1}
    alone = "alone" if keep == 1 else "with selection"
    return Arm(
        _sera(keep=keep, fraction=0.0, refine=refine),
        loss=loss,
        note=f"Sr-{loss.upper()} {alone}",
        more=ASKS_FOR_QUALITY,
    )


ARMS: dict[str, Arm] = {
    "dpo": Arm(note="DPO on all pairs"),
    "ipo": Arm(loss="ipo", note="IPO on all pairs"),
    "random": Arm(subset=KEEP, note="DPO on a random 70%"),
    "oracle": Arm(clean=True, note="DPO on the same pairs without flipped labels"),
    "select": Arm(SELECT, note="selection only"),
    "bootstrap": Arm(_sera(keep=1.0), note="bootstrapping only"),
    "full": Arm(FULL, note="as published"),
    "sera": Arm(SHIPPED, note="`sera: true`: selection, bootstrapping, guard"),
    "reference": Arm(
        _sera(bootstrap=BY_REFERENCE),
        note="as published, but the reference writes the answers",
    ),
    "sera-reference": Arm(
        _sera(bootstrap={**BY_REFERENCE, "guard": GUARD}),
        note="`sera: true`, but the reference writes the answers",
    ),
    "select-ipo": Arm(SELECT, loss="ipo", note="selection only"),
    "bootstrap-ipo": Arm(_sera(keep=1.0), loss="ipo", note="bootstrapping only"),
    "full-ipo": Arm(FULL, loss="ipo", note="as published"),
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
        _sera(ensemble=0.0, bootstrap={"ensemble": False}), tuned_as="full", note="γ = 0"
    ),
    "full-policy-pool": Arm(
        _sera(bootstrap={"pool": "policy"}), tuned_as="full", note="fresh answers alone compete"
    ),
    "full-length-fixed": Arm(
        _sera(bootstrap={"length_penalty": 0.02}), tuned_as="full", note="length penalty 0.02"
    ),
    "full-length-auto": Arm(
        _sera(bootstrap={"length_penalty": "auto"}), tuned_as="full", note="length penalty auto"
    ),
    "full-previous": Arm(
        _sera(reference="previous", bootstrap={"ensemble": False}),
        tuned_as="full",
        note="reference: previous policy",
    ),
    "sr-dpo": _refined(1.0, "dpo"),
    "sr-ipo": _refined(1.0, "ipo"),
    "sr-dpo-select": _refined(KEEP, "dpo"),
    "sr-ipo-select": _refined(KEEP, "ipo"),
    "reference-length-auto": Arm(
        _sera(bootstrap={**BY_REFERENCE, "length_penalty": "auto"}),
        tuned_as="reference",
        note="the reference writes, length penalty auto",
    ),
    "full-mixed": Arm(
        _sera(bootstrap={"sampler": "mixed", "ensemble": False}),
        tuned_as="reference",
        note="policy and reference write half of the answers each",
    ),
}

MAIN = ("dpo", "random", "select", "full", "sera", "sera-reference")
IPO = ("ipo", "select-ipo", "full-ipo", "sera-ipo")
PARTS = ("bootstrap", "bootstrap-ipo", "reference")
VARIANTS = tuple(name for name, arm in ARMS.items() if arm.tuned_as)
PLAN: dict[str, tuple[str, ...]] = {
    "on-0.4": (*MAIN, *IPO, "oracle", *PARTS, *VARIANTS),
    "few-0.2": (*MAIN, *IPO, "oracle", *PARTS, "sera-tight"),
    "off-0.2": (*MAIN, *IPO, "oracle", "reference"),
    "on-0.2": (*MAIN, *IPO, "oracle"),
    "on-0.0": (*MAIN, *IPO),
    "off-0.4": (*MAIN, *IPO, "oracle"),
    "spurious-0.2": ("dpo", "ipo", "select", "full", "sera"),
}
"""What `make evidence` runs, most telling first."""
QUICK = {"quick-0.4": ("dpo", "random", "select", "sera")}
