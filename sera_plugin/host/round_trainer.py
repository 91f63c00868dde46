"""The host's trainer with rounds of their own; see the package's docstring."""

from __future__ import annotations

import copy
import gc
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from axolotl.core.trainers.dpo.trainer import AxolotlDPOTrainer
from datasets import Dataset
from torch.utils.data import Sampler, SequentialSampler
from transformers import PrinterCallback, ProgressCallback, Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from sera_plugin.data.rounds import ROW_KEY
from sera_plugin.data.schedule import Batching, Schedule
from sera_plugin.host.facts import HostRun, Models, Optimization
from sera_plugin.host.merged_step import HELD, Merging
from sera_plugin.host.models import (
    KeyedCollator,
    kept_types,
    logps_of_batch,
    plugin_config,
)
from sera_plugin.host.objective_step import packed_loss, padded_loss
from sera_plugin.host.packed_step import (
    beyond_pairs,
    mixes_pairs,
)
from sera_plugin.host.rounds import Rounds, Start
from sera_plugin.runtime.errors import SeraConfigError


class RoundTrainer(AxolotlDPOTrainer):
    """A DPO trainer whose every epoch (round) has a dataset and a length of its own.

    A subclass sets ``rounds`` at the end of its constructor.
    """

    rounds: Rounds
    schedule: Schedule
    eval_dataset: Any
    _metrics: Any
    _total_train_tokens: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.data_collator: Any = KeyedCollator(self.data_collator)
        self._merging: Merging | None = None

    def name_method(self, name: str, tags: Sequence[str], paper: Mapping[str, str]) -> None:
        """Say in the model's tags and card what it is trained with; call it before the constructor.

        Args:
            name: of the method.
            tags: beside the host's own.
            paper: its ``title``, arXiv ``id`` and BibTeX ``citation``.
        """
        self._name, self._paper = name, dict(paper)
        self._tag_names = [*AxolotlDPOTrainer._tag_names, *tags]

    @property
    def batching(self) -> Batching:
        """How the host cuts a round into updates."""
        return Batching(
            per_device=self._train_batch_size,
            accumulation=self.args.gradient_accumulation_steps,
            ranks=self.accelerator.num_processes,
            drop_last=self.args.dataloader_drop_last,
        )

    @property
    def trained_tokens(self) -> float:
        """Tokens that training steps have seen so far."""
        return float(self._total_train_tokens)

    def facts(self, wrapped: torch.nn.Module) -> HostRun:
        """What the run is made of; ``wrapped`` is the policy that the training loop calls."""
        args = self.args
        plugin = self.accelerator.state.deepspeed_plugin if self.is_deepspeed_enabled else None
        models = Models(
            accelerator=self.accelerator,
            policy=self.model,
            wrapped=wrapped,
            reference=self.ref_model,
            deepspeed=bool(self.is_deepspeed_enabled),
            zero_stage=plugin.zero_stage if plugin else 0,
            fsdp=bool(self.is_fsdp_enabled),
            checkpointing=args.gradient_checkpointing_kwargs,
        )
        return HostRun(
            cfg=plugin_config(),
            models=models,
            tokenizer=self._tokenizer,
            train=self.train_dataset,
            evaluation=self.eval_dataset,
            max_length=args.max_length,
            seed=args.seed,
            beta=self.beta,
            loss_types=tuple(map(str, self.loss_types)),
            label_smoothing=self.label_smoothing,
            batching=self.batching,
            micro_batch=args.per_device_train_batch_size,
            optimization=Optimization(args.learning_rate, args.weight_decay, args.max_grad_norm),
            report_to=tuple(args.report_to or ()),
            not_of_pairs=beyond_pairs(self),
            mixes_pairs=mixes_pairs(self),
        )

    def train_on(self, dataset: Dataset) -> None:
        """Let ``dataset`` be D, before training begins."""
        self.train_dataset = dataset

    def evaluate_on(self, dataset: Any) -> None:
        """Let the host evaluate on ``dataset`` from now on."""
        self.eval_dataset = dataset

    def log_metrics_of_round(self, metrics: dict[str, float]) -> None:
        """Log through the host, TRL's running averages left alone and nothing printed."""
        handler = self.callback_handler
        everyone = handler.callbacks
        printers = (ProgressCallback, PrinterCallback)
        handler.callbacks = [one for one in everyone if not isinstance(one, printers)]
        try:
            Trainer.log(self, dict(metrics))
        finally:
            handler.callbacks = everyone

    def ensure_checkpoint(self) -> None:
        """Save what the host saves at a step's end, unless a checkpoint of this step stands."""
        if self._saved_step != self.state.global_step:
            self._save_checkpoint(self.model, trial=None)

    def show_weights(self) -> None:
        """Let the policy have the weights that the host evaluates, until the next update.

        Schedule-free optimizers train on others; the host's next training step takes these back.
        """
        if hasattr(self.optimizer, "eval") and callable(self.optimizer.eval):
            self.optimizer.eval()

    def loss_of(self, model: torch.nn.Module, examples: list[dict[str, Any]]) -> torch.Tensor:
        """The host's loss of a batch, a scalar; its running averages stay as they are."""
        kept = copy.deepcopy(self._metrics), self._total_train_tokens
        inputs = self.data_collator(examples)
        try:
            with self.accelerator.autocast():
                return self.compute_loss(model, self._prepare_inputs(inputs))
        finally:
            self._metrics, self._total_train_tokens = kept

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        self.rounds.before_checkpoint(Path(self.args.output_dir) / name)
        super()._save_checkpoint(*args, **kwargs)
        self._saved_step = self.state.global_step
        self.rounds.checkpoint_saved()

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            self.rounds.add_to_card(Path(self.args.output_dir) / "README.md")

    def set_initial_training_values(self, args: Any, dataloader: Any) -> tuple[Any, ...]:
        self.schedule = self.rounds.plan(self.batching)
        # Axolotl always passes max_steps, computed for rounds of equal size.
        args.max_steps = self.schedule.max_steps
        first = self.schedule.rounds[0].total
        return (
            self.schedule.last_round,
            self.schedule.updates[0],
            first,
            sum(size.total for size in self.schedule.rounds),
            self.get_total_train_batch_size(args),
            self.batching.batches(first),
            self.schedule.max_steps,
        )

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        super()._init_training_state(*args, **kwargs)
        where = self.schedule.locate(self.state.global_step)
        self._resumed_at = (where.epoch, where.updates_done)
        # The checkpoint that is resumed, or the start, which needs none.
        self._saved_step = self.state.global_step
        skipped = 0 if self.args.ignore_data_skip else where.updates_done
        return where.epoch, skipped * self.args.gradient_accumulation_steps

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with kept_types(self.model):
            super()._load_from_checkpoint(*args, **kwargs)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any
    ) -> tuple[Any, Any]:
        model, dataloader = super()._prepare_for_training(
            max_steps, train_dataloader, resume_from_checkpoint
        )
        checkpoint = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        self.rounds.open(self.facts(model), self.schedule, Start(*self._resumed_at, checkpoint))
        # The host collects garbage on every micro-batch; what start-up made, a million objects
        # that all live to the end, need not be walked each time.
        if os.environ.get("SERA_GC") != "host":
            gc.freeze()
        return model, dataloader

    def train(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().train(*args, **kwargs)
        finally:
            gc.unfreeze()

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        done = super()._finalize_training(*args, **kwargs)
        self.rounds.close()
        return done

    def _run_epoch(self, *, model: Any, epoch: int, train_dataloader: Any, **rest: Any) -> None:
        number = epoch + 1
        dataset = self.rounds.dataset(number)
        loader = self._get_dataloader(
            dataset=dataset,
            description=f"Round {number}",
            batch_size=self._train_batch_size,
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )
        planned = self.batching.batches(self.schedule.rounds[epoch].total)
        if len(loader) != planned:
            raise SeraConfigError(
                f"round {number} has {len(loader)} batches per rank where {planned} were planned; "
                "accelerator_config changes how batches are cut in a way SeRA doesn't know."
            )
        self.callback_handler.train_dataloader = loader
        self._merging = Merging.of(self.rounds.passes, epoch, rest, self.batching)
        rest |= {
            "steps_in_epoch": planned,
            "num_update_steps_per_epoch": self.schedule.updates[epoch],
        }
        try:
            super()._run_epoch(model=model, epoch=epoch, train_dataloader=loader, **rest)
        finally:
            if loader in self.accelerator._dataloaders:
                self.accelerator._dataloaders.remove(loader)
        self.rounds.close_round(number)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        if self._merging is None:
            return super().training_step(model, inputs, num_items_in_batch)
        batches = self._merging.take(inputs)
        if not batches:
            return torch.zeros((), device=self.args.device)
        return super().training_step(model, {HELD: batches}, num_items_in_batch)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        objective, packed = self.rounds.objective, self.rounds.packed
        if HELD in inputs:
            return packed_loss(self, self.rounds, model, inputs[HELD])
        batch = {name: value for name, value in inputs.items() if name != ROW_KEY}
        if ROW_KEY not in inputs or not (objective or self.rounds.notes_logps):
            return super().compute_loss(model, batch, return_outputs, num_items_in_batch)
        keys = inputs[ROW_KEY]
        if packed is not None and objective is not None and self.model.training:
            return packed_loss(self, self.rounds, model, [inputs])
        prepared = objective.prepare(keys) if objective is not None else None
        # With an objective too: what the host logs about a batch it logs here.
        loss, outputs = super().compute_loss(model, batch, True, num_items_in_batch)
        if self.rounds.notes_logps:
            self.rounds.note_logps(keys, logps_of_batch(outputs.logits, batch))
        if objective is not None:
            loss = padded_loss(self, objective, keys, prepared, outputs, batch)
        return (loss, outputs) if return_outputs else loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        # TRL calls this in its constructor, before the models are prepared, with a cache that
        # only one rank finds; `open_run` adds the log-probs instead.
        if not hasattr(self, "rounds"):
            return dataset
        if self.is_in_train:
            return self.rounds.with_reference(dataset)
        # `axolotl evaluate`, which opens no rounds.
        return super()._precompute_ref_logps(dataset, name, batch_size)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: list[str] = self._signature_columns  # type: ignore[has-type]
        self._signature_columns = list(dict.fromkeys([*columns, ROW_KEY]))
