"""A group of processes apart from the default one, over gloo."""

from __future__ import annotations

import datetime
import os
from typing import Any

import torch
from torch.distributed import distributed_c10d as c10d


class StatelessProcessGroup:
    def __init__(self, group: Any) -> None:
        self.gloo = group

    @staticmethod
    def create(host: str, port: int, rank: int, world_size: int) -> StatelessProcessGroup:
        # TRL's port is one for all servers of a machine; tests run several.
        port = int(os.environ.get("CPU_VLLM_GROUP_PORT", port))
        limit = datetime.timedelta(seconds=60)
        store = torch.distributed.TCPStore(host, port, world_size, rank == 0, timeout=limit)
        prefixed = c10d.PrefixStore("weights", store)
        return StatelessProcessGroup(c10d.ProcessGroupGloo(prefixed, rank, world_size, limit))

    def barrier(self) -> None:
        self.gloo.barrier().wait()
