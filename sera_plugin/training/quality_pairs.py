"""Pairs with p⊕x for their prompts: of D, of a round, and of a batch. No collectives."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from sera_plugin.config import ExternalConfig
from sera_plugin.data.margins import external_margins, missing_columns
from sera_plugin.data.pairs import OfflineCompletions, OfflinePairs
from sera_plugin.data.rounds import RoundDataset, RoundRow
from sera_plugin.host.rounds import REFINEMENT
from sera_plugin.training.quality_prompt import QualityWriter

GapLogps = Mapping[str, tuple[float, float]]


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
        given = [n for n in ("tools", "chat_template_kwargs") if n in dataset.column_names]
        prompts = []
        for example_id, row in zip(
            pairs.ids, dataset.select_columns(["prompt", *given]), strict=True
        ):
            prompt = writer.write(row["prompt"], f"example {example_id}")
            options = {"tools": row.get("tools"), **(row.get("chat_template_kwargs") or {})}
            prompts.append(np.asarray(writer.ids(prompt, **options), dtype=np.int32))
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

    def example(self, row: RoundRow, example: Mapping[str, Any]) -> dict[str, Any]:
        """``example`` of a round with p⊕x for its prompt, its answers as the loss sees them."""
        chosen, rejected = self.visible(row)
        fits = self.fits(row)
        prompt = self.prompts[self.pairs.position[row.example_id]].tolist()
        return {
            # Without room Δ doesn't count, but every rank must make the same passes.
            "prompt_ids": prompt if fits else example["prompt_ids"],
            "chosen_ids": example["chosen_ids"][:chosen],
            "rejected_ids": example["rejected_ids"][:rejected],
        }


class QualityCompletions:
    """Both answers of rows of a round behind p⊕x: chosen of row i at 2i, rejected at 2i+1."""

    def __init__(self, quality: QualityPairs, dataset: RoundDataset, rows: Sequence[int]) -> None:
        self._quality = quality
        self._dataset = dataset
        self._rows = rows
        lengths = [
            [len(self._prompt(i)) + tokens for tokens in quality.visible(dataset.rows[i])]
            for i in rows
        ]
        self.lengths = np.array(lengths, dtype=np.int64).reshape(-1)

    def _prompt(self, index: int) -> np.ndarray:
        row = self._dataset.rows[index]
        return self._quality.prompts[self._quality.pairs.position[row.example_id]]

    def fetch(self, numbers: Sequence[int]) -> list[tuple[Sequence[int], Sequence[int]]]:
        return [self[number] for number in numbers]

    def __getitem__(self, index: int) -> tuple[Sequence[int], Sequence[int]]:
        at = self._rows[index // 2]
        example = self._quality.example(self._dataset.rows[at], self._dataset[at])
        return example["prompt_ids"], example["rejected_ids" if index % 2 else "chosen_ids"]

    def digest(self) -> str:
        """Hash of D's token ids, of p⊕x and of the rows, in order."""
        digest = hashlib.blake2b(OfflineCompletions(self._quality.pairs).digest().encode())
        for index in self._rows:
            row = self._dataset.rows[index]
            digest.update(repr((row.key, row.flipped, row.chosen_ids, row.rejected_ids)).encode())
            digest.update(self._prompt(index).tobytes() + b"|")
        return digest.hexdigest()


class RefinedRound:
    """A round whose examples also hold what Δ is found from, under ``REFINEMENT``.

    Args:
        dataset: the round.
        quality: D with p⊕x.
        logps: q⁺ and q⁻ of each row that has them, by row key; None if every step finds them.
    """

    def __init__(
        self, dataset: RoundDataset, quality: QualityPairs, logps: GapLogps | None
    ) -> None:
        self.dataset = dataset
        self.quality = quality
        self.logps = logps

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row, example = self.dataset.rows[index], self.dataset[index]
        found: dict[str, Any] = {"score": self.quality.score(row)}
        if self.logps is None:
            found |= {"pair": self.quality.example(row, example), "fits": self.quality.fits(row)}
        else:
            found |= {"logps": self.logps.get(row.key, (0.0, 0.0)), "fits": row.key in self.logps}
        return example | {REFINEMENT: found}


@dataclass(frozen=True)
class RefinementCollator:
    """The host's collator, which also makes a batch of what examples hold under ``REFINEMENT``.

    Attributes:
        base: the host's collator.
    """

    base: Callable[[list[dict[str, Any]]], dict[str, Any]]

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.base(examples)
        given = [example[REFINEMENT] for example in examples if REFINEMENT in example]
        if not given:
            return batch
        found: dict[str, Any] = {
            "fits": torch.tensor([item["fits"] for item in given]),
            "score": torch.tensor([item["score"] for item in given], dtype=torch.float64),
        }
        if "pair" in given[0]:
            pairs = [item["pair"] for item in given]
            found |= self.base(pairs)
            found["first"] = max(1, min(len(pair["prompt_ids"]) for pair in pairs))
        else:
            logps = torch.tensor([item["logps"] for item in given], dtype=torch.float64)
            found |= {"chosen": logps[:, 0], "rejected": logps[:, 1]}
        return batch | {REFINEMENT: found}
