"""The data of a round as a dataset that plain DPO trains on, with a dataset card. No torch here."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from sera_plugin.data.reader import RunFiles, StoredRound, read_json_lines
from sera_plugin.runtime.errors import RunError, first_line

OFFLINE, FRESH = "offline", "bootstrapped"
FILES = {"axolotl": "train.jsonl", "trl": "train.parquet"}
COLUMNS = {
    "prompt": "text under the chat template, special tokens included",
    "chosen": "the better answer, with its ending",
    "rejected": "the worse answer",
    "source": "`offline` for a pair of the original dataset, `bootstrapped` for a new one",
    "example_id": "the offline pair, or the one whose prompt was answered",
    "margin": "ensembled margin in nats (offline), difference in reward (bootstrapped)",
    "swapped": "whether chosen and rejected have changed places",
    "chosen_source": "`offline_chosen`, `offline_rejected` or `policy` (sampled)",
    "rejected_source": "the same for the rejected answer",
}
_SCHEMA = pa.schema(
    [
        (name, {"margin": pa.float64(), "swapped": pa.bool_()}.get(name, pa.string()))
        for name in COLUMNS
    ]
)


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: with the data file and README.md, the dataset card.
        counts: rows by source.
    """

    folder: Path
    counts: Mapping[str, int]


def export_round(run: RunFiles, number: int, form: str, out: Path) -> Exported:
    """Write the data of a round.

    Args:
        run: the run.
        number: the round.
        form: ``axolotl`` (JSON lines) or ``trl`` (parquet).
        out: a folder that is empty or not there.

    Raises:
        RunError: one sentence.
    """
    stored = run.round(number)
    rows = list(_rows(run, stored))
    if not rows:
        raise RunError(f"--round {number} holds no pairs.")
    counts = Counter(row["source"] for row in rows)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"--out {out} is there and is not an empty folder; name another.")
    building = out.with_name(f".{out.name}.tmp")
    try:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        if form == "axolotl":
            with open(building / FILES[form], "w", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), building / FILES[form])
        card = dataset_card(run, stored, form, rows, out)
        (building / "README.md").write_text(card, encoding="utf-8")
        if out.exists():
            out.rmdir()
        os.replace(building, out)
    except OSError as error:
        raise RunError(f"{out} can't be written ({error.strerror or error}).") from error
    return Exported(out, counts)


def _rows(run: RunFiles, stored: StoredRound) -> Iterator[dict[str, Any]]:
    """The rows of a round in training order; those of a warm-up round in the order of D."""
    texts = run.pairs(["example_id", "prompt", "chosen", "rejected"])
    if texts is None:
        raise RunError(
            f"{run.root} has no pairs.parquet, which runs of this version keep, so the texts of "
            "its offline pairs are not known; only round-NN/bootstrapped.jsonl can be used."
        )
    pairs = {row["example_id"]: row for row in texts.to_pylist()}
    if not stored.reviewed:
        for example_id in pairs:
            yield _offline(pairs, example_id, None, swapped=False)
        return
    review = stored.table("margins.parquet", ["example_id", "ensembled_margin"]).to_pydict()
    margins = dict(zip(review["example_id"], review["ensembled_margin"], strict=True))
    fresh = {pair["example_id"]: pair for pair in read_json_lines(stored.fresh_path)}
    for row in stored.table("rows.parquet").to_pylist():
        example_id = row["example_id"]
        if row["chosen_ids"] is None:
            swapped = bool(row.get("flipped"))
            yield _offline(pairs, example_id, margins.get(example_id), swapped=swapped)
        elif example_id not in fresh:
            raise RunError(f"{stored.fresh_path} lacks the new pair of {example_id}.")
        else:
            yield _fresh(fresh[example_id])


