"""Training steps without padding against the host's own: losses, gradients and what is logged."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import assets
import numpy as np
import pytest
import slow_reference as slow
import torch
from accelerate import Accelerator
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from trainers import round_trainer
from transformers import (
    AutoModelForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from sera_plugin.config import parse_block
from sera_plugin.data.dealing import dealt_by_length, passes_of
from sera_plugin.data.pairs import OfflinePairs
from sera_plugin.data.rounds import ROW_KEY
from sera_plugin.data.schedule import Batching
from sera_plugin.host.merged_step import Merging
from sera_plugin.host.round_trainer import RoundTrainer
from sera_plugin.runtime.errors import SeraConfigError
from sera_plugin.scoring import packed as packed_module
from sera_plugin.scoring.layout import Group, in_rows, layout
from sera_plugin.scoring.packed import Packed
from sera_plugin.scoring.scorer import Scorer, inference
from sera_plugin.training.objective import BASES, base_of
from sera_plugin.training.packing import packed_steps
from sera_plugin.training.sharing import tried_pairs, with_shared_prompts
from sera_plugin.training.terms.term import Objective

BATCHINGS = st.builds(
    Batching, st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.booleans()
)
PAIRS, BETA, SMOOTHING, CPU = 6, 0.5, 0.2, torch.device("cpu")


# --- whole steps --------------------------------------------------------------------------------


def model_of(llama: Path, kind: str) -> torch.nn.Module:
    attention = "eager" if kind == "eager" else "sdpa"
    model = AutoModelForCausalLM.from_pretrained(llama, attn_implementation=attention)
    if kind != "lora":
        return model
    torch.manual_seed(2)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(model, config)


def trainer_of(llama: Path, folder: Path, loss: str, kind: str) -> RoundTrainer:
    made = round_trainer(
        llama,
        folder,
        loss,
        pairs=PAIRS,
        beta=BETA,
        smoothing=SMOOTHING,
        model=model_of(llama, kind),
        max_length=32,
        gradient_checkpointing=kind == "checkpointed",
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )
    if kind == "checkpointed":
        made.model.gradient_checkpointing_enable({"use_reentrant": False})
    return made


def rows_of(trainer: RoundTrainer) -> list[dict[str, Any]]:
    """Pairs with invented reference log-probs near the policy's, and one row that is cut."""
    rows = [dict(row) for row in trainer.train_dataset]
    rows[0]["chosen_ids"] = (rows[0]["chosen_ids"] * 9)[:40]
    draw = np.random.default_rng(5)
    for number, row in enumerate(rows):
        for side in ("chosen", "rejected"):
            row[f"ref_{side}_logps"] = -5.0 * len(row[f"{side}_ids"]) + draw.normal(scale=2.0)
        row[ROW_KEY] = str(number)
    return rows


def step(trainer: RoundTrainer, packed: Packed | None) -> tuple[float, torch.Tensor, dict]:
    """Loss, gradient and log of one micro-batch."""
    base = base_of(trainer.loss_types[0], trainer.label_smoothing)
    trainer.rounds = SimpleNamespace(
        objective=Objective(base, BETA, ()) if packed else None, notes_logps=False, packed=packed
    )
    trainer.model.zero_grad()
    trainer._total_train_tokens = 0
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows_of(trainer)))
    loss.backward()
    gradients = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
    logged = {name: sum(v) / len(v) for name, v in trainer._metrics["train"].items()}
    trainer._metrics["train"].clear()
    return loss.item(), torch.cat(gradients), logged


