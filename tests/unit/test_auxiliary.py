"""LossDiff by hand, and what the auxiliary policy leaves behind."""

from __future__ import annotations

import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from accelerate import Accelerator

from sera_plugin.data.margins import PairLogps
from sera_plugin.review.lossdiff import (
    Auxiliary,
    _own_random_numbers,
    _shards,
    auxiliary_of,
    loss_difference,
)
from sera_plugin.runtime.shards import Origin

IDS = ("a", "b")


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_loss_difference_by_hand() -> None:
    policy, auxiliary = np.array([2.0, -1.0]), np.array([0.0, 3.0])
    found = loss_difference(policy, auxiliary, 0.5, "sigmoid")
    expected = [softplus(-1.0) - math.log(2), softplus(0.5) - softplus(-1.5)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    # The target of IPO is 1/(2β) = 1.
    np.testing.assert_allclose(loss_difference(policy, auxiliary, 0.5, "ipo"), [0.0, 0.0])
    np.testing.assert_allclose(loss_difference(policy, auxiliary, 0.25, "ipo"), [-4.0, 8.0])
    with pytest.raises(ValueError, match="not hinge"):
        loss_difference(policy, auxiliary, 0.5, "hinge")


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        # Margins of the sums: 3 and −1 under the policy, 1 and 2 under the auxiliary policy.
        ("sigmoid", [softplus(-3) - softplus(-1), softplus(1) - softplus(-2)]),
        # Per token, with answers of 2 and 1, and of 1 and 2 tokens; the target is 0.5.
        ("ipo", [(1.5 - 0.5) ** 2 - (0.5 - 0.5) ** 2, (-0.5 - 0.5) ** 2 - (2.0 - 0.5) ** 2]),
    ],
)
def test_difference_joins_by_id(loss: str, expected: list[float]) -> None:
    reference = PairLogps(IDS, np.array([-5.0, -5.0]), np.array([-5.0, -5.0]))
    policy = PairLogps(IDS, np.array([-2.0, -5.0]), np.array([-5.0, -4.0]))
    auxiliary = PairLogps(IDS[::-1], np.array([-3.0, -4.0]), np.array([-5.0, -5.0]))
    lengths: Any = SimpleNamespace(
        ids=IDS, chosen_tokens=np.array([2, 1]), rejected_tokens=np.array([1, 2])
    )
    found = Auxiliary(auxiliary, 1.0, loss).difference(policy, reference, lengths)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def trainer_of(folder: Path, rule: str = "lossdiff_irm", **changes: Any) -> Any:
    args = {
        "seed": 7,
        "learning_rate": 1e-3,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "max_length": 128,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
    }
    return SimpleNamespace(
        accelerator=Accelerator(cpu=True),
        args=SimpleNamespace(**(args | changes)),
        beta=0.1,
        loss_types=["sigmoid"],
        sera=SimpleNamespace(selection=SimpleNamespace(rule=rule)),
        pairs=SimpleNamespace(ids=IDS),
        held_out=SimpleNamespace(pairs={"eval": SimpleNamespace(ids=("x", "y"))}),
        policies=SimpleNamespace(reference_origin=lambda label: Origin(folder, label, "base")),
        store=SimpleNamespace(work=folder),
    )


NO_MODEL: Any = None


def test_other_rules_need_none(tmp_path: Path) -> None:
    assert auxiliary_of(trainer_of(tmp_path, "band"), NO_MODEL, resumed=False) is None


@pytest.mark.parametrize(
    "change",
    [
        {"max_grad_norm": 0.5},
        {"max_length": 64},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        {"weight_decay": 0.1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_resumed_run_reads_what_equal_settings_have_stored(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    shards = _shards(trainer_of(tmp_path))
    assert shards is not None
    shards.write(pa.table({"chosen": [-1.0, -2.0], "rejected": [-3.0, -4.5]}))
    found = auxiliary_of(trainer_of(tmp_path), NO_MODEL, resumed=True)
    assert found is not None
    assert found.logps.ids == IDS
    assert found.logps.chosen.tolist() == [-1.0, -2.0]
    assert found.logps.rejected.tolist() == [-3.0, -4.5]
    with pytest.raises(RuntimeError, match=r"can't resume: .* has no log-probs of the auxiliary"):
        auxiliary_of(trainer_of(tmp_path, **change), NO_MODEL, resumed=True)


def test_the_runs_random_numbers_go_on_as_if_nothing_had_been_drawn(tmp_path: Path) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(torch.rand(1))

    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    draw()
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = draw()
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    with _own_random_numbers(trainer_of(tmp_path)):
        draw()
    assert draw() == expected
