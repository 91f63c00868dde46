"""Many arms: data and models made once, results kept by a key, arms tuned and reported apart."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence import artifacts, pairs, policy, runner, vocabulary
from benchmarks.evidence.arms import ARMS, REGIMES
from benchmarks.evidence.world import World, Writer

HERE = Path(__file__).parent
RESULTS = HERE / "results"
WORK = HERE.parents[1] / "evidence-work"
"""Models, data and output folders, which can be made again."""
TUNING_SEEDS = (100,)
UNTUNED = 2
"""Position in the grid."""
SPARE = 1.15
"""Prompts per pair that are answered: some give no pair."""
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
            settings.identity(),
            asdict(REGIMES[self.regime]),
            self._arm_key(),
            [self.seed, self.split, self.rate, self.beta],
        ]
        text = json.dumps(what, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def _arm_key(self) -> dict[str, Any]:
        arm = ARMS[self.arm]
        changes = arm.config(REGIMES[self.regime], self.rate, self.beta, self.seed)
        return changes | {"subset": arm.subset, "clean": arm.clean}


class Results:
    """Finished runs, one JSON line each, a file per regime.

    Args:
        folder: where the files are.
    """

    def __init__(self, folder: Path = RESULTS) -> None:
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


def sft_folder(seed: int, settings: Settings, work: Path) -> Path:
    """Where the SFT model of a seed is."""
    text = json.dumps([fingerprint(), asdict(settings.size), settings.sft_steps])
    return work / f"sft-{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}-{seed}"


def make_sft(seed: int, settings: Settings, work: Path) -> Path:
    """Train the SFT model of a seed, unless it is there."""
    folder = sft_folder(seed, settings, work)
    if not folder.exists():
        building = folder.with_name(folder.name + ".tmp")
        policy.train_sft(World(seed), building, settings.size, settings.sft_steps)
        building.rename(folder)
    return folder


def make_data(run: Run, settings: Settings, work: Path) -> Path:
    """Write the pairs of a run, unless they are there."""
    from transformers import AutoModelForCausalLM

    arm, regime = ARMS[run.arm], REGIMES[run.regime]
    model = sft_folder(run.seed, settings, work)
    noise = 0.0 if arm.clean else regime.noise
    name = f"{regime.source}-{regime.pairs}-{noise}-{regime.spurious}-{arm.subset}.jsonl"
    path = model / "pairs" / name
    if path.exists():
        return path
    world, prompts = World(run.seed), int(regime.pairs * SPARE)
    if regime.source == "on":
        policy_model = AutoModelForCausalLM.from_pretrained(model)
        candidates = pairs.on_policy(world, policy_model, prompts, run.seed)
    else:
        candidates = pairs.off_policy(world, prompts, run.seed)
    labelled = pairs.label(candidates, regime.pairs, noise, run.seed, spurious=regime.spurious)
    rows = pairs.as_rows(labelled)
    if arm.subset < 1:
        draw = np.random.default_rng([run.seed, 3])
        count = int(len(rows) * arm.subset + 0.5)
        rows = [rows[i] for i in sorted(draw.permutation(len(rows))[:count])]
    building = path.with_suffix(".tmp")
    pairs.write_jsonl(building, rows)
    building.rename(path)
    return path


def run_folder(run: Run, settings: Settings, work: Path) -> Path:
    """Where a run writes."""
    return work / "runs" / f"{run.regime}-{run.arm}-{run.seed}-{run.key(settings)}"


def config_of(run: Run, settings: Settings, work: Path, *, probe: bool = True) -> dict[str, Any]:
    """The YAML of a run."""
    from benchmarks.evidence.probe import PLUGIN

    arm, regime = ARMS[run.arm], REGIMES[run.regime]
    model = sft_folder(run.seed, settings, work)
    folder = run_folder(run, settings, work)
    config = runner.base_config(model, make_data(run, settings, work), folder)
    config |= arm.config(regime, run.rate, run.beta, run.seed)
    if probe:
        config["plugins"] = [*config.get("plugins", []), PLUGIN]
        config["evidence_probe"] = {
            "world": run.seed,
            "reference": str(model),
            "split": run.split,
            "result": str(folder / "probe.json"),
            "points": settings.points,
            "prompts": settings.prompts,
            "repeats": settings.repeats,
        }
    return config


def execute(run: Run, settings: Settings, work: Path, *, keep: bool = False) -> dict[str, Any]:
    """Train one arm and collect its result.

    Args:
        run: what is trained.
        settings: sizes.
        work: folder for models, data and outputs.
        keep: leave the output folder.
    """
    folder = run_folder(run, settings, work)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = config_of(run, settings, work)
    runner.train(config, folder)
    result = json.loads((folder / "probe.json").read_text(encoding="utf-8"))
    if run.split != "report":
        del result["gold"]
    data = Path(config["datasets"][0]["path"])
    result["rounds"] = artifacts.rounds(folder / "out", data, World(run.seed))
    if not keep:
        shutil.rmtree(folder)
    return {"key": run.key(settings), **asdict(run), **result}


def sft_key(seed: int, split: str, settings: Settings) -> str:
    """Key of the measurement of an SFT model."""
    text = json.dumps([fingerprint(), settings.identity(), seed, split])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def measure_sft(seed: int, split: str, settings: Settings, work: Path) -> dict[str, Any]:
    """What the probe would find before the first update."""
    from transformers import AutoModelForCausalLM

    from benchmarks.evidence.probe import measure

    model = AutoModelForCausalLM.from_pretrained(make_sft(seed, settings, work)).eval()
    world = World(seed)
    prompts = world.prompts(split, settings.prompts)
    numbers, gold = measure(world, prompts, model, model, settings.repeats)
    return {
        "key": sft_key(seed, split, settings),
        "regime": "sft",
        "arm": "sft",
        "seed": seed,
        "split": split,
        "curve": [{"step": 0, **numbers}],
        "gold": np.round(gold, 2).tolist(),
    }


def measure_all_sft(
    seeds: Iterable[int], settings: Settings, results: Results, work: Path, workers: int
) -> None:
    """Measure the SFT models of these seeds on the reporting prompts, unless that is done."""
    missing = [s for s in seeds if sft_key(s, "report", settings) not in results.found]
    jobs = [
        (partial(measure_sft, s, "report", settings, work), work / "logs" / f"measure-{s}.log")
        for s in missing
    ]
    for _, record in runner.run_all(jobs, workers):
        results.add(record)


def execute_all(
    runs: Sequence[Run],
    settings: Settings,
    results: Results,
    work: Path,
    workers: int,
    *,
    keep: bool = False,
) -> Iterator[dict[str, Any]]:
    """Execute the runs that have no result yet, and store each as it finishes.

    Args:
        runs: what is wanted.
        settings: sizes.
        results: where results are stored.
        work: folder for models, data and outputs.
        workers: processes at once.
        keep: leave the output folders.
    """
    missing = [run for run in dict.fromkeys(runs) if results.get(run, settings) is None]
    seeds = sorted({run.seed for run in missing})
    logs = work / "logs"
    needed = [s for s in seeds if not sft_folder(s, settings, work).exists()]
    makers = [(partial(make_sft, s, settings, work), logs / f"sft-{s}.log") for s in needed]
    for _ in runner.run_all(makers, workers):
        pass
    # Written one after the other: two workers must not write one file.
    data = {(r.regime, ARMS[r.arm].subset, ARMS[r.arm].clean, r.seed): r for r in missing}
    write = [(partial(_make_all_data, list(data.values()), settings, work), logs / "data.log")]
    for _ in runner.run_all(write if data else [], 1):
        pass
    jobs = [
        (
            partial(execute, run, settings, work, keep=keep),
            logs / f"{run_folder(run, settings, work).name}.log",
        )
        for run in missing
    ]
    for _, record in runner.run_all(jobs, workers):
        results.add(record)
        yield record


def _make_all_data(runs: Iterable[Run], settings: Settings, work: Path) -> None:
    for run in runs:
        make_data(run, settings, work)


def tuning_runs(regime: str, arm: str, seeds: Sequence[int] = TUNING_SEEDS) -> list[Run]:
    """The grid of an arm, judged on the tuning prompts."""
    return [
        Run(regime, arm, seed, "tune", rate, beta)
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
