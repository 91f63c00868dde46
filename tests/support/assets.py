"""Tiny models, tokenizers and datasets that tests make for themselves."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + "
    "'<|end_header_id|>\n\n' + m['content'] + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
WORDS = [
    "apple",
    "river",
    "stone",
    "cloud",
    "green",
    "quick",
    "brown",
    "lazy",
    "happy",
    "silent",
    "bright",
    "dark",
    "paper",
    "music",
    "orange",
    "table",
    "window",
    "garden",
    "silver",
    "golden",
    "early",
    "late",
    "north",
    "south",
    "seven",
    "eight",
    "kind",
    "brave",
    "gentle",
    "wild",
]


def tokenizer(texts: Iterable[str], style: str, vocab_size: int = 600) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer in the manner of Llama 3 or Qwen."""
    special = {
        "llama": ["<pad>", "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>",
                  "<|start_header_id|>", "<|end_header_id|>"],
        "qwen": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    }[style]  # fmt: skip
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if style == "llama":
        names = {"bos_token": special[1], "eos_token": special[2], "pad_token": special[0]}
    else:
        names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=bpe, additional_special_tokens=special, **names
    )
    wrapped.chat_template = LLAMA3 if style == "llama" else CHATML
    return wrapped


def save_model(
    path: Path, style: str, texts: Iterable[str], *, hidden: int = 32, seed: int = 0
) -> Path:
    """Write a random model with its tokenizer and return its folder."""
    torch.manual_seed(seed)
    words = tokenizer(texts, style)
    common: dict[str, Any] = {
        "vocab_size": len(words),
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
        "bos_token_id": words.bos_token_id,
        "initializer_range": 0.1,
    }
    if style == "llama":
        model = LlamaForCausalLM(LlamaConfig(**common))
    else:
        model = Qwen2ForCausalLM(Qwen2Config(**common))
    model.save_pretrained(path)
    words.save_pretrained(path)
    return path


def save_reward_model(path: Path, policy: Path, *, outputs: int = 1) -> Path:
    """Write a random sequence classifier with the tokenizer of ``policy``; returns its folder."""
    words = AutoTokenizer.from_pretrained(policy)
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_labels=outputs,
        pad_token_id=words.pad_token_id,
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(path)
    words.save_pretrained(path)
    return path


def pairs(count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Preference pairs in chat form; chosen answers are longer and repeat the prompt's words."""
    draw = np.random.default_rng(seed)
    for number in range(count):
        asked = list(draw.choice(WORDS, size=4))
        good = [*asked[:2], *draw.choice(WORDS, size=int(draw.integers(2, 6)))]
        bad = list(draw.choice(WORDS, size=int(draw.integers(1, 5))))
        yield {
            "messages": [{"role": "user", "content": f"{number} " + " ".join(asked)}],
            "chosen": {"role": "assistant", "content": " ".join(good)},
            "rejected": {"role": "assistant", "content": " ".join(bad)},
        }


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


SMALLEST: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.3,
}
"""Sizes of a model for tests of one pass."""


def small_llama(vocab_size: int, **changes: Any) -> LlamaForCausalLM:
    """A random Llama of the smallest size, always with the same weights, for tests of one pass."""
    torch.set_num_threads(1)  # a model this small only waits for other threads
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **SMALLEST, **changes))
