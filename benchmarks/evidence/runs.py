"""What a run is, the key of its result, stored results, and which learning rate and β are used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence import pairs, policy, runner, vocabulary
from benchmarks.evidence.arms import ARMS
from benchmarks.evidence.regimes import REGIMES, TUNED_IN, Regime
from benchmarks.evidence.world import World, Writer

TUNING_SEEDS = (100,)
UNTUNED = 1
"""Position in the grid."""
VERSION = 1
"""To be raised when the plugin's behaviour changes so that stored results no longer hold."""


@cache
def fingerprint() -> str:
    """Hash of what the world, the SFT data and the pairs are, whatever the code looks like."""
    world = World(0)
    asked = world.prompts("train", 64)
    written = [world.write(asked, writer, "x") for writer in (Writer(), *pairs.WRITERS)]
    labelled = pairs.label(pairs.off_policy(world, 64, 0), 50, 0.4, 0, spurious=True)
    parts = [
        *(np.round(world.gold(asked, answers), 6).tolist() for answers in written),
        *(answers.tolist() for answers in written),
        *([split, world.prompts(split, 8).rows()] for split in ("tune", "report")),
        pairs.as_rows(labelled),
        vocabulary.VOCABULARY,
        vocabulary.CHAT,
        [policy.SFT_PROMPTS, policy.GOOD_SHARE, asdict(policy.GOOD_WRITER)],
    ]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Settings:
    """Sizes that hold for all runs of a study."""

    size: policy.Size = field(default_factory=policy.Size)
    sft_steps: int = policy.SFT_STEPS
    points: int = 6
    prompts: int = 256
    repeats: int = 4
    tuned: bool = True
    """Whether the learning rate and β are tuned; if not, UNTUNED is used."""

    def identity(self) -> dict[str, Any]:
        """What determines the result of a run."""
        return {key: value for key, value in asdict(self).items() if key != "tuned"}


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        regime: name of the regime.
        arm: name of the arm.
        seed: of world, SFT model, pairs and training.
        split: held-out prompts it is judged on, ``tune`` or ``report``.
        rate: learning rate.
        beta: β of the loss.
    """

    regime: str
    arm: str
    seed: int
    split: str
    rate: float
    beta: float

    def key(self, settings: Settings) -> str:
        """Hash of all that determines the result."""
        what = [
            VERSION,
            fingerprint(),
            runner.RECIPE,
            settings.identity(),
            asdict(self.data),
            self._arm_key(),
            [self.seed, self.split, self.rate, self.beta],
        ]
        text = json.dumps(what, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    @property
    def data(self) -> Regime:
        """Without noise for the oracle, whose run is then plain DPO's in the clean regime."""
        regime = REGIMES[self.regime]
        return replace(regime, noise=0.0) if ARMS[self.arm].clean else regime

    def _arm_key(self) -> dict[str, Any]:
        arm = ARMS[self.arm]
        changes = arm.config(REGIMES[self.regime], self.rate, self.beta, self.seed)
        held_out = {"held_out": True} if arm.held_out else {}
        return changes | {"subset": arm.subset, "clean": False} | held_out


class Results:
    """Finished runs, one JSON line each, a file per regime.

    Args:
        folder: where the files are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: dict[str, dict[str, Any]] = {}
        for path in sorted(folder.glob("*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines():
                record = json.loads(line)
                self.found[record["key"]] = record

    def add(self, record: dict[str, Any]) -> None:
        """Keep a finished run."""
        self.found[record["key"]] = record
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / f"{record['regime']}.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def get(self, run: Run, settings: Settings) -> dict[str, Any] | None:
        """The result of a run, or None."""
        return self.found.get(run.key(settings))


def sft_key(seed: int, split: str, settings: Settings) -> str:
    """Key of the measurement of an SFT model."""
    text = json.dumps([fingerprint(), settings.identity(), seed, split])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def tuning_runs(regime: str, arm: str, seeds: Sequence[int] = TUNING_SEEDS) -> list[Run]:
    """The grid of an arm, judged on the tuning prompts."""
    return [
        Run(TUNED_IN.get(regime, regime), arm, seed, "tune", rate, beta)
        for seed in seeds
        for rate, beta in ARMS[arm].grid
    ]


def tuned(
    regime: str, arm: str, settings: Settings, results: Results
) -> tuple[float, float] | None:
    """(learning rate, β) with the highest mean gold reward in tuning, or None before it."""
    source = ARMS[arm].tuned_as or arm
    if not settings.tuned:
        return ARMS[source].grid[UNTUNED]
    scores: dict[tuple[float, float], list[float]] = {}
    for run in tuning_runs(regime, source):
        record = results.get(run, settings)
        if record is None:
            return None
        scores.setdefault((run.rate, run.beta), []).append(record["curve"][-1]["gold"])
    return max(scores, key=lambda pair: float(np.mean(scores[pair])))


def report_runs(
    regime: str, arm: str, seeds: Iterable[int], settings: Settings, results: Results
) -> list[Run]:
    """The runs of a tuned arm on the reporting prompts."""
    found = tuned(regime, arm, settings, results)
    return [] if found is None else [Run(regime, arm, s, "report", *found) for s in seeds]
