"""Print what a run of ``demo.yml`` did: the table of rounds, swapped labels, answers, artifacts.

Usage: ``python example_configs/show_demo.py [folder]``; the default folder is ``demo-output``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import torch
from make_demo import questions
from transformers import AutoModelForCausalLM, AutoTokenizer

from sera_plugin.data.ids import content_id
from sera_plugin.review.metrics import table_text


def flipped_by_id(folder: Path) -> dict[str, bool]:
    """Which pairs have swapped labels, by the example ids that the artifacts use.

    The id is a hash of the pair's text under the chat template.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    found = {}
    for line in (folder / "train.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        prompt = tokenizer.apply_chat_template(
            row["messages"], tokenize=False, add_generation_prompt=True
        )
        answers = [row[side]["content"] + tokenizer.eos_token for side in ("chosen", "rejected")]
        found[content_id(prompt, *answers)] = row["flipped"]
    return found


@torch.no_grad()
def true_answers(model_folder: Path, samples: int = 4) -> float:
    """Share of sampled answers that name the true fact, over all questions of the zoo."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    torch.manual_seed(0)
    asked = questions()
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


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo-output")
    artifacts = folder / "run" / "sera"
    rounds = sorted(artifacts.glob("round-*"))
    summaries = [json.loads((path / "summary.json").read_text()) for path in rounds]
    pairs = json.loads((artifacts / "run.json").read_text())["pairs"]
    print("\n" + table_text([{"kept": pairs, **summary} for summary in summaries]))

    flipped = flipped_by_id(folder)
    for path in rounds:
        if not (path / "margins.parquet").exists():
            continue
        table = pq.read_table(path / "margins.parquet", columns=["example_id", "kept"])
        dropped = {True: 0, False: 0}
        total = {True: 0, False: 0}
        for row in table.to_pylist():
            swapped = flipped[row["example_id"]]
            total[swapped] += 1
            dropped[swapped] += not row["kept"]
        print(
            f"{path.name}: selection dropped {dropped[True]} of {total[True]} pairs with swapped "
            f"labels and {dropped[False]} of {total[False]} others."
        )
    before, after = true_answers(folder / "model"), true_answers(folder / "run")
    print(
        f"True answers, sampled at temperature 1: {before:.0%} before the run, {after:.0%} after."
    )
    print(f"\nArtifacts in {artifacts}:")
    for path in sorted(p for p in artifacts.rglob("*") if p.is_file()):
        print(f"  {path.relative_to(artifacts)} ({path.stat().st_size:,} bytes)")


if __name__ == "__main__":
    main()
