"""The one schema of each file: what writers write, and the table that documents it."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from reviews import PAIRS, Letters, review_of

from sera_plugin.data.columns import (
    BootstrappedPairs,
    Candidates,
    Column,
    Competitors,
    ExportedPairs,
    Margins,
    Pairs,
    RankedPairs,
    Refinement,
    Rows,
    markdown,
)
from sera_plugin.data.rounds import RoundRow, rows_of
from sera_plugin.data.store import RunStore
from sera_plugin.data.tables import RoundRecord, parquet_bytes
from sera_plugin.training.publish import COLUMNS, bootstrapped_lines, candidate_rows

FILES = [
    Pairs, Margins, Rows, Candidates, Competitors, BootstrappedPairs, Refinement, ExportedPairs,
    RankedPairs,
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A round with bootstrapped pairs, written as a run does."""
    review = review_of()
    dataset = Dataset.from_list([{"prompt": "ask", "prompt_ids": [n]} for n in range(4)])
    rows = rows_of(review.composition, 7, 3, previous_reference=False)
    return RunStore(tmp_path).write_round(
        3,
        RoundRecord(review.table, rows),
        bootstrapped_lines(review, replace(PAIRS, dataset=dataset), Letters(), 0.1),  # type: ignore[arg-type]
        {},
        candidate_rows(review, 0.1),
    )


@pytest.mark.parametrize("file", [Margins, Rows, Candidates])
def test_a_file_has_the_columns_of_its_schema(folder: Path, file: type[Column]) -> None:
    empty = pq.read_schema(BytesIO(parquet_bytes(file.arrow().empty_table())))
    assert pq.read_schema(folder / file.file).equals(empty, check_metadata=True)


def test_every_column_is_filled_by_its_writer(folder: Path) -> None:
    first, *_ = (json.loads(line) for line in (folder / BootstrappedPairs.file).open())
    assert list(first) == list(BootstrappedPairs)
    assert list(first["candidates"][0]) == list(Competitors)
    assert list(next(candidate_rows(review_of(), 0.1))) == list(Candidates)
    assert [*(field.name for field in fields(RoundRow)), "filled"] == list(Rows)
    assert set(COLUMNS) == set(BootstrappedPairs) - {BootstrappedPairs.CANDIDATES}


@pytest.mark.parametrize("file", FILES)
def test_every_column_is_explained_in_the_table(file: type[Column]) -> None:
    _, _, *rows = file.as_markdown().splitlines()
    named = [name.strip(" `") for row in rows for name in row.split("|")[1].split(",")]
    assert named == list(file)
    assert all(row.count(" | ") == 2 and not row.endswith(" |  |") for row in rows)
    assert all(column.meaning for column in file)


def test_neighbours_of_one_meaning_share_a_row() -> None:
    assert Margins.as_markdown().splitlines()[3] == (
        "| `policy_chosen_logp`, `policy_rejected_logp` | float64 "
        "| log πθ of each completion, nats |"
    )
    assert "| `token_ids` | list of int64 | the completion |" in Candidates.as_markdown()
    assert markdown(["a", "b"], [["x|y", "z"]]) == "| a | b |\n| --- | --- |\n| x\\|y | z |"