@pytest.mark.parametrize("kind", ["full", "lora", "checkpointed", "eager"])
@pytest.mark.parametrize("loss", BASES)
def test_a_step_is_that_of_the_host(
    loss: str, kind: str, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(llama, tmp_path, loss, kind)
    expected, gradient, log = step(trainer, None)
    ways = [(s, linear) for s in (False, True) for linear in (None, 0, 192)]
    for kept in (packed_module.KEPT_LOGITS, 0):
        monkeypatch.setattr(packed_module, "KEPT_LOGITS", kept)
        monkeypatch.setattr(packed_module, "POSITIONS", 7)
        for shared, linear in ways if kept else ways[-1:]:
            packed = Packed(0, shared, linear, additive=kind == "eager")
            found, own, logged = step(trainer, packed)
            assert found == pytest.approx(expected, rel=1e-5)
            assert float((own - gradient).norm() / gradient.norm()) <= 1e-5
            assert logged == pytest.approx(log, rel=1e-4, abs=1e-6)


# --- several micro-batches in a pass ------------------------------------------------------------


def merged_step(trainer: RoundTrainer, packed: Packed, cuts: list[int], ends: list[int]) -> Any:
    """Loss, gradient and log of an update of micro-batches that end at ``cuts``, in passes.

    The host's training step is called as its loop calls it.
    """
    base = base_of(trainer.loss_types[0], trainer.label_smoothing)
    objective = Objective(base, BETA, ())
    trainer.rounds = SimpleNamespace(objective=objective, notes_logps=False, packed=packed)
    trainer.current_gradient_accumulation_steps = len(cuts)
    trainer._merging = Merging([ends, ends], 1)
    trainer.model.zero_grad()
    trainer._total_train_tokens, loss = 0, 0.0
    rows = rows_of(trainer)
    for first, last in pairwise([0, *cuts]):
        batch = trainer.data_collator(rows[first:last])
        loss += trainer.training_step(trainer.model, batch).item()
    gradients = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
    logged = dict(trainer._metrics["train"])
    trainer._metrics["train"] = defaultdict(list)
    return loss, torch.cat(gradients), logged


@pytest.mark.parametrize("loss", BASES)
def test_merged_micro_batches_make_the_update_of_single_ones(
    loss: str, llama: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(llama, tmp_path, loss, "full")
    cuts = [2, 4, 5, 6]
    expected, gradient, log = merged_step(trainer, Packed(0, True, 192), cuts, [1, 2, 3, 4])
    assert all(len(values) == len(cuts) for name, values in log.items() if name != "num_tokens")
    for shared, ends in ((True, [4]), (False, [1, 3, 4]), (True, [3, 4])):
        found, own, logged = merged_step(trainer, Packed(0, shared, 192), cuts, ends)
        assert found == pytest.approx(expected, rel=1e-5)
        assert float((own - gradient).norm() / gradient.norm()) <= 1e-5
        assert logged.keys() == log.keys()
        for name, values in log.items():
            assert logged[name] == pytest.approx(values, rel=1e-4, abs=1e-6), name


def test_a_pass_ends_before_it_has_too_many_tokens() -> None:
    batching = Batching(per_device=2, accumulation=3, ranks=1)
    tokens = [4, 4, 1, 1, 2, 2, 30, 3, 1, 1, 1]
    assert passes_of(tokens, batching, 12) == ((2, 3), (1, 3))
    assert passes_of(tokens, batching, 2) == ((1, 2, 3), (1, 2, 3))
    assert passes_of(tokens, batching, math.inf) == ((3,), (3,))
    # Two ranks make the passes of the one with more tokens: 8 and 33.
    both = Batching(per_device=2, accumulation=2, ranks=2)
    assert passes_of(tokens, both, 41) == ((2,), (1,))
    assert passes_of(tokens, both, 40) == ((1, 2), (1,))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), BATCHINGS, st.integers(1, 400))
def test_passes_end_with_the_hosts_updates(
    tokens: list[int], batching: Batching, most: int
) -> None:
    ends = [update[-1] for update in passes_of(tokens, batching, most)]
    assert sum(ends) == batching.batches(len(tokens))
    assert len(ends) == batching.updates(len(tokens))
    assert all(end == batching.accumulation for end in ends[:-1])


# --- rows ---------------------------------------------------------------------------------------

