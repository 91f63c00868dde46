"""Scoring and generation as one writes them first: dataset order, fixed batches, padded rows.

The yardstick of ``passes``. Nothing here is used by the plugin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

Triple = tuple[Sequence[int], Sequence[int], Sequence[int]]
"""Token ids of prompt, chosen and rejected answer."""


def score(
    forward: Callable[..., Any],
    rows: Sequence[Triple],
    *,
    batch: int,
    max_length: int,
    pad: int,
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> tuple[np.ndarray, int]:
    """Log-probs of both answers, shape (n, 2), nats, and how many tokens were computed.

    Chosen and rejected answers of ``batch`` pairs make one batch, padded to its longest row; the
    log-softmax is taken of all logits.

    Args:
        forward: the model.
        rows: pairs in the order of the dataset.
        batch: pairs per batch.
        max_length: rows are cut to this many tokens.
        pad: fills rows on the right.
        device: where the model is.
        dtype: of the log-softmax; the logits' own by default.
    """
    found, computed = [], 0
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        sides = [(p, c) for p, c, _ in part] + [(p, r) for p, _, r in part]
        texts = [[*prompt, *answer][:max_length] for prompt, answer in sides]
        width = max(map(len, texts))
        ids = torch.full((len(texts), width), pad)
        mask = torch.zeros_like(ids)
        answers = torch.zeros((len(texts), width), dtype=torch.bool)
        for row, (text, (prompt, _)) in enumerate(zip(texts, sides, strict=True)):
            ids[row, : len(text)] = torch.tensor(text)
            mask[row, : len(text)] = 1
            answers[row, len(prompt) : len(text)] = True
        ids, mask, answers = ids.to(device), mask.to(device), answers.to(device)
        logits = forward(input_ids=ids, attention_mask=mask, use_cache=False).logits
        logps = torch.log_softmax(logits if dtype is None else logits.to(dtype), dim=-1)
        taken = logps[:, :-1].gather(2, ids[:, 1:, None])[..., 0].double()
        sums = (taken * answers[:, 1:]).sum(dim=1).cpu().numpy()
        found.append(np.stack([sums[: len(part)], sums[len(part) :]], axis=1))
        computed += ids.numel()
    return np.concatenate(found), computed


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    batch: int,
    candidates: int,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    stops: Sequence[int],
    pad: int,
    device: torch.device,
) -> int:
    """Sample answers with one ``model.generate`` per ``batch`` prompts; how many tokens they have.

    A stop token counts, what follows it does not.
    """
    produced = 0
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        width = max(map(len, part))
        ids = torch.full((len(part), width), pad)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(part):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        sampled = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            do_sample=True,
            num_return_sequences=candidates,
            temperature=temperature,
            top_p=top_p,
            top_k=0,
            max_new_tokens=max_new_tokens,
            eos_token_id=list(stops),
            pad_token_id=pad,
        )[:, width:].cpu()
        stopped = torch.isin(sampled, torch.tensor(list(stops)))
        before = stopped.long().cumsum(dim=1) - stopped.long()
        produced += int((before == 0).sum())
    return produced
