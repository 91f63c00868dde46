"""What TRL imports of vLLM, on CPU: an engine of transformers, and gloo in the place of NCCL.

Tests put the folder above on a path, so that TRL's own client, server application and weight sync
run. It is strict where vLLM is: greedy decoding gives one answer, unknown weights are refused, and
sleep at level 2 forgets weights. ``CPU_VLLM_FAULT`` names a file with a fault to commit.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from vllm.sampling_params import SamplingParams

__version__ = "0.20.0"
__all__ = ["LLM", "RequestOutput", "SamplingParams"]


@dataclass
class Logprob:
    logprob: float
    rank: int


@dataclass
class CompletionOutput:
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]] | None


@dataclass
class RequestOutput:
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]


class _Weights:
    """``load_weights`` of a vLLM model."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.parameters = dict(model.named_parameters())
        self.taken: list[str] = []

    @torch.no_grad()
    def load_weights(self, weights: Any) -> None:
        for name, tensor in weights:
            if "refuse" in _fault():
                raise RuntimeError(f"no room for {name}")
            if "ignore" not in _fault():
                own = self.parameters[name]
                if own.shape != tensor.shape:
                    raise ValueError(f"{name} is {tuple(tensor.shape)}, not {tuple(own.shape)}")
                own.copy_(tensor)
            self.taken.append(name)


class LLM:
    """An engine with one worker in this process, which is given TRL's extension."""

    def __init__(self, model: str, worker_extension_cls: str | None = None, **options: Any) -> None:
        self.path, self.options = model, options
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.weights = _Weights(self.model)
        runner = SimpleNamespace(model=self.weights)
        self.llm_engine = SimpleNamespace(
            model_executor=SimpleNamespace(driver_worker=SimpleNamespace(model_runner=runner))
        )
        self.asleep = {"weights": False, "kv_cache": False}
        self.worker: Any = None
        if worker_extension_cls is not None:
            from trl.scripts.vllm_serve import WeightSyncWorkerExtension

            self.worker = WeightSyncWorkerExtension()
            self.worker.device, self.worker.model_runner = torch.device("cpu"), runner

    def collective_rpc(self, method: str, args: Any = (), kwargs: Any = None) -> list[Any]:
        if method == "reload_weights":
            stored = AutoModelForCausalLM.from_pretrained(self.path, dtype=torch.float32)
            self.model.load_state_dict(stored.state_dict())
            return [None]
        return [getattr(self.worker, method)(*args, **(kwargs or {}))]

    def reset_prefix_cache(self) -> bool:
        return True

    @torch.no_grad()
    def sleep(self, level: int = 1) -> None:
        self.asleep = dict.fromkeys(self.asleep, True)
        if level == 2:
            for parameter in self.model.parameters():
                parameter.zero_()

    def wake_up(self, tags: list[str] | None = None) -> None:
        for tag in tags or list(self.asleep):
            self.asleep[tag] = False

    def generate(
        self, prompts: Any, sampling_params: Any = None, use_tqdm: bool = True, **_: Any
    ) -> list[RequestOutput]:
        assert not any(self.asleep.values()), "asleep"
        each = sampling_params if isinstance(sampling_params, list) else None
        found = [
            self._answer(prompt, each[row] if each else sampling_params)
            for row, prompt in enumerate(prompts)
            if not isinstance(prompt, str)
        ]
        return _with_fault(found)

    def _answer(self, prompt: dict[str, list[int]], params: SamplingParams) -> RequestOutput:
        ids = list(prompt["prompt_token_ids"])
        stops = {*params.stop_token_ids, *_listed(self.model.config.eos_token_id)}
        outputs = []
        for copy in range(params.n):
            generator = torch.Generator()
            if params.seed is not None:
                generator.manual_seed(params.seed + copy)
            else:
                generator.seed()
            outputs.append(self._one(ids, params, stops, generator))
        return RequestOutput(ids, outputs)

    @torch.no_grad()
    def _one(
        self, ids: list[int], params: SamplingParams, stops: set[int], generator: torch.Generator
    ) -> CompletionOutput:
        tokens: list[int] = []
        logprobs: list[dict[int, Logprob]] = []
        while len(tokens) < params.max_tokens:
            logits = self.model(torch.tensor([[*ids, *tokens]])).logits[0, -1]
            scaled = logits / params.temperature if params.temperature else logits
            logps = scaled.log_softmax(-1)
            if params.temperature == 0:
                token = int(logits.argmax())
            else:
                token = int(torch.multinomial(logps.exp(), 1, generator=generator))
            order = logps.argsort(descending=True).tolist()
            shown = dict.fromkeys([token, *order[: params.logprobs or 0]])
            logprobs.append({i: Logprob(float(logps[i]), order.index(i) + 1) for i in shown})
            tokens.append(token)
            if token in stops:
                break
        return CompletionOutput(tokens, None if params.logprobs is None else logprobs)


def _listed(value: Any) -> list[int]:
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def _fault() -> str:
    path = Path(os.environ.get("CPU_VLLM_FAULT", ""))
    return path.read_text() if path.is_file() else ""


def _with_fault(found: list[RequestOutput]) -> list[RequestOutput]:
    fault = _fault()
    if "reorder" in fault:
        return found[::-1]
    if "lose" in fault:
        return found[:-1]
    if "twice" in fault:
        return [*found[:-1], found[0]]
    if "swap" in fault:
        found[0].outputs.pop()
    if "cut" in fault:
        for each in found:
            for one in each.outputs:
                one.token_ids = [token for token in one.token_ids[:-1] if token > 9][:-1]
    if "die" in fault:
        os._exit(1)
    if "slow" in fault:
        time.sleep(5)
    return found
