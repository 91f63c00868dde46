"""How a run samples: settings, what an engine is given, and how answers end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sera_plugin.config import BootstrapConfig
from sera_plugin.data.candidates import Source
from sera_plugin.data.pairs import OfflinePairs

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sera_plugin.scoring.policies import Policies
    from sera_plugin.scoring.scorer import Scorer

GENERATION_BATCHES = 8
"""Sampling keeps no activations for a backward pass, so its batches hold so many times the tokens
of a scoring batch."""


@dataclass(frozen=True)
class EngineParts:
    """What an engine is started with.

    Attributes:
        config: the ``sera.bootstrap`` block.
        host: Axolotl's validated config.
        accelerator: the trainer's accelerator.
        policy: the policy without the wrappers of DDP and DeepSpeed.
        tokenizer: the run's tokenizer.
    """

    config: BootstrapConfig
    host: Any
    accelerator: Accelerator
    policy: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True)
class Serving:
    """What an engine needs to serve one pass.

    Attributes:
        policies: the run's models.
        scorer: finds log-probs, for an engine with weights of its own.
        pairs: D, for the same.
        writer: whose answers are sampled, the policy's or the reference's.
        sequence_len: most tokens of prompt and answer together.
    """

    policies: Policies
    scorer: Scorer
    pairs: OfflinePairs
    writer: Source
    sequence_len: int


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


@dataclass(frozen=True)
class Sampling:
    """Settings of a generation pass.

    Attributes:
        num_candidates: answers per prompt.
        temperature: 0 is greedy decoding.
        top_p: nucleus mass.
        max_new_tokens: most sampled tokens per answer, the stop token included.
        sequence_len: most tokens of prompt and answer together.
        ending: token ids that finish an answer.
        stops: token ids that end sampling.
        pad_token_id: fills prompts on the left and finished answers on the right.
        token_budget: most padded tokens of a batch.
        writer: whose answers they are, the policy's or the reference's.
        first_candidate: number of the first answer; an answer is drawn by its number.
        measured: whether log-probs come with the answers.
    """

    num_candidates: int
    temperature: float
    top_p: float
    max_new_tokens: int
    sequence_len: int
    ending: tuple[int, ...]
    stops: frozenset[int]
    pad_token_id: int
    token_budget: int
    writer: Source = Source.POLICY
    first_candidate: int = 0
    measured: bool = False

    def shared_out(self, sampler: str) -> tuple[Sampling, ...]:
        """The passes that sample all candidates of a prompt.

        Args:
            sampler: ``sera.bootstrap.sampler``. For ``mixed`` the policy writes the first half of
                the answers, the larger one of an odd number, and the reference the others.
        """
        if sampler != "mixed":
            return (replace(self, writer=Source(sampler)),)
        own = (self.num_candidates + 1) // 2
        return (
            replace(self, num_candidates=own),
            replace(
                self,
                num_candidates=self.num_candidates - own,
                writer=Source.REFERENCE,
                first_candidate=own,
            ),
        )

    def room(self, prompt_tokens: int) -> int:
        """Most tokens to sample behind a prompt; the ending takes the stop token's place."""
        return min(self.max_new_tokens, self.sequence_len - prompt_tokens - len(self.ending) + 1)


def sampling_settings(
    config: BootstrapConfig,
    tokenizer: PreTrainedTokenizerBase,
    pairs: OfflinePairs,
    model_stops: Collection[int],
    max_length: int | None,
    token_budget: int,
) -> Sampling:
    """Sampling settings of a run.

    Args:
        config: the ``sera.bootstrap`` block.
        tokenizer: the run's tokenizer.
        pairs: D, whose answers say how answers end.
        model_stops: tokens at which the model itself ends an answer.
        max_length: most tokens of prompt and answer; None for no bound.
        token_budget: most padded tokens of a scoring batch.

    Raises:
        ValueError: if most offline answers end without a special token.
    """
    tokens: Any = tokenizer
    special = frozenset(tokens.all_special_ids) | set(tokens.added_tokens_decoder)
    blank = frozenset(i for i in range(len(tokens)) if not tokens.decode([i]).strip())
    ending: tuple[int, ...] = (tokens.eos_token_id,)
    if config.fraction > 0:
        rows = pairs.dataset.select_columns(["chosen_ids", "rejected_ids"])
        answers = (row[side] for row in rows for side in ("chosen_ids", "rejected_ids"))
        ending = common_ending(answers, special, blank)
    return Sampling(
        num_candidates=config.num_candidates,
        temperature=config.temperature,
        top_p=config.top_p,
        max_new_tokens=config.max_new_tokens,
        sequence_len=max_length or 2**31,
        ending=ending,
        stops=frozenset({ending[0], tokens.eos_token_id, *model_stops}),
        pad_token_id=tokens.pad_token_id,
        token_budget=GENERATION_BATCHES * token_budget,
    )
