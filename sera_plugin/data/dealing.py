"""The order of a round's rows within its updates, by length. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from sera_plugin.data.pairs import OfflinePairs
from sera_plugin.data.rounds import RoundRow
from sera_plugin.data.schedule import Batching


def dealt_by_length(lengths: Sequence[int], batching: Batching) -> list[int]:
    """The round's rows, longest first within each update; no row leaves its update.

    The host cuts rows into micro-batches in their order and deals those to the ranks in turn, so
    that the ranks' micro-batches of a step are alike. Every micro-batch that is full weighs alike
    in its update; rows that come to stand elsewhere would weigh otherwise, and stay where they are:
    those of a last, short micro-batch, and those with which the host fills the last step of several
    ranks, the round's first.

    Args:
        lengths: tokens of each row, in the order of the round.
        batching: how the host cuts it.
    """
    step = batching.per_device * batching.ranks
    movable = batching.per_device if batching.ranks == 1 or not batching.drop_last else step
    last = len(lengths) // movable * movable
    filled = batching.ranks > 1 and not batching.drop_last and len(lengths) % step != 0
    order = list(range(len(lengths)))
    for start in range(0, last, step * batching.accumulation):
        first = max(start, step if filled else 0)
        end = min(start + step * batching.accumulation, last)
        order[first:end] = sorted(order[first:end], key=lambda row: -lengths[row])
    return order


def row_lengths(rows: Sequence[RoundRow], pairs: OfflinePairs, max_length: int | None) -> list[int]:
    """Tokens of each row's longer sequence, prompt and answer, as the loss sees it.

    Args:
        rows: of a round.
        pairs: D.
        max_length: most tokens of a sequence that the loss sees; None for no bound.
    """
    found = []
    for row in rows:
        at = pairs.position[row.example_id]
        answers = (int(pairs.chosen_tokens[at]), int(pairs.rejected_tokens[at]))
        if row.chosen_ids is not None and row.rejected_ids is not None:
            answers = (len(row.chosen_ids), len(row.rejected_ids))
        length = int(pairs.prompt_tokens[at]) + max(answers)
        found.append(length if max_length is None else min(length, max_length))
    return found
