"""A real run against ``slow_reference``: margins, kept ids, pairs, and the loss of each round.

One optimizer update a round, so the loss logged in a round is the loss of the whole round under
the policy that reviewed it, which the checkpoint before holds.
"""

from __future__ import annotations

import functools
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import assets
import pyarrow.parquet as pq
import pytest
import slow_reference as slow
import torch
from command_line import TRAIN_PAIRS, MakeConfig, RunCli, output_dir
from transformers import AutoModelForCausalLM, AutoTokenizer

from sera_plugin.data.ids import content_id

BETA, GAMMA, PENALTY, ROUNDS = 0.2, 0.4, 0.01, 3
KEEP, FRESH = 38, 13  # 0.6 and 0.2 of 64, rounded
WEIGHT, QUALITY = 0.5, "be brave and kind"
LLAMA = ("llama", slow.llama_text, slow.llama_answer)
QWEN = ("qwen", slow.qwen_text, slow.qwen_answer)
CASES: dict[str, tuple[Any, ...]] = {
    "dpo": (*LLAMA, "sum", slow.dpo_loss, {}),
    "ipo": (*QWEN, "mean", slow.ipo_loss, {}),
    "previous": (*LLAMA, "sum", slow.dpo_loss, {"reference": "previous"}),
    "ensemble": (*QWEN, "sum", slow.dpo_loss, {"bootstrap": {"ensemble": True}}),
    "sr_dpo": (*LLAMA, "sum", slow.dpo_loss, {"refine": {"placement": "system"}}),
    "sr_ipo": (
        *QWEN,
        "mean",
        slow.ipo_loss,
        {"refine": {"placement": "user_prefix", "source": "round", "clip": 0.02}},
    ),
}
IPO = {"ipo", "sr_ipo"}


def with_quality(messages: list[dict[str, str]], refine: dict[str, Any]) -> list[dict[str, str]]:
    if refine.get("placement") == "user_prefix":
        first = messages[0]["content"]
        return [{"role": "user", "content": f"{QUALITY}\n\n{first}"}, *messages[1:]]
    return [{"role": "system", "content": QUALITY}, *messages]


class Run:
    """What a finished run left behind, and the pairs as the slow reference reads them."""

    def __init__(self, folder: Path, base: Path, case: str) -> None:
        self.folder = folder
        _, prompt_text, answer_text, self.kind, self.loss, changes = CASES[case]
        self.previous = changes.get("reference") == "previous"
        self.ensemble = "bootstrap" in changes
        self.refine: dict[str, Any] = changes.get("refine", {})
        self.quality: dict[str, list[int]] = {}
        words = AutoTokenizer.from_pretrained(base)
        self.pairs: dict[str, slow.Pair] = {}
        for row in assets.pairs(TRAIN_PAIRS):
            texts = [
                prompt_text(row["messages"]),
                answer_text(row["chosen"]["content"]),
                answer_text(row["rejected"]["content"]),
            ]
            ids = [words(text, add_special_tokens=False)["input_ids"] for text in texts]
            self.pairs[content_id(*texts)] = slow.Pair(*ids)
            text = prompt_text(with_quality(row["messages"], self.refine))
            self.quality[content_id(*texts)] = words(text, add_special_tokens=False)["input_ids"]
        self.base = AutoModelForCausalLM.from_pretrained(base)
        self.logs = json.loads((self._checkpoint(ROUNDS) / "trainer_state.json").read_text())[
            "log_history"
        ]
        self._margins: dict[int, dict[str, float]] = {}

    def _checkpoint(self, step: int) -> Path:
        return self.folder / f"checkpoint-{step}"

    @functools.cache  # noqa: B019
    def policy(self, number: int) -> torch.nn.Module:
        """The policy that reviewed before round ``number``."""
        return AutoModelForCausalLM.from_pretrained(self._checkpoint(number - 1))

    def reference(self, number: int) -> torch.nn.Module:
        """πref when round ``number`` is reviewed; trained on with, it is that of the next one."""
        return self.policy(number - 1) if self.previous and number > 2 else self.base

    def ratio(self, number: int, prompt: slow.IDS, answer: slow.IDS) -> float:
        """The log-ratio that ranks an answer in the review before round ``number``."""
        now = slow.log_ratio(self.policy(number), self.reference(number), prompt, answer)
        if not self.ensemble or number == 2:
            return now
        before = slow.log_ratio(self.policy(number - 1), self.base, prompt, answer)
        return slow.mix(now, before, GAMMA)

    def rho(self, number: int, example_id: str, pair: slow.Pair) -> float:
        """λ·Δ of a pair that a round trains on, within the bound."""
        if not self.refine:
            return 0.0
        pair = slow.Pair(self.quality[example_id], pair.chosen, pair.rejected)
        policy = self.base if number == 1 else self.policy(number)
        rho = WEIGHT * slow.delta(policy, self.base, pair, BETA, self.kind)
        clip = self.refine.get("clip", math.inf)
        return min(max(rho, -clip), clip)

    def table(self, number: int, name: str) -> list[dict[str, Any]]:
        return pq.read_table(self.folder / f"sera/round-{number:02d}/{name}.parquet").to_pylist()

    def margins(self, number: int) -> dict[str, float]:
        if number not in self._margins:
            policy = self.policy(number)
            self._margins[number] = {
                i: slow.margin(policy, self.reference(number), pair, self.kind)
                for i, pair in self.pairs.items()
            }
        return self._margins[number]


