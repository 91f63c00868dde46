"""Registration with Axolotl: the ``sera:`` block, its checks, and the trainer."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from axolotl.integrations.base import BasePlugin

from sera_plugin.checks import (
    TRAINER,
    check_dataset,
    check_host_config,
    check_tokenizer,
    plan_of,
)
from sera_plugin.config import SeraConfig, parse_block
from sera_plugin.logs import logger

LOG = logger(__name__)

SWITCH = "SERA"
"""Environment variable: ``SERA=off`` switches SeRA off without editing the YAML."""

DEFAULT_SEED = 42


class SeRAPlugin(BasePlugin):
    """Turns a DPO or IPO run with a ``sera:`` block into SeRA; without one it does nothing."""

    def get_input_args(self) -> str:
        return "sera_plugin.config.SeraArgs"

    def register(self, cfg: Any) -> None:
        """Check the raw config and name our trainer.

        Raises:
            SeraConfigError: one sentence naming the key, its value and what is allowed.
        """
        config = _block_of(cfg)
        if config is None:
            if cfg.get("trainer_cls") == TRAINER:
                LOG.warning("SeRA is off, so trainer_cls: %s has no effect.", TRAINER)
                cfg["trainer_cls"] = None
            return
        check_host_config(cfg, config)
        if cfg.get("seed") is None:
            LOG.warning("seed is not set; SeRA sets seed: %d so that rounds repeat.", DEFAULT_SEED)
            cfg["seed"] = DEFAULT_SEED
        cfg["sera"] = config.model_dump()
        # `get_trainer_cls` would make Axolotl drop the model and the reference.
        cfg["trainer_cls"] = TRAINER
        cfg["precompute_ref_log_probs"] = True

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> Any:
        """Load what Axolotl would load, check it, and plan the run's updates."""
        config = _block_of(cfg)
        if config is None or preprocess:
            return None
        from sera_plugin.host import load_preference_data

        meta, tokenizer = load_preference_data(cfg)
        check_dataset(cfg, config, meta.train_dataset)
        check_tokenizer(cfg, config, meta.train_dataset, tokenizer)
        # Axolotl derives warm-up and logging steps from this number.
        steps = plan_of(cfg, config, len(meta.train_dataset)).max_steps
        return replace(meta, total_num_steps=steps)


def _block_of(cfg: Any) -> SeraConfig | None:
    if os.environ.get(SWITCH, "").lower() in {"off", "0", "false", "no"}:
        if cfg.get("sera"):
            LOG.warning("SeRA is switched off by the environment variable %s.", SWITCH)
            cfg["sera"] = False
        return None
    raw = cfg.get("sera")
    return parse_block(raw.to_dict() if hasattr(raw, "to_dict") else raw)
