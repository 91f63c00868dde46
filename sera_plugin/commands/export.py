"""The data of a round as a dataset that plain DPO trains on, with a dataset card. No torch here."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sera_plugin.commands.dataset_card import BOOTSTRAPPED, FILES, OFFLINE, dataset_card
from sera_plugin.data.candidates import Source
from sera_plugin.data.columns import TEXTS, BootstrappedPairs, ExportedPairs, Margins, Pairs, Rows
from sera_plugin.data.metrics import SET_ASIDE
from sera_plugin.data.reader import RunFiles, StoredRound
from sera_plugin.data.rounds import full_round
from sera_plugin.runtime.errors import RunError, first_line
from sera_plugin.runtime.files import beside, created, put_in_place, write_synced


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: with the data file and README.md, the dataset card.
        counts: rows by source.
    """

    folder: Path
    counts: Mapping[str, int]


def export_round(
    run: RunFiles, number: int, form: str, out: Path, repository: str | None = None
) -> Exported:
    """Write the data of a round.

    Args:
        run: the run.
        number: the round.
        form: ``axolotl`` (JSON lines) or ``trl`` (parquet).
        out: a folder that is empty or not there.
        repository: where it will be uploaded, for the card.

    Raises:
        RunError: one sentence.
    """
    stored = run.round(number)
    rows = list(_rows(run, stored))
    if not rows:
        raise RunError(f"--round {number} holds no pairs.")
    counts = Counter(row[ExportedPairs.SOURCE] for row in rows)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"--out {out} is there and is not an empty folder; name another.")
    card = dataset_card(run, stored, form, rows, repository)
    building = beside(out.absolute())
    try:
        building.mkdir(parents=True)
        with created(building / FILES[form]) as file:
            if form == "axolotl":
                file.writelines(f"{json.dumps(row)}\n".encode() for row in rows)
            else:
                pq.write_table(pa.Table.from_pylist(rows, schema=ExportedPairs.arrow()), file)
        write_synced(building / "README.md", card.encode())
        if out.exists():
            for name in (FILES[form], "README.md"):
                put_in_place(building / name, out / name)
        else:
            put_in_place(building, out)
    except OSError as error:
        raise RunError(f"{out} can't be written ({error.strerror or error}).") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return Exported(out, counts)


def _rows(run: RunFiles, stored: StoredRound) -> Iterator[dict[str, Any]]:
    """The rows of a round in training order."""
    texts = run.pairs(Pairs.EXAMPLE_ID, Pairs.PROMPT, Pairs.CHOSEN, Pairs.REJECTED)
    if texts is None:
        raise RunError(
            f"{run.root} has no {Pairs.file}, which runs of this version keep, so the texts of "
            f"its offline pairs are not known; only round-NN/{BootstrappedPairs.file} can be used."
        )
    pairs = {row[Pairs.EXAMPLE_ID]: row for row in texts.to_pylist()}
    if not stored.reviewed:
        aside, seed = stored.summary.get(SET_ASIDE), run.settings.get("seed", 0)
        bad = aside if isinstance(aside, list) else ()
        for row in full_round(tuple(pairs), seed, stored.number, bad):
            yield _offline(pairs, row.example_id, _Found(), swapped=False, filled=row.filled)
        return
    review = _found(stored)
    bootstrapped = {pair[BootstrappedPairs.EXAMPLE_ID]: pair for pair in stored.bootstrapped()}
    for row in stored.rows().to_pylist():
        example_id = row[Rows.EXAMPLE_ID]
        if row[Rows.CHOSEN_IDS] is None:
            swapped = bool(row.get(Rows.FLIPPED))
            found = review.get(example_id, _Found())
            yield _offline(pairs, example_id, found, swapped=swapped, filled=row[Rows.FILLED])
        elif example_id not in bootstrapped:
            raise RunError(f"{stored.bootstrapped_path} lacks the new pair of {example_id}.")
        else:
            yield _bootstrapped(bootstrapped[example_id], filled=row[Rows.FILLED])


@dataclass(frozen=True)
class _Found:
    """What a review found of a pair; None where it is not known."""

    margin: float | None = None
    right: float | None = None
    weight: float = 1.0


def _found(stored: StoredRound) -> dict[str, _Found]:
    """What a round's review found of each pair of D, by example id."""
    table = stored.table(Margins)
    ids = table[Margins.EXAMPLE_ID].to_pylist()

    def column(name: Margins, usual: float | None) -> list[Any]:
        there = name in table.column_names
        return table[name].to_pylist() if there else [usual] * len(ids)

    margins = column(Margins.ENSEMBLED_MARGIN, None)
    right, weight = column(Margins.RIGHT, None), column(Margins.WEIGHT, 1.0)
    known = (None if r is None or math.isnan(r) else r for r in right)
    return dict(zip(ids, map(_Found, margins, known, weight), strict=True))


def _offline(
    pairs: Mapping[str, Any], example_id: str, found: _Found, *, swapped: bool, filled: bool
) -> dict[str, Any]:
    if example_id not in pairs:
        raise RunError(f"{Pairs.file} lacks the pair {example_id}.")
    pair = pairs[example_id]
    sides = [(pair[Pairs.CHOSEN], Source.CHOSEN), (pair[Pairs.REJECTED], Source.REJECTED)]
    (chosen, chosen_source), (rejected, rejected_source) = sides[::-1] if swapped else sides
    return {
        ExportedPairs.PROMPT: pair[Pairs.PROMPT],
        ExportedPairs.CHOSEN: chosen,
        ExportedPairs.REJECTED: rejected,
        ExportedPairs.SOURCE: OFFLINE,
        ExportedPairs.EXAMPLE_ID: example_id,
        ExportedPairs.MARGIN: found.margin,
        ExportedPairs.SWAPPED: swapped,
        ExportedPairs.CHOSEN_SOURCE: chosen_source.value,
        ExportedPairs.REJECTED_SOURCE: rejected_source.value,
        ExportedPairs.FILLED: filled,
        ExportedPairs.RIGHT: found.right,
        ExportedPairs.WEIGHT: found.weight,
    }


def _bootstrapped(pair: Mapping[str, Any], *, filled: bool) -> dict[str, Any]:
    names = (*TEXTS, ExportedPairs.EXAMPLE_ID, ExportedPairs.MARGIN)
    sources = (ExportedPairs.CHOSEN_SOURCE, ExportedPairs.REJECTED_SOURCE)
    return {
        **{name: pair[name] for name in names},
        ExportedPairs.SOURCE: BOOTSTRAPPED,
        ExportedPairs.SWAPPED: False,
        **{name: pair[name] for name in sources},
        ExportedPairs.FILLED: filled,
        ExportedPairs.RIGHT: None,
        ExportedPairs.WEIGHT: 1.0,
    }


def push(folder: Path, repository: str, *, private: bool) -> str:
    """Upload an exported folder to the Hugging Face Hub, and return its address.

    Raises:
        RunError: one sentence, if the hub refuses or can't be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi()
    try:
        url = api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, repo_type="dataset", folder_path=folder)
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise RunError(
            f"--push-to-hub {repository}: {first_line(error).rstrip('.')}; the dataset is in "
            f"{folder}."
        ) from error
    return str(url)