groups = st.lists(
    st.tuples(st.integers(1, 6), st.lists(st.integers(0, 5), min_size=1, max_size=3)),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(groups, st.sampled_from([None, 0, 8]), st.integers(0, 2**31 - 1))
def test_log_probs_in_rows_are_those_of_each_answer_alone(
    sizes: list[tuple[int, list[int]]], linear: int | None, seed: int
) -> None:
    draw, made = np.random.default_rng(seed), []
    for asked, answers in sizes:
        first = sum(len(group.answers) for group in made)
        made.append(
            Group(
                draw.integers(1, 50, asked),
                tuple(draw.integers(1, 50, length) for length in answers),
                tuple(range(first, first + len(answers))),
            )
        )
    count = sum(len(group.answers) for group in made)
    with torch.no_grad():
        model = assets.small_llama(50).double()
        packed = Packed(pad=0, shared=True, linear=linear)
        found = packed.of_layout(model, layout(made, 0, linear, CPU), count)
        sums = found.sums(found.logps).tolist()
        expected = [
            slow.logp(model, group.prompt.tolist(), answer.tolist()) if len(answer) else 0.0
            for group in made
            for answer in group.answers
        ]
    assert sums == pytest.approx(expected, abs=1e-8)


@given(st.lists(st.integers(1, 99), min_size=1, max_size=20), st.integers(0, 200))
def test_every_group_is_in_one_row(sizes: list[int], linear: int) -> None:
    rows = in_rows(sizes, linear)
    assert sorted(number for row in rows for number in row) == list(range(len(sizes)))


# --- the order within an update -----------------------------------------------------------------


def host_updates(order: list[int], batching: Batching) -> list[list[list[int]]]:
    """Rows of every micro-batch of every update, as accelerate deals them."""
    size, ranks = batching.per_device, batching.ranks
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    if batching.drop_last:
        batches = [batch for batch in batches if len(batch) == size]
        batches = batches[: len(batches) // ranks * ranks]
    elif ranks > 1:
        again = iter(order * (2 * ranks * size))
        if len(batches[-1]) < size:
            batches[-1] = batches[-1] + [next(again) for _ in range(size - len(batches[-1]))]
        while len(batches) % ranks:
            batches.append([next(again) for _ in range(size)])
    each = ranks * batching.accumulation
    return [batches[i : i + each] for i in range(0, len(batches), each)]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), BATCHINGS)
def test_an_update_is_the_mean_over_the_same_pairs(lengths: list[int], batching: Batching) -> None:
    def weights(update: list[list[int]]) -> dict[int, float]:
        found: dict[int, float] = {}
        for batch in update:
            for row in batch:
                found[row] = found.get(row, 0.0) + 1 / len(batch) / len(update)
        return found

    order = dealt_by_length(lengths, batching)
    assert sorted(order) == list(range(len(lengths)))
    before, after = (host_updates(each, batching) for each in (list(range(len(lengths))), order))
    assert len(before) == len(after)
    for one, other in zip(before, after, strict=True):
        assert weights(other) == pytest.approx(weights(one))


def test_the_longest_share_a_micro_batch() -> None:
    order = dealt_by_length([3, 9, 5, 7, 2, 8, 4, 6, 1], Batching(2, 2, 1))
    assert order == [1, 3, 2, 0, 5, 7, 6, 4, 8]


# --- models that can't --------------------------------------------------------------------------


def run_of(model: torch.nn.Module, block: dict[str, Any]) -> Any:
    """What ``packed_steps`` reads of a run, around a real model and real pairs."""
    accelerator = Accelerator(cpu=True)
    draw = np.random.default_rng(1)
    rows = [
        {
            "prompt": f"p{number}",
            "chosen": "c",
            "rejected": f"r{number}",
            "prompt_ids": draw.integers(1, 60, 6).tolist(),
            "chosen_ids": draw.integers(1, 60, 4 + number).tolist(),
            "rejected_ids": draw.integers(1, 60, 9).tolist(),
        }
        for number in range(8)
    ]

    @contextmanager
    def policy() -> Iterator[torch.nn.Module]:
        with inference(model):
            yield model

    return SimpleNamespace(
        config=parse_block({"preset": "select", **block}),
        objective=None,
        pairs=OfflinePairs.of(Dataset.from_list(rows), 64),
        policies=SimpleNamespace(policy=policy),
        reviewer=SimpleNamespace(scorer=Scorer(accelerator, 0, 64, 4096)),
        sampling=SimpleNamespace(pad_token_id=0),
        host=SimpleNamespace(
            not_of_pairs=None,
            loss_types=("sigmoid",),
            max_length=64,
            models=SimpleNamespace(policy=model, fsdp=False),
        ),
    )


