"""What tests substitute in a real vLLM without a GPU; the engine, its models and sync stay real.

vLLM calls ``substitute`` in each of its processes, through an entry point. A trainer that talks to
a server makes no engine; there ``sera_trainer_on_cpu.OnCpu``, a plugin of Axolotl, does it.

- Linear weights stay as they are; oneDNN packs them away, and then none can be loaded.
- Weights travel over gloo on the store of vLLM's own group in the place of NCCL.
- ``SERA_SIMULATE_SLEEP``, a file: sleep overwrites all parameters and buffers with NaN, after it
  saved the buffers as the worker for GPUs does, and adds a line to the file; the worker's own
  ``wake_up`` brings the buffers back.
"""

from __future__ import annotations

import datetime
import os
from types import SimpleNamespace
from typing import Any

import torch
from torch.distributed import BroadcastOptions
from torch.distributed import distributed_c10d as c10d


def substitute() -> None:
    from vllm import _custom_ops
    from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator

    _custom_ops._supports_onednn = False
    # In the class itself, which may have been imported by name before.
    PyNcclCommunicator.__init__ = _connect
    PyNcclCommunicator.broadcast = _broadcast
    if os.environ.get("SERA_SIMULATE_SLEEP"):
        _simulate_sleep()


def _connect(self: Any, group: Any, device: Any, library_path: str | None = None) -> None:
    limit = datetime.timedelta(seconds=60)
    store = c10d.PrefixStore("weights", group.store)
    self.group, self.rank, self.world_size = group, group.rank, group.world_size
    self.gloo = c10d.ProcessGroupGloo(store, group.rank, group.world_size, limit)


def _broadcast(self: Any, tensor: torch.Tensor, src: int, stream: Any = None) -> None:
    options = BroadcastOptions()
    options.rootRank = src
    self.gloo.broadcast([tensor], options).wait()


def _simulate_sleep() -> None:
    from vllm.platforms.cpu import CpuPlatform
    from vllm.v1.worker.cpu_worker import CPUWorker
    from vllm.v1.worker.gpu_worker import Worker

    def sleep(self: Any, level: int = 1) -> None:
        assert level == 2
        model = self.model_runner.model
        self._sleep_saved_buffers = {n: b.cpu().clone() for n, b in model.named_buffers()}
        with torch.no_grad():
            for tensor in [*model.parameters(), *model.buffers()]:
                if tensor.is_floating_point():
                    tensor.data.fill_(float("nan"))
        with open(os.environ["SERA_SIMULATE_SLEEP"], "a") as nights:
            nights.write("slept\n")

    CpuPlatform.is_sleep_mode_available = lambda self: True
    CPUWorker.sleep = sleep
    CPUWorker._get_sleep_mode_backend = lambda self: SimpleNamespace(resume=lambda tags: None)
    CPUWorker.wake_up = Worker.wake_up
