"""Which micro-batches of an update share a pass, from lengths and the sizes of the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sera_plugin.data.dealing import passes_of, row_tokens
from sera_plugin.data.rounds import RoundRow
from sera_plugin.runtime.logs import logger
from sera_plugin.scoring.logps import causal_lm
from sera_plugin.scoring.packed import Packed
from sera_plugin.training.run import Run

LOG = logger(__name__)

SHARE = 0.5
"""Of the memory that the host's step on the longest pairs takes, what a pass may take."""
PER_BLOCK = 17
"""Numbers that a block keeps per token for the backward pass, in widths of the model."""
PER_LOGIT = 3
"""Numbers per logit where all are made at once: logits, their softmax, a gradient."""


def most_tokens(run: Run) -> float:
    """Tokens that a packed pass may have; 0 for one micro-batch a pass.

    With `auto` the pass needs SHARE of the memory that a micro-batch of the longest pairs needs the
    host's way, which every run meets: 2·m·L·(b + 3·V) numbers for m pairs padded to L tokens and a
    vocabulary of V. b is what blocks keep per token; a packed pass keeps little else.
    """
    wanted, batching = run.config.training.merged, run.host.batching
    if wanted is False or batching.accumulation == 1:
        return 0
    if wanted is True:
        return math.inf
    model = causal_lm(run.host.models.policy)
    blocks, vocabulary = _kept_by_blocks(model), _size(model, "vocab_size")
    if not blocks or not vocabulary:
        return 0
    pairs = run.pairs
    lengths = pairs.prompt_tokens + np.maximum(pairs.chosen_tokens, pairs.rejected_tokens)
    longest = min(int(lengths.max()), run.host.max_length or math.inf)
    hosts = 2 * batching.per_device * longest * (blocks + PER_LOGIT * vocabulary)
    return SHARE * hosts / blocks


def passes(
    run: Run, packed: Packed | None, number: int, rows: Sequence[RoundRow]
) -> tuple[tuple[int, ...], ...] | None:
    """The passes of round ``number``, see ``passes_of``, or None if every micro-batch is one."""
    most = most_tokens(run) if packed is not None else 0
    if packed is None or not most:
        return None
    tokens = row_tokens(rows, run.pairs, run.host.max_length, shared=packed.shared)
    found = passes_of(tokens, run.host.batching, most)
    batches, made = sum(ends[-1] for ends in found), sum(map(len, found))
    LOG.info("Round %d: %d micro-batches in %d packed passes", number, batches, made)
    return found if made < batches else None


def _kept_by_blocks(model: torch.nn.Module) -> int:
    """Numbers that the blocks keep per token, 0 if the model doesn't say its sizes."""
    width, blocks = _size(model, "hidden_size"), _size(model, "num_hidden_layers")
    if getattr(model, "is_gradient_checkpointing", False):
        return width * (blocks + PER_BLOCK) if blocks else 0
    return PER_BLOCK * width * blocks


def _size(model: torch.nn.Module, name: str) -> int:
    config: Any = getattr(model, "config", None)
    return int(getattr(config, name, None) or 0)
