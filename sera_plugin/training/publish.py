"""Bootstrapped pairs as text that Axolotl can train on again, and the record of a run."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedTokenizerBase

from sera_plugin.data.ids import dataset_hash
from sera_plugin.data.pairs import OfflinePairs
from sera_plugin.host.models import plugin_config
from sera_plugin.review.pairing import Candidate
from sera_plugin.review.review import Review
from sera_plugin.runtime.version import __version__
from sera_plugin.training.changes import batch_settings


def fresh_lines(
    review: Review, pairs: OfflinePairs, tokenizer: PreTrainedTokenizerBase, beta: float
) -> Iterator[dict[str, Any]]:
    """The round's bootstrapped pairs as rows with ``prompt``, ``chosen``, ``rejected`` text.

    The text holds the template's special tokens, so Axolotl trains on it with a dataset entry
    that has no ``type``. Each row also has its example id, margin, rewards and all candidates.
    """
    penalty = review.bootstrapped.penalty
    for pair in review.composition.fresh:
        row = pairs.dataset[pairs.position[pair.example_id]]

        def text(candidate: Candidate) -> str:
            return str(tokenizer.decode(list(candidate.token_ids), skip_special_tokens=False))

        prompt = row.get("prompt")
        if not isinstance(prompt, str):
            prompt = tokenizer.decode(row["prompt_ids"], skip_special_tokens=False)
        yield {
            "prompt": prompt,
            "chosen": text(pair.chosen),
            "rejected": text(pair.rejected),
            "example_id": pair.example_id,
            "round": review.size.number,
            "margin": pair.margin,
            "reward_chosen": pair.chosen.reward(beta, penalty),
            "reward_rejected": pair.rejected.reward(beta, penalty),
            "chosen_source": pair.chosen.source.value,
            "rejected_source": pair.rejected.source.value,
            "candidates": [
                {
                    "text": text(candidate),
                    "source": candidate.source.value,
                    "finished": candidate.finished,
                    "tokens": len(candidate.token_ids),
                    "log_ratio": candidate.log_ratio,
                    "reward": candidate.reward(beta, penalty),
                }
                for candidate in pair.pool.candidates
            ],
        }


def candidate_rows(review: Review, beta: float) -> Iterator[dict[str, Any]]:
    """Every answer that competed in a round, and whether its prompt gave a pair to the round."""
    used = {pair.example_id for pair in review.composition.fresh}
    for pool in review.bootstrapped.pools:
        for candidate in pool.candidates:
            yield {
                "example_id": pool.example_id,
                "source": candidate.source.value,
                "finished": candidate.finished,
                "token_ids": list(candidate.token_ids),
                "policy_logp": candidate.policy_logp,
                "reference_logp": candidate.reference_logp,
                "log_ratio": candidate.log_ratio,
                "reward": candidate.reward(beta, review.bootstrapped.penalty),
                "judge_score": candidate.verdict.score if candidate.verdict else None,
                "in_round": pool.example_id in used,
            }


def run_settings(trainer: Any) -> dict[str, Any]:
    """What a run was started with."""
    schedule = trainer.schedule
    return {
        "sera_plugin": __version__,
        "axolotl": importlib.metadata.version("axolotl"),
        "trl": importlib.metadata.version("trl"),
        "sera": trainer.sera.model_dump(),
        "quality_prompt": trainer.refiner.quality_prompt if trainer.refiner else None,
        "base_model": str(plugin_config().base_model),
        "sequence_len": trainer.args.max_length,
        "loss_type": list(trainer.loss_types),
        "beta": trainer.beta,
        "seed": trainer.args.seed,
        "pairs": len(trainer.pairs),
        "dataset_hash": dataset_hash(trainer.pairs.ids),
        "ending_token_ids": list(trainer.sampling.ending),
        "rounds": [
            {"round": size.number, "kept": size.kept, "bootstrapped": size.bootstrapped}
            for size in schedule.rounds
        ],
        "updates": list(schedule.updates),
        "max_steps": schedule.max_steps,
        "distributed": str(trainer.accelerator.distributed_type.value),
        **batch_settings(
            trainer.batching.per_device, trainer.batching.accumulation, trainer.batching.ranks
        ),
    }
