"""The trainer that Axolotl builds when a config has a ``sera:`` block."""

from __future__ import annotations

from typing import Any

from transformers import set_seed

from sera_plugin.config import parse_block
from sera_plugin.host.models import plugin_config
from sera_plugin.host.round_trainer import RoundTrainer
from sera_plugin.runtime.endings import end_with_sentences
from sera_plugin.runtime.errors import AskedToStop, SeraConfigError, SeraError
from sera_plugin.runtime.logs import logger
from sera_plugin.training.checkpoints import EXIT_CODE, how_to_resume
from sera_plugin.training.rounds import ReviewedRounds

LOG = logger(__name__)

PAPER = {
    "title": "SeRA: Self-Reviewing and Alignment of Large Language Models using Implicit Reward "
    "Margins",
    "id": "2410.09362",
    "citation": """@misc{ko2024sera,
    title         = {{SeRA: Self-Reviewing and Alignment of Large Language Models using Implicit \
Reward Margins}},
    author        = {Jongwoo Ko and Saket Dingliwal and Bhavana Ganesh and Sailik Sengupta and \
Sravan Bodapati and Aram Galstyan},
    year          = 2024,
    eprint        = {2410.09362},
    archivePrefix = {arXiv}
}""",
}


class SeRATrainer(RoundTrainer):
    """DPO or IPO on a dataset that is reviewed and renewed before every round."""

    rounds: ReviewedRounds

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        end_with_sentences()
        cfg = plugin_config()
        block: Any = cfg.sera if cfg is not None else None
        config = parse_block(block.to_dict() if hasattr(block, "to_dict") else block)
        if config is None:
            raise SeraConfigError(
                "trainer_cls: sera_plugin.trainer.SeRATrainer can't train alone; list "
                "sera_plugin.SeRAPlugin under plugins: and write a sera: block, or remove "
                "trainer_cls."
            )
        # TRL draws a new adapter's weights before the host's trainer seeds itself.
        set_seed(int(cfg.seed))
        if config.reviews:
            self.name_method("SeRA", ["sera"], PAPER)
        super().__init__(*args, **kwargs)
        self.rounds = ReviewedRounds(config, self)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().train(*args, **kwargs)
        except SeraError:
            end_with_sentences()  # loggers that were started since have hooks of their own
            raise
        except AskedToStop:
            self.ensure_checkpoint()
            LOG.warning("%s", how_to_resume(plugin_config(), self.state.global_step))
            raise SystemExit(EXIT_CODE) from None
        finally:
            self.rounds.leave()
