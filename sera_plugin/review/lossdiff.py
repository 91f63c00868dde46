"""The auxiliary policy of LossDiff: aligned on the evaluation pairs for one epoch (2510.13212).

It starts where the run starts and takes the policy's own place while it is aligned and scores D;
then the policy's weights are put back. Its log-probs are kept with the finished passes, so that a
resumed run need not make it again. Collectives: those of the model and of scoring.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, concatenate_datasets
from transformers import get_linear_schedule_with_warmup

from sera_plugin.data.ids import dataset_hash, permutation
from sera_plugin.data.margins import PairLogps, log_ratios, margins
from sera_plugin.data.pairs import OfflineAnswers, OfflinePairs
from sera_plugin.runtime.logs import logger
from sera_plugin.runtime.ranks import shared
from sera_plugin.runtime.shards import REFERENCE, Origin, Shards
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
    return _losses(policy_margin, beta, loss_type) - _losses(auxiliary_margin, beta, loss_type)


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


def auxiliary_of(trainer: Any, model: torch.nn.Module, *, resumed: bool) -> Auxiliary | None:
    """Align the auxiliary policy and score D with it, or read what is stored of that.

    None where the rule of selection needs no such policy.

    Every rank must call this.

    Args:
        trainer: the run's trainer, with reference log-probs of D and of the evaluation pairs.
        model: the wrapped policy, with the weights that the run starts from unless resumed.
        resumed: whether the policy has been trained already.

    Raises:
        RuntimeError: if the run is resumed and nothing is stored.
    """
    if trainer.sera.selection.rule != "lossdiff_irm":
        return None
    logps = _logps(trainer, model, resumed=resumed)
    return Auxiliary(logps, trainer.beta, trainer.loss_types[0])


def _logps(trainer: Any, model: torch.nn.Module, *, resumed: bool) -> PairLogps:
    shards = _shards(trainer)
    stored = shared(lambda: shards.read() if shards is not None else [])
    if stored:
        chosen, rejected = (stored[0][name].to_numpy() for name in ("chosen", "rejected"))
        return PairLogps(trainer.pairs.ids, chosen, rejected)
    if resumed:
        raise RuntimeError(
            f"can't resume: {trainer.store.work} has no log-probs of the auxiliary policy, which "
            "sera.selection.rule: lossdiff_irm needs; restore it, or start anew."
        )
    held_out = _evaluation_pairs(trainer)
    LOG.info(
        "LossDiff: the auxiliary policy is aligned on %d evaluation pairs, as much work as %.0f%% "
        "of a round on all of D, and scores %d pairs.",
        len(held_out),
        100 * len(held_out) / len(trainer.pairs),
        len(trainer.pairs),
    )
    start = Snapshot.take(trainer.policies.unwrapped)
    try:
        with _own_random_numbers(trainer):
            _align(trainer, model, held_out)
        with trainer.policies.policy() as forward:
            scored = trainer.reviewer.scorer.logps(
                forward, OfflineAnswers(trainer.pairs), "Auxiliary log-probs"
            )
    finally:
        start.put_back(trainer.policies.unwrapped)
    found = trainer.pairs.pair_logps(scored.logps)
    if shards is not None:
        shards.write(pa.table({"chosen": found.chosen, "rejected": found.rejected}))
    return found


def _shards(trainer: Any) -> Shards | None:
    origin: Origin = trainer.policies.reference_origin(REFERENCE)
    if not trainer.accelerator.is_main_process:
        return None
    args = trainer.args
    held_out = [i for pairs in trainer.held_out.pairs.values() for i in pairs.ids]
    return Shards.of(
        origin,
        {
            "pass": "auxiliary",
            "pairs": dataset_hash(trainer.pairs.ids),
            "evaluation": dataset_hash(held_out),
            "seed": args.seed,
            "beta": trainer.beta,
            "loss": list(trainer.loss_types),
            "learning_rate": args.learning_rate,
            "weight_decay": args.weight_decay,
            "max_grad_norm": args.max_grad_norm,
            "max_length": args.max_length,
            "micro_batch": args.per_device_train_batch_size,
            "batch": _batch_size(trainer),
            "mixed_precision": trainer.accelerator.mixed_precision,
            "ranks": trainer.accelerator.num_processes,
        },
    )


def _evaluation_pairs(trainer: Any) -> Dataset:
    given = trainer.eval_dataset
    parts = given.values() if isinstance(given, dict) else [given]
    return concatenate_datasets([part.select_columns(COLUMNS) for part in parts])


def _batch_size(trainer: Any) -> int:
    return int(trainer.args.per_device_train_batch_size * trainer.args.gradient_accumulation_steps)


def _align(trainer: Any, model: torch.nn.Module, pairs: Dataset) -> None:
    """One epoch of the host's own loss on ``pairs``, learning rate falling to 0."""
    args, accelerator = trainer.args, trainer.accelerator
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, args.learning_rate, weight_decay=args.weight_decay)
    ids = OfflinePairs.of(pairs, args.max_length).ids
    order = permutation(ids, args.seed, "auxiliary")
    micro, ranks = args.per_device_train_batch_size, accelerator.num_processes
    whole = _batch_size(trainer) * ranks
    updates = max(1, len(order) // whole)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, updates)
    model.train()
    for number in range(updates):
        rows = order[number * whole : (number + 1) * whole][accelerator.process_index :: ranks]
        batches = [rows[i : i + micro] for i in range(0, len(rows), micro)]
        for batch in batches:
            inputs = trainer.data_collator([pairs[int(i)] for i in batch])
            with accelerator.autocast():
                loss = trainer.loss_of(model, inputs)
            (loss / len(batches)).backward()
        if args.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(parameters, args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


@contextmanager
def _own_random_numbers(trainer: Any) -> Iterator[None]:
    """The run's own random numbers go on afterwards as if nothing had been drawn."""
    states = random.getstate(), np.random.get_state()
    devices = [trainer.accelerator.device] if trainer.accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(trainer.args.seed)
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])
