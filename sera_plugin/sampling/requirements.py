"""What an engine of sampling needs of the host's config and of the environment."""

from __future__ import annotations

from typing import Any

from sera_plugin.config import SeraConfig
from sera_plugin.host.checks import sharded, vllm_installed
from sera_plugin.host.vllm_settings import VllmSettings
from sera_plugin.runtime.errors import SeraConfigError

KEY = "sera.bootstrap.engine: vllm"


def check_engine(cfg: Any, config: SeraConfig) -> None:
    """Check what ``sera.bootstrap.engine`` needs, before a model is loaded.

    Raises:
        SeraConfigError: one sentence naming the key, its value and what is allowed.
    """
    if config.bootstrap.fraction == 0:
        return
    if config.bootstrap.engine == "transformers_paged":
        check_paged(cfg)
    elif config.bootstrap.engine == "vllm":
        check_vllm(cfg, config)


def check_paged(cfg: Any) -> None:
    """Check what continuous batching needs.

    Raises:
        SeraConfigError: one sentence.
    """
    how = sharded(cfg)
    if how:
        raise SeraConfigError(
            f"sera.bootstrap.engine: transformers_paged can't be used under {how}, where no "
            "process holds the weights; use transformers, or ZeRO-1, ZeRO-2 or DDP."
        )


def check_vllm(cfg: Any, config: SeraConfig) -> None:
    """Check what vLLM needs, before a model is loaded.

    Raises:
        SeraConfigError: one sentence naming the key, its value and what is allowed.
    """
    bootstrap = config.bootstrap
    if bootstrap.sampler != "policy":
        raise SeraConfigError(
            f"sera.bootstrap.sampler: {bootstrap.sampler} can't be used with {KEY}, which is sent "
            "one set of weights, the policy's; use sampler: policy or engine: transformers."
        )
    for name in ("load_in_4bit", "load_in_8bit"):
        if cfg.get(name):
            raise SeraConfigError(
                f"{name}: true can't be used with {KEY}, to which weights are sent as they are; "
                "use adapter: lora without it, or engine: transformers."
            )
    if cfg.get("fsdp") or cfg.get("fsdp_config"):
        raise SeraConfigError(
            f"fsdp_config can't be used with {KEY}; allowed are one process, DDP and DeepSpeed "
            "ZeRO-1, ZeRO-2 and ZeRO-3."
        )
    _check_sizes(cfg, bootstrap.vllm_mode)
    if not vllm_installed():
        raise SeraConfigError(
            f"{KEY} with vllm_mode: {bootstrap.vllm_mode} needs vLLM, which is not installed in "
            "this environment; `pip install 'trl[vllm]'` brings it (vllm_mode: server needs it "
            "too, to send weights), or use engine: transformers."
        )


def _check_sizes(cfg: Any, mode: str) -> None:
    vllm = cfg.get("vllm") or {}
    parallel = vllm.get("tensor_parallel_size") or 1
    if mode == "colocate" and parallel != 1:
        raise SeraConfigError(
            f"vllm.tensor_parallel_size: {parallel} can't be used with {KEY} and vllm_mode: "
            "colocate, where each process has an engine of its own; allowed are 1, or vllm_mode: "
            "server."
        )
    longest, needed = vllm.get("max_model_len"), cfg.get("sequence_len") or 0
    if longest and longest < needed:
        raise SeraConfigError(
            f"vllm.max_model_len: {longest} is below sequence_len: {needed}, so vLLM would cut "
            "answers short; it must be at least as large."
        )
    settings = VllmSettings.of(cfg, mode)
    if not settings.timeout > 0:
        raise SeraConfigError(
            f"trl.vllm_server_timeout: {settings.timeout:g} is not allowed; it must be a number of "
            "seconds above 0."
        )
