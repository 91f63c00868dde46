"""A random model whose answers end, a tokenizer, and preference pairs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.presets import Preset
from tests.support.assets import WORDS, tokenizer, write_jsonl

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "alpaca_eval_pairs.jsonl"
SEED = 3
TEMPERATURE = 0.7
"""Of the compared runs; the model's chance of ending an answer is set for it."""
END_OF_TURN = "<|eot_id|>"


def make(folder: Path, preset: Preset) -> dict[str, Any]:
    """Write ``model``, ``train.jsonl`` and ``scored.jsonl``; say what they are.

    Returns:
        ``data`` in words, ``parameters`` of the model, ``training_tokens`` of one epoch.
    """
    real = preset.lengths is None and DATA.is_file()
    rows = _real() if real else _made_up(preset)
    words = tokenizer(_texts(rows), "llama", preset.vocab if real else 600)
    lengths = np.array([row_tokens(words, row) for row in rows])
    fitting = np.flatnonzero(lengths.max(axis=1) <= preset.sequence_len)
    order = np.random.default_rng(SEED).permutation(fitting)
    train = [rows[i] for i in order[: preset.pairs]]
    write_jsonl(folder / "train.jsonl", train)
    scored = sorted(order[: preset.scored_pairs].tolist())
    write_jsonl(folder / "scored.jsonl", [rows[i] for i in scored])
    model = _model(preset, words)
    model.save_pretrained(folder / "model")
    words.save_pretrained(folder / "model")
    name = "alpaca_eval_pairs.jsonl" if real else "made-up pairs"
    return {
        "data": f"{len(rows)} {name}, {len(rows) - len(fitting)} longer than sequence_len left out",
        "training_pairs": len(train),
        "scored_pairs": len(scored),
        "training_tokens": int(lengths[order[: preset.pairs]].sum()),
        "median_tokens": float(np.median(lengths)),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def _real() -> list[dict[str, Any]]:
    with open(DATA, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [
        {"messages": row["conversation"], "chosen": row["chosen"], "rejected": row["rejected"]}
        for row in rows
    ]


def _made_up(preset: Preset) -> list[dict[str, Any]]:
    """Pairs of words that are one token each, a third of a row being its prompt."""
    low, high = preset.lengths or (40, 400)
    draw = np.random.default_rng(SEED)

    def words(count: int) -> str:
        return " ".join(draw.choice(WORDS, size=max(2, count)))

    rows = []
    for number in range(max(preset.pairs, min(preset.scored_pairs, 1_000))):
        longer, shorter = sorted(draw.integers(low - 18, high - 18, size=2), reverse=True)
        asked = shorter // 3
        answers = [words(longer - asked), words(shorter - asked)]
        if draw.random() < 0.4:
            answers.reverse()
        rows.append(
            {
                "messages": [{"role": "user", "content": f"{number} {words(asked)}"}],
                "chosen": {"role": "assistant", "content": answers[0]},
                "rejected": {"role": "assistant", "content": answers[1]},
            }
        )
    return rows


def _texts(rows: list[dict[str, Any]]) -> list[str]:
    return [
        message["content"]
        for row in rows
        for message in (*row["messages"], row["chosen"], row["rejected"])
    ]


def row_tokens(words: PreTrainedTokenizerFast, row: dict[str, Any]) -> tuple[int, int]:
    """Tokens of prompt and chosen answer, and of prompt and rejected answer."""
    prompt = words.apply_chat_template(row["messages"], add_generation_prompt=True, tokenize=False)
    asked = len(words(prompt, add_special_tokens=False)["input_ids"])
    ends = 2  # the end of the turn and of the text
    chosen, rejected = (
        len(words(row[side]["content"], add_special_tokens=False)["input_ids"]) + ends
        for side in ("chosen", "rejected")
    )
    return asked + chosen, asked + rejected


def _model(preset: Preset, words: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=max(len(words), preset.vocab),
        hidden_size=preset.hidden,
        intermediate_size=preset.intermediate,
        num_hidden_layers=preset.layers,
        num_attention_heads=preset.heads,
        num_key_value_heads=preset.kv_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=preset.tied,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    _let_answers_end(model, words.convert_tokens_to_ids(END_OF_TURN), preset.answer_tokens)
    return model.to(torch.bfloat16) if preset.bf16 else model


@torch.no_grad()
def _let_answers_end(model: LlamaForCausalLM, stop: int, mean_length: int) -> None:
    """Give ``stop`` a chance of about 1 / ``mean_length`` at every position.

    A model of random weights would stop once in as many tokens as it knows, so that every answer
    ran to its limit. All embeddings get a direction in common, and so has the output; the stop
    token's row of the head points along it, as far as the chance asks for.
    """
    embedding = model.get_input_embeddings().weight
    common = torch.randn(embedding.shape[1])
    common /= common.norm()
    embedding += common * embedding.norm(dim=1).mean()
    ids = torch.randint(0, embedding.shape[0], (4, 64))
    states = model.model(input_ids=ids).last_hidden_state
    along = (states @ common).mean()
    others = (states @ model.lm_head.weight.T) / TEMPERATURE
    rest = others.logsumexp(dim=-1).mean()
    wanted = TEMPERATURE * (rest - math.log(mean_length - 1))
    model.lm_head.weight[stop] = common * wanted / along
