"""Prompts, the answers sampled for them, and how those are stored. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from sera_plugin.data.pairs import list_rows


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


Draws = Callable[[Prompt, int, int], np.ndarray]
"""Uniforms in [0, 1) for a prompt and the number of its answer, as many as asked for."""

Answered = list[tuple[str, list[tuple[np.ndarray, bool]]]]
"""What a batch gives: example ids with the answers' token ids (int32) and whether they finished."""

_ROLLOUTS = pa.schema(
    [
        ("batch", pa.int64()),
        ("example_id", pa.string()),
        ("finished", pa.bool_()),
        ("token_ids", pa.list_(pa.int32())),
    ]
)


class RolloutCodec:
    """Answers of batches as a table with a row per answer, candidates in their order."""

    def encode(self, found: Mapping[int, Answered]) -> pa.Table:
        rows = [
            (number, example_id, finished, token_ids)
            for number, answered in found.items()
            for example_id, answers in answered
            for token_ids, finished in answers
        ]
        columns = zip(*rows, strict=True)
        arrays = [
            pa.array(column, field.type) for column, field in zip(columns, _ROLLOUTS, strict=True)
        ]
        return pa.table(arrays, schema=_ROLLOUTS)

    def decode(self, table: pa.Table) -> dict[int, Answered]:
        found: dict[int, dict[str, list[tuple[np.ndarray, bool]]]] = {}
        *columns, tokens = (table[name] for name in _ROLLOUTS.names)
        names = (column.to_pylist() for column in columns)
        for number, example_id, finished, token_ids in zip(*names, list_rows(tokens), strict=True):
            answers = found.setdefault(number, {}).setdefault(example_id, [])
            answers.append((token_ids, finished))
        return {number: list(answered.items()) for number, answered in found.items()}
