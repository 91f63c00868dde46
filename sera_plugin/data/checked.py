"""Reading files that may be damaged or foreign: what is read has the types that a run writes.

No torch here. Everything else is a ``RunError``, one sentence that names the file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from sera_plugin.data.columns import (
    TEXTS,
    BootstrappedPairs,
    Column,
    Competitors,
    Margins,
    Pairs,
    Rows,
)
from sera_plugin.data.metrics import metrics_of
from sera_plugin.runtime.errors import RunError, first_line

T = TypeVar("T")

NEEDED: Mapping[type[Column], Sequence[Column]] = {
    Margins: (Margins.EXAMPLE_ID, Margins.MARGIN, Margins.ENSEMBLED_MARGIN, Margins.KEPT),
    Rows: (Rows.KEY, Rows.EXAMPLE_ID, Rows.CHOSEN_IDS, Rows.REJECTED_IDS),
    Pairs: tuple(Pairs),
}
"""The columns of a file that every version has written."""

LEVELS = 40
"""How deep a value in JSON may be nested."""


class _Settings(BaseModel):
    """What is read of ``run.json``; other keys may hold anything."""

    model_config = ConfigDict(strict=True, extra="allow")

    sera: dict[str, Any]
    base_model: str = ""
    pairs: int = 0
    rounds: list[Any] | None = None
    updates: list[int] | None = None
    max_steps: int | None = None
    seed: int = 0


def read_json(path: Path, check: Callable[[Any], T]) -> T:
    """What ``check`` makes of the value in a JSON file; it raises a ValueError for a foreign one.

    Raises:
        RunError: if it can't be read.
    """
    return _from_json(regular(path).read_bytes(), path, check)


def bootstrapped_pair(line: bytes, path: Path) -> dict[str, Any]:
    """A line of ``bootstrapped.jsonl``, which stands at ``path``; what it lacks is None.

    Raises:
        RunError: if it is damaged.
    """
    return _from_json(line, path, _pair)


def _from_json(content: bytes, path: Path, check: Callable[[Any], T]) -> T:
    try:
        value = json.loads(content)
        _check_sound(value)
        return check(value)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} can't be read ({first_line(error).rstrip('.')}).") from error


def regular(path: Path) -> Path:
    """``path``, which can be read without waiting.

    Raises:
        RunError: if no regular file stands there.
    """
    if not path.is_file():
        raise RunError(f"{path} is missing, or is no file.")
    return path


def _check_sound(value: Any, levels: int = LEVELS) -> None:
    """Raise a ValueError for what JSON can hold and no run writes."""
    if levels == 0:
        raise ValueError("it is nested too deep")
    if isinstance(value, str):
        value.encode()  # not with half a surrogate pair
    elif isinstance(value, int) and abs(value) > sys.float_info.max:
        raise ValueError("it holds a number that is too large")
    elif isinstance(value, (dict, list)):
        for inner in (*value, *value.values()) if isinstance(value, dict) else value:
            _check_sound(inner, levels - 1)


def run_settings(value: Any) -> Mapping[str, Any]:
    """The content of ``run.json``.

    Raises:
        ValueError: if a run has not written it.
    """
    try:
        _Settings.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        why = f"{key}: {first['msg']}" if key else first["msg"]
        raise ValueError(f"it was not written by a SeRA run: {why}") from error
    found: Mapping[str, Any] = value
    return found


def round_summary(value: Any) -> Mapping[str, Any]:
    """The content of a round's ``summary.json``: numbers, or null, under the names of metrics.

    Raises:
        ValueError: if a run has not written it.
    """
    if not isinstance(value, dict):
        raise ValueError("it was not written by a SeRA run")
    for metric in metrics_of(value):
        if not _fits(value[metric.name], pa.float64()):
            raise ValueError(f"{metric.name} is no number")
    return value


def log_history(value: Any) -> list[Mapping[str, Any]]:
    """The entries of ``log.json``, or of the host's state of a checkpoint.

    Raises:
        ValueError: if they are something else.
    """
    entries = value.get("log_history") if isinstance(value, dict) else value
    if not isinstance(entries, list):
        raise ValueError("it holds no log history")
    for entry in entries:
        if not isinstance(entry, dict) or not _fits(entry.get("step"), pa.float64()):
            raise ValueError("an entry is no step of training")
    return entries


def _pair(value: Any) -> dict[str, Any]:
    pair = _row(value, BootstrappedPairs)
    for name in (*TEXTS, BootstrappedPairs.EXAMPLE_ID):
        if pair[name] is None:
            raise ValueError(f"a pair lacks its {name}")
    candidates = pair[BootstrappedPairs.CANDIDATES] or ()
    return pair | {BootstrappedPairs.CANDIDATES: [_row(c, Competitors) for c in candidates]}


def _row(value: Any, columns: type[Column]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("a line is no object")
    for column in columns:
        if not _fits(value.get(column), column.type):
            raise ValueError(f"{column} is not of type {column.type}")
    return {column.value: value.get(column) for column in columns}


def _fits(value: Any, wanted: pa.DataType) -> bool:
    """Whether a value from JSON is null or of a column's type."""
    if value is None:
        return True
    if pa.types.is_list(wanted):
        return isinstance(value, list)
    if isinstance(value, bool) or pa.types.is_boolean(wanted):
        return isinstance(value, bool) and pa.types.is_boolean(wanted)
    if pa.types.is_string(wanted):
        return isinstance(value, str)
    return isinstance(value, int) or (isinstance(value, float) and pa.types.is_floating(wanted))


def read_parquet(path: Path, file: type[Column], columns: Sequence[Column]) -> pa.Table:
    """A table whose columns have their types, all or some of them; those needed are there.

    Raises:
        RunError: if it can't be read.
    """
    needed = columns or NEEDED.get(file, tuple(file))
    try:
        table = pq.read_table(regular(path), columns=list(columns) or None)
        for column in file:
            if column in table.column_names or column in needed:
                values = table[column].cast(column.type)
                place = table.column_names.index(column)
                table = table.set_column(place, column.value, values)
                may_lack = pa.types.is_floating(column.type) or pa.types.is_list(column.type)
                if column in needed and values.null_count and not may_lack:
                    raise ValueError(f"a row has no {column}")
        table.validate(full=True)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise RunError(f"{path} can't be read ({first_line(error).rstrip('.')}).") from error
    return table
