"""A prompt read once for all its answers: their batches, and their log-probs. No collectives.

A forward pass reads prompts and keeps their keys and values; others read answers behind them.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from transformers import DynamicCache

from sera_plugin.scoring.batches import plan_batches
from sera_plugin.scoring.layout import Group, NotPackable
from sera_plugin.scoring.logps import Forward, causal_lm, head_of, keeps_logits, watching

BATCHES = 4
"""A batch has the tokens of so many batches of answers alone, so that it has answers of like
length to put beside each other."""

PROMPTS = 0.7
"""A prompt has at least this share of the longest one's tokens in its batch. Padding costs in the
pass over prompts, and in attention to them."""

ANSWERS = 0.8
"""An answer has at least this share of the longest one's tokens in its forward pass."""

FORWARD = 64
"""A forward pass costs as much as so many tokens, beside those that it reads."""

SAVING = 0.8
"""Prompts are shared where that costs at most this share of reading them again and again: keys and
values are copied for every answer."""


@dataclass(frozen=True)
class SharedPlan:
    """How completions are scored with shared prompts.

    Attributes:
        batches: numbers of completions, those of a prompt together.
        forwards: forward passes over answers in each batch.
        tokens: tokens that are read, without padding.
        padded: the same with padding.
    """

    batches: tuple[np.ndarray, ...]
    forwards: tuple[int, ...]
    tokens: int
    padded: int

    @property
    def cost(self) -> int:
        """In tokens."""
        return self.padded + FORWARD * (sum(self.forwards) + len(self.batches))


def plan_shared(
    lengths: np.ndarray, prompts: np.ndarray, prompt_tokens: np.ndarray, token_budget: int
) -> SharedPlan | None:
    """Batches in which each prompt is read once; None if a prompt has no token.

    Args:
        lengths: tokens of each completion, prompt and answer, shape (n,).
        prompts: completions with the same number have the same prompt, shape (n,).
        prompt_tokens: tokens of the prompt, shape (n,).
        token_budget: most padded tokens of a forward pass, those that are attended to included.
    """
    if not len(lengths) or not prompt_tokens.min():
        return None
    order = np.argsort(prompts, kind="stable")
    starts = np.flatnonzero(np.diff(prompts[order], prepend=prompts[order[0]] - 1))
    members = np.split(order, starts[1:])
    asked = np.minimum(prompt_tokens, lengths)[order[starts]]
    answered = lengths - np.minimum(prompt_tokens, lengths)
    whole = np.array([int(answered[part].sum()) for part in members]) + asked
    batches, forwards, padded = [], [], 0
    for group in _cut(asked, whole, token_budget):
        batch = np.concatenate([members[number] for number in group])
        width = int(asked[group].max())
        parts = _parts(answered[batch], width, token_budget)
        padded += len(group) * width
        padded += sum(len(part) * (int(answered[batch][part].max()) + 1) for part in parts)
        batches.append(batch)
        forwards.append(len(parts))
    return SharedPlan(tuple(batches), tuple(forwards), int(whole.sum()), padded)


def _cut(asked: np.ndarray, whole: np.ndarray, token_budget: int) -> list[np.ndarray]:
    """Numbers of the prompts of each batch, longest prompts first."""
    order = np.argsort(-asked, kind="stable")
    found, start = [], 0
    while start < len(order):
        longest = int(asked[order[start]])
        end = start + 1
        total = int(whole[order[start]])
        while end < len(order):
            total += int(whole[order[end]])
            if total > BATCHES * token_budget or (end - start + 1) * longest > token_budget:
                break
            if asked[order[end]] < PROMPTS * longest:
                break
            end += 1
        found.append(order[start:end])
        start = end
    return found


def _parts(answered: np.ndarray, width: int, token_budget: int) -> list[np.ndarray]:
    """Places of the answers of each forward pass, which reads a prompt's last token too."""
    return plan_batches(answered + 1, token_budget, ANSWERS, behind=width)


def groups_of_tokens(
    rows: Sequence[tuple[Sequence[int] | np.ndarray, Sequence[int] | np.ndarray]],
    prompts: np.ndarray,
    max_length: int | None,
) -> list[Group]:
    """Completions of a batch by their prompts, cut to ``max_length`` tokens; owners are places.

    Args:
        rows: token ids of prompts and answers, those of a prompt together.
        prompts: numbers of the prompts, shape (rows,).
        max_length: of prompt and answer; None for no bound.
    """
    found = []
    for _, group in groupby(range(len(rows)), key=lambda place: int(prompts[place])):
        places = tuple(group)
        prompt = np.asarray(rows[places[0]][0], dtype=np.int64)
        room = None if max_length is None else max(0, max_length - len(prompt))
        answers = tuple(np.asarray(rows[place][1], dtype=np.int64)[:room] for place in places)
        found.append(Group(prompt[:max_length], answers, places))
    return found


