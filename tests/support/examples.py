"""The example configs, and the host's own check of a config on a machine with GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from axolotl.cli.config import prepare_plugins
from axolotl.utils.config import validate_config
from axolotl.utils.dict import DictDefault

EXAMPLES = Path(__file__).parents[2] / "example_configs"


def validated(cfg: DictDefault, gpus: int) -> Any:
    """What ``load_cfg`` does up to the base model, on a machine with ``gpus`` H100 GPUs."""
    prepare_plugins(cfg)
    capabilities = {
        "bf16": True,
        "fp8": True,
        "tf32": True,
        "n_gpu": gpus,
        "compute_capability": "sm_90",
    }
    return validate_config(
        cfg, capabilities=capabilities, env_capabilities={"torch_version": "2.11.0"}
    )
