"""Real runs of `axolotl train` with a real vLLM on the CPU; `make test-vllm` brings it.

``sera_vllm_on_cpu`` says what is substituted.
"""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from command_line import MakeConfig
from ranks import LORA, free_port
from real_vllm import (
    axolotl_server,
    colocated,
    kill_engine,
    last_line,
    probes,
    served,
    to_server,
    trl_server,
)

from sera_plugin.host.vllm_server import wait_for
from sera_plugin.host.vllm_settings import VllmSettings
from sera_plugin.runtime.errors import VllmError

MISSING = [n for n in ("vllm", "sera_vllm_on_cpu") if importlib.util.find_spec(n) is None]
pytestmark = [
    pytest.mark.cli,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]

EXACT, HALF = 1e-5, 0.05
"""Nats per token by which log-probs may differ in float32, and where vLLM computes in bf16."""


def assert_same(ours: Path, theirs: Path) -> None:
    """The bootstrapped rounds have equal candidates and rows."""
    for number in (2, 3):
        for table in ("rows.parquet", "candidates.parquet"):
            folder = Path("sera") / f"round-{number:02d}"
            pd.testing.assert_frame_equal(
                pd.read_parquet(ours / folder / table),
                pd.read_parquet(theirs / folder / table),
                atol=1e-4,
                rtol=0,
            )
        rows = pd.read_parquet(ours / "sera" / f"round-{number:02d}" / "rows.parquet")
        assert rows["chosen_ids"].notna().sum() > 0


def assert_probes(said: str, bound: float) -> None:
    found = probes(said)
    print("probes", found)
    assert len(found) == 2, said[-4000:]
    assert max(found) < bound


def test_colocated_full_fine_tune(train: Any, full: Path) -> None:
    """vLLM takes the policy's float32, where its own choice would be bf16."""
    out, said = train(
        "colocated",
        "vllm",
        {"vllm_mode": "colocate"},
        trl={"vllm_enable_sleep_mode": False},
        **colocated(),
    )
    assert_probes(said, EXACT)
    assert_same(out, full)


def test_colocated_lora_that_sleeps(train: Any, lora: Path, tmp_path: Path) -> None:
    """Sleep leaves NaN in parameters and buffers, so what isn't brought back shows."""
    out, said = train(
        "sleeps",
        "vllm",
        {"vllm_mode": "colocate"},
        {"SERA_SIMULATE_SLEEP": str(tmp_path / "nights")},
        **colocated(),
        **LORA,
    )
    assert (tmp_path / "nights").read_text().count("slept") == 3, "at the start, after each review"
    assert_probes(said, EXACT)
    assert_same(out, lora)


def test_colocated_in_half_precision(train: Any) -> None:
    _, said = train(
        "half",
        "vllm",
        {"vllm_mode": "colocate"},
        trl={"vllm_enable_sleep_mode": False},
        **colocated(dtype="bfloat16"),
    )
    assert_probes(said, HALF)
    assert min(probes(said)) > EXACT, "vllm.dtype was not passed on"


def test_trl_vllm_serve(train: Any, full: Path, trls: tuple[int, int]) -> None:
    out, said = train("trl", "vllm", **to_server(trls[1]))
    assert_probes(said, EXACT)
    assert_same(out, full)


def test_an_engine_that_dies_is_one_sentence(train: Any, trls: tuple[int, int]) -> None:
    """It dies in the first round; TRL's server then answers nothing that needs the engine."""
    limit, killed = 60.0, []
    keys = to_server(trls[1])
    keys["trl"]["vllm_server_timeout"] = limit

    def kill() -> None:
        kill_engine(trls[0])
        killed.append(time.monotonic())

    _, said = train("dead", "vllm", fails=True, when=("Reference log-probs:", kill), **keys)
    waited = time.monotonic() - killed[0]
    print("waited", waited)
    assert "did not take the policy's weights" in last_line(said), said[-4000:]
    assert "start it anew" in last_line(said)
    assert "Traceback" not in said
    assert waited < 2 * limit
    settings = VllmSettings.of({"trl": {**keys["trl"], "vllm_server_timeout": 3}}, "server")
    with pytest.raises(VllmError, match="after 3 seconds"):
        wait_for(settings)


def test_axolotl_vllm_serve(
    train: Any, full: Path, config: MakeConfig, wide: Path, tmp_path: Path
) -> None:
    port = free_port()
    with served(tmp_path, axolotl_server(config, wide, port), port):
        out, said = train("axolotl", "vllm", **to_server(port))
    assert_probes(said, EXACT)
    assert_same(out, full)


def test_another_model_in_trls_server(train: Any, other: Path, tmp_path: Path) -> None:
    """Its worker ends at the first tensor, which is named."""
    port = free_port()
    keys = to_server(port)
    keys["trl"]["vllm_server_timeout"] = 30
    with served(tmp_path, trl_server(other, port), port):
        _, said = train("other", "vllm", fails=True, **keys)
    assert "did not take the policy's weights" in last_line(said), said[-4000:]
    assert "at model.embed_tokens.weight:" in last_line(said)
    assert "with the run's base_model" in last_line(said)
    assert "Traceback" not in said


def test_another_model_in_axolotls_server(
    train: Any, config: MakeConfig, other: Path, tmp_path: Path
) -> None:
    """It goes on after a tensor that it can't take; its log-probs tell."""
    port = free_port()
    with served(tmp_path, axolotl_server(config, other, port), port):
        _, said = train("other", "vllm", fails=True, **to_server(port))
    assert "it has other weights; start it anew" in last_line(said), said[-4000:]
    assert "Traceback" not in said
