"""Prompts, the answers sampled for them, and how those are stored. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True)
class Prompt:
    """A prompt to answer: its example's id and its token ids."""

    example_id: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Rollout:
    """A sampled answer: tokens with their ending if it finished."""

    token_ids: tuple[int, ...]
    finished: bool


Answered = list[tuple[str, tuple[Rollout, ...]]]
"""What a batch gives: the answers to each of its prompts, with the example's id."""

_ROLLOUTS = pa.schema(
    [
        ("batch", pa.int64()),
        ("example_id", pa.string()),
        ("finished", pa.bool_()),
        ("token_ids", pa.list_(pa.int64())),
    ]
)


class RolloutCodec:
    """Answers of batches as a table with a row per answer, candidates in their order."""

    def encode(self, found: Mapping[int, Answered]) -> pa.Table:
        rows = [
            (number, example_id, answer.finished, answer.token_ids)
            for number, answered in found.items()
            for example_id, answers in answered
            for answer in answers
        ]
        columns = zip(*rows, strict=True)
        arrays = [
            pa.array(column, field.type) for column, field in zip(columns, _ROLLOUTS, strict=True)
        ]
        return pa.table(arrays, schema=_ROLLOUTS)

    def decode(self, table: pa.Table) -> dict[int, Answered]:
        found: dict[int, dict[str, list[Rollout]]] = {}
        columns = (table[name].to_pylist() for name in _ROLLOUTS.names)
        for number, example_id, finished, token_ids in zip(*columns, strict=True):
            answers = found.setdefault(number, {}).setdefault(example_id, [])
            answers.append(Rollout(tuple(token_ids), finished))
        return {
            number: [(example_id, tuple(answers)) for example_id, answers in answered.items()]
            for number, answered in found.items()
        }
