"""Where vLLM is and what it may take, from Axolotl's ``vllm:`` and ``trl:`` blocks. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

HOST, PORT, TIMEOUT, MEMORY = "0.0.0.0", 8000, 240.0, 0.9
"""The host's defaults, the timeout TRL's; a value that differs from them was written out."""

AUTO = "auto"
"""The host's default of ``vllm.dtype``, with which vLLM makes bf16 of a float32 checkpoint."""


Reply = dict[str, Any]
"""What TRL's server answers: ``prompt_ids``, ``completion_ids``, ``logprobs`` and
``logprob_token_ids``."""


@dataclass(frozen=True)
class VllmSettings:
    """How a run talks to vLLM.

    Attributes:
        mode: ``server`` or ``colocate``.
        url: the server's address, without a slash at its end.
        timeout: seconds to wait for the server, and for its answer to a request.
        memory: share of the GPU's memory for a colocated vLLM.
        max_model_len: most tokens of prompt and answer.
        sleep: whether a colocated vLLM gives up its memory between reviews.
        trust_remote_code: as the host's key.
        dtype: of a colocated vLLM; None is the policy's.
    """

    mode: str
    url: str
    timeout: float
    memory: float
    max_model_len: int
    sleep: bool
    trust_remote_code: bool
    dtype: str | None = None

    @classmethod
    def of(cls, cfg: Any, mode: str) -> VllmSettings:
        """From the host's config.

        ``trl.vllm_server_host`` and ``trl.vllm_server_port`` say where to connect; where they
        aren't written, ``vllm.host`` and ``vllm.port`` do, where `axolotl vllm-serve` listens.

        Args:
            cfg: the host's validated config.
            mode: ``sera.bootstrap.vllm_mode``.
        """
        vllm, trl = _block(cfg, "vllm"), _block(cfg, "trl")
        host = _written(trl.get("vllm_server_host"), vllm.get("host"), HOST)
        port = _written(trl.get("vllm_server_port"), vllm.get("port"), PORT)
        return cls(
            mode=mode,
            url=f"http://{host}:{port}",
            timeout=float(trl.get("vllm_server_timeout") or TIMEOUT),
            memory=float(vllm.get("gpu_memory_utilization") or MEMORY),
            max_model_len=int(vllm.get("max_model_len") or cfg.get("sequence_len") or 0) or 2048,
            sleep=mode == "colocate" and trl.get("vllm_enable_sleep_mode") is not False,
            trust_remote_code=bool(cfg.get("trust_remote_code")),
            dtype=None if vllm.get("dtype") in (None, AUTO) else str(vllm["dtype"]),
        )


def _block(cfg: Any, name: str) -> dict[str, Any]:
    block = cfg.get(name) or {}
    return dict(block if isinstance(block, dict) else block.model_dump())


def _written(first: Any, second: Any, default: Any) -> Any:
    """The first value that isn't the default."""
    return next((value for value in (first, second) if value not in (None, default)), default)
