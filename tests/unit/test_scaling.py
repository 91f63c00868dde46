"""What a run costs: every formula by hand, and the tables of docs/scaling.md from the code."""

from __future__ import annotations

import gc
import pickle
import re
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from sera_plugin.data.margins import PairLogps
from sera_plugin.data.rounds import RoundDataset, RoundRow
from sera_plugin.data.schedule import Batching, share_of
from sera_plugin.data.tables import ReviewTable, RoundRecord
from sera_plugin.runtime.memory import GIB, choose_gather
from sera_plugin.scoring.batches import plan_batches
from sera_plugin.training.costs import (
    Memory,
    ModelSize,
    RoundTokens,
    forwards_per_rank,
    memory_per_rank,
    round_tokens,
    sampling_batches_per_rank,
)

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
LAUNCHING = [
    (ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/multi-gpu.md")
]

HOST_BYTES_PER_PAIR = 900
"""Host memory of an offline pair on each rank beside its tokens, which are mapped from disk."""

HOST_BYTES_PER_TOKEN = 40
"""Host memory of a token held for sampling on each rank: a Python integer and its reference."""

FULL = ModelSize(parameters=1000, trainable=1000)
ADAPTER = ModelSize(parameters=1010, trainable=10, separate_reference=False)


@pytest.mark.parametrize(
    ("size", "stage", "expected"),
    [
        (FULL, 0, Memory(2000, 2000, 12000, 2000, 0)),
        (FULL, 1, Memory(2000, 2000, 3000, 2000, 0)),
        (FULL, 2, Memory(2000, 500, 3000, 2000, 0)),
        (FULL, 3, Memory(500, 500, 3000, 500, 2000)),
        (ADAPTER, 0, Memory(2020, 20, 120, 0, 0)),
        (ADAPTER, 2, Memory(2020, 5, 30, 0, 0)),
        (ADAPTER, 3, Memory(505, 5, 30, 0, 2020)),
    ],
)
def test_memory_on_four_ranks(size: ModelSize, stage: int, expected: Memory) -> None:
    assert memory_per_rank(size, stage, 4) == expected


def test_training_memory_is_the_sum_without_what_sampling_gathers() -> None:
    assert memory_per_rank(FULL, 3, 4).training == 500 + 500 + 3000 + 500


@pytest.mark.parametrize("stage", range(4))
def test_one_rank_shares_nothing_and_gathers_nothing(stage: int) -> None:
    assert memory_per_rank(FULL, stage, 1) == Memory(2000, 2000, 12000, 2000, 0)


def test_types_of_weights_gradients_and_states() -> None:
    fp32 = ModelSize(1000, 1000, weight_bytes=4, optimizer_bytes=8)
    assert memory_per_rank(fp32, 0, 2) == Memory(4000, 4000, 8000, 4000, 0)
    four_bits = ModelSize(1000, 10, 0.5, separate_reference=False, gradient_bytes=2)
    assert memory_per_rank(four_bits, 2, 2) == Memory(500, 10, 60, 0, 0)


@pytest.mark.parametrize(("stage", "ranks"), [(4, 1), (-1, 1), (3, 0)])
def test_memory_of_an_unknown_setting_is_an_error(stage: int, ranks: int) -> None:
    with pytest.raises(ValueError, match=f"stage {stage} on {ranks} ranks"):
        memory_per_rank(FULL, stage, ranks)


def test_tokens_of_a_round_by_hand() -> None:
    sizes = {"trained_pairs": 80, "sampled_prompts": 20, "candidates": 4}
    # 80 answers behind prompts of 10 tokens: 80·(10 + 30) tokens under each model.
    assert round_tokens(100, 70, 10, 30, **sizes) == RoundTokens(
        scored=7000 + 2 * 3200, sampled=2400, prefilled=800, trained=5600
    )
    assert round_tokens(100, 70, 10, 30, **sizes, models=3).scored == 7000 + 3 * 3200
    assert round_tokens(100, 70.004, 10, 30, **sizes).scored == 13400


def test_without_bootstrapping_only_d_is_scored() -> None:
    found = round_tokens(100, 70, 10, 30, trained_pairs=70, sampled_prompts=0, candidates=4)
    assert found == RoundTokens(scored=7000, sampled=0, prefilled=0, trained=4900)


@pytest.mark.parametrize(
    ("tokens", "ranks", "expected"),
    [(0, 2, 0), (1, 2, 1), (100, 1, 1), (101, 1, 2), (200, 2, 1), (201, 2, 2), (1000, 3, 4)],
)
def test_scoring_forwards(tokens: int, ranks: int, expected: int) -> None:
    assert forwards_per_rank(tokens, 100, ranks) == expected


def test_scoring_forwards_are_a_lower_bound_of_the_plan() -> None:
    lengths = np.random.default_rng(0).integers(10, 400, size=500)
    planned = len(plan_batches(lengths, 2048))
    reckoned = forwards_per_rank(int(lengths.sum()), 2048, 1)
    assert reckoned <= planned <= 1.2 * reckoned


@pytest.mark.parametrize(
    ("prompts", "budget", "ranks", "expected"),
    [
        (0, 480, 2, 0),
        (10, 480, 1, 4),  # 4·(10 + 30) = 160 tokens per prompt, 3 prompts per batch
        (10, 480, 2, 2),
        (10, 480, 3, 2),
        (10, 479, 1, 5),
        (10, 1, 1, 10),  # a prompt that exceeds the budget has a batch of its own
    ],
)
def test_sampling_batches(prompts: int, budget: int, ranks: int, expected: int) -> None:
    assert sampling_batches_per_rank(prompts, 10, 30, 4, budget, ranks) == expected
    planned = plan_batches(np.full(prompts, 160), budget) if prompts else []
    assert sampling_batches_per_rank(prompts, 10, 30, 4, budget, 1) == len(planned)


@pytest.mark.parametrize(
    ("setting", "weights", "gather"),
    [
        ("auto", 600, True),
        ("auto", 601, False),
        ("auto", 0, True),
        (True, 10_000, True),
        (False, 1, False),
    ],
)
def test_choose_gather(setting: str | bool, weights: float, gather: bool) -> None:
    chosen, why = choose_gather(setting, weights, 1000)
    assert chosen is gather
    if setting == "auto":
        assert why.startswith("auto: ")
    else:
        assert why == f"sera.bootstrap.gather: {str(setting).lower()}"


def test_choose_gather_says_why() -> None:
    assert choose_gather("auto", 6 * GIB, 10 * GIB) == (
        True,
        "auto: 6.00 GiB of weights ≤ 60% of the 10.00 GiB free on the fullest rank",
    )
    assert choose_gather("auto", 6 * GIB, 10 * GIB, safety=0.5) == (
        False,
        "auto: 6.00 GiB of weights > 50% of the 10.00 GiB free on the fullest rank",
    )


class Traced:
    """Bytes that the interpreter holds more than at the start."""

    def __enter__(self) -> Callable[[], int]:
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        return lambda: tracemalloc.get_traced_memory()[0] - before

    def __exit__(self, *_: object) -> None:
        tracemalloc.stop()


def test_host_memory_of_a_pair_is_as_measured() -> None:
    n = 20_000

    def logps() -> PairLogps:
        return PairLogps(ids, np.zeros(n), np.zeros(n))

    with Traced() as held:
        ids = tuple(f"{i:024x}" for i in range(n))
        position = {example_id: row for row, example_id in enumerate(ids)}
        lengths = [np.zeros(n, dtype=np.int64) for _ in range(3)]
        reference = logps()
        table = ReviewTable(
            ids,
            logps(),
            logps(),
            *(np.zeros(n) for _ in range(2)),
            np.zeros(n, dtype=bool),
            np.zeros(n),
            np.zeros(n, dtype=bool),
            np.zeros(n, dtype=np.int32),
        )
        rows = [RoundRow(f"{example_id}/offline", example_id) for example_id in ids]
        # What a rank other than 0 receives is a copy with ids of its own.
        record = pickle.loads(pickle.dumps(RoundRecord(table, rows)))
        dataset = RoundDataset(record.rows, None, position, reference)  # type: ignore[arg-type]
        measured = held() / n
    assert len(dataset) == n
    assert len(lengths) == 3
    print(f"{measured:.0f} bytes per pair")
    assert 0.9 * HOST_BYTES_PER_PAIR < measured <= HOST_BYTES_PER_PAIR


def test_host_memory_of_a_held_token_is_as_measured() -> None:
    ids = np.random.default_rng(0).integers(300, 100_000, size=(200, 300))
    with Traced() as held:
        answers = [tuple(row.tolist()) for row in ids]
        measured = held() / ids.size
    assert len(answers) == 200
    print(f"{measured:.1f} bytes per token")
    assert measured == pytest.approx(HOST_BYTES_PER_TOKEN, rel=0.05)


# ---------------------------------------------------------------------------------------------
# The tables of docs/scaling.md. The assumptions are those that the document states.

PROMPT, ANSWER, NEW = 250, 350, 512
PAIR = 2 * (PROMPT + ANSWER)
PAIRS, SEQUENCE, MICRO = 60_000, 2048, 1
SCORING_BUDGET = 2 * MICRO * SEQUENCE
SAMPLING_BUDGET = 8 * SCORING_BUDGET
KEEP, FRACTION, PROMPTS, CANDIDATES = 0.7, 0.3, 0.6, 4


def _units(tokens: RoundTokens) -> float:
    """Forwards over one token, a backward counting as two."""
    return tokens.scored + tokens.sampled + tokens.prefilled + 3.0 * tokens.trained


def _bytes_gathered(size: ModelSize, ranks: int, forwards: int) -> float:
    """What each rank receives under ZeRO-3 for forwards or ungathered decoding steps."""
    return size.weights * (1 - 1 / ranks) * forwards


def _host_bytes(pairs: int, held_tokens: int = 0) -> int:
    """Host memory of each rank for D and for a round's pools of answers."""
    return pairs * HOST_BYTES_PER_PAIR + held_tokens * HOST_BYTES_PER_TOKEN


class Llama:
    """Parameters of a Llama 3 with untied embeddings, and of a LoRA on all linear layers."""

    vocabulary, head_dim, kv_heads = 128_256, 128, 8

    def __init__(self, hidden: int, inner: int, layers: int) -> None:
        keys = self.head_dim * self.kv_heads
        self.layers = layers
        shapes = [(hidden, hidden)] * 2 + [(hidden, keys)] * 2 + [(hidden, inner)] * 3
        self.inputs_and_outputs = layers * sum(a + b for a, b in shapes)
        linear = layers * sum(a * b for a, b in shapes)
        norms = (2 * layers + 1) * hidden
        self.parameters = linear + norms + 2 * self.vocabulary * hidden

    def lora(self, rank: int) -> int:
        return rank * self.inputs_and_outputs

    def full(self, stage: int = 3) -> ModelSize:
        # Under plain DDP, Adam's states have the type of the bf16 weights, without master copies.
        return ModelSize(self.parameters, self.parameters, optimizer_bytes=12 if stage else 2 * 2)

    def adapter(self) -> ModelSize:
        added = self.lora(32)
        return ModelSize(self.parameters + added, added, separate_reference=False)


SMALL = Llama(4096, 14_336, 32)
LARGE = Llama(8192, 28_672, 80)
MODELS = {"8B": (SMALL, 8), "70B": (LARGE, 64)}


def _tokens(pairs: int) -> RoundTokens:
    kept, fresh = share_of(KEEP, pairs), share_of(FRACTION, pairs)
    return round_tokens(
        pairs,
        PAIR,
        PROMPT,
        NEW,
        trained_pairs=kept + fresh,
        sampled_prompts=share_of(PROMPTS, pairs),
        candidates=CANDIDATES,
    )


def _held(pairs: int) -> int:
    """Tokens of the prompts, their sampled answers, and both offline answers."""
    return share_of(PROMPTS, pairs) * (PROMPT + CANDIDATES * NEW + 2 * ANSWER)


def _batches(pairs: int, ranks: int) -> int:
    prompts = share_of(PROMPTS, pairs)
    return sampling_batches_per_rank(prompts, PROMPT, NEW, CANDIDATES, SAMPLING_BUDGET, ranks)


def _gib(value: float) -> str:
    return f"{value / GIB:,.2f}"


def _tib(value: float) -> str:
    return f"{value / GIB / 1024:,.1f}"


def _table_sizes() -> Iterator[list[str]]:
    for name, (model, _) in MODELS.items():
        cache = 2 * 2 * model.layers * model.kv_heads * model.head_dim  # keys and values, bf16
        yield [
            name,
            f"{model.parameters:,}",
            f"{model.lora(32):,}",
            _gib(model.full().weights),
            f"{cache // 1024}",
            _gib(cache * SAMPLING_BUDGET),
        ]


def _table_tokens() -> Iterator[list[str]]:
    for pairs in (10_000, PAIRS, 200_000):
        found = _tokens(pairs)
        plain = 3 * pairs * PAIR
        counts = [found.scored, found.sampled, found.prefilled, found.trained]
        yield [
            f"{pairs:,}",
            *(f"{count / 1e6:,.1f}" for count in (*counts, _units(found), plain)),
            f"{_units(found) / plain:.2f}",
        ]


def _table_gathered() -> Iterator[list[str]]:
    for name, (model, ranks) in MODELS.items():
        size = model.full()
        forwards = forwards_per_rank(_tokens(PAIRS).scored, SCORING_BUDGET, ranks)
        steps = _batches(PAIRS, ranks) * NEW
        trained = Batching(MICRO, 1, ranks).batches(PAIRS)
        yield [
            f"{name} on {ranks}",
            _gib(_bytes_gathered(size, ranks, 1)),
            f"{forwards:,}",
            _tib(_bytes_gathered(size, ranks, forwards)),
            _gib(_bytes_gathered(size, ranks, 1)),
            f"{steps:,}",
            _tib(_bytes_gathered(size, ranks, steps)),
            _tib(_bytes_gathered(size, ranks, 3 * trained)),
        ]


def _table_memory() -> Iterator[list[str]]:
    for name, (model, ranks) in MODELS.items():
        for kind in ("full", "LoRA"):
            for stage in range(4):
                size = model.full(stage) if kind == "full" else model.adapter()
                found = memory_per_rank(size, stage, ranks)
                parts = [found.policy, found.gradients, found.optimizer, found.reference]
                sampling = found.training + found.gathered_for_sampling
                yield [
                    f"{name} on {ranks}",
                    kind,
                    str(stage) if stage else "0 (DDP)",
                    *map(_gib, (*parts, found.training, sampling)),
                ]


def _table_ranks() -> Iterator[list[str]]:
    for ranks in (1, 8, 64, 256):
        found = memory_per_rank(SMALL.full(), 3, ranks)
        yield [
            str(ranks),
            f"{forwards_per_rank(_tokens(PAIRS).scored, SCORING_BUDGET, ranks):,}",
            f"{_batches(PAIRS, ranks):,}",
            _gib(_bytes_gathered(SMALL.full(), ranks, 1)),
            _gib(found.training),
            _gib(found.training + found.gathered_for_sampling),
            _gib(_host_bytes(PAIRS, _held(PAIRS))),
        ]


def _table_host() -> Iterator[list[str]]:
    for pairs in (10_000, PAIRS, 200_000, 1_000_000):
        both = _host_bytes(pairs, _held(pairs))
        yield [
            f"{pairs:,}",
            _gib(_host_bytes(pairs)),
            _gib(_host_bytes(0, _held(pairs))),
            _gib(both),
            _gib(8 * both),
        ]


TABLES = {
    "sizes": _table_sizes,
    "tokens": _table_tokens,
    "ranks": _table_ranks,
    "gathered": _table_gathered,
    "memory": _table_memory,
    "host": _table_host,
}


def _written(name: str) -> list[list[str]]:
    """Cells of the table below the comment that names it, without its header."""
    rows = []
    for line in DOC.split(f"<!-- {name} -->\n", 1)[1].lstrip("\n").splitlines()[2:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.split("|")[1:-1]])
    return rows


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_the_document_is_what_the_code_reckons(name: str) -> None:
    assert _written(name) == list(TABLES[name]())


