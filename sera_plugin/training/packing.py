"""Whether a run's training steps can do without padding, found out before the first one.

Collectives: those of scoring, and a gather.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sera_plugin.config import TrainingConfig
from sera_plugin.data.dealing import dealt_by_length, row_lengths
from sera_plugin.data.rounds import RoundRow
from sera_plugin.host.models import attention_of
from sera_plugin.runtime.logs import logger
from sera_plugin.scoring.layout import Group, layout
from sera_plugin.scoring.logps import Forward, causal_lm
from sera_plugin.scoring.packed import Packed
from sera_plugin.training.objective import BASES
from sera_plugin.training.run import Run
from sera_plugin.training.sharing import (
    FAILURES,
    Checked,
    Pair,
    compared,
    refuse,
    said_by,
    tried_pairs,
)

LOG = logger(__name__)

MASKED = ("sdpa", "eager")
"""Ways to attend that take a mask of one's own."""


def packed_steps(run: Run) -> Packed | None:
    """How training steps are computed without padding, or None for the host's way.

    Every rank must call this alike.

    Raises:
        SeraConfigError: one sentence, if a switch is on that can't work.
    """
    wanted = run.config.training
    if wanted.packing is False:
        return None
    why_not = _beforehand(run, wanted)
    if why_not is None:
        for shared in (True, False) if wanted.shared_prompts is not False else (False,):
            packed = _packed(run, shared=shared)
            found = _checked(run, packed)
            if found.why_not is None:
                _say(found, packed)
                return packed
            if shared:
                refuse(wanted.shared_prompts, "shared_prompts", found.why_not)
                LOG.info("Training steps can't share prompts, because %s.", found.why_not)
            why_not = found.why_not
    for key in ("packing", "shared_prompts", "merged"):
        refuse(getattr(wanted, key), key, why_not or "")
    LOG.info("Training steps are computed with padding, the host's way, because %s.", why_not)
    return None


def in_updates(run: Run, rows: list[RoundRow]) -> list[RoundRow]:
    """A round's rows in the order in which they are trained on: by length within each update."""
    wanted = run.config.training.group_by_length
    if wanted == "auto":
        terms = run.objective.terms if run.objective is not None else ()
        wanted = not (run.host.mixes_pairs or any(term.mixes_pairs for term in terms))
    if not wanted:
        return rows
    lengths = row_lengths(rows, run.pairs, run.host.max_length)
    return [rows[number] for number in dealt_by_length(lengths, run.host.batching)]


def _say(found: Checked, packed: Packed) -> None:
    LOG.info(
        "Training steps are computed without padding%s; log-probs of the pairs tried are those of "
        "each answer alone within %.1e nats.",
        " and read a prompt once for both answers" if packed.shared else "",
        found.difference,
    )


def _beforehand(run: Run, wanted: TrainingConfig) -> str | None:
    host, model = run.host, causal_lm(run.host.models.policy)
    if host.not_of_pairs is not None:
        return host.not_of_pairs
    if host.loss_types[0] not in BASES:
        return f"the loss {host.loss_types[0]} may need more than the log-probs of each pair"
    for term, named in zip(
        run.objective.terms if run.objective else (), run.config.terms, strict=True
    ):
        if term.reads_logits and wanted.packing is not True:
            return f"the term {named.name} may read logits (packing: true says that it doesn't)"
    attention = attention_of(model)
    if attention not in MASKED and wanted.packing is not True:
        return f"that has not been tried with attention {attention} (packing: true tries it)"
    return None


def _packed(run: Run, *, shared: bool) -> Packed:
    model = causal_lm(run.host.models.policy)
    attention = attention_of(model)
    hidden = getattr(getattr(model, "config", None), "hidden_size", None)
    return Packed(
        pad=run.sampling.pad_token_id,
        shared=shared,
        # Of a block's work per token, 24·hidden² goes into its matrices and 4·hidden into every
        # token that is attended to. Other ways to attend skip what a mask rules out.
        linear=6 * int(hidden or 512) if attention in MASKED else None,
        additive=attention == "eager",
    )


def _checked(run: Run, packed: Packed) -> Checked:
    """Compare the log-probs of some pairs in one row with those of each answer alone."""
    attention = attention_of(causal_lm(run.host.models.policy))
    if packed.shared and attention not in MASKED:
        return Checked(f"attention {attention} takes no mask of its own")
    pairs = tried_pairs(run.pairs, run.config.bootstrap, run.host.max_length)
    if not pairs:
        return Checked("no pair has tokens of both answers within sequence_len")
    rows = [(pair[0], answer) for pair in pairs for answer in pair[1:]]
    scorer = run.reviewer.scorer
    with run.policies.policy() as forward:
        alone = np.concatenate([scorer.own_logps(forward, [row]) for row in rows])
        padded = scorer.own_logps(forward, rows)
        try:
            together = _together(forward, packed, pairs, run.host.max_length)
            why_not = None
        except FAILURES as error:
            together, why_not = alone, said_by(error)
    return compared(alone, padded, together, why_not, "sequences share a row")


def _together(
    forward: Forward, packed: Packed, pairs: Sequence[Pair], max_length: int | None
) -> np.ndarray:
    groups = []
    for number, (prompt, *answers) in enumerate(pairs):
        cut = [
            answer[: max(0, (max_length or len(prompt) + len(answer)) - len(prompt))]
            for answer in answers
        ]
        owners = (2 * number, 2 * number + 1)
        if packed.shared:
            groups.append(Group(prompt, tuple(cut), owners))
        else:
            groups += [
                Group(prompt, (one,), (owner,)) for one, owner in zip(cut, owners, strict=True)
            ]
    device = next(causal_lm(forward).parameters()).device
    found = packed.of_layout(forward, layout(groups, packed.pad, None, device), 2 * len(pairs))
    sums: torch.Tensor = found.sums(found.logps.double())
    return sums.cpu().numpy()
