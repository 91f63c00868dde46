"""Signals of a review: what is built in, and what is refused."""

from __future__ import annotations

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from sera_plugin.data.margins import PairLogps
from sera_plugin.data.pairs import OfflinePairs
from sera_plugin.data.tables import ReviewTable, parquet_bytes
from sera_plugin.review.signals import SignalInput, measured
from sera_plugin.runtime.errors import RuleError

IDS = ("a", "b", "c")
LOGPS = PairLogps(IDS, np.array([-1.0, -2.0, -3.0]), np.array([-2.0, -2.0, np.nan]))
ROWS = {
    "prompt": ["p", "q", "r"], "chosen": ["x", "y", "z"], "rejected": ["u", "v", "w"],
    "prompt_ids": [[1], [2], [3]], "chosen_ids": [[4, 5], [6], [7]],
    "rejected_ids": [[8], [9, 10, 11], [12]], "stars": [5, None, 2],
}  # fmt: skip
PAIRS = OfflinePairs.of(Dataset.from_dict(ROWS), None)
GIVEN = SignalInput(
    ids=IDS,
    policy=LOGPS,
    reference=LOGPS,
    ratios=LOGPS,
    margin=np.array([1.0, -np.inf, np.nan]),
    chosen_tokens=PAIRS.chosen_tokens,
    rejected_tokens=PAIRS.rejected_tokens,
    round_number=2,
    seed=7,
    column=PAIRS.column,
)


def stars(given: SignalInput) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in given.column("stars")])


def positive(given: SignalInput) -> np.ndarray:
    return given.margin > 0


def raising(given: SignalInput) -> list[float]:
    return given.column("moons")  # type: ignore[return-value]


def short(given: SignalInput) -> list[float]:
    return [1.0]


def words(given: SignalInput) -> list[str]:
    return ["much"] * len(given.ids)


def endless(given: SignalInput) -> np.ndarray:
    return np.full(len(given.ids), np.inf)


def test_signals_by_hand() -> None:
    names = ["margin", "length", f"{__name__}:stars", f"{__name__}:positive"]
    found = measured(names, GIVEN)
    assert list(found) == ["margin", "length", "stars", "positive"]
    np.testing.assert_array_equal(found["margin"], [1.0, np.nan, np.nan])
    np.testing.assert_array_equal(found["length"], [1.0, -2.0, 0.0])
    np.testing.assert_array_equal(found["stars"], [5.0, np.nan, 2.0])
    np.testing.assert_array_equal(found["positive"], [1.0, 0.0, 0.0])
    assert {values.dtype for values in found.values()} == {np.dtype(np.float64)}
    assert measured([], GIVEN) == {}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("raising", "raised KeyError: 'moons is no column of the pairs: prompt, chosen, "),
        ("short", "returned shape (1,) for 3 pairs; it must return one number per pair."),
        ("words", "returned values of type <U4; it must return real numbers."),
        ("endless", "returned an infinite value for 3 of 3 pairs; it must return finite numbers"),
    ],
)
def test_a_signal_that_breaks_its_contract_is_named(name: str, says: str) -> None:
    with pytest.raises(RuleError) as caught:
        measured([f"{__name__}:{name}"], GIVEN)
    assert str(caught.value).startswith(f"sera.selection.signals: {__name__}:{name} {says}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("signals", [{}, {"length": np.array([1.0, np.nan, 0.0])}])
def test_signals_are_stored_beside_the_margins(signals: dict[str, np.ndarray]) -> None:
    zeros, no = np.zeros(3), np.zeros(3, dtype=bool)
    rounds = np.ones(3, dtype=np.int32)
    table = ReviewTable(IDS, LOGPS, LOGPS, zeros, zeros, no, zeros, no, rounds, signals)
    arrow = pq.read_table(io.BytesIO(parquet_bytes(table.to_arrow())))
    assert [name for name in arrow.column_names if name.startswith("signal")] == [
        f"signal_{name}" for name in signals
    ]
    read = ReviewTable.from_arrow(arrow)
    assert list(read.signals) == list(signals)
    for name, values in signals.items():
        np.testing.assert_array_equal(read.signals[name], values)
