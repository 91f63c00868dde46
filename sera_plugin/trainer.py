"""The trainer that Axolotl builds when a config has a ``sera:`` block."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import Dataset as TorchDataset
from transformers import set_seed

from sera_plugin.config import parse_block
from sera_plugin.data.margins import check_numbers, margins_for
from sera_plugin.data.pairs import HeldOut, OfflinePairs, with_reference_columns
from sera_plugin.data.rounds import RoundDataset, RoundRow, full_round, rows_of
from sera_plugin.data.schedule import Batching, Schedule, plan
from sera_plugin.data.store import RunStore
from sera_plugin.data.tables import ReviewTable, RoundRecord
from sera_plugin.data.texts import write_log
from sera_plugin.host.models import plugin_config
from sera_plugin.review.bootstrap import Past
from sera_plugin.review.lossdiff import auxiliary_of
from sera_plugin.review.metrics import (
    first_spread,
    guard_text,
    review_metrics,
    table_text,
    warn_of_set_aside,
)
from sera_plugin.review.review import Review, reviewer_of
from sera_plugin.review.selection import History
from sera_plugin.runtime.errors import AskedToStop
from sera_plugin.runtime.logs import logger
from sera_plugin.runtime.ranks import shared
from sera_plugin.runtime.weights import FiniteWeights
from sera_plugin.sampling.settings import sampling_settings
from sera_plugin.scoring.policies import Policies
from sera_plugin.scoring.snapshot import Snapshot
from sera_plugin.training.checkpoints import EXIT_CODE, StopOnSignal
from sera_plugin.training.costs import estimate_text
from sera_plugin.training.publish import candidate_rows, fresh_lines, log_samples
from sera_plugin.training.recording_trainer import RecordingTrainer
from sera_plugin.training.refiner import Refiner, refiner_of
from sera_plugin.training.resume import complete_summaries, last_review, start_or_check

LOG = logger(__name__)


class SeRATrainer(RecordingTrainer):
    """DPO or IPO on a dataset that is reviewed and renewed before every round."""

    eval_dataset: Any
    refiner: Refiner | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        block = plugin_config().sera
        config = parse_block(block.to_dict() if hasattr(block, "to_dict") else block)
        if config is None:
            raise RuntimeError("SeRATrainer needs a `sera:` block in the config.")
        self.sera = config
        # TRL draws a new adapter's weights before the host's trainer seeds itself.
        set_seed(int(plugin_config().seed))
        super().__init__(*args, **kwargs)
        self.store = RunStore(self.args.output_dir)
        self.pairs = OfflinePairs.of(self.train_dataset, self.args.max_length)
        self.table: ReviewTable | None = None
        self.history: History | None = None
        self.external = margins_for(self.train_dataset, self.sera.selection)
        self.stop = StopOnSignal(self.accelerator)
        self.add_callback(self.stop)
        self.policy_snapshot: Snapshot | None = None
        self.summaries: list[dict[str, float]] = []

    def train(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().train(*args, **kwargs)
        except AskedToStop:
            self.ensure_checkpoint()
            raise SystemExit(EXIT_CODE) from None

    def plan(self, batching: Batching) -> Schedule:
        return plan(
            len(self.pairs),
            num_rounds=int(self.args.num_train_epochs),
            warmup_rounds=self.sera.warmup_rounds,
            keep=self.sera.selection.planned,
            fraction=self.sera.bootstrap.fraction,
            batching=batching,
            max_steps=plugin_config().max_steps,
            reviews=self.sera.reviews,
        )

    def open_run(
        self, model: torch.nn.Module, epochs_done: int, updates_done: int, checkpoint: Path | None
    ) -> None:
        self.stop.install()
        self.weights = FiniteWeights(self.model, self.accelerator)
        self.policies = Policies(self, model)
        self.held_out = HeldOut(self.eval_dataset, self.args.max_length, self.sera.max_set_aside)
        budget = 2 * self.args.per_device_train_batch_size * (self.args.max_length or 1024)
        own = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None) or ()
        self.sampling = sampling_settings(
            self.sera.bootstrap,
            self._tokenizer,
            self.pairs,
            (own,) if isinstance(own, int) else tuple(own),
            self.args.max_length,
            budget,
        )
        self.reviewer = reviewer_of(self, budget)
        self.refiner = refiner_of(self, self.reviewer.scorer)
        self.resumed_within = epochs_done + 1 if updates_done else None
        resumed = bool(epochs_done or updates_done)
        start_or_check(self, resumed=resumed)
        if self.accelerator.is_main_process:
            LOG.info("%s", estimate_text(self))
        rounds_left = epochs_done < self.schedule.last_round
        if rounds_left:
            self._score_reference()
        self._restore(epochs_done)
        self._score_held_out_reference()
        if rounds_left:
            self.start_recording(checkpoint)
            auxiliary = auxiliary_of(self, model, resumed=resumed)
            self.reviewer = replace(self.reviewer, auxiliary=auxiliary)

    def _score_reference(self) -> None:
        self.reference, _ = self.reviewer.score_offline(
            self.pairs, "Reference log-probs", under_reference=True
        )
        finite = self.reference.finite
        bad = check_numbers(finite, self.sera.max_set_aside, "the reference")
        if bad:
            LOG.warning("%d pairs are set aside: their reference log-probs are not finite.", bad)
        self.bad_ids = frozenset(np.array(self.pairs.ids)[~finite].tolist())

    def _score_held_out_reference(self) -> None:
        """Under πref as it is now: on resuming, `reference: previous` has moved it already."""
        for name, pairs in self.held_out.pairs.items():
            logps, _ = self.reviewer.score_offline(
                pairs, f"Reference log-probs of {name}", under_reference=True
            )
            self.eval_dataset = self.held_out.with_reference(name, logps)

    def with_reference(self, dataset: Dataset) -> Dataset:
        pairs = OfflinePairs.of(dataset, self.args.max_length)
        logps, _ = self.reviewer.score_offline(pairs, "Reference log-probs", under_reference=True)
        return with_reference_columns(dataset, logps)

    def _restore(self, epochs_done: int) -> None:
        """Take the last review's results from the store when a run is resumed."""
        complete_summaries(self, epochs_done)
        record = last_review(self, epochs_done, self.resumed_within)
        number = self.resumed_within or epochs_done
        reviewed = number if record is not None else epochs_done
        self.summaries = shared(lambda: self.store.read_summaries(reviewed))
        if record is None:
            return
        self.table = record.table
        if self.sera.selection.looks_back:
            tables = shared(lambda: self.store.read_tables(number))
            self.history = History.of(
                [table.margin for table in tables], [table.ensembled for table in tables]
            )
        self._keep_policy(number, resumed=True)
        if self.sera.reference == "previous":
            self.reference = record.table.policy

    def round_dataset(self, model: torch.nn.Module, number: int) -> TorchDataset:
        resumed = self.resumed_within == number
        if not self.schedule.rounds[number - 1].reviewed:
            rows = full_round(self.pairs.ids, self.args.seed, number, self.bad_ids)
        elif resumed:
            stored: Any = shared(lambda: self.store.read_round(number))
            rows = stored.rows
        else:
            rows = self._review(number)
        self.record_round(number, rows)
        dataset: Any = RoundDataset(rows, self.pairs.dataset, self.pairs.position, self.reference)
        if self.refiner is not None:
            dataset = self.refiner.open_round(number, dataset, resumed=resumed)
        self.round_started = time.perf_counter()
        self.tokens_before = self._total_train_tokens
        return dataset

    def _review(self, number: int) -> list[RoundRow]:
        self.stop.check()
        size = self.schedule.rounds[number - 1]
        past = Past(self.table, self.policy_snapshot, self.history, first_spread(self.summaries))
        review = self.reviewer.review(
            size, self.reference, self.held_out.reference, past, self.recorded()
        )
        previous_reference = self.sera.reference == "previous"
        rows = rows_of(
            review.composition, self.args.seed, number, previous_reference=previous_reference
        )
        # Rank 0 decides: rounding may differ between ranks, the round must not.
        record: RoundRecord = shared(lambda: RoundRecord(review.table, rows))
        metrics = review_metrics(review, self.pairs, self.table)
        self._publish(number, record, review, metrics)
        self.table = record.table
        self.history = review.history if self.sera.selection.looks_back else None
        self._keep_policy(number)
        if previous_reference:
            self.reference = record.table.policy
            for name, logps in review.evaluation.items():
                self.eval_dataset = self.held_out.with_reference(name, logps)
        return record.rows

    def _publish(
        self, number: int, record: RoundRecord, review: Review, metrics: dict[str, float]
    ) -> None:
        self.summaries.append(metrics)
        self.log_metrics_of_round({f"sera/{name}": value for name, value in metrics.items()})
        if self.accelerator.is_main_process:
            warn_of_set_aside(metrics)
            fresh = fresh_lines(review, self.pairs, self._tokenizer, self.beta)
            candidates = candidate_rows(review, self.beta)
            summary = metrics | guard_text(review)
            if "guard" in summary:
                LOG.info("Round %d, guard: %s", number, summary["guard"])
            folder = self.store.write_round(number, record, fresh, summary, candidates)
            LOG.info("Round %d is written to %s\n%s", number, folder, table_text(self.summaries))
            fresh = fresh_lines(review, self.pairs, self._tokenizer, self.beta)
            log_samples(fresh, self.args.report_to, self.state.global_step)
        self.accelerator.wait_for_everyone()

    def _keep_policy(self, number: int, *, resumed: bool = False) -> None:
        """Keep the reviewing policy where the next review needs it."""
        if not (self.sera.bootstrap.ensemble or self.sera.reference == "previous"):
            return
        path = self.store.root / f"policy-{number:02d}.safetensors"
        if resumed:
            snapshot = shared(lambda: Snapshot.load(path))
        else:
            snapshot = Snapshot.take(self.policies.unwrapped)
            if self.accelerator.is_main_process:
                snapshot.save(path)
        if self.sera.reference == "previous":
            self.policies.reference_snapshot = snapshot
        else:
            self.policy_snapshot = snapshot

    def checkpoint_saved(self) -> None:
        if self.accelerator.is_main_process:
            where = self.schedule.locate(self.state.global_step)
            # What is resumed from here reads the rounds that were begun before.
            self.store.drop_work(where.epoch + bool(where.updates_done))

    def before_saving(self) -> None:
        self.weights.check(self.state.global_step)

    def close_round(self, number: int) -> None:
        self.stop.check()
        self.before_saving()
        seconds = time.perf_counter() - self.round_started
        if not self.schedule.rounds[number - 1].reviewed:
            self.summaries.append({"round": float(number), "kept": float(len(self.pairs))})
        self.summaries[-1]["seconds_training"] = seconds
        speed = (self._total_train_tokens - self.tokens_before) / max(seconds, 1e-9)
        more = {"seconds_training": seconds, "tokens_per_second_training": speed}
        if self.refiner is not None:
            more |= self.refiner.close_round()
        self.log_metrics_of_round({f"sera/{name}": value for name, value in more.items()})
        if self.accelerator.is_main_process:
            self.store.update_summary(number, self.summaries[-1] | more)
            write_log(self.store.root, self.state.log_history)

    def close_run(self) -> None:
        if self.accelerator.is_main_process:
            # Again, for a kill may have come between the last checkpoint and the round's end.
            write_log(self.store.root, self.state.log_history)
            LOG.info("SeRA is done\n%s", table_text(self.summaries))
