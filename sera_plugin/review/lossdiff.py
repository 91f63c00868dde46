"""The auxiliary policy of LossDiff: aligned on the evaluation pairs for one epoch (2510.13212).

It starts where the run starts and takes the policy's own place while it is aligned and scores D;
then the policy's weights are put back. Its log-probs are kept with the finished passes, so that a
resumed run need not make it again. Collectives: those of the model and of scoring.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from accelerate import Accelerator
from datasets import Dataset, concatenate_datasets
from transformers import get_linear_schedule_with_warmup

from sera_plugin.data.ids import dataset_hash, permutation
from sera_plugin.data.margins import PairLogps, log_ratios, margins
from sera_plugin.data.pairs import OfflineCompletions, OfflinePairs
from sera_plugin.host.facts import Optimization
from sera_plugin.runtime.errors import StoreError
from sera_plugin.runtime.logs import logger
from sera_plugin.runtime.ranks import shared
from sera_plugin.runtime.shards import REFERENCE, Origin, Shards
from sera_plugin.scoring.policies import Policies
from sera_plugin.scoring.scorer import Scorer
from sera_plugin.scoring.snapshot import Snapshot

LOG = logger(__name__)

COLUMNS = ["prompt_ids", "chosen_ids", "rejected_ids", "ref_chosen_logps", "ref_rejected_logps"]


def loss_difference(
    policy_margin: np.ndarray, auxiliary_margin: np.ndarray, beta: float, loss_type: str
) -> np.ndarray:
    """LossDiff: each pair's loss under the policy minus its loss under the auxiliary policy.

    Args:
        policy_margin: implicit reward margins under the policy, float64, shape (n,): of sums for
            DPO, of means per token for IPO.
        auxiliary_margin: the same under the auxiliary policy.
        beta: β of the loss.
        loss_type: ``sigmoid``, −log σ(β·m), or ``ipo``, (m − 1/(2β))².

    Raises:
        ValueError: for another loss.
    """
    difference: np.ndarray = _losses(policy_margin, beta, loss_type) - _losses(
        auxiliary_margin, beta, loss_type
    )
    return difference


def _losses(margin: np.ndarray, beta: float, loss_type: str) -> np.ndarray:
    if loss_type == "sigmoid":
        return np.logaddexp(0.0, -beta * margin)
    if loss_type == "ipo":
        return (margin - 1 / (2 * beta)) ** 2
    raise ValueError(f"LossDiff knows the losses sigmoid and ipo, not {loss_type}")


@dataclass(frozen=True)
class Auxiliary:
    """What LossDiff needs of the auxiliary policy.

    Attributes:
        logps: log-probs of D under it.
        beta: β of the loss.
        loss_type: ``sigmoid`` or ``ipo``.
    """

    logps: PairLogps
    beta: float
    loss_type: str

    def difference(
        self, policy: PairLogps, reference: PairLogps, pairs: OfflinePairs
    ) -> np.ndarray:
        """LossDiff of every pair, float64, shape (n,); both log-probs are of D."""
        kind = "mean" if self.loss_type == "ipo" else "sum"
        one, other = (
            margins(
                log_ratios(model.aligned(pairs.ids), reference),
                pairs.chosen_tokens,
                pairs.rejected_tokens,
                kind,
            )
            for model in (policy, self.logps)
        )
        return loss_difference(one, other, self.beta, self.loss_type)


@dataclass(frozen=True)
class Alignment:
    """How the auxiliary policy is aligned: as the run itself is trained.

    Attributes:
        seed: the run's seed.
        beta: β of the loss.
        loss_types: the host's names of the loss.
        optimization: learning rate and the like.
        max_length: the loss sees this many tokens of prompt and answer.
        micro_batch: pairs of a device's micro-batch.
        accumulation: micro-batches of an update.
    """

    seed: int
    beta: float
    loss_types: tuple[str, ...]
    optimization: Optimization
    max_length: int | None
    micro_batch: int
    accumulation: int

    @property
    def batch(self) -> int:
        """Pairs of an update on one device."""
        return self.micro_batch * self.accumulation


@dataclass(frozen=True)
class Aligner:
    """Makes the auxiliary policy. Every rank must have one and call it alike.

    Attributes:
        alignment: how it is aligned.
        accelerator: the trainer's accelerator.
        policies: the models.
        scorer: finds log-probs.
        pairs: D.
        evaluation: the evaluation pairs with reference log-probs, one dataset per set.
        evaluation_ids: their ids, also of those that were set aside.
        loss: the host's loss of a list of rows under a model, a scalar.
    """

    alignment: Alignment
    accelerator: Accelerator
    policies: Policies
    scorer: Scorer
    pairs: OfflinePairs
    evaluation: Sequence[Dataset]
    evaluation_ids: Sequence[str]
    loss: Callable[[torch.nn.Module, list[dict[str, Any]]], torch.Tensor]

    def auxiliary(self, model: torch.nn.Module, *, resumed: bool) -> Auxiliary:
        """Align the auxiliary policy and score D with it, or read what is stored of that.

        Args:
            model: the wrapped policy, with the weights that the run starts from unless resumed.
            resumed: whether the policy has been trained already.

        Raises:
            StoreError: if the run is resumed and nothing is stored.
        """
        logps = self._logps(model, resumed=resumed)
        return Auxiliary(logps, self.alignment.beta, self.alignment.loss_types[0])

    def _logps(self, model: torch.nn.Module, *, resumed: bool) -> PairLogps:
        origin = self.policies.reference_origin(REFERENCE)
        shards = self.shards(origin)
        stored = shared(lambda: shards.read() if shards is not None else [])
        if stored:
            chosen, rejected = (stored[0][name].to_numpy() for name in ("chosen", "rejected"))
            return PairLogps(self.pairs.ids, chosen, rejected)
        if resumed:
            raise StoreError(
                f"can't resume: {origin.folder} has no log-probs of the auxiliary policy, which "
                "sera.selection.rule: lossdiff_irm needs; restore it, or start anew."
            )
        evaluation = concatenate_datasets(
            [part.select_columns(COLUMNS) for part in self.evaluation]
        )
        LOG.info(
            "LossDiff: the auxiliary policy is aligned on %d evaluation pairs, as much work as "
            "%.0f%% of a round on all of D, and scores %d pairs.",
            len(evaluation),
            100 * len(evaluation) / len(self.pairs),
            len(self.pairs),
        )
        start = Snapshot.take(self.policies.unwrapped)
        try:
            with own_random_numbers(self.alignment.seed, self.accelerator.device):
                self._align(model, evaluation)
            with self.policies.policy() as forward:
                scored = self.scorer.logps(
                    forward, OfflineCompletions(self.pairs), "Auxiliary log-probs"
                )
        finally:
            start.put_back(self.policies.unwrapped)
        found = self.pairs.pair_logps(scored.logps)
        if shards is not None:
            shards.write(pa.table({"chosen": found.chosen, "rejected": found.rejected}))
        return found

    def shards(self, origin: Origin) -> Shards | None:
        """Where the log-probs are kept, on the main process."""
        if not self.accelerator.is_main_process:
            return None
        how = self.alignment
        return Shards.of(
            origin,
            {
                "pass": "auxiliary",
                "pairs": dataset_hash(self.pairs.ids),
                "evaluation": dataset_hash(self.evaluation_ids),
                "seed": how.seed,
                "beta": how.beta,
                "loss": list(how.loss_types),
                "learning_rate": how.optimization.learning_rate,
                "weight_decay": how.optimization.weight_decay,
                "max_grad_norm": how.optimization.max_grad_norm,
                "max_length": how.max_length,
                "micro_batch": how.micro_batch,
                "batch": how.batch,
                "mixed_precision": self.accelerator.mixed_precision,
                "ranks": self.accelerator.num_processes,
            },
        )

    def _align(self, model: torch.nn.Module, pairs: Dataset) -> None:
        """One epoch of the host's own loss on ``pairs``, learning rate falling to 0."""
        how, accelerator = self.alignment, self.accelerator
        rates = how.optimization
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, rates.learning_rate, weight_decay=rates.weight_decay
        )
        ids = OfflinePairs.of(pairs, how.max_length).ids
        order = permutation(ids, how.seed, "auxiliary")
        micro, ranks = how.micro_batch, accelerator.num_processes
        whole = how.batch * ranks
        updates = max(1, len(order) // whole)
        schedule = get_linear_schedule_with_warmup(optimizer, 0, updates)
        model.train()
        for number in range(updates):
            rows = order[number * whole : (number + 1) * whole][accelerator.process_index :: ranks]
            batches = [rows[i : i + micro] for i in range(0, len(rows), micro)]
            for batch in batches:
                loss = self.loss(model, [pairs[int(i)] for i in batch])
                (loss / len(batches)).backward()
            if rates.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(parameters, rates.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()


@contextmanager
def own_random_numbers(seed: int, device: torch.device) -> Iterator[None]:
    """The run's own random numbers go on afterwards as if nothing had been drawn."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])
