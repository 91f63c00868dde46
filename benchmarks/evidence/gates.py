"""``python -m benchmarks.evidence.gates``: what `preset: contrast` would do, without training.

Forward passes of the SFT model alone: the contrast of `good` with `any` on a regime's pairs, its
calibration, and the package's own gate. Stored like the runs, in ``results/gates.jsonl``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.evidence import study
from benchmarks.evidence import vocabulary as words
from benchmarks.evidence.arm import FRESH_SEEDS
from benchmarks.evidence.artifacts import auc, parse_answers, parse_prompts
from benchmarks.evidence.data import make_data, make_sft
from benchmarks.evidence.regimes import REGIMES
from benchmarks.evidence.runs import Results, Run, Settings, fingerprint
from benchmarks.evidence.world import Prompts
from sera_plugin.review.calibration import Calibration, weights
from sera_plugin.review.gate import gate

KIND = "gates"
REGIMES_SEEN = ("on-0.4", "on-0.2", "on-0.0", "patterned-0.4", "unasked-0.4", "unasked-0.2")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence.gates")
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, default=REGIMES_SEEN)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(FRESH_SEEDS))
    parser.add_argument("--work", type=Path, default=study.WORK)
    parser.add_argument("--results", type=Path, default=study.RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results, settings = Results(args.results), Settings()
    for seed in args.seeds:
        for regime in args.regimes:
            if key(regime, seed, settings) not in results.found:
                found = verdict(regime, seed, settings, args.work)
                results.add(found)
                print(found, flush=True)


def key(regime: str, seed: int, settings: Settings) -> str:
    """Key of what the gate said."""
    what = [KIND, fingerprint(), settings.identity(), REGIMES[regime].identity, seed]
    return hashlib.blake2b(json.dumps(what).encode(), digest_size=8).hexdigest()


def verdict(regime: str, seed: int, settings: Settings, work: Path) -> dict[str, Any]:
    """What the gate says of a regime's pairs, and how well the contrast finds flips.

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
    calibration = Calibration.fit(scores)
    found = gate(scores, calibration)
    weight = np.ones(len(scores))
    if calibration is not None and found.open:
        weight = weights(calibration.posterior(scores))
    return {
        "key": key(regime, seed, settings),
        "regime": KIND,
        "arm": KIND,
        "of": regime,
        "seed": seed,
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
