"""What vLLM is asked, what counts as its answer, and whether it has the policy's weights. Pure.

TRL's server gives answers by position. So every request is checked: as many prompts come back as
were sent, each the tokens that were sent, with as many answers as were wanted; anything else ends
the pass, for an answer under another prompt would look like any other.

The probe compares log-probs: both say how probable each of a few tokens is behind the first half
of some answers of D. Weights that were not sent, or were overwritten on waking up, or belong to
another model, show there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sera_plugin.data.pairs import OfflinePairs
from sera_plugin.runtime.errors import VllmError

if TYPE_CHECKING:
    from sera_plugin.data.candidates import Draws, Prompt
    from sera_plugin.sampling.settings import Sampling

_AGAIN = "finished answers are kept, and a resumed run asks for the others again."


def options_for(prompts: Sequence[Prompt], settings: Sampling, draws: Draws) -> dict[str, Any]:
    """The options of a request: those of ``SamplingParams``, and a seed per prompt, or None.

    Greedy decoding asks for one answer, which vLLM insists on.
    """
    greedy = settings.temperature == 0
    first = [float(draws(prompt, 0, 1)[0]) for prompt in prompts] if not greedy else []
    return {
        "n": 1 if greedy else settings.num_candidates,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "max_tokens": max(settings.room(len(prompt.token_ids)) for prompt in prompts),
        "stop_token_ids": sorted(settings.stops),
        "logprobs": 0,
        "seeds": None if greedy else [int(number * 2**31) for number in first],
    }


def answers_of(
    reply: Mapping[str, Any], prompts: Sequence[Prompt], settings: Sampling
) -> list[list[np.ndarray]]:
    """Token ids of ``num_candidates`` answers to each prompt, int32.

    An answer is finished by a stop token, or as long as the room behind its prompt, and then cut
    there.

    Raises:
        VllmError: if one is lost, or given twice, or stands under another prompt, or is neither
            finished nor as long as its room.
    """
    _check_echo(reply.get("prompt_ids"), prompts)
    greedy = settings.temperature == 0
    copies = 1 if greedy else settings.num_candidates
    found = reply.get("completion_ids")
    if not isinstance(found, list) or len(found) != copies * len(prompts):
        raise VllmError(
            f"vLLM gave {_count(found)} answers where {copies} to each of {len(prompts)} prompts "
            f"were wanted; {_AGAIN}"
        )
    answers = [
        [_answer(found[copies * row + copy], prompt, settings) for copy in range(copies)]
        for row, prompt in enumerate(prompts)
    ]
    return [each * settings.num_candidates if greedy else each for each in answers]


def _check_echo(echo: Any, prompts: Sequence[Prompt]) -> None:
    if not isinstance(echo, list) or len(echo) != len(prompts):
        raise VllmError(
            f"vLLM gave back {_count(echo)} prompts where {len(prompts)} were sent; {_AGAIN}"
        )
    for ids, prompt in zip(echo, prompts, strict=True):
        if not isinstance(ids, list) or tuple(ids) != prompt.token_ids:
            raise VllmError(
                f"vLLM gave back other tokens than those of the prompt of example "
                f"{prompt.example_id}, so its answers may be another prompt's; {_AGAIN}"
            )


def _answer(ids: Any, prompt: Prompt, settings: Sampling) -> np.ndarray:
    sound = isinstance(ids, list) and all(type(i) is int and 0 <= i < 2**31 for i in ids)
    if not sound:
        raise VllmError(
            f"vLLM's answer to example {prompt.example_id} is no list of token ids; {_AGAIN}"
        )
    room = settings.room(len(prompt.token_ids))
    tokens = np.array(ids[:room], dtype=np.int32)
    if len(tokens) < room and not settings.stops.intersection(ids):
        raise VllmError(
            f"vLLM's answer to example {prompt.example_id} has {len(tokens)} tokens and no stop "
            f"token where there is room for {room}; vllm.max_model_len must be at least "
            f"sequence_len, and {_AGAIN}"
        )
    return tokens


def _count(found: Any) -> str:
    return str(len(found)) if isinstance(found, list) else "no list of"


ANSWERS = 8
"""Completions whose first halves are probed."""

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