def continued_logps(
    forward: Forward,
    groups: Sequence[Group],
    pad: int,
    token_budget: int,
    device: torch.device,
    forwards: int = 0,
) -> list[list[float]]:
    """Σ log π(y|x) of every group's answers, nats.

    Args:
        forward: a causal LM or a wrapper of one, in evaluation mode, without gradients.
        groups: prompts with their answers.
        pad: fills rows; what it is changes nothing.
        token_budget: most padded tokens of a forward pass.
        device: where the model computes.
        forwards: least number of passes over answers, for ranks that make them together.

    Raises:
        NotPackable: if the model keeps no keys and values that answers can stand behind.
    """
    prompts = _Prompts.read(forward, [group.prompt for group in groups], pad, device)
    owners = [(at, answer) for at, group in enumerate(groups) for answer in group.answers]
    lengths = np.array([len(answer) for _, answer in owners])
    parts = _parts(lengths, max(len(group.prompt) for group in groups), token_budget)
    sums = np.zeros(len(owners))
    for part in [*parts, *[parts[-1]] * (forwards - len(parts))]:
        sums[part] = prompts.answered(forward, [owners[place] for place in part], pad).numpy()
    ends = np.cumsum([len(group.answers) for group in groups])
    return [part.tolist() for part in np.split(sums, ends[:-1])]


@dataclass(frozen=True)
class _Prompts:
    """Prompts that were read, but for their last tokens.

    Attributes:
        cache: their keys and values.
        mask: 0 where they are padded, on the left, shape (prompts, width).
        last: their last tokens, shape (prompts,).
    """

    cache: DynamicCache
    mask: torch.Tensor
    last: torch.Tensor

    @classmethod
    def read(
        cls, forward: Forward, prompts: Sequence[np.ndarray], pad: int, device: torch.device
    ) -> _Prompts:
        model = causal_lm(forward)
        if "past_key_values" not in inspect.signature(type(model).forward).parameters:
            raise NotPackable("it keeps no keys and values of a prompt")
        width = max(2, *map(len, prompts)) - 1
        ids = np.full((len(prompts), width), pad, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width + 1 - len(prompt) :] = prompt[:-1]
            mask[row, width + 1 - len(prompt) :] = 1
        is_token = torch.from_numpy(mask).to(device)
        found = forward(
            input_ids=torch.from_numpy(ids).to(device),
            attention_mask=is_token,
            position_ids=(is_token.cumsum(dim=1) - 1).clamp(min=0),
            past_key_values=DynamicCache(config=model.config),
            use_cache=True,
            **({"logits_to_keep": 1} if keeps_logits(forward) else {}),
        )
        last = torch.tensor([int(prompt[-1]) for prompt in prompts], device=device)
        return cls(found.past_key_values, is_token, last)

    def answered(
        self, forward: Forward, rows: Sequence[tuple[int, np.ndarray]], pad: int
    ) -> torch.Tensor:
        """Σ log π of answers behind prompts, float64 on the CPU, shape (rows,), nats.

        Args:
            forward: the model that read the prompts.
            rows: which prompt, and the answer's token ids.
            pad: fills answers on the right.
        """
        head, device = head_of(forward), self.mask.device
        if head is None:
            raise NotPackable("it names no module that makes logits")
        which = torch.tensor([prompt for prompt, _ in rows], device=device)
        answers = np.full((len(rows), max(len(answer) for _, answer in rows)), pad, dtype=np.int64)
        is_answer = np.zeros(answers.shape, dtype=bool)
        for row, (_, answer) in enumerate(rows):
            answers[row, : len(answer)] = answer
            is_answer[row, : len(answer)] = True
        ids = torch.cat([self.last[which][:, None], torch.from_numpy(answers).to(device)], dim=1)
        follows = torch.from_numpy(is_answer).to(device)
        own = torch.cat([follows.new_ones(len(rows), 1), follows], dim=1).to(self.mask)
        behind = self.mask[which]
        start = behind.sum(dim=1, keepdim=True)
        with watching(head, torch.nn.functional.pad(follows, (0, 1)), ids[:, 1:][follows]) as found:
            logits = forward(
                input_ids=ids,
                attention_mask=torch.cat([behind, own], dim=1),
                position_ids=start + torch.arange(ids.shape[1], device=device),
                past_key_values=rows_of(self.cache, which),
                use_cache=True,
            ).logits
        if not found.untouched(logits):
            raise NotPackable("it does not return what its head gives")
        sums = torch.zeros(len(rows), dtype=torch.float64)
        logps = torch.cat(found.logps or []).double().cpu()
        return sums.index_add(0, follows.nonzero()[:, 0].cpu(), logps)


def rows_of(cache: DynamicCache, rows: torch.Tensor) -> DynamicCache:
    """A cache of its own for some rows, each as often as it is named."""
    part = copy.copy(cache)
    part.layers = [copy.copy(layer) for layer in cache.layers]
    part.batch_select_indices(rows)
    return part
