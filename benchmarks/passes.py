"""The plugin's scoring and generation passes against the naive ones, on one model, in turns.

Runs inside ``axolotl train`` after the last update, with the trainer's own scorer and sampler, so
batch sizes and precision are those of a run, and the policy differs from the reference.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch

from benchmarks import naive
from benchmarks.hardware import forward_flops, rates, synchronize
from sera_plugin.data.pairs import OfflineCompletions
from sera_plugin.sampling.paged_engine import PagedEngine
from sera_plugin.sampling.sampler import Prompt
from sera_plugin.scoring.completions import CompletionList
from sera_plugin.training.run import Run

SLOW_PAIRS = 24
"""Pairs that the slow reference scores, one by one."""
T = TypeVar("T")


def compare_passes(trainer: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    """Time both kinds of passes ``wanted["passes"]`` times each and compare what they find."""
    bench = Bench(trainer, repeats=wanted["passes"])
    dtype = torch.bfloat16 if trainer.args.bf16 else torch.float32
    device = trainer.accelerator.device
    return {
        "scoring": bench.scoring(),
        "shared": bench.shared(wanted["prompts"]),
        "margins": bench.margins(),
        "generation": bench.generation(wanted["prompts"], wanted["batch"], wanted["paged"]),
        "hardware": rates(device, dtype),
        "flops": bench.flops(),
        "weight_bytes": _weight_bytes(trainer.rounds.run.policies.unwrapped, dtype),
    }


@dataclass(frozen=True)
class Bench:
    """Both kinds of passes over the trainer's pairs.

    Attributes:
        trainer: a ``SeRATrainer`` at the end of its run.
        repeats: turns.
    """

    trainer: Any
    repeats: int

    @property
    def run(self) -> Run:
        """The run's parts."""
        found: Run = self.trainer.rounds.run
        return found

    def _timed(self, work: Callable[[], T]) -> tuple[T, float, float]:
        """The result, seconds, and seconds of processor time."""
        device = self.trainer.accelerator.device
        synchronize(device)
        start, cpu = time.perf_counter(), time.process_time()
        found = work()
        synchronize(device)
        return found, time.perf_counter() - start, time.process_time() - cpu

    def _rows(self) -> list[naive.Triple]:
        dataset = self.run.pairs.dataset
        names = ("prompt_ids", "chosen_ids", "rejected_ids")
        return list(zip(*(dataset[name] for name in names), strict=True))

    def _fast(self, forward: Any) -> Any:
        answers = OfflineCompletions(self.run.pairs)
        return self.run.reviewer.scorer.logps(forward, answers, "benchmark: scoring")

    def _naive(
        self, forward: Any, rows: list[naive.Triple], batch: int, dtype: torch.dtype | None = None
    ) -> tuple[np.ndarray, int]:
        return naive.score(
            forward,
            rows,
            batch=batch,
            max_length=self.trainer.args.max_length,
            pad=self.run.reviewer.scorer.pad_token_id,
            device=self.trainer.accelerator.device,
            dtype=dtype,
        )

    def scoring(self) -> dict[str, Any]:
        """Log-probs of all pairs under the policy, both ways."""
        rows, batch = self._rows(), self.trainer.args.per_device_train_batch_size
        fast, slow = [], []
        with self.run.policies.policy() as forward:
            self._naive(forward, rows[:batch], batch)
            for _ in range(self.repeats):
                done, *seconds = self._timed(lambda: self._fast(forward))
                fast.append(seconds)
                (logps, computed), *seconds = self._timed(lambda: self._naive(forward, rows, batch))
                slow.append(seconds)
        return {
            "pairs": len(rows),
            "fast_seconds": [wall for wall, _ in fast],
            "naive_seconds": [wall for wall, _ in slow],
            "fast_cpu_seconds": [cpu for _, cpu in fast],
            "naive_cpu_seconds": [cpu for _, cpu in slow],
            "tokens": done.tokens,
            "fast_padding": 1 - done.tokens / done.padded_tokens,
            "naive_padding": 1 - done.tokens / computed,
            "difference": float(np.abs(done.logps.reshape(-1, 2) - logps).max()),
        }

    def shared(self, count: int) -> dict[str, Any]:
        """Scoring of ``count`` prompts' answers, those of D and sampled ones, in two ways.

        ``pass``: all of them under the policy, each prompt read once, or again for each answer.
        ``review``: what a review scores, that is D's answers under the policy and the sampled ones
        under policy and reference; with shared prompts the policy's log-probs of the sampled ones
        are known from sampling.
        """
        offline, sampled = self._answers(count)
        both = CompletionList([*offline.rows, *sampled.rows])
        scorer = self.run.reviewer.scorer
        sides = {way: replace(scorer, shares=way == "once") for way in ("once", "each")}
        work: dict[str, Callable[[str], Any]] = {
            "pass": lambda way: self._score(sides[way], "policy", both),
            "review": lambda way: [
                self._score(sides[way], model, answers)
                for model, answers in (
                    ("policy", offline),
                    *([("policy", sampled)] if way == "each" else []),
                    ("reference", sampled),
                )
            ],
        }
        times: dict[str, dict[str, list[list[float]]]] = {
            what: {way: [] for way in sides} for what in work
        }
        found: dict[str, Any] = {}
        for turn in range(-1, self.repeats):
            for what, do in work.items():
                for way in sides:
                    done, *seconds = self._timed(partial(do, way))
                    if turn >= 0:
                        times[what][way].append(seconds)
                    if what == "pass":
                        found[way] = done
        return {
            "prompts": len(offline.rows) // 2,
            "answers": len(both.rows) // (len(offline.rows) // 2),
            "tokens": {way: done.tokens for way, done in found.items()},
            "padded": {way: done.padded_tokens for way, done in found.items()},
            "difference": float(np.abs(found["once"].logps - found["each"].logps).max()),
            **{
                f"{what}_{clock}": {
                    way: [seconds[place] for seconds in turns] for way, turns in ways.items()
                }
                for what, ways in times.items()
                for place, clock in enumerate(("seconds", "cpu_seconds"))
            },
        }

    def _answers(self, count: int) -> tuple[CompletionList, CompletionList]:
        """Both answers of D to the first prompts with room, and the policy's."""
        run = self.run
        rows = [row for row in self._rows() if run.sampling.room(len(row[0])) > 0][:count]
        prompts = [Prompt(str(number), tuple(row[0])) for number, row in enumerate(rows)]
        sampler = run.reviewer.bootstrapper.sampler
        with run.policies.generating() as (model, synced):
            made = sampler.completions(model, prompts, 0, 1, synced=synced)
        return (
            CompletionList([(prompt, answer) for prompt, *both in rows for answer in both]),
            CompletionList(
                [(p.token_ids, answer.token_ids) for p in prompts for answer in made[p.example_id]]
            ),
        )

    def _score(self, scorer: Any, model: str, answers: CompletionList) -> Any:
        with getattr(self.run.policies, model)() as forward:
            return scorer.logps(forward, answers, "benchmark: shared prompts")

    def margins(self) -> dict[str, float]:
        """Largest difference of margins to a reference that goes pair by pair, in float64."""
        rows = self._rows()[:SLOW_PAIRS]
        answers = CompletionList([(prompt, answer) for prompt, *both in rows for answer in both])
        scorer, found = self.run.reviewer.scorer, {}
        for name in ("policy", "reference"):
            with getattr(self.run.policies, name)() as forward:
                fast = scorer.logps(forward, answers, "benchmark: margins").logps.reshape(-1, 2)
                slow, _ = self._naive(forward, rows, 1, torch.float64)
            found[name] = (fast, slow)
        fast, slow = (
            (policy - reference)[:, 0] - (policy - reference)[:, 1]
            for policy, reference in zip(found["policy"], found["reference"], strict=True)
        )
        return {
            "pairs": len(rows),
            "difference": float(np.abs(fast - slow).max()),
            "mean_size": float(np.abs(slow).mean()),
        }

    def generation(self, count: int, batch: int, paged: bool) -> dict[str, Any]:
        """Completions to the first prompts of D, both ways, and by continuous batching."""
        run, settings = self.run, self.run.sampling
        token_ids = [ids for ids in run.pairs.dataset["prompt_ids"] if settings.room(len(ids))]
        prompts = [Prompt(str(i), tuple(ids)) for i, ids in enumerate(token_ids[:count])]
        sampler = run.reviewer.bootstrapper.sampler
        sides = ["fast", *(["paged"] if paged else []), "naive"]
        times: dict[str, list[list[float]]] = {side: [] for side in sides}
        made: dict[str, list[int]] = {side: [] for side in sides}
        sizes: dict[str, list[int]] = {side: [] for side in sides}
        counting = _Counting(sizes.get("paged", []))
        samplers = {"fast": sampler, "paged": replace(sampler, engine=counting)}
        with run.policies.generating() as (model, synced):

            def answers(side: str, turn: int) -> int:
                if side == "naive":
                    return self._generate(model, [list(p.token_ids) for p in prompts], batch)
                found = samplers[side].completions(model, prompts, turn, 1, synced=synced)
                return sum(len(r.token_ids) for each in found.values() for r in each)

            for turn in range(self.repeats):
                for side in sides:
                    with _noting_batches(model, sizes[side]):
                        tokens, *seconds = self._timed(partial(answers, side, turn))
                    times[side].append(seconds)
                    made[side].append(tokens)
        found: dict[str, Any] = {"prompts": len(prompts), "candidates": settings.num_candidates}
        for side in sides:
            found[f"{side}_seconds"] = [wall for wall, _ in times[side]]
            found[f"{side}_cpu_seconds"] = [cpu for _, cpu in times[side]]
            found[f"{side}_tokens"] = made[side]
            found[f"{side}_batch"] = float(np.mean(sizes[side])) if sizes[side] else None
        found["naive_batch"] *= settings.num_candidates
        return found

    def _generate(self, model: Any, prompts: list[list[int]], batch: int) -> int:
        settings = self.run.sampling
        return naive.generate(
            model,
            prompts,
            batch=batch,
            candidates=settings.num_candidates,
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_new_tokens=settings.max_new_tokens,
            stops=sorted(settings.stops),
            pad=settings.pad_token_id,
            device=self.trainer.accelerator.device,
        )

    def flops(self) -> dict[str, float]:
        """Operations of a forward pass over all pairs, and per token of the rows."""
        pairs = self.run.pairs
        rows = OfflineCompletions(pairs).lengths
        answers = np.stack([pairs.chosen_tokens, pairs.rejected_tokens], axis=1).reshape(-1)
        total = forward_flops(self.run.policies.unwrapped, rows, answers)
        return {"scoring_pass": total, "per_token": total / float(rows.sum())}


@dataclass(frozen=True)
class _Counting(PagedEngine):
    """Notes how many answers each batch begins with."""

    sizes: list[int] = field(default_factory=list)

    def sample(self, model: Any, prompts: Any, settings: Any, draws: Any, *, synced: bool) -> Any:
        self.sizes.append(len(prompts) * settings.num_candidates)
        return super().sample(model, prompts, settings, draws, synced=synced)


@contextmanager
def _noting_batches(model: Any, sizes: list[int]) -> Iterator[None]:
    """Append the rows of every batch that ``model.generate`` is given."""
    generate = model.generate

    def noting(*args: Any, **kwargs: Any) -> Any:
        sizes.append(len(kwargs["input_ids"]))
        return generate(*args, **kwargs)

    model.generate = noting
    try:
        yield
    finally:
        del model.generate


def _weight_bytes(model: torch.nn.Module, dtype: torch.dtype) -> int:
    """Bytes of weights that a decoding step reads."""
    return sum(p.numel() for p in model.parameters()) * dtype.itemsize