@pytest.fixture(scope="module", params=CASES)
def run(
    request: pytest.FixtureRequest, config: MakeConfig, run_cli: RunCli, llama: Path, qwen: Path
) -> Run:
    case = request.param
    base = {"llama": llama, "qwen": qwen}[CASES[case][0]]
    changes = CASES[case][5]
    path = config(
        base_model=str(base),
        rl="ipo" if case in IPO else "dpo",
        rl_beta=BETA,
        num_epochs=ROUNDS,
        learning_rate=5e-3,
        lr_scheduler="constant",
        warmup_steps=0,
        micro_batch_size=4,
        gradient_accumulation_steps=16,
        saves_per_epoch=1,
        logging_steps=1,
        sera={
            "ensemble": GAMMA,
            "selection": {"keep": 0.6, "margin": CASES[case][3]},
            "bootstrap": {
                "fraction": 0.2,
                "prompts": 0.8,
                "max_new_tokens": 12,
                "length_penalty": PENALTY,
                "guard": False,
                **changes.get("bootstrap", {}),
            },
            "reference": changes.get("reference", "fixed"),
            "refine": {"weight": WEIGHT, "prompt": QUALITY, **changes["refine"]}
            if "refine" in changes
            else False,
        },
    )
    run_cli("train", path, "--launcher", "python")
    return Run(output_dir(path), base, case)


@pytest.mark.cli
@pytest.mark.parametrize("number", [2, 3])
def test_margins_and_kept_pairs(run: Run, number: int) -> None:
    table = {row["example_id"]: row for row in run.table(number, "margins")}
    own = run.margins(number)
    assert table.keys() == own.keys()
    before = run.margins(number - 1) if number > 2 else {}
    mixed = {i: slow.mix(m, before.get(i), GAMMA) for i, m in own.items()}
    for i in own:
        assert table[i]["margin"] == pytest.approx(own[i], abs=1e-4)
        assert table[i]["ensembled_margin"] == pytest.approx(mixed[i], abs=1e-4)
    assert max(abs(m) for m in own.values()) > 0.05, "the policy has not moved; nothing is tested"
    assert {i for i, row in table.items() if row["kept"]} == set(slow.top(mixed, KEEP))


@pytest.mark.cli
@pytest.mark.parametrize("number", [2, 3])
def test_pairs_of_the_given_candidates(run: Run, number: int) -> None:
    pools: dict[str, list[slow.Answer]] = defaultdict(list)
    for row in run.table(number, "candidates"):
        prompt = run.pairs[row["example_id"]].prompt
        ratio = run.ratio(number, prompt, row["token_ids"])
        reward = BETA * ratio - PENALTY * len(row["token_ids"])
        assert row["reward"] == pytest.approx(reward, abs=1e-4)
        sampled = row["source"] == "policy"
        answer = slow.Answer(row["token_ids"], sampled, row["finished"], reward)
        pools[row["example_id"]].append(answer)
    found = {i: slow.best_and_worst(answers) for i, answers in pools.items()}
    pairs = {i: pair for i, pair in found.items() if pair is not None}
    best = slow.top({i: a.reward - b.reward for i, (a, b) in pairs.items()}, FRESH)
    fresh = {
        row["example_id"]: (row["chosen_ids"], row["rejected_ids"])
        for row in run.table(number, "rows")
        if row["chosen_ids"] is not None
    }
    assert fresh == {i: (pairs[i][0].tokens, pairs[i][1].tokens) for i in best}
    assert fresh, "no pair was bootstrapped; nothing is tested"


@pytest.mark.cli
@pytest.mark.parametrize("number", [1, 2, 3])
def test_loss_of_the_round(run: Run, number: int) -> None:
    policy = run.base if number == 1 else run.policy(number)
    reference = run.reference(number + 1) if number > 1 else run.base
    if number == 1:
        trained = list(run.pairs.items())
    else:
        rows = run.table(number, "rows")
        assert len(rows) == KEEP + FRESH
        trained = []
        for row in rows:
            pair = run.pairs[row["example_id"]]
            if row["chosen_ids"] is not None:
                pair = slow.Pair(pair.prompt, row["chosen_ids"], row["rejected_ids"])
            trained.append((row["example_id"], pair))
    # The host averages over micro-batches of 4; the last one of a reviewed round holds 3 pairs.
    rhos = [run.rho(number, example_id, pair) for example_id, pair in trained]
    if run.refine:
        assert (max(map(abs, rhos)) >= 0.01) == (number > 1), "Δ is 0 before the first update alone"
    losses = [
        run.loss(policy, reference, pair, BETA, rho)
        for (_, pair), rho in zip(trained, rhos, strict=True)
    ]
    batches = [losses[i : i + 4] for i in range(0, len(losses), 4)]
    expected = sum(sum(batch) / len(batch) for batch in batches) / len(batches)
    logged = next(entry for entry in run.logs if entry["step"] == number and "loss" in entry)
    assert logged["loss"] == pytest.approx(expected, rel=1e-4)
    # Rewards are those under the reference itself, whatever the loss adds.
    margins = [BETA * slow.margin(policy, reference, pair, "sum") for _, pair in trained]
    batches = [margins[i : i + 4] for i in range(0, len(margins), 4)]
    mean = sum(sum(batch) / len(batch) for batch in batches) / len(batches)
    assert logged["rewards/margins"] == pytest.approx(mean, abs=2e-4)
    if run.refine and number == 1:
        assert abs(logged["refine/delta"]) < 1e-6
