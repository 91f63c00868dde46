"""What the gate of ``preset: contrast`` does on pairs of the task with wrong labels, untrained.

python -m benchmarks.smollm.gates [--wordings tone] [--minutes 60]

The contrast of every training pair under the starting model is stored, going on where it stopped.
Labels are then turned 40 times as in ``grid``, and the package's own calibration and gate see them,
without trusted pairs and with 100 of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase as Tokenizer

from benchmarks.smollm.analysis import auc, right
from benchmarks.smollm.labels import NOISES, Noise, checked, drawn, turned
from benchmarks.smollm.model import load
from benchmarks.smollm.page import fill, markdown
from benchmarks.smollm.sentiment import Pair, pairs_of, vader
from benchmarks.smollm.signals import prompts
from benchmarks.smollm.task import append, key_of, stored
from benchmarks.smollm.task_signals import add_options, as_pair, samples
from benchmarks.smollm.wordings import CONTRASTS, WORDINGS, contrasts_of, seen
from benchmarks.smollm.writer import scorer_on
from sera_plugin.config.contrast import ContrastPrompts
from sera_plugin.config.selection import SelectionConfig
from sera_plugin.review.belief import believe
from sera_plugin.scoring.completions import CompletionList
from sera_plugin.scoring.scorer import Scorer, inference

CHUNK = 16
DRAWS = 40
"""Times that labels are turned."""
CHECKED = (0, 100)
"""Pairs whose labels are checked, so that they can be trusted."""


def contrasts(
    scorer: Scorer,
    model: Any,
    tokenizer: Tokenizer,
    pairs: Sequence[Pair],
    opposite: ContrastPrompts,
) -> np.ndarray:
    """How much more the positive prompt raises the chosen answer than the rejected one does.

    Sums of log-probs, nats, shape (pairs,).
    """
    rows = []
    for pair in pairs:
        as_stored = as_pair(pair, tokenizer)
        for name, ids in prompts(as_stored, tokenizer, {"asked": opposite}):
            if name != "none":
                rows += [(ids, as_stored.chosen), (ids, as_stored.rejected)]
    found = scorer.logps(model, CompletionList(rows), "Contrast").logps.reshape(-1, 2, 2)
    raised: np.ndarray = found[:, 0] - found[:, 1]
    result: np.ndarray = raised[:, 0] - raised[:, 1]
    return result


def score(given: argparse.Namespace, pairs: Sequence[Pair]) -> None:
    """Store what isn't stored yet, until the time is up."""
    path, end = given.results / CONTRASTS, time.monotonic() + 60 * given.minutes
    done = {(line["wording"], line["key"]) for line in stored(path)}
    if all((wording, key_of(pair)) in done for wording in given.wordings for pair in pairs):
        return
    model, tokenizer = load(given.model, torch.bfloat16)
    scorer = scorer_on("cpu", shares=True)
    with inference(model):
        for wording in given.wordings:
            left = [pair for pair in pairs if (wording, key_of(pair)) not in done]
            for start in range(0, len(left), CHUNK):
                if time.monotonic() > end:
                    return
                some = left[start : start + CHUNK]
                found = contrasts(scorer, model, tokenizer, some, WORDINGS[wording])
                append(
                    path,
                    [
                        {"wording": wording, "key": key_of(pair), "contrast": round(float(v), 3)}
                        for pair, v in zip(some, found, strict=True)
                    ],
                )


@dataclass(frozen=True)
class Drawn:
    """What the gate made of one draw of pairs and labels; NaN where the signal says nothing.

    Attributes:
        opened: whether it is open.
        agreement: how likely the signal takes a label to be right, mean.
        wrong: the estimated share of wrong labels.
        right: share of the weight that lies on right labels, if the gate were open.
        effective: pairs that count, of all, with the weights that the round has.
    """

    opened: bool
    agreement: float
    wrong: float
    right: float
    effective: float


def draw(pairs: Sequence[Pair], signal: Mapping[str, float], noise: Noise, seed: int) -> Drawn:
    """Turn labels and judge them.

    Args:
        pairs: those drawn.
        signal: their contrasts by ``key_of``.
        noise: how labels are turned.
        seed: of the labels and of which are checked.
    """
    trusted = checked(len(pairs), noise, seed) if noise.checked else None
    wrong = np.array(turned(pairs, noise, seed))
    scores = np.array([seen(pair, one, signal) for pair, one in zip(pairs, wrong, strict=True)])
    settings = SelectionConfig(by=["external"], use="weight", gate=False)
    found = believe(settings, scores * 0, {"external": scores}, trusted=trusted)
    weight, error = found.weight, found.error
    return Drawn(
        found.verdict.open,
        found.verdict.agreement,
        error.value if error is not None else float("nan"),
        float(weight[~wrong].sum() / weight.sum()),
        found.effective if found.verdict.open else 1.0,
    )


def rows(name: str, pairs: Sequence[Pair], signal: Mapping[str, float]) -> Iterator[list[str]]:
    """A row for each number of pairs and of trusted ones and kind of labels.

    Args:
        name: the wording.
        pairs: those to draw from.
        signal: their contrasts by ``key_of``.
    """
    kinds = [(labels, noise) for labels, noise in NOISES.items() if not noise.checked]
    for count, (labels, noise), trusted in product((512, len(pairs)), kinds, CHECKED):
        noise = replace(noise, checked=trusted)
        found = [draw(drawn(pairs, count, seed), signal, noise, seed) for seed in range(DRAWS)]

        def average(part: str, digits: int = 0, found: list[Drawn] = found) -> str:
            return f"{np.mean([getattr(one, part) for one in found]):.{digits}%}"

        opened = f"{sum(one.opened for one in found)} of {DRAWS}"
        yield [
            name, labels, str(count), str(trusted or "–"), opened, average("agreement", 1),
            average("wrong"), average("right"), average("effective"),
        ]  # fmt: skip


def text(results: Path, pairs: Sequence[Pair]) -> str:
    """The Markdown between the markers."""
    heads = ["wording", "labels", "pairs", "trusted", "gate opened", "labels given, mean"]
    heads += ["wrong labels, estimated", "weight on right labels, if open", "pairs that count"]
    said, found = [], []
    for wording in WORDINGS:
        signal = contrasts_of(results, wording)
        some = [pair for pair in pairs if key_of(pair) in signal]
        if len(some) < len(pairs):
            said.append(f"{wording}: {len(some)} of {len(pairs)} pairs are scored.")
            continue
        values = np.array([signal[key_of(pair)] for pair in some])
        said.append(
            f"{wording}: right in {right(values):.2f} of {len(some)}, AUC {auc(values):.2f}."
        )
        found += rows(wording, some, signal)
    table = markdown(heads, found) if found else ""
    return "\n\n".join(filter(None, [" ".join(said), table]))


def main() -> None:
    """Score pairs until there are enough or the time is up; write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wordings", nargs="+", choices=WORDINGS, default=list(WORDINGS))
    add_options(parser, pairs=1000)
    given = parser.parse_args()
    pairs = pairs_of(samples(given.results), vader(given.packages))[1][: given.pairs]
    score(given, pairs)
    found = text(given.results, pairs)
    print(found)
    if given.page.is_file():
        fill(given.page, "gates", found)


if __name__ == "__main__":
    main()
