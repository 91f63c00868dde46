"""TRL's client of a vLLM server, with time limits, retries and one sentence for each failure."""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from sera_plugin.host.vllm_settings import Reply, VllmSettings
from sera_plugin.runtime.errors import VllmError, in_short

LONGEST_PAUSE = 30.0
"""Seconds between two tries, at most; the first pause is a second, each next one twice as long."""

_STARTING = 10.0
"""Seconds that a connection may take."""

_IDLE = 30.0
"""Seconds that an engine with nothing to do may take to answer, at most."""


class _Impatient(HTTPAdapter):
    """Gives every request a time limit, which TRL's client does not, and repeats none."""

    def __init__(self, seconds: float) -> None:
        super().__init__(max_retries=0)
        self.limit = (min(_STARTING, seconds), seconds)

    def send(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["timeout"] = kwargs.get("timeout") or self.limit
        return super().send(*args, **kwargs)


class Server:
    """A server of TRL or Axolotl, on the main process alone.

    Args:
        generation: TRL's ``VLLMGeneration`` in server mode.
        settings: where it is and how long to wait for it.
    """

    def __init__(self, generation: Any, settings: VllmSettings) -> None:
        self._generation = generation
        self._client = generation.vllm_client
        self._settings = settings
        self.interrupted = False
        for scheme in ("http://", "https://"):
            self._client.session.mount(scheme, _Impatient(settings.timeout))
        # TRL's own waits as long as for an answer, and says the same again under our sentence.
        atexit.unregister(self._client.close_communicator)
        atexit.register(self._close)

    def take_weights(self, weights: Callable[[], Any]) -> None:
        failure = push_all(self._generation, weights, self._check_engine)
        if failure is not None:
            raise VllmError(
                f"vLLM at {self._settings.url} did not take the policy's weights "
                f"({in_short(failure)}); start it anew with the run's base_model, and resume the "
                "run, which keeps the answers sampled so far."
            ) from failure
        self.interrupted = False

    def generate(self, prompts: Sequence[Sequence[int]], options: dict[str, Any]) -> Reply:
        known = {key: options[key] for key in ("n", "temperature", "top_p", "max_tokens")}
        more = {"stop_token_ids": options["stop_token_ids"]}
        if options["seeds"] is not None:
            # The server takes one seed for all prompts of a request.
            more["seed"] = options["seeds"][0]
        return self._tried(
            lambda: self._client.generate(
                [list(ids) for ids in prompts],
                **known,
                logprobs=options["logprobs"],
                generation_kwargs=more,
            )
        )

    def rest(self) -> None:
        """A server keeps its memory."""

    def _check_engine(self) -> None:
        """Ask what only the engine can answer, after all that it was told before.

        The server says 200 to a tensor before the engine has it. An engine that died on one, for
        it has another model's weights, would keep the next broadcast waiting.
        """
        limit = min(_IDLE, self._settings.timeout)
        try:
            url = f"{self._client.base_url}/reset_prefix_cache/"
            answer = self._client.session.post(url, timeout=limit)
        except requests.Timeout:
            raise RuntimeError(f"its engine gave no answer for {limit:g} seconds") from None
        if answer.status_code != 200:
            raise RuntimeError(f"its engine failed with status {answer.status_code}")

    def _close(self) -> None:
        """End the connection for weights at exit; where that fails, the next run ends it."""
        with suppress(requests.RequestException):
            requests.post(f"{self._settings.url}/close_communicator/", timeout=2)

    def _tried(self, ask: Callable[[], Reply]) -> Reply:
        url, limit = self._settings.url, self._settings.timeout
        end, pause = time.monotonic() + limit, 1.0
        failure: Exception
        while True:
            try:
                return ask()
            except requests.Timeout as error:
                raise VllmError(
                    f"vLLM at {url} did not answer within {limit:g} seconds; start it anew if its "
                    "log says that its engine died, else set trl.vllm_server_timeout to a longer "
                    "time, and resume the run, which keeps the answers sampled so far."
                ) from error
            except requests.ConnectionError as error:
                self.interrupted, failure = True, error
            except (KeyError, TypeError, ValueError) as error:
                raise VllmError(
                    f"vLLM at {url} answered what TRL's client can't read ({in_short(error)}); "
                    "is another service at this port?"
                ) from error
            except Exception as error:  # TRL raises this class alone, with the status in its text
                if not str(error).startswith("Request failed: 5"):
                    raise VllmError(f"vLLM at {url} refused: {in_short(error)}") from error
                failure = error
            if time.monotonic() + pause > end:
                raise VllmError(
                    f"vLLM at {url} failed for {limit:g} seconds ({in_short(failure)}); look at "
                    "its log, start it anew, and resume the run, which keeps the answers sampled "
                    "so far."
                ) from failure
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


def wait_for(settings: VllmSettings) -> None:
    """Wait until the server is up, and end the connection of a run that was killed.

    TRL's own wait never ends where something else answers at the port.
    """
    end, why = time.monotonic() + settings.timeout, ""
    while True:
        try:
            answer = requests.get(f"{settings.url}/health/", timeout=_STARTING)
            if answer.status_code == 200:
                # Else its workers would refuse a second connection for weights.
                url = f"{settings.url}/close_communicator/"
                if requests.post(url, timeout=_STARTING).status_code in (404, 405):
                    raise VllmError(
                        f"what answers at {settings.url} has no /close_communicator/, so it is no "
                        "server that takes weights; start one with `axolotl vllm-serve` or "
                        "`trl vllm-serve`."
                    )
                return
            why = f"it answered with status {answer.status_code}"
        except requests.RequestException as error:
            why = in_short(error)
        if time.monotonic() + 1 > end:
            raise VllmError(
                f"no vLLM server is at {settings.url} after {settings.timeout:g} seconds ({why}); "
                "start one with `axolotl vllm-serve`, or set trl.vllm_server_host, "
                "trl.vllm_server_port and trl.vllm_server_timeout."
            )
        time.sleep(1)


def push_all(
    generation: Any, weights: Callable[[], Any], check: Callable[[], None] = lambda: None
) -> Exception | None:
    """Send all weights and return the first failure, which names the tensor.

    The loop goes on after one, for the other ranks still gather weights together with this one.

    Args:
        generation: TRL's ``VLLMGeneration``.
        weights: see ``weights_of``.
        check: raises if the engine is not alive; called before the first tensor and after each.
    """
    failure = _failure(check)
    for name, tensor in weights():
        if failure is None:
            found = _failure(partial(generation._push_param_to_vllm, name, tensor), check)
            if found is not None:
                failure = RuntimeError(f"at {name}: {in_short(found)}")
    return failure


def _failure(*steps: Callable[[], None]) -> Exception | None:
    try:
        for step in steps:
            step()
    except Exception as error:
        return error
    return None
