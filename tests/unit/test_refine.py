"""Δ by hand and by a slow loop in float64; its place in the loss, its gradient, what is stored."""

from __future__ import annotations

import math
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import assets
import numpy as np
import pytest
import slow_reference as slow
import torch
from accelerate import Accelerator
from axolotl.utils.dict import DictDefault
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from sera_plugin.config import ExternalConfig, RefineConfig, SeraConfig
from sera_plugin.data.ids import content_id
from sera_plugin.data.margins import PairLogps
from sera_plugin.data.pairs import OfflinePairs
from sera_plugin.data.rounds import RoundDataset, RoundRow, full_round
from sera_plugin.data.store import RunStore
from sera_plugin.runtime.shards import Origin
from sera_plugin.scoring.quality_pairs import QualityCompletions, QualityPairs
from sera_plugin.scoring.quality_prompt import QualityWriter
from sera_plugin.scoring.scorer import Scorer, inference
from sera_plugin.training.objective import Step, base_of
from sera_plugin.training.refinement import bounded, delta_statistics, quality_margin
from sera_plugin.training.terms.refine import Refine, runs_away
from sera_plugin.training.terms.term import Opening, TermParts

PAIRS, BETA, P = 6, 0.5, "be brave and kind"


def delta_of(quality: list[float], baseline: list[float], tokens: list[int], **how: Any) -> float:
    how = {"per_token": False} | how
    given = torch.tensor([quality]), torch.tensor([baseline]), torch.tensor([tokens])
    return float(quality_margin(*given, 0.5, **how))


def test_delta_by_hand() -> None:
    """log πθ −10 and −12, log πref −11 and −11.5: log-ratios 1 and −0.5, of 4 and 2 tokens."""
    assert delta_of([-10, -12], [-11, -11.5], [4, 2]) == 0.5 * (1 - -0.5)
    per_token = delta_of([-10, -12], [-11, -11.5], [4, 2], per_token=True)
    assert per_token == pytest.approx(0.5 * (1 / 4 - -0.5 / 2))
    assert delta_of([-10, -12], [-10, -12], [4, 2]) == 0
    assert delta_of([-1, -3], [0, 0], [0, 3], per_token=True) == pytest.approx(0.5 * (-1 + 1))


def test_bound() -> None:
    delta = torch.tensor([-8.0, 1.0, 8.0])
    assert bounded(delta, 0.5, None).tolist() == [-4.0, 0.5, 4.0]
    assert bounded(delta, 0.5, 1.5).tolist() == [-1.5, 0.5, 1.5]


def test_statistics_by_hand() -> None:
    found = delta_statistics([1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 1.0, 2.0], [1.0, math.nan, 2.0, 3.0])
    assert found["delta_mean"] == 2.5
    assert found["delta_std"] == pytest.approx(math.sqrt(1.25))
    assert found["delta_q50"] == 2.5
    assert found["delta_margin_correlation"] == pytest.approx(-0.8)
    assert found["delta_score_correlation"] == pytest.approx(1.0)
    expected = np.corrcoef([4.0, 1.0, 2.0], [1.0, 2.0, 3.0])[0, 1]
    assert found["margin_score_correlation"] == pytest.approx(expected)
    assert delta_statistics([], [], []) == {}
    assert "delta_margin_correlation" not in delta_statistics([1.0, 1.0], [1.0, 2.0], [0.0, 0.0])


@pytest.mark.parametrize(
    ("weight", "per_token", "changes", "warns"),
    [
        (0.1, False, {}, False),
        (0.99, False, {}, False),
        (1.0, False, {}, True),
        (1.0, True, {}, False),
        (10.0, True, {}, True),
        (1.0, False, {"clip": 1.0}, False),
        (1.0, False, {"source": "round"}, False),
        (1.0, False, {"baseline": "plain"}, False),
        (1.0, False, {"baseline": "none"}, True),
        (1.0, False, {"normalize": "length"}, False),
    ],
)
def test_warning_of_a_weight_that_asks_for_ever_more(
    weight: float, per_token: bool, changes: dict[str, Any], warns: bool
) -> None:
    found = runs_away(RefineConfig(weight=weight, **changes), per_token, 0.1)
    assert (found is not None) is warns


# --- p⊕x and the models' own Δ ------------------------------------------------------------------


