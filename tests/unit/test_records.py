"""What a run keeps for reports and exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from reviews import Letters

from sera_plugin.data import texts as records
from sera_plugin.data.columns import Pairs
from sera_plugin.data.pairs import OfflinePairs
from sera_plugin.runtime.errors import StoreError


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"ask {i}",
            "chosen": f"good {i} \u2028 </script>",
            "rejected": f"bad {i}",
            "prompt_ids": [0, 1],
            "chosen_ids": [2, 3, 4],
            "rejected_ids": [i % 20],
        }
        for i in range(count)
    ]


def write(folder: Path, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    pairs = OfflinePairs.of(Dataset.from_list(found), 4)
    records.write_pairs(folder / Pairs.file, pairs, Letters())  # type: ignore[arg-type]
    read = pq.read_table(folder / Pairs.file).to_pylist()
    assert [row["example_id"] for row in read] == list(pairs.ids)
    return read


def test_texts_and_lengths_of_every_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "BATCH", 3)
    found = rows(7)
    read = write(tmp_path, found)
    assert len(read) == 7
    for row, given in zip(read, found, strict=True):
        assert {name: row[name] for name in ("prompt", "chosen", "rejected")} == {
            name: given[name] for name in ("prompt", "chosen", "rejected")
        }
        # The loss sees 4 tokens of prompt and answer.
        assert (row["prompt_tokens"], row["chosen_tokens"], row["rejected_tokens"]) == (2, 2, 1)
    assert [path.name for path in tmp_path.iterdir()] == [Pairs.file]


def test_text_of_a_shuffled_dataset_keeps_its_order(tmp_path: Path) -> None:
    dataset = Dataset.from_list(rows(20)).shuffle(seed=1)
    pairs = OfflinePairs.of(dataset, None)
    records.write_pairs(tmp_path / Pairs.file, pairs, Letters())  # type: ignore[arg-type]
    read = pq.read_table(tmp_path / Pairs.file)
    assert read["prompt"].to_pylist() == dataset["prompt"][:] != rows(20)
    assert read["example_id"].to_pylist() == list(pairs.ids)


def test_tokens_become_text_where_there_is_none(tmp_path: Path) -> None:
    found = [{k: v for k, v in row.items() if k.endswith("_ids")} for row in rows(2)]
    (first, _) = write(tmp_path, found)
    assert (first["prompt"], first["chosen"], first["rejected"]) == ("ab", "cde", "a")


def test_texts_that_are_there_stay(tmp_path: Path) -> None:
    write(tmp_path, rows(2))
    before = (tmp_path / Pairs.file).stat().st_mtime_ns
    write(tmp_path, rows(2))
    assert (tmp_path / Pairs.file).stat().st_mtime_ns == before


def test_what_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    pairs = OfflinePairs.of(Dataset.from_list(rows(2)), None)
    with pytest.raises(StoreError, match=r"pairs\.parquet can't be written .* resume"):
        records.write_pairs(blocked / Pairs.file, pairs, Letters())  # type: ignore[arg-type]


def test_log_is_replaced_whole(tmp_path: Path) -> None:
    records.write_log(tmp_path, [{"step": 1, "loss": 0.5}])
    records.write_log(tmp_path, [{"step": 1, "loss": 0.5}, {"step": 2, "loss": float("nan")}])
    read = json.loads((tmp_path / records.LOG_FILE).read_text())
    assert [entry["step"] for entry in read] == [1, 2]
    assert [path.name for path in tmp_path.iterdir()] == [records.LOG_FILE]
