"""Sequences without padding: how prompts and answers lie in the rows of a forward pass. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch


class NotPackable(Exception):
    """A model can't be called in a way that saves work; the message ends a sentence on it."""


@dataclass(frozen=True)
class Group:
    """Answers to one prompt, which stands before them once.

    Attributes:
        prompt: token ids, at least one.
        answers: token ids of each answer.
        owners: the number under which each answer's log-probs are asked for.
    """

    prompt: np.ndarray
    answers: tuple[np.ndarray, ...]
    owners: tuple[int, ...]

    @property
    def size(self) -> int:
        return len(self.prompt) + sum(map(len, self.answers))


@dataclass(frozen=True)
class Layout:
    """Groups in rows.

    Attributes:
        input_ids: int64, shape (rows, width).
        position_ids: they restart with every group, and every answer goes on where its prompt
            ends; int64, shape (rows, width).
        mask: who sees whom, bool, shape (rows, 1, width, width); None where each group has one
            answer, so that restarting positions say it all.
        at: positions that predict an answer's token, in the flat order of rows, int64, shape (k,).
        tokens: those tokens, int64, shape (k,).
        owners: the answers they belong to, int64, shape (k,).
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    mask: torch.Tensor | None
    at: torch.Tensor
    tokens: torch.Tensor
    owners: torch.Tensor

    @property
    def inputs(self) -> dict[str, torch.Tensor | None]:
        """What a causal LM is called with."""
        return {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "attention_mask": self.mask,
        }


def groups_of(batch: Mapping[str, torch.Tensor], *, shared: bool) -> list[Group]:
    """The sequences of a micro-batch as the host's collator makes it.

    A first token, which nothing predicts, counts as a prompt.

    Args:
        batch: ``input_ids``, ``attention_mask`` and ``completion_mask``, padded on the right, shape
            (2·pairs, width): the chosen answers, then the rejected ones.
        shared: whether both answers of a pair stand behind one prompt, where it is the same.
    """
    ids = batch["input_ids"].cpu().numpy()
    ends = batch["attention_mask"].sum(dim=1).cpu().numpy()
    starts = np.maximum(ends - batch["completion_mask"].sum(dim=1).cpu().numpy(), 1)
    rows = [
        (row[:start], row[start:end]) for row, start, end in zip(ids, starts, ends, strict=True)
    ]
    pairs = len(rows) // 2
    found = []
    for number in range(pairs):
        (prompt, chosen), (other, rejected) = rows[number], rows[pairs + number]
        if shared and np.array_equal(prompt, other):
            found.append(Group(prompt, (chosen, rejected), (number, pairs + number)))
        else:
            found.append(Group(prompt, (chosen,), (number,)))
            found.append(Group(other, (rejected,), (pairs + number,)))
    return found


def in_rows(sizes: Sequence[int], linear: int | None) -> list[list[int]]:
    """Numbers of the groups in each row.

    A wider row pads less and attends to more, so the rows are those of the least work: tokens times
    (``linear`` + width).

    Args:
        sizes: tokens of each group.
        linear: work per token that doesn't grow with the row, in units of what attention to one
            more token takes; None puts all into one row.
    """
    if linear is None:
        return [list(range(len(sizes)))]
    order = sorted(range(len(sizes)), key=lambda group: -sizes[group])
    longest, total = sizes[order[0]], sum(sizes)
    best, least = [order], float("inf")
    for rows in range(1, len(sizes) + 1):
        width = max(longest, -(-total // rows))
        filled = _first_fit(sizes, order, width)
        wide = max(sum(sizes[group] for group in row) for row in filled)
        work = len(filled) * wide * (linear + wide)
        if work < least:
            best, least = filled, work
        if width == longest:
            break
    return best


def _first_fit(sizes: Sequence[int], order: Sequence[int], width: int) -> list[list[int]]:
    rows: list[list[int]] = []
    room: list[int] = []
    for group in order:
        row = next((n for n, left in enumerate(room) if left >= sizes[group]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(width)
        rows[row].append(group)
        room[row] -= sizes[group]
    return rows


def layout(groups: Sequence[Group], pad: int, linear: int | None, device: torch.device) -> Layout:
    """Lay groups out in rows.

    Args:
        groups: at least one.
        pad: fills rows on the right; what it is changes nothing.
        linear: see ``in_rows``.
        device: of the tensors.
    """
    rows = in_rows([group.size for group in groups], linear)
    width = max(sum(groups[number].size for number in row) for row in rows)
    input_ids = np.full((len(rows), width), pad, dtype=np.int64)
    positions = np.zeros_like(input_ids)
    member, branch = np.zeros((2, *input_ids.shape), dtype=np.int64)
    at, tokens, owners = [], [], []
    for line, row in enumerate(rows):
        start = 0
        for number in row:
            group, first = groups[number], start
            asked = len(group.prompt)
            member[line, first : first + group.size] = number + 1
            input_ids[line, first : first + asked] = group.prompt
            positions[line, first : first + asked] = np.arange(asked)
            start += asked
            for which, (answer, owner) in enumerate(zip(group.answers, group.owners, strict=True)):
                here = slice(start, start + len(answer))
                input_ids[line, here] = answer
                positions[line, here] = asked + np.arange(len(answer))
                branch[line, here] = which + 1
                before = np.arange(start - 1, start + len(answer) - 1)
                before[:1] = first + asked - 1
                at.append(line * width + before[: len(answer)])
                tokens.append(answer)
                owners.append(np.full(len(answer), owner))
                start += len(answer)
        positions[line, start:] = np.arange(width - start)
    tensors = [
        torch.from_numpy(np.concatenate(part).astype(np.int64)) for part in (at, tokens, owners)
    ]
    several = any(len(group.answers) > 1 for group in groups)
    return Layout(
        torch.from_numpy(input_ids).to(device),
        torch.from_numpy(positions).to(device),
        _mask(torch.from_numpy(member).to(device), torch.from_numpy(branch).to(device))
        if several
        else None,
        *(tensor.to(device) for tensor in tensors),
    )


def _mask(member: torch.Tensor, branch: torch.Tensor) -> torch.Tensor:
    """Who sees whom: earlier tokens of the group, but for those of its other answers."""
    width = member.shape[1]
    same = member[:, :, None] == member[:, None, :]
    own = (branch[:, None, :] == 0) | (branch[:, :, None] == branch[:, None, :])
    return (same & own).logical_and_(same.new_ones(width, width).tril())[:, None]
