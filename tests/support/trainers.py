"""The host's trainer without Axolotl's command line, on a few pairs for the tiny Llama."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import assets
import slow_reference as slow
import torch
from axolotl.core.trainers.dpo.args import AxolotlDPOConfig
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from sera_plugin.host.round_trainer import RoundTrainer


def round_trainer(
    llama: Path,
    folder: Path,
    loss: str,
    *,
    pairs: int,
    beta: float,
    smoothing: float,
    model: torch.nn.Module | None = None,
    **args: Any,
) -> RoundTrainer:
    """A trainer whose model is in training mode and whose reference log-probs are stored.

    Args:
        llama: folder of the model and its tokenizer.
        folder: where the trainer may write.
        loss: TRL's name of it.
        pairs: how many pairs it has.
        beta: of the loss.
        smoothing: of the labels, where the loss is ``robust``.
        model: what is trained; by default the one in ``llama``.
        args: more of the host's arguments.
    """
    rows = [
        {
            "prompt": slow.llama_text(row["messages"]),
            "chosen": slow.llama_answer(row["chosen"]["content"]),
            "rejected": slow.llama_answer(row["rejected"]["content"]),
        }
        for row in assets.pairs(pairs)
    ]
    given = AxolotlDPOConfig(
        output_dir=str(folder),
        loss_type=[loss],
        label_smoothing=smoothing if loss == "robust" else 0.0,
        beta=beta,
        use_cpu=True,
        report_to=[],
        bf16=False,
        precompute_ref_log_probs=True,
        remove_unused_columns=False,
        **args,
    )
    made = RoundTrainer(
        model=AutoModelForCausalLM.from_pretrained(llama) if model is None else model,
        args=given,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(llama),
    )
    made.model.train()
    return made
