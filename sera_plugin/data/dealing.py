"""The order of a round's rows within its updates, and their passes, by length. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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


def passes_of(
    tokens: Sequence[int], batching: Batching, most: float
) -> tuple[tuple[int, ...], ...]:
    """After which micro-batches of an update a pass ends, for each update of a round, from 1.

    Consecutive micro-batches share a pass of at most ``most`` tokens; one that has more is alone.
    Every rank makes the passes of the rank that has the most tokens.

    Args:
        tokens: of each row, in the order of the round.
        batching: how the host cuts it.
        most: tokens of a pass.
    """
    size, ranks = batching.per_device, batching.ranks
    of_batches = [sum(tokens[start : start + size]) for start in range(0, len(tokens), size)]
    steps = [max(of_batches[start : start + ranks]) for start in range(0, len(of_batches), ranks)]
    steps = steps[: batching.batches(len(tokens))]
    found = []
    for start in range(0, len(steps), batching.accumulation):
        ends, held = [], 0
        update = steps[start : start + batching.accumulation]
        for number, count in enumerate(update):
            if held and held + count > most:
                ends.append(number)
                held = 0
            held += count
        found.append((*ends, len(update)))
    return tuple(found)


def row_lengths(rows: Sequence[RoundRow], pairs: OfflinePairs, max_length: int | None) -> list[int]:
    """Tokens of each row's longer sequence, prompt and answer, as the loss sees it.

    Args:
        rows: of a round.
        pairs: D.
        max_length: most tokens of a sequence that the loss sees; None for no bound.
    """
    return [
        max(_cut(prompt + answer, max_length) for answer in answers)
        for prompt, answers in _sizes(rows, pairs)
    ]


def row_tokens(
    rows: Sequence[RoundRow], pairs: OfflinePairs, max_length: int | None, *, shared: bool
) -> list[int]:
    """Tokens of both sequences of each row; with ``shared`` its prompt counts once.

    The other arguments are those of ``row_lengths``.
    """
    return [
        sum(_cut(prompt + answer, max_length) for answer in answers) - shared * prompt
        for prompt, answers in _sizes(rows, pairs)
    ]


def _sizes(rows: Sequence[RoundRow], pairs: OfflinePairs) -> Iterator[tuple[int, tuple[int, int]]]:
    """Tokens of the prompt and of both answers of each row."""
    for row in rows:
        at = pairs.position[row.example_id]
        answers = (int(pairs.chosen_tokens[at]), int(pairs.rejected_tokens[at]))
        if row.chosen_ids is not None and row.rejected_ids is not None:
            answers = (len(row.chosen_ids), len(row.rejected_ids))
        yield int(pairs.prompt_tokens[at]), answers


def _cut(length: int, most: int | None) -> int:
    return length if most is None else min(length, most)
