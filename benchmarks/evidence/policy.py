"""The SFT model, sampling from a policy, and its exact KL to the reference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.evidence import vocabulary as words
from benchmarks.evidence.world import MOST_WORDS, World, Writer

SFT_PROMPTS = 20_000
GOOD_SHARE = 0.25
"""Share of SFT prompts that ask for a good answer and show one."""
GOOD_WRITER = Writer(best_of=4)
SFT_STEPS, SFT_BATCH, SFT_RATE = 600, 64, 3e-3


@dataclass(frozen=True)
class Size:
    """Shape of the policy."""

    hidden: int = 64
    layers: int = 2
    heads: int = 4


def new_model(size: Size, seed: int) -> LlamaForCausalLM:
    """A random Llama."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words.VOCABULARY),
            hidden_size=size.hidden,
            intermediate_size=3 * size.hidden,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.heads,
            max_position_embeddings=64,
            tie_word_embeddings=False,
            bos_token_id=words.IDS[words.BOS],
            eos_token_id=words.IDS[words.EOS],
            pad_token_id=words.IDS[words.PAD],
        )
    )


def sft_sequences(world: World, good_share: float = GOOD_SHARE) -> tuple[np.ndarray, np.ndarray]:
    """What the SFT model is trained on: prompt ids and answer ids with EOS and padding."""
    prompts = world.prompts("train", SFT_PROMPTS, seed=1)
    plain = world.write(prompts, Writer(), "sft")
    good = np.random.default_rng([world.seed, 77]).random(len(prompts)) < good_share
    better = world.write(prompts, GOOD_WRITER, "sft-good")
    answers = np.where(good[:, None], better, plain)
    return words.prompt_ids(prompts, good), words.answer_ids(answers)


def train_sft(
    world: World,
    folder: Path,
    size: Size | None = None,
    steps: int = SFT_STEPS,
    good_share: float = GOOD_SHARE,
) -> None:
    """Train the SFT model by cross-entropy on answers and write it with its tokenizer.

    Args:
        world: whose grammar it learns.
        folder: where it is written.
        size: its shape.
        steps: updates.
        good_share: share of its prompts that ask for a good answer and show one.
    """
    model = new_model(size or Size(), world.seed)
    asked, answered = sft_sequences(world, good_share)
    ids = torch.from_numpy(np.concatenate([asked, answered], axis=1))
    labels = torch.where(ids == words.IDS[words.PAD], -100, ids)
    labels[:, : words.PROMPT_TOKENS] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=SFT_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=SFT_RATE, total_steps=steps)
    draw = torch.Generator().manual_seed(world.seed)
    for _ in range(steps):
        rows = torch.randint(len(ids), (SFT_BATCH,), generator=draw)
        longest = int((labels[rows] != -100).sum(dim=1).max()) + words.PROMPT_TOKENS
        loss = model(input_ids=ids[rows, :longest], labels=labels[rows, :longest]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    words.save_tokenizer(folder)


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    prompts: np.ndarray,
    seed: int,
    *,
    temperature: float = 1.0,
    batch: int = 512,
) -> np.ndarray:
    """Completions of a policy, token ids of shape (n, MOST_WORDS + 1), PAD behind EOS.

    Args:
        model: the policy, on any device.
        prompts: token ids, shape (n, PROMPT_TOKENS); prompts have equal lengths.
        seed: of the random numbers; the global ones are left alone.
        temperature: sampling temperature.
        batch: prompts at once.
    """
    draw = torch.Generator(device="cpu").manual_seed(seed)
    parts = []
    for start in range(0, len(prompts), batch):
        ids = torch.from_numpy(prompts[start : start + batch]).to(model.device)
        parts.append(_sample_batch(model, ids, draw, temperature))
    return np.concatenate(parts)


def _sample_batch(
    model: PreTrainedModel, ids: torch.Tensor, draw: torch.Generator, temperature: float
) -> np.ndarray:
    answer = torch.full((len(ids), MOST_WORDS + 1), words.IDS[words.PAD], device=ids.device)
    running = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    cache = None
    for place in range(MOST_WORDS + 1):
        out = model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logits = out.logits[:, -1].float() / temperature
        # Inversion with numbers drawn on the CPU: the same answers on every device, to rounding.
        uniform = torch.rand(len(logits), 1, generator=draw, dtype=torch.float64)
        cumulative = logits.double().softmax(dim=-1).cumsum(dim=-1)
        token = (cumulative < uniform.to(ids.device)).sum(dim=-1).clamp(max=logits.shape[-1] - 1)
        answer[:, place] = torch.where(running, token, words.IDS[words.PAD])
        running &= token != words.IDS[words.EOS]
        if not running.any():
            break
        ids = token[:, None]
    return answer.cpu().numpy()


@dataclass(frozen=True)
class Distance:
    """How far a policy is from the reference on its own samples; arrays of shape (n,), nats.

    Attributes:
        kl: sum over the answer's places of the exact KL of the next-token distributions.
        entropy: sum of the policy's next-token entropies.
    """

    kl: np.ndarray
    entropy: np.ndarray


@torch.no_grad()
def distance(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    prompts: np.ndarray,
    answers: np.ndarray,
    batch: int = 512,
) -> Distance:
    """Exact KL(policy ‖ reference) along answers that the policy sampled at temperature 1."""
    kl, entropy = [], []
    for start in range(0, len(prompts), batch):
        asked = torch.from_numpy(prompts[start : start + batch]).to(policy.device)
        answer = torch.from_numpy(answers[start : start + batch]).to(policy.device)
        mask = answer != words.IDS[words.PAD]
        answer = answer[:, : int(mask.sum(dim=1).max())]
        ids = torch.cat([asked, answer], dim=1)
        places = slice(words.PROMPT_TOKENS - 1, -1)
        mine = policy(input_ids=ids).logits[:, places].float().log_softmax(dim=-1)
        theirs = reference(input_ids=ids).logits[:, places].float().log_softmax(dim=-1)
        counted = mask[:, : answer.shape[1]]
        kl.append(((mine.exp() * (mine - theirs)).sum(-1) * counted).sum(1).cpu().numpy())
        entropy.append((-(mine.exp() * mine).sum(-1) * counted).sum(1).cpu().numpy())
    return Distance(np.concatenate(kl), np.concatenate(entropy))
