"""Whether vLLM has the policy's weights: its log-probs against ours for a few fixed answers.

Both say how probable each of a few tokens is behind the first half of some answers of D. Weights
that were not sent, or were overwritten on waking up, or belong to another model, show there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sera_plugin.data.pairs import OfflinePairs
from sera_plugin.host.vllm_settings import VllmError

ANSWERS = 8
"""Answers whose first halves are probed."""

TOKENS = 4
"""The most probable next tokens that are compared behind each; vLLM may give one more."""

BOUND = 0.1
"""Nats by which the two may differ on average over all tokens compared. Both compute in the
model's precision with kernels of their own; rounding of bf16 is a few hundredths."""

OPTIONS: dict[str, Any] = {
    "n": 1,
    "temperature": 1.0,
    "top_p": 1.0,
    "max_tokens": 1,
    "stop_token_ids": [],
    "logprobs": TOKENS,
    "seeds": None,
}


@dataclass(frozen=True)
class Probe:
    """What vLLM says about the tokens that may come next.

    Attributes:
        rows: index into the prefixes, token id, log-prob in nats.
    """

    rows: tuple[tuple[int, int, float], ...]

    @classmethod
    def of(cls, reply: Mapping[str, Any], prefixes: Sequence[Sequence[int]]) -> Probe:
        """Read a reply to ``OPTIONS``.

        Raises:
            VllmError: if it has no log-probs, or those of other prefixes.
        """
        if reply.get("prompt_ids") != [list(ids) for ids in prefixes]:
            raise VllmError("vLLM gave back other prompts than those that check its weights.")
        try:
            rows = tuple(
                (row, int(token), float(logp))
                for row in range(len(prefixes))
                for token, logp in zip(
                    reply["logprob_token_ids"][row][0], reply["logprobs"][row][0], strict=True
                )
            )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise VllmError(
                "vLLM gave no log-probs, so nothing can tell whether it has the policy's weights; "
                "see docs/vllm.md."
            ) from error
        return cls(rows)

    @property
    def logps(self) -> np.ndarray:
        return np.array([logp for _, _, logp in self.rows])

    def compare(self, own: np.ndarray) -> float:
        """Mean size of the difference from our log-probs of the same tokens, nats.

        Raises:
            VllmError: if it is above ``BOUND`` or no number.
        """
        found = float(np.abs(self.logps - own).mean())
        if not found <= BOUND:
            raise VllmError(
                f"vLLM's log-probs differ from the policy's by {found:.3g} nats per token on "
                f"average, more than {BOUND}, so it has other weights; start it anew with the "
                "run's base_model and dtype, and resume the run."
            )
        return found

    def same_as(self, later: Probe) -> bool:
        """Whether vLLM still says the same, so that it is not a new one with old weights."""
        mine = {(row, token): logp for row, token, logp in self.rows}
        theirs = {(row, token): logp for row, token, logp in later.rows}
        both = mine.keys() & theirs.keys()
        if len(both) < 0.5 * len(mine):
            return False
        return bool(np.mean([abs(mine[key] - theirs[key]) for key in both]) <= BOUND)


def prefixes_of(pairs: OfflinePairs, sequence_len: int) -> list[list[int]]:
    """Prompts with the first half of their chosen answers, of the first examples that fit."""
    found: list[list[int]] = []
    for row in np.argsort(np.array(pairs.ids), kind="stable"):
        example = pairs.dataset[int(row)]
        prefix = [*example["prompt_ids"], *example["chosen_ids"][: len(example["chosen_ids"]) // 2]]
        if len(prefix) + 1 < sequence_len:
            found.append([int(i) for i in prefix])
        if len(found) == ANSWERS:
            break
    return found
