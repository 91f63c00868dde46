"""Print what both runs of ``make demo-smollm`` did: evaluations, times, and answers side by side.

Usage: ``python example_configs/show_smollm.py [folder]``; the default is ``smollm-work/demo``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from sera_plugin.data.reader import RunFiles

MODEL = "smollm-work/SmolLM2-135M-Instruct"
QUESTIONS, MOST_TOKENS = 3, 48
SHOWN = ("eval_loss", "eval_rewards/accuracies", "eval_rewards/margins")


def log_of(folder: Path) -> list[dict[str, Any]]:
    """The trainer's log history, from a run's last checkpoint."""
    states = folder.glob("checkpoint-*/trainer_state.json")
    last = max(states, key=lambda path: int(path.parent.name.rpartition("-")[2]))
    history: list[dict[str, Any]] = json.loads(last.read_text())["log_history"]
    return history


def evaluations(folder: Path) -> Table:
    """A row for every evaluation of both runs."""
    table = Table(title="On held-out pairs", title_justify="left")
    for name in ("run", "epoch", *SHOWN):
        table.add_column(name, justify="right")
    for run in ("dpo", "sera"):
        for entry in log_of(folder / run):
            if "eval_loss" in entry:
                numbers = (f"{entry[name]:.3f}" if name in entry else "-" for name in SHOWN)
                table.add_row(run, f"{entry['epoch']:.0f}", *numbers)
    return table


@torch.inference_mode()
def greedy(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Question, writer and greedy answer, for the first held-out questions."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    lines = (folder / "eval.jsonl").read_text(encoding="utf-8").splitlines()
    asked = list(dict.fromkeys(json.dumps(json.loads(line)["conversation"]) for line in lines))
    for conversation in map(json.loads, asked[:QUESTIONS]):
        inputs = tokenizer.apply_chat_template(
            conversation, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        for writer in ("start", "dpo", "sera"):
            model = AutoModelForCausalLM.from_pretrained(MODEL)
            if writer != "start":
                model = PeftModel.from_pretrained(model, folder / writer)
            written = model.eval().generate(**inputs, do_sample=False, max_new_tokens=MOST_TOKENS)
            answer = written[0, inputs["input_ids"].shape[1] :]
            text = tokenizer.decode(answer, skip_special_tokens=True)
            yield conversation[-1]["content"], writer, text


def answers(folder: Path) -> Table:
    """What the starting model and both policies answer."""
    table = Table(title="Greedy answers", title_justify="left", show_lines=True)
    for name in ("question", "by", "answer"):
        table.add_column(name)
    before = ""
    for question, writer, text in greedy(folder):
        table.add_row("" if question == before else question, writer, text)
        before = question
    return table


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "smollm-work/demo")
    console, run = Console(width=100, highlight=False, markup=False), RunFiles.open(folder / "sera")
    console.print(evaluations(folder))
    spent = {
        name: sum(float(entry.summary.get(f"seconds_{name}", 0.0)) for entry in run.rounds)
        for name in ("training", "scoring", "generation")
    }
    console.print(
        f"SeRA: {spent['training']:.0f} s of training, {spent['scoring']:.0f} s of scoring, "
        f"{spent['generation']:.0f} s of sampling."
    )
    for review in run.reviewed:
        numbers = review.summary
        console.print(
            f"Before round {review.number}: {numbers['kept']:.0f} pairs kept, "
            f"{numbers['bootstrapped']:.0f} bootstrapped. {numbers.get('guard', '')}"
        )
    console.print(answers(folder))
    console.print(
        "So few pairs and updates say nothing about which is better; docs/language-model.md has "
        "what was measured."
    )


if __name__ == "__main__":
    main()
