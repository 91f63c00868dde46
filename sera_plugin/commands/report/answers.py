"""What a reader of a run's page asks first, answered in a sentence each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from sera_plugin.commands.report.counts import Counts, data_in_words, known
from sera_plugin.commands.report.figures import number
from sera_plugin.commands.report.page import Answer, Link
from sera_plugin.commands.report.reviews import Reviews
from sera_plugin.commands.report.signals import block, limit_of
from sera_plugin.data.reader import RunFiles

SMALL = 0.005
"""Least change of a loss (as a share of it) or of an accuracy that is taken for one."""


@dataclass(frozen=True)
class Evaluated:
    """An evaluation set at the last evaluation of each round; None where nothing was logged.

    Attributes:
        name: of the set.
        rounds: numbers of the rounds.
        accuracy: share of the pairs ordered as labelled.
        loss: the host's loss.
    """

    name: str
    rounds: tuple[int, ...]
    accuracy: tuple[float | None, ...]
    loss: tuple[float | None, ...]


def answers(
    run: RunFiles, reviews: Reviews, found: Sequence[Counts], shown: int | None
) -> list[Answer]:
    """What happened to the data, whether it helped, and which labels are suspect.

    Args:
        run: the run.
        reviews: its reviews.
        found: its rounds in numbers.
        shown: suspect pairs in the page's list; None if there is no list.
    """
    total = int(known(run.settings, "pairs") or 0)
    return [
        Answer("What happened to the data?", data_in_words(found, total)),
        _helped(run),
        _labels(reviews, shown),
    ]


def evaluated(run: RunFiles) -> list[Evaluated]:
    """The evaluation sets of a run after each of its rounds; none if it has no evaluation pairs."""
    log = run.log()
    prefix = "accuracy_"
    names = dict.fromkeys(
        name.removeprefix(prefix)
        for stored in run.rounds
        for name in stored.summary
        if name.startswith(prefix) and name != "accuracy_train"
    )
    if not names and any("eval_loss" in entry for entry in log):
        names = {"eval": None}
    return [entry for name in names if (entry := _evaluated(run, log, name)).rounds]


def _evaluated(run: RunFiles, log: Sequence[Mapping[str, Any]], name: str) -> Evaluated:
    stem = "eval" if name == "eval" else f"eval_{name}"
    updates = run.settings.get("updates")
    whole = [u for u in updates if isinstance(u, int)] if isinstance(updates, list) else []
    ends = list(accumulate(whole))
    loss: dict[int, float] = {}
    accuracy = {
        stored.number - 1: value
        for stored in run.rounds
        if (value := known(stored.summary, f"accuracy_{name}")) is not None
    }
    for entry in log:
        step = known(entry, "step")
        if not step or not ends or step > ends[-1]:
            continue
        at = 1 + int(np.searchsorted(ends, step))
        for values, metric in ((loss, "loss"), (accuracy, "rewards/accuracies")):
            if (value := known(entry, f"{stem}_{metric}")) is not None:
                values[at] = value
    rounds = tuple(sorted({*loss, *accuracy}))
    return Evaluated(name, rounds, *(tuple(map(of.get, rounds)) for of in (accuracy, loss)))


def _helped(run: RunFiles) -> Answer:
    sets = evaluated(run)
    clauses = [_verdict(entry, run, several=len(sets) > 1) for entry in sets]
    if not sets:
        clauses = ["No evaluation pairs, so this run can't say (test_datasets, val_set_size)"]
    note = "Whether SeRA did it, only a run of plain DPO on the same data can say." if sets else ""
    return Answer("Did it help?", "; ".join([*clauses, *_state(run)]) + ".", note=note)


def _verdict(entry: Evaluated, run: RunFiles, *, several: bool) -> str:
    """An evaluation set as a clause: what it says of the reviewed rounds, and its numbers."""
    of = f" of {entry.name}" if several else ""
    held_out = known(run.settings, "held_out")
    where = f" on {held_out:,.0f} held-out training pairs" if held_out else of
    numbers = f"evaluation {_numbers(entry)}{where}"
    first = run.reviewed[0].number - 1 if run.reviewed else None
    after = [place for place, at in enumerate(entry.rounds) if first is not None and at > first]
    if first == 0 and after:
        return f"All rounds were reviewed, so none of this run is beside them: {numbers}"
    if first not in entry.rounds or not after:
        return f"It is too early to say: {numbers}"
    if block(run.settings, "sera").get("reference") == "previous":
        return f"Each round had a reference of its own, so this run can't say: {numbers}"
    before, last = entry.rounds.index(first), after[-1]
    gains = []
    for values, sign in ((entry.accuracy, 1), (entry.loss, -1)):
        old, new = values[before], values[last]
        if old is not None and new is not None:
            scale = 1.0 if sign > 0 else max(abs(old), 1e-9)
            change = sign * (new - old) / scale
            gains.append(0 if abs(change) < SMALL else np.sign(change))
    return f"{_word(gains)} since round {first}: {numbers}"


def _word(gains: Sequence[float]) -> str:
    if 1 in gains and -1 in gains:
        return "Evaluation accuracy and loss disagree"
    if 1 in gains:
        return "It seems to have helped"
    return "It seems to have done harm" if -1 in gains else "It made little difference"


def _numbers(entry: Evaluated) -> str:
    """Accuracy and loss after the rounds; of more than four the first and the last."""
    places = list(range(len(entry.rounds)))
    if len(places) > 4:
        places = [places[0], places[-1]]
    said = []
    for what, values, form in (("accuracy", entry.accuracy, ".1%"), ("loss", entry.loss, ".3f")):
        texts = ["unknown" if v is None else format(v, form) for v in (values[i] for i in places)]
        if set(texts) != {"unknown"}:
            said.append(f"{what} was {_and(texts)}")
    after = "round" if len(places) == 1 else "rounds"
    return f"{_and(said)} after {after} {_and([str(entry.rounds[i]) for i in places])}"


def _and(words: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def _state(run: RunFiles) -> Iterator[str]:
    """Drift and lengths of what the last review sampled, as clauses."""
    last: Mapping[str, Any] = run.reviewed[-1].summary if run.reviewed else {}
    drift = known(last, "guard_drift")
    if drift is not None:
        limit = limit_of(run, "guard_drift")
        most = f" (the guard's limit is {number(limit.value)})" if limit else ""
        yield f"the policy drifted {drift:.3f} nats per token from its reference{most}"
    bootstrapped, kept = (
        known(last, f"chosen_tokens_{pairs}") for pairs in ("bootstrapped", "offline")
    )
    if bootstrapped is not None and kept is not None:
        yield (
            f"chosen completions of bootstrapped pairs have {bootstrapped:.1f} tokens on average, "
            f"those of kept pairs {kept:.1f}"
        )


def _labels(reviews: Reviews, shown: int | None) -> Answer:
    title = "Which labels are suspect?"
    if not reviews.numbers:
        return Answer(title, "No review has taken place yet, so no label is doubted.")
    suspect, total = int(reviews.suspect.sum()), len(reviews.ids)
    believed, before = reviews.doubts is not None, f"before round {reviews.numbers[-1]}"
    if not suspect:
        why = f"{before} every margin was at least 0"
        if believed:
            why = f"{before} every label was taken to be right rather than wrong"
        elif reviews.numbers[-1] == 1:
            why = f"{before} no policy had been trained, and nothing else found wrong labels"
        return Answer(title, f"None of {total:,}: {why}.")
    text = f"{suspect:,} of {total:,} labels ({suspect / total:.1%}): {before} " + (
        "selection took them to be wrong rather than right."
        if believed
        else "the policy preferred the completion that is labelled rejected (a negative margin)."
    )
    link = None
    if shown:
        all_of = f"the {shown:,}" if shown == suspect else f"{shown:,} of the {suspect:,}"
        link = Link(f"Read {all_of} suspect pairs", "#pairs=&filter=suspect")
    return Answer(title, text, link, "axolotl sera audit CONFIG.yml", "ranks all labels.")
