"""SFT models and pairs of a study on disk, made when they are not there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence import pairs, policy
from benchmarks.evidence.arms import ARMS
from benchmarks.evidence.judges import scored
from benchmarks.evidence.runs import Run, Settings, fingerprint
from benchmarks.evidence.world import World

SPARE = 1.15
"""Prompts per pair that are answered: some give no pair, and some give evaluation pairs."""
HELD_OUT = 0.1
"""Evaluation pairs per pair."""


def sft_folder(seed: int, settings: Settings, work: Path, asked: bool = True) -> Path:
    """Where the SFT model of a seed is; ``asked``, whether it was shown good answers to `good`."""
    text = json.dumps([fingerprint(), asdict(settings.size), settings.sft_steps])
    kind = "" if asked else "-unasked"
    digest = hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
    return work / f"sft-{digest}-{seed}{kind}"


def make_sft(seed: int, settings: Settings, work: Path, asked: bool = True) -> Path:
    """Train the SFT model of a seed, unless it is there."""
    folder = sft_folder(seed, settings, work, asked)
    if not folder.exists():
        building = folder.with_name(folder.name + ".tmp")
        share = policy.GOOD_SHARE if asked else 0.0
        policy.train_sft(World(seed), building, settings.size, settings.sft_steps, share)
        building.rename(folder)
    return folder


def data_key(run: Run) -> Hashable:
    """What the files of pairs of a run depend on, beside the settings."""
    arm = ARMS[run.arm]
    return run.data, run.seed, arm.subset, arm.scored, arm.held_out, arm.checked, arm.alone


def make_data(run: Run, settings: Settings, work: Path) -> Path:
    """Write the pairs of a run, unless they are there."""
    arm = ARMS[run.arm]
    kind = f"-{arm.subset}" + ("-scored" if arm.scored else "")
    kind += f"-checked-{arm.checked}" if arm.checked else ""
    path = _pairs_file(run, settings, work, kind + ("-alone" if arm.alone else ""))
    if path.exists():
        return path
    rows = pairs.as_rows(_labelled(run, settings, work, run.data.pairs))
    if arm.subset < 1:
        draw = np.random.default_rng([run.seed, 3])
        count = int(len(rows) * arm.subset + 0.5)
        rows = [rows[i] for i in sorted(draw.permutation(len(rows))[:count])]
    if arm.checked:
        rows = pairs.checked(rows, arm.checked, run.seed)
        rows = [row for row in rows if row["checked"]] if arm.alone else rows
    return _write(path, scored(World(run.seed), rows) if arm.scored else rows)


def make_held_out(run: Run, settings: Settings, work: Path) -> Path:
    """Write evaluation pairs with the same share of flipped labels, unless they are there."""
    path = _pairs_file(run, settings, work, "-held-out")
    if path.exists():
        return path
    count = run.data.pairs
    labelled = _labelled(run, settings, work, count + int(HELD_OUT * count))
    return _write(path, pairs.as_rows(labelled)[count:])


def _pairs_file(run: Run, settings: Settings, work: Path, kind: str) -> Path:
    data = run.data
    pattern = "-patterned" if data.patterned else ""
    name = f"{data.source}-{data.pairs}-{data.noise}-{data.spurious}{pattern}{kind}.jsonl"
    return sft_folder(run.seed, settings, work, data.asked) / "pairs" / name


def _labelled(run: Run, settings: Settings, work: Path, count: int) -> pairs.PairSet:
    from transformers import AutoModelForCausalLM

    data, world = run.data, World(run.seed)
    prompts = int(data.pairs * SPARE)
    if data.source == "on":
        model = AutoModelForCausalLM.from_pretrained(make_sft(run.seed, settings, work, data.asked))
        candidates = pairs.on_policy(world, model, prompts, run.seed)
    else:
        candidates = pairs.off_policy(world, prompts, run.seed)
    return pairs.label(
        candidates,
        count,
        data.noise,
        run.seed,
        spurious=data.spurious,
        patterned=data.patterned,
    )


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    building = path.with_suffix(".tmp")
    pairs.write_jsonl(building, rows)
    building.rename(path)
    return path
