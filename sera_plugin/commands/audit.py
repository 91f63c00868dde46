"""Rank the labels of a preference dataset by how much a trained policy disagrees. No training."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sera_plugin.commands.audit_policy import AuditModels, Trained, find_policy
from sera_plugin.commands.audit_table import (
    Cut,
    cuts,
    ranked,
    write_card,
    write_kept,
    write_results,
)
from sera_plugin.commands.plan import read_yaml
from sera_plugin.data.margins import log_ratios, margins, positions
from sera_plugin.host.checks import in_yaml
from sera_plugin.runtime.errors import RunError, SeraConfigError


@dataclass(frozen=True)
class Request:
    """What an audit is asked for; None stands for the default.

    Attributes:
        config: Axolotl's YAML.
        policy: a trained model.
        adapter: a trained adapter on ``base_model``.
        out: an empty folder, or one that is not there.
        margin: ``sum`` or ``mean``, as in ``sera.selection.margin``.
        truth: a column that says which labels are known to be wrong.
        keep: share of the pairs to write as a cleaned dataset.
    """

    config: Path
    policy: str | None = None
    adapter: str | None = None
    out: Path | None = None
    margin: str = "sum"
    truth: str | None = None
    keep: float | None = None


@dataclass(frozen=True)
class Audit:
    """What an audit found and wrote.

    Attributes:
        folder: where the files are.
        table: the ranked table.
        cuts: what cutting would do.
        trained: the policy that was asked.
        kept: pairs in ``kept.jsonl``, or None.
    """

    folder: Path
    table: Any
    cuts: list[Cut]
    trained: Trained
    kept: int | None


def audit(request: Request) -> Audit:
    """Score the pairs with the policy and its reference, rank them, and write the results.

    Raises:
        SeraConfigError: one sentence.
        RunError: one sentence.
    """
    raw = _read(request.config)
    trained = find_policy(
        str(raw["base_model"]), raw.get("output_dir"), request.policy, request.adapter
    )
    folder = request.out or _free(Path(str(raw.get("output_dir") or "model-out")))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"--out {folder} is there and is not an empty folder; name another.")
    cfg, dataset, tokenizer = _load(request.config, folder)
    pairs = _tokenized(cfg, dataset, tokenizer)
    wrong = None
    if request.truth is not None:
        wrong = _truth(pairs[1], request.truth)
    columns = _scored(cfg, tokenizer, trained, pairs, request.margin)
    beta = float(cfg.rl_beta or 0.1)
    table = ranked(columns, beta)
    order = table["example_id"].to_pylist()
    if wrong is not None:
        wrong = wrong[positions(columns["example_id"], order)]
    found = cuts(table["margin"].to_numpy(), wrong)
    summary = {
        "config": str(request.config),
        "reference": str(cfg.base_model),
        "policy": trained.path,
        "adapter": trained.adapter,
        "margin": request.margin,
        "beta": beta,
        "pairs": table.num_rows,
        "cuts": [vars(cut) for cut in found],
    }
    kept = _write(request, folder, table, found, summary)
    return Audit(folder, table, found, trained, kept)


def _read(path: Path) -> dict[str, Any]:
    raw = read_yaml(path)
    if "base_model" not in raw or "datasets" not in raw:
        raise SeraConfigError(f"{path} is not a config of Axolotl with base_model and datasets.")
    if raw.get("rl") not in ("dpo", "ipo"):
        raise SeraConfigError(
            f"rl: {in_yaml(raw.get('rl'))} can't be audited; allowed are dpo and ipo."
        )
    return raw


def _free(output_dir: Path) -> Path:
    """``<output_dir>-audit``, or with the next number."""
    first = output_dir.with_name(f"{output_dir.name}-audit")
    more = (first.with_name(f"{first.name}-{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([first], more) if not path.exists())


def _load(config: Path, folder: Path) -> tuple[Any, Any, Any]:
    """The host's config, all pairs and the tokenizer."""
    from sera_plugin.host.loading import load_preference_data, read_config, refused_by_host

    with refused_by_host(config):
        # All pairs are audited, and the host writes its log beside the results, not into the run.
        cfg = read_config(config, val_set_size=0, output_dir=str(folder))
        cfg.test_datasets = None
        meta, tokenizer = load_preference_data(cfg)
    return cfg, meta.train_dataset, tokenizer


