"""Δ, its place in the host's own loss, the rewards that are logged, and gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import assets
import numpy as np
import pytest
import slow_reference as slow
import torch
from accelerate import Accelerator
from axolotl.core.trainers.dpo.args import AxolotlDPOConfig
from datasets import Dataset
from sera_plugin.training.refiner import Refiner
from transformers import AutoModelForCausalLM, AutoTokenizer

from sera_plugin.config import ExternalConfig, RefineConfig
from sera_plugin.data.ids import content_id
from sera_plugin.data.margins import PairLogps
from sera_plugin.data.pairs import OfflinePairs
from sera_plugin.data.rounds import RoundDataset, RoundRow, full_round
from sera_plugin.host.round_trainer import RoundTrainer
from sera_plugin.host.rounds import REFINEMENT
from sera_plugin.scoring.scorer import Scorer
from sera_plugin.training.quality_pairs import (
    QualityCompletions,
    QualityPairs,
    RefinedRound,
    RefinementCollator,
)
from sera_plugin.training.quality_prompt import QualityWriter
from sera_plugin.training.refinement import bounded, gap_statistics, quality_gap, reference_shift

PAIRS, BETA, P = 6, 0.5, "be brave and kind"


def gap(chosen: float, rejected: float, **options: Any) -> float:
    one = torch.ones(1)
    options = {"per_token": False} | options
    values = torch.tensor([chosen]), torch.tensor([rejected])
    tokens = options.pop("tokens", (4, 2))
    return float(quality_gap(*values, one * tokens[0], one * tokens[1], **options))


def test_gap_is_negative_where_the_chosen_answer_is_judged_better() -> None:
    assert gap(-10.0, -12.0) == -2.0
    assert gap(-10.0, -12.0, per_token=True) == pytest.approx(-12 / 2 + 10 / 4)
    assert gap(0.0, -3.0, per_token=True, tokens=(0, 3)) == -1.0


def test_bound() -> None:
    delta = torch.tensor([-8.0, 1.0, 8.0])
    assert bounded(delta, 0.5, None).tolist() == [-4.0, 0.5, 4.0]
    assert bounded(delta, 0.5, 1.5).tolist() == [-1.5, 0.5, 1.5]


def test_statistics_by_hand() -> None:
    found = gap_statistics([1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 1.0, 2.0], [1.0, math.nan, 2.0, 3.0])
    assert found["delta_mean"] == 2.5
    assert found["delta_std"] == pytest.approx(math.sqrt(1.25))
    assert found["delta_q50"] == 2.5
    assert found["delta_margin_correlation"] == pytest.approx(-0.8)
    assert found["delta_score_correlation"] == pytest.approx(1.0)
    assert gap_statistics([], [], []) == {}
    assert "delta_margin_correlation" not in gap_statistics([1.0, 1.0], [1.0, 2.0], [0.0, 0.0])


# --- TRL's own loss -----------------------------------------------------------------------------


class GivenRho:
    """Takes ρ as the batch gives it, and keeps the margins."""

    def __init__(self, loss: str) -> None:
        self.loss = loss

    def shift(self, model: Any, given: Any, tokens: Any) -> tuple[torch.Tensor, dict[str, float]]:
        return reference_shift(given["rho"], self.loss, BETA, tokens[0]), {"refine/x": 1.5}

    def note(self, margins: torch.Tensor) -> None:
        self.margins = margins


@dataclass
class Refining:
    """The part of a run's rounds that the loss asks for."""

    refining: Any
    notes_logps: bool = False


