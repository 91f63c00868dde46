"""The rounds of a run: opened from the start or a checkpoint, reviewed, trained, closed.

Collectives: those of scoring and sampling, and what the main process decides is broadcast.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from torch.utils.data import Dataset as TorchDataset

from sera_plugin.config import SeraConfig
from sera_plugin.data.held_out import split
from sera_plugin.data.margins import PairLogps
from sera_plugin.data.pairs import OfflinePairs, with_reference_columns
from sera_plugin.data.rounds import RoundDataset, RoundRow, full_round, rows_of
from sera_plugin.data.schedule import Batching, Schedule
from sera_plugin.data.store import RunStore
from sera_plugin.data.tables import RoundRecord
from sera_plugin.data.texts import write_log
from sera_plugin.host.checks import plan_of
from sera_plugin.host.facts import HostRun
from sera_plugin.host.models import plugin_config
from sera_plugin.host.round_trainer import RoundTrainer
from sera_plugin.host.rounds import Start
from sera_plugin.review.bootstrap import Past
from sera_plugin.review.metrics import (
    first_spread,
    full_round_metrics,
    full_round_text,
    review_metrics,
    table_text,
)
from sera_plugin.review.review import Review
from sera_plugin.runtime.logs import logger
from sera_plugin.runtime.progress import clock_text
from sera_plugin.runtime.ranks import shared
from sera_plugin.scoring.packed import Packed
from sera_plugin.scoring.recording import Recorded, Recorder
from sera_plugin.training.card import add_to_card
from sera_plugin.training.checkpoints import StopOnSignal
from sera_plugin.training.estimate import estimate_text
from sera_plugin.training.merging import passes
from sera_plugin.training.objective import base_of
from sera_plugin.training.packing import in_updates, packed_steps
from sera_plugin.training.publish import publish
from sera_plugin.training.resume import start_or_check
from sera_plugin.training.run import Run, open_run, with_auxiliary, with_contrast
from sera_plugin.training.state import (
    Found,
    keep_policy,
    restore,
    restore_terms,
    save_terms,
    score_reference,
)
from sera_plugin.training.terms.term import Objective, Opening

LOG = logger(__name__)


class ReviewedRounds:
    """Gives the host's trainer reviewed and renewed rounds; see ``host.rounds.Rounds``.

    Args:
        config: the ``sera:`` block.
        trainer: the host's trainer.
    """

    def __init__(self, config: SeraConfig, trainer: RoundTrainer) -> None:
        self._config, self._trainer = config, trainer
        self._store = RunStore(trainer.args.output_dir)
        max_length, seed = trainer.args.max_length, trainer.args.seed
        train, self._held_out = split(
            config, trainer.train_dataset, max_length, trainer.eval_dataset, seed
        )
        trainer.train_on(train)
        self._pairs = OfflinePairs.of(train, max_length)
        self._stop = StopOnSignal(trainer.accelerator)
        trainer.add_callback(self._stop)
        self._opened: Run | None = None
        self._recorder: Recorder | None = None
        self._packed: Packed | None = None
        self._passes: Sequence[Sequence[int]] | None = None
        self._found = Found()
        self._within: int | None = None
        self._started, self._tokens_before = 0.0, 0.0

    @property
    def run(self) -> Run:
        """The run, from when its models are prepared."""
        assert self._opened is not None, "the host calls `open` before all else"
        return self._opened

    @property
    def objective(self) -> Objective | None:
        if self._opened is None:
            return None
        host = self._opened.host
        if self._opened.objective is None and self._packed is not None:
            base = base_of(host.loss_types[0], host.label_smoothing)
            return Objective(base, host.beta, ())
        return self._opened.objective

    @property
    def packed(self) -> Packed | None:
        return self._packed

    @property
    def passes(self) -> Sequence[Sequence[int]] | None:
        return self._passes

    @property
    def notes_logps(self) -> bool:
        return self._recorder is not None

    @property
    def _step(self) -> int:
        return int(self._trainer.state.global_step)

    def plan(self, batching: Batching) -> Schedule:
        return plan_of(plugin_config(), self._config, len(self._pairs), batching)

    def open(self, host: HostRun, schedule: Schedule, start: Start) -> None:
        self._stop.install()
        self._opened = run = open_run(
            self._config,
            host,
            schedule,
            self._store,
            self._pairs,
            self._stop,
            lambda: self._step,
            self._held_out,
        )
        self._within = start.within
        start_or_check(run, resumed=start.resumed)
        if run.is_main:
            LOG.info("%s", estimate_text(run, schedule))
        rounds_left = start.epochs_done < schedule.last_round
        if rounds_left:
            self._packed = packed_steps(run)
            score_reference(run, self._found)
            assert self._found.reference is not None
            self._opened = run = with_contrast(run, self._found.reference)
        restore(run, self._found, start)
        if run.objective is not None and start.checkpoint is not None:
            restore_terms(run.objective, start.checkpoint)
        self._score_evaluation_reference()
        if rounds_left:
            self._start_recording(start.checkpoint)
            loss, given = self._trainer.loss_of, self._trainer.eval_dataset
            self._opened = with_auxiliary(run, given, loss, resumed=start.resumed)

    def _score_evaluation_reference(self) -> None:
        """Under πref as it is now: on resuming, `reference: previous` has moved it already."""
        run = self.run
        for name, pairs in run.evaluation.pairs.items():
            logps, _ = run.reviewer.score_offline(
                pairs, f"Reference log-probs of {name}", under_reference=True
            )
            self._take_reference(name, logps)

    def _take_reference(self, name: str, logps: PairLogps) -> None:
        """Of an evaluation set under πref as it is from now on; held-out pairs stay with SeRA."""
        dataset = self.run.evaluation.with_reference(name, logps)
        if self._held_out is None:
            self._trainer.evaluate_on(dataset)

    def with_reference(self, dataset: Dataset) -> Dataset:
        pairs = OfflinePairs.of(dataset, self.run.host.max_length)
        logps, _ = self.run.reviewer.score_offline(
            pairs, "Reference log-probs", under_reference=True
        )
        return with_reference_columns(dataset, logps)

    def _start_recording(self, checkpoint: Path | None) -> None:
        """Record log-probs from where ``checkpoint`` was saved, or from the start of the run."""
        if self._config.selection.source != "training":
            return
        assert self._found.reference is not None
        known = Recorded.start(self._found.reference)
        if checkpoint is not None:
            known = shared(lambda: Recorded.load(checkpoint, self._pairs.ids))
        self._recorder = Recorder(self._pairs, known)

    def dataset(self, number: int) -> TorchDataset[Any]:
        run, resumed = self.run, self._within == number
        if not run.schedule.rounds[number - 1].reviewed:
            bad = self._found.bad_ids
            rows = in_updates(run, full_round(run.pairs.ids, run.host.seed, number, bad))
        elif resumed:
            stored: Any = shared(lambda: run.store.read_round(number))
            rows = stored.rows
        else:
            rows = self._review(number)
        self._passes = passes(run, self._packed, number, rows)
        if self._recorder is not None:
            self._recorder.begin(number, rows)
        assert self._found.reference is not None
        pairs, reference = run.pairs, self._found.reference
        dataset = RoundDataset(rows, pairs.dataset, pairs.position, reference)
        if run.objective is not None:
            reviewed = run.schedule.rounds[number - 1].reviewed
            table = self._found.table if reviewed else None
            run.objective.open_round(Opening(number, dataset, table, resumed))
        self._started = time.perf_counter()
        self._tokens_before = self._trainer.trained_tokens
        return cast("TorchDataset[Any]", dataset)

    def _review(self, number: int) -> list[RoundRow]:
        run, found = self.run, self._found
        run.stop.check()
        assert found.reference is not None
        self._trainer.show_weights()
        past = Past(found.table, found.policy, found.history, first_spread(found.summaries))
        review = run.reviewer.review(
            run.schedule.rounds[number - 1],
            found.reference,
            run.evaluation.reference,
            past,
            self._recorder.merged() if self._recorder is not None else None,
        )
        previous_reference = run.config.reference == "previous"
        rows = rows_of(
            review.composition, run.host.seed, number, previous_reference=previous_reference
        )
        # Rank 0 decides: rounding may differ between ranks, the round must not.
        record: RoundRecord = shared(lambda: RoundRecord(review.table, in_updates(run, rows)))
        self._publish(number, record, review)
        found.table = record.table
        found.history = review.history if run.config.selection.looks_back else None
        keep_policy(run, found, number)
        if previous_reference:
            found.reference = record.table.policy
            for name, logps in review.evaluation.items():
                self._take_reference(name, logps)
        return record.rows

    def _publish(self, number: int, record: RoundRecord, review: Review) -> None:
        run = self.run
        metrics = review_metrics(review, run.pairs, self._found.table)
        self._found.summaries.append(metrics)
        self._log(metrics)
        if run.is_main:
            publish(run, number, record, review, self._found.summaries, self._step)
        run.host.accelerator.wait_for_everyone()

    def _log(self, metrics: Mapping[str, float]) -> None:
        self._trainer.log_metrics_of_round({f"sera/{name}": v for name, v in metrics.items()})

    def note_logps(self, keys: Sequence[str], logps: torch.Tensor) -> None:
        if self._recorder is not None:
            self._recorder.note(keys, logps.numpy(), self._step)

    def before_checkpoint(self, folder: Path) -> None:
        self.run.weights.check(self._step)
        if self._recorder is not None:
            recorded = self._recorder.merged()
            if self.run.is_main:
                recorded.save(folder)
        if self.run.objective is not None and self.run.is_main:
            save_terms(self.run.objective, folder)

    def checkpoint_saved(self) -> None:
        if self.run.is_main:
            where = self.run.schedule.locate(self._step)
            # What is resumed from here reads the rounds that were begun before.
            self.run.store.drop_work(where.epoch + bool(where.updates_done))

    def close_round(self, number: int) -> None:
        run, summaries = self.run, self._found.summaries
        run.stop.check()
        run.weights.check(self._step)
        seconds = time.perf_counter() - self._started
        bad, aside = self._found.bad_ids, {}
        if not run.schedule.rounds[number - 1].reviewed:
            summaries.append(full_round_metrics(number, len(run.pairs), len(bad)))
            aside = full_round_text(bad)
        summaries[-1]["seconds_training"] = seconds
        tokens = self._trainer.trained_tokens - self._tokens_before
        speed = tokens / max(seconds, 1e-9)
        more = {"seconds_training": seconds, "tokens_per_second_training": speed}
        if run.objective is not None:
            more |= run.objective.close_round()
        self._log(more)
        took = f"{tokens:,.0f} tokens in {clock_text(seconds)}, {speed:,.0f} tokens/s"
        LOG.info("Round %d: trained on %s", number, took)
        if run.is_main:
            run.store.update_summary(number, summaries[-1] | more | aside)
            write_log(run.store.root, self._trainer.state.log_history)

    def leave(self) -> None:
        """Called when training has ended, in whatever way."""
        self._stop.uninstall()

    def add_to_card(self, card: Path) -> None:
        add_to_card(self.run, self._found.summaries, card)

    def close(self) -> None:
        run = self.run
        if run.is_main:
            # Again, for a kill may have come between the last checkpoint and the round's end.
            write_log(run.store.root, self._trainer.state.log_history)
            LOG.info("SeRA is done\n%s", table_text(self._found.summaries))
