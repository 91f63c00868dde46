"""One way to train, as changes to one YAML, and the ``sera:`` blocks that arms share."""

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
RATES = (2e-4, 5e-4, 1.2e-3, 3e-3)
BETAS = {"dpo": (0.01, 0.03, 0.1, 0.3, 1.0)}
"""What the grid of an arm that is ``wide`` is continued on."""
NEW_SEEDS = 12
"""The first seed of worlds that nobody had looked at when the arms on them were settled."""
FRESH_SEEDS = range(NEW_SEEDS, NEW_SEEDS + 12)
NEAREST = 3
"""Points of another arm's grid, its best ones, that an arm ``near`` it takes for its own."""


def neighbours(loss: str, rate: float, beta: float) -> list[tuple[float, float]]:
    """The points one step of learning rate or β away."""
    betas = BETAS[loss]
    i, j = RATES.index(rate), betas.index(beta)
    steps = ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1))
    return [(RATES[r], betas[b]) for r, b in steps if 0 <= r < len(RATES) and 0 <= b < len(betas)]


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
        among: arms that differ by a setting of their own, most usual first, of which tuning picks
            the one that is reported under this arm's name; then nothing else of this arm is used.
        wide: the neighbours of the grid's best point are tried, too.
        fresh: it is reported on seeds from NEW_SEEDS on, and the others on those before.
        longer: its updates as a multiple of the regime's.
        near: the arm the best three points of whose grid are this one's; empty for all points.
        checked: pairs, picked at random, whose labels are put right and which are marked.
        alone: whether only these are trained on.
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
    among: tuple[str, ...] = ()
    wide: bool = False
    fresh: bool = False
    longer: float = 1.0
    near: str = ""
    checked: int = 0
    alone: bool = False

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
            "max_steps": self.updates(regime),
            "num_epochs": self.rounds(regime),
        }
        changes |= self.more
        if self.sera is not None:
            changes |= {"plugins": [PLUGIN], "trainer_cls": TRAINER, "sera": dict(self.sera)}
        return changes

    def updates(self, regime: Regime) -> int:
        """Optimizer updates."""
        return round(regime.updates * self.longer)

    def rounds(self, regime: Regime) -> int:
        """Epochs until the updates are used up."""
        size = self.checked if self.alone else int(regime.pairs * self.subset + 0.5)
        first = math.ceil(size / BATCH)
        later = first
        if self.sera is not None:
            later = math.ceil(int(regime.pairs * _round_share(self.sera) + 0.5) / BATCH)
            first = first if self.sera["warmup_rounds"] else later
        return 1 + max(1, math.ceil((self.updates(regime) - first) / later))


def _round_share(sera: Mapping[str, Any]) -> float:
    keep = sera["selection"]["keep"]
    last = 1.0 if keep == "auto" else keep[-1] if isinstance(keep, list) else keep
    return float(last + sera["bootstrap"]["fraction"])


def sera_block(
    keep: float | list[float] | str = KEEP,
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


SELECT = sera_block(fraction=0.0)
FULL = sera_block()
GUARD = {
    "enabled": True,
    "max_drift": 0.5,
    "max_spread": 6.0,
    "max_length_correlation": 0.3,
    "min_agreement": 0.6,
    "min_accuracy": 0.5,
    "min_prompts": 16,
}
SHIPPED = sera_block(bootstrap={"ensemble": False, "guard": GUARD})
"""``preset: default``, written out; a test compares it with the defaults."""
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
