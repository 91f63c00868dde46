"""``python -m benchmarks.evidence.gates``: what `preset: contrast` would do, without training.

Forward passes of the SFT model alone: the contrast of `good` with `any` on a regime's pairs, its
calibration, and the package's own gate, without trusted pairs and with 100 of them. Stored like the
runs, in ``results/gates.jsonl``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.evidence import study
from benchmarks.evidence import vocabulary as words
from benchmarks.evidence.artifacts import auc, parse_answers, parse_prompts
from benchmarks.evidence.data import make_data, make_sft
from benchmarks.evidence.pairs import picked
from benchmarks.evidence.regimes import REGIMES
from benchmarks.evidence.runs import Results, Run, Settings, digest, fingerprint
from benchmarks.evidence.world import Prompts
from sera_plugin.config.selection import SelectionConfig
from sera_plugin.review.belief import believe

KIND = "gates"
CHECKED = (0, 100)
"""Pairs whose labels are checked and put right, so that the gate can trust them."""
REGIMES_SEEN = ("on-0.4", "on-0.2", "on-0.0", "patterned-0.4", "unasked-0.4", "unasked-0.2")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence.gates")
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, default=REGIMES_SEEN)
    study.add_options(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results, settings = Results(args.results), Settings()
    for seed in args.seeds:
        for regime in args.regimes:
            if any(key(regime, seed, settings, n) not in results.found for n in CHECKED):
                for found in verdicts(regime, seed, settings, args.work):
                    if found["key"] not in results.found:
                        results.add(found)
                        print(found, flush=True)


def key(regime: str, seed: int, settings: Settings, checked: int = 0) -> str:
    """Key of what the gate said."""
    what = [KIND, fingerprint(), settings.identity(), REGIMES[regime].identity, seed]
    what += [checked] if checked else []
    return digest(json.dumps(what))


def verdicts(regime: str, seed: int, settings: Settings, work: Path) -> Iterator[dict[str, Any]]:
    """What the gate says of a regime's pairs for each of ``CHECKED``, and how well flips are found.

    Args:
        regime: name of the regime.
        seed: of world, SFT model and pairs.
        settings: sizes.
        work: folder for models and data.
    """
    run = Run(regime, "dpo", seed, "report", 0.0, 0.0)
    model = make_sft(seed, settings, work, run.data.asked)
    path = make_data(run, settings, work)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    scores = contrasts(AutoModelForCausalLM.from_pretrained(model).eval(), rows)
    wrong = np.array([row["flipped"] for row in rows])
    for checked in CHECKED:
        marked = picked(len(rows), checked, seed)
        right = np.where(marked & wrong, -scores, scores)
        yield {
            "key": key(regime, seed, settings, checked),
            "of": regime,
            "seed": seed,
            "checked": checked,
            **said(right, wrong & ~marked, marked if checked else None),
        }


def said(scores: np.ndarray, wrong: np.ndarray, trusted: np.ndarray | None) -> dict[str, Any]:
    """What the gate says of scores; weights are 1 where it is closed."""
    settings = SelectionConfig(by=["external"], use="weight")
    belief = believe(settings, scores * 0, {"external": scores}, trusted=trusted)
    found, weight = belief.verdict, belief.weight
    return {
        "regime": KIND,
        "arm": KIND,
        "split": "report",
        "open": found.open,
        "why": found.why,
        "auc": auc(-scores, wrong),
        "error": found.error.value if found.error else None,
        "error_low": found.error.low if found.error else None,
        "error_high": found.error.high if found.error else None,
        "wrong": float(wrong.mean()),
        "weighted_right": float(np.average(~wrong, weights=weight)),
    }


def contrasts(model: PreTrainedModel, rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """log p(y⁺|good⊕x) − log p(y⁺|any⊕x) minus the same of y⁻, sums over tokens, shape (n,)."""
    prompts = parse_prompts([row["prompt"] for row in rows])
    sides = [parse_answers([row[side] for row in rows]) for side in ("chosen", "rejected")]
    chosen, rejected = (
        log_probs(model, prompts, answers, good=True)
        - log_probs(model, prompts, answers, good=False)
        for answers in sides
    )
    return np.asarray(chosen - rejected)


@torch.no_grad()
def log_probs(
    model: PreTrainedModel, prompts: Prompts, answers: np.ndarray, *, good: bool
) -> np.ndarray:
    """log p of answers with their ending, nats, float64, shape (n,).

    Args:
        model: the SFT model.
        prompts: n prompts.
        answers: shape (n, MOST_WORDS).
        good: whether the quality word is GOOD in the place of ANY.
    """
    asked = words.prompt_ids(prompts, np.full(len(prompts), good))
    answered = words.answer_ids(answers)
    parts = []
    for start in range(0, len(asked), 512):
        rows = slice(start, start + 512)
        ids = torch.from_numpy(np.concatenate([asked[rows], answered[rows]], axis=1))
        logits = model(input_ids=ids).logits[:, words.PROMPT_TOKENS - 1 : -1].double()
        target = ids[:, words.PROMPT_TOKENS :]
        taken = logits.log_softmax(dim=-1).gather(2, target[:, :, None])[:, :, 0]
        parts.append((taken * (target != words.IDS[words.PAD])).sum(dim=1).numpy())
    return np.concatenate(parts)


if __name__ == "__main__":
    main()
