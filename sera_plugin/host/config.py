"""Axolotl's config as its own commands make it, with its errors turned into sentences."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sera_plugin.runtime.errors import SeraConfigError, first_line

if TYPE_CHECKING:
    from pydantic import ValidationError

QUANTIZED = {"load_in_4bit": 0.55, "load_in_8bit": 1.05}
"""Bytes per weight, with the scales of their blocks."""


def read_config(path: Path, **changes: Any) -> Any:
    """The validated config of a YAML on this machine, as ``axolotl train`` has it.

    Args:
        path: Axolotl's YAML.
        changes: keys in place of the YAML's.

    Raises:
        SeraConfigError: one sentence, if the host refuses it.
    """
    from axolotl.cli.config import load_cfg
    from pydantic import ValidationError

    try:
        return load_cfg(str(path), **changes)
    except ValidationError as error:
        raise _refused(path, error) from error


def config_on(processes: int, path: Path, raw: dict[str, Any]) -> Any:
    """What ``axolotl train`` makes of a config on ``processes`` recent GPUs, without any.

    ``planned_dtype_bytes`` is added: bytes per weight as loaded there.

    Args:
        processes: GPUs.
        path: Axolotl's YAML.
        raw: its keys.

    Raises:
        SeraConfigError: one sentence, if the host refuses it.
    """
    import torch
    from axolotl.cli.config import plugin_set_cfg, prepare_plugins
    from axolotl.utils.config import normalize_config, validate_config
    from axolotl.utils.dict import DictDefault
    from pydantic import ValidationError

    cfg = DictDefault(raw)
    cfg.axolotl_config_path = str(path)
    prepare_plugins(cfg)
    machine = {"bf16": True, "fp8": True, "tf32": True, "n_gpu": processes}
    try:
        cfg = validate_config(
            cfg,
            capabilities=machine | {"compute_capability": "sm_90"},
            env_capabilities={"torch_version": torch.__version__.split("+")[0]},
        )
    except ValidationError as error:
        raise _refused(path, error) from error
    # Before the host looks at the GPU that is here.
    cfg.planned_dtype_bytes = _dtype_bytes(cfg)
    try:
        normalize_config(cfg)
    except (OSError, ValueError) as error:
        raise SeraConfigError(f"base_model: {cfg.base_model}: {first_line(error)}") from error
    cfg.batch_size = cfg.batch_size * processes
    cfg.world_size = processes
    plugin_set_cfg(cfg)
    return cfg


def _refused(path: Path, error: ValidationError) -> SeraConfigError:
    """What the host finds wrong with a config, as one sentence."""
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"])) or "config"
    return SeraConfigError(f"{path}: {key}: {first['msg']}")


def _dtype_bytes(cfg: Any) -> float:
    """Bytes per weight as loaded, on a GPU that has bf16."""
    for key, size in QUANTIZED.items():
        if cfg.get(key):
            return size
    half = any(cfg.get(key) for key in ("bf16", "bfloat16", "fp16", "float16"))
    return 2 if half else 4
