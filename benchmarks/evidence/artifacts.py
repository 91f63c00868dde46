"""Gold accuracy of what SeRA kept and bootstrapped, read from a run's artifacts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks.evidence import vocabulary as words
from benchmarks.evidence.world import MOST_WORDS, NONE, Prompts, World, lengths
from sera_plugin.data.ids import example_ids
from sera_plugin.data.tables import SIGNAL
from sera_plugin.review.calibration import Calibration, weights

WORD = {word: number for number, word in enumerate(words.CONTENT)}
OFFLINE = "offline"
"""How the sources of offline answers begin; others were sampled."""


def parse_prompts(texts: Sequence[str]) -> Prompts:
    """Prompts from their text."""
    parts = [text.split() for text in texts]
    return Prompts(
        np.array([int(p[2].removeprefix("topic")) for p in parts]),
        np.array([int(p[3].removeprefix("style")) for p in parts]),
        np.array([[WORD[p[4]], WORD[p[5]]] for p in parts]).reshape(-1, 2),
    )


def parse_answers(texts: Sequence[str]) -> np.ndarray:
    """Completions from their text, shape (n, MOST_WORDS); other tokens than words are left out."""
    answers = np.full((len(texts), MOST_WORDS), NONE)
    for row, text in enumerate(texts):
        found = [WORD[word] for word in text.split() if word in WORD][:MOST_WORDS]
        answers[row, : len(found)] = found
    return answers


def auc(score: np.ndarray, positive: np.ndarray) -> float | None:
    """Probability that a positive has the larger score, ties half; None without both kinds."""
    from scipy.stats import rankdata

    n, p = len(score), int(positive.sum())
    if p in (0, n):
        return None
    ranks = rankdata(score)
    return float((ranks[positive].sum() - p * (p + 1) / 2) / (p * (n - p)))


def rounds(output: Path, data: Path, world: World) -> list[dict[str, Any]]:
    """What every reviewed round of a run was made of.

    Args:
        output: the run's ``output_dir``.
        data: the JSONL file with its pairs.
        world: whose gold reward judges.
    """
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    ids = example_ids((row["prompt"], row["chosen"], row["rejected"]) for row in rows)
    flipped = dict(zip(ids, (row["flipped"] for row in rows), strict=True))
    asked = dict(zip(ids, parse_prompts([row["prompt"] for row in rows]).rows(), strict=True))
    found = []
    for folder in sorted((output / "sera").glob("round-*")):
        if (folder / "margins.parquet").exists():
            found.append(_round(folder, flipped, asked, world))
    return found


def refined(output: Path) -> dict[str, float]:
    """Statistics of Δ in a run's last round, with scores that the loss doesn't see."""
    last = sorted((output / "sera").glob("round-*"))[-1]
    summary = json.loads((last / "summary.json").read_text(encoding="utf-8"))
    names = ("delta_mean", "delta_std", "delta_margin_correlation", "delta_score_correlation")
    return {name: summary[name] for name in (*names, "margin_score_correlation") if name in summary}


def _calibrated(name: str, scores: np.ndarray, wrong: np.ndarray) -> dict[str, float | None]:
    """How well a signal finds flips, the share of wrong labels it estimates, and its weights."""
    found = {f"{name}_auc": auc(-scores, wrong)}
    calibration = Calibration.fit(scores)
    if calibration is not None:
        weight = weights(calibration.posterior(scores))
        found |= {
            f"{name}_error": calibration.error,
            f"{name}_weighted_right": float(np.average(~wrong, weights=weight)),
        }
    return found


def _round(
    folder: Path,
    flipped: dict[str, bool],
    asked: dict[str, tuple[int, int, int, int]],
    world: World,
) -> dict[str, Any]:
    table = pq.read_table(folder / "margins.parquet")
    wrong = np.array([flipped[i] for i in table.column("example_id").to_pylist()])
    kept = table.column("kept").to_numpy(zero_copy_only=False)
    margin = table.column("ensembled_margin").to_numpy()
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    result = {
        "round": int(folder.name.removeprefix("round-")),
        "kept_accuracy": float(1 - wrong[kept].mean()),
        "margin_auc": auc(-margin, wrong),
        "tokens": sum(
            summary.get(f"tokens_per_second_{phase}", 0) * summary.get(f"seconds_{phase}", 0)
            for phase in ("scoring", "generation")
        ),
        "summary": {
            name: value
            for name, value in summary.items()
            if not name.startswith(("margin_q", "tokens_per_second", "short_"))
        },
    }
    for name in table.column_names:
        if name.startswith(SIGNAL):
            scores = table.column(name).to_numpy()
            result |= _calibrated(name.removeprefix(SIGNAL), scores, wrong)
    lines = (folder / "bootstrapped.jsonl").read_text(encoding="utf-8").splitlines()
    if lines:
        result |= _fresh([json.loads(line) for line in lines], world)
    candidates = pq.read_table(folder / "candidates.parquet").to_pylist()
    if candidates:
        result |= _own(candidates, asked, world)
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in result.items()}


def _fresh(pairs: list[dict[str, Any]], world: World) -> dict[str, float]:
    prompts = parse_prompts([pair["prompt"] for pair in pairs])
    chosen, rejected = (
        parse_answers([pair[side] for pair in pairs]) for side in ("chosen", "rejected")
    )
    gap = world.gold(prompts, chosen) - world.gold(prompts, rejected)
    return {
        "fresh_accuracy": _accuracy(gap),
        "fresh_gap": float(gap.mean()),
        "fresh_chosen_length": float(lengths(chosen).mean()),
        "fresh_rejected_length": float(lengths(rejected).mean()),
        "fresh_rejected_offline": float(
            np.mean([pair["rejected_source"].startswith(OFFLINE) for pair in pairs])
        ),
    }


def _own(
    candidates: list[dict[str, Any]], asked: dict[str, tuple[int, int, int, int]], world: World
) -> dict[str, float | None]:
    """How well the ranking reward judges sampled answers: best against worst of each prompt."""
    own = [row for row in candidates if not row["source"].startswith(OFFLINE)]
    prompts = Prompts.of([asked[row["example_id"]] for row in own])
    tokens = np.full((len(own), MOST_WORDS + 1), words.IDS[words.PAD])
    for number, row in enumerate(own):
        ids = row["token_ids"][: MOST_WORDS + 1]
        tokens[number, : len(ids)] = ids
    answers = words.answers_of_ids(tokens)
    gold = world.gold(prompts, answers)
    reward = np.array([row["reward"] for row in own])
    by_prompt: dict[str, list[int]] = {}
    for number, row in enumerate(own):
        by_prompt.setdefault(row["example_id"], []).append(number)
    gaps, correlations = [], []
    for group in (np.array(g) for g in by_prompt.values() if len(g) > 1):
        gaps.append(gold[group[reward[group].argmax()]] - gold[group[reward[group].argmin()]])
        if len(group) > 2 and reward[group].std() > 0 and gold[group].std() > 0:
            correlations.append(float(np.corrcoef(reward[group], gold[group])[0, 1]))
    return {
        "own_accuracy": _accuracy(np.array(gaps)) if gaps else None,
        "own_correlation": float(np.mean(correlations)) if correlations else None,
        "own_length": float(lengths(answers).mean()),
    }


def _accuracy(gap: np.ndarray) -> float:
    return float(np.mean(gap > 0) + 0.5 * np.mean(gap == 0))
