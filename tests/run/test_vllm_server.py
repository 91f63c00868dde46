"""TRL's own server and client on loopback, with faults in the engine behind the server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from command_line import SHIM, RunCli
from ranks import free_port
from sampled import HERE, PROMPTS, SETTINGS, engine_with, rollouts, runs, small
from vllm_serving import Serving, environment, serving

from sera_plugin.runtime.errors import VllmError
from sera_plugin.runtime.shards import Origin
from sera_plugin.sampling.sampler import Sampler
from sera_plugin.sampling.vllm_engine import VllmEngine

pytestmark = pytest.mark.cli


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """``connected`` sets these; they are put back after each test."""
    for name in environment(Path(), 0):
        monkeypatch.setenv(name, os.environ.get(name, ""))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model that the server starts from; the policy has other weights."""
    folder = tmp_path_factory.mktemp("base")
    model = small()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(base, tmp_path_factory.mktemp("server")) as found:
        yield found


def connected(server: Serving, policy: Any, timeout: float = 4.0) -> VllmEngine:
    os.environ |= server.environment
    return engine_with(policy, replace(HERE, url=server.url, timeout=timeout))


def test_faults_of_answers_are_found(cpu_vllm: None, server: Serving) -> None:
    """One connection, one fault after the other; between them the server is sound."""
    policy = small()
    engine = connected(server, policy)
    expected = rollouts(None, policy, temperature=0.0)
    faults = {
        "reorder": "other tokens than those of the prompt",
        "lose": "prompts where 7 were sent",
        "twice": "other tokens than those of the prompt",
        "swap": "gave 20 answers where 3 to each of 7 prompts",
        "cut": "no stop token where there is room",
        "slow": "did not answer within 4 seconds",
    }
    with engine.serving(runs(policy)):
        for fault, words in faults.items():
            assert rollouts(engine, policy, temperature=0.0) == expected
            sampled = rollouts(engine, policy)
            assert sampled == rollouts(engine, policy), "one seed, two answers"
            server.fault.write_text(fault)
            with pytest.raises(VllmError, match=words):
                rollouts(engine, policy)
            server.fault.write_text("")


@pytest.mark.parametrize("fault", ["ignore"])
def test_weights_that_do_not_arrive_are_found(cpu_vllm: None, server: Serving, fault: str) -> None:
    policy = small()
    engine = connected(server, policy)
    with engine.serving(runs(policy)):
        """The first weights arrive."""
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    server.fault.write_text(fault)
    refused = pytest.raises(VllmError, match="so it has other weights")
    with refused, engine.serving(runs(policy)):
        pytest.fail("nothing may be sampled")
    server.fault.write_text("")
    with engine.serving(runs(policy)):
        assert rollouts(engine, policy, temperature=0.0) == rollouts(None, policy, temperature=0.0)


def test_a_server_that_dies_costs_no_finished_shard(
    cpu_vllm: None, base: Path, tmp_path: Path
) -> None:
    policy = small()
    origin = Origin(tmp_path / "work", "round-02", "weights")
    port, asked = free_port(), []

    def run(engine: VllmEngine, die: Serving | None = None) -> Any:
        def finished() -> None:
            if die is not None:
                die.stop()

        own = engine.vllm.generate
        engine.vllm.generate = lambda *a: (asked.append(len(a[0])), own(*a))[1]  # type: ignore
        settings = replace(SETTINGS, temperature=0.0, token_budget=1)
        sampler = Sampler(Accelerator(cpu=True), settings, engine, finished)
        with engine.serving(runs(policy)):
            asked.clear()
            return sampler.completions(policy, PROMPTS, 42, 2, synced=False, origin=origin)

    with serving(base, tmp_path, port) as first:
        engine = connected(first, policy)
        with pytest.raises(VllmError, match=r"failed for 4 seconds .*answers sampled so far"):
            run(engine, die=first)
    # A new one at the same address has the weights that it started from.
    with serving(base, tmp_path, port) as second:
        with pytest.raises(VllmError, match="started anew during a review"):
            engine._ask(PROMPTS, SETTINGS, lambda prompt, copy, count: torch.zeros(count).numpy())
        found = run(connected(second, policy))
    assert len(asked) == len(PROMPTS) - 2, "the first shard was asked for again"
    assert found == rollouts(None, policy, temperature=0.0)


WORK = """
import sys
from accelerate import Accelerator
from sera_plugin.sampling.vllm_engine import VllmEngine
from sampled import PROMPTS, SETTINGS

accelerator = Accelerator(cpu=True)
rank = accelerator.process_index

class Vllm:
    interrupted = False
    asked = 0
    def generate(self, prompts, options):
        assert rank == 0 or not has_server, "another rank asks the server"
        self.asked += 1
        if rank == failing:
            raise OSError("gone")
        answers = [[ids[0]] * options["max_tokens"] for ids in prompts for _ in range(options["n"])]
        return {"prompt_ids": [list(ids) for ids in prompts], "completion_ids": answers}

def half(prompt, copy, count):
    return [0.5] * count

for has_server, failing in ((True, None), (True, 0), (False, 1), (False, None)):
    engine = VllmEngine(accelerator, Vllm(), has_server)
    mine = PROMPTS[:2] if rank == 0 else PROMPTS[2:]
    try:
        found = engine.sample(None, mine, SETTINGS, half, synced=False)
    except Exception as error:
        assert failing is not None and "gone" in str(error), error
    else:
        assert failing is None
        assert [int(each[0][0]) for each in found] == [p.token_ids[0] for p in mine]
    engine.sample(None, PROMPTS[:1], SETTINGS, half, synced=False) if failing is None else None
    if has_server and failing is None:
        assert engine.vllm.asked == (3 if rank == 0 else 0)  # equal batches are asked for once
"""


def test_what_fails_on_one_rank_is_raised_on_all(run_ranks: RunCli, tmp_path: Path) -> None:
    script = tmp_path / "work.py"
    script.write_text(WORK)
    env = SHIM | {"ACCELERATE_USE_CPU": "true"}
    run_ranks("--standalone", "--nproc_per_node", "2", script, env=env, timeout=280)
