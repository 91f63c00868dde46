"""A run as typed, frozen parts, and the order in which they are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from datasets import Dataset

from sera_plugin.config import SeraConfig
from sera_plugin.data.held_out import HELD_OUT
from sera_plugin.data.margins import PairLogps, margins_for
from sera_plugin.data.pairs import EvaluationPairs, OfflinePairs
from sera_plugin.data.schedule import Schedule
from sera_plugin.data.store import RunStore
from sera_plugin.host.facts import HostRun
from sera_plugin.host.loading import chat_templates
from sera_plugin.host.quantised import keep_gradients
from sera_plugin.review.bootstrap import Bootstrapper
from sera_plugin.review.judges import JudgeParts, court_of
from sera_plugin.review.lossdiff import Aligner, Alignment
from sera_plugin.review.review import Reviewer
from sera_plugin.runtime.memory import Fitting
from sera_plugin.runtime.weights import FiniteWeights
from sera_plugin.sampling.engines import engine_of
from sera_plugin.sampling.sampler import sampler_of
from sera_plugin.sampling.settings import EngineParts, Sampling, sampling_settings
from sera_plugin.scoring.contrast import Contrast
from sera_plugin.scoring.policies import Policies
from sera_plugin.scoring.scorer import Scorer
from sera_plugin.training.checkpoints import StopOnSignal
from sera_plugin.training.objective import base_of
from sera_plugin.training.sharing import tried_pairs, with_measured, with_shared_prompts
from sera_plugin.training.terms.term import Objective, TermParts, objective_of


@dataclass(frozen=True)
class Run:
    """A run, from when its models are prepared to its end.

    Attributes:
        config: the ``sera:`` block.
        host: what the host says about the run.
        schedule: its rounds.
        store: where its artifacts lie.
        pairs: D.
        evaluation: the evaluation pairs.
        stop: ends it in an orderly way.
        weights: whether the trained weights still are numbers.
        policies: policy, reference and earlier policies, ready to score.
        sampling: how completions are sampled.
        reviewer: makes the reviews.
        objective: the loss with its terms; None for the host's own.
        contrast: measures the contrast of quality prompts; None where nothing asks for it.
    """

    config: SeraConfig
    host: HostRun
    schedule: Schedule
    store: RunStore
    pairs: OfflinePairs
    evaluation: EvaluationPairs
    stop: StopOnSignal
    weights: FiniteWeights
    policies: Policies
    sampling: Sampling
    reviewer: Reviewer
    objective: Objective | None
    contrast: Contrast | None

    @property
    def held_out(self) -> OfflinePairs | None:
        """Training pairs that no round trains on, where they stand in for evaluation pairs."""
        given = self.host.evaluation
        return None if given is not None and len(given) else self.evaluation.pairs.get(HELD_OUT)

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return bool(self.host.accelerator.is_main_process)


def open_run(
    config: SeraConfig,
    host: HostRun,
    schedule: Schedule,
    store: RunStore,
    pairs: OfflinePairs,
    stop: StopOnSignal,
    step: Callable[[], int],
    held_out: Dataset | None = None,
) -> Run:
    """Make the parts of a run, each from those before it. Every rank must call this alike.

    Args:
        config: the ``sera:`` block.
        host: what the host says about the run.
        schedule: its rounds.
        store: where its artifacts lie.
        pairs: D.
        stop: ends the run in an orderly way.
        step: the trainer's global step as it is now.
        held_out: training pairs that stand in for evaluation pairs, or None.

    Raises:
        SeraConfigError: if the quality prompt has no place in the prompts, or a base in 4 bits
            can't be trained on this CPU, or scoring can't share prompts as it must.
        RuleError: if the judge's function can't be imported.
        JudgeError: if a reward model can't be used.
        VllmError: if vLLM can't be reached or started.
        ValueError: if most offline answers end without a special token.
    """
    accelerator, bootstrap, tokenizer = host.accelerator, config.bootstrap, host.tokenizer
    keep_gradients(host.models.policy)
    weights = FiniteWeights(host.models.policy, accelerator)
    policies = Policies(host.models, store.work, step, config.reference_device, bootstrap.gather)
    given = host.evaluation if held_out is None else {HELD_OUT: held_out}
    evaluation = EvaluationPairs(given, host.max_length, config.max_set_aside)
    sampling = sampling_settings(
        bootstrap, tokenizer, pairs, host.model_stops, host.max_length, host.token_budget
    )
    scorer = _scorer_of(config, host, pairs, policies, sampling, stop)
    engine = engine_of(EngineParts(bootstrap, host.cfg, accelerator, policies.unwrapped, tokenizer))
    sampling = with_measured(sampling, config, policies.unwrapped, accelerator, engine)
    contrast = _contrast_of(config, host, pairs, scorer, policies)
    judged = JudgeParts(bootstrap, tokenizer, accelerator, contrast)
    bootstrapper = Bootstrapper(
        config=config,
        pairs=pairs,
        scorer=scorer,
        sampler=sampler_of(engine, sampling, accelerator, stop.check, not policies.sharded),
        policies=policies,
        seed=host.seed,
        beta=host.beta,
        court=court_of(judged, store.work, stop.check),
    )
    reviewer = Reviewer(
        config=config,
        pairs=pairs,
        evaluation=evaluation.pairs,
        scorer=scorer,
        policies=policies,
        bootstrapper=bootstrapper,
        seed=host.seed,
        external=margins_for(host.train, config.selection),
    )
    objective = _objective_of(config, host, pairs, scorer, policies, store)
    return Run(
        config, host, schedule, store, pairs, evaluation, stop, weights, policies, sampling,
        reviewer, objective, contrast,
    )  # fmt: skip


def _scorer_of(
    config: SeraConfig,
    host: HostRun,
    pairs: OfflinePairs,
    policies: Policies,
    sampling: Sampling,
    stop: StopOnSignal,
) -> Scorer:
    """What scores, tried on some of the pairs where it shares prompts."""
    scorer = Scorer(
        accelerator=host.accelerator,
        pad_token_id=sampling.pad_token_id,
        max_length=host.max_length,
        token_budget=host.token_budget,
        after_shard=stop.check,
        fitting=Fitting(not policies.sharded),
    )
    tried = tried_pairs(pairs, config.bootstrap, host.max_length)
    return with_shared_prompts(scorer, config.training, policies, tried)


def _contrast_of(
    config: SeraConfig, host: HostRun, pairs: OfflinePairs, scorer: Scorer, policies: Policies
) -> Contrast | None:
    """What measures the contrast; None where nothing asks for it."""
    if not config.asked:
        return None
    return Contrast(
        config=config.selection.contrast,
        pairs=pairs,
        dataset=host.train,
        tokenizer=host.tokenizer,
        templates=chat_templates(host.cfg, host.tokenizer),
        scorer=scorer,
        policies=policies,
        max_length=host.max_length,
    )


def _objective_of(
    config: SeraConfig,
    host: HostRun,
    pairs: OfflinePairs,
    scorer: Scorer,
    policies: Policies,
    store: RunStore,
) -> Objective | None:
    """The loss with its terms; None where there are none."""
    if not config.terms:
        return None
    base = base_of(host.loss_types[0], host.label_smoothing)
    return objective_of(TermParts(config, host, pairs, scorer, policies, store, base))


def with_contrast(run: Run, reference: PairLogps) -> Run:
    """The run with the contrast of its pairs, where that is a signal. Every rank must call this.

    Args:
        run: the run.
        reference: log-probs of D under πref.

    Raises:
        SeraConfigError: if a prompt has no place in the pairs' prompts.
    """
    if run.contrast is None or "contrast" not in run.config.selection.measured:
        return run
    measured = run.contrast.measured(reference)
    return replace(run, reviewer=replace(run.reviewer, contrast=measured))


def with_auxiliary(
    run: Run,
    evaluation: Any,
    loss: Callable[[torch.nn.Module, list[dict[str, Any]]], torch.Tensor],
    *,
    resumed: bool,
) -> Run:
    """The run with LossDiff's auxiliary policy, where its rule of selection needs one.

    Args:
        run: the run, its policy with the weights that it starts from unless resumed.
        evaluation: the evaluation pairs with reference log-probs, several sets by name or one.
        loss: the host's loss of a list of rows under a model, a scalar.
        resumed: whether the policy has been trained already.
    """
    if run.config.selection.rule != "lossdiff_irm":
        return run
    host = run.host
    alignment = Alignment(
        seed=host.seed,
        beta=host.beta,
        loss_types=host.loss_types,
        optimization=host.optimization,
        max_length=host.max_length,
        micro_batch=host.micro_batch,
        accumulation=host.batching.accumulation,
    )
    aligner = Aligner(
        alignment=alignment,
        accelerator=host.accelerator,
        policies=run.policies,
        scorer=run.reviewer.scorer,
        pairs=run.pairs,
        evaluation=[*evaluation.values()] if isinstance(evaluation, Mapping) else [evaluation],
        evaluation_ids=[i for pairs in run.evaluation.pairs.values() for i in pairs.ids],
        loss=loss,
    )
    auxiliary = aligner.auxiliary(host.models.wrapped, resumed=resumed)
    return replace(run, reviewer=replace(run.reviewer, auxiliary=auxiliary))
