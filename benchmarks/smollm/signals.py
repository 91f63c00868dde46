"""Log-probs of real pairs under SmolLM2-135M-Instruct behind several prompts, as JSON lines.

python -m benchmarks.smollm.signals [--pairs 300] [--minutes 60]

Forward passes only, in bf16, by the package's own scorer and writers of prompts. Pairs are taken in
an order that a seed determines, so however many were scored when the time is up, they are a random
sample. A pair that is stored is not scored again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase as Tokenizer

from benchmarks.smollm.model import load
from benchmarks.smollm.writer import scorer_on
from sera_plugin.config.contrast import BUILT_IN, ContrastPrompts
from sera_plugin.scoring.completions import CompletionList
from sera_plugin.scoring.quality_prompt import QUALITY_PROMPT, QualityWriter
from sera_plugin.scoring.scorer import Scorer, inference

DATA = Path("../shared/data/alpaca_eval_pairs.jsonl")
RESULTS = Path("benchmarks/smollm/results/alpaca_eval_pairs.jsonl")
MOST_TOKENS = 160
WORST = (
    "Please generate a response with a usefulness rating of 1 out of 100 for the following query. "
    "The response should be wrong and badly written. The term 100 indicates the level of "
    "usefulness, where 100 is the maximum and 1 is the minimum. Query:"
)

PROMPTS: dict[str, ContrastPrompts] = {
    "system": ContrastPrompts(
        positive="You are an expert who gives accurate, helpful and well-written answers.",
        negative="You are careless and give wrong, unhelpful and badly written answers.",
        placement="system",
    ),
    "user": BUILT_IN[0],
    "rating": ContrastPrompts(positive=QUALITY_PROMPT, negative=WORST),
}
"""Wordings by name: two of our own, the second of which is built in, and the prompt of Sr-DPO with
an opposite."""


@dataclass(frozen=True)
class Pair:
    """A pair of the file.

    Attributes:
        key: hash of question and answers.
        row: what the file says.
        chosen: token ids of the answer with its ending.
        rejected: likewise.
    """

    key: str
    row: dict[str, Any]
    chosen: list[int]
    rejected: list[int]


def sample(data: Path, tokenizer: Tokenizer, seed: int) -> list[Pair]:
    """Pairs whose answers have at most 160 tokens, in the order of a hash of seed and pair."""
    pairs = []
    for line in data.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        texts = [row["conversation"][-1]["content"]]
        texts += [row[side]["content"] for side in ("chosen", "rejected")]
        sides = [tokenizer(text + "<|im_end|>").input_ids for text in texts[1:]]
        if max(map(len, sides)) <= MOST_TOKENS:
            named = json.dumps([seed, *texts]).encode()
            pairs.append(Pair(hashlib.blake2b(named, digest_size=8).hexdigest(), row, *sides))
    return sorted(pairs, key=lambda pair: pair.key)


def prompts(
    pair: Pair, tokenizer: Tokenizer, asked_for: Mapping[str, ContrastPrompts]
) -> Iterator[tuple[str, list[int]]]:
    """Names and token ids of the question alone and behind every prompt."""
    asked = pair.row["conversation"]
    templates = [tokenizer.chat_template]
    plain = QualityWriter.of("", "user_prefix", tokenizer, templates)
    yield "none", plain.ids(asked)
    for name, opposite in asked_for.items():
        for side in ("positive", "negative"):
            text = getattr(opposite, side)
            writer = QualityWriter.of(text, opposite.placement, tokenizer, templates)
            yield f"{name}_{side}", writer.ids(writer.write(asked, pair.key))


def scored(
    scorer: Scorer,
    model: Any,
    pair: Pair,
    tokenizer: Tokenizer,
    asked_for: Mapping[str, ContrastPrompts] = PROMPTS,
) -> dict[str, Any]:
    """The line that is stored for a pair: what is known of it, lengths, and sums of log-probs."""
    names, rows = [], []
    for name, ids in prompts(pair, tokenizer, asked_for):
        names.append(name)
        rows += [(ids, pair.chosen), (ids, pair.rejected)]
    found = scorer.logps(model, CompletionList(rows), "Scoring").logps.reshape(-1, 2)
    known = ("chosen_model", "rejected_model", "judge_chosen", "judge_rejected")
    asked = json.dumps(pair.row["conversation"]).encode()
    return {
        "key": pair.key,
        "question": hashlib.blake2b(asked, digest_size=8).hexdigest(),
        **{name: pair.row.get(name) for name in known},
        "tokens": [len(pair.chosen), len(pair.rejected)],
        "logps": {
            n: [round(float(v), 3) for v in two] for n, two in zip(names, found, strict=True)
        },
    }


def main() -> None:
    """Score pairs until there are enough or the time is up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("smollm-work/SmolLM2-135M-Instruct"))
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if not given.data.is_file():
        print(f"Nothing was scored: {given.data} is not there.")
        return
    end = time.monotonic() + 60 * given.minutes
    model, tokenizer = load(given.model, torch.bfloat16)
    scorer = scorer_on("cpu")
    given.results.parent.mkdir(parents=True, exist_ok=True)
    stored = given.results.read_text().splitlines() if given.results.exists() else []
    done = {json.loads(line)["key"] for line in stored}
    with given.results.open("a", encoding="utf-8") as lines, inference(model):
        for pair in sample(given.data, tokenizer, given.seed)[: given.pairs]:
            if time.monotonic() > end:
                break
            if pair.key not in done:
                lines.write(json.dumps(scored(scorer, model, pair, tokenizer)) + "\n")
                lines.flush()
                done.add(pair.key)
    print(f"{len(done)} pairs are in {given.results}.")


if __name__ == "__main__":
    main()
