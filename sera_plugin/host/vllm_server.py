"""TRL's client of a vLLM server, with time limits, retries and one sentence for each failure."""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter

from sera_plugin.host.vllm_settings import Reply, VllmSettings
from sera_plugin.runtime.errors import VllmError, in_short

LONGEST_PAUSE = 30.0
"""Seconds between two tries, at most; the first pause is a second, each next one twice as long."""

_STARTING = 10.0
"""Seconds that a connection may take."""

_IDLE = 60.0
"""Seconds that an engine with nothing to do may take to answer, at most."""

_ONE_TOKEN: dict[str, Any] = {"prompts": [[0]], "n": 1, "max_tokens": 1}


class _Failure(Exception):
    """How an engine failed; the message is a clause of a sentence."""


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
        url, limit = self._settings.url, min(_IDLE, self._settings.timeout)
        dead = failure_of(partial(ask_engine, self._client.session, url, limit))
        failure = push_all(self._generation, weights, self._check_tensor, dead)
        if failure is not None:
            raise VllmError(
                f"vLLM at {url} did not take the policy's weights ({_why(failure)}); start it "
                "anew with the run's base_model, and resume the run, which keeps the answers "
                "sampled so far."
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

    def _check_tensor(self) -> None:
        """Raise if the engine died on what it was sent last, as on another model's tensor.

        A server says 200 before its engine has a tensor, and the next one would be broadcast to
        nobody. TRL's answers the first request when the engine did; Axolotl's answers at once,
        and says at the second that its worker ended.
        """
        session, url = self._client.session, self._settings.url
        limit = min(_IDLE, self._settings.timeout)
        for ask, path in ((session.post, "reset_prefix_cache"), (session.get, "health")):
            _answered(partial(ask, f"{url}/{path}/"), limit)

    def _close(self) -> None:
        """End the connection for weights at exit; where that fails, the next run ends it."""
        with suppress(requests.RequestException):
            requests.post(f"{self._settings.url}/close_communicator/", timeout=2)

    def _is_dead(self) -> bool:
        """Whether the server says so, as Axolotl's does for some seconds before it ends."""
        try:
            health = requests.get(f"{self._settings.url}/health/", timeout=_STARTING)
        except requests.RequestException:
            return False
        return health.status_code == 503

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
                if self._is_dead():
                    raise VllmError(
                        f"vLLM at {url} says that its engine died ({_why(failure)}); start it "
                        "anew, and resume the run, which keeps the answers sampled so far."
                    ) from error
            if time.monotonic() + pause > end:
                raise VllmError(
                    f"vLLM at {url} failed for {limit:g} seconds ({_why(failure)}); look at "
                    "its log, start it anew, and resume the run, which keeps the answers sampled "
                    "so far."
                ) from failure
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


def wait_for(settings: VllmSettings) -> None:
    """Wait until the server is up and its engine answers; end the connection of a killed run.

    TRL's own wait never ends where something else answers at the port.
    """
    end, why = time.monotonic() + settings.timeout, ""
    while True:
        try:
            answer = requests.get(f"{settings.url}/health/", timeout=_STARTING)
            if answer.status_code == 200:
                _check_server(settings)
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


def _check_server(settings: VllmSettings) -> None:
    # An engine's first answer may take long: kernels are compiled for it.
    session, url, limit = requests.Session(), settings.url, settings.timeout
    # Without this, workers would refuse a second connection for weights.
    close = partial(session.post, f"{url}/close_communicator/")
    failure = failure_of(partial(_answered, close, limit), partial(ask_engine, session, url, limit))
    if failure is not None:
        raise VllmError(
            f"what answers at {url} can't be used ({_why(failure)}); look at its log, and start it "
            "anew with `axolotl vllm-serve` or `trl vllm-serve`."
        ) from failure


def ask_engine(session: requests.Session, url: str, limit: float) -> None:
    """Ask for one token, which only the engine can give, after all that it was told before.

    Raises:
        _Failure: if none comes within ``limit`` seconds.
    """
    _answered(partial(session.post, f"{url}/generate/", json=_ONE_TOKEN), limit)


def _answered(ask: Callable[..., requests.Response], limit: float) -> None:
    try:
        answer = ask(timeout=limit)
    except requests.Timeout:
        raise _Failure(f"its engine gave no answer for {limit:g} seconds") from None
    if answer.status_code in (404, 405):
        raise _Failure(f"it has no {urlsplit(answer.url).path}, which such servers have")
    if answer.status_code != 200:
        raise _Failure(f"its engine failed with status {answer.status_code}")


def push_all(
    generation: Any,
    weights: Callable[[], Any],
    check: Callable[[], None] = lambda: None,
    failure: Exception | None = None,
) -> Exception | None:
    """Send all weights and return the first failure, which names the tensor.

    The loop goes on after one, for the other ranks still gather weights together with this one.

    Args:
        generation: TRL's ``VLLMGeneration``.
        weights: see ``weights_of``.
        check: called after each tensor; raises if the engine did not live through it.
        failure: one that came before, after which nothing is sent.
    """
    for name, tensor in weights():
        if failure is None:
            found = failure_of(partial(generation._push_param_to_vllm, name, tensor), check)
            if found is not None:
                failure = _Failure(f"at {name}: {_why(found)}")
    return failure


def failure_of(*steps: Callable[[], None]) -> Exception | None:
    """The first failure of steps that follow one another."""
    try:
        for step in steps:
            step()
    except Exception as error:
        return error
    return None


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, _Failure) else in_short(error)
