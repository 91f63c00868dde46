"""Prompts with their answers, as token ids: what is scored."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

Tokens = tuple[Sequence[int] | np.ndarray, Sequence[int] | np.ndarray]
"""Token ids of a prompt and of an answer."""


class Completions(Protocol):
    """Prompts with their answers, fetched batch by batch.

    Attributes:
        lengths: tokens of prompt and answer together, int64, shape (n,).
        prompts: completions with the same number have the same prompt, int64, shape (n,).
        prompt_tokens: tokens of the prompt, int64, shape (n,).
    """

    @property
    def lengths(self) -> np.ndarray: ...

    @property
    def prompts(self) -> np.ndarray: ...

    @property
    def prompt_tokens(self) -> np.ndarray: ...

    def fetch(self, numbers: Sequence[int]) -> Sequence[Tokens]:
        """Token ids of the prompts and of the answers of these numbers."""

    def digest(self) -> str:
        """Hash of all token ids in their order."""


@dataclass(frozen=True)
class CompletionList:
    """Completions held in memory, as (prompt_ids, completion_ids)."""

    rows: Sequence[Tokens]

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(prompt) + len(answer) for prompt, answer in self.rows], dtype=np.int64)

    @property
    def prompts(self) -> np.ndarray:
        known: dict[bytes, int] = {}
        keys = (np.asarray(prompt, dtype=np.int64).tobytes() for prompt, _ in self.rows)
        return np.array([known.setdefault(key, len(known)) for key in keys], dtype=np.int64)

    @property
    def prompt_tokens(self) -> np.ndarray:
        return np.array([len(prompt) for prompt, _ in self.rows], dtype=np.int64)

    def fetch(self, numbers: Sequence[int]) -> list[Tokens]:
        return [self.rows[number] for number in numbers]

    def digest(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for row in self.rows:
            for part in row:
                digest.update(len(part).to_bytes(8, "big"))
                digest.update(np.asarray(part, dtype=np.int64).tobytes())
        return digest.hexdigest()
