"""The reference policy, and snapshots of earlier policies that can be scored again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from sera_plugin.data.candidates import Source
from sera_plugin.host.facts import Models
from sera_plugin.host.models import (
    adapter_weights,
    disable_gradient_checkpointing,
    fingerprint,
    gathered_weights,
    use_adapter,
)
from sera_plugin.runtime.logs import logger
from sera_plugin.runtime.memory import Placement, choose_gather, resting_place
from sera_plugin.runtime.ranks import gathered
from sera_plugin.runtime.shards import Origin
from sera_plugin.scoring.logps import Forward
from sera_plugin.scoring.scorer import inference
from sera_plugin.scoring.snapshot import Snapshot

LOG = logger(__name__)

Place = Literal["auto", "gpu", "cpu"]


class Policies:
    """The models of a run, each ready to score: policy, reference, earlier policies.

    Args:
        models: the models, after the host has prepared them.
        work: where the run keeps the shards of all passes.
        step: the trainer's global step as it is now.
        reference_device: ``sera.reference_device``.
        gather: ``sera.bootstrap.gather``.
    """

    def __init__(
        self,
        models: Models,
        work: Path,
        step: Callable[[], int],
        reference_device: Place = "auto",
        gather: str | bool = "auto",
    ) -> None:
        self._models, self._work, self._step, self._gathers = models, work, step, gather
        model = models.wrapped
        # DDP broadcasts buffers in a forward pass; without it a pass of one rank needs no other.
        self._model = model.module if isinstance(model, DistributedDataParallel) else model
        self.unwrapped = models.unwrapped(model)
        self.reference_snapshot: Snapshot | None = None
        self._known: dict[tuple[str, int], str] = {}
        if models.reference is not None:
            bare = models.unwrapped(models.reference)
            self._placement = self._placed(bare, reference_device)

    def _placed(
        self, reference: PreTrainedModel, wanted: Literal["auto", "gpu", "cpu"]
    ) -> Placement:
        why_not = None
        if self.sharded:
            why_not = "every rank holds a share of the reference model and scores with all of them"
        elif getattr(reference, "is_quantized", False):
            why_not = "a quantized reference model can't be moved"
        device = self._models.accelerator.device
        rest = resting_place(wanted, device, why_not)
        return Placement(reference, device, rest)

    @property
    def sharded(self) -> bool:
        """Whether ranks hold shares of the policy's weights and take every pass together."""
        return self._zero3 or self._models.fsdp

    @property
    def _zero3(self) -> bool:
        first = next(self.unwrapped.parameters())
        return self._models.deepspeed and hasattr(first, "ds_id")

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        models = self._models
        with (
            disable_gradient_checkpointing(models.policy, models.checkpointing),
            inference(self._model),
        ):
            yield

    @contextmanager
    def policy(self) -> Iterator[Forward]:
        """πθ, the policy as it is now."""
        with self._quiet():
            yield self._model

    @contextmanager
    def earlier(self, snapshot: Snapshot) -> Iterator[Forward]:
        """The policy that ``snapshot`` was taken of."""
        with self._quiet(), snapshot.swapped_in(self.unwrapped):
            yield self._model

    @contextmanager
    def reference(self) -> Iterator[Forward]:
        """πref: a snapshot if one is set, else the host's reference model, else the policy
        without its adapter."""
        separate = self._models.reference
        if self.reference_snapshot is not None:
            with self.earlier(self.reference_snapshot) as forward:
                yield forward
        elif separate is not None:
            with self._placement.at_work(), inference(separate):
                yield separate
        else:
            with self._quiet(), use_adapter(self.unwrapped, adapter_name=self._reference_adapter):
                yield self._model

    @property
    def _reference_adapter(self) -> str | None:
        return "ref" if "ref" in self.unwrapped.peft_config else None

    def policy_origin(self, label: str) -> Origin:
        """Where a pass of the policy belongs. Every rank must call this and its like."""
        return self._origin(label, self._at_this_step("policy", self._policy_identity))

    def reference_origin(self, label: str) -> Origin:
        """Where a pass of the reference belongs."""
        if self.reference_snapshot is not None:
            return self.earlier_origin(self.reference_snapshot, label)
        return self._origin(label, self._at_this_step("reference", self._reference_identity))

    def earlier_origin(self, snapshot: Snapshot, label: str) -> Origin:
        """Where a pass of the policy that ``snapshot`` was taken of belongs."""
        with self.earlier(snapshot):
            return self._origin(label, self._policy_identity())

    def _origin(self, label: str, model: str) -> Origin:
        return Origin(self._work, label, model)

    def _at_this_step(self, which: str, find: Callable[[], str]) -> str:
        """Weights change with optimizer steps alone, and hashing all of them takes seconds."""
        key = (which, self._step())
        if key not in self._known:
            self._known = {k: v for k, v in self._known.items() if k[1] == key[1]}
            self._known[key] = find()
        return self._known[key]

    def _policy_identity(self) -> str:
        return fingerprint(self.unwrapped)

    def _reference_identity(self) -> str:
        if self._models.reference is not None:
            return fingerprint(self._models.unwrapped(self._models.reference))
        return fingerprint(
            self.unwrapped, adapter_weights(self.unwrapped, kept=self._reference_adapter)
        )

    @contextmanager
    def generating(self, writer: Source = Source.POLICY) -> Iterator[tuple[PreTrainedModel, bool]]:
        """πθ or πref ready for ``generate``, and whether ranks must take every decoding step
        together."""
        models, wrapped, scoring = self._models, self._model, self.policy()
        if writer is Source.REFERENCE:
            scoring = self.reference()
            if self.reference_snapshot is None and models.reference is not None:
                wrapped = models.reference
        bare = models.unwrapped(wrapped)
        zero3 = models.deepspeed and hasattr(next(bare.parameters()), "ds_id")
        gather = zero3 and self._gather(bare)
        with scoring, gathered_weights(wrapped) if gather else nullcontext():
            yield bare, (zero3 and not gather) or models.fsdp

    def origin(self, writer: Source, label: str) -> Origin:
        """Where a pass of πθ or πref belongs."""
        if writer is Source.REFERENCE:
            return self.reference_origin(label)
        return self.policy_origin(label)

    def _gather(self, model: torch.nn.Module) -> bool:
        """Decide, equally on every rank, whether sampling gathers all weights."""
        parameters: Iterator[Any] = model.parameters()
        weights = sum(p.ds_numel * p.element_size() for p in parameters)
        free = min(gathered([_free_bytes(self._models.accelerator.device)]))
        gather, why = choose_gather(self._gathers, weights, free)
        LOG.info("Sampling %s all weights on every rank (%s).", _DOES[gather], why)
        return gather


_DOES = {True: "gathers", False: "does not gather"}


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        # What PyTorch has reserved and not given out is free to it, though not to the driver.
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return int(psutil.virtual_memory().available)
