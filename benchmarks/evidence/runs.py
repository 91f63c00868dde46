"""What a run is, the key of its result, stored results, and what tuning picked."""

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
from benchmarks.evidence.arm import NEAREST, neighbours
from benchmarks.evidence.arms import ARMS
from benchmarks.evidence.regimes import REGIMES, TUNED_IN, Regime
from benchmarks.evidence.world import World, Writer

TUNING_SEEDS = (100,)
"""Worlds that arms on the first seeds are tuned in."""
FRESH_TUNING_SEEDS = (100, 101)
"""Worlds that arms on new seeds are tuned in, by their mean."""
UNTUNED = 1
"""Position in the grid."""
VERSION = 1
"""To be raised when the plugin's behaviour changes so that stored results no longer hold."""


def digest(text: str) -> str:
    """Hash of a text, 16 hex digits."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


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
    return digest(json.dumps(parts))


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
            self.data.identity,
            self._arm_key(),
            [self.seed, self.split, self.rate, self.beta],
        ]
        text = json.dumps(what, sort_keys=True)
        return digest(text)

    @property
    def data(self) -> Regime:
        """Without noise for the oracle, whose run is then plain DPO's in the clean regime."""
        regime = REGIMES[self.regime]
        return replace(regime, noise=0.0) if ARMS[self.arm].clean else regime

    def _arm_key(self) -> dict[str, Any]:
        arm = ARMS[self.arm]
        changes = arm.config(REGIMES[self.regime], self.rate, self.beta, self.seed)
        others = {"held_out": True} if arm.held_out else {}
        others |= {"checked": arm.checked, "alone": arm.alone} if arm.checked else {}
        return changes | {"subset": arm.subset, "clean": False} | others


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
        # In one write, for other processes may add to the file.
        with open(self.folder / f"{record['regime']}.jsonl", "ab", buffering=0) as file:
            file.write((json.dumps(record) + "\n").encode())

    def get(self, run: Run, settings: Settings) -> dict[str, Any] | None:
        """The result of a run, or None."""
        return self.found.get(run.key(settings))


def sft_key(seed: int, split: str, settings: Settings, asked: bool = True) -> str:
    """Key of the measurement of an SFT model."""
    what = [fingerprint(), settings.identity(), seed, split]
    text = json.dumps(what if asked else [*what, "never shown `good`"])
    return digest(text)


Candidate = tuple[str, float, float]
"""Arm, learning rate, β."""


def tuning_runs(regime: str, arm: str, settings: Settings, results: Results) -> list[Run]:
    """What tunes an arm, judged on the tuning prompts, as far as stored results can tell.

    Runs that depend on what others find are in the list as soon as those are stored.
    """
    candidates, _ = _candidates(regime, arm, settings, results)
    return [
        Run(TUNED_IN.get(regime, regime), name, seed, "tune", rate, beta)
        for name, rate, beta in candidates
        for seed in tuning_seeds(arm)
    ]


def tuning_seeds(arm: str) -> tuple[int, ...]:
    """The worlds that a reported arm is tuned in."""
    return FRESH_TUNING_SEEDS if ARMS[arm].fresh else TUNING_SEEDS


def _candidates(
    regime: str, arm: str, settings: Settings, results: Results
) -> tuple[list[Candidate], bool]:
    """What tuning tries, and whether that is all: a grid, its neighbours, settings of an arm."""
    source = ARMS[arm].tuned_as or arm
    one, seeds = ARMS[source], tuning_seeds(arm)
    first, *others = one.among or (source,)
    grid = list(one.grid)
    if one.near:
        near = [(one.near, *point) for point in grid]
        ranked = _ranked(regime, near, seeds, settings, results)
        if ranked is None:
            return [], False
        grid = [point for _, *point in ranked[:NEAREST]]  # type: ignore[misc]
    found: list[Candidate] = [(first, *point) for point in grid]
    if one.wide:
        ranked = _ranked(regime, found, seeds, settings, results)
        if ranked is None:
            return found, False
        _, rate, beta = ranked[0]
        found += [(first, *at) for at in neighbours(one.loss, rate, beta) if at not in grid]
    if others:
        ranked = _ranked(regime, found, seeds, settings, results)
        if ranked is None:
            return found, False
        _, rate, beta = ranked[0]
        found += [(name, rate, beta) for name in others]
    return found, True


def _ranked(
    regime: str,
    candidates: Sequence[Candidate],
    seeds: Sequence[int],
    settings: Settings,
    results: Results,
) -> list[Candidate] | None:
    """The candidates by falling mean gold reward in tuning, or None before all are there."""
    scores = []
    where = TUNED_IN.get(regime, regime)
    for name, rate, beta in candidates:
        runs = [Run(where, name, seed, "tune", rate, beta) for seed in seeds]
        found = [record for run in runs if (record := results.get(run, settings)) is not None]
        if len(found) < len(runs):
            return None
        scores.append(float(np.mean([record["curve"][-1]["gold"] for record in found])))
    return [candidates[i] for i in np.argsort(-np.array(scores), kind="stable")]


def tuned(regime: str, arm: str, settings: Settings, results: Results) -> Candidate | None:
    """(arm with its setting, learning rate, β) that tuning picked, or None before it."""
    source = ARMS[arm].tuned_as or arm
    if not settings.tuned:
        found: Candidate = ((ARMS[source].among or (source,))[0], *ARMS[source].grid[UNTUNED])
    else:
        candidates, complete = _candidates(regime, arm, settings, results)
        ranked = None
        if complete:
            ranked = _ranked(regime, candidates, tuning_seeds(arm), settings, results)
        if ranked is None:
            return None
        found = ranked[0]
    return (found[0] if ARMS[arm].among else arm, *found[1:])


def report_runs(
    regime: str, arm: str, seeds: Iterable[int], settings: Settings, results: Results
) -> list[Run]:
    """The runs of a tuned arm on the reporting prompts."""
    found = tuned(regime, arm, settings, results)
    if found is None:
        return []
    name, rate, beta = found
    return [Run(regime, name, seed, "report", rate, beta) for seed in seeds]
