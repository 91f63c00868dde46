"""Completions that compete are dealt to a judge on all ranks. Collectives: those of ``passes``.

Finished shards are kept and reused like those of scoring.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from accelerate import Accelerator

from sera_plugin.config.parts import JUDGES
from sera_plugin.data.candidates import Candidate, Pool, Prompt, Verdict
from sera_plugin.runtime.errors import JudgeError, raised
from sera_plugin.runtime.passes import Pass
from sera_plugin.runtime.ranks import gathered
from sera_plugin.runtime.shards import Origin, Shards
from sera_plugin.scoring.completions import CompletionList

KEY = JUDGES.key

BATCH = 16
"""Completions that a judge sees in one call."""

SHARD_BATCHES = 4
"""Batches per rank in a shard: a judge may be slow or paid for, so few."""


@dataclass(frozen=True)
class Question:
    """An answer to judge, as tokens."""

    example_id: str
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]


class Judge(Protocol):
    """Gives every answer a score, or None where it has no opinion.

    Attributes:
        identity: changes whenever the judge's scores may change.
    """

    identity: str

    def __call__(self, questions: Sequence[Question]) -> Sequence[float | None]: ...


@runtime_checkable
class PoolJudge(Protocol):
    """Scores all answers at once, in passes that all ranks take, with shards of its own.

    Attributes:
        identity: as that of ``Judge``.
    """

    identity: str

    def of_pools(self, pools: Sequence[Pool], label: str) -> list[float | None]: ...


def checked(judge: Judge, questions: Sequence[Question]) -> list[float | None]:
    """The judge's scores, one per question.

    Raises:
        JudgeError: one sentence, when it raises, returns another number of scores, or a score
            that is neither a finite number nor None.
    """
    name = _name(judge)
    try:
        scores = list(judge(questions))
    except Exception as error:
        raise JudgeError(
            f"{KEY}: {name} {raised(error)}; the answers judged so far are "
            "kept, and a resumed run goes on from them."
        ) from error
    if len(scores) != len(questions):
        raise JudgeError(
            f"{KEY}: {name} returned {len(scores)} scores for {len(questions)} answers; it must "
            "return one for each, None where it has no opinion."
        )
    for score in scores:
        if score is not None and not _is_number(score):
            raise JudgeError(
                f"{KEY}: {name} returned {str(score)[:80]!r}; a score must be a finite number, or "
                "None where it has no opinion."
            )
    return [None if score is None else float(score) for score in scores]


def _name(judge: Judge | PoolJudge) -> str:
    """The judge's identity without the hash at its end."""
    return judge.identity.rpartition(":")[0]


def _is_number(score: Any) -> bool:
    try:
        return bool(np.isfinite(float(score)))
    except (TypeError, ValueError):
        return False


class ScoreCodec:
    """Scores of batches as a table with a row per answer."""

    def encode(self, found: Mapping[int, list[float | None]]) -> pa.Table:
        rows = [(number, score) for number, scores in found.items() for score in scores]
        return pa.table(
            {
                "batch": pa.array([number for number, _ in rows], pa.int64()),
                "score": pa.array([score for _, score in rows], pa.float64()),
            }
        )

    def decode(self, table: pa.Table) -> dict[int, list[float | None]]:
        found: dict[int, list[float | None]] = {}
        columns = (table.column(name).to_pylist() for name in ("batch", "score"))
        for number, score in zip(*columns, strict=True):
            found.setdefault(number, []).append(score)
        return found


@dataclass(frozen=True)
class Court:
    """Deals answers to a judge on all ranks.

    Attributes:
        accelerator: the trainer's accelerator.
        judge: scores answers.
        folder: where shards are kept.
        replaces: whether its scores rank the answers in place of the implicit reward.
        after_shard: called on every rank when a shard is finished; it may raise to end the pass.
    """

    accelerator: Accelerator
    judge: Judge | PoolJudge
    folder: Path
    replaces: bool
    after_shard: Callable[[], None] | None = None

    def pools(
        self, pools: Sequence[Pool], prompts: Sequence[Prompt], label: str
    ) -> tuple[Pool, ...]:
        """The pools with a verdict on every answer; every rank must call this alike.

        Where the judge replaces the implicit reward, answers without an opinion don't compete.

        Args:
            pools: the answers of each prompt.
            prompts: their prompts.
            label: what the shards of the pass belong to.

        Raises:
            JudgeError: as ``scores``.
        """
        scores = iter(self._all_scores(pools, prompts, label))
        judged = [
            [replace(c, verdict=Verdict(next(scores), self.replaces)) for c in pool.candidates]
            for pool in pools
        ]
        return tuple(
            Pool(pool.example_id, tuple(c for c in found if self._competes(c)))
            for pool, found in zip(pools, judged, strict=True)
        )

    def _all_scores(
        self, pools: Sequence[Pool], prompts: Sequence[Prompt], label: str
    ) -> list[float | None]:
        """A score of every candidate, in the order of the pools."""
        if isinstance(self.judge, PoolJudge):
            return self._opinions(self.judge.of_pools(pools, label))
        prompt_ids = {prompt.example_id: prompt.token_ids for prompt in prompts}
        questions = [
            Question(pool.example_id, prompt_ids[pool.example_id], answer.token_ids)
            for pool in pools
            for answer in pool.candidates
        ]
        return self.scores(questions, label)

    def _competes(self, candidate: Candidate) -> bool:
        verdict = candidate.verdict
        return verdict is None or verdict.score is not None or not self.replaces

    def scores(self, questions: Sequence[Question], label: str) -> list[float | None]:
        """One score per question, on every rank; every rank must call this alike.

        Args:
            questions: the answers to judge.
            label: what the shards of the pass belong to.

        Raises:
            JudgeError: if the judge breaks its contract on any rank, or has no opinion on any
                answer.
            OSError: if a shard can't be written.
        """
        batches = [questions[start : start + BATCH] for start in range(0, len(questions), BATCH)]
        failed: list[JudgeError] = []
        asked = self.judge
        assert not isinstance(asked, PoolJudge), "such a judge is asked with whole pools"

        def judge(number: int) -> list[float | None]:
            try:
                return [] if failed else checked(asked, batches[number])
            except JudgeError as error:
                failed.append(error)
                return []

        def end_together() -> None:
            # What the other ranks' judges said is stored by now, and no rank waits for another.
            reasons = gathered([str(error) for error in failed])
            if reasons:
                raise failed[0] if failed else JudgeError(reasons[0])
            if self.after_shard is not None:
                self.after_shard()

        found = Pass(
            self.accelerator,
            "Judging answers",
            judge,
            ScoreCodec(),
            SHARD_BATCHES,
            lambda: self._shards(questions, label),
            end_together,
            alike=False,
        ).results(len(batches))
        scores = [score for number in range(len(batches)) for score in found[number]]
        return self._opinions(scores)

    def _opinions(self, scores: list[float | None]) -> list[float | None]:
        if scores and all(score is None for score in scores):
            raise JudgeError(
                f"{KEY}: {_name(self.judge)} has no opinion on any of the {len(scores)} answers; "
                "it must return a number for some of them."
            )
        return scores

    def _shards(self, questions: Sequence[Question], label: str) -> Shards:
        determined_by = {
            "pass": "judge",
            "answers": CompletionList(
                [(q.prompt_ids, q.completion_ids) for q in questions]
            ).digest(),
            "examples": [q.example_id for q in questions],
            "batch": BATCH,
        }
        return Shards.of(Origin(self.folder, label, self.judge.identity), determined_by)
