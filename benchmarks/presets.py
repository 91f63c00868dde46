"""Sizes of models and data."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Preset:
    """What is trained, and on how much.

    Attributes:
        name: as on the command line.
        hidden: width of the model; heads are 64 wide (32 below a width of 128).
        layers: transformer blocks.
        kv_heads: key and value heads.
        intermediate: width of the MLP.
        vocab: rows of the embedding, and the most tokens the tokenizer learns.
        tied: whether input and output embeddings are one matrix.
        pairs: training pairs of the compared runs.
        micro_batch: pairs per micro-batch; also the fixed batch of the naive passes.
        accumulation: micro-batches per update.
        sequence_len: the config's ``sequence_len``.
        scored_pairs: pairs of the scoring passes, at most.
        prompts: prompts of the generation passes.
        candidates: answers per prompt.
        max_new_tokens: most tokens per answer.
        answer_tokens: mean length of an answer that the random model would give without a limit.
        lengths: range of tokens of prompt and answer in made-up data, or None for the real data.
        bf16: precision of training on a GPU.
        growth_pairs: sizes of D for scoring.
        growth_selection: sizes of D for selection.
        growth_prompts: numbers of prompts for generation.
    """

    name: str
    hidden: int
    layers: int
    kv_heads: int
    intermediate: int
    vocab: int
    tied: bool
    pairs: int
    micro_batch: int
    accumulation: int
    sequence_len: int
    scored_pairs: int
    prompts: int
    candidates: int
    max_new_tokens: int
    answer_tokens: int
    lengths: tuple[int, int] | None = None
    bf16: bool = False
    growth_pairs: tuple[int, ...] = (1_000, 3_000, 10_000, 30_000, 100_000)
    growth_selection: tuple[int, ...] = (10_000, 30_000, 100_000, 300_000, 1_000_000)
    growth_prompts: tuple[int, ...] = (32, 100, 320, 1_000, 3_200)

    @property
    def heads(self) -> int:
        return self.hidden // (64 if self.hidden >= 128 else 32)


TINY = Preset(
    name="tiny",
    hidden=64,
    layers=2,
    kv_heads=1,
    intermediate=176,
    vocab=800,
    tied=False,
    pairs=20,
    micro_batch=4,
    accumulation=1,
    sequence_len=1024,
    scored_pairs=96,
    prompts=16,
    candidates=2,
    max_new_tokens=16,
    answer_tokens=12,
    growth_pairs=(500, 1_000, 2_000),
    growth_selection=(10_000, 30_000, 100_000),
    growth_prompts=(16, 32, 64),
)

SMALL = Preset(
    name="small",
    hidden=192,
    layers=4,
    kv_heads=3,
    intermediate=512,
    vocab=2_000,
    tied=False,
    pairs=64,
    micro_batch=4,
    accumulation=4,
    sequence_len=768,
    scored_pairs=10_000,
    prompts=96,
    candidates=4,
    max_new_tokens=96,
    answer_tokens=60,
)

MEDIUM = replace(SMALL, name="medium", hidden=256, kv_heads=4, intermediate=688, micro_batch=8)
"""An update computes three times as long as in SMALL, beside the same garbage collection."""

LLAMA_1B = Preset(
    name="llama-1b",
    hidden=2048,
    layers=16,
    kv_heads=8,
    intermediate=8192,
    vocab=128_256,
    tied=True,
    pairs=240,
    micro_batch=8,
    accumulation=1,
    sequence_len=1024,
    scored_pairs=480,
    prompts=256,
    candidates=4,
    max_new_tokens=256,
    answer_tokens=200,
    lengths=(512, 1000),
    bf16=True,
)

PRESETS = {preset.name: preset for preset in (TINY, SMALL, MEDIUM, LLAMA_1B)}
