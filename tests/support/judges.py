"""Judges that test runs name in ``sera.bootstrap.judge``."""

from __future__ import annotations

import itertools
import os
import time
import zlib
from collections.abc import Sequence
from typing import Any

CALLS = itertools.count(1)
FAILS_ON_RANK = "JUDGE_FAILS_ON_RANK"
FAILS_IN_CALL = 6


def by_checksum(
    prompts: Sequence[str], completions: Sequence[str], **rest: Any
) -> list[float | None]:
    """Scores that are hardly ever equal, and no opinion on one answer of ten.

    Fault injection: the process of the rank that the environment names raises in its sixth call.
    """
    faulty = os.environ.get(FAILS_ON_RANK)
    if faulty is not None and os.environ.get("RANK") == faulty and next(CALLS) == FAILS_IN_CALL:
        print(f"FAULT at {time.time():.1f}", flush=True)
        raise ConnectionError("the judge is out")
    sums = [
        zlib.crc32(f"{prompt}|{answer}".encode())
        for prompt, answer in zip(prompts, completions, strict=True)
    ]
    return [None if value % 10 == 0 else value / 2**32 for value in sums]
