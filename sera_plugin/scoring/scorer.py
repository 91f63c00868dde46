"""Log-probs of completions under a model. Collectives: those of ``runtime.passes``.

Batches are formed over the whole job, by length, and dealt to the ranks, so a batch holds the
same rows whatever the number of ranks; a rank without a batch repeats one and drops the result.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator

from sera_plugin.runtime.memory import Fitting
from sera_plugin.runtime.passes import Pass
from sera_plugin.runtime.shards import Origin, Shards
from sera_plugin.scoring.batches import LogpCodec, plan_batches
from sera_plugin.scoring.completions import CompletionList as CompletionList  # its path in 0.1.0
from sera_plugin.scoring.completions import Completions, Tokens
from sera_plugin.scoring.layout import Group
from sera_plugin.scoring.logps import Forward, completion_logps
from sera_plugin.scoring.sharing import (
    BATCHES,
    FORWARD,
    SAVING,
    SharedPlan,
    continued_logps,
    groups_of_tokens,
    plan_shared,
)

SHORTEST = 0.92
"""A row has at least this share of the longest row's tokens in its batch, so that less than a
twelfth of a batch is padding, and about half of that on average."""

SHARD_BATCHES = 32
"""Batches per rank in a shard: seconds of work, beside which writing it takes no time."""


@dataclass(frozen=True)
class Scored:
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


def phase_of(start: float, done: Scored) -> Phase:
    """The phase of one pass that began at ``start`` on the performance counter."""
    return Phase(time.perf_counter() - start, done.tokens, done.padded_tokens)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's mode is put back on leaving."""
    training = {module: module.training for module in model.modules()}
    with torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            for module, mode in training.items():
                module.training = mode


