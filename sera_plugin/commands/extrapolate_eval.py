"""Loss and accuracy of extrapolated models on a run's evaluation pairs, as the host counts them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sera_plugin.commands.audit_policy import AuditModels, Trained
from sera_plugin.commands.extrapolate_sources import ADAPTER_CONFIG, TrainedRun
from sera_plugin.data.margins import PairLogps, log_ratios, margins
from sera_plugin.data.pairs import OfflineCompletions, OfflinePairs
from sera_plugin.runtime.errors import SeraConfigError

LOSSES: dict[str, tuple[str, Callable[[np.ndarray, float], np.ndarray]]] = {
    "sigmoid": ("sum", lambda margin, beta: np.logaddexp(0, -beta * margin)),
    "hinge": ("sum", lambda margin, beta: np.maximum(0, 1 - beta * margin)),
    "ipo": ("mean", lambda margin, beta: (margin - 1 / (2 * beta)) ** 2),
}
"""For every loss, its kind of margin and its value for a pair, in the host's form."""


@dataclass(frozen=True)
class Evaluated:
    """Numbers of one model.

    Attributes:
        alpha: 0 for the trained model itself.
        loss: mean over the pairs, the host's ``eval_loss``.
        accuracy: mean over the batches of the share of pairs with a margin above 0, the host's
            ``eval_rewards/accuracies``.
        margin: mean over the batches of β·margin, ``eval_rewards/margins``.
    """

    alpha: float
    loss: float
    accuracy: float
    margin: float


def mean_over_batches(values: np.ndarray, batch: int) -> float:
    """The mean of the batches' means, which is how the host averages what it logs.

    Args:
        values: one per pair, shape (n,).
        batch: pairs of a batch; the last one may have fewer.
    """
    parts = np.split(values, range(batch, len(values), batch))
    return float(np.mean([part.mean() for part in parts]))


@dataclass(frozen=True)
class Evaluation:
    """A run's evaluation pairs, and what is needed to score them.

    Attributes:
        cfg: the host's validated config.
        tokenizer: the run's.
        pairs: the evaluation pairs.
        loss: a name of ``LOSSES``.
        beta: β of the loss.
        batch: pairs of an evaluation batch of the whole job.
    """

    cfg: Any
    tokenizer: Any
    pairs: OfflinePairs
    loss: str
    beta: float
    batch: int

    @classmethod
    def of(cls, run: TrainedRun, folder: Path) -> Evaluation:
        """Load the pairs as the run did.

        Args:
            run: the run.
            folder: where the host writes its log.

        Raises:
            SeraConfigError: one sentence.
        """
        from sera_plugin.host.checks import losses_of, rl_of
        from sera_plugin.host.loading import load_preference_data, read_config, tokenized

        if run.config is None:
            raise SeraConfigError(f"--eval needs the run's YAML; name it in place of {run.folder}.")
        keys = {"beta": "rl_beta", "sequence_len": "sequence_len", "seed": "seed"}
        known = {key: run.settings[name] for name, key in keys.items() if name in run.settings}
        cfg = read_config(run.config, output_dir=str(folder), base_model=run.base_model, **known)
        given = run.settings.get("loss_type") or (
            ["ipo"] if rl_of(cfg) == "ipo" else losses_of(cfg)
        )
        if rl_of(cfg) not in ("dpo", "ipo") or len(given) > 1 or given[0] not in LOSSES:
            raise SeraConfigError(
                f"--eval: rl: {rl_of(cfg)} with the loss {', '.join(given)} can't be evaluated "
                f"here; allowed is one of {', '.join(LOSSES)}."
            )
        meta, tokenizer = load_preference_data(cfg)
        rows = meta.eval_dataset
        if rows is not None and len(rows):
            rows = tokenized(rows, tokenizer, cfg.sequence_len)
        if rows is None or not len(rows):
            raise SeraConfigError(
                f"--eval: {run.config} has no evaluation pairs; set test_datasets or val_set_size."
            )
        return cls(
            cfg,
            tokenizer,
            OfflinePairs.of(rows, cfg.sequence_len),
            given[0],
            float(cfg.rl_beta or 0.1),
            int(cfg.eval_batch_size or 1) * int(run.settings.get("ranks") or 1),
        )

    def measure(self, models: Sequence[tuple[float, Path]]) -> list[Evaluated]:
        """Score the pairs with πref, the model that the run started from, and with every model.

        Args:
            models: α and folder of each; they are loaded one after the other.

        Raises:
            SeraConfigError: one sentence, if a model can't be loaded.
        """
        from accelerate import Accelerator

        from sera_plugin.scoring.scorer import Scorer

        cfg = self.cfg
        accelerator = Accelerator(mixed_precision="bf16" if cfg.bf16 is True else "no")
        budget = 2 * int(cfg.micro_batch_size or 1) * int(cfg.sequence_len)
        scorer = Scorer(accelerator, self.tokenizer.pad_token_id, cfg.sequence_len, budget)
        completions = OfflineCompletions(self.pairs)

        def logps(model: AbstractContextManager[Any], name: str) -> PairLogps:
            with model as forward:
                found = scorer.logps(forward, completions, name)
            # It holds the models that it has prepared.
            accelerator.free_memory()
            return self.pairs.pair_logps(found.logps)

        reference, found = None, []
        for alpha, folder in models:
            trained = Trained(str(folder), (folder / ADAPTER_CONFIG).is_file())
            loaded = AuditModels(cfg, self.tokenizer, accelerator, trained)
            if reference is None:
                reference = logps(loaded.reference(), "Scoring with the reference")
            policy = logps(loaded.policy(), f"Scoring with α = {alpha:g}")
            found.append(self._evaluated(alpha, log_ratios(policy, reference)))
        return found

    def _evaluated(self, alpha: float, ratios: PairLogps) -> Evaluated:
        pairs = self.pairs
        kind, loss = LOSSES[self.loss]
        margin = margins(ratios, pairs.chosen_tokens, pairs.rejected_tokens, "sum")
        compared = margins(ratios, pairs.chosen_tokens, pairs.rejected_tokens, kind)
        return Evaluated(
            alpha,
            float(loss(compared, self.beta).mean()),
            mean_over_batches((margin > 0).astype(np.float64), self.batch),
            mean_over_batches(self.beta * margin, self.batch),
        )
