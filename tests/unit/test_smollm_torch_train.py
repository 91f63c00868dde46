"""Training on the task without Axolotl: the updates are the host's, and nothing of it is needed."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import assets
import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from benchmarks.smollm.arms import ARMS, robust
from benchmarks.smollm.labels import NOISES
from benchmarks.smollm.task_train import PLAIN, Task, TimeIsUp
from benchmarks.smollm.torch_train import (
    BATCH,
    Recipe,
    examples_of,
    fit,
    step_of,
    train,
    weights_of,
    with_reference,
)
from sera_plugin.training.objective import base_of

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
PREFIX = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


def rows_of(count: int) -> list[dict[str, Any]]:
    """Pairs as lines of the task's data file."""
    return [
        {"conversation": row["messages"], "chosen": row["chosen"], "rejected": row["rejected"]}
        for row in assets.pairs(count)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = rows_of(24)
    texts = [row["conversation"][0]["content"] for row in rows]
    texts += [row[side]["content"] for row in rows for side in ("chosen", "rejected")]
    return assets.save_model(tmp_path_factory.mktemp("model") / "m", "qwen", texts)


def policy_of(folder: Path) -> tuple[PeftModel, Any]:
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_pretrained(folder)
    return get_peft_model(model, LORA), AutoTokenizer.from_pretrained(folder)


def trained_weights(model: PeftModel) -> torch.Tensor:
    return torch.cat([one.detach().flatten() for one in model.parameters() if one.requires_grad])


@pytest.mark.parametrize("loss", ["sigmoid", "robust"])
def test_the_updates_are_those_of_the_host(folder: Path, tmp_path: Path, loss: str) -> None:
    policy, tokenizer = policy_of(folder)
    start = trained_weights(policy)
    rows = rows_of(BATCH)
    beside = copy.deepcopy(policy)
    smoothing = 0.2 if loss == "robust" else 0.0
    config = DPOConfig(
        str(tmp_path), per_device_train_batch_size=BATCH // 2, gradient_accumulation_steps=2,
        num_train_epochs=12, learning_rate=1e-2, warmup_steps=1, lr_scheduler_type="cosine",
        beta=0.1, loss_type=[loss], label_smoothing=smoothing, use_cpu=True, report_to=[],
        save_strategy="no", optim="adamw_torch", bf16=False, gradient_checkpointing=False,
    )  # fmt: skip
    as_texts = [
        {
            "prompt": PREFIX.format(row["conversation"][0]["content"]),
            "chosen": row["chosen"]["content"] + "<|im_end|>",
            "rejected": row["rejected"]["content"] + "<|im_end|>",
        }
        for row in rows
    ]
    host = DPOTrainer(
        beside, args=config, train_dataset=Dataset.from_list(as_texts), processing_class=tokenizer
    )
    host.train()

    examples = examples_of(rows, np.ones(BATCH), tokenizer)
    with policy.disable_adapter():
        examples = with_reference(policy, examples, "cpu")
    recipe = Recipe(1e-2, 12, seed=0, base=base_of(loss, smoothing))
    losses = fit(policy, examples, recipe, check=lambda: None)

    assert len(losses) == 12
    assert losses[0] == pytest.approx(float(np.log(2)), abs=1e-3)
    moved = trained_weights(policy) - start
    largest = moved.abs().max()
    assert largest > 0.03
    assert (trained_weights(beside) - start - moved).abs().max() < 1e-3 * largest


def test_a_pair_counts_by_its_weight(folder: Path) -> None:
    policy, tokenizer = policy_of(folder)
    with torch.no_grad():
        for name, one in policy.named_parameters():
            if "lora_B" in name:
                one.normal_(0, 0.3)
    weights = np.array([0.5, 1.5])
    examples = examples_of(rows_of(2), weights, tokenizer)
    with policy.disable_adapter():
        examples = with_reference(policy, examples, "cpu")
    base = base_of("sigmoid")
    alone = [step_of(policy, [one], base).loss().item() / one.weight for one in examples]
    assert abs(alone[0] - alone[1]) > 1e-3
    both = step_of(policy, examples, base).loss().item()
    assert both == pytest.approx(float(np.mean(weights * alone)), rel=1e-5)


def test_every_epoch_has_every_pair_once_in_an_order_of_its_own() -> None:
    recipe = Recipe(1e-4, 2, seed=3, base=base_of("sigmoid"))
    found = list(recipe.batches(20))
    assert [len(batch) for batch in found] == [8, 8, 4] * 2
    epochs = [list(chain(*half)) for half in (found[:3], found[3:])]
    assert [sorted(epoch) for epoch in epochs] == [list(range(20))] * 2
    assert epochs[0] != epochs[1]
    other = Recipe(1e-4, 2, seed=4, base=recipe.base)
    assert list(other.batches(20)) != found == list(recipe.batches(20))


def scored(count: int) -> list[dict[str, Any]]:
    """Pairs with scores that know their labels, of which three in ten are wrong."""
    draw = np.random.default_rng(0)
    wrong = draw.random(count) < 0.3
    scores = np.where(wrong, -1, 1) * draw.normal(2, 1.5, count)
    marked = ~wrong & (draw.random(count) < 0.3)
    return [
        {"seen": float(score), "checked": bool(mark), "wrong": bool(one)}
        for score, mark, one in zip(scores, marked, wrong, strict=True)
    ]


def test_weights_are_those_of_calibration_and_gate() -> None:
    rows = scored(600)
    assert weights_of(PLAIN, rows).tolist() == [1.0] * 600
    wrong = np.array([row["wrong"] for row in rows])
    marked = np.array([row["checked"] for row in rows])
    block = ARMS["contrast"].block(NOISES["turned-0.4"])
    found = weights_of(block, rows)
    assert found.mean() == pytest.approx(1.0)
    assert found[wrong].mean() < 0.5 * found[~wrong].mean()
    trusting = weights_of(ARMS["contrast"].block(NOISES["turned-0.4-checked"]), rows)
    assert np.ptp(trusting[marked]) == 0
    assert trusting[marked].min() == trusting.max() > found[marked].min()
    aside = [{**row, "seen": 0.0} for row in rows[:50]]
    assert np.ptp(weights_of(block, aside)) == 0


@pytest.mark.parametrize("arm", ["select", "sera", "pool-policy"])
def test_what_the_policy_reviews_is_refused(arm: str) -> None:
    with pytest.raises(SystemExit, match="leave them out of --arms"):
        weights_of(ARMS[arm].sera, scored(40))


def test_the_recipe_is_that_of_the_run() -> None:
    task = Task(Path("m"), Path("r"), Path("w"), 10, 10, 2, 0, 1e18)
    changes: dict[str, Any] = {"learning_rate": 1e-4, "seed": 7}
    plain = Recipe.of(task, changes)
    assert (plain.rate, plain.epochs, plain.seed, plain.base.name) == (1e-4, 2, 7, "sigmoid")
    told = Recipe.of(task, {**changes, "num_epochs": 3, **robust(NOISES["turned-0.2"])})
    assert (told.epochs, told.base.name) == (3, "robust")
    margin = torch.tensor([0.7])
    assert told.base.of(margin, 0.1) == base_of("robust", 0.2).of(margin, 0.1)
    with pytest.raises(SystemExit, match="lora_r"):
        Recipe.of(task, {**changes, "lora_r": 4})


def test_a_run_that_is_cut_leaves_no_policy_and_a_whole_one_is_kept(
    folder: Path, tmp_path: Path
) -> None:
    rows, changes = rows_of(12), {"learning_rate": 1e-3, "seed": 1}
    over = Task(folder, tmp_path, tmp_path, 12, 4, 2, 0, end=0.0)
    with pytest.raises(TimeIsUp):
        train(over, tmp_path / "run", rows, PLAIN, changes)
    assert not (tmp_path / "run" / "out").exists()
    task = Task(folder, tmp_path, tmp_path, 12, 4, 2, 0, end=1e18)
    out = train(task, tmp_path / "run", rows, PLAIN, changes)
    kept = (out / "adapter_model.safetensors").read_bytes()
    settings = json.loads((out / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (16, 32)
    wanted = {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
    assert {name.split(".")[-1] for name in settings["target_modules"]} == wanted
    assert len((tmp_path / "run" / "losses.txt").read_text().split()) == 4
    assert float((tmp_path / "run" / "seconds").read_text()) > 0
    assert train(task, tmp_path / "run", rows, PLAIN, changes) == out
    assert (out / "adapter_model.safetensors").read_bytes() == kept
    # The same seed makes the same policy.
    again = train(task, tmp_path / "again", rows, PLAIN, changes)
    assert (again / "adapter_model.safetensors").read_bytes() == kept


def test_the_grid_starts_without_axolotl() -> None:
    missing = ("axolotl", "trl", "datasets", "deepspeed", "lightning", "bitsandbytes")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({missing!r}))\n"
        "from benchmarks.smollm import grid; print(sorted(grid.TRAINERS))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "['axolotl', 'torch']"
