"""The data of a comparison: who wrote the pairs, how many, how many labels are wrong."""

from __future__ import annotations

import math
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

BATCH = 32
MANY, FEW = 2_000, 200


@dataclass(frozen=True)
class Regime:
    """The preference data of a comparison.

    Attributes:
        source: ``on`` for pairs sampled from the SFT model, ``off`` for other writers.
        noise: share of flipped labels.
        pairs: how many.
        epochs: passes over them in plain DPO; every arm gets as many updates.
        spurious: whether a meaningless word goes with the chosen answers.
        patterned: flips are of those who compare by gold and err the more, the closer two answers
            are; otherwise every label is as likely to be flipped.
        asked: whether the SFT model was shown what the quality word `good` asks for.
    """

    source: str = "on"
    noise: float = 0.2
    pairs: int = MANY
    epochs: int = 3
    spurious: bool = False
    patterned: bool = False
    asked: bool = True

    @property
    def identity(self) -> dict[str, Any]:
        """What determines the pairs; of the last two fields, what is not the default."""
        usual = {f.name: f.default for f in fields(self) if f.default is not MISSING}
        later = ("patterned", "asked")
        return {k: v for k, v in asdict(self).items() if k not in later or v != usual[k]}

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
    "patterned-0.2": Regime(noise=0.2, patterned=True),
    "patterned-0.4": Regime(noise=0.4, patterned=True),
    "unasked-0.2": Regime(noise=0.2, asked=False),
    "unasked-0.4": Regime(noise=0.4, asked=False),
    "quick-0.4": Regime(noise=0.4, pairs=640),
    "tiny-0.2": Regime(noise=0.2, pairs=64),
}

TUNED_IN = {
    "on-0.0": "on-0.2",
    "off-0.0": "on-0.2",
    "off-0.2": "on-0.2",
    "off-0.4": "on-0.4",
    "spurious-0.2": "on-0.2",
    "patterned-0.2": "on-0.2",
    "patterned-0.4": "on-0.4",
    "unasked-0.2": "on-0.2",
    "unasked-0.4": "on-0.4",
}
"""Regimes that take the learning rates and βs of another one."""
