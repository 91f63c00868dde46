"""Runs on disk, written with the run's own store, for the commands that read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sera_plugin.data.columns import Pairs
from sera_plugin.data.margins import PairLogps
from sera_plugin.data.rounds import RoundRow
from sera_plugin.data.store import RunStore
from sera_plugin.data.tables import ReviewTable, RoundRecord
from sera_plugin.data.texts import LOG_FILE

HOSTILE = (
    "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
    " {{ 7 * 7 }} \u2028 \u202e\x00\x07\x1b[31m ${alert(1)} &lt;b&gt;"
)


LIMITS = {"max_drift": 0.5, "max_length_correlation": 0.3}
"""Limits of the guard in the runs below."""


def texts(count: int, words: int = 6) -> list[dict[str, str]]:
    """Pairs whose texts name their number; pair 1 is hostile."""
    draw = np.random.default_rng(0)
    lexicon = np.array(["river", "stone", "cloud", "green", "quick", "brown", "lazy", "happy"])
    rows = []
    for number in range(count):
        said = [" ".join(draw.choice(lexicon, words)) for _ in range(3)]
        rows.append(
            {
                "prompt": f"question{number} {said[0]}",
                "chosen": f"good{number} {said[1]}<end>",
                "rejected": f"bad{number} {said[2]}<end>",
            }
        )
    if count > 1:
        rows[1] = {name: f"hostile {text} {HOSTILE}" for name, text in rows[1].items()}
    return rows


def write_run(
    output_dir: Path,
    count: int = 40,
    reviews: int = 2,
    *,
    words: int = 6,
    finished: bool = True,
    pairs: bool = True,
    evaluated: bool = False,
    filled: int = 0,
    signals: bool = False,
) -> Path:
    """A run of one warm-up round and ``reviews`` reviewed ones; returns its ``output_dir``.

    With ``evaluated`` each round ends with an evaluation; ``filled`` rows of each reviewed round
    are kept pairs again in the place of bootstrapped ones; with ``signals`` the guard and
    selection have measured some.
    """
    store, draw = RunStore(output_dir), np.random.default_rng(1)
    said = texts(count, words)
    ids = tuple(f"id{number:06d}" for number in range(count))
    keep, planned = round(0.7 * count), round(0.3 * count)
    sizes = [(1, count, 0), *((n + 2, keep, planned) for n in range(max(reviews, 1)))]
    store.start()
    store.write_run(
        {
            "sera": {"ensemble": 0.3, "bootstrap": {"guard": {"enabled": True, **LIMITS}}},
            "base_model": "tiny",
            "pairs": count,
            "ranks": 2,
            "rounds": [{"round": n, "kept": k, "bootstrapped": b} for n, k, b in sizes],
            "updates": [5] * len(sizes),
            "max_steps": 5 * len(sizes),
        }
    )
    if pairs:
        columns: dict[str, Any] = {"example_id": list(ids)}
        for name in ("prompt", "chosen", "rejected"):
            columns[name] = [row[name] for row in said]
            columns[f"{name}_tokens"] = [len(row[name].split()) for row in said]
        pq.write_table(pa.table(columns, schema=Pairs.arrow()), store.root / Pairs.file)
    log = [{"step": n, "loss": 1 / n, "learning_rate": 1e-4 / n} for n in range(1, 6)]
    if evaluated:
        log += [
            {"step": 5 * n, "eval_loss": 0.7 - 0.01 * n, "eval_rewards/accuracies": 0.5 + 0.1 * n}
            for n in range(1, 2 + reviews)
        ]
    (store.root / LOG_FILE).write_text(json.dumps(log))
    store.update_summary(1, {"kept": float(count), "seconds_training": 1.0})
    for number, kept_count, made in sizes[1 : 1 + reviews]:
        logps = PairLogps(ids, draw.normal(-20, 3, count), draw.normal(-20, 3, count))
        margin = draw.normal(0.5, 1, count)
        kept = np.zeros(count, dtype=bool)
        kept[np.argsort(-margin)[:kept_count]] = True
        swapped = np.zeros(count, dtype=bool)
        table = ReviewTable(
            *(ids, logps, logps, margin, margin, kept, margin, swapped),
            np.full(len(ids), number - 1, dtype=np.int32),
            {"length": draw.normal(0, 2, count), "surprise": draw.normal(3, 1, count)}
            if signals
            else {},
        )
        fresh = made - filled
        rows = [RoundRow(f"{ids[i]}/offline", ids[i]) for i in np.flatnonzero(kept)]
        rows += [RoundRow(f"{ids[i]}/offline/2", ids[i]) for i in np.argsort(-margin)[:filled]]
        rows += [
            RoundRow(f"{ids[i]}/policy", ids[i], (1, 2, 3), (4, 2), -1.0, -2.0)
            for i in range(fresh)
        ]
        lines = [_fresh(ids[i], said[i], number, 0.1 * i) for i in range(fresh)]
        summary = {
            "round": float(number),
            "kept": float(kept_count),
            "bootstrapped": float(fresh),
            "filled": float(filled),
            "threshold": float(margin[kept].min()),
            "accuracy_train": float(np.mean(margin > 0)),
            "kl_policy_samples": 0.1 * number,
            "seconds_scoring": 2.0,
        }
        if evaluated:
            summary["accuracy_eval"] = 0.5 + 0.1 * (number - 1)
        if signals:
            summary |= {"guard_drift": 0.3 * number, "guard_length_correlation": -0.4}
        store.write_round(number, RoundRecord(table, rows), lines, summary)
        if finished or number <= reviews:
            store.update_summary(number, {"seconds_training": 1.5})
    return output_dir


def _fresh(example_id: str, pair: dict[str, str], number: int, margin: float) -> dict[str, Any]:
    sampled = f"sampled {pair['chosen']}"
    return {
        "prompt": pair["prompt"],
        "chosen": sampled,
        "rejected": pair["rejected"],
        "example_id": example_id,
        "round": number,
        "margin": margin,
        "reward_chosen": margin,
        "reward_rejected": 0.0,
        "chosen_source": "policy",
        "rejected_source": "offline_rejected",
        "candidates": [
            {"text": text, "source": source, "finished": True, "tokens": 5, "log_ratio": 1.0,
             "reward": reward}
            for text, source, reward in (
                (sampled, "policy", margin),
                (pair["chosen"], "offline_chosen", margin / 2),
                (pair["rejected"], "offline_rejected", 0.0),
            )
        ],
    }  # fmt: skip
