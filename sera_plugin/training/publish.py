"""What a run shows of itself: bootstrapped pairs as text and as a table, and its record."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from sera_plugin.config import SelectionConfig
from sera_plugin.data.candidates import Candidate
from sera_plugin.data.columns import (
    BootstrappedPairs,
    Candidates,
    Competitors,
)
from sera_plugin.data.pairs import OfflinePairs
from sera_plugin.data.tables import RoundRecord
from sera_plugin.review.belief import Belief
from sera_plugin.review.memory import memory_text
from sera_plugin.review.metrics import belief_text, guard_text, table_text, warn_of_set_aside
from sera_plugin.review.review import Review
from sera_plugin.runtime.logs import logger
from sera_plugin.training.run import Run

LOG = logger(__name__)


def bootstrapped_lines(
    review: Review, pairs: OfflinePairs, tokenizer: PreTrainedTokenizerBase, beta: float
) -> Iterator[dict[str, Any]]:
    """The round's bootstrapped pairs as rows with ``prompt``, ``chosen``, ``rejected`` text.

    The text holds the template's special tokens, so Axolotl trains on it with a dataset entry
    that has no ``type``. Each row also has its example id, margin, rewards and all candidates.
    """
    penalty = review.bootstrapped.penalty
    for pair in review.composition.bootstrapped:
        row = pairs.dataset[pairs.position[pair.example_id]]

        def text(candidate: Candidate) -> str:
            return str(tokenizer.decode(list(candidate.token_ids), skip_special_tokens=False))

        prompt = row.get("prompt")
        if not isinstance(prompt, str):
            prompt = tokenizer.decode(row["prompt_ids"], skip_special_tokens=False)
        yield {
            BootstrappedPairs.PROMPT: prompt,
            BootstrappedPairs.CHOSEN: text(pair.chosen),
            BootstrappedPairs.REJECTED: text(pair.rejected),
            BootstrappedPairs.EXAMPLE_ID: pair.example_id,
            BootstrappedPairs.ROUND: review.size.number,
            BootstrappedPairs.MARGIN: pair.margin,
            BootstrappedPairs.REWARD_CHOSEN: pair.chosen.reward(beta, penalty),
            BootstrappedPairs.REWARD_REJECTED: pair.rejected.reward(beta, penalty),
            BootstrappedPairs.CHOSEN_SOURCE: pair.chosen.source.value,
            BootstrappedPairs.REJECTED_SOURCE: pair.rejected.source.value,
            BootstrappedPairs.CANDIDATES: [
                {
                    Competitors.TEXT: text(candidate),
                    Competitors.SOURCE: candidate.source.value,
                    Competitors.FINISHED: candidate.finished,
                    Competitors.TOKENS: len(candidate.token_ids),
                    Competitors.LOG_RATIO: candidate.log_ratio,
                    Competitors.REWARD: candidate.reward(beta, penalty),
                }
                for candidate in pair.pool.candidates
            ],
        }


def candidate_rows(review: Review, beta: float) -> Iterator[dict[str, Any]]:
    """Every answer that competed in a round, and whether its prompt gave a pair to the round."""
    used = {pair.example_id for pair in review.composition.bootstrapped}
    for pool in review.bootstrapped.pools:
        for candidate in pool.candidates:
            yield {
                Candidates.EXAMPLE_ID: pool.example_id,
                Candidates.SOURCE: candidate.source.value,
                Candidates.FINISHED: candidate.finished,
                Candidates.TOKEN_IDS: list(candidate.token_ids),
                Candidates.POLICY_LOGP: candidate.policy_logp,
                Candidates.REFERENCE_LOGP: candidate.reference_logp,
                Candidates.LOG_RATIO: candidate.log_ratio,
                Candidates.REWARD: candidate.reward(beta, review.bootstrapped.penalty),
                Candidates.JUDGE_SCORE: candidate.verdict.score if candidate.verdict else None,
                Candidates.IN_ROUND: pool.example_id in used,
            }


SOURCES_SHOWN = 10
"""Sources of labels that the log names."""
ROWS = 20
"""Pairs in a table."""
COLUMNS = tuple(
    column.value
    for column in (
        BootstrappedPairs.ROUND,
        BootstrappedPairs.PROMPT,
        BootstrappedPairs.CHOSEN,
        BootstrappedPairs.REJECTED,
        BootstrappedPairs.MARGIN,
        BootstrappedPairs.REWARD_CHOSEN,
        BootstrappedPairs.REWARD_REJECTED,
        BootstrappedPairs.CHOSEN_SOURCE,
        BootstrappedPairs.REJECTED_SOURCE,
        BootstrappedPairs.EXAMPLE_ID,
    )
)
NAME = "sera/bootstrapped_pairs"


def publish(
    run: Run,
    number: int,
    record: RoundRecord,
    review: Review,
    summaries: Sequence[dict[str, float]],
    step: int,
) -> None:
    """Write a reviewed round to the store and show it in the log; the main process calls this.

    Args:
        run: the run.
        number: the round.
        record: what training and a resume need.
        review: what composed the round.
        summaries: numbers of the rounds so far, this one last.
        step: the trainer's global step.
    """
    metrics, beta, tokenizer = summaries[-1], run.host.beta, run.host.tokenizer
    warn_of_set_aside(metrics)
    memory = memory_text(review.table.ratios, list(review.evaluation_ratios.values()))
    if memory is not None:
        LOG.warning("Round %d: %s", number, memory)
    summary = metrics | guard_text(review) | belief_text(review, run.config.selection)
    for part in ("selection", "guard"):
        if part in summary:
            LOG.info("Round %d, %s: %s", number, part, summary[part])
    if review.belief is not None:
        _log_belief(number, review.belief, run.config.selection)
    folder = run.store.write_round(
        number,
        record,
        bootstrapped_lines(review, run.pairs, tokenizer, beta),
        summary,
        candidate_rows(review, beta),
    )
    LOG.info(
        "Round %d trains on %d rows: %.0f kept, %.0f bootstrapped, %.0f filled; written to %s\n%s",
        *(number, len(record.rows)),
        *(metrics[name] for name in ("kept", "bootstrapped", "filled")),
        *(folder, table_text(summaries)),
    )
    log_samples(bootstrapped_lines(review, run.pairs, tokenizer, beta), run.host.report_to, step)


def _log_belief(number: int, belief: Belief, settings: SelectionConfig) -> None:
    """Log whether the gate may be wrong, and how many labels of each source are."""
    doubt = belief.warning(settings)
    if doubt is not None:
        LOG.warning("Round %d: %s", number, doubt)
    if belief.sources:
        shares = sorted(belief.sources.items(), key=lambda one: -one[1].value)[:SOURCES_SHOWN]
        said = "; ".join(f"{name} {share.text} of {share.pairs}" for name, share in shares)
        LOG.info("Round %d, wrong labels by %s: %s", number, settings.sources, said)


def log_samples(
    pairs: Iterable[Mapping[str, Any]], report_to: Sequence[str], step: int
) -> tuple[str, ...]:
    """Log the first pairs of a round as a table, and return where it went.

    The host starts the loggers; one that has no run open is left out. A logger that fails is
    named in a warning: it must not end a run.

    Args:
        pairs: ``bootstrapped_lines`` of the round, best first.
        report_to: the host's loggers.
        step: the trainer's global step.
    """
    found = []
    wanted = [name for name in ("wandb", "trackio") if name in report_to and name in sys.modules]
    if not wanted:
        return ()
    rows = [[pair[name] for name in COLUMNS] for pair in islice(pairs, ROWS)]
    for name in wanted if rows else ():
        try:
            if _LOGGERS[name](rows, step):
                found.append(name)
        except Exception as error:  # a logger's own errors are of any kind
            LOG.warning("%s did not take the table of new pairs (%s).", name, error)
    return tuple(found)


def _wandb(rows: list[list[Any]], step: int) -> bool:
    import wandb

    if wandb.run is None:
        return False
    table = wandb.Table(columns=list(COLUMNS), data=rows)
    wandb.log({NAME: table, "train/global_step": step})
    return True


def _trackio(rows: list[list[Any]], step: int) -> bool:
    import pandas as pd
    import trackio
    from trackio import context_vars

    if context_vars.current_run.get() is None:
        return False
    table = trackio.Table(dataframe=pd.DataFrame(rows, columns=list(COLUMNS)))
    trackio.log({NAME: table, "train/global_step": step})
    return True


_LOGGERS = {"wandb": _wandb, "trackio": _trackio}
