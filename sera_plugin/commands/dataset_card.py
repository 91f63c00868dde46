"""The card of an exported round: counts, settings, columns, how to train on it. No torch here."""

from __future__ import annotations

from collections import Counter
from typing import Any

import yaml

from sera_plugin.data.columns import ExportedPairs
from sera_plugin.data.reader import RunFiles, StoredRound

OFFLINE, BOOTSTRAPPED = "offline", "bootstrapped"
FILES = {"axolotl": "train.jsonl", "trl": ExportedPairs.file}

_TRAIN = {
    "axolotl": """```yaml
rl: dpo
datasets:
  - path: {source}
    split: train
```

No `type:`, because the texts hold the template already.""",
    "trl": """```python
from datasets import load_dataset
from trl import DPOTrainer

train = load_dataset({source}, split="train")
columns = ["prompt", "chosen", "rejected"]
trainer = DPOTrainer(model, args=args, processing_class=tokenizer,
                     train_dataset=train.select_columns(columns))
```

Take the tokenizer of the base model: the texts hold its chat template already.""",
}


def dataset_card(
    run: RunFiles,
    stored: StoredRound,
    form: str,
    rows: list[dict[str, Any]],
    repository: str | None,
) -> str:
    """The card: counts, settings, columns, and how to train on the data.

    Args:
        run: the run.
        stored: the round.
        form: a key of ``FILES``.
        rows: the exported rows.
        repository: where the dataset is uploaded, or None.
    """
    how = (
        "A review of the data by the policy composed this round: the offline pairs that it kept "
        "and new pairs made from its own answers, in the order of training."
        if stored.reviewed
        else "A warm-up round: all offline pairs."
    )
    if any(row[ExportedPairs.WEIGHT] != 1 for row in rows):
        how += (
            " The run weighed the loss of its pairs by the column `weight`; trainers that don't "
            "look at it count all pairs alike."
        )
    settings = yaml.safe_dump({"sera": run.settings["sera"]}, sort_keys=False)
    keys = ("base_model", "loss_type", "beta", "seed", "sequence_len", "dataset_hash")
    facts = yaml.safe_dump(
        {key: run.settings[key] for key in keys if key in run.settings}, sort_keys=False
    )
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(_front(stored, form), sort_keys=False)}---\n",
            f"# Round {stored.number} of a SeRA run\n",
            f"{how} Written by sera_plugin {run.settings.get('sera_plugin', '')} for "
            f"[Axolotl](https://github.com/axolotl-ai-cloud/axolotl).\n",
            "| Rows | |\n| --- | --- |",
            *(f"| {name} | {count} |" for name, count in _counts(run, rows).items()),
            "\n| Column | |\n| --- | --- |",
            *(f"| `{column}` | {column.meaning} |" for column in ExportedPairs),
            "\n## Training\n",
            _training(form, repository),
            "\nTrainers add the end-of-text token to an answer that lacks it, which only sampled "
            "answers that were cut do; these are always rejected.\n",
            "## Settings of the run\n",
            f"```yaml\n{facts}{settings}```\n",
            "Offline pairs keep the licence of the dataset that they come from.\n",
        ]
    )


def _front(stored: StoredRound, form: str) -> dict[str, Any]:
    """The YAML ahead of the card, which the hub reads."""
    return {
        "pretty_name": f"SeRA round {stored.number}",
        "tags": ["preference", "dpo", "sera", form],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": FILES[form]}],
            }
        ],
        # Or a column of nulls, as the margins of a warm-up round, has no type.
        "dataset_info": {
            "features": [
                {"name": column.value, "dtype": str(column.type).replace("double", "float64")}
                for column in ExportedPairs
            ]
        },
    }


def _counts(run: RunFiles, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How many pairs of which kind the exported rows are."""
    sources = Counter(row[ExportedPairs.SOURCE] for row in rows)
    return {
        "pairs": len(rows),
        "offline": sources[OFFLINE],
        "of these with swapped labels": sum(row[ExportedPairs.SWAPPED] for row in rows),
        "bootstrapped": sources[BOOTSTRAPPED],
        "filled, of all these": sum(row[ExportedPairs.FILLED] for row in rows),
        "offline pairs of the run": run.settings.get("pairs", "unknown"),
        "training pairs held out, none of them here": run.settings.get("held_out") or 0,
    }


def _training(form: str, repository: str | None) -> str:
    file = FILES[form]
    local = {"axolotl": f"{file}\n    ds_type: json", "trl": f'"parquet", data_files="{file}"'}
    hub = {"axolotl": repository, "trl": f'"{repository}"'}
    where = "" if repository else f"\n\nThe path of `{file}` is that from the folder of this card."
    return _TRAIN[form].format(source=(hub if repository else local)[form]) + where
