"""Example ids and seeds. Pure functions.

An example id is a hash of the pair's content, so it is the same from run to run, on every rank,
and in any order of the dataset. Every random choice is drawn from a key of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

ID_BYTES = 12


def content_id(prompt: Any, chosen: Any, rejected: Any) -> str:
    """24 hex digits of the content of a pair; the parts are text or lists of messages."""
    text = json.dumps([prompt, chosen, rejected], ensure_ascii=True, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=ID_BYTES).hexdigest()


def example_ids(triples: Iterable[tuple[Any, Any, Any]]) -> list[str]:
    """Ids of (prompt, chosen, rejected) triples; exact copies get ``-2``, ``-3``, ... appended."""
    seen: Counter[str] = Counter()
    ids = []
    for triple in triples:
        base = content_id(*triple)
        seen[base] += 1
        ids.append(base if seen[base] == 1 else f"{base}-{seen[base]}")
    return ids


def in_place_of_another(key: str) -> bool:
    """Whether the row of a round that ``key`` names fills a place; such keys have a third part."""
    return key.count("/") > 1


def dataset_hash(ids: Sequence[str]) -> str:
    """Hash of a whole dataset, independent of its order."""
    digest = hashlib.blake2b(digest_size=16)
    for example_id in sorted(ids):
        digest.update(example_id.encode())
        digest.update(b"\0")
    return digest.hexdigest()


def stream_key(*parts: Any) -> int:
    """A 128-bit key for the random choice that ``parts`` name, such as (seed, round, id)."""
    text = json.dumps(parts, ensure_ascii=True)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "big")


def uniforms(count: int, *parts: Any) -> np.ndarray:
    """``count`` draws from [0, 1), float64, from the stream that ``parts`` name."""
    return np.random.Generator(np.random.Philox(key=stream_key(*parts))).random(count)


def permutation(ids: Sequence[str], *parts: Any) -> np.ndarray:
    """Random order of ``ids`` as int64 positions; each id sorts by a key of its own.

    The order of two examples does not depend on which others are present, nor on the order in
    which the ids come.
    """
    keys = [(stream_key(*parts, example_id), example_id) for example_id in ids]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)
