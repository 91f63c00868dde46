"""The loss of a step by an objective of ours in the place of the host's, logged beside the host's.

Every rank calls these alike: what is logged is gathered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from trl import DPOTrainer

from sera_plugin.data.rounds import ROW_KEY
from sera_plugin.host.merged_step import joined
from sera_plugin.host.models import answer_sums
from sera_plugin.host.packed_step import log_step, reference_of, token_counts
from sera_plugin.host.rounds import Objective, Rounds

Batch = Mapping[str, Any]


def padded_loss(
    trainer: DPOTrainer,
    objective: Objective,
    keys: Sequence[str],
    prepared: Any,
    outputs: Any,
    batch: Batch,
) -> torch.Tensor:
    """The loss of a micro-batch, a scalar, from the logits that the host's loss was made of.

    Args:
        trainer: whose log it goes into.
        objective: makes it.
        keys: of the batch's rows.
        prepared: what the objective found before the forward pass.
        outputs: of the model for the padded batch.
        batch: of the host's collator.
    """
    tokens, is_answer = batch["input_ids"][:, 1:], batch["completion_mask"][:, 1:]
    # In the type that TRL's loss sums in.
    logits = outputs.logits
    logps = answer_sums(logits[:, :-1], tokens, is_answer, dtype=logits.dtype)
    policy = torch.stack(logps.chunk(2), dim=1)
    loss = _loss(trainer, objective, keys, prepared, policy, batch, logits)
    if trainer.aux_loss_enabled:
        loss = loss + trainer.router_aux_loss_coef * outputs.aux_loss
    return loss


def packed_loss(
    trainer: DPOTrainer, rounds: Rounds, model: Any, batches: Sequence[Batch]
) -> torch.Tensor:
    """The sum of the losses of micro-batches, a scalar, from one pass without padding.

    Args:
        trainer: whose log each micro-batch goes into, as the host's own does.
        rounds: with ``packed`` and an objective.
        model: the policy that the training loop calls.
        batches: of the host's collator, with the keys of their rows.
    """
    packed, objective = rounds.packed, rounds.objective
    assert packed is not None
    assert objective is not None
    prepared = [objective.prepare(batch[ROW_KEY]) for batch in batches]
    found = packed(model, joined(batches))
    losses, first = [], 0
    for batch, known in zip(batches, prepared, strict=True):
        keys = batch[ROW_KEY]
        part = found.part(first, first + len(keys)) if len(batches) > 1 else found
        first += len(keys)
        policy = part.pairs(part.logps)
        if rounds.notes_logps:
            rounds.note_logps(keys, part.pairs(part.logps.detach().double()).cpu())
        log_step(trainer, batch, part)
        losses.append(_loss(trainer, objective, keys, known, policy, batch, None))
    return torch.stack(losses).sum()


def _loss(
    trainer: DPOTrainer,
    objective: Objective,
    keys: Sequence[str],
    prepared: Any,
    policy: torch.Tensor,
    batch: Batch,
    logits: torch.Tensor | None,
) -> torch.Tensor:
    reference, tokens = reference_of(batch), token_counts(batch)
    loss, noted = objective.loss(keys, prepared, policy, reference, tokens, logits)
    for name, values in noted.items():
        trainer._metrics["train"][name].append(trainer.accelerator.gather(values).mean().item())
    return loss
