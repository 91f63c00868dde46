"""What vLLM is asked and what counts as an answer. Pure.

TRL's server gives answers by position. So every request is checked: as many prompts come back as
were sent, each the tokens that were sent, with as many answers as were wanted; anything else ends
the pass, for an answer under another prompt would look like any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sera_plugin.host.vllm_settings import VllmError

if TYPE_CHECKING:
    from sera_plugin.data.rollouts import Draws, Prompt
    from sera_plugin.sampling.sampler import Sampling

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
