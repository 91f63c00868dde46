"""Log-probs of completions under a model. Collectives: one gather at the end of each pass.

Batches are formed over the whole job, by length, and dealt to the ranks, so a batch holds the
same rows whatever the number of ranks; a rank without a batch repeats one and drops the result.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from sera_plugin.host import selective_log_softmax

Forward = Callable[..., Any]


class Completions(Protocol):
    """Prompts with their answers, fetched one by one.

    Attributes:
        lengths: tokens of prompt and answer together, int64, shape (n,).
    """

    @property
    def lengths(self) -> np.ndarray: ...

    def __getitem__(self, index: int) -> tuple[Sequence[int], Sequence[int]]:
        """Token ids of the prompt and of the answer."""


@dataclass(frozen=True)
class Answers:
    """Completions held in memory, as (prompt_ids, completion_ids)."""

    rows: Sequence[tuple[Sequence[int], Sequence[int]]]

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(prompt) + len(answer) for prompt, answer in self.rows], dtype=np.int64)

    def __getitem__(self, index: int) -> tuple[Sequence[int], Sequence[int]]:
        return self.rows[index]


@dataclass(frozen=True)
class Pass:
    """What one scoring pass did."""

    logps: np.ndarray
    tokens: int
    padded_tokens: int


@dataclass(frozen=True)
class Phase:
    """Seconds and tokens of one phase of a review."""

    seconds: float = 0.0
    tokens: int = 0
    padded_tokens: int = 0

    def __add__(self, other: Phase) -> Phase:
        return Phase(
            self.seconds + other.seconds,
            self.tokens + other.tokens,
            self.padded_tokens + other.padded_tokens,
        )


def phase_of(start: float, done: Pass) -> Phase:
    """The phase of one pass that began at ``start`` on the performance counter."""
    return Phase(time.perf_counter() - start, done.tokens, done.padded_tokens)


def plan_batches(lengths: np.ndarray, token_budget: int) -> list[np.ndarray]:
    """Cut rows, longest first, into batches of at most ``token_budget`` padded tokens.

    A row longer than the budget gets a batch of its own. Ties in length keep their order, so the
    batches depend on the lengths alone.
    """
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        rows = max(1, int(token_budget // max(1, int(lengths[order[start]]))))
        batches.append(order[start : start + rows])
        start += rows
    return batches


@contextmanager
def inference(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's mode and the RNG are put back."""
    training = {module: module.training for module in model.modules()}
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        model.eval()
        try:
            yield
        finally:
            for module, mode in training.items():
                module.training = mode


@dataclass(frozen=True)
class Scorer:
    """Scores completions in batches dealt to all ranks.

    Attributes:
        accelerator: the trainer's accelerator.
        pad_token_id: fills rows on the right; masked.
        max_length: rows are cut to this many tokens from the start, as the host's collator does.
        token_budget: most padded tokens of a batch.
    """

    accelerator: Accelerator
    pad_token_id: int
    max_length: int | None
    token_budget: int

    def logps(self, forward: Forward, completions: Completions, description: str) -> Pass:
        """Σ log π(y|x) over the tokens of each answer, float64, shape (n,), nats, on every rank.

        Every rank must call this with the same completions.

        Args:
            forward: the model to call; gradients and training mode are the caller's matter.
            completions: what is scored.
            description: text of the progress bar.
        """
        lengths = completions.lengths
        if self.max_length is not None:
            lengths = np.minimum(lengths, self.max_length)
        batches = plan_batches(lengths, self.token_budget)
        ranks, rank = self.accelerator.num_processes, self.accelerator.process_index
        found: list[tuple[np.ndarray, np.ndarray]] = []
        steps = range(0, len(batches), ranks)
        for first in tqdm(steps, desc=description, disable=not self.accelerator.is_main_process):
            mine = first + rank
            rows = batches[mine if mine < len(batches) else first]
            values = self._batch(forward, [completions[int(row)] for row in rows])
            if mine < len(batches):
                found.append((rows, values))
        logps = np.full(len(lengths), np.nan)
        for rows, values in gather_object(found):
            logps[rows] = values
        padded = sum(len(rows) * int(lengths[rows].max()) for rows in batches)
        return Pass(logps, int(lengths.sum()), padded)

    def _batch(
        self, forward: Forward, rows: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> np.ndarray:
        ids = [[*prompt, *answer][: self.max_length] for prompt, answer in rows]
        width = max(map(len, ids))
        first = max(1, min(len(prompt) for prompt, _ in rows))
        input_ids = torch.full((len(rows), width), self.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        is_answer = torch.zeros((len(rows), width), dtype=torch.bool)
        for row, (tokens, (prompt, _)) in enumerate(zip(ids, rows, strict=True)):
            input_ids[row, : len(tokens)] = torch.tensor(tokens)
            attention_mask[row, : len(tokens)] = 1
            is_answer[row, len(prompt) : len(tokens)] = True
        device = self.accelerator.device
        input_ids, attention_mask = input_ids.to(device), attention_mask.to(device)
        options = {"logits_to_keep": width - first + 1} if _keeps_logits(forward) else {}
        logits = forward(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **options
        ).logits
        logits = logits[:, logits.shape[1] - (width - first + 1) : -1]
        logps = selective_log_softmax(logits, input_ids[:, first:]).double().cpu()
        return logps.masked_fill(~is_answer[:, first:], 0.0).sum(dim=1).numpy()


def _keeps_logits(forward: Forward) -> bool:
    """Whether the causal LM below the wrappers can compute the last positions' logits alone."""
    module: Any = forward
    while True:
        inner = getattr(module, "module", None)
        if inner is None and hasattr(module, "get_base_model"):
            inner = module.get_base_model()
        if inner is None or inner is module:
            break
        module = inner
    return "logits_to_keep" in inspect.signature(type(module).forward).parameters