def test_every_marked_table_is_checked() -> None:
    assert re.findall(r"<!-- (\w+) -->", DOC) == list(TABLES)


def test_the_document_states_what_the_tables_assume() -> None:
    assert f"prompts of {PROMPT} tokens, offline answers of {ANSWER}" in DOC
    assert f"`max_new_tokens` {NEW}" in DOC
    assert f"`sequence_len` {SEQUENCE}" in DOC
    assert f"{HOST_BYTES_PER_PAIR:,} bytes per pair" in DOC
    assert f"{HOST_BYTES_PER_TOKEN} bytes per token" in DOC


# ---------------------------------------------------------------------------------------------
# The launch lines of README and docs/multi-gpu.md, up to the command that would be run.

LINES = [
    re.sub(r"\s+#.*", "", line)
    for page in LAUNCHING
    for line in page.replace("\\\n", " ").splitlines()
    if line.startswith("axolotl train")
]


@pytest.mark.parametrize("line", LINES)
def test_a_launch_line_starts_what_it_says(
    line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from axolotl.cli.main import cli
    from axolotl.cli.utils import train

    started: list[list[str]] = []
    monkeypatch.setattr(train.os, "execvpe", lambda _, command, env: started.append(command))
    monkeypatch.setattr(train.subprocess, "run", lambda command, check: started.append(command))
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "cfg.yml"
    config.write_text("base_model: none\n")
    result = CliRunner().invoke(cli, line.split()[1:])
    assert result.exit_code == 0, result.output
    given = line.split(" -- ")[1].split() if " -- " in line else []
    launcher = ["torchrun"] if "torchrun" in line else ["accelerate", "launch"]
    expected = [*launcher, *given, "-m", "axolotl.cli.train", "cfg.yml"]
    assert len(started) == 1
    assert started[0][: len(expected)] == expected
    # The rest are Axolotl's own options.
    assert all(option.startswith("--") and "=" in option for option in started[0][len(expected) :])


def test_launch_lines_are_for_one_node_and_for_several() -> None:
    assert len(LINES) >= 4
    assert any("--nnodes" in line for line in LINES)
    # Without an id of its own, Axolotl gives every node a random one, and they never meet.
    assert all("--rdzv_id" in line for line in LINES if "--rdzv_endpoint" in line)