def _tokenized(cfg: Any, dataset: Any, tokenizer: Any) -> tuple[Any, Any]:
    from sera_plugin.data.pairs import OfflinePairs
    from sera_plugin.host.loading import tokenized

    if len(dataset) == 0:
        raise SeraConfigError(
            f"datasets: no pairs are left, after those longer than sequence_len: "
            f"{cfg.sequence_len}."
        )
    rows = tokenized(dataset, tokenizer, cfg.sequence_len)
    if len(rows) == 0:
        raise SeraConfigError(
            f"datasets: no pairs are left whose prompt is below sequence_len: {cfg.sequence_len}."
        )
    return OfflinePairs.of(rows, cfg.sequence_len), rows


def _truth(rows: Any, column: str) -> np.ndarray:
    if column not in rows.column_names:
        there = ", ".join(sorted(rows.column_names))
        raise SeraConfigError(f"--truth {column} is not a column of the dataset: {there}.")
    values = rows.with_format(None)[column][:]
    if not all(isinstance(value, (bool, int)) for value in values):
        raise SeraConfigError(f"--truth {column} must hold true and false.")
    return np.array(values, dtype=bool)


def _scored(
    cfg: Any, tokenizer: Any, trained: Trained, pairs: tuple[Any, Any], kind: str
) -> dict[str, Any]:
    from accelerate import Accelerator

    from sera_plugin.data.pairs import OfflineCompletions
    from sera_plugin.data.texts import text_column
    from sera_plugin.scoring.scorer import Scorer

    offline, rows = pairs
    accelerator = Accelerator(mixed_precision="bf16" if cfg.bf16 is True else "no")
    budget = 2 * int(cfg.micro_batch_size or 1) * int(cfg.sequence_len)
    scorer = Scorer(accelerator, tokenizer.pad_token_id, cfg.sequence_len, budget)
    models = AuditModels(cfg, tokenizer, accelerator, trained)
    found = {}
    for name, model in (("reference", models.reference), ("policy", models.policy)):
        with model() as forward:
            done = scorer.logps(forward, OfflineCompletions(offline), f"Scoring with the {name}")
        found[name] = offline.pair_logps(done.logps)
    ratios = log_ratios(found["policy"], found["reference"])
    own = margins(ratios, offline.chosen_tokens, offline.rejected_tokens, kind)
    if not np.isfinite(own).any():
        raise SeraConfigError("no pair has finite log-probs under both models.")
    stored = rows.with_format("arrow")[:]
    texts = {
        name: text_column(stored, name, tokenizer.decode).to_pylist()
        for name in ("prompt", "chosen", "rejected")
    }
    known = {
        "example_id": list(offline.ids),
        "margin": own,
        "chosen_log_ratio": ratios.chosen,
        "rejected_log_ratio": ratios.rejected,
        "policy_chosen_logp": found["policy"].chosen,
        "policy_rejected_logp": found["policy"].rejected,
        "chosen_tokens": offline.chosen_tokens,
        "rejected_tokens": offline.rejected_tokens,
        **texts,
    }
    return known | _own_columns(rows, set(known))


def _own_columns(rows: Any, known: set[str]) -> dict[str, Any]:
    """The dataset's own columns of words, numbers and truth values, to find its rows again."""
    features = rows.features
    simple = [name for name in rows.column_names if _simple(getattr(features[name], "dtype", ""))]
    return {name: rows[name][:] for name in simple if name not in known | {"rank"}}


def _simple(dtype: str) -> bool:
    return dtype in ("string", "large_string", "bool") or dtype.startswith(("int", "uint", "float"))


def _write(
    request: Request, folder: Path, table: Any, found: list[Cut], summary: dict[str, Any]
) -> int | None:
    from sera_plugin.commands.report.audit_page import audit_page
    from sera_plugin.commands.report.page import write_page

    kept = None
    try:
        write_results(table, folder, summary)
        if request.keep is not None:
            kept = write_kept(table, request.keep, folder / "kept.jsonl")
        write_card(folder, kept=kept is not None)
    except OSError as error:
        raise RunError(f"{folder} can't be written ({error.strerror or error}).") from error
    write_page(audit_page(table, found, summary, request.truth), folder / "report.html")
    return kept
