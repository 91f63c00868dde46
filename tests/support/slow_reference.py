"""The whole method once more, slowly: plain loops over single examples, nothing from the plugin.

It reads text and token ids, renders the templates by hand, and keeps everything in float64.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

IDS = Sequence[int]


def llama_text(messages: list[dict[str, str]]) -> str:
    out = "<|begin_of_text|>"
    for m in messages:
        out += f"<|start_header_id|>{m['role']}<|end_header_id|>\n\n{m['content']}<|eot_id|>"
    return out + "<|start_header_id|>assistant<|end_header_id|>\n\n"


def qwen_text(messages: list[dict[str, str]]) -> str:
    out = ""
    for m in messages:
        out += f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n"
    return out + "<|im_start|>assistant\n"


def llama_answer(text: str) -> str:
    return text + "<|eot_id|><|end_of_text|>"


def qwen_answer(text: str) -> str:
    return text + "<|im_end|>"


def logp(model: torch.nn.Module, prompt: IDS, answer: IDS) -> float:
    """log π(y|x)."""
    return _logp(model, tuple(prompt), tuple(answer))


@functools.cache
def _logp(model: torch.nn.Module, prompt: tuple[int, ...], answer: tuple[int, ...]) -> float:
    """One token after the other; kept, because several tests ask for the same ones."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *answer]])).logits[0].double().numpy()
    total = 0.0
    for offset, token in enumerate(answer):
        row = logits[len(prompt) + offset - 1]
        top = row.max()
        total += row[token] - top - math.log(np.exp(row - top).sum())
    return float(total)


def plain_loop(model: Any, rows: Iterable[tuple[IDS, IDS]], max_length: int | None) -> np.ndarray:
    """One example at a time, one token at a time."""
    sums = []
    for prompt, answer in rows:
        tokens = [*prompt, *answer][:max_length]
        total = 0.0
        logits = model(input_ids=torch.tensor([tokens])).logits[0]
        for position in range(len(prompt), len(tokens)):
            shares = torch.log_softmax(logits[position - 1].double(), dim=-1)
            total += float(shares[tokens[position]])
        sums.append(total)
    return np.array(sums)


@dataclass
class Pair:
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def log_ratio(
    policy: torch.nn.Module, reference: torch.nn.Module, prompt: IDS, answer: IDS
) -> float:
    return logp(policy, prompt, answer) - logp(reference, prompt, answer)


def margin(policy: torch.nn.Module, reference: torch.nn.Module, pair: Pair, kind: str) -> float:
    chosen = log_ratio(policy, reference, pair.prompt, pair.chosen)
    rejected = log_ratio(policy, reference, pair.prompt, pair.rejected)
    if kind == "mean":
        chosen, rejected = chosen / len(pair.chosen), rejected / len(pair.rejected)
    return chosen - rejected


def mix(now: float, before: float | None, gamma: float) -> float:
    return now if before is None else (1 - gamma) * now + gamma * before


def top(margins: dict[str, float], count: int) -> list[str]:
    return sorted(margins, key=lambda i: (-margins[i], i))[:count]


@dataclass
class Answer:
    tokens: list[int]
    sampled: bool
    finished: bool
    reward: float


def best_and_worst(answers: list[Answer]) -> tuple[Answer, Answer] | None:
    """Best finished answer against the worst of all, if one of them was sampled."""
    best = worst = None
    for answer in answers:
        if answer.finished and (best is None or answer.reward > best.reward):
            best = answer
        if worst is None or answer.reward < worst.reward:
            worst = answer
    if best is None or worst is None or best.reward <= worst.reward:
        return None
    return (best, worst) if best.sampled or worst.sampled else None


def dpo_loss(
    policy: torch.nn.Module, reference: torch.nn.Module, pair: Pair, beta: float, rho: float = 0.0
) -> float:
    """DPO, and Sr-DPO with ρ = λ·Δ."""
    h = beta * margin(policy, reference, pair, "sum")
    return math.log1p(math.exp(-(h - rho)))


def ipo_loss(
    policy: torch.nn.Module, reference: torch.nn.Module, pair: Pair, beta: float, rho: float = 0.0
) -> float:
    """IPO, and Sr-IPO with ρ = λ·Δ."""
    return (margin(policy, reference, pair, "mean") - rho - 1 / (2 * beta)) ** 2


def delta(
    policy: torch.nn.Module, reference: torch.nn.Module, quality: Pair, beta: float, kind: str
) -> float:
    """Δ of a pair whose prompt is p⊕x, eq. 12: β·log of
    [π(y⁺|p⊕x)·πref(y⁻|p⊕x)] / [πref(y⁺|p⊕x)·π(y⁻|p⊕x)]."""
    return beta * margin(policy, reference, quality, kind)


def tokens_behind(words: Any, quality: str, rows: Iterable[Mapping[str, Any]]) -> int:
    """Tokens of both answers of every pair behind its prompt with ``quality`` as system message."""
    texts = []
    for row in rows:
        prompt = llama_text([{"role": "system", "content": quality}, *row["messages"]])
        texts += [prompt + llama_answer(row[name]["content"]) for name in ("chosen", "rejected")]
    return sum(len(words(text, add_special_tokens=False)["input_ids"]) for text in texts)