def mamba() -> torch.nn.Module:
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=64, hidden_size=16, state_size=4, num_hidden_layers=2, initializer_range=0.3
    )
    return MambaForCausalLM(config)


def mistral(window: int) -> torch.nn.Module:
    torch.manual_seed(0)
    return MistralForCausalLM(
        MistralConfig(vocab_size=64, sliding_window=window, **assets.SMALLEST)
    )


def test_a_model_that_can_is_packed_with_shared_prompts() -> None:
    assert packed_steps(run_of(assets.small_llama(64), {})).shared
    packed = packed_steps(run_of(assets.small_llama(64), {"training": {"shared_prompts": False}}))
    assert packed is not None
    assert not packed.shared
    assert packed_steps(run_of(assets.small_llama(64), {"training": False})) is None


def test_a_state_space_model_falls_back_with_a_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="sera_plugin"):
        assert packed_steps(run_of(mamba(), {})) is None
    assert "the host's way, because" in caplog.text


@pytest.mark.parametrize("key", ["packing", "shared_prompts", "merged"])
def test_a_state_space_model_ends_the_run_if_a_switch_is_written_out(key: str) -> None:
    with pytest.raises(SeraConfigError, match=rf"^sera.training.{key}: true can't be used"):
        packed_steps(run_of(mamba(), {"training": {key: True}}))


@pytest.mark.parametrize("key", ["packing", "shared_prompts", "merged"])
def test_a_loss_that_can_not_be_packed_ends_the_run_if_a_switch_is_written_out(key: str) -> None:
    run = run_of(assets.small_llama(64), {"training": {key: True}})
    run.host.loss_types = ("bco_pair",)
    with pytest.raises(
        SeraConfigError, match=rf"^sera.training.{key}: true can't be used.*bco_pair"
    ):
        packed_steps(run)


def test_a_window_shorter_than_a_row_shares_no_prompts() -> None:
    found = packed_steps(run_of(mistral(5), {}))
    assert found is not None
    assert not found.shared
    with pytest.raises(SeraConfigError, match=r"^sera.training.shared_prompts: true can't"):
        packed_steps(run_of(mistral(5), {"training": {"shared_prompts": True}}))
    assert packed_steps(run_of(mistral(4096), {})).shared


# --- scoring with shared prompts ----------------------------------------------------------------


def shares(model: torch.nn.Module, wanted: bool | str) -> bool:
    """Whether the scorer of a run reads prompts once."""
    run = run_of(model, {"training": {"shared_scoring": wanted}})
    tried = tried_pairs(run.pairs, run.config.bootstrap, 64)
    scorer = run.reviewer.scorer
    return with_shared_prompts(scorer, run.config.training, run.policies, tried).shares


def test_scoring_shares_prompts_where_keys_and_values_can_be_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("INFO", logger="sera_plugin"):
        assert shares(assets.small_llama(64), "auto")
        assert shares(mistral(5), True)
        assert not shares(mamba(), "auto")
    assert caplog.text.count("reads a prompt once for all its answers") == 2
    assert caplog.text.count("Scoring reads a prompt again for each answer, because it keeps") == 1
    assert not shares(assets.small_llama(64), False)


def test_shared_scoring_that_is_written_out_and_can_not_be_is_refused() -> None:
    with pytest.raises(SeraConfigError, match=r"^sera.training.shared_scoring: true can't be used"):
        shares(mamba(), True)
