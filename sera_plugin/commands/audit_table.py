"""What an audit finds, as a ranked table: how suspicious each label is. No torch here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from sera_plugin.data.columns import TEXTS, RankedPairs
from sera_plugin.runtime.files import replacing, write_whole

CUTOFFS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Shares of the pairs at which a cut is shown."""


def ranked(columns: Mapping[str, Any], beta: float) -> pa.Table:
    """All pairs, the lowest margins first; pairs without a finite margin come last.

    Args:
        columns: ``RankedPairs`` without ``rank`` and ``preference_probability``, and more.
        beta: β of the loss.
    """
    margin = np.asarray(columns[RankedPairs.MARGIN], dtype=np.float64)
    order = np.lexsort(
        (np.asarray(columns[RankedPairs.EXAMPLE_ID]), np.where(np.isfinite(margin), margin, np.inf))
    )
    found = {
        RankedPairs.RANK.value: pa.array(np.arange(1, len(margin) + 1)),
        **{name: pa.array(values).take(pa.array(order)) for name, values in columns.items()},
    }
    with np.errstate(over="ignore"):
        probability = 1.0 / (1.0 + np.exp(-beta * margin[order]))
    found[RankedPairs.PREFERENCE_PROBABILITY.value] = pa.array(probability)
    own = [name for name in columns if name not in set(RankedPairs)]
    ours = {column.value: found[column].cast(column.type) for column in RankedPairs}
    return pa.table(ours | {name: found[name] for name in own})


@dataclass(frozen=True)
class Cut:
    """What cutting off the most suspicious pairs would do.

    Attributes:
        pairs: how many are cut.
        share: of all pairs.
        margin: the largest margin among them.
        precision: share of the cut pairs whose labels are wrong, if that is known.
        recall: share of the wrong labels that are cut.
    """

    pairs: int
    share: float
    margin: float
    precision: float | None = None
    recall: float | None = None


def cuts(margins: np.ndarray, wrong: np.ndarray | None = None) -> list[Cut]:
    """Cuts at ``CUTOFFS``, and where the policy disagrees (margin below 0), by size.

    Args:
        margins: as in the ranked table, shape (n,).
        wrong: mask of the labels that are known to be wrong, in the same order.
    """
    total, known = len(margins), int(np.isfinite(margins).sum())
    negative = int((margins < 0).sum())
    sizes = {negative, *(max(1, round(share * total)) for share in CUTOFFS)} - {0}
    return [_cut(margins, wrong, size) for size in sorted(sizes) if size <= known]


def _cut(margins: np.ndarray, wrong: np.ndarray | None, size: int) -> Cut:
    cut = Cut(size, size / len(margins), float(margins[size - 1]))
    if wrong is None:
        return cut
    caught = int(wrong[:size].sum())
    recall = caught / int(wrong.sum()) if wrong.any() else None
    return Cut(cut.pairs, cut.share, cut.margin, caught / size, recall)


def write_results(table: pa.Table, folder: Path, summary: Mapping[str, Any]) -> None:
    """Write ``ranked.parquet``, ``ranked.jsonl`` and ``summary.json``.

    Raises:
        OSError: if that fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / RankedPairs.file) as file:
        pq.write_table(table, file, compression="zstd")
    _write_lines(folder / "ranked.jsonl", _rows(table))
    write_whole(folder / "summary.json", json.dumps(summary, indent=2).encode())


def write_card(folder: Path, *, kept: bool) -> None:
    """Write ``README.md``, which tells ``datasets.load_dataset`` what the files of the folder are.

    Args:
        folder: of the audit.
        kept: whether it holds ``kept.jsonl``.

    Raises:
        OSError: if that fails.
    """
    names = ["ranked", *(["kept"] if kept else [])]
    configs: list[dict[str, Any]] = [
        {"config_name": name, "data_files": [{"split": "train", "path": f"{name}.jsonl"}]}
        for name in names
    ]
    configs[0]["default"] = True
    front = yaml.safe_dump({"configs": configs}, sort_keys=False)
    lines = [
        f"---\n{front}---\n\n# {RankedPairs.__doc__}\n",
        *(f'- `load_dataset(FOLDER, "{name}")`: `{name}.jsonl`' for name in names),
        f"\n{RankedPairs.as_markdown()}\n",
    ]
    write_whole(folder / "README.md", "\n".join(lines).encode())


def write_kept(table: pa.Table, share: float, path: Path) -> int:
    """Write the least suspicious share of the pairs as a dataset, and return how many they are.

    Axolotl trains on it with a dataset entry that has no ``type``. Pairs without a finite margin
    are never among them.
    """
    known = int(np.isfinite(table[RankedPairs.MARGIN].to_numpy()).sum())
    count: int = min(known, max(1, round(share * table.num_rows)))
    kept = table.slice(known - count, count)
    names = [*TEXTS, RankedPairs.EXAMPLE_ID, RankedPairs.MARGIN]
    _write_lines(path, _rows(kept.select(names)))
    return count


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=1000):
        for row in batch.to_pylist():
            yield {name: None if value != value else value for name, value in row.items()}


def _write_lines(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    with replacing(path) as file:
        file.writelines(f"{json.dumps(row)}\n".encode() for row in rows)


def cut_table(found: Sequence[Cut]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the cuts as text, with precision and recall if they are known."""
    header = ["most suspicious", "pairs", "margin up to"]
    known = any(cut.precision is not None for cut in found)
    rows = [[f"{cut.share:.1%}", f"{cut.pairs:,}", f"{cut.margin:.3f}"] for cut in found]
    if known:
        header += ["precision", "recall"]
        for row, cut in zip(rows, found, strict=True):
            row += ["–" if v is None else f"{v:.1%}" for v in (cut.precision, cut.recall)]
    return header, rows
