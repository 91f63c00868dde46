"""Choose the pairs of ``make demo-smollm``: short answers, training and held-out questions apart.

Usage: ``python example_configs/smollm_pairs.py [data] [folder]``; the defaults are
``../shared/data/alpaca_eval_pairs.jsonl`` and ``smollm-work/demo``. The data is not part of the
repository.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

DATA, FOLDER = "../shared/data/alpaca_eval_pairs.jsonl", "smollm-work/demo"
MODEL = "smollm-work/SmolLM2-135M-Instruct"
TRAIN, EVAL = 72, 32
MOST_TOKENS = 96
"""Of a prompt with its template, and of an answer with its ending."""
HELD_OUT = 4
"""Every fourth question, by a hash, is held out."""


def question_of(row: dict[str, Any]) -> str:
    """A hash of the conversation, hex digits."""
    return hashlib.blake2b(json.dumps(row["conversation"]).encode(), digest_size=8).hexdigest()


def place_of(row: dict[str, Any]) -> str:
    """What pairs are sorted by, hex digits: the same draw every time."""
    return hashlib.blake2b(json.dumps(row, sort_keys=True).encode(), digest_size=8).hexdigest()


def is_short(row: dict[str, Any], tokenizer: Any) -> bool:
    """Whether prompt and both answers are within ``MOST_TOKENS``."""
    prompt = tokenizer.apply_chat_template(
        row["conversation"], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    answers = [tokenizer(row[side]["content"]).input_ids for side in ("chosen", "rejected")]
    return max(len(prompt), *(len(answer) + 1 for answer in answers)) <= MOST_TOKENS


def chosen_pairs(rows: list[dict[str, Any]], tokenizer: Any) -> dict[str, list[dict[str, Any]]]:
    """The rows of both files by name; no question is in both."""
    short = sorted((row for row in rows if is_short(row, tokenizer)), key=place_of)
    held_out = [int(question_of(row), 16) % HELD_OUT == 0 for row in short]
    train = [row for row, out in zip(short, held_out, strict=True) if not out][:TRAIN]
    return {
        "train": train,
        "eval": [row for row, out in zip(short, held_out, strict=True) if out][:EVAL],
    }


def main() -> None:
    """Write both files, or say what is missing."""
    given = sys.argv[1:]
    data, folder = map(Path, (*given, *(DATA, FOLDER)[len(given) :]))
    if not data.is_file():
        raise SystemExit(
            f"{data} is not there. The demo trains on real preference pairs, which are not part of "
            "this repository: JSON lines with conversation (a list of messages), chosen and "
            "rejected (a message each). Name a file: make demo-smollm PAIRS=FILE"
        )
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    found = chosen_pairs(rows, AutoTokenizer.from_pretrained(MODEL))
    if min(map(len, found.values())) < EVAL:
        raise SystemExit(
            f"{data} has {len(found['train'])} pairs to train on and {len(found['eval'])} to hold "
            f"out that are within {MOST_TOKENS} tokens; the demo needs {EVAL} of each or more."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, pairs in found.items():
        text = "".join(json.dumps(pair) + "\n" for pair in pairs)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    counts = {name: len(pairs) for name, pairs in found.items()}
    print(f"{folder}: {counts['train']} pairs to train on, {counts['eval']} to evaluate on")


if __name__ == "__main__":
    main()
