"""Training pairs that are held out: how many, which, and what a resumed run makes of a change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from sera_plugin.config import SeraConfig, parse_block
from sera_plugin.data.held_out import held_out_count, held_out_rows, split
from sera_plugin.data.pairs import OfflinePairs
from sera_plugin.runtime.errors import SeraConfigError
from sera_plugin.training.changes import compare

IDS = [f"{n:024x}" for n in range(60)]
KEY = "sera.bootstrap.guard.held_out"


def config(held_out: Any = "auto", **block: Any) -> SeraConfig:
    bootstrap = {"guard": {"held_out": held_out}, **block.pop("bootstrap", {})}
    found = parse_block({"bootstrap": bootstrap, **block})
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("asked", "pairs", "count"),
    [
        ("auto", 639, 0),
        ("auto", 640, 32),
        ("auto", 1_000, 50),
        ("auto", 60_000, 128),
        (0, 60_000, 0),
        (0.1, 64, 6),
        (0.5, 7, 3),
        (20, 64, 20),
        (32, 64, 32),
    ],
)
def test_how_many(asked: Any, pairs: int, count: int) -> None:
    assert held_out_count(config(asked), pairs, None) == count


def test_none_where_there_are_evaluation_pairs() -> None:
    evaluation = Dataset.from_dict({"prompt": ["x"]})
    for given in (evaluation, {"mine": evaluation}):
        assert held_out_count(config(16), 1_000, given) == 0
    assert held_out_count(config(16), 1_000, evaluation.select([])) == 16


@pytest.mark.parametrize(
    "block",
    [
        {"bootstrap": {"guard": False}},
        {"bootstrap": {"guard": {"enabled": False}}},
        {"bootstrap": {"fraction": 0}},
        {"bootstrap": {"judge": "package.module:judge", "judge_mode": "replace"}},
        {"preset": "paper", "bootstrap": {}},
        {"preset": "select", "bootstrap": {}},
        {"preset": "contrast", "bootstrap": {}},
    ],
)
def test_auto_holds_out_none_where_the_guard_does_not_decide(block: dict[str, Any]) -> None:
    found = parse_block(block)
    assert found is not None
    assert held_out_count(found, 10_000, None) == 0


def test_a_number_counts_without_the_guard_but_not_without_reviews() -> None:
    assert held_out_count(config(16, bootstrap={"fraction": 0}), 1_000, None) == 16
    off = {"guard": {"enabled": False, "held_out": 16}}
    assert held_out_count(config(bootstrap=off), 1_000, None) == 16
    plain = config(16, selection=False, bootstrap={"fraction": 0, "guard": {"held_out": 16}})
    assert not plain.reviews
    assert held_out_count(plain, 1_000, None) == 0


def test_more_than_half_is_refused_in_a_sentence() -> None:
    with pytest.raises(SeraConfigError) as error:
        held_out_count(config(33), 64, None)
    assert str(error.value).startswith(f"{KEY}: 33 is more than half of the 64 training pairs")


@pytest.mark.parametrize("value", [0.6, -1, "some", True, [1], 1.5, float("nan"), 2**40])
def test_bad_values_are_refused_in_a_sentence(value: Any) -> None:
    with pytest.raises(SeraConfigError) as error:
        config(value)
    assert str(error.value).startswith(f"{KEY}: ")
    assert "it must be auto, a share up to 0.5, or a whole number of pairs" in str(error.value)
    assert "\n" not in str(error.value)


def test_which_follows_from_seed_and_id_alone() -> None:
    found = {IDS[row] for row in held_out_rows(IDS, 12, 7)}
    assert len(found) == 12
    assert {IDS[::-1][row] for row in held_out_rows(IDS[::-1], 12, 7)} == found
    assert {IDS[row] for row in held_out_rows(IDS, 12, 8)} != found
    # More are held out by adding to them.
    assert found < {IDS[row] for row in held_out_rows(IDS, 20, 7)}
    rows = held_out_rows(IDS, 12, 7)
    assert (np.diff(rows) > 0).all()


def test_a_pair_that_is_trained_on_in_a_copy_comes_last() -> None:
    copies = [IDS[0], *(f"{IDS[0]}-{n}" for n in range(2, 40))]
    ids = [*copies, *IDS[1:20]]
    for seed in range(5):
        assert not {ids[row] for row in held_out_rows(ids, 19, seed)} & set(copies)
    assert len(held_out_rows(ids, 29, 0)) == 29


def rows(count: int) -> Dataset:
    return Dataset.from_list(
        [
            {
                "prompt": f"ask {i}", "chosen": f"good {i}", "rejected": f"bad {i}",
                "prompt_ids": [0, i], "chosen_ids": [2, 3], "rejected_ids": [4],
            }
            for i in range(count)
        ]
    )  # fmt: skip


def test_both_parts_are_the_whole_and_keep_its_order() -> None:
    dataset = rows(40)
    train, out = split(config(8), dataset, 64, None, 7)
    assert out is not None
    assert (len(train), len(out)) == (32, 8)
    both = [OfflinePairs.of(part, 64).ids for part in (train, out)]
    assert not set(both[0]) & set(both[1])
    assert {*both[0], *both[1]} == set(OfflinePairs.of(dataset, 64).ids)
    assert train["prompt"][:] == sorted(train["prompt"][:], key=lambda text: int(text[4:]))
    assert split(config(0), dataset, 64, None, 7) == (dataset, None)


def settings(held_out: int | None, written: Any = "auto") -> dict[str, Any]:
    return {"held_out": held_out, "sera": config(written).model_dump()}


def test_a_resumed_run_holds_out_what_it_was_started_with() -> None:
    assert not compare(settings(32), settings(32)).unsafe
    (first, *_) = compare(settings(32), settings(None)).unsafe
    assert first.startswith(f"resume: the number of training pairs held out ({KEY}) was 32 and is")
    (only,) = compare(settings(32), settings(32, 32)).unsafe
    assert only.startswith(f"resume: {KEY} was auto and is 32")


def test_a_run_of_a_version_before_the_key_held_out_none() -> None:
    before = settings(None)
    del before["held_out"]
    del before["sera"]["bootstrap"]["guard"]["held_out"]
    for written in ("auto", 0):
        assert not compare(before, settings(None, written)).unsafe
    (only,) = compare(before, settings(32)).unsafe
    assert KEY in only
