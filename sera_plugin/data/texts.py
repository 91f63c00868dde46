"""What a run keeps for ``axolotl sera report`` and ``export``: texts of D, and the host's log.

With them these commands need neither the dataset nor a tokenizer nor a checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from sera_plugin.data.columns import TEXTS, Pairs
from sera_plugin.data.pairs import OfflinePairs
from sera_plugin.runtime.files import explained, replacing, write_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LOG_FILE = "log.json"
HELD_OUT_FILE = "held_out.parquet"
"""The pairs that no round trains on, with the columns of ``pairs.parquet``."""
BATCH = 10_000


def write_pairs(final: Path, pairs: OfflinePairs, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the texts of pairs once; a file that is there stays, for a resumed run has the same.

    Rows are written in batches and compressed, so that a large D takes little memory.

    Raises:
        StoreError: if the file can't be written.
    """
    if final.exists():
        return
    with (
        explained(final),
        replacing(final) as file,
        pq.ParquetWriter(file, Pairs.arrow(), compression="zstd") as writer,
    ):
        for batch in _batches(pairs, tokenizer):
            writer.write_batch(batch)


def write_log(folder: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write the trainer's log history, whole or not at all; an earlier one is replaced.

    Raises:
        StoreError: if the file can't be written.
    """
    final = folder / LOG_FILE
    with explained(final):
        write_whole(final, json.dumps(list(history)).encode())


def _batches(pairs: OfflinePairs, tokenizer: PreTrainedTokenizerBase) -> Iterator[pa.RecordBatch]:
    lengths = (pairs.prompt_tokens, pairs.chosen_tokens, pairs.rejected_tokens)
    rows = pairs.dataset.with_format("arrow")
    for start in range(0, len(pairs), BATCH):
        stop = min(start + BATCH, len(pairs))
        table = rows[start:stop]
        yield pa.record_batch(
            [
                pa.array(pairs.ids[start:stop], pa.string()),
                *(text_column(table, part, tokenizer.decode) for part in TEXTS),
                *(pa.array(column[start:stop], pa.int64()) for column in lengths),
            ],
            schema=Pairs.arrow(),
        )


def text_column(table: pa.Table, part: str, decode: Callable[..., Any]) -> pa.Array:
    """The text as the trainer tokenized it, or the tokens as text where there is none.

    Args:
        table: rows of a tokenized dataset.
        part: ``prompt``, ``chosen`` or ``rejected``.
        decode: the tokenizer's.
    """
    if part in table.column_names:
        column = table.column(part)
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            return column.cast(pa.string()).combine_chunks()
    ids = table.column(f"{part}_ids").to_pylist()
    return pa.array([decode(tokens, skip_special_tokens=False) for tokens in ids], pa.string())