@pytest.fixture(scope="module", params=["sigmoid", "ipo"])
def trainer(request: pytest.FixtureRequest, llama: Path, tmp_path_factory: Any) -> RoundTrainer:
    torch.set_num_threads(1)
    words = AutoTokenizer.from_pretrained(llama)
    rows = [
        {
            "prompt": slow.llama_text(row["messages"]),
            "chosen": slow.llama_answer(row["chosen"]["content"]),
            "rejected": slow.llama_answer(row["rejected"]["content"]),
        }
        for row in assets.pairs(PAIRS)
    ]
    args = AxolotlDPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trainer")),
        loss_type=[request.param],
        beta=BETA,
        max_length=128,
        use_cpu=True,
        report_to=[],
        bf16=False,
        precompute_ref_log_probs=True,
        remove_unused_columns=False,
    )
    model = AutoModelForCausalLM.from_pretrained(llama)
    made = RoundTrainer(
        model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=words
    )
    made.rounds = Refining(GivenRho(request.param))
    made.model.train()
    return made


@pytest.fixture
def batch(trainer: RoundTrainer) -> dict[str, Any]:
    """Pairs with invented reference log-probs: log-ratios of some nats, of either sign."""
    rows = [dict(row) for row in trainer.train_dataset]
    shifts = np.random.default_rng(5).normal(scale=2.0, size=(PAIRS, 2))
    for row, shift in zip(rows, shifts, strict=True):
        pair = slow.Pair(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"])
        row["ref_chosen_logps"] = slow.logp(trainer.model, pair.prompt, pair.chosen) + shift[0]
        row["ref_rejected_logps"] = slow.logp(trainer.model, pair.prompt, pair.rejected) + shift[1]
    return trainer.data_collator(rows) | {"shifts": shifts}


def loss_of(trainer: RoundTrainer, batch: dict[str, Any], **more: Any) -> torch.Tensor:
    inputs = {name: value for name, value in batch.items() if name != "shifts"} | more
    return trainer.compute_loss(trainer.model, inputs)


RHO = torch.tensor([-3.0, -0.5, 0.0, 0.2, 1.0, 4.0])


def by_hand(trainer: RoundTrainer, batch: dict[str, Any], rho: torch.Tensor) -> float:
    """The formulas of ``refinement``, with the log-ratios that the batch was made for."""
    losses = []
    lengths = batch["completion_mask"].sum(dim=1).tolist()
    for i, (chosen, rejected) in enumerate(-batch["shifts"]):
        if trainer.loss_types == ["sigmoid"]:
            h = BETA * (chosen - rejected) + float(rho[i])
            losses.append(math.log1p(math.exp(-h)))
        else:
            margin = chosen / lengths[i] - rejected / lengths[PAIRS + i]
            losses.append((margin - (1 / (2 * BETA) - float(rho[i]))) ** 2)
    return sum(losses) / PAIRS


def test_one_pair_in_numbers(trainer: RoundTrainer) -> None:
    """Log-ratios 1.2 of 4 tokens and −0.4 of 2, Δ = −2 nats (or per token), λ = 0.25, β = 0.5."""
    rho = bounded(torch.tensor([-2.0]), 0.25, None)
    tokens = torch.tensor([4])
    shift = float(reference_shift(rho, trainer.loss_types[0], BETA, tokens))
    if trainer.loss_types == ["sigmoid"]:
        assert 0.5 * ((1.2 - shift) - -0.4) == pytest.approx(0.8 - 0.5)
        assert math.log1p(math.exp(-0.3)) == pytest.approx(0.5543552)
    else:
        margin = (1.2 - shift) / 4 - -0.4 / 2
        assert margin == pytest.approx(0.5 - 0.5)  # 0.3 + 0.2, and the target is 1 + 0.5
        assert (margin - 1 / (2 * BETA)) ** 2 == pytest.approx((0.5 - 1.5) ** 2)


@pytest.mark.parametrize("rho", [RHO, torch.zeros(PAIRS)], ids=["rho", "zero"])
def test_the_hosts_loss_becomes_the_refined_one(
    trainer: RoundTrainer, batch: dict[str, Any], rho: torch.Tensor
) -> None:
    loss = loss_of(trainer, batch, **{REFINEMENT: {"rho": rho}})
    assert float(loss.detach()) == pytest.approx(by_hand(trainer, batch, rho), rel=1e-5)


def test_without_a_gap_loss_and_gradient_are_the_hosts_to_the_last_bit(
    trainer: RoundTrainer, batch: dict[str, Any]
) -> None:
    found = []
    for more in ({}, {REFINEMENT: {"rho": torch.zeros(PAIRS)}}):
        trainer.model.zero_grad()
        loss = loss_of(trainer, batch, **more)
        loss.backward()
        found.append((loss.detach(), [p.grad.clone() for p in trainer.model.parameters()]))
    assert torch.equal(found[0][0], found[1][0])
    assert all(map(torch.equal, found[0][1], found[1][1]))


def test_logged_rewards_are_those_under_the_reference_itself(
    trainer: RoundTrainer, batch: dict[str, Any]
) -> None:
    names = ["rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins"]
    noted = trainer._metrics["train"]
    noted.clear()
    loss_of(trainer, batch)
    loss_of(trainer, batch, **{REFINEMENT: {"rho": RHO}})
    for name in names:
        assert len(noted[name]) == 2
        assert noted[name][0] == noted[name][1], name
    assert noted["refine/x"] == [1.5]
    accuracy = np.mean(-batch["shifts"][:, 0] > -batch["shifts"][:, 1])
    assert noted["rewards/accuracies"][0] == pytest.approx(accuracy)
    assert 0 < accuracy < 1
    expected = BETA * (batch["shifts"][:, 1] - batch["shifts"][:, 0])
    assert trainer.rounds.refining.margins.tolist() == pytest.approx(expected.tolist(), abs=1e-4)


# --- p⊕x and the policy's own Δ -----------------------------------------------------------------


def quality_of(trainer: RoundTrainer, max_length: int | None = 128, **changes: Any) -> QualityPairs:
    words = trainer.processing_class
    writer = QualityWriter.of(RefineConfig(prompt=P, **changes), words, [words.chat_template])
    pairs = OfflinePairs.of(trainer.train_dataset, max_length)
    return QualityPairs.of(pairs, trainer.train_dataset, writer, max_length, ExternalConfig())


def refined_round(trainer: RoundTrainer, quality: QualityPairs, logps: Any = None) -> RefinedRound:
    pairs = quality.pairs
    zeros = np.zeros(len(pairs))
    rows = [RoundRow(f"{i}/offline", i) for i in pairs.ids]
    dataset = RoundDataset(rows, pairs.dataset, pairs.position, PairLogps(pairs.ids, zeros, zeros))
    return RefinedRound(dataset, quality, logps)


def slow_delta(trainer: RoundTrainer, *, per_token: bool) -> list[float]:
    """Δ from text rendered by hand, one token after the other."""
    words, found = trainer.processing_class, []
    for row, data in zip(assets.pairs(PAIRS), trainer.train_dataset, strict=True):
        text = slow.llama_text([{"role": "system", "content": P}, *row["messages"]])
        prompt = words(text, add_special_tokens=False)["input_ids"]
        pair = slow.Pair(prompt, data["chosen_ids"], data["rejected_ids"])
        slow._logp.cache_clear()
        found.append(slow.gap(trainer.model, pair, "mean" if per_token else "sum"))
    return found


def refiner_for(trainer: RoundTrainer, quality: QualityPairs, **changes: Any) -> Refiner:
    return Refiner(
        config=RefineConfig(prompt=P, **changes),
        quality=quality,
        quality_prompt=P,
        scorer=Scorer(Accelerator(cpu=True), 0, 128, 2048),
        policies=SimpleNamespace(),
        store=SimpleNamespace(),
        loss=trainer.loss_types[0],
        beta=BETA,
        max_set_aside=0.0,
    )


def refined_batch(
    trainer: RoundTrainer, quality: QualityPairs, batch: dict[str, Any]
) -> dict[str, Any]:
    """``batch`` with what Δ is found from."""
    data = refined_round(trainer, quality)
    collated = RefinementCollator(trainer.data_collator)([data[i] for i in range(len(data))])
    assert torch.equal(collated["input_ids"], batch["input_ids"])
    return batch | {REFINEMENT: collated[REFINEMENT]}


@pytest.mark.parametrize("normalize", ["none", "length"])
def test_gap_of_the_policy_equals_a_plain_loop(
    trainer: RoundTrainer, batch: dict[str, Any], normalize: str
) -> None:
    quality = quality_of(trainer)
    given = refined_batch(trainer, quality, batch)[REFINEMENT]
    refiner = refiner_for(trainer, quality, normalize=normalize, weight=0.3)
    tokens = batch["completion_mask"].sum(dim=1).chunk(2)
    shift, noted = refiner.shift(trainer.model, given, tokens)
    per_token = normalize == "length" or trainer.loss_types == ["ipo"]
    expected = slow_delta(trainer, per_token=per_token)
    assert noted["refine/delta"] == pytest.approx(np.mean(expected), abs=1e-4)
    scale = -0.3 / BETA if trainer.loss_types == ["sigmoid"] else -0.3 * tokens[0]
    assert torch.allclose(shift, scale * torch.tensor(expected).double(), atol=1e-3)


def test_finding_the_gap_changes_neither_modes_nor_random_state(
    trainer: RoundTrainer, batch: dict[str, Any]
) -> None:
    quality = quality_of(trainer)
    inputs = refined_batch(trainer, quality, batch)
    refiner = refiner_for(trainer, quality)
    layer = trainer.model.model.layers[0].self_attn
    layer.attention_dropout, layer.training = 0.5, True
    try:
        before = torch.get_rng_state()
        tokens = batch["completion_mask"].sum(dim=1).chunk(2)
        first, _ = refiner.shift(trainer.model, inputs[REFINEMENT], tokens)
        again, _ = refiner.shift(trainer.model, inputs[REFINEMENT], tokens)
        assert torch.equal(first, again), "dropout is on while Δ is found"
        assert torch.equal(torch.get_rng_state(), before)
        assert all(module.training for module in trainer.model.modules())
    finally:
        layer.attention_dropout = 0.0


def test_no_gradient_flows_through_the_gap(trainer: RoundTrainer, batch: dict[str, Any]) -> None:
    """Autograd gives the slope of the loss with Δ held fast, not of the loss with its Δ."""
    quality = quality_of(trainer)
    inputs = refined_batch(trainer, quality, batch)
    trainer.model.double()
    given = trainer.rounds.refining
    trainer.rounds.refining = refiner_for(trainer, quality, weight=1.0)
    try:
        weights = trainer.model.model.layers[0].mlp.down_proj.weight
        trainer.model.zero_grad()
        loss_of(trainer, inputs).backward()
        slope = weights.grad.clone()
        step, direction = 1e-4, slope / slope.norm()
        tokens = batch["completion_mask"].sum(dim=1).chunk(2)
        shift, _ = trainer.rounds.refining.shift(trainer.model, inputs[REFINEMENT], tokens)
        assert not shift.requires_grad
        fixed = dict(inputs)
        del fixed[REFINEMENT]
        fixed["ref_chosen_logps"] = inputs["ref_chosen_logps"].double() + shift
        moving, held = [], []
        with torch.no_grad():
            for sign in (1, -1):
                weights.add_(sign * step * direction)
                moving.append(float(loss_of(trainer, inputs)))
                held.append(float(loss_of(trainer, fixed)))
                weights.add_(-sign * step * direction)
        found = float((slope * direction).sum())
        assert (held[0] - held[1]) / (2 * step) == pytest.approx(found, rel=1e-3)
        assert (moving[0] - moving[1]) / (2 * step) != pytest.approx(found, rel=1e-2)
    finally:
        trainer.rounds.refining = given
        trainer.model.float()


def test_stored_log_probs_give_the_same_gap(trainer: RoundTrainer, batch: dict[str, Any]) -> None:
    quality = quality_of(trainer)
    refiner = refiner_for(trainer, quality)
    data = refined_round(trainer, quality)
    answers = QualityCompletions(quality, data.dataset, range(PAIRS))
    assert answers.lengths.tolist() == [sum(map(len, answers[i])) for i in range(2 * PAIRS)], (
        "lengths disagree with what is scored"
    )
    with torch.no_grad():
        logps = refiner.scorer.logps(trainer.model, answers, "test").logps
    keys = [row.key for row in data.dataset.rows]
    stored = dict(zip(keys, zip(logps[0::2], logps[1::2], strict=True), strict=True))
    other = refined_round(trainer, quality, stored)
    collate = RefinementCollator(trainer.data_collator)
    tokens = batch["completion_mask"].sum(dim=1).chunk(2)
    shifts = [
        refiner.shift(trainer.model, collate([d[i] for i in range(PAIRS)])[REFINEMENT], tokens)[0]
        for d in (data, other)
    ]
    assert torch.allclose(*shifts, atol=1e-4)
    del stored[keys[1]]
    short = collate([other[i] for i in range(PAIRS)])[REFINEMENT]
    assert float(refiner.shift(trainer.model, short, tokens)[0][1]) == 0.0


def test_pairs_without_room_train_without_a_gap(
    trainer: RoundTrainer, batch: dict[str, Any]
) -> None:
    whole = quality_of(trainer)
    needed = [
        len(prompt) + max(whole.visible(row))
        for prompt, row in zip(
            whole.prompts, refined_round(trainer, whole).dataset.rows, strict=True
        )
    ]
    limit = sorted(needed)[2]
    quality = quality_of(trainer, limit)
    data = refined_round(trainer, quality)
    assert [quality.fits(row) for row in data.dataset.rows] == [n <= limit for n in needed]
    collate = RefinementCollator(trainer.data_collator)
    given = collate([data[i] for i in range(PAIRS)])[REFINEMENT]
    assert given["input_ids"].shape[1] <= limit
    refiner = refiner_for(trainer, quality)
    tokens = batch["completion_mask"].sum(dim=1).chunk(2)
    shift, _ = refiner.shift(trainer.model, given, tokens)
    assert [bool(v) for v in shift] == [n <= limit for n in needed]
    refiner.note(torch.arange(PAIRS))
    found = refiner.close_round()
    assert found["unrefined"] == sum(n > limit for n in needed)
    assert refiner.close_round() == {"unrefined": 0.0}


def test_a_round_joins_prompts_by_id(trainer: RoundTrainer) -> None:
    quality = quality_of(trainer, placement="user_prefix")
    pairs = quality.pairs
    rows = full_round(pairs.ids, 3, 1)
    fresh = RoundRow("x/policy", pairs.ids[4], (5, 6, 7), (8,), -1.0, -2.0)
    zeros = np.zeros(len(pairs))
    dataset = RoundDataset(
        [*rows, fresh], pairs.dataset, pairs.position, PairLogps(pairs.ids, zeros, zeros)
    )
    data = RefinedRound(dataset, quality, None)
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
    for i, row in enumerate([*rows, fresh]):
        pair = data[i][REFINEMENT]["pair"]
        assert trainer.processing_class.decode(pair["prompt_ids"]) == texts[row.example_id]
    assert data[len(rows)][REFINEMENT]["pair"]["chosen_ids"] == [5, 6, 7]


def test_scores_that_the_data_carries(trainer: RoundTrainer) -> None:
    quality = quality_of(trainer)
    assert np.isnan(quality.scores).all()
    values = [float(i) for i in range(PAIRS)]
    scored = trainer.train_dataset.add_column("score_chosen", values)
    scored = scored.add_column("score_rejected", [1.0] * PAIRS)
    words = trainer.processing_class
    writer = QualityWriter.of(RefineConfig(prompt=P), words, [words.chat_template])
    found = QualityPairs.of(quality.pairs, scored, writer, 128, ExternalConfig())
    assert found.scores.tolist() == [v - 1.0 for v in values]