@pytest.fixture(scope="module")
def words(llama: Path) -> Any:
    return AutoTokenizer.from_pretrained(llama)


@pytest.fixture(scope="module")
def data(words: Any) -> Dataset:
    """Pairs as TRL prepares them."""
    rows = []
    for row in assets.pairs(PAIRS):
        texts = {
            "prompt": slow.llama_text(row["messages"]),
            "chosen": slow.llama_answer(row["chosen"]["content"]),
            "rejected": slow.llama_answer(row["rejected"]["content"]),
        }
        ids = {
            f"{name}_ids": words(text, add_special_tokens=False)["input_ids"]
            for name, text in texts.items()
        }
        rows.append(texts | ids)
    return Dataset.from_list(rows)


@pytest.fixture(scope="module")
def reference(llama: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(llama)


@pytest.fixture(scope="module")
def policy(llama: Path) -> Any:
    """The reference, moved somewhere."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(llama)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * weight.std() * torch.randn_like(weight))
    return model.train()


class TwoModels:
    """Policy and reference, ready to score."""

    def __init__(self, policy: Any, reference: Any, folder: Path) -> None:
        self._models = {"policy": policy, "reference": reference}
        self._folder = folder

    @contextmanager
    def policy(self) -> Any:
        with inference(self._models["policy"]):
            yield self._models["policy"]

    @contextmanager
    def reference(self) -> Any:
        with inference(self._models["reference"]):
            yield self._models["reference"]

    def policy_origin(self, label: str) -> Origin:
        return Origin(self._folder, label, "policy")

    def reference_origin(self, label: str) -> Origin:
        return Origin(self._folder, label, "reference")


def quality_of(
    words: Any, data: Dataset, max_length: int | None = 128, **changes: Any
) -> QualityPairs:
    config = RefineConfig(prompt=P, **{"placement": "system"} | changes)
    writer = QualityWriter.of(P, config.placement, words, [words.chat_template])
    pairs = OfflinePairs.of(data, max_length)
    return QualityPairs.of(pairs, data, writer, max_length, ExternalConfig())


@pytest.fixture
def make(words: Any, data: Dataset, policy: Any, reference: Any, tmp_path: Path) -> Any:
    """``make(loss, max_length, **keys)``: the term of a run with these models."""

    def made(loss: str = "sigmoid", max_length: int = 128, **keys: Any) -> Refine:
        accelerator = Accelerator(cpu=True)
        host = SimpleNamespace(
            cfg=DictDefault(datasets=[]), tokenizer=words, train=data, beta=BETA,
            max_length=max_length, accelerator=accelerator,
        )  # fmt: skip
        settings = RefineConfig(prompt=P, **{"placement": "system"} | keys)
        parts: Any = TermParts(
            config=SeraConfig(refine=settings, max_set_aside=0.0),
            host=host,
            pairs=OfflinePairs.of(data, max_length),
            scorer=Scorer(accelerator, 0, max_length, 2048),
            policies=TwoModels(policy, reference, tmp_path / "work"),
            store=RunStore(tmp_path),
            base=base_of(loss),
        )
        return Refine(settings, parts)

    return made


def rows_of(term: Refine) -> list[RoundRow]:
    """All pairs, one of them turned round, and one with answers of its own."""
    ids = term.parts.pairs.ids
    rows = [RoundRow(f"{i}/offline", i, flipped=i == ids[2]) for i in ids]
    fresh = RoundRow(f"{ids[4]}/policy", ids[4], (5, 6, 7), (8, 9), -1.0, -2.0)
    return [*rows, fresh]


def opened(term: Refine, rows: list[RoundRow], *, resumed: bool = False) -> list[str]:
    pairs = term.parts.pairs
    zeros = np.zeros(len(pairs))
    logps = PairLogps(pairs.ids, zeros, zeros)
    dataset = RoundDataset(rows, pairs.dataset, pairs.position, logps)
    term.open_round(Opening(2, dataset, None, resumed))
    return [row.key for row in rows]


def step_of(term: Refine, rows: list[RoundRow], policy: Any = None) -> Step:
    """A step with the pairs' own log-probs of x under invented models."""
    values = torch.linspace(-30, -10, 2 * len(rows)).reshape(-1, 2).requires_grad_()
    tokens = torch.tensor([term.quality.visible(row) for row in rows])
    reference = values.detach() - 1.0
    given = values if policy is None else policy
    keys = [row.key for row in rows]
    return Step.of(keys, given, reference, tokens, BETA, term.parts.base)


def answers_of(data: Dataset, row: RoundRow, term: Refine) -> tuple[Any, Any]:
    if row.chosen_ids is not None:
        return row.chosen_ids, row.rejected_ids
    pair = data[term.parts.pairs.position[row.example_id]]
    sides = pair["chosen_ids"], pair["rejected_ids"]
    return sides[::-1] if row.flipped else sides


def slow_pairs(term: Refine, words: Any, data: Dataset, rows: list[RoundRow]) -> list[slow.Pair]:
    """The rows with p⊕x rendered by hand."""
    found = []
    for row in rows:
        at = term.parts.pairs.position[row.example_id]
        messages = [*assets.pairs(PAIRS)][at]["messages"]
        text = slow.llama_text([{"role": "system", "content": P}, *messages])
        prompt = words(text, add_special_tokens=False)["input_ids"]
        found.append(slow.Pair(prompt, *answers_of(data, row, term)))
    return found


@pytest.mark.parametrize("source", ["on_the_fly", "round"])
@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_delta_equals_a_plain_loop_in_float64(
    make: Any, words: Any, data: Dataset, policy: Any, reference: Any, loss: str, source: str
) -> None:
    term = make(loss, weight=0.3, source=source)
    rows = rows_of(term)
    keys = opened(term, rows)
    found = term(step_of(term, rows), term.prepare(keys))
    kind = "mean" if loss == "ipo" else "sum"
    slow._logp.cache_clear()
    expected = [
        slow.delta(policy, reference, pair, BETA, kind)
        for pair in slow_pairs(term, words, data, rows)
    ]
    assert found.noted["refine/delta"].tolist() == pytest.approx(expected, abs=1e-4)
    assert found.shift.tolist() == pytest.approx([-0.3 * d for d in expected], abs=1e-4)
    assert max(map(abs, expected)) > 0.05, "the policy has not moved; nothing is tested"


def test_delta_is_zero_before_the_first_update(make: Any, reference: Any) -> None:
    term = make()
    term.parts.policies._models["policy"] = reference
    keys = opened(term, rows_of(term))
    found = term(step_of(term, rows_of(term)), term.prepare(keys))
    assert float(found.noted["refine/delta"].abs().max()) < 1e-6


@pytest.mark.parametrize("baseline", ["none", "plain"])
def test_other_baselines(make: Any, words: Any, data: Dataset, policy: Any, baseline: str) -> None:
    term = make(baseline=baseline)
    rows = rows_of(term)
    keys = opened(term, rows)
    assert not (term.parts.store.root / "round-02/refinement.parquet").exists()
    step = step_of(term, rows)
    found = term(step, term.prepare(keys)).noted["refine/delta"]
    slow._logp.cache_clear()
    for i, pair in enumerate(slow_pairs(term, words, data, rows)):
        raised = [slow.logp(policy, pair.prompt, a) for a in (pair.chosen, pair.rejected)]
        if baseline == "plain":
            raised = [q - float(own) for q, own in zip(raised, step.policy[i], strict=True)]
        assert float(found[i]) == pytest.approx(BETA * (raised[0] - raised[1]), abs=1e-4)


def test_no_gradient_flows_through_delta(make: Any) -> None:
    """The slope is the base's at the shifted margin, with Δ held fast."""
    for baseline in ("reference", "plain"):
        term = make(weight=0.9, baseline=baseline)
        rows = rows_of(term)
        step = step_of(term, rows)
        found = term(step, term.prepare(opened(term, rows)))
        found.loss().backward()
        slope = -BETA * torch.sigmoid(-(step.margin + found.shift)).detach() / len(rows)
        assert step.policy.grad is not None
        assert torch.allclose(step.policy.grad, torch.stack([slope, -slope], dim=1), atol=1e-7)


def test_finding_delta_changes_neither_modes_nor_random_state(make: Any, policy: Any) -> None:
    term = make()
    keys = opened(term, rows_of(term))
    layer = policy.model.layers[0].self_attn
    layer.attention_dropout, layer.training = 0.5, True
    try:
        before = torch.get_rng_state()
        first, again = term.prepare(keys), term.prepare(keys)
        assert torch.equal(first, again), "dropout is on while Δ is found"
        assert torch.equal(torch.get_rng_state(), before)
        assert all(module.training for module in policy.modules())
    finally:
        layer.attention_dropout = 0.0


def test_what_is_stored_comes_back_and_d_is_scored_under_the_reference_once(
    make: Any, reference: Any
) -> None:
    first = make(source="round")
    rows = rows_of(first)
    keys = opened(first, rows)
    found = first(step_of(first, rows), first.prepare(keys))
    resumed = make(source="round")
    resumed.parts.policies._models = {}
    opened(resumed, rows, resumed=True)
    again = resumed(step_of(resumed, rows), resumed.prepare(keys))
    assert torch.equal(found.shift, again.shift)
    calls = []
    handle = reference.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        opened(first, rows[: len(rows) - 1])
        assert not calls, "a round without new pairs scores the reference again"
        fresh = make()
        opened(fresh, rows[: len(rows) - 1])
        assert not calls, "the shards of the reference's pass are not used"
    finally:
        handle.remove()


def test_pairs_without_room_train_without_delta(make: Any, words: Any, data: Dataset) -> None:
    whole = quality_of(words, data)
    rows = [RoundRow(f"{i}/offline", i) for i in whole.pairs.ids]
    needed = [
        len(prompt) + max(whole.visible(row))
        for prompt, row in zip(whole.prompts, rows, strict=True)
    ]
    limit = sorted(needed)[2]
    term = make(max_length=limit)
    assert [term.quality.fits(row) for row in rows] == [n <= limit for n in needed]
    keys = opened(term, rows)
    found = term(step_of(term, rows), term.prepare(keys))
    assert [bool(v) for v in found.shift] == [n <= limit for n in needed]
    assert term.close_round()["unrefined"] == sum(n > limit for n in needed)
    assert term.close_round() == {"unrefined": 0.0}


def test_statistics_of_a_round_are_of_what_was_trained_on(make: Any) -> None:
    term = make()
    rows = rows_of(term)
    keys = opened(term, rows)
    found = term(step_of(term, rows), term.prepare(keys)).noted["refine/delta"]
    closed = term.close_round()
    assert closed["delta_mean"] == pytest.approx(float(found.mean()), abs=1e-6)
    assert closed["seconds_refining"] > 0


def test_prompts_are_joined_by_id(words: Any, data: Dataset) -> None:
    quality = quality_of(words, data, placement="user_prefix")
    rows = [
        *full_round(quality.pairs.ids, 3, 1),
        RoundRow("x/policy", quality.pairs.ids[4], (5, 6, 7), (8,), -1.0, -2.0),
    ]
    texts = {}
    for row in assets.pairs(PAIRS):
        message = row["messages"][0]
        prompt = slow.llama_text([message | {"content": f"{P}\n\n{message['content']}"}])
        plain, chosen, rejected = (
            slow.llama_text(row["messages"]),
            slow.llama_answer(row["chosen"]["content"]),
            slow.llama_answer(row["rejected"]["content"]),
        )
        texts[content_id(plain, chosen, rejected)] = prompt
    answers = QualityCompletions(quality, rows)
    assert answers.lengths.tolist() == [sum(map(len, answers[i])) for i in range(2 * len(rows))]
    for i, row in enumerate(rows):
        prompt, _ = answers[2 * i]
        assert words.decode(prompt) == texts[row.example_id]
    assert list(answers[2 * len(rows) - 2][1]) == [5, 6, 7]


def test_scores_that_the_data_carries(words: Any, data: Dataset) -> None:
    quality = quality_of(words, data)
    assert np.isnan(quality.scores).all()
    scored = data.add_column("score_chosen", [float(i) for i in range(PAIRS)])
    scored = scored.add_column("score_rejected", [1.0] * PAIRS)
    writer = QualityWriter.of(P, "user_prefix", words, [words.chat_template])
    found = QualityPairs.of(quality.pairs, scored, writer, 128, ExternalConfig())
    assert found.scores.tolist() == [float(i) - 1.0 for i in range(PAIRS)]