def _offline(
    pairs: Mapping[str, Any], example_id: str, margin: float | None, *, swapped: bool
) -> dict[str, Any]:
    if example_id not in pairs:
        raise RunError(f"pairs.parquet lacks the pair {example_id}.")
    pair = pairs[example_id]
    sides = ("rejected", "chosen") if swapped else ("chosen", "rejected")
    return {
        "prompt": pair["prompt"],
        "chosen": pair[sides[0]],
        "rejected": pair[sides[1]],
        "source": OFFLINE,
        "example_id": example_id,
        "margin": margin,
        "swapped": swapped,
        "chosen_source": f"offline_{sides[0]}",
        "rejected_source": f"offline_{sides[1]}",
    }


def _fresh(pair: Mapping[str, Any]) -> dict[str, Any]:
    names = ("prompt", "chosen", "rejected", "example_id", "margin")
    sources = ("chosen_source", "rejected_source")
    return {
        **{name: pair[name] for name in names},
        "source": FRESH,
        "swapped": False,
        **{name: pair[name] for name in sources},
    }


_TRAIN = {
    "axolotl": """```yaml
rl: dpo
datasets:
  - path: {path}
    ds_type: json
    split: train
```

No `type:`, because the texts hold the template already.""",
    "trl": """```python
from datasets import load_dataset
from trl import DPOTrainer

train = load_dataset("parquet", data_files="{path}", split="train")
columns = ["prompt", "chosen", "rejected"]
trainer = DPOTrainer(model, args=args, processing_class=tokenizer,
                     train_dataset=train.select_columns(columns))
```

Take the tokenizer of the base model: the texts hold its chat template already.""",
}


def dataset_card(
    run: RunFiles, stored: StoredRound, form: str, rows: list[dict[str, Any]], folder: Path
) -> str:
    """The card: counts, settings, columns, and how to train on the data."""
    front = {
        "pretty_name": f"SeRA round {stored.number}",
        "tags": ["preference", "dpo", "sera", form],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": FILES[form]}],
            }
        ],
    }
    sources = Counter(row["source"] for row in rows)
    ids = [row["example_id"] for row in rows if row["source"] == OFFLINE]
    counts = {
        "pairs": len(rows),
        "offline": sources[OFFLINE],
        "of these repeated": len(ids) - len(set(ids)),
        "of these with swapped labels": sum(row["swapped"] for row in rows),
        "bootstrapped": sources[FRESH],
        "offline pairs of the run": run.settings.get("pairs", "unknown"),
    }
    how = (
        "A review of the data by the policy composed this round: the offline pairs that it kept "
        "and new pairs made from its own answers, in the order of training."
        if stored.reviewed
        else "A warm-up round: all offline pairs."
    )
    settings = yaml.safe_dump({"sera": run.settings["sera"]}, sort_keys=False)
    keys = ("base_model", "loss_type", "beta", "seed", "sequence_len", "dataset_hash")
    facts = yaml.safe_dump(
        {key: run.settings[key] for key in keys if key in run.settings}, sort_keys=False
    )
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n",
            f"# Round {stored.number} of a SeRA run\n",
            f"{how} Written by sera_plugin {run.settings.get('sera_plugin', '')} for "
            f"[Axolotl](https://github.com/axolotl-ai-cloud/axolotl).\n",
            "| Rows | |\n| --- | --- |",
            *(f"| {name} | {count} |" for name, count in counts.items()),
            "\n| Column | |\n| --- | --- |",
            *(f"| `{name}` | {meaning} |" for name, meaning in COLUMNS.items()),
            "\n## Training\n",
            _TRAIN[form].format(path=folder / FILES[form]),
            "\nTrainers add the end-of-text token to an answer that lacks it, which only sampled "
            "answers that were cut do; these are always rejected.\n",
            "## Settings of the run\n",
            f"```yaml\n{facts}{settings}```\n",
            "Offline pairs keep the licence of the dataset that they come from.\n",
        ]
    )


def push(folder: Path, repository: str, *, private: bool) -> str:
    """Upload an exported folder to the Hugging Face Hub, and return its address.

    Raises:
        RunError: one sentence, if the hub refuses or can't be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi()
    try:
        url = api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, repo_type="dataset", folder_path=folder)
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise RunError(
            f"--push-to-hub {repository}: {first_line(error).rstrip('.')}; the dataset is in "
            f"{folder}."
        ) from error
    return str(url)
