"""A real ZeRO-3 engine in one process: weights gathered for sampling come back after an error."""

from __future__ import annotations

import sys

import cpu_ranks
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin
from transformers import AutoModelForCausalLM

from sera_plugin.host.models import disable_gradient_checkpointing, gathered_weights

cpu_ranks._gloo_backend(None)
cpu_ranks._gather_plain_tensors()
zero = {
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": 1,
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": False,
        "stage3_param_persistence_threshold": 0,
    },
}
accelerator = Accelerator(deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=zero))
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
model.gradient_checkpointing_enable({"use_reentrant": False})
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
engine, optimizer = accelerator.prepare(model, optimizer)
ids = torch.tensor([[3, 4, 5, 6]])


def step() -> float:
    loss = engine(input_ids=ids, labels=ids).loss
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def sharded() -> bool:
    return all(p.ds_status.name == "NOT_AVAILABLE" for p in engine.parameters())


def fail_while_sampling() -> None:
    with disable_gradient_checkpointing(model, {"use_reentrant": False}), gathered_weights(engine):
        assert not sharded()
        assert not model.is_gradient_checkpointing
        raise ValueError("sampling failed")


losses = [step()]
assert sharded()
with pytest.raises(ValueError, match="sampling failed"):
    fail_while_sampling()
assert sharded(), "the weights stayed gathered"
assert model.is_gradient_checkpointing, "gradient checkpointing stayed off"
losses += [step(), step()]
assert losses[2] < losses[1] < losses[0], losses
print("RESTORED", losses)
