"""How rows of different lengths are cut into batches, and how what is found is stored. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa


def plan_batches(
    lengths: np.ndarray, token_budget: int, shortest: float = 0.0, behind: int = 0
) -> list[np.ndarray]:
    """Cut rows, longest first, into batches of at most ``token_budget`` padded tokens.

    A row longer than the budget gets a batch of its own. Ties in length keep their order, so the
    batches depend on the lengths alone.

    Args:
        lengths: tokens of each row, shape (n,).
        token_budget: most padded tokens of a batch.
        shortest: least length of a row as a share of its batch's longest; bounds the padding.
        behind: tokens that each row takes of the budget beside its own.
    """
    order = np.argsort(-lengths, kind="stable")
    ordered = lengths[order]
    batches, start = [], 0
    while start < len(order):
        longest = int(ordered[start])
        rows = max(1, int(token_budget // max(1, behind + longest)))
        enough = int(np.searchsorted(-ordered, -shortest * longest, side="right"))
        end = min(start + rows, max(enough, start + 1))
        batches.append(order[start:end])
        start = end
    return batches


class LogpCodec:
    """Log-probs of batches as a table with a row per completion."""

    def __init__(self, batches: Sequence[np.ndarray]) -> None:
        self._batches = batches

    def encode(self, found: Mapping[int, np.ndarray]) -> pa.Table:
        return pa.table(
            {
                "batch": np.repeat(list(found), [len(values) for values in found.values()]),
                "completion": np.concatenate([self._batches[number] for number in found]),
                "logp": np.concatenate(list(found.values())),
            }
        )

    def decode(self, table: pa.Table) -> dict[int, np.ndarray]:
        numbers, logps = table["batch"].to_numpy(), table["logp"].to_numpy()
        return {int(number): logps[numbers == number] for number in np.unique(numbers)}
