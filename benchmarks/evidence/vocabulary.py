"""The world's words as tokens of a Hugging Face tokenizer, and arrays as text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.evidence.world import MOST_WORDS, NONE, STYLES, TOPICS, WORDS, Prompts

PAD, BOS, EOS, SEP = "<pad>", "<s>", "</s>", "<sep>"
SPECIAL = (PAD, BOS, EOS, SEP)
ANY, GOOD = "any", "good"
"""Quality words: SFT data shows any answer for the first, and a good one for the second."""
CONTENT = [*(f"w{number:02d}" for number in range(WORDS)), "!"]
"""Content words in the order of their numbers; the marker last."""
VOCABULARY = [
    *SPECIAL,
    ANY,
    GOOD,
    *(f"topic{number}" for number in range(TOPICS)),
    *(f"style{number}" for number in range(STYLES)),
    *CONTENT,
]
IDS = {word: number for number, word in enumerate(VOCABULARY)}
FIRST_WORD = IDS[CONTENT[0]]
PROMPT_TOKENS = 7
CHAT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<s> ' + m['content'] + ' <sep> ' }}"
    "{% else %}{{ m['content'] + ' </s>' }}{% endif %}{% endfor %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, with a chat template of one question and one answer."""
    words = Tokenizer(models.WordLevel(IDS, unk_token=PAD))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=PAD,
        additional_special_tokens=[SEP],
    )
    wrapped.chat_template = CHAT
    return wrapped


def save_tokenizer(path: Path) -> None:
    """Write the tokenizer's files into a folder."""
    tokenizer().save_pretrained(path)


def prompt_text(prompts: Prompts, quality: str = ANY) -> list[str]:
    """Prompts as text with the template's special tokens."""
    return [
        f"{BOS} {quality} topic{topic} style{style} {CONTENT[a]} {CONTENT[b]} {SEP}"
        for topic, style, (a, b) in zip(prompts.topic, prompts.style, prompts.context, strict=True)
    ]


def answer_text(answers: np.ndarray) -> list[str]:
    """Completions as text with their ending."""
    return [" ".join([*(CONTENT[w] for w in row if w != NONE), EOS]) for row in answers]


def prompt_ids(prompts: Prompts, quality: np.ndarray | None = None) -> np.ndarray:
    """Token ids of prompts, shape (n, PROMPT_TOKENS); ``quality`` marks those that ask for GOOD."""
    n = len(prompts)
    good = np.zeros(n, dtype=bool) if quality is None else quality
    return np.stack(
        [
            np.full(n, IDS[BOS]),
            np.where(good, IDS[GOOD], IDS[ANY]),
            IDS["topic0"] + prompts.topic,
            IDS["style0"] + prompts.style,
            FIRST_WORD + prompts.context[:, 0],
            FIRST_WORD + prompts.context[:, 1],
            np.full(n, IDS[SEP]),
        ],
        axis=1,
    )


def answer_ids(answers: np.ndarray) -> np.ndarray:
    """Token ids of answers with EOS and padding, shape (n, MOST_WORDS + 1)."""
    n = len(answers)
    ids = np.full((n, MOST_WORDS + 1), IDS[PAD])
    ids[:, :MOST_WORDS] = np.where(answers == NONE, IDS[PAD], FIRST_WORD + answers)
    ids[np.arange(n), (answers != NONE).sum(axis=1)] = IDS[EOS]
    return ids


def answers_of_ids(ids: np.ndarray) -> np.ndarray:
    """Completions in sampled token ids, shape (n, MOST_WORDS): up to EOS, other tokens left out."""
    ended = np.cumsum(ids == IDS[EOS], axis=1) > 0
    words = np.where(ended | (ids < FIRST_WORD), NONE, ids - FIRST_WORD)
    order = np.argsort(words == NONE, axis=1, kind="stable")
    packed = np.take_along_axis(words, order, axis=1)
    result = np.full((len(ids), MOST_WORDS), NONE)
    width = min(MOST_WORDS, packed.shape[1])
    result[:, :width] = packed[:, :width]
    return result
