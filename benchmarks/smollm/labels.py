"""Wrong labels on pairs of the task: which are turned, and how well a review finds them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.evidence.artifacts import auc
from benchmarks.evidence.pairs import errors_by_gap
from benchmarks.smollm.sentiment import Pair


@dataclass(frozen=True)
class Noise:
    """Share of turned labels; patterned: the closer two answers, the more often.

    Some pairs may be checked, and their labels put right.
    """

    share: float
    patterned: bool = False
    checked: int = 0


NOISES = {
    "turned-0.4": Noise(0.4),
    "turned-0.2": Noise(0.2),
    "clean": Noise(0.0),
    "patterned-0.4": Noise(0.4, patterned=True),
    "patterned-0.2": Noise(0.2, patterned=True),
    "turned-0.4-checked": Noise(0.4, checked=100),
}
ASKED = re.compile(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", re.DOTALL)


def drawn(pairs: Sequence[Pair], count: int, seed: int) -> list[Pair]:
    """``count`` pairs by a draw of ``seed``, in the order drawn."""
    order = np.random.default_rng([seed, 1]).permutation(len(pairs))[:count]
    return [pairs[number] for number in order]


def checked(count: int, noise: Noise, seed: int) -> np.ndarray:
    """Which of ``count`` pairs are checked, bool, picked at random."""
    mask = np.zeros(count, dtype=bool)
    mask[np.random.default_rng([seed, 3]).permutation(count)[: noise.checked]] = True
    return mask


def turned(pairs: Sequence[Pair], noise: Noise, seed: int) -> list[bool]:
    """Which labels are turned; one that is at one share is at every larger one."""
    if not noise.share:
        return [False] * len(pairs)
    draw = np.random.default_rng([seed, 2]).random(len(pairs))
    chance = np.full(len(pairs), noise.share)
    if noise.patterned:
        chance = errors_by_gap(np.array([pair.gap for pair in pairs]), noise.share)
    wrong = (draw < chance) & ~checked(len(pairs), noise, seed)
    return [bool(one) for one in wrong]


def labelled(pairs: Sequence[Pair], wrong: Sequence[bool]) -> list[Pair]:
    """The pairs with chosen and rejected in each other's place where the label is wrong."""
    return [
        replace(pair, chosen=pair.rejected, rejected=pair.chosen) if one else pair
        for pair, one in zip(pairs, wrong, strict=True)
    ]


def found_by_round(output: Path, wrong: dict[str, bool]) -> dict[str, dict[str, float]]:
    """Per reviewed round, how well margin and score tell turned labels, as AUC.

    Args:
        output: the run's ``output_dir``.
        wrong: whether the label of a prompt's pair is turned, by the text of the prompt.
    """
    names = pq.read_table(output / "sera" / "pairs.parquet", columns=["example_id", "prompt"])
    asked = {row["example_id"]: _asked(row["prompt"]) for row in names.to_pylist()}
    found = {}
    for path in sorted(output.glob("sera/round-*/margins.parquet")):
        table = pq.read_table(path)
        is_wrong = np.array([wrong[asked[one]] for one in table["example_id"].to_pylist()])
        values = {}
        for name in ("margin", "right"):
            if name in table.column_names:
                signal = table[name].to_numpy()
                value = auc(-signal, is_wrong) if np.isfinite(signal).all() else None
                if value is not None:
                    values[name] = round(value, 4)
        found[path.parent.name] = values
    return found


def _asked(prompt: str) -> str:
    match = ASKED.search(prompt)
    if match is None:
        raise ValueError(f"There is no user's turn in the prompt {prompt!r}.")
    return match[1].strip()
