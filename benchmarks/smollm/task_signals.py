"""Log-probs of held-out pairs of the task behind several prompts, and the table of what they show.

python -m benchmarks.smollm.task_signals [--pairs 256] [--minutes 60]

As ``signals`` does for real pairs: forward passes only, going on where it stopped. The task's
reward stands in the judge's place; a further wording asks for what it rewards, and the opposite.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase as Tokenizer

from benchmarks.smollm import sentiment
from benchmarks.smollm.analysis import table
from benchmarks.smollm.model import load
from benchmarks.smollm.page import fill
from benchmarks.smollm.signals import PROMPTS, Pair, scored
from benchmarks.smollm.task import RESULTS, SAMPLES, stored
from benchmarks.smollm.wordings import WORDINGS
from benchmarks.smollm.writer import scorer_on
from sera_plugin.scoring.scorer import inference

STORED = "sentiment-signals.jsonl"


def as_pair(pair: sentiment.Pair, tokenizer: Tokenizer) -> Pair:
    """A pair of the task as ``signals`` scores it, with its gap of reward as the judge's."""
    row = {
        "conversation": [{"role": "user", "content": pair.prompt}],
        "judge_chosen": round(pair.gap, 4),
        "judge_rejected": 0.0,
    }
    sides = [tokenizer(text + "<|im_end|>").input_ids for text in (pair.chosen, pair.rejected)]
    return Pair(pair.key, row, *sides)


def add_options(parser: argparse.ArgumentParser, pairs: int) -> None:
    """The options of the scripts that score pairs of the task, with how many by default."""
    add = parser.add_argument
    add("--model", type=Path, default=Path("smollm-work/SmolLM2-135M-Instruct"))
    add("--packages", type=Path, default=Path("smollm-work/packages"))
    add("--results", type=Path, default=RESULTS)
    add("--pairs", type=int, default=pairs)
    add("--minutes", type=float, default=60)
    add("--page", type=Path, default=Path("docs/language-model.md"))


def samples(results: Path) -> list[dict[str, Any]]:
    """The stored answers.

    Raises:
        SystemExit: if there are none.
    """
    found = stored(results / SAMPLES)
    if not found:
        raise SystemExit("No answers are stored; `make smollm-task` samples them.")
    return found


def main() -> None:
    """Score pairs until there are enough or the time is up; write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, pairs=256)
    given = parser.parse_args()
    end = time.monotonic() + 60 * given.minutes
    _, _, held = sentiment.pairs_of(samples(given.results), sentiment.vader(given.packages))
    path = given.results / STORED
    done = {line["key"] for line in stored(path)}
    model, tokenizer = load(given.model, torch.bfloat16)
    scorer = scorer_on("cpu")
    asked_for = {**PROMPTS, "tone": WORDINGS["tone"]}
    with path.open("a", encoding="utf-8") as lines, inference(model):
        for pair in held[: given.pairs]:
            if time.monotonic() > end:
                break
            if pair.key not in done:
                line = scored(scorer, model, as_pair(pair, tokenizer), tokenizer, asked_for)
                lines.write(json.dumps(line) + "\n")
                lines.flush()
    if given.page.is_file():
        fill(given.page, "task-signals", table(stored(path)))


if __name__ == "__main__":
    main()
