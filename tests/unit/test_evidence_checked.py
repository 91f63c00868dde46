"""Arms of the small world where a hundred labels were checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.evidence.arms import ARMS
from benchmarks.evidence.checked import ARMS as CHECKED
from benchmarks.evidence.checked import COMPARED, COUNT
from benchmarks.evidence.data import data_key
from benchmarks.evidence.pairs import checked
from benchmarks.evidence.regimes import REGIMES
from benchmarks.evidence.runs import Results, Run, Settings
from benchmarks.evidence.study import RESULTS


def rows(count: int) -> list[dict[str, Any]]:
    flips = np.random.default_rng(0).random(count) < 0.4
    return [
        {"prompt": f"p{n}", "chosen": f"c{n}", "rejected": f"r{n}", "flipped": bool(flip)}
        for n, flip in enumerate(flips)
    ]


def test_checked_labels_are_put_right_and_the_others_stay() -> None:
    before = rows(400)
    after = checked(before, 100, seed=3)
    marked = [one for one in after if one["checked"]]
    assert len(marked) == 100
    assert not any(one["flipped"] for one in marked)
    turned = 0
    for old, new in zip(before, after, strict=True):
        sides = (old["chosen"], old["rejected"])
        if new["checked"] and old["flipped"]:
            turned += 1
            sides = sides[::-1]
        else:
            assert new["flipped"] == old["flipped"]
        assert (new["prompt"], new["chosen"], new["rejected"]) == (old["prompt"], *sides)
    assert turned > 20
    assert before == rows(400)
    picks = [one["checked"] for one in after]
    assert picks == [one["checked"] for one in checked(before, 100, seed=3)]
    assert picks != [one["checked"] for one in checked(before, 100, seed=4)]


def test_pairs_alone_have_as_many_updates_or_a_third() -> None:
    regime = REGIMES["on-0.4"]
    every, third = ARMS["checked-alone-all"], ARMS["checked-alone-third"]
    assert every.updates(regime) == ARMS["dpo"].updates(regime)
    assert third.updates(regime) == round(every.updates(regime) / 3)
    # A hundred pairs are four batches; an epoch of all of them is 63.
    assert every.rounds(regime) >= every.updates(regime) / 4
    assert ARMS["checked-dpo"].rounds(regime) == ARMS["dpo"].rounds(regime)


@pytest.mark.parametrize("arm", CHECKED)
def test_every_arm_sees_the_same_hundred(arm: str) -> None:
    found = CHECKED[arm]
    if not found.among:
        assert found.checked == COUNT
    block = found.sera or {}
    assert block.get("selection", {}).get("trusted", "") == (
        "checked" if arm == "checked-contrast" else ""
    )


def test_their_data_and_results_are_their_own() -> None:
    runs = {arm: Run("on-0.4", arm, 12, "report", 5e-4, 0.1) for arm in (*CHECKED, "dpo-new")}
    plain = data_key(runs["dpo-new"])
    assert plain not in {data_key(runs[arm]) for arm in CHECKED}
    assert data_key(runs["checked-dpo"]) == data_key(runs["checked-contrast"])
    assert data_key(runs["checked-dpo"]) != data_key(runs["checked-alone-all"])
    settings = Settings()
    assert len({run.key(settings) for run in runs.values()}) >= len(runs) - 1
    assert runs["checked-dpo"].key(settings) != runs["dpo-new"].key(settings)


def test_what_was_stored_before_is_still_found() -> None:
    found = Results(RESULTS).found.values()
    stored = next(one for one in found if one["regime"] == "on-0.4" and one["arm"] == "contrast")
    names = ("regime", "arm", "seed", "split", "rate", "beta")
    assert Run(*(stored[name] for name in names)).key(Settings()) == stored["key"]


def test_what_is_compared_is_reported() -> None:
    for arm, base in COMPARED:
        assert ARMS[arm].fresh
        assert ARMS[base].fresh
        assert ARMS[arm].note
