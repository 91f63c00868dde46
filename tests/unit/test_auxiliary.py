"""LossDiff by hand, and what the auxiliary policy leaves behind."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from accelerate import Accelerator

from sera_plugin.data.margins import PairLogps
from sera_plugin.host.facts import Optimization
from sera_plugin.review.lossdiff import (
    Aligner,
    Alignment,
    Auxiliary,
    loss_difference,
    own_random_numbers,
)
from sera_plugin.runtime.shards import REFERENCE, Origin

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


ALIGNMENT = Alignment(
    seed=7,
    beta=0.1,
    loss_types=("sigmoid",),
    optimization=Optimization(learning_rate=1e-3, weight_decay=0.0, max_grad_norm=1.0),
    max_length=128,
    micro_batch=4,
    accumulation=2,
)
NOTHING: Any = None


def aligner(folder: Path, alignment: Alignment = ALIGNMENT) -> Aligner:
    """One whose log-probs are stored already, so that it needs no model."""
    policies: Any = SimpleNamespace(reference_origin=lambda label: origin(folder, label))
    pairs: Any = SimpleNamespace(ids=IDS)
    return Aligner(
        alignment=alignment,
        accelerator=Accelerator(cpu=True),
        policies=policies,
        scorer=NOTHING,
        pairs=pairs,
        evaluation=[],
        evaluation_ids=["x", "y"],
        loss=NOTHING,
    )


def origin(folder: Path, label: str = REFERENCE) -> Origin:
    return Origin(folder, label, "base")


@pytest.mark.parametrize(
    "change",
    [
        {"optimization": Optimization(1e-3, 0.0, 0.5)},
        {"max_length": 64},
        {"micro_batch": 2, "accumulation": 4},
        {"optimization": Optimization(1e-3, 0.1, 1.0)},
    ],
    ids=["max_grad_norm", "max_length", "micro_batch", "weight_decay"],
)
def test_a_resumed_run_reads_what_equal_settings_have_stored(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    shards = aligner(tmp_path).shards(origin(tmp_path))
    assert shards is not None
    shards.write(pa.table({"chosen": [-1.0, -2.0], "rejected": [-3.0, -4.5]}))
    found = aligner(tmp_path).auxiliary(NOTHING, resumed=True)
    assert found.logps.ids == IDS
    assert found.logps.chosen.tolist() == [-1.0, -2.0]
    assert found.logps.rejected.tolist() == [-3.0, -4.5]
    with pytest.raises(RuntimeError, match=r"can't resume: .* has no log-probs of the auxiliary"):
        aligner(tmp_path, replace(ALIGNMENT, **change)).auxiliary(NOTHING, resumed=True)


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
    with own_random_numbers(7, torch.device("cpu")):
        draw()
    assert draw() == expected
