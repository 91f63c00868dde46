"""Log-probs of completions under a model. Collectives: those of ``dealing``.

Batches are formed over the whole job, by length, and dealt to the ranks, so a batch holds the
same rows whatever the number of ranks; a rank without a batch repeats one and drops the result.
"""

from __future__ import annotations

import hashlib
import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from accelerate import Accelerator

from sera_plugin.dealing import deal
from sera_plugin.host import selective_log_softmax
from sera_plugin.shards import Origin, Shards

Forward = Callable[..., Any]

SHARD_BATCHES = 32
"""Batches per rank in a shard: seconds of work, beside which writing it takes no time."""


class Completions(Protocol):
    """Prompts with their answers, fetched one by one.

    Attributes:
        lengths: tokens of prompt and answer together, int64, shape (n,).
    """

    @property
    def lengths(self) -> np.ndarray: ...

    def __getitem__(self, index: int) -> tuple[Sequence[int], Sequence[int]]:
        """Token ids of the prompt and of the answer."""

    def digest(self) -> str:
        """Hash of all token ids in their order."""


@dataclass(frozen=True)
class Answers:
    """Completions held in memory, as (prompt_ids, completion_ids)."""

    rows: Sequence[tuple[Sequence[int], Sequence[int]]]

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(prompt) + len(answer) for prompt, answer in self.rows], dtype=np.int64)

    def __getitem__(self, index: int) -> tuple[Sequence[int], Sequence[int]]:
        return self.rows[index]

    def digest(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for row in self.rows:
            for part in row:
                digest.update(len(part).to_bytes(8, "big"))
                digest.update(np.asarray(part, dtype=np.int64).tobytes())
        return digest.hexdigest()


class LogpCodec:
    """Log-probs of batches as a table with a row per completion."""

    def __init__(self, batches: Sequence[np.ndarray]) -> None:
        self._batches = batches

    def encode(self, found: Mapping[int, np.ndarray]) -> pa.Table:
        return pa.table(
            {
                "batch": np.repeat(list(found), [len(values) for values in found.values()]),
                "completion": np.concatenate([self._batches[number] for number in found]),
                "logp": np.concatenate(list(found.values())),
            }
        )

    def decode(self, table: pa.Table) -> dict[int, np.ndarray]:
        numbers, logps = table["batch"].to_numpy(), table["logp"].to_numpy()
        return {int(number): logps[numbers == number] for number in np.unique(numbers)}


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
    """

    accelerator: Accelerator
    pad_token_id: int
    max_length: int | None
    token_budget: int
    after_shard: Callable[[], None] | None = None

    def logps(
        self,
        forward: Forward,
        completions: Completions,
        description: str,
        origin: Origin | None = None,
    ) -> Pass:
        """Σ log π(y|x) over the tokens of each answer, float64, shape (n,), nats, on every rank.

        Every rank must call this with the same completions.

        Args:
            forward: the model to call; gradients and training mode are the caller's matter.
            completions: what is scored.
            description: text of the progress bar.
            origin: if given, finished shards are stored there and reused.

        Raises:
            OSError: if a shard can't be written.
        """
        lengths = completions.lengths
        if self.max_length is not None:
            lengths = np.minimum(lengths, self.max_length)
        batches = plan_batches(lengths, self.token_budget)
        found = deal(
            self.accelerator,
            len(batches),
            lambda number: self._batch(forward, [completions[int(i)] for i in batches[number]]),
            group=SHARD_BATCHES,
            description=description,
            codec=LogpCodec(batches),
            shards=self._shards(origin, completions, lengths),
            stored=origin is not None,
            after_shard=self.after_shard,
            tokens=lambda number, _: int(lengths[batches[number]].sum()),
        )
        logps = np.full(len(lengths), np.nan)
        for number, values in found.items():
            logps[batches[number]] = values
        padded = sum(len(rows) * int(lengths[rows].max()) for rows in batches)
        return Pass(logps, int(lengths.sum()), padded)

    def _shards(
        self, origin: Origin | None, completions: Completions, lengths: np.ndarray
    ) -> Shards | None:
        if origin is None or not self.accelerator.is_main_process:
            return None
        determined_by = {
            "pass": "logps",
            "completions": completions.digest(),
            "lengths": hashlib.blake2b(lengths.tobytes(), digest_size=16).hexdigest(),
            "max_length": self.max_length,
            "pad_token_id": self.pad_token_id,
            "token_budget": self.token_budget,
            "mixed_precision": self.accelerator.mixed_precision,
        }
        return Shards.of(origin, determined_by)

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
        logps = answer_logps(
            forward, input_ids.to(device), attention_mask.to(device), is_answer.to(device), first
        )
        return logps.cpu().numpy()


def answer_logps(
    forward: Forward,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    is_answer: torch.Tensor,
    first: int,
) -> torch.Tensor:
    """Σ log π(y|x) over the tokens of each answer, float64, shape (rows,), nats.

    Args:
        forward: the model to call; gradients and training mode are the caller's matter.
        input_ids: prompts with their answers, padded on the right, int64, shape (rows, width).
        attention_mask: 1 at tokens, 0 at padding; the same shape.
        is_answer: nonzero at the tokens of the answers; the same shape.
        first: a position from 1 on before which no row has an answer's token.
    """
    kept = input_ids.shape[1] - first + 1
    options = {"logits_to_keep": kept} if _keeps_logits(forward) else {}
    logits = forward(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **options
    ).logits
    logits = logits[:, logits.shape[1] - kept : -1]
    logps = selective_log_softmax(logits, input_ids[:, first:]).double()
    return logps.masked_fill(is_answer[:, first:] == 0, 0.0).sum(dim=1)


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