@contextmanager
def inference(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's mode and the RNG are put back."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices), evaluating(model):
        yield


@dataclass(frozen=True)
class Scorer:
    """Scores completions in batches dealt to all ranks.

    Attributes:
        accelerator: the trainer's accelerator.
        pad_token_id: fills rows on the right; masked.
        max_length: rows are cut to this many tokens from the start, as the host's collator does.
        token_budget: most padded tokens of a batch.
        after_shard: called on every rank when a shard is finished; it may raise to end the pass.
        fitting: cuts batches that don't fit the memory.
        shares: whether a prompt is read once for all its answers, where that saves work.
    """

    accelerator: Accelerator
    pad_token_id: int
    max_length: int | None
    token_budget: int
    after_shard: Callable[[], None] | None = None
    fitting: Fitting = field(default_factory=Fitting)
    shares: bool = False

    def logps(
        self,
        forward: Forward,
        completions: Completions,
        description: str,
        origin: Origin | None = None,
    ) -> Scored:
        """Σ log π(y|x) over the tokens of each answer, float64, shape (n,), nats, on every rank.

        Every rank must call this with the same completions.

        Args:
            forward: the model to call; gradients and training mode are the caller's matter.
            completions: what is scored.
            description: text of the progress bar.
            origin: if given, finished shards are stored there and reused.

        Raises:
            StoreError: if a shard can't be written.
        """
        lengths = completions.lengths
        if self.max_length is not None:
            lengths = np.minimum(lengths, self.max_length)
        batches = plan_batches(lengths, self.token_budget, SHORTEST)
        tokens = int(lengths.sum())
        padded = sum(len(rows) * int(lengths[rows].max()) for rows in batches)
        plan = self._shared(completions, lengths, padded + FORWARD * len(batches))
        compute, group = partial(self._alone, forward, completions, batches), SHARD_BATCHES
        if plan is not None:
            batches, tokens, padded = list(plan.batches), plan.tokens, plan.padded
            compute = partial(self._together, forward, completions, plan)
            group = SHARD_BATCHES // BATCHES
        found = Pass(
            self.accelerator,
            description,
            compute,
            LogpCodec(batches),
            group,
            None
            if origin is None
            else partial(self._shards, origin, completions, lengths, plan is not None),
            self.after_shard,
            tokens=lambda number, _: int(lengths[batches[number]].sum()),
        ).results(len(batches))
        logps = np.full(len(lengths), np.nan)
        for number, values in found.items():
            logps[batches[number]] = values
        return Scored(logps, tokens, padded)

    def _shared(
        self, completions: Completions, lengths: np.ndarray, cost: int
    ) -> SharedPlan | None:
        """A plan with shared prompts, if it costs less; it follows from the lengths alone."""
        if not self.shares:
            return None
        plan = plan_shared(
            lengths, completions.prompts, completions.prompt_tokens, self.token_budget
        )
        return plan if plan is not None and plan.cost <= SAVING * cost else None

    def _alone(
        self,
        forward: Forward,
        completions: Completions,
        batches: Sequence[np.ndarray],
        number: int,
    ) -> np.ndarray:
        return self.own_logps(forward, completions.fetch(batches[number].tolist()))

    def _together(
        self, forward: Forward, completions: Completions, plan: SharedPlan, number: int
    ) -> np.ndarray:
        batch = plan.batches[number]
        rows, prompts = completions.fetch(batch.tolist()), completions.prompts[batch]
        # Ranks that hold shares of the weights make every forward pass together.
        forwards = 0 if self.fitting.may_cut else max(plan.forwards)
        return self.shared_logps(forward, rows, prompts, forwards)

    def shared_logps(
        self, forward: Forward, rows: Sequence[Tokens], prompts: np.ndarray, forwards: int = 0
    ) -> np.ndarray:
        """Σ log π(y|x) of one batch on this rank alone, each prompt read once; float64, shape
        (rows,), nats.

        Args:
            forward: the model to call.
            rows: prompts, each with at least one token, and answers; those of a prompt together.
            prompts: numbers of the prompts, shape (rows,).
            forwards: least number of forward passes over answers.
        """

        def size(part: Sequence[Group]) -> int:
            return sum(group.size for group in part)

        groups = groups_of_tokens(rows, prompts, self.max_length)
        found = self.fitting.run(
            groups,
            size,
            lambda part: continued_logps(
                forward,
                part,
                self.pad_token_id,
                self.token_budget,
                self.accelerator.device,
                forwards,
            ),
        )
        return np.array([logp for each in found for logp in each], dtype=np.float64)

    def own_logps(self, forward: Forward, rows: Sequence[Tokens]) -> np.ndarray:
        """Σ log π(y|x) of one batch on this rank alone, float64, shape (rows,), nats."""

        def size(part: Sequence[Tokens]) -> int:
            return len(part) * max(len(prompt) + len(answer) for prompt, answer in part)

        found = self.fitting.run(rows, size, lambda part: self._batch(forward, part))
        return np.array(found, dtype=np.float64)

    def _shards(
        self, origin: Origin, completions: Completions, lengths: np.ndarray, shared: bool
    ) -> Shards:
        determined_by = {
            "pass": "logps",
            "shared": shared,
            "completions": completions.digest(),
            "lengths": hashlib.blake2b(lengths.tobytes(), digest_size=16).hexdigest(),
            "max_length": self.max_length,
            "pad_token_id": self.pad_token_id,
            "token_budget": self.token_budget,
            "mixed_precision": self.accelerator.mixed_precision,
        }
        return Shards.of(origin, determined_by)

    def _batch(self, forward: Forward, rows: Sequence[Tokens]) -> list[float]:
        ids = [np.concatenate(row).astype(np.int64)[: self.max_length] for row in rows]
        input_ids = np.full((len(rows), max(map(len, ids))), self.pad_token_id)
        is_token, is_answer = np.zeros((2, *input_ids.shape), dtype=bool)
        for row, (tokens, (prompt, _)) in enumerate(zip(ids, rows, strict=True)):
            input_ids[row, : len(tokens)] = tokens
            is_token[row, : len(tokens)] = True
            is_answer[row, len(prompt) : len(tokens)] = True
        device = self.accelerator.device
        inputs = {
            "input_ids": torch.from_numpy(input_ids).to(device),
            "attention_mask": torch.from_numpy(is_token).long().to(device),
        }
        answers = torch.from_numpy(is_answer).to(device)
        return completion_logps(forward, inputs, answers).tolist()
