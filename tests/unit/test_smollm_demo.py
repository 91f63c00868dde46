"""The pairs of the demo on SmolLM2."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from examples import EXAMPLES
from transformers import AutoTokenizer


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("smollm_pairs")


def rows(questions: int, each: int) -> list[dict[str, Any]]:
    """Pairs of questions with several answers; the last answer of each is long."""
    return [
        {
            "conversation": [{"role": "user", "content": f"ask {question}"}],
            "chosen": {"role": "assistant", "content": f"good {number}"},
            "rejected": {"role": "assistant", "content": "bad " * (200 if last else 1)},
        }
        for question in range(questions)
        for number in range(each)
        for last in (number == each - 1,)
    ]


def test_pairs_are_short_and_questions_are_apart(demo: ModuleType, llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama)
    given = rows(60, 4)
    found = demo.chosen_pairs(given, tokenizer)
    assert {name: len(some) for name, some in found.items()} == {"train": 72, "eval": 32}
    asked = {name: {demo.question_of(row) for row in some} for name, some in found.items()}
    assert not asked["train"] & asked["eval"]
    assert all(demo.is_short(row, tokenizer) for some in found.values() for row in some)
    assert not demo.is_short(given[3], tokenizer)
    # The order in which the file has them does not matter.
    assert demo.chosen_pairs(given[::-1], tokenizer) == found


def test_missing_or_few_pairs_end_it_with_a_sentence(
    demo: ModuleType, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "MODEL", str(llama))
    monkeypatch.setattr(sys, "argv", ["smollm_pairs.py", str(tmp_path / "none.jsonl")])
    with pytest.raises(SystemExit, match=r"none\.jsonl is not there.*PAIRS=FILE"):
        demo.main()
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps(row) + "\n" for row in rows(3, 2)))
    monkeypatch.setattr(sys, "argv", ["smollm_pairs.py", str(few), str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="the demo needs 32 of each"):
        demo.main()
    assert not (tmp_path / "out").exists()
