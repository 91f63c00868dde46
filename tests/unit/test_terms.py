"""The terms of the loss but ``refine``: by hand, gradients, what is not known, bad settings."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset

from sera_plugin.config import LossTerm, SeraConfig, parse_block
from sera_plugin.config.parts import TERMS
from sera_plugin.data.margins import PairLogps
from sera_plugin.data.pairs import OfflinePairs
from sera_plugin.data.rounds import RoundDataset, RoundRow
from sera_plugin.data.store import RunStore
from sera_plugin.data.tables import ReviewTable, RoundRecord
from sera_plugin.review.calibration import Calibration
from sera_plugin.runtime.errors import SeraConfigError, StoreError
from sera_plugin.training.objective import BASES, Step, base_of
from sera_plugin.training.state import TERMS_FILE, restore_terms, save_terms
from sera_plugin.training.terms.term import (
    Objective,
    Opening,
    Term,
    TermParts,
    settings_of,
    term_class,
)
from sera_plugin.training.terms.uncertainty import over_members, over_signals

BETA = 0.5
IDS = ("a", "b", "c", "d")
DATA = Dataset.from_dict(
    {
        "prompt_ids": [[1]] * 4,
        "chosen_ids": [[2, 3, 4, 5]] * 4,
        "rejected_ids": [[6, 7]] * 4,
        "score_chosen": [5.0, 3.0, 2.0, None],
        "score_rejected": [3.0, 1.0, 3.0, 1.0],
        "spread": [0.0, 1.0, 3.0, None],
        "members": [[1.0, 3.0], [2.0, 2.0], [0.0, 4.0, 8.0], [1.0]],
        "words": ["x", "y", "z", "x"],
    }
)
PAIRS = OfflinePairs(
    DATA, IDS, {i: n for n, i in enumerate(IDS)}, *(np.full(4, n) for n in (1, 4, 2)), given=DATA
)
ROWS = [
    RoundRow("a/offline", "a"),
    RoundRow("b/offline", "b", flipped=True),
    RoundRow("c/offline", "c"),
    RoundRow("d/offline", "d"),
    RoundRow("a/policy", "a", (8, 9), (6, 7), -3.0, -4.0, False, "policy", "offline_rejected"),
    RoundRow("b/policy", "b", (8, 9), (6,), -3.0, -4.0, False, "policy", "policy"),
    RoundRow("c/policy", "c", (8, 9), (6,), -3.0, -4.0, False, "offline_chosen", "reference"),
]
KEYS = [row.key for row in ROWS]


def table(margin: Any, **signals: Any) -> ReviewTable:
    values, nothing = np.asarray(margin, dtype=np.float64), np.zeros(4)
    logps = PairLogps(IDS, nothing, nothing)
    return ReviewTable(
        IDS, logps, logps, values, values, np.ones(4, bool), values, np.zeros(4, bool),
        np.ones(4, np.int32), {name: np.asarray(v, np.float64) for name, v in signals.items()},
    )  # fmt: skip


def made(name: str, folder: Path = Path(), base: str = "sigmoid", **keys: Any) -> Term:
    """A term as a run makes it, for the four pairs above."""
    parts: Any = SimpleNamespace(
        config=SeraConfig(),
        host=SimpleNamespace(train=DATA, accelerator=Accelerator(cpu=True)),
        pairs=PAIRS,
        store=RunStore(folder),
        base=base_of(base),
    )
    given: TermParts = parts
    return term_class(name)(settings_of(LossTerm(name=name, settings=keys)), given)


def opened(term: Term, review: ReviewTable | None = None, number: int = 2) -> Term:
    dataset = RoundDataset(ROWS, DATA, PAIRS.position, PairLogps(IDS, np.zeros(4), np.zeros(4)))
    term.open_round(Opening(number, dataset, review, resumed=False))
    return term


RATIOS = np.array([[1.2, -0.4], [0.5, 0.3], [-0.2, 0.6], [0.1, 0.0], [0.7, -0.1], [0.4, 0.8],
                   [0.2, 0.9]])  # fmt: skip
POLICY = np.array([[-10.0, -6.0]] * 7) + RATIOS


def step(base: str = "sigmoid", **changes: Any) -> Step:
    """Four tokens and two, πref −10 and −6 nats, log-ratios as above, β = 0.5."""
    policy = torch.tensor(POLICY, requires_grad=True)
    tokens = torch.tensor([[4, 2]] * 7)
    reference = torch.tensor(POLICY - RATIOS)
    whole = Step.of(KEYS, policy, reference, tokens, BETA, base_of(base, 0.1))
    return replace(whole, **{name: torch.tensor(v).double() for name, v in changes.items()})


def value(of: Step) -> float:
    return float(of.loss().detach())


def losses(margins: Any) -> np.ndarray:
    return np.log1p(np.exp(-np.asarray(margins)))


MARGINS = BETA * (RATIOS[:, 0] - RATIOS[:, 1])


# --- entropy ------------------------------------------------------------------------------------


def test_entropy_is_the_papers_formula() -> None:
    found = made("entropy", alpha=0.8)(step(), None)
    difference = POLICY[:, 0] - POLICY[:, 1]
    assert difference[0] == pytest.approx(-8.8 - -6.4)
    h = 0.8 * BETA * difference - BETA * (-10.0 - -6.0)
    assert h[0] == pytest.approx(-0.96 + 2.0)
    assert (found.margin + found.shift).tolist() == pytest.approx(h.tolist())
    assert value(found) == pytest.approx(losses(h).mean())
    assert torch.equal(found.policy, step().policy), "other terms see another policy"


def test_entropy_per_token() -> None:
    found = made("entropy", alpha=0.5)(step("ipo"), None)
    assert found.shift[0].item() == pytest.approx(-0.5 * (-8.8 / 4 - -6.4 / 2))


def test_gradient_of_entropy_in_closed_form() -> None:
    """−σ(−h)·α·β for the chosen answer: α scales what a pair pulls with."""
    given = step()
    found = made("entropy", alpha=0.8)(given, None)
    found.loss().backward()
    h = (found.margin + found.shift).detach().numpy()
    slope = -0.8 * BETA / (1 + np.exp(h)) / 7
    assert given.policy.grad is not None
    assert given.policy.grad.numpy() == pytest.approx(np.stack([slope, -slope], axis=1))


# --- anchor -------------------------------------------------------------------------------------


def test_anchor_by_hand() -> None:
    found = made("anchor", alpha=0.3)(step(), None)
    assert found.noted["anchor/nll"][0].item() == pytest.approx(8.8 / 4)
    expected = losses(MARGINS).mean() + 0.3 * np.mean(-POLICY[:, 0] / 4)
    assert value(found) == pytest.approx(expected)


def test_anchor_holds_the_answer_that_is_believed() -> None:
    weight, flip = [2.0, 0.0, 1, 1, 1, 1, 1], [0.25, 0.0, 1, 0, 0, 0, 0]
    found = made("anchor", alpha=1.0)(step(weight=weight, flip=flip), None)
    chosen, rejected = -POLICY[:, 0] / 4, -POLICY[:, 1] / 2
    better = (1 - np.array(flip)) * chosen + np.array(flip) * rejected
    assert float(found.extra.detach()) == pytest.approx(np.mean(weight * better))


# --- offset -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "offsets"),
    [
        # Differences 2, 2 (flipped: −2), −1 and unknown; bootstrapped pairs have none.
        ({"alpha": 0.5}, [0.5 * math.log(2), 0, 0, 0, 0, 0, 0]),
        ({"function": "identity", "alpha": 0.5}, [1.0, -1.0, -0.5, 0, 0, 0, 0]),
    ],
)
def test_offset_by_hand(keys: dict[str, Any], offsets: list[float]) -> None:
    found = opened(made("offset", **keys))(step(), None)
    assert found.shift.tolist() == pytest.approx([-offset for offset in offsets])
    assert value(found) == pytest.approx(losses(MARGINS - offsets).mean())


def test_flipped_pairs_whose_scores_agree_have_an_offset() -> None:
    term = made("offset")
    term._scores = np.array([2.0, -3.0, 1.0, 1.0])  # type: ignore[attr-defined]
    assert opened(term)(step(), None).shift[1].item() == pytest.approx(-math.log(3))


# --- explore ------------------------------------------------------------------------------------


def test_explore_by_hand() -> None:
    found = opened(made("explore", alpha=0.01))(step(), None)
    own = [0, 0, 0, 0, 0.7, (0.4 + 0.8) / 2, 0]
    assert found.noted["explore/log_ratio"].tolist() == pytest.approx(own)
    expected = losses(MARGINS).mean() + 0.01 * BETA * np.mean(own)
    assert value(found) == pytest.approx(expected)


def test_gradient_of_explore_is_on_the_policys_answers_alone() -> None:
    given = step()
    opened(made("explore", alpha=0.01))(given, None).extra.backward()
    assert given.policy.grad is not None
    slope = 0.01 * BETA / 7
    expected = np.zeros((7, 2))
    expected[4, 0], expected[5] = slope, slope / 2
    assert given.policy.grad.numpy() == pytest.approx(expected)


# --- posterior ----------------------------------------------------------------------------------

SCORES = np.array([2.0, -1.0, np.nan, 0.5])


def right() -> np.ndarray:
    calibration = Calibration.fit(SCORES)
    assert calibration is not None
    return calibration.posterior(SCORES)


def test_posterior_as_flips() -> None:
    found = opened(made("posterior", signal="s", use="flip"), table(np.zeros(4), s=SCORES))(
        step(flip=[0.0, 0, 0, 0.25, 0, 0, 0]), None
    )
    a, b, _, d = right()
    # b has changed places, of c nothing is known, d was flipped by a quarter before.
    expected = [1 - a, b, 0, 0.25 * d + 0.75 * (1 - d), 0, 0, 0]
    assert found.flip.tolist() == pytest.approx(expected)
    assert found.weight.tolist() == [1.0] * 7


def test_posterior_as_weights() -> None:
    found = opened(made("posterior", signal="s"), table(np.zeros(4), s=SCORES))(step(), None)
    a, b, _, d = right()
    known = np.maximum(0, 2 * np.array([a, 1 - b, d]) - 1)
    expected = [*(known / known.mean()), *[1.0] * 4]
    order = [0, 1, 3, 2, 4, 5, 6]
    assert found.weight[order].tolist() == pytest.approx(expected)
    assert found.weight[[0, 1, 3]].mean().item() == pytest.approx(1)


def test_posterior_of_the_margin_and_of_nothing() -> None:
    by_margin = opened(made("posterior", use="flip"), table(SCORES))(step(), None)
    assert by_margin.flip[0].item() == pytest.approx(1 - right()[0])
    for review in (None, table(np.zeros(4))):
        found = opened(made("posterior"), review)(step(), None)
        assert torch.equal(found.weight, step().weight)
        assert torch.equal(found.flip, step().flip)


def test_repo_by_hand() -> None:
    """Equations 4, 5 and 7 of the paper, with η = 0.8 and its α = 0.25."""
    term = made("posterior", source="on_the_fly", use="flip", reliability=0.8, momentum=0.25)
    given = step()
    found = opened(term)(given, None)
    p = 1 / (1 + np.exp(-MARGINS))
    w = p * 0.8 / (p * 0.8 + (1 - p) * 0.2)
    assert (1 - found.flip).tolist() == pytest.approx(w.tolist())
    assert value(found) == pytest.approx(np.mean(-w * np.log(p) - (1 - w) * np.log(1 - p)))
    assert term.state() == {"reliability": pytest.approx(0.75 * 0.8 + 0.25 * w.mean())}
    found.loss().backward()
    assert given.policy.grad is not None
    slope = BETA * (p - w) / 7
    assert given.policy.grad.numpy() == pytest.approx(np.stack([slope, -slope], axis=1))
    again = opened(term)(step(), None)
    assert float(again.flip.sum()) != pytest.approx(float(found.flip.sum()), abs=1e-6)


def test_repo_of_another_base() -> None:
    """Eq. 2: σ of the difference of the losses, here (m + c)² − (m − c)² = 4·c·m."""
    term = made("posterior", base="ipo", source="on_the_fly", use="flip")
    given = step("ipo")
    p = torch.sigmoid(4 / (2 * BETA) * given.margin.detach())
    w = p * 0.9 / (p * 0.9 + (1 - p) * 0.1)
    assert (1 - opened(term)(given, None).flip).tolist() == pytest.approx(w.tolist())


def test_a_checkpoint_keeps_the_state_of_terms(tmp_path: Path) -> None:
    def objective() -> Objective:
        terms = made("anchor"), made("posterior", source="on_the_fly", use="flip")
        return Objective(base_of("sigmoid"), BETA, terms)

    before, after = objective(), objective()
    opened(before.terms[1])(step(), None)
    assert before.terms[1].state() != after.terms[1].state()
    with pytest.raises(StoreError, match=r"^can't resume: .*sera_terms\.json is missing"):
        restore_terms(after, tmp_path)
    save_terms(before, tmp_path)
    restore_terms(after, tmp_path)
    assert after.terms[1].state() == before.terms[1].state()
    (tmp_path / TERMS_FILE).write_text("{}")
    with pytest.raises(StoreError, match=r"sera_terms\.json is damaged"):
        restore_terms(after, tmp_path)
    (tmp_path / TERMS_FILE).unlink()
    without = Objective(base_of("sigmoid"), BETA, (made("anchor"),))
    save_terms(without, tmp_path)
    restore_terms(without, tmp_path)
    assert not list(tmp_path.iterdir())


# --- uncertainty --------------------------------------------------------------------------------


def test_uncertainty_of_a_column() -> None:
    u = np.array([0, 1, 3, 0, 0, 0, 0]) / (4 / 3)
    lower = opened(made("uncertainty", spread="column", column="spread", weight=0.2))
    assert lower(step(), None).shift.tolist() == pytest.approx((0.2 * u).tolist())
    assert value(lower(step(), None)) == pytest.approx(losses(MARGINS + 0.2 * u).mean())
    keys = {"spread": "column", "column": "spread", "weight": 0.2, "penalty": "damp"}
    damped = opened(made("uncertainty", **keys))(step(), None)
    assert damped.weight.tolist() == pytest.approx(np.exp(-0.2 * u).tolist())


@pytest.mark.parametrize("penalty", ["lower", "damp"])
def test_uncertain_pairs_pull_less(penalty: str) -> None:
    slopes = []
    for weight in (0.0, 0.5):
        given = step()
        keys = {"spread": "column", "column": "spread", "penalty": penalty, "weight": weight}
        opened(made("uncertainty", **keys))(given, None).loss().backward()
        assert given.policy.grad is not None
        slopes.append(given.policy.grad[:, 0].abs())
    assert (slopes[1][1:3] < slopes[0][1:3]).all()
    assert slopes[1][[0, 3, 4, 5, 6]] == pytest.approx(slopes[0][[0, 3, 4, 5, 6]])


def test_uncertainty_over_reviews(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    term = made("uncertainty", tmp_path, weight=1.0)
    reviews = [table([1.0, 2.0, 3.0, np.nan]), table([3.0, 2.0, 7.0, 1.0])]
    assert not opened(term, None, 1)(step(), None).shift.any()
    for number, review in enumerate(reviews, 2):
        store.write_round(number, RoundRecord(review, list(ROWS)), [], {})
        shift = opened(term, review, number)(step(), None).shift
        assert shift.any() == (number == 3)
    # Deviations 1, 0, 2 and, for it was measured once, 0.
    assert shift.tolist() == pytest.approx([1 / 0.75, 0, 2 / 0.75, 0, 0, 0, 0])


def test_uncertainty_over_signals() -> None:
    review = table([1.0, 1.0, -1.0, 1.0], other=[3.0, -3.0, -3.0, np.nan])
    found = over_signals(review, ["margin", "other"])
    assert found[:3] == pytest.approx([0, 1, 0])
    assert np.isnan(found[3])
    term = made("uncertainty", spread="signals", signals=["margin", "other"], weight=1.0)
    assert opened(term, review)(step(), None).shift.tolist() == pytest.approx([0, 3, *[0] * 5])


def test_uncertainty_of_an_ensemble() -> None:
    assert over_members(DATA["members"])[:3] == pytest.approx([1, 0, math.sqrt(32 / 3)])
    none = over_members([*DATA["members"][3:], *DATA["words"], -1.0, None, []])
    assert np.isnan(none).all()


# --- all ----------------------------------------------------------------------------------------

ALL: dict[str, dict[str, Any]] = {
    "entropy": {"alpha": 0.7},
    "anchor": {"alpha": 0.3},
    "offset": {"function": "identity"},
    "explore": {"alpha": 0.3},
    "posterior": {"use": "flip", "signal": "s"},
    "uncertainty": {"spread": "column", "column": "spread"},
}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", ALL)
def test_gradients_are_those_of_finite_differences(name: str, base: str) -> None:
    term = opened(made(name, base=base, **ALL[name]), table(SCORES, s=SCORES))

    def loss(policy: torch.Tensor) -> torch.Tensor:
        return term(replace(step(base), policy=policy), None).loss()

    given = torch.tensor(POLICY, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (given,), eps=1e-6, atol=1e-6)
    assert float(loss(given).detach()) != pytest.approx(value(step(base)), abs=1e-6)


def test_every_term_says_what_it_is() -> None:
    assert set(TERMS.names) == {*ALL, "refine"}
    for name in TERMS.names:
        found = term_class(name)
        assert found.paper
        assert found.__doc__
        assert all(field.description for field in found.Settings.model_fields.values())


@pytest.mark.parametrize(
    ("term", "sentence"),
    [
        (
            {"entropy": {"alpha": 0}},
            "sera.loss.entropy.alpha: 0 is not allowed; it must be a number above 0.",
        ),
        ({"anchor": {"alpha": -1}}, "sera.loss.anchor.alpha: -1 is not allowed; it must be"),
        ({"explore": {"alpha": "x"}}, "sera.loss.explore.alpha: 'x' is not allowed; it must be"),
        ({"offset": {"function": "sqrt"}}, "sera.loss.offset.function: 'sqrt' is not allowed"),
        ({"posterior": {"signl": "s"}}, "sera.loss.posterior.signl: 's' is not a key of SeRA"),
        ({"posterior": {"signal": "s"}}, "sera.loss.posterior.signal: s is not measured; allowed"),
        ({"posterior": {"reliability": 1}}, "sera.loss.posterior.reliability: 1 is not allowed"),
        (
            {"posterior": {"source": "on_the_fly"}},
            "sera.loss.posterior.use: weight can't be used with source: on_the_fly",
        ),
        (
            {"uncertainty": {"spread": "signals"}},
            "sera.loss.uncertainty.signals: [] can't be used with spread: signals",
        ),
        (
            {"uncertainty": {"spread": "signals", "signals": ["margin", "s"]}},
            "sera.loss.uncertainty.signals: s is not measured; allowed are margin, length, and",
        ),
        (
            {"uncertainty": {"spread": "column"}},
            "sera.loss.uncertainty.column: null can't be used with spread: column",
        ),
        (
            {"uncertainty": {"column": "spread"}},
            "sera.loss.uncertainty.column: spread can't be used with spread: reviews",
        ),
    ],
)
def test_bad_settings(term: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SeraConfigError) as error:
        checked({"loss": [term], "selection": {"signals": ["length"]}})
    assert str(error.value).startswith(sentence)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("block", "sentence"),
    [
        ({"loss": ["explore"], "bootstrap": False}, "sera.loss.explore needs answers of the"),
        (
            {"loss": ["explore"], "bootstrap": {"sampler": "reference"}},
            "sera.loss.explore needs answers of the policy's own, and sera.bootstrap.sampler",
        ),
        (
            {"loss": ["posterior"], "bootstrap": False, "selection": False},
            "sera.loss.posterior.signal needs reviews, and this run has none",
        ),
        (
            {"loss": ["uncertainty"], "bootstrap": False, "selection": False},
            "sera.loss.uncertainty.spread: reviews needs reviews, and this run has none",
        ),
    ],
)
def test_runs_that_do_not_have_what_a_term_needs(block: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SeraConfigError) as error:
        checked(block)
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize(
    ("term", "data", "sentence"),
    [
        (
            "offset",
            DATA.remove_columns("score_rejected"),
            "sera.loss.offset needs scores, and sera.selection.external.rejected: score_rejected",
        ),
        (
            {"uncertainty": {"spread": "column", "column": "sprd"}},
            DATA,
            "sera.loss.uncertainty.column: sprd is no column of the training pairs, which have",
        ),
        (
            {"uncertainty": {"spread": "column", "column": "words"}},
            DATA,
            "sera.loss.uncertainty.column: words holds neither numbers from 0 nor lists of scores.",
        ),
    ],
)
def test_data_that_does_not_have_what_a_term_needs(term: Any, data: Dataset, sentence: str) -> None:
    with pytest.raises(SeraConfigError) as error:
        checked({"loss": [term]}, data)
    assert str(error.value).startswith(sentence)


def checked(block: dict[str, Any], data: Dataset = DATA) -> None:
    """What a run checks of the terms of a ``sera:`` block before it loads a model."""
    config = parse_block(block)
    assert config is not None
    for term in config.terms:
        made_of = term_class(term.name)
        made_of.check(settings_of(term), config, {})
        made_of.check_data(settings_of(term), config, {}, data, None)
