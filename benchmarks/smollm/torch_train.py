"""DPO with LoRA in plain PyTorch, for machines without Axolotl.

Model, adapter, loss, optimizer, schedule and batches are those of ``task_train.config_of``; only
the order of the pairs and the first values of the adapter are other draws. The weights of pairs are
those of the package's calibration and gate. What the policy reviews can't be trained here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers import get_cosine_schedule_with_warmup

from benchmarks.smollm.model import load
from benchmarks.smollm.task_train import BETA, LORA_ALPHA, LORA_R, SECONDS, WARMUP, Task
from benchmarks.smollm.writer import PAD, prompt_ids, scorer_on
from sera_plugin.config import parse_block
from sera_plugin.review.belief import believe
from sera_plugin.scoring.completions import CompletionList
from sera_plugin.scoring.logps import token_logps
from sera_plugin.scoring.scorer import inference
from sera_plugin.training.objective import Base, Step, base_of

BATCH = 8
Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Example:
    """A pair: tokens of both texts, those of the prompt first, and how much it counts.

    Attributes:
        prompt: tokens of the prompt.
        answers: tokens of the chosen and of the rejected answer.
        reference: their log-probs under πref, nats.
        weight: of the pair in the loss.
    """

    prompt: Tokens
    answers: tuple[Tokens, Tokens]
    reference: tuple[float, float] = (math.nan, math.nan)
    weight: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """How to train: the learning rate, epochs, the seed of every draw, and the loss."""

    rate: float
    epochs: int
    seed: int
    base: Base

    @classmethod
    def of(cls, task: Task, changes: dict[str, Any]) -> Recipe:
        """What a run asks for, from its changes to the host's YAML.

        Raises:
            SystemExit: for a key that has no meaning here.
        """
        known = {"learning_rate", "seed", "num_epochs", "dpo_loss_type", "dpo_label_smoothing"}
        if changes.keys() - known:
            raise SystemExit(f"Without Axolotl {sorted(changes.keys() - known)} has no meaning.")
        loss = changes.get("dpo_loss_type", ["sigmoid"])[0]
        return cls(
            changes["learning_rate"],
            changes.get("num_epochs", task.epochs),
            changes.get("seed", task.seed),
            base_of(loss, changes.get("dpo_label_smoothing", 0.0)),
        )

    def batches(self, count: int) -> Iterator[list[int]]:
        """Numbers of the pairs of each update; every epoch has each of ``count`` pairs once."""
        for epoch in range(self.epochs):
            order = np.random.default_rng([self.seed, 4, epoch]).permutation(count).tolist()
            yield from (order[start : start + BATCH] for start in range(0, count, BATCH))


def weights_of(block: dict[str, Any], rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """How much each pair counts under a block ``sera:``, float64, shape (n,).

    Raises:
        SystemExit: if that isn't settled before the first update.
    """
    config = parse_block(block)
    if config is None or not config.reviews:
        return np.ones(len(rows))
    selection = config.selection
    settled = config.warmup_rounds == 0 and not config.bootstrap.fraction
    if not (settled and selection.use == "weight" and list(selection.by) == ["external"]):
        raise SystemExit(
            "Without Axolotl no arm can be trained whose pairs the policy reviews: select, sera "
            "and pool-policy; leave them out of --arms."
        )
    scores = np.array([row[selection.external.margin] for row in rows])
    trusted = None
    if selection.trusted:
        trusted = np.array([row[selection.trusted] for row in rows])
    return believe(selection, np.zeros(len(rows)), {"external": scores}, trusted=trusted).weight


def examples_of(
    rows: Sequence[dict[str, Any]], weights: np.ndarray, tokenizer: Tokenizer
) -> list[Example]:
    """The pairs of a data file as tokens; an answer ends as the template ends it."""
    made = []
    for row, weight in zip(rows, weights, strict=True):
        texts = [row[side]["content"] + "<|im_end|>" for side in ("chosen", "rejected")]
        chosen, rejected = (tuple(tokenizer(text).input_ids) for text in texts)
        prompt = prompt_ids(row["conversation"][0]["content"], tokenizer)
        made.append(Example(prompt, (chosen, rejected), weight=float(weight)))
    return made


def with_reference(model: Any, examples: Sequence[Example], device: str) -> list[Example]:
    """The examples with their log-probs under ``model``, the starting one."""
    rows = [(one.prompt, answer) for one in examples for answer in one.answers]
    with inference(model):
        found = scorer_on(device).logps(model, CompletionList(rows), "Reference").logps
    both = found.reshape(-1, 2).tolist()
    return [replace(one, reference=tuple(two)) for one, two in zip(examples, both, strict=True)]


def step_of(model: Any, examples: Sequence[Example], base: Base) -> Step:
    """A forward pass over the pairs of an update, chosen answers before rejected ones."""
    rows = [(one.prompt, one.answers[side]) for side in (0, 1) for one in examples]
    ids = [torch.tensor(prompt + answer, device=model.device) for prompt, answer in rows]
    inputs = pad_sequence(ids, batch_first=True, padding_value=PAD)
    place = torch.arange(inputs.shape[1], device=model.device)
    starts, ends = (
        torch.tensor(lengths, device=model.device)[:, None]
        for lengths in ([len(prompt) for prompt, _ in rows], [len(p) + len(a) for p, a in rows])
    )
    is_answer = (place >= starts) & (place < ends)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=model.dtype == torch.bfloat16):
        logits = model(input_ids=inputs, attention_mask=(place < ends).long()).logits
    logps = token_logps(logits[:, :-1], inputs[:, 1:])
    sums = logps.masked_fill(~is_answer[:, 1:], 0.0).sum(dim=1)
    made = Step.of(
        [str(number) for number in range(len(examples))],
        sums.view(2, -1).T,
        torch.tensor([one.reference for one in examples], device=model.device),
        is_answer.sum(dim=1).view(2, -1).T,
        BETA,
        base,
    )
    return replace(made, weight=made.pairs([one.weight for one in examples]))


def fit(
    model: Any, examples: Sequence[Example], recipe: Recipe, check: Callable[[], None]
) -> list[float]:
    """Train what of ``model`` has gradients; the losses of all updates.

    Args:
        model: a causal LM with an adapter.
        examples: pairs with their reference.
        recipe: how to train.
        check: called before every update; it may raise to end.
    """
    batches = list(recipe.batches(len(examples)))
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe.rate, weight_decay=0.0)
    # The host rounds the warmup down.
    warmup = int(WARMUP * len(batches))
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, len(batches))
    model.train()
    losses = []
    for batch in batches:
        check()
        loss = step_of(model, [examples[number] for number in batch], recipe.base).loss()
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return losses


def train(
    task: Task,
    folder: Path,
    rows: Sequence[dict[str, Any]],
    sera: dict[str, Any],
    changes: dict[str, Any],
) -> Path:
    """Train one policy; the folder with its adapter. Arguments as those of ``task_train.train``.

    A run that is cut starts anew.
    """
    out = folder / "out"
    if (out / "adapter_config.json").is_file():
        return out
    recipe, weights = Recipe.of(task, changes), weights_of(sera, rows)
    folder.mkdir(parents=True, exist_ok=True)
    clock = time.process_time if task.device == "cpu" else time.monotonic
    start = clock()
    model, tokenizer = load(task.model, torch.bfloat16, task.device)
    examples = with_reference(model, examples_of(rows, weights, tokenizer), task.device)
    torch.manual_seed(recipe.seed)
    sizes = {"r": LORA_R, "lora_alpha": LORA_ALPHA}
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", **sizes)
    policy = get_peft_model(model, lora)
    losses = fit(policy, examples, recipe, task.check)
    (folder / "losses.txt").write_text("\n".join(f"{loss:.4f}" for loss in losses) + "\n")
    (folder / SECONDS).write_text(f"{clock() - start:.1f}\n", encoding="utf-8")
    beside = folder / "out.part"
    policy.save_pretrained(beside)
    beside.rename(out)
    return out
