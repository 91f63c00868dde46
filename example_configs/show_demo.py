"""Print what the runs of the demo did: which labels SeRA doubted, what it trained on, true answers.

Usage: ``python example_configs/show_demo.py [folder]``; the default folder is ``demo-output``. It
holds the run of ``demo.yml`` (``run``), and the same without SeRA (``plain``).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from make_demo import SEED, Question, questions
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from sera_plugin.data.columns import Margins, Rows
from sera_plugin.data.ids import content_id
from sera_plugin.data.reader import RunFiles, StoredRound


def swapped_labels(folder: Path) -> set[str]:
    """Example ids of the pairs with swapped labels; an id is a hash of the pair's texts."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    found = set()
    for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        prompt = tokenizer.apply_chat_template(
            row["messages"], tokenize=False, add_generation_prompt=True
        )
        answers = [row[side]["content"] + tokenizer.eos_token for side in ("chosen", "rejected")]
        if row["flipped"]:
            found.add(content_id(prompt, *answers))
    return found


@torch.no_grad()
def true_answers(model_folder: Path, seed: int = SEED, samples: int = 4) -> float:
    """Share of sampled answers that name the true fact, over all questions of the zoo."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    torch.manual_seed(0)
    asked = questions(seed)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question.text}], tokenize=False, add_generation_prompt=True
        )
        for question in asked
    ]
    inputs = tokenizer(prompts, padding=True, return_tensors="pt", add_special_tokens=False)
    sampled = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        do_sample=True,
        temperature=1.0,
        top_k=0,
        max_new_tokens=24,
        num_return_sequences=samples,
        pad_token_id=tokenizer.pad_token_id,
    )[:, inputs["input_ids"].shape[1] :]
    texts = tokenizer.batch_decode(sampled, skip_special_tokens=True)
    true = [asked[i // samples].is_true(text) for i, text in enumerate(texts)]
    return sum(true) / len(true)


def doubted(review: StoredRound, swapped: set[str]) -> str:
    """How many of the pairs that a review dropped have swapped labels."""
    pairs = review.table(Margins, Margins.EXAMPLE_ID, Margins.KEPT).to_pylist()
    dropped = [pair["example_id"] for pair in pairs if not pair["kept"]]
    return (
        f"Before round {review.number} selection dropped {len(dropped)} of {len(pairs)} pairs: "
        f"{len(swapped & set(dropped))} of the {len(swapped)} with swapped labels, and "
        f"{len(set(dropped) - swapped)} others."
    )


def new_pairs(review: StoredRound, asked: dict[str, Question]) -> list[bool | None]:
    """Whether each bootstrapped pair prefers a true to a false answer; None if both are alike."""
    found: list[bool | None] = []
    for pair in review.bootstrapped():
        text = pair["prompt"].split("user\n")[1].split("<|im_end|>")[0]
        chosen, rejected = (asked[text].is_true(pair[side]) for side in ("chosen", "rejected"))
        found.append(None if chosen == rejected else chosen)
    return found


def trained_on(run: RunFiles, swapped: set[str]) -> Table:
    """A row for every round: what was in it, and how many of its labels were wrong."""
    table = Table(title="What SeRA trained on", title_justify="left")
    for name in ("round", "kept", "new", "filled", "rows", "swapped labels", "new: right", "wrong"):
        table.add_column(name, justify="right")
    asked = {question.text: question for question in questions()}
    for entry in run.rounds:
        if not entry.reviewed:
            pairs = run.settings["pairs"]
            table.add_row(str(entry.number), str(pairs), "", "", str(pairs), str(len(swapped)))
            continue
        rows = entry.rows(Rows.EXAMPLE_ID, Rows.CHOSEN_IDS).to_pylist()
        filled = [row for row in rows if row["filled"]]
        new = new_pairs(entry, asked)
        wrong = [row for row in rows if row["chosen_ids"] is None and row["example_id"] in swapped]
        counts = (len(rows) - len(filled) - len(new), len(new), len(filled), len(rows), len(wrong))
        table.add_row(*map(str, (entry.number, *counts, new.count(True), new.count(False))))
    return table


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo-output")
    run, swapped = RunFiles.open(folder / "run"), swapped_labels(folder)
    console = Console(width=80, highlight=False)
    console.print()
    for review in run.reviewed:
        console.print(doubted(review, swapped))
    console.print(trained_on(run, swapped))
    shares = [true_answers(folder / name) for name in ("model", "plain", "run")]
    seconds = {
        name: sum(entry.summary.get(f"seconds_{name}", 0.0) for entry in run.rounds)
        for name in ("training", "scoring", "generation")
    }
    console.print(
        f"Plain DPO trained on all {run.settings['pairs']} pairs in every epoch, {len(swapped)} of "
        f"them with swapped labels. Both runs took {sum(run.settings['updates'])} updates; of "
        f"SeRA's {sum(seconds.values()):.1f} s, {seconds['scoring']:.1f} s went to scoring and "
        f"{seconds['generation']:.1f} s to sampling.\n"
        f"True answers, sampled at temperature 1: {shares[0]:.0%} before, {shares[1]:.0%} after "
        f"plain DPO, {shares[2]:.0%} after SeRA. example_configs/demo.yml says how both were tuned."
    )


if __name__ == "__main__":
    main()
