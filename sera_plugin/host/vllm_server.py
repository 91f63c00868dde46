"""TRL's client of a vLLM server, with time limits, retries and one sentence for each failure."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from sera_plugin.host.vllm_settings import Reply, VllmSettings
from sera_plugin.runtime.errors import VllmError, in_short

LONGEST_PAUSE = 30.0
"""Seconds between two tries, at most; the first pause is a second, each next one twice as long."""

_STARTING = 10.0
"""Seconds that a connection may take."""


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

    def take_weights(self, weights: Callable[[], Any]) -> None:
        failure = push_all(self._generation, weights)
        if failure is None:
            try:
                self._client.reset_prefix_cache()
            except Exception as error:
                failure = error
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

    def _tried(self, ask: Callable[[], Reply]) -> Reply:
        url, limit = self._settings.url, self._settings.timeout
        end, pause = time.monotonic() + limit, 1.0
        failure: Exception
        while True:
            try:
                return ask()
            except requests.Timeout as error:
                raise VllmError(
                    f"vLLM at {url} did not answer within {limit:g} seconds; set "
                    "trl.vllm_server_timeout to a longer time, and resume the run, which keeps "
                    "the answers sampled so far."
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
                requests.post(f"{settings.url}/close_communicator/", timeout=_STARTING)
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


def push_all(generation: Any, weights: Callable[[], Any]) -> Exception | None:
    """Send all weights and return the first failure.

    The loop goes on after one, for the other ranks still gather weights together with this one.
    """
    failure = None
    for name, tensor in weights():
        if failure is None:
            try:
                generation._push_param_to_vllm(name, tensor)
            except Exception as error:
                failure = error
    return failure
