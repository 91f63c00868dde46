"""Python objects sent between ranks, in pieces, and failures raised on all of them (collectives).

NCCL sends objects through the GPU's memory. What is sent may be as large as the data or the
trainable weights, so no more than ``AT_ONCE`` bytes of it are there at a time.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from sera_plugin.runtime.errors import FailedElsewhereError, in_short

T = TypeVar("T")

AT_ONCE = 2**26
"""Most bytes that a rank receives in one collective."""


def shared(read: Callable[[], T]) -> T:
    """What ``read`` gives on the main process, on every rank. Every rank must call this alike."""
    state = PartialState()
    if state.num_processes == 1:
        return read()
    found: Any = read() if state.is_main_process else None
    content = pickle.dumps(found) if state.is_main_process else b""
    (size,) = _broadcast(len(content))
    pieces = [_broadcast(content[i : i + AT_ONCE])[0] for i in range(0, size, AT_ONCE)]
    if not state.is_main_process:
        found = pickle.loads(b"".join(pieces))
    whole: T = found
    return whole


def gathered(found: list[T]) -> list[T]:
    """The items of all ranks, by rank, on every rank. Every rank must call this alike."""
    ranks = PartialState().num_processes
    if ranks == 1:
        return found
    content, size = pickle.dumps(found), max(1, AT_ONCE // ranks)
    received = [bytearray() for _ in range(ranks)]
    for start in range(0, max(gather_object([len(content)])), size):
        for whole, piece in zip(
            received, gather_object([content[start : start + size]]), strict=True
        ):
            whole += piece
    return [item for whole in received for item in pickle.loads(whole)]


def _broadcast(value: Any) -> list[Any]:
    box = [value]
    broadcast_object_list(box, from_process=0)
    return box


def together(act: Callable[[], T]) -> T:
    """``act()``; if it fails on one rank, all raise. Every rank must call this alike.

    Raises:
        FailedElsewhereError: what failed on another rank.
        Exception: what failed on this one.
    """
    failure: Exception | None = None
    try:
        result = act()
    except Exception as error:
        failure = error
    failures = [text for text in gathered([None if failure is None else in_short(failure)]) if text]
    if failure is not None:
        raise failure
    if failures:
        raise FailedElsewhereError(failures[0])
    return result
