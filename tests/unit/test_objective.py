"""The chain of terms: bases by hand and against the host's own loss, terms of one's own."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import slow_reference as slow
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trainers import round_trainer

from sera_plugin.config import LossTerm, parse_block
from sera_plugin.data.rounds import ROW_KEY
from sera_plugin.host.round_trainer import RoundTrainer
from sera_plugin.runtime.errors import SeraConfigError, TermError
from sera_plugin.training.objective import BASES, Step, base_of
from sera_plugin.training.terms.term import (
    Objective,
    Term,
    function_term,
    noting,
    settings_of,
    term_class,
)

PAIRS, BETA, SMOOTHING = 6, 0.5, 0.2


def one_pair(loss: str, **changes: Any) -> float:
    """Log-ratios 1.2 of 4 tokens and −0.4 of 2; β = 0.5."""
    policy = torch.tensor([[-8.8, -6.4]], dtype=torch.float64)
    reference = torch.tensor([[-10.0, -6.0]], dtype=torch.float64)
    base = base_of(loss, SMOOTHING)
    step = Step.of(["a"], policy, reference, torch.tensor([[4, 2]]), BETA, base)
    changed = {name: torch.tensor([v], dtype=torch.float64) for name, v in changes.items()}
    return float(replace(step, **changed).loss())


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


LOSSES = {
    "sigmoid": softplus(-0.8),
    "hinge": 1 - 0.8,
    "ipo": (0.3 + 0.2 - 1) ** 2,
    "robust": (0.8 * softplus(-0.8) - 0.2 * softplus(0.8)) / 0.6,
}


@pytest.mark.parametrize("loss", BASES)
def test_one_pair_in_numbers(loss: str) -> None:
    assert one_pair(loss) == pytest.approx(LOSSES[loss])
    assert one_pair(loss, weight=2.5) == pytest.approx(2.5 * LOSSES[loss])


def test_shift_flip_and_extra_in_numbers() -> None:
    assert one_pair("sigmoid", shift=-0.5) == pytest.approx(softplus(-0.3))
    assert one_pair("ipo", shift=-0.25) == pytest.approx((0.25 - 1) ** 2)
    assert one_pair("sigmoid", flip=1.0) == pytest.approx(softplus(0.8))
    assert one_pair("sigmoid", flip=0.25) == pytest.approx(
        0.75 * softplus(-0.8) + 0.25 * softplus(0.8)
    )
    assert one_pair("hinge", extra=3.0) == pytest.approx(3.2)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31 - 1), st.sampled_from(BASES))
def test_gradients_are_those_of_finite_differences(seed: int, loss: str) -> None:
    draw = np.random.default_rng(seed)
    policy = torch.tensor(draw.normal(-20, 2, (3, 2)), requires_grad=True)
    reference = torch.tensor(draw.normal(-20, 2, (3, 2)))
    tokens = torch.tensor(draw.integers(1, 9, (3, 2)))
    weight, flip = torch.tensor(draw.uniform(0, 2, (2, 3)))

    def total(values: torch.Tensor) -> torch.Tensor:
        step = Step.of("abc", values, reference, tokens, 0.1, base_of(loss, SMOOTHING))
        return replace(step, weight=weight, flip=flip / 2, shift=weight).loss()

    assert torch.autograd.gradcheck(total, (policy,), eps=1e-6, atol=1e-5)


# --- the host's own loss ------------------------------------------------------------------------


@pytest.fixture(scope="module", params=BASES)
def trainer(request: pytest.FixtureRequest, llama: Path, tmp_path_factory: Any) -> RoundTrainer:
    folder = tmp_path_factory.mktemp("trainer")
    return round_trainer(
        llama, folder, request.param, pairs=PAIRS, beta=BETA, smoothing=SMOOTHING, max_length=128
    )


@pytest.fixture
def batch(trainer: RoundTrainer) -> dict[str, Any]:
    """Pairs with invented reference log-probs: log-ratios of some nats, of either sign."""
    rows = [dict(row) for row in trainer.train_dataset]
    shifts = np.random.default_rng(5).normal(scale=2.0, size=(PAIRS, 2))
    for number, (row, shift) in enumerate(zip(rows, shifts, strict=True)):
        pair = slow.Pair(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"])
        row["ref_chosen_logps"] = slow.logp(trainer.model, pair.prompt, pair.chosen) + shift[0]
        row["ref_rejected_logps"] = slow.logp(trainer.model, pair.prompt, pair.rejected) + shift[1]
        row[ROW_KEY] = str(number)
    return trainer.data_collator(rows)


def rounds_with(*terms: Term, trainer: RoundTrainer) -> Any:
    base = base_of(trainer.loss_types[0], trainer.label_smoothing)
    return SimpleNamespace(objective=Objective(base, BETA, terms), notes_logps=False, packed=None)


class Halved(Term):
    def __call__(self, step: Step, prepared: Any) -> Step:
        return noting(replace(step, weight=step.weight / 2), half__weight=step.weight / 2)


def halved() -> Term:
    nothing: Any = None
    return Halved(nothing, nothing)


def found(trainer: RoundTrainer, batch: dict[str, Any]) -> tuple[float, list[torch.Tensor]]:
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    return float(loss.detach()), [p.grad.clone() for p in trainer.model.parameters()]


def test_without_a_term_loss_and_gradient_are_the_hosts(
    trainer: RoundTrainer, batch: dict[str, Any]
) -> None:
    trainer.rounds = SimpleNamespace(objective=None, notes_logps=False, packed=None)  # type: ignore[assignment]
    loss, slopes = found(trainer, batch)
    trainer.rounds = rounds_with(trainer=trainer)
    own, own_slopes = found(trainer, batch)
    assert own == pytest.approx(loss, abs=1e-6)
    size = max(float(s.abs().max()) for s in slopes)
    for one, other in zip(slopes, own_slopes, strict=True):
        assert float((one - other).abs().max()) <= 1e-6 * size
    trainer.rounds = rounds_with(halved(), trainer=trainer)
    assert found(trainer, batch)[0] == pytest.approx(loss / 2, abs=1e-6)


def test_what_the_host_logs_stays_as_it_is(trainer: RoundTrainer, batch: dict[str, Any]) -> None:
    logged = []
    for terms in ((), (halved(), halved())):
        trainer._metrics["train"].clear()
        trainer.rounds = rounds_with(*terms, trainer=trainer)
        found(trainer, batch)
        logged.append({name: list(values) for name, values in trainer._metrics["train"].items()})
    assert logged[1].pop("half/weight") == [0.25]
    for entry in logged:
        entry.pop("num_tokens")
    assert logged[0] == logged[1]
    assert 0 < logged[0]["rewards/accuracies"][0] < 1


def test_evaluation_rows_have_the_hosts_loss(trainer: RoundTrainer, batch: dict[str, Any]) -> None:
    plain = {name: value for name, value in batch.items() if name != ROW_KEY}
    trainer.rounds = rounds_with(halved(), trainer=trainer)
    with_key = float(trainer.compute_loss(trainer.model, dict(batch)).detach())
    without = float(trainer.compute_loss(trainer.model, plain).detach())
    assert with_key == pytest.approx(without / 2, abs=1e-6)


# --- terms of one's own -------------------------------------------------------------------------


def step() -> Step:
    policy = torch.tensor([[-3.0, -4.0], [-5.0, -4.0]], requires_grad=True)
    reference = torch.tensor([[-4.0, -4.0], [-4.0, -4.0]])
    tokens = torch.tensor([[2, 2], [3, 4]])
    return Step.of(["a", "b"], policy, reference, tokens, 0.1, base_of("sigmoid"))


def own(function: Any, **keys: Any) -> Term:
    nothing: Any = None
    made = function_term("mine:term", function)
    return made(made.Settings.model_validate(keys), nothing)


def test_a_function_is_a_term() -> None:
    term = own(lambda s, by: replace(s, shift=s.shift + by), by=0.5)
    assert term(step(), None).shift.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda s: None, "returned NoneType; it must return a Step."),
        (lambda s: replace(s, weight=s.weight[:1]), "returned a weight of (1,); it must have the"),
        (lambda s: replace(s, shift=0.5), "returned a shift of float; it must have the shape"),
        (lambda s: replace(s, shift=s.shift / 0), "returned a shift that is not a finite number."),
        (lambda s: replace(s, policy=s.policy * math.inf), "returned a policy that is not a"),
        (lambda s: s.nothing, "raised AttributeError"),
    ],
)
def test_a_term_that_breaks_its_contract(function: Any, words: str) -> None:
    with pytest.raises(TermError, match=r"^sera\.loss: mine:term ") as error:
        own(function)(step(), None)
    assert words in str(error.value)


def test_settings_that_a_function_does_not_take() -> None:
    nothing: Any = None
    made = function_term("mine:term", lambda s, by: s)
    with pytest.raises(SeraConfigError, match=r"^sera\.loss: mine:term can't be called"):
        made.check(made.Settings.model_validate({"to": 1}), nothing, nothing)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (3, "sera.loss: 3 is not allowed; it must be a list of terms."),
        (["refin"], "sera.loss: 'refin' is unknown; did you mean refine?"),
        ([3], "sera.loss: 3 is not a term"),
        ([{"refine": {}, "other": {}}], "sera.loss: {'refine': {}, 'other': {}} is not a term"),
        ([{"refine": 3}], "sera.loss.refine: 3 is not allowed; it must be a block of keys."),
        (["refine", {"refine": {}}], "sera.loss: refine is there twice"),
    ],
)
def test_bad_lists_of_terms(loss: Any, words: str) -> None:
    with pytest.raises(SeraConfigError) as error:
        parse_block({"loss": loss})
    assert str(error.value).startswith(words)


def test_bad_settings_name_their_key() -> None:
    for keys, words in (
        ({"weight": -1}, "sera.loss.refine.weight: -1 is not allowed; it must be a number from 0."),
        ({"weigth": 1}, "sera.loss.refine.weigth: 1 is not a key of SeRA; did you mean weight?"),
    ):
        with pytest.raises(SeraConfigError) as error:
            settings_of(LossTerm("refine", keys))
        assert str(error.value) == words


def test_the_block_refine_is_the_term() -> None:
    block = parse_block({"refine": {"weight": 0.3}})
    listed = parse_block({"loss": [{"refine": {"weight": 0.3}}]})
    assert block is not None
    assert listed is not None
    assert [settings_of(term) for term in block.terms] == [settings_of(t) for t in listed.terms]
    assert block.refinement == listed.refinement
    with pytest.raises(SeraConfigError, match=r"are the same; write one of them"):
        parse_block({"refine": {}, "loss": ["refine"]})
    assert term_class("refine").bases == ("sigmoid", "ipo")
