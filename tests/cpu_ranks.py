"""Test-only Axolotl plugin: lets real DDP and DeepSpeed engines run with several ranks on CPU.

Three host defaults assume a GPU; nothing of engines or collectives is replaced.
"""

from __future__ import annotations

import os
from typing import Any

import accelerate.state
from accelerate.utils import DistributedType
from axolotl.integrations.base import BasePlugin
from axolotl.loaders.model import ModelLoader


def _gloo_backend() -> None:
    original = accelerate.state.PartialState._prepare_backend

    def prepare(self: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        backend, kind = original(self, *args, **kwargs)
        if backend is None and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            backend = "gloo"
            if kind is None or kind == DistributedType.NO:
                kind = DistributedType.MULTI_CPU
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


class CpuRanks(BasePlugin):
    """List it before other plugins."""

    def register(self, cfg: Any) -> None:
        _gloo_backend()
        _models_on_cpu()
        if cfg.get("deepspeed"):
            _gather_plain_tensors()
