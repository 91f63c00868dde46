"""Registration with Axolotl: the ``sera:`` block, its checks, and the trainer."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

from axolotl.integrations.base import BasePlugin

from sera_plugin.config import SeraConfig, parse_block
from sera_plugin.host.checks import TRAINER, never_reviewed, plan_of, without_effect
from sera_plugin.runtime.endings import end_with_sentences
from sera_plugin.runtime.errors import MissingPackageError, SeraConfigError
from sera_plugin.runtime.files import check_writable
from sera_plugin.runtime.logs import logger
from sera_plugin.training.checks import check_config, check_data

LOG = logger(__name__)

SWITCH = "SERA"
"""Environment variable: ``SERA=off`` switches SeRA off without editing the YAML."""

ON = {"", "on", "1", "true", "yes"}
OFF = {"off", "0", "false", "no"}

DEFAULT_SEED = 42


class SeRAPlugin(BasePlugin):  # type: ignore[misc]  # axolotl has no types
    """Turns a DPO or IPO run with a ``sera:`` block into SeRA; without one it does nothing."""

    _config: SeraConfig | None = None
    """What ``register`` read; None while SeRA is off."""

    def get_input_args(self) -> str:
        return "sera_plugin.config.SeraArgs"

    def register(self, cfg: Any) -> None:
        """Check the raw config and name our trainer.

        Raises:
            SeraConfigError: one sentence naming the key, its value and what is allowed.
        """
        end_with_sentences()
        if cfg.get("inference"):
            self._config = None
            return  # `axolotl inference` trains nothing, and takes `rl` from the config
        self._config = config = _block_of(cfg)
        if config is None:
            if cfg.get("trainer_cls") == TRAINER:
                LOG.warning("SeRA is off, so trainer_cls: %s has no effect.", TRAINER)
                cfg["trainer_cls"] = None
            elif "sera" in cfg and cfg["sera"] is None:
                LOG.warning("sera: null means off; write sera: true for preset: contrast.")
            return
        check_config(cfg, config)
        _check_output(cfg.get("output_dir"))
        for sentence in without_effect(cfg):
            LOG.warning("%s", sentence)
        if cfg.get("save_only_model"):
            LOG.warning(
                "save_only_model: true makes checkpoints without the optimizer's state; a run that "
                "is stopped can't be resumed from them."
            )
        if cfg.get("seed") is None:
            LOG.warning("seed is not set; SeRA sets seed: %d so that rounds repeat.", DEFAULT_SEED)
            cfg["seed"] = DEFAULT_SEED
        cfg["sera"] = config.model_dump()
        # `get_trainer_cls` would make Axolotl drop the model and the reference.
        cfg["trainer_cls"] = TRAINER
        cfg["precompute_ref_log_probs"] = True

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> Any:
        """Load what Axolotl would load, check it, and plan the run's updates."""
        config = self._config
        if config is None or preprocess:
            return None
        with _needing_packages():
            from sera_plugin.host.loading import load_preference_data
            from sera_plugin.training.checkpoints import prepare_resuming

        prepare_resuming(cfg, config)
        meta, tokenizer = load_preference_data(cfg)
        pairs = check_data(cfg, config, meta, tokenizer)
        # Axolotl derives warm-up and logging steps from this number.
        schedule = plan_of(cfg, config, pairs)
        unreviewed = never_reviewed(cfg, config, schedule)
        if unreviewed:
            LOG.warning("%s", unreviewed)
        return replace(meta, total_num_steps=schedule.max_steps)

    def pre_model_load(self, cfg: Any) -> None:
        """Import the trainer: after Axolotl patched TRL, and before it loads a model."""
        if self._config is not None:
            with _needing_packages():
                importlib.import_module("sera_plugin.trainer")

    def post_train(self, cfg: Any, model: Any) -> None:
        """Delete the finished shards: the final model is saved, so no restart needs them."""
        if self._config is not None and not cfg.local_rank:
            from sera_plugin.data.store import RunStore

            RunStore(cfg.output_dir).drop_all_work()

    def post_train_unload(self, cfg: Any) -> None:
        """Say what shows the run; the last that the host lets a plugin say."""
        if self._config is not None and not cfg.local_rank:
            LOG.info("`axolotl sera report %s` shows the run.", quote(cfg.output_dir))


def _check_output(output_dir: Any) -> None:
    """Find out before the model is loaded whether a run can leave anything."""
    if not isinstance(output_dir, str):
        return  # the host has a default, and words for values of other kinds
    try:
        check_writable(Path(output_dir) / "sera")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise SeraConfigError(
            f"output_dir: {output_dir!a} can't be written ({why}); name a folder that can."
        ) from error


@contextmanager
def _needing_packages() -> Iterator[None]:
    """Axolotl swallows an ImportError of a plugin and would silently train plain DPO."""
    try:
        yield
    except ImportError as error:
        raise MissingPackageError(
            f"plugins: sera_plugin.SeRAPlugin can't work because {error.name or 'a dependency'} "
            f"can't be imported ({error}); `pip install sera_plugin` brings what it needs."
        ) from error


def _block_of(cfg: Any) -> SeraConfig | None:
    switch = os.environ.get(SWITCH, "").strip().lower()
    if switch not in ON | OFF:
        raise SeraConfigError(
            f"{SWITCH}: {switch!r} in the environment is not allowed; write {SWITCH}=off to switch "
            "SeRA off, or unset it."
        )
    if switch in OFF:
        if cfg.get("sera"):
            LOG.warning("SeRA is switched off by the environment variable %s.", SWITCH)
        if "sera" in cfg:
            cfg["sera"] = False
        return None
    raw = cfg.get("sera")
    return parse_block(raw.to_dict() if hasattr(raw, "to_dict") else raw)
