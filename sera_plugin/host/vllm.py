"""TRL's client, engine and weight sync for vLLM; see the package's docstring.

``VLLMGeneration`` connects to a server or starts vLLM in this process, and sends weights to it.
Its ``generate`` is not used: with sleep mode it reads the weights of the disk over those that were
just sent (trl issue 5312), and it cuts answers by position. vLLM is imported by TRL alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from importlib import import_module
from typing import Any

import torch
from accelerate import Accelerator

from sera_plugin.host.vllm_server import Server, push_all, wait_for
from sera_plugin.host.vllm_settings import Reply, VllmSettings
from sera_plugin.runtime.errors import VllmError, in_short
from sera_plugin.runtime.logs import logger
from sera_plugin.runtime.ranks import together

TRIED = "0.27.0"
"""The vLLM that `make test-vllm` runs."""

LOG = logger(__name__)


class Colocated:
    """vLLM in this process, beside the model that is trained.

    Args:
        generation: TRL's ``VLLMGeneration`` in colocated mode.
        settings: whether it sleeps.
    """

    def __init__(self, generation: Any, settings: VllmSettings) -> None:
        self._generation = generation
        self._llm = generation.llm
        self._sleeps = settings.sleep
        self.interrupted = False

    def take_weights(self, weights: Callable[[], Any]) -> None:
        if self._sleeps:
            _empty_cache()
            self._llm.wake_up(tags=["weights"])
        failure = push_all(self._generation, weights)
        if failure is not None:
            raise VllmError(
                f"vLLM did not take the policy's weights ({in_short(failure)}); see docs/vllm.md."
            ) from failure
        self._llm.reset_prefix_cache()
        if self._sleeps:
            self._llm.wake_up(tags=["kv_cache"])

    def generate(self, prompts: Sequence[Sequence[int]], options: dict[str, Any]) -> Reply:
        from trl.generation import vllm_generation

        seeds = options["seeds"] or [None] * len(prompts)
        rest = {key: value for key, value in options.items() if key != "seeds"}
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(ids)} for ids in prompts],
            sampling_params=[vllm_generation.SamplingParams(seed=seed, **rest) for seed in seeds],
            use_tqdm=False,
        )
        logprobs, token_ids = vllm_generation.extract_logprobs(outputs)
        return {
            "prompt_ids": [list(output.prompt_token_ids) for output in outputs],
            "completion_ids": [list(one.token_ids) for each in outputs for one in each.outputs],
            "logprobs": logprobs,
            "logprob_token_ids": token_ids,
        }

    def rest(self) -> None:
        if self._sleeps:
            self._llm.sleep(level=2)


class _Elsewhere:
    """A rank without an engine: it gathers its share of the weights, and that is all."""

    interrupted = False

    def take_weights(self, weights: Callable[[], Any]) -> None:
        for _ in weights():
            pass

    def generate(self, prompts: Sequence[Sequence[int]], options: dict[str, Any]) -> Reply:
        raise RuntimeError("the main process alone talks to the vLLM server")

    def rest(self) -> None:
        """Nothing to rest."""


def vllm_installed() -> bool:
    """Whether TRL finds a vLLM."""
    from trl.import_utils import is_vllm_available

    return bool(is_vllm_available())


def connect(
    model: Any, tokenizer: Any, accelerator: Accelerator, settings: VllmSettings
) -> Server | Colocated | _Elsewhere:
    """Connect to the server, or start vLLM in this process. Every rank must call this alike.

    Raises:
        VllmError: one sentence, on every rank, if that fails on one.
    """
    from trl.generation import vllm_generation

    if settings.mode == "server":
        together(lambda: wait_for(settings) if accelerator.is_main_process else None)

    _warn_of_version(accelerator)
    colocated = settings.mode == "colocate"
    typed = _in_dtype(settings.dtype or _name(model.dtype)) if colocated else nullcontext()

    def start() -> Any:
        try:
            with typed:
                return vllm_generation.VLLMGeneration(
                    model=model,
                    accelerator=accelerator,
                    processing_class=tokenizer,
                    mode=settings.mode,
                    server_base_url=settings.url,
                    server_timeout=settings.timeout,
                    gpu_memory_utilization=settings.memory,
                    max_model_length=settings.max_model_len,
                    enable_sleep_mode=settings.sleep,
                    trust_remote_code=settings.trust_remote_code,
                )
        except Exception as error:
            # Its last act is to wait for all ranks, where the others are now.
            accelerator.wait_for_everyone()
            raise VllmError(
                f"sera.bootstrap.engine: vllm can't start ({in_short(error)}); see docs/vllm.md."
            ) from error

    generation = together(start)
    if colocated:
        return Colocated(generation, settings)
    return Server(generation, settings) if accelerator.is_main_process else _Elsewhere()


def gathering(accelerator: Accelerator) -> Callable[[list[Any]], AbstractContextManager[None]]:
    """What makes parameters whole on every rank under ZeRO-3, as a context; nothing elsewhere."""
    from trl.distributed import DistributedBackend

    return DistributedBackend(accelerator).gather_params


@contextmanager
def _in_dtype(dtype: str) -> Iterator[None]:
    """TRL starts a colocated vLLM in this dtype; it passes none, and vLLM's choice is its own."""
    from trl.generation import vllm_generation

    theirs = vllm_generation.LLM
    vllm_generation.LLM = partial(theirs, dtype=dtype)
    try:
        yield
    finally:
        vllm_generation.LLM = theirs


def _warn_of_version(accelerator: Accelerator) -> None:
    found = str(import_module("vllm").__version__)
    if found.partition("+")[0] != TRIED and accelerator.is_main_process:
        LOG.warning(
            "vLLM %s is installed; this plugin was tried with vLLM %s, see docs/vllm.md.",
            found,
            TRIED,
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _empty_cache() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
