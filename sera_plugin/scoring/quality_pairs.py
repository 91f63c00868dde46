"""Pairs with p⊕x for their prompts: of D, and of the rows of a round. No collectives."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sera_plugin.config import ExternalConfig
from sera_plugin.data.margins import external_margins, missing_columns
from sera_plugin.data.pairs import OfflineCompletions, OfflinePairs
from sera_plugin.data.rounds import RoundRow
from sera_plugin.scoring.quality_prompt import QualityWriter

if TYPE_CHECKING:
    from datasets import Dataset

Tokens = tuple[Sequence[int] | np.ndarray, Sequence[int] | np.ndarray]
"""Token ids of a prompt and of an answer."""


@dataclass(frozen=True)
class QualityPairs:
    """D with p⊕x for every prompt.

    Attributes:
        pairs: D.
        prompts: token ids of p⊕x, int32, one array per row of D.
        scores: score of the chosen answer minus that of the rejected one, NaN where the data has
            none, float64, shape (n,).
        max_length: the loss sees this many tokens of prompt and answer.
    """

    pairs: OfflinePairs
    prompts: Sequence[np.ndarray]
    scores: np.ndarray
    max_length: int

    @classmethod
    def of(
        cls,
        pairs: OfflinePairs,
        dataset: Dataset,
        writer: QualityWriter,
        max_length: int | None,
        scores: ExternalConfig,
    ) -> QualityPairs:
        """Write p into the prompts of D.

        Args:
            pairs: D.
            dataset: its rows as TRL prepared them, with their original columns.
            writer: puts p into prompts.
            max_length: the loss sees this many tokens of prompt and answer.
            scores: which columns hold the scores, if they are there.
        """
        prompts = prompts_with(writer, dataset, pairs.ids)
        carried = not missing_columns(scores, dataset.column_names)
        margins = external_margins(dataset, scores) if carried else np.full(len(pairs), np.nan)
        return cls(pairs, prompts, margins, max_length or 2**31)

    @property
    def tokens(self) -> int:
        """Tokens that Δ of every pair of D takes, without padding."""
        prompts = sum(map(len, self.prompts))
        return int(2 * prompts + (self.pairs.chosen_tokens + self.pairs.rejected_tokens).sum())

    def visible(self, row: RoundRow) -> tuple[int, int]:
        """Tokens of a row's answers that the loss sees."""
        at = self.pairs.position[row.example_id]
        if row.chosen_ids is None or row.rejected_ids is None:
            tokens = int(self.pairs.chosen_tokens[at]), int(self.pairs.rejected_tokens[at])
            return tokens[::-1] if row.flipped else tokens
        room = max(0, self.max_length - int(self.pairs.prompt_tokens[at]))
        return min(len(row.chosen_ids), room), min(len(row.rejected_ids), room)

    def score(self, row: RoundRow) -> float:
        """The dataset's margin of a row, NaN where it has none."""
        if row.chosen_ids is not None:
            return float("nan")
        score = float(self.scores[self.pairs.position[row.example_id]])
        return -score if row.flipped else score

    def fits(self, row: RoundRow) -> bool:
        """Whether p⊕x and each answer, uncut, are within ``max_length``."""
        prompt = self.prompts[self.pairs.position[row.example_id]]
        return len(prompt) + max(self.visible(row)) <= self.max_length

    def completions(self, row: RoundRow) -> tuple[Tokens, Tokens]:
        """Both answers of a row, as the loss sees them, with p⊕x for their prompt.

        Without room for p the prompt stays x: Δ doesn't count, but ranks make the same passes.
        """
        pair = self.pairs.dataset[self.pairs.position[row.example_id]]
        prompt: Sequence[int] | np.ndarray = pair["prompt_ids"]
        if self.fits(row):
            prompt = self.prompts[self.pairs.position[row.example_id]]
        chosen, rejected = row.chosen_ids, row.rejected_ids
        if chosen is None or rejected is None:
            sides = pair["chosen_ids"], pair["rejected_ids"]
            chosen, rejected = sides[::-1] if row.flipped else sides
        most_chosen, most_rejected = self.visible(row)
        return (prompt, chosen[:most_chosen]), (prompt, rejected[:most_rejected])


def prompts_with(writer: QualityWriter, dataset: Dataset, ids: Sequence[str]) -> list[np.ndarray]:
    """Token ids of p⊕x, int32, one array per row.

    Args:
        writer: puts p into prompts.
        dataset: rows as TRL prepared them, with their original columns.
        ids: their example ids, for errors.
    """
    given = [n for n in ("tools", "chat_template_kwargs") if n in dataset.column_names]
    prompts = []
    for example_id, row in zip(ids, dataset.select_columns(["prompt", *given]), strict=True):
        prompt = writer.write(row["prompt"], f"example {example_id}")
        options = {"tools": row.get("tools"), **(row.get("chat_template_kwargs") or {})}
        prompts.append(np.asarray(writer.ids(prompt, **options), dtype=np.int32))
    return prompts


class QualityCompletions:
    """Both answers of rows behind p⊕x: chosen of row i at 2i, rejected at 2i+1."""

    def __init__(self, quality: QualityPairs, rows: Sequence[RoundRow]) -> None:
        self._quality = quality
        self._rows = rows
        lengths = [
            [len(self._prompt(row)) + tokens for tokens in quality.visible(row)] for row in rows
        ]
        self.lengths = np.array(lengths, dtype=np.int64).reshape(-1)
        self.prompts = np.repeat(np.arange(len(rows)), 2)
        asked = [len(self._prompt(row)) for row in rows]
        self.prompt_tokens = np.repeat(np.array(asked, dtype=np.int64), 2)

    def _prompt(self, row: RoundRow) -> np.ndarray:
        return self._quality.prompts[self._quality.pairs.position[row.example_id]]

    def fetch(self, numbers: Sequence[int]) -> list[Tokens]:
        return [self[number] for number in numbers]

    def __getitem__(self, index: int) -> Tokens:
        return self._quality.completions(self._rows[index // 2])[index % 2]

    def digest(self) -> str:
        """Hash of D's token ids, of p⊕x and of the rows, in order."""
        digest = hashlib.blake2b(OfflineCompletions(self._quality.pairs).digest().encode())
        for row in self._rows:
            digest.update(repr((row.key, row.flipped, row.chosen_ids, row.rejected_ids)).encode())
            digest.update(self._prompt(row).tobytes() + b"|")
        return digest.hexdigest()
