"""What the host's trainer and config say about a run, read once, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sera_plugin.data.schedule import Batching


@dataclass(frozen=True)
class Models:
    """The models of a run, after the host has prepared them.

    Attributes:
        accelerator: the trainer's accelerator.
        policy: πθ as the trainer holds it.
        wrapped: πθ as the training loop calls it.
        reference: a separate reference model, or None if πref is πθ without its adapter.
        deepspeed: whether DeepSpeed trains.
        zero_stage: its stage, 0 without it.
        fsdp: whether FSDP trains.
        checkpointing: options of gradient checkpointing, or None.
    """

    accelerator: Accelerator
    policy: PreTrainedModel
    wrapped: torch.nn.Module
    reference: torch.nn.Module | None = None
    deepspeed: bool = False
    zero_stage: int = 0
    fsdp: bool = False
    checkpointing: dict[str, Any] | None = None

    def unwrapped(self, model: torch.nn.Module) -> Any:
        """A model of the run below DDP's and DeepSpeed's wrappers."""
        return self.accelerator.unwrap_model(model)


@dataclass(frozen=True)
class Optimization:
    """How the host updates weights, as far as an auxiliary policy takes after it."""

    learning_rate: float
    weight_decay: float
    max_grad_norm: float | None


@dataclass(frozen=True)
class HostRun:
    """A run of the host.

    Attributes:
        cfg: Axolotl's validated config.
        models: policy and reference.
        tokenizer: the run's tokenizer.
        train: the training pairs as TRL prepared them.
        evaluation: the evaluation pairs, several sets by name, or None.
        max_length: most tokens of prompt and answer that the loss sees; None for no bound.
        seed: the run's seed.
        beta: β of the loss.
        loss_types: the host's names of the loss.
        label_smoothing: what its loss takes, where it takes it.
        batching: how a round is cut into updates.
        micro_batch: pairs of a device's micro-batch, as the config says.
        optimization: learning rate and the like.
        report_to: the host's loggers.
        not_of_pairs: why the host's loss is no function of the log-probs of each pair alone, or
            None if it is.
        mixes_pairs: whether that loss compares the pairs of a micro-batch with each other.
    """

    cfg: Any
    models: Models
    tokenizer: PreTrainedTokenizerBase
    train: Dataset
    evaluation: Any
    max_length: int | None
    seed: int
    beta: float
    loss_types: tuple[str, ...]
    label_smoothing: float
    batching: Batching
    micro_batch: int
    optimization: Optimization
    report_to: tuple[str, ...]
    not_of_pairs: str | None = None
    mixes_pairs: bool = False

    @property
    def accelerator(self) -> Accelerator:
        return self.models.accelerator

    @property
    def token_budget(self) -> int:
        """Most padded tokens of a scoring batch: those of a training micro-batch."""
        return 2 * self.micro_batch * (self.max_length or 1024)

    @property
    def model_stops(self) -> tuple[int, ...]:
        """Tokens at which the policy itself ends an answer."""
        own = getattr(self.models.policy, "generation_config", None)
        found = getattr(own, "eos_token_id", None) or ()
        return (found,) if isinstance(found, int) else tuple(found)
