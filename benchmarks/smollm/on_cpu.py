"""Training in bf16 on a CPU, which the host's YAML has no key for."""

from __future__ import annotations

from typing import Any

from axolotl.integrations.base import BasePlugin


class OnCpu(BasePlugin):
    """Tells transformers that the CPU is meant, without which it refuses ``bf16: true`` there."""

    def get_training_args(self, cfg: Any) -> dict[str, Any]:
        """The training argument that a YAML can't give."""
        return {"use_cpu": True}
