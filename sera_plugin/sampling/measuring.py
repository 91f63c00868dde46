"""Log-probs of answers while ``generate`` of transformers samples them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, LogitsProcessor, PreTrainedModel

from sera_plugin.host.cache import GrowingLayer
from sera_plugin.scoring.logps import token_logps
from sera_plugin.scoring.sharing import rows_of


class Notes:
    """log π of every token that is drawn, from the logits before temperature and nucleus.

    Args:
        ending: token ids that take the place of a stop token.
        stops: token ids that end an answer.
        shape: answers and most tokens.
        device: of the logits.
    """

    def __init__(
        self,
        ending: Sequence[int],
        stops: torch.Tensor,
        shape: tuple[int, int],
        device: torch.device,
    ) -> None:
        self.ending = torch.tensor(ending, device=device)
        self.stops = stops
        self._raw: torch.Tensor | None = None
        self._drawn: list[torch.Tensor] = []
        self._logps = torch.zeros(shape, dtype=torch.float64, device=device)
        self._tails = torch.zeros(shape[0], dtype=torch.float64, device=device)

    def around(self, processors: Sequence[LogitsProcessor]) -> list[LogitsProcessor]:
        """The processors that bend logits and draw, with one before and one behind that note."""
        return [_Seen(self._before), *processors, _Seen(self._behind)]

    def _before(self, scores: torch.Tensor) -> None:
        self._raw = scores

    def _behind(self, scores: torch.Tensor) -> None:
        """Only the drawn token is left, or the likeliest one is going to be taken."""
        assert self._raw is not None
        token = scores.argmax(dim=-1)
        token = torch.where(torch.isin(token, self.stops), self.ending[0], token)
        self._drawn.append(token_logps(self._raw[:, None], token[:, None])[:, 0])
        self._raw = None

    def take(self, rows: torch.Tensor, done: int) -> None:
        """Put away what was noted of some answers since the last time, from token ``done`` on."""
        new = torch.stack(self._drawn, dim=1)
        self._logps[rows, done : done + new.shape[1]] = new.double()
        self._drawn.clear()

    def read_endings(
        self,
        model: PreTrainedModel,
        cache: DynamicCache | None,
        stopped: Stopped,
        *,
        all_rows: bool,
    ) -> None:
        """Note the tokens of the ending behind its first one, which nothing was drawn from.

        Args:
            model: the one that writes.
            cache: keys and values of the answers that were sampled last.
            stopped: where they ended.
            all_rows: whether the pass is made whatever ended, because other ranks make it.
        """
        rows = stopped.at.isfinite().nonzero()[:, 0]
        if len(self.ending) == 1 or not (all_rows or len(rows)):
            return
        if not _exact(cache):
            self._tails[stopped.rows[rows]] = torch.nan
            return
        which = torch.arange(len(stopped.at), device=rows.device) if all_rows else rows
        at = stopped.at[which].nan_to_num(stopped.mask.shape[1] - 1)
        assert cache is not None
        columns = torch.arange(stopped.mask.shape[1] - 1, device=rows.device)
        seen = stopped.mask[which, :-1] * (columns < at[:, None])
        ending = self.ending.expand(len(which), -1)
        fed: Any = ending[:, :-1]
        logits = model(
            input_ids=fed,
            attention_mask=torch.cat([seen, torch.ones_like(fed)], dim=1),
            position_ids=seen.sum(dim=1, keepdim=True)
            + torch.arange(fed.shape[1], device=fed.device),
            past_key_values=rows_of(cache, which),
            use_cache=True,
        ).logits
        sums = token_logps(logits, ending[:, 1:]).double().sum(dim=1)
        self._tails[stopped.rows[which]] = sums

    def sums(self, answers: Sequence[np.ndarray]) -> list[float | None]:
        """log π(y|x) of every answer, nats; None where it could not be found.

        Args:
            answers: token ids up to their room.
        """
        logps, tails = self._logps.cpu().numpy(), self._tails.cpu().numpy()
        stops = self.stops.cpu().numpy()
        found: list[float | None] = []
        for answer, row, tail in zip(answers, logps, tails, strict=True):
            ends = np.flatnonzero(np.isin(answer, stops))
            total = row[: ends[0] + 1].sum() + tail if len(ends) else row[: len(answer)].sum()
            found.append(None if np.isnan(total) else float(total))
        return found


@dataclass(frozen=True)
class Stopped:
    """Where the answers of a batch ended.

    Attributes:
        rows: which answers of the whole batch they are, shape (rows,).
        mask: 0 where a token is padding, shape (rows, tokens).
        at: column of the stop token, NaN where there is none yet, shape (rows,).
    """

    rows: torch.Tensor
    mask: torch.Tensor
    at: torch.Tensor


class _Seen(LogitsProcessor):
    """Shows scores as they pass."""

    def __init__(self, show: Any) -> None:
        self._show = show

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._show(scores)
        return scores


def _exact(cache: DynamicCache | None) -> bool:
    """Whether what was cached behind a stop token can be left out again: a window of attention has
    let go of earlier tokens for it."""
    return cache is not None and all(type(layer) is GrowingLayer for layer in cache.layers)
