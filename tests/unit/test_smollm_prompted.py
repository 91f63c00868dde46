"""Answers of the starting model to prompts with an instruction ahead of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import assets
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.smollm import grid, prompted
from benchmarks.smollm.sentiment import Asked, Pair
from benchmarks.smollm.signals import prompts
from benchmarks.smollm.task_signals import as_pair
from benchmarks.smollm.task_train import Task
from benchmarks.smollm.wordings import WORDINGS
from benchmarks.smollm.writer import Writer, prompt_ids
from sera_plugin.scoring.frames import SEPARATOR

ASKED = [Asked("a", "What is said of the ferry?", True), Asked("b", "And of the exam?", True)]
TOLD = "Answer in a cheerful tone:"


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    texts = [
        *(one.text for one in ASKED),
        TOLD,
        *(row["chosen"]["content"] for row in assets.pairs(8)),
    ]
    folder = assets.save_model(tmp_path_factory.mktemp("model") / "m", "qwen", texts)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def logp(model: Any, prompt: tuple[int, ...], answer: list[int]) -> float:
    ids = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        found = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return float(found.gather(1, torch.tensor(answer)[:, None]).sum())


class Spelled(Writer):
    """Answers are told by their token ids."""

    def _text(self, tokens: Sequence[int]) -> str:
        return " ".join(map(str, tokens))


def test_the_distance_is_that_from_the_answers_to_the_prompt_alone(start: tuple[Any, Any]) -> None:
    model, tokenizer = start
    lines = Spelled(model, tokenizer, 0, TOLD).write(ASKED, 2, 2)
    bare = Spelled(model, tokenizer, 0).write(ASKED, 2, 2)
    assert [line["prompt"] for line in lines] == [one.text for one in ASKED]
    assert all("ratio" not in line for line in bare)
    assert [line["answers"] for line in lines] != [line["answers"] for line in bare]
    for line in lines:
        alone, told = (
            prompt_ids(text, tokenizer) for text in (line["prompt"], f"{TOLD}\n\n{line['prompt']}")
        )
        for number, text in enumerate(line["answers"]):
            answer = [int(one) for one in text.split()]
            found = logp(model, alone, answer)
            assert line["fluency"][number] * len(answer) == pytest.approx(found, abs=0.1)
            apart = logp(model, told, answer) - found
            assert line["ratio"][number] == pytest.approx(apart, abs=2e-3)


@pytest.mark.parametrize("wording", WORDINGS)
def test_the_instruction_is_put_as_the_contrast_puts_it(
    start: tuple[Any, Any], wording: str
) -> None:
    _, tokenizer = start
    pair = as_pair(Pair("k", ASKED[0].text, "good", "bad", 1.0, (1, 1)), tokenizer)
    asked = dict(prompts(pair, tokenizer, {"asked": WORDINGS[wording]}))
    said = WORDINGS[wording].positive + SEPARATOR + ASKED[0].text
    assert list(prompt_ids(said, tokenizer)) == list(asked["asked_positive"])


def judged(after: float, **more: Any) -> dict[str, Any]:
    return {
        "wording": "tone",
        "ahead": TOLD,
        "before": [0.0, 0.5] * 8,
        "after": [after, after + 0.5] * 8,
        "kl": [3.0, 5.0] * 8,
        "parts": dict.fromkeys(prompted.PARTS, 0.25),
        **more,
    }


def test_a_row_for_each_policy_is_the_mean_of_its_seeds() -> None:
    run = {"labels": "turned-0.4", "pairs": 1000, "epochs": 1, "arm": "dpo", "rate": 1e-4}
    lines = [judged(0.5), judged(0.25, **run, seed=1), judged(0.75, **run, seed=2)]
    assert len(set(map(prompted.of, lines))) == len(lines)
    *_, start, dpo = prompted.text(lines).splitlines()
    assert start.startswith(f"| the starting model | {TOLD} | – | +0.500 [+0.500, +0.500] | 4.0 |")
    assert dpo.startswith(f"| `dpo`, turned-0.4, 1000 × 1 | {TOLD} | 2 | +0.500 ")
    assert prompted.text([]) == "No answers are judged yet."


def test_runs_are_compared_with_the_starting_model_by_prompt() -> None:
    known = {"labels": "turned-0.4", "pairs": 1000, "epochs": 1, "arm": "dpo", "rate": 1e-4}
    runs = [{**known, "seed": seed, "after": [0.75, 1.25] * 8} for seed in (1, 2)]
    runs.append({**known, "arm": "contrast", "seed": 1, "after": [1.5, 2.0] * 8})
    lines = [judged(0.5), judged(0.625, **known, seed=1), judged(9.0, **known, seed=2)]
    *_, dpo, contrast = prompted.text(lines, runs).splitlines()
    whole, level = "1000 × 1 | +0.250 [+0.250, +0.250] | 2", "+0.875 [+0.875, +0.875] | 1"
    assert dpo.startswith(f"| `dpo`, turned-0.4, {whole} | -")
    assert contrast == (
        f"| `contrast`, turned-0.4, 1000 × 1 | +1.000 [+1.000, +1.000] | 1 | {level} |"
    )
    assert prompted.text(lines[1:], runs).count("|\n\n|") == 0


def test_without_the_run_one_sentence(tmp_path: Path) -> None:
    task = Task(tmp_path, tmp_path, tmp_path, 8, 8, 1, 0, 0.0)
    wanted = grid.wanted_of(task, "turned-0.4", "dpo", 1)
    data = grid.Data([], [], 0.0, len)
    with pytest.raises(
        SystemExit, match=r"There is no trained policy in .*seed-1; `grid` makes it"
    ):
        prompted.judged(task, "tone", wanted, data)
