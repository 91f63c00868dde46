"""Loading the pairs through the host, with its obscure errors turned into sentences.

Stands apart from ``host``, which imports the trainers: these must not be imported before Axolotl
has patched TRL, and it does that after the datasets are loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sera_plugin.config import SeraConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_preference_data(cfg: Any) -> tuple[Any, PreTrainedTokenizerBase]:
    """The datasets that Axolotl would load by itself (``TrainDatasetMeta``), and the tokenizer.

    Raises:
        SeraConfigError: one sentence, when a file holds no rows or the validation split takes all.
    """
    from axolotl.common.datasets import load_preference_datasets
    from axolotl.loaders import load_tokenizer

    try:
        meta = load_preference_datasets(cfg=cfg)
    except (StopIteration, ValueError) as error:
        # `datasets` has no words of its own for a text file without rows.
        if isinstance(error, StopIteration) or "corresponds to no data" in str(error):
            entries = [*(cfg.datasets or ()), *(cfg.test_datasets or ())]
            paths = ", ".join(str(entry.get("path")) for entry in entries)
            raise SeraConfigError(
                f"datasets: no rows in {paths}, or in one of them; sera needs 2 or more pairs."
            ) from error
        if "n_samples" in str(error):
            raise SeraConfigError(
                f"val_set_size: {cfg.val_set_size} leaves no pairs to train on; use a smaller "
                "share or number, or more pairs."
            ) from error
        raise
    return meta, load_tokenizer(cfg)
