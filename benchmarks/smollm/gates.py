"""What the gate of ``preset: contrast`` does on pairs of the task with wrong labels, untrained.

python -m benchmarks.smollm.gates [--wordings tone] [--minutes 60]

The contrast of every training pair under the starting model is stored, going on where it stopped.
Labels are then turned 40 times as in ``grid``, and the package's own calibration and gate see them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase as Tokenizer

from benchmarks.smollm.analysis import auc, right
from benchmarks.smollm.grid import TONE
from benchmarks.smollm.labels import NOISES, drawn, turned
from benchmarks.smollm.model import load
from benchmarks.smollm.page import fill, markdown
from benchmarks.smollm.sentiment import Pair, pairs_of, vader
from benchmarks.smollm.signals import PROMPTS, prompts
from benchmarks.smollm.task import append, key_of, stored
from benchmarks.smollm.task_signals import add_options, as_pair, samples
from sera_plugin.config.contrast import ContrastPrompts
from sera_plugin.review.calibration import Calibration, weights
from sera_plugin.review.gate import gate
from sera_plugin.scoring.scorer import CompletionList, Scorer, inference

STORED = "sentiment-contrast.jsonl"
WORDINGS = {"tone": ContrastPrompts.model_validate(TONE), "built-in": PROMPTS["user"]}
CHUNK = 16
DRAWS = 40
"""Times that labels are turned."""


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
    path, end = given.results / STORED, time.monotonic() + 60 * given.minutes
    done = {(line["wording"], line["key"]) for line in stored(path)}
    model, tokenizer = load(given.model, torch.bfloat16)
    scorer = Scorer(Accelerator(cpu=True), tokenizer.pad_token_id, None, 2048, shares=True)
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


def rows(name: str, pairs: Sequence[Pair], signal: Mapping[str, float]) -> Iterator[list[str]]:
    """A row for each number of pairs and kind of labels.

    Args:
        name: the wording.
        pairs: those to draw from.
        signal: their contrasts by ``key_of``.
    """
    for count in (512, len(pairs)):
        for labels, noise in NOISES.items():
            opened, agreement, share, believed = 0, [], [], []
            for seed in range(DRAWS):
                some = drawn(pairs, count, seed)
                wrong = np.array(turned(some, noise, seed))
                scores = np.array([signal[key_of(pair)] for pair in some])
                scores = np.where(wrong, -scores, scores)
                fit = Calibration.fit(scores)
                verdict = gate(scores, fit)
                opened += verdict.open
                agreement.append(verdict.agreement)
                if fit is not None and verdict.error is not None:
                    share.append(verdict.error.value)
                    weight = weights(fit.posterior(scores))
                    believed.append(float(weight[~wrong].sum() / weight.sum()))
            yield [
                name, labels, str(count), f"{opened} of {DRAWS}", f"{np.mean(agreement):.1%}",
                f"{np.mean(share):.0%}", f"{np.mean(believed):.0%}",
            ]  # fmt: skip


def text(lines: Sequence[dict[str, Any]], pairs: Sequence[Pair]) -> str:
    """The Markdown between the markers."""
    heads = ["wording", "labels", "pairs", "gate opened", "labels given, mean"]
    heads += ["wrong labels, estimated", "weight on right labels, if open"]
    said, found = [], []
    for wording in WORDINGS:
        signal = {line["key"]: line["contrast"] for line in lines if line["wording"] == wording}
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
    found = text(stored(given.results / STORED), pairs)
    print(found)
    if given.page.is_file():
        fill(given.page, "gates", found)


if __name__ == "__main__":
    main()
