"""What tests substitute in a trainer without a GPU that sends weights to a server.

A module of its own, since vLLM's processes need not import Axolotl, nor may torch.cuda be changed
in a server.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from axolotl.integrations.base import BasePlugin
from sera_vllm_on_cpu import substitute


class OnCpu(BasePlugin):
    """A plugin of Axolotl: TRL asks for the number and the name of the trainer's GPU."""

    def __init__(self) -> None:
        super().__init__()
        substitute()
        named = SimpleNamespace(uuid="cpu", major=0, minor=0)
        torch.cuda.current_device = lambda: 0
        torch.cuda.get_device_properties = lambda device=None: named
