"""An Axolotl plugin that measures the policy on held-out prompts while it trains."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel, ConfigDict, Field
from transformers import AutoModelForCausalLM, PreTrainedModel, TrainerCallback

from benchmarks.evidence import vocabulary as words
from benchmarks.evidence.policy import distance, sample
from benchmarks.evidence.world import Prompts, World, has_marker, lengths

PLUGIN = "benchmarks.evidence.probe.ProbePlugin"


class ProbeConfig(BaseModel):
    """What is measured, and when."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    world: int = Field(description="Seed of the world.")
    reference: str = Field(description="Folder of the SFT model.")
    split: str = Field(description="Held-out prompts: `tune` or `report`.")
    result: str = Field(description="JSON file that is written at the end of training.")
    points: int = Field(default=6, description="Points of the curve, equal shares of all updates.")
    prompts: int = Field(default=256, description="Held-out prompts.")
    repeats: int = Field(default=4, description="Completions per prompt at the last point.")


class ProbeArgs(BaseModel):
    """Mixin for Axolotl's input schema."""

    evidence_probe: ProbeConfig | None = None


class ProbePlugin(BasePlugin):
    """Measures gold reward, KL, length and the marker's rate at equal shares of the updates."""

    def get_input_args(self) -> str:
        return "benchmarks.evidence.probe.ProbeArgs"

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[TrainerCallback]:
        return [ProbeCallback(ProbeConfig.model_validate(dict(cfg.evidence_probe)))]


class ProbeCallback(TrainerCallback):
    """Samples answers at temperature 1 and judges them; random numbers of its own."""

    def __init__(self, config: ProbeConfig) -> None:
        self.config = config
        self.world = World(config.world)
        self.prompts = self.world.prompts(config.split, config.prompts)
        self.reference = AutoModelForCausalLM.from_pretrained(config.reference).eval()
        self.curve: list[dict[str, float]] = []
        self.started = 0.0
        self.probing = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        shares = np.arange(1, self.config.points) / self.config.points
        self.steps = {max(1, round(share * state.max_steps)) for share in shares}
        # The host collects garbage on every micro-batch; start-up's objects need no walk each time.
        gc.freeze()
        self.started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if state.global_step in self.steps and state.global_step < state.max_steps:
            self._probe(rest["model"], state.global_step, repeats=1)

    def on_train_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        seconds = time.perf_counter() - self.started - self.probing
        golds = self._probe(rest["model"], state.global_step, repeats=self.config.repeats)
        result = {
            "curve": self.curve,
            "gold": np.round(golds, 2).tolist(),
            "updates": state.global_step,
            "tokens": max((log.get("num_tokens", 0) for log in state.log_history), default=0),
            "seconds": round(seconds, 2),
            "seconds_probing": round(self.probing, 2),
        }
        Path(self.config.result).write_text(json.dumps(result), encoding="utf-8")

    def _probe(self, model: PreTrainedModel, step: int, repeats: int) -> np.ndarray:
        start = time.perf_counter()
        training = model.training
        model.eval()
        numbers, golds = measure(self.world, self.prompts, model, self.reference, repeats)
        model.train(training)
        self.curve.append({"step": step, **numbers})
        self.probing += time.perf_counter() - start
        return golds


def measure(
    world: World,
    prompts: Prompts,
    model: PreTrainedModel,
    reference: PreTrainedModel,
    repeats: int,
    seed: int = 0,
) -> tuple[Mapping[str, float], np.ndarray]:
    """Judge a policy's answers.

    Args:
        world: whose gold reward judges.
        prompts: held-out prompts.
        model: the policy.
        reference: the SFT model.
        repeats: answers per prompt.
        seed: of the samples.

    Returns:
        Means over all answers, and gold of each, float64, shape (prompts, repeats).
    """
    ids = np.repeat(words.prompt_ids(prompts), repeats, axis=0)
    asked = prompts.take(np.repeat(np.arange(len(prompts)), repeats))
    sampled = sample(model, ids, seed)
    answers = words.answers_of_ids(sampled)
    gold = world.gold(asked, answers)
    far = distance(model, reference, ids, sampled)
    numbers = {
        "gold": gold.mean(),
        "kl": far.kl.mean(),
        "entropy": far.entropy.mean(),
        "length": lengths(answers).mean(),
        "marker": has_marker(answers).mean(),
        "finished": (sampled == words.IDS[words.EOS]).any(axis=1).mean(),
    }
    return {k: round(float(v), 4) for k, v in numbers.items()}, gold.reshape(-1, repeats)
