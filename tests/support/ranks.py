"""Several real ranks on CPU: how they are started, and the configs they run."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from command_line import SHIM

LIMIT = 600  # seconds for a whole run; a hang fails the test
TORCHRUN = ("--launcher", "torchrun", "--", "--standalone", "--nproc_per_node", "2")
RANKS = {
    "DS_ACCELERATOR": "cpu",
    "ACCELERATE_TORCH_DEVICE": "cpu",
    **SHIM,
}
LORA = {
    "adapter": "lora",
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_target_linear": True,
    "gradient_checkpointing": True,
}

FSDP2 = {
    "fsdp_version": 2,
    "fsdp_config": {
        "offload_params": False,
        "cpu_ram_efficient_loading": False,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": "LlamaDecoderLayer",
        "state_dict_type": "FULL_STATE_DICT",
        "reshard_after_forward": True,
    },
}


def zero_config(folder: Path, stage: int) -> str:
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": False,
        "reduce_bucket_size": 500_000,
    }
    if stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": 500_000,
            "stage3_param_persistence_threshold": 100,
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    path = folder / f"zero{stage}.json"
    auto = dict.fromkeys(
        [
            "gradient_accumulation_steps",
            "train_batch_size",
            "train_micro_batch_size_per_gpu",
            "gradient_clipping",
        ],
        "auto",
    )
    path.write_text(json.dumps({"zero_optimization": zero, "bf16": {"enabled": False}, **auto}))
    return str(path)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])
