"""Sends tensors over the group's gloo."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch.distributed import BroadcastOptions

from vllm.distributed.utils import StatelessProcessGroup

if not torch.cuda.is_available():
    # TRL asks the trainer's GPU for its number and name before it connects.
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_device_properties = lambda device: SimpleNamespace(uuid="cpu")


class PyNcclCommunicator:
    def __init__(self, group: StatelessProcessGroup, device: Any) -> None:
        self.group = group

    def broadcast(self, tensor: torch.Tensor, src: int) -> None:
        options = BroadcastOptions()
        options.rootRank = src
        self.group.gloo.broadcast([tensor], options).wait()
