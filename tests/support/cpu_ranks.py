"""Test-only Axolotl plugin: lets real DDP and DeepSpeed engines run with several ranks on CPU.

Three host defaults assume a GPU; nothing of engines or collectives is replaced.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from typing import Any

import accelerate.state
from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils import DistributedType
from axolotl.integrations.base import BasePlugin
from axolotl.loaders.model import ModelLoader
from transformers import TrainerCallback


def _gloo_backend(kind_of_ranks: DistributedType | None) -> None:
    original = accelerate.state.PartialState._prepare_backend

    def prepare(self: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        backend, kind = original(self, *args, **kwargs)
        if backend is None and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            backend = "gloo"
            if kind is None or kind == DistributedType.NO:
                kind = kind_of_ranks
        return backend, kind

    accelerate.state.PartialState._prepare_backend = prepare


def _models_on_cpu() -> None:
    original = ModelLoader._build_model

    def build(self: Any, *args: Any, **kwargs: Any) -> Any:
        if "device_map" in self.model_kwargs:
            self.model_kwargs["device_map"] = {"": "cpu"}
        return original(self, *args, **kwargs)

    ModelLoader._build_model = build


def _gather_plain_tensors() -> None:
    from deepspeed.comm.torch import TorchBackend

    original = TorchBackend.all_gather_into_tensor

    def gather(self: Any, output_tensor: Any, input_tensor: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, output_tensor.data, input_tensor.data, *args, **kwargs)

    TorchBackend.all_gather_into_tensor = gather


def _mesh_on_cpu() -> None:
    original = ParallelismConfig.build_device_mesh

    def build(self: Any, device_type: str) -> Any:
        return original(self, "cpu")

    ParallelismConfig.build_device_mesh = build


def _fail_while_scoring(rank: int) -> None:
    """Fault injection: the given rank raises in its third scoring batch."""
    from sera_plugin.scoring.scorer import Scorer

    original, calls = Scorer._batch, itertools.count(1)

    def batch(self: Any, *args: Any, **kwargs: Any) -> Any:
        if int(os.environ.get("RANK", 0)) == rank and next(calls) == 3:
            print(f"FAULT at {time.time():.1f}", flush=True)
            raise OSError("injected fault")
        return original(self, *args, **kwargs)

    Scorer._batch = batch


def _rescore_too() -> None:
    """Says how margins recorded in training rank beside those of a scoring pass."""
    from scipy.stats import spearmanr

    from sera_plugin.data.margins import log_ratios, margins
    from sera_plugin.review.review import Reviewer

    original = Reviewer._select

    def select(self: Any, size: Any, reference: Any, *args: Any) -> Any:
        found = original(self, size, reference, *args)
        policy, _ = self.score_offline(self.pairs, "once more", label="test")
        lengths = self.pairs.chosen_tokens, self.pairs.rejected_tokens
        again = margins(log_ratios(policy, reference), *lengths, self.config.selection.margin)
        print(f"RESCORED: Spearman {spearmanr(found[0].margin, again).statistic:.3f}", flush=True)
        return found

    Reviewer._select = select


class SignalAtStep(TrainerCallback):
    """Fault injection: the process gets a signal when it begins the step after ``step``."""

    def __init__(self, number: signal.Signals, step: int) -> None:
        self.number = number
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), self.number)


class CpuRanks(BasePlugin):
    """List it before other plugins."""

    def add_callbacks_pre_trainer(self, cfg: Any, model: Any) -> list[TrainerCallback]:
        wanted = {
            "DIE_AT_STEP": signal.SIGKILL,
            "TERM_AT_STEP": signal.SIGTERM,
            "INT_AT_STEP": signal.SIGINT,
            "INT_AGAIN_AT_STEP": signal.SIGINT,
        }
        return [
            SignalAtStep(number, int(os.environ[name]))
            for name, number in wanted.items()
            if name in os.environ
        ]

    def register(self, cfg: Any) -> None:
        # Accelerate turns FSDP on for ranks of the kind MULTI_GPU only.
        sharded = bool(cfg.get("fsdp_config"))
        _gloo_backend(DistributedType.MULTI_GPU if sharded else DistributedType.MULTI_CPU)
        _models_on_cpu()
        if cfg.get("deepspeed"):
            _gather_plain_tensors()
        if sharded:
            _mesh_on_cpu()
        if "RESCORE_TOO" in os.environ:
            _rescore_too()
        if "FAIL_RANK" in os.environ:
            _fail_while_scoring(int(os.environ["FAIL_RANK"]))
