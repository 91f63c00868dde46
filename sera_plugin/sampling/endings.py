"""How offline answers end under the run's template, so that sampled ones end alike. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence


def ending_of(
    answer: Sequence[int], special: Collection[int], blank: Collection[int]
) -> tuple[int, ...]:
    """The tail of an answer that is made of special and blank tokens and starts with a special one.

    Args:
        answer: token ids.
        special: ids of special tokens.
        blank: ids of tokens that are white space alone; they belong to the ending only behind a
            special token.
    """
    start = end = len(answer)
    while start > 0 and (answer[start - 1] in special or answer[start - 1] in blank):
        start -= 1
    while start < end and answer[start] not in special:
        start += 1
    return tuple(answer[start:end])


def common_ending(
    answers: Iterable[Sequence[int]], special: Collection[int], blank: Collection[int]
) -> tuple[int, ...]:
    """The ending that most answers share; ties go to the longer one, then to smaller ids.

    Raises:
        ValueError: if most answers end without a special token, so that a policy trained on them
            never learns to stop.
    """
    counts = Counter(ending_of(answer, special, blank) for answer in answers)
    ending = min(counts, key=lambda tail: (-counts[tail], -len(tail), tail), default=())
    if not ending:
        raise ValueError("the offline answers don't end with a special token")
    return ending


def finish(
    sampled: Sequence[int], ending: Sequence[int], stops: Collection[int]
) -> tuple[tuple[int, ...], bool]:
    """Cut sampled tokens at the first stop token and put the common ending in its place.

    Returns:
        The answer's tokens and whether it finished; an answer without a stop token is returned
        as it is.
    """
    for position, token in enumerate(sampled):
        if token in stops:
            return (*sampled[:position], *ending), True
    return tuple(sampled), False
