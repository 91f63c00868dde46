"""Completions by vLLM, in a server or in this process. Collectives: see ``VllmEngine``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from accelerate import Accelerator
from transformers import PreTrainedModel

from sera_plugin.config import SeraConfig
from sera_plugin.host.vllm import connect, gathering, vllm_installed
from sera_plugin.host.vllm_settings import Reply, VllmSettings
from sera_plugin.runtime.errors import SeraConfigError, VllmError
from sera_plugin.runtime.logs import logger
from sera_plugin.runtime.ranks import gathered, shared, together
from sera_plugin.sampling.vllm_protocol import OPTIONS, Probe, answers_of, options_for, prefixes_of
from sera_plugin.sampling.vllm_weights import weights_of
from sera_plugin.scoring.completions import CompletionList
from sera_plugin.scoring.logps import Forward
from sera_plugin.scoring.scorer import Scorer

if TYPE_CHECKING:
    from sera_plugin.data.candidates import Draws, Prompt
    from sera_plugin.sampling.settings import EngineParts, Sampling, Serving

KEY = "sera.bootstrap.engine: vllm"

LOG = logger(__name__)

REQUEST_TOKENS = 262_144
"""Most tokens of a request: 256 answers, as many as vLLM decodes at once by default, where prompt
and answer take 1,024."""


class Vllm(Protocol):
    """What answers: a server, or an engine in this process.

    Attributes:
        interrupted: whether a connection broke since the weights were taken.
    """

    interrupted: bool

    def take_weights(self, weights: Callable[[], Any]) -> None:
        """Wake up and take the weights, pairs of name and tensor; every rank calls this.

        On ranks that hold no engine the weights are gone through all the same, as each gathers
        its share of them.
        """

    def generate(self, prompts: Sequence[Sequence[int]], options: dict[str, Any]) -> Reply:
        """Completions to token ids; ``options`` are those of ``SamplingParams``, and ``seeds``."""

    def rest(self) -> None:
        """Give up memory until the next ``take_weights``."""


@dataclass
class VllmEngine:
    """Samples with vLLM.

    Every rank enters ``sample`` and ``serving`` together. With a server, the main process sends
    the requests of all ranks one after the other, as TRL does: Axolotl's server mixes up requests
    that overlap. Colocated, each rank asks its own engine. A failure on one rank is raised on all.

    Attributes:
        accelerator: the trainer's accelerator.
        vllm: what answers.
        has_server: whether it is a server.
        known: what the server said about the weights that were sent last.
    """

    name: ClassVar[str] = "vllm"
    pads: ClassVar[bool] = False
    cuts: ClassVar[bool] = False
    token_budget: ClassVar[int | None] = REQUEST_TOKENS

    accelerator: Accelerator
    vllm: Vllm
    has_server: bool
    known: tuple[list[list[int]], Probe] | None = field(default=None, init=False)

    @staticmethod
    def check(cfg: Any, config: SeraConfig) -> None:
        """Check what vLLM needs, before a model is loaded.

        Raises:
            SeraConfigError: one sentence naming the key, its value and what is allowed.
        """
        bootstrap = config.bootstrap
        if bootstrap.sampler != "policy":
            raise SeraConfigError(
                f"sera.bootstrap.sampler: {bootstrap.sampler} can't be used with {KEY}, which is "
                "sent one set of weights, the policy's; use sampler: policy or engine: "
                "transformers."
            )
        for name in ("load_in_4bit", "load_in_8bit"):
            if cfg.get(name):
                raise SeraConfigError(
                    f"{name}: true can't be used with {KEY}, to which weights are sent as they "
                    "are; use adapter: lora without it, or engine: transformers."
                )
        if cfg.get("fsdp") or cfg.get("fsdp_config"):
            raise SeraConfigError(
                f"fsdp_config can't be used with {KEY}; allowed are one process, DDP and DeepSpeed "
                "ZeRO-1, ZeRO-2 and ZeRO-3."
            )
        _check_sizes(cfg, bootstrap.vllm_mode)
        if not vllm_installed():
            raise SeraConfigError(
                f"{KEY} with vllm_mode: {bootstrap.vllm_mode} needs vLLM, which is not installed "
                "in this environment; `pip install 'trl[vllm]'` brings it (vllm_mode: server needs "
                "it too, to send weights), or use engine: transformers."
            )

    @classmethod
    def start(cls, parts: EngineParts) -> VllmEngine:
        """Connect to the server, or start vLLM in this process. Every rank must call this alike.

        Raises:
            VllmError: one sentence, if that fails.
        """
        settings = VllmSettings.of(parts.host, parts.config.vllm_mode)
        vllm = connect(parts.policy, parts.tokenizer, parts.accelerator, settings)
        return cls(parts.accelerator, vllm, settings.mode == "server")

    def sample(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Prompt],
        settings: Sampling,
        draws: Draws,
        *,
        synced: bool,
    ) -> list[list[np.ndarray]]:
        """See ``engines.Engine``; the model that writes is the one that ``serving`` sent.

        Raises:
            VllmError: one sentence, on every rank.
        """
        if not self.has_server:
            found: list[list[np.ndarray]] = together(lambda: self._ask(prompts, settings, draws))
            return found
        batches = gathered([tuple(prompts)])
        answered: dict[tuple[Prompt, ...], list[list[np.ndarray]]] = together(
            lambda: self._ask_all(batches, settings, draws) if self._is_main else {},
        )
        return shared(lambda: answered)[tuple(prompts)]

    @property
    def _is_main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    def _ask_all(
        self, batches: Sequence[tuple[Prompt, ...]], settings: Sampling, draws: Draws
    ) -> dict[tuple[Prompt, ...], list[list[np.ndarray]]]:
        """Completions by batch; one that several ranks hold is asked for once."""
        return {batch: self._ask(batch, settings, draws) for batch in dict.fromkeys(batches)}

    def _ask(
        self, prompts: Sequence[Prompt], settings: Sampling, draws: Draws
    ) -> list[list[np.ndarray]]:
        token_ids = [prompt.token_ids for prompt in prompts]
        reply = self.vllm.generate(token_ids, options_for(prompts, settings, draws))
        if self.vllm.interrupted:
            self._check_same()
        return answers_of(reply, prompts, settings)

    def _check_same(self) -> None:
        """After a connection that broke: a server that was started anew has the old weights."""
        self.vllm.interrupted = False
        if self.known is None:
            return
        prefixes, before = self.known
        if not before.same_as(Probe.of(self.vllm.generate(prefixes, OPTIONS), prefixes)):
            raise VllmError(
                "the vLLM server was started anew during a review and has no longer the policy's "
                "weights; resume the run, which sends them and keeps the answers sampled so far."
            )

    @contextmanager
    def serving(self, serving: Serving) -> Iterator[tuple[PreTrainedModel, bool]]:
        """Send the policy's weights, check that they are the ones that answer, and rest at the end.

        Raises:
            VllmError: one sentence, on every rank, if vLLM has other weights or takes none.
        """
        gather = gathering(self.accelerator)
        policies, model = serving.policies, serving.policies.unwrapped
        try:
            with policies.policy() as forward:
                together(
                    lambda: self.vllm.take_weights(lambda: weights_of(model, gather)),
                )
                prefixes = prefixes_of(serving.pairs, serving.sequence_len)
                self._check(forward, serving.scorer, prefixes)
                yield model, False
        finally:
            self.vllm.rest()

    def _check(self, forward: Forward, scorer: Scorer, prefixes: list[list[int]]) -> None:
        asks = self._is_main or not self.has_server
        mine: Probe | None = together(
            lambda: Probe.of(self.vllm.generate(prefixes, OPTIONS), prefixes) if asks else None,
        )
        self.known = (prefixes, mine) if mine is not None else None
        probes: list[Probe] = [probe for probe in gathered([mine]) if probe is not None]
        rows = [(prefixes[row], [token]) for probe in probes for row, token, _ in probe.rows]
        own = scorer.logps(forward, CompletionList(rows), "Checking vLLM's weights").logps
        start = 0
        for probe in probes:
            found = probe.compare(own[start : start + len(probe.rows)])
            start += len(probe.rows)
        if self._is_main:
            LOG.info(
                "vLLM's log-probs differ from the policy's by %.2g nats per token on average.",
                found,
            )


def _check_sizes(cfg: Any, mode: str) -> None:
    vllm = cfg.get("vllm") or {}
    parallel = vllm.get("tensor_parallel_size") or 1
    if mode == "colocate" and parallel != 1:
        raise SeraConfigError(
            f"vllm.tensor_parallel_size: {parallel} can't be used with {KEY} and vllm_mode: "
            "colocate, where each process has an engine of its own; allowed are 1, or vllm_mode: "
            "server."
        )
    longest, needed = vllm.get("max_model_len"), cfg.get("sequence_len") or 0
    if longest and longest < needed:
        raise SeraConfigError(
            f"vllm.max_model_len: {longest} is below sequence_len: {needed}, so vLLM would cut "
            "answers short; it must be at least as large."
        )
    settings = VllmSettings.of(cfg, mode)
    if not settings.timeout > 0:
        raise SeraConfigError(
            f"trl.vllm_server_timeout: {settings.timeout:g} is not allowed; it must be a number of "
            "seconds above 0."
        )
