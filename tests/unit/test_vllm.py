"""The parts of ``engine: vllm`` that need no server process."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from axolotl.utils.dict import DictDefault
from peft import LoraConfig, get_peft_model
from sampled import EOS, HERE, PROMPTS, SETTINGS, engine_with, rollouts, runs, small

from sera_plugin.config import parse_block
from sera_plugin.host import vllm as host
from sera_plugin.host.vllm_settings import VllmSettings
from sera_plugin.runtime.errors import SeraConfigError, VllmError
from sera_plugin.sampling.vllm_engine import VllmEngine
from sera_plugin.sampling.vllm_protocol import Probe, answers_of, options_for
from sera_plugin.sampling.vllm_weights import weights_of
from sera_plugin.training.checks import check_config

TWO = [replace(PROMPTS[0]), replace(PROMPTS[1])]
WANTED = replace(SETTINGS, num_candidates=2, max_new_tokens=3)


def half(prompt: Any, copy: int, count: int) -> np.ndarray:
    return np.full(count, 0.5)


def good() -> dict[str, Any]:
    return {
        "prompt_ids": [list(prompt.token_ids) for prompt in TWO],
        "completion_ids": [[5, EOS], [6, 7, 8], [9, 9, EOS], [4, 4, 4]],
        "logprobs": None,
        "logprob_token_ids": None,
    }


def test_answers_stand_under_their_prompts() -> None:
    found = answers_of(good(), TWO, WANTED)
    assert [[ids.tolist() for ids in each] for each in found] == [
        [[5, EOS], [6, 7, 8]],
        [[9, 9, EOS], [4, 4, 4]],
    ]
    assert all(ids.dtype == np.int32 for each in found for ids in each)


def test_an_answer_is_cut_to_the_room_behind_its_own_prompt() -> None:
    narrow = replace(WANTED, sequence_len=len(TWO[1].token_ids) + 3)
    assert [narrow.room(len(prompt.token_ids)) for prompt in TWO] == [3, 2]
    assert options_for(TWO, narrow, half)["max_tokens"] == 3
    found = answers_of(good(), TWO, narrow)
    assert [ids.tolist() for ids in found[1]] == [[9, 9], [4, 4]]


def _swap(reply: dict[str, Any]) -> None:
    reply["prompt_ids"].reverse()


def _lose_prompt(reply: dict[str, Any]) -> None:
    reply["prompt_ids"].pop()
    del reply["completion_ids"][2:]


def _double(reply: dict[str, Any]) -> None:
    reply["prompt_ids"][1] = reply["prompt_ids"][0]
    reply["completion_ids"][2:] = reply["completion_ids"][:2]


FAULTS: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (_swap, "other tokens than those of the prompt of example example-0"),
    (_lose_prompt, "gave back 1 prompts where 2 were sent"),
    (_double, "other tokens than those of the prompt of example example-1"),
    (lambda r: r["completion_ids"].pop(), "gave 3 answers where 2 to each of 2 prompts"),
    (lambda r: r["completion_ids"].append([4]), "gave 5 answers where 2 to each of 2 prompts"),
    (lambda r: r.update(completion_ids="none"), "gave no list of answers"),
    (lambda r: r["completion_ids"].__setitem__(1, [6, 7]), "2 tokens and no stop token"),
    (lambda r: r["completion_ids"].__setitem__(1, []), "0 tokens and no stop token"),
    (lambda r: r["completion_ids"].__setitem__(2, ["a", "b", "c"]), "is no list of token ids"),
    (lambda r: r["completion_ids"].__setitem__(2, [-1, 4, 4]), "is no list of token ids"),
]


@pytest.mark.parametrize(("fault", "words"), FAULTS)
def test_what_is_no_answer_ends_the_pass(
    fault: Callable[[dict[str, Any]], Any], words: str
) -> None:
    reply = good()
    fault(reply)
    with pytest.raises(VllmError, match=words):
        answers_of(reply, TWO, WANTED)


def test_greedy_decoding_asks_once_for_all_candidates() -> None:
    greedy = replace(WANTED, temperature=0.0)
    assert options_for(TWO, greedy, half)["n"] == 1
    assert options_for(TWO, greedy, half)["seeds"] is None
    reply = good() | {"completion_ids": [[5, EOS], [4, 4, 4]]}
    found = answers_of(reply, TWO, greedy)
    assert [[ids.tolist() for ids in each] for each in found] == [
        [[5, EOS]] * 2,
        [[4, 4, 4]] * 2,
    ]


def lora(bare: Any, **changes: Any) -> Any:
    torch.manual_seed(1)
    settings = {"r": 4, "target_modules": ["q_proj", "down_proj"], "modules_to_save": ["lm_head"]}
    adapted = get_peft_model(bare, LoraConfig(**(settings | changes)))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return adapted


def trls_own(adapted: Any) -> dict[str, torch.Tensor]:
    """What TRL's sync sends of a model, by name and in its order."""
    from trl.distributed import DistributedBackend
    from trl.generation.vllm_generation import VLLMGeneration

    sent: dict[str, torch.Tensor] = {}
    sync = VLLMGeneration.__new__(VLLMGeneration)
    sync.mode, sync.model, sync.accelerator = "server", adapted, Accelerator(cpu=True)
    sync._dist = DistributedBackend(sync.accelerator)
    sync.vllm_client = SimpleNamespace(
        update_named_param=lambda name, tensor: sent.update({name: tensor.clone()}),
        reset_prefix_cache=lambda: None,
    )
    sync.sync_weights()
    return sent


@pytest.mark.parametrize(
    "changes", [None, {}, {"use_dora": True}, {"modules_to_save": ["embed_tokens"]}]
)
def test_the_weights_sent_are_those_of_trl_with_the_adapter_merged(
    changes: dict[str, Any] | None,
) -> None:
    policy = small() if changes is None else lora(small(), **changes)
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    sent = {name: t.clone() for name, t in weights_of(policy, lambda _: nullcontext())}
    for name, tensor in policy.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} did not stay as it was"
    expected = trls_own(policy)
    assert list(sent) == list(expected) == [name for name, _ in small().named_parameters()]
    for name, tensor in expected.items():
        torch.testing.assert_close(sent[name], tensor, atol=1e-6, rtol=0)
    changed = {n for n, t in small().named_parameters() if not torch.equal(sent[n], t)}
    assert bool(changed) == (changes is not None)


def test_weights_are_made_whole_piece_by_piece() -> None:
    policy, inside, sizes = lora(small()), [], []

    @contextmanager
    def gather(parameters: list[Any]) -> Iterator[None]:
        assert not inside, "two pieces are whole at once"
        inside.append(parameters)
        sizes.append(sum(parameter.numel() for parameter in parameters))
        yield
        inside.pop()

    for name, _ in weights_of(policy, gather):
        assert inside, f"{name} is sent while it is in shares"
    assert max(sizes) < 0.5 * sum(sizes)


@pytest.mark.parametrize(
    ("fails", "sent"), [("generate", []), ("push", ["a"]), ("reset_prefix_cache", ["a"])]
)
def test_a_failing_server_does_not_keep_other_ranks_waiting_in_a_gather(
    fails: str, sent: list[str]
) -> None:
    """All weights are gone through, for every rank gathers its share of each."""

    def act(what: str) -> None:
        if what == fails:
            raise OSError("gone")

    def answer(url: str, **_: Any) -> Any:
        act(url.split("/")[-2])
        return SimpleNamespace(status_code=200)

    session = SimpleNamespace(mount=lambda *_: None, post=answer, get=answer)
    client = SimpleNamespace(session=session, close_communicator=lambda: None)
    pushed = []

    def push(name: str, tensor: Any) -> None:
        pushed.append(name)
        act("push")

    server = host.Server(SimpleNamespace(vllm_client=client, _push_param_to_vllm=push), HERE)
    seen = []

    def weights() -> Iterator[tuple[str, Any]]:
        for name in "abc":
            seen.append(name)
            yield name, None

    with pytest.raises(VllmError, match=r"did not take the policy's weights \(.*OSError: gone\)"):
        server.take_weights(weights)
    assert seen == ["a", "b", "c"]
    assert pushed == sent, "a dead engine is sent weights"


def test_other_weights_are_found_by_their_log_probs() -> None:
    probe = Probe(((0, 5, -1.0), (0, 6, -2.0), (1, 5, -3.0)))
    own = np.array([-1.0, -2.0, -3.0])
    assert probe.compare(own + 0.09) == pytest.approx(0.09)
    for other in (own + 0.11, np.array([np.nan, -2.0, -3.0])):
        with pytest.raises(VllmError, match=r"nats per token on average, more than 0\.1"):
            probe.compare(other)
    assert probe.same_as(Probe(((0, 6, -2.05), (0, 5, -1.0), (1, 5, -3.0))))
    assert not probe.same_as(Probe(((0, 6, -2.5), (0, 5, -1.5), (1, 5, -3.5))))
    assert not probe.same_as(Probe(((0, 7, -2.0), (0, 8, -1.0), (1, 9, -3.0))))


def test_where_the_server_is_comes_from_the_hosts_blocks() -> None:
    plain = VllmSettings.of(DictDefault({"sequence_len": 512}), "server")
    assert plain == VllmSettings("server", "http://0.0.0.0:8000", 240.0, 0.9, 512, False, False)
    vllm = {"host": "gpu2", "port": 8005, "gpu_memory_utilization": 0.3, "max_model_len": 600}
    both = {"vllm_server_host": "0.0.0.0", "vllm_server_port": 8000, "vllm_server_timeout": 9}
    found = VllmSettings.of(DictDefault({"vllm": vllm, "trl": both}), "colocate")
    assert found == VllmSettings("colocate", "http://gpu2:8005", 9.0, 0.3, 600, True, False)
    awake = {"vllm_server_port": 8006, "vllm_enable_sleep_mode": False}
    found = VllmSettings.of(DictDefault({"vllm": vllm, "trl": awake}), "colocate")
    assert (found.url, found.sleep) == ("http://gpu2:8006", False)


@pytest.mark.parametrize(("written", "taken"), [(None, None), ("auto", None), ("half", "half")])
def test_the_dtype_of_the_hosts_block_is_taken(written: str | None, taken: str | None) -> None:
    host_config = DictDefault({"sequence_len": 512, "vllm": {"dtype": written}})
    assert VllmSettings.of(host_config, "colocate").dtype == taken


HOST = {"rl": "dpo", "num_epochs": 2, "sequence_len": 512}
REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"vllm_mode": "colocate"}, "vllm_mode: colocate needs vLLM, which is not installed"),
    ({}, {}, "vllm_mode: server needs vLLM, which is not installed"),
    ({}, {"sampler": "mixed"}, "sera.bootstrap.sampler: mixed can't be used"),
    ({}, {"sampler": "reference"}, "sera.bootstrap.sampler: reference can't be used"),
    ({"load_in_4bit": True}, {}, "load_in_4bit: true can't be used"),
    ({"fsdp_config": {"fsdp_version": 2}}, {}, "fsdp_config can't be used"),
    ({"vllm": {"max_model_len": 256}}, {}, "vllm.max_model_len: 256 is below sequence_len: 512"),
    ({"trl": {"vllm_server_timeout": -1}}, {}, "trl.vllm_server_timeout: -1 is not allowed"),
    (
        {"vllm": {"tensor_parallel_size": 2}},
        {"vllm_mode": "colocate"},
        "vllm.tensor_parallel_size: 2 can't be used",
    ),
]


@pytest.mark.parametrize(("keys", "bootstrap", "words"), REFUSED)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(
    keys: dict[str, Any], bootstrap: dict[str, Any], words: str
) -> None:
    config = parse_block({"bootstrap": {"engine": "vllm", **bootstrap}})
    assert config is not None
    with pytest.raises(SeraConfigError, match=words) as refusal:
        check_config(DictDefault(HOST | keys), config)
    assert str(refusal.value).count(". ") == 0


def test_zero3_is_allowed(cpu_vllm: None) -> None:
    config = parse_block({"bootstrap": {"engine": "vllm"}})
    assert config is not None
    zero3 = {"deepspeed": {"zero_optimization": {"stage": 3}}}
    check_config(DictDefault(HOST | zero3), config)


@contextmanager
def answering(
    reply: Callable[[int], tuple[int, str]], wait: float = 0.0, health: int = 200
) -> Iterator[Any]:
    """TRL's client at a service that answers its n-th request with a status and a text.

    ``health`` is what it says of itself after the first one.
    """
    from trl.generation.vllm_client import VLLMClient

    numbers: list[int] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._say(health if numbers else 200, "{}")

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            numbers.append(len(numbers))
            time.sleep(wait)
            status, text = reply(numbers[-1])
            if status == 0:
                self.connection.close()
                return
            self._say(status, text)

        def _say(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *args: Any) -> None:
            """Silent."""

    service = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=service.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{service.server_port}"
        generation = SimpleNamespace(vllm_client=VLLMClient(base_url=url))
        server = host.Server(generation, replace(HERE, url=url, timeout=2.5))
        yield SimpleNamespace(server=server, requests=numbers, url=url)
    finally:
        service.shutdown()
        service.server_close()


def ask(server: host.Server) -> host.Reply:
    options = options_for(TWO, WANTED, half)
    return server.generate([prompt.token_ids for prompt in TWO], options)


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 503, 500])
def test_a_failure_that_passes_is_tried_again(cpu_vllm: None, first: int) -> None:
    whole = json.dumps(good())
    with answering(lambda n: (first, "busy") if n == 0 else (200, whole)) as found:
        assert ask(found.server) == good()
        assert len(found.requests) == 2
        assert found.server.interrupted == (first == 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reply", "wait", "words", "requests"),
    [
        ((0, ""), 0.0, "failed for 2.5 seconds \\(ConnectionError", (2, 3)),
        ((503, "busy"), 0.0, "failed for 2.5 seconds \\(Exception: Request failed: 503", (2, 3)),
        ((422, "no such field"), 0.0, "refused: Exception: Request failed: 422", (1, 1)),
        ((404, "nothing"), 0.0, "refused: Exception: Request failed: 404", (1, 1)),
        ((200, "<html>"), 0.0, "TRL's client can't read .* another service", (1, 1)),
        ((200, "{}"), 0.0, "TRL's client can't read \\(KeyError", (1, 1)),
        ((200, "[1]"), 0.0, "TRL's client can't read \\(TypeError", (1, 1)),
        ((200, "{}"), 4.0, "did not answer within 2.5 seconds; .* set trl.vllm_server", (1, 1)),
    ],
)
def test_a_failure_that_stays_is_one_sentence(
    cpu_vllm: None, reply: tuple[int, str], wait: float, words: str, requests: tuple[int, int]
) -> None:
    start = time.monotonic()
    with answering(lambda _: reply, wait) as found:
        with pytest.raises(VllmError, match=words):
            ask(found.server)
        assert time.monotonic() - start < 20
        assert requests[0] <= len(found.requests) <= requests[1]


@pytest.mark.slow
def test_an_engine_that_the_server_calls_dead_is_not_asked_again(cpu_vllm: None) -> None:
    with answering(lambda _: (500, "Internal Server Error"), health=503) as found:
        with pytest.raises(VllmError, match=r"says that its engine died .* start it anew"):
            ask(found.server)
        assert len(found.requests) == 1


@pytest.mark.parametrize(
    ("replies", "wait", "words"),
    [
        ((404, 404), 0.0, "can't be used \\(it has no /close_communicator/"),
        ((200, 405), 0.0, "can't be used \\(it has no /generate/"),
        ((200, 500), 0.0, "can't be used \\(its engine failed with status 500\\); look at its log"),
        ((200, 200), 1.5, "can't be used \\(its engine gave no answer for 1 seconds\\); look"),
    ],
)
def test_a_server_that_cannot_do_it_is_one_sentence_before_a_run_connects(
    cpu_vllm: None, replies: tuple[int, int], wait: float, words: str
) -> None:
    with answering(lambda n: (replies[n], "{}"), wait) as found:
        settings = replace(HERE, url=found.url, timeout=1.0)
        with pytest.raises(VllmError, match=words) as refusal:
            host.connect(None, None, Accelerator(cpu=True), settings)
        assert str(refusal.value).count(". ") == 0


@pytest.mark.slow
def test_no_server_is_one_sentence_within_the_time(cpu_vllm: None) -> None:
    start = time.monotonic()
    with pytest.raises(VllmError, match=r"no vLLM server is at \S+:1 after 2 seconds"):
        host.connect(None, None, Accelerator(cpu=True), HERE)
    assert time.monotonic() - start < 20


@pytest.fixture
def colocated(cpu_vllm: None, tmp_path: Any, model: Any) -> Callable[..., tuple[VllmEngine, Any]]:
    """An engine in this process that started from other weights than the policy has."""
    base = small()
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.mul_(1.5)
    base.save_pretrained(tmp_path / "base")

    def start(policy: Any, **changes: Any) -> tuple[VllmEngine, Any]:
        policy.config._name_or_path = policy.name_or_path = str(tmp_path / "base")
        settings = replace(HERE, mode="colocate", sleep=True, **changes)
        engine = engine_with(policy, settings)
        assert isinstance(engine.vllm, host.Colocated)
        return engine, engine.vllm._llm

    return start


def test_after_sleep_and_wake_the_weights_are_the_new_ones(colocated: Any) -> None:
    policy = small()
    engine, llm = colocated(policy)
    assert all(llm.asleep.values())
    answers = []
    for _ in range(2):
        with engine.serving(runs(policy)):
            found = rollouts(engine, policy, temperature=0.0)
        assert all(llm.asleep.values())
        assert found == rollouts(None, policy, temperature=0.0)
        answers.append(found)
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    assert answers[0] != answers[1]


def test_waking_reads_no_files(colocated: Any, monkeypatch: Any) -> None:
    policy = small()
    engine, llm = colocated(policy)
    called: list[Any] = []
    monkeypatch.setattr(llm, "collective_rpc", lambda *asked, **_: called.append(asked))
    with engine.serving(runs(policy)):
        assert rollouts(engine, policy, temperature=0.0) == rollouts(None, policy, temperature=0.0)
    assert not called


@pytest.mark.parametrize(("wanted", "taken"), [(None, "float32"), ("bfloat16", "bfloat16")])
def test_vllm_computes_in_the_policys_dtype_or_the_one_that_is_written(
    colocated: Any, wanted: str | None, taken: str
) -> None:
    _, llm = colocated(small(), dtype=wanted)
    assert llm.options["dtype"] == taken
    from trl.generation import vllm_generation

    assert vllm_generation.LLM is type(llm), "TRL's own was not put back"


def test_a_vllm_of_another_version_is_told(
    colocated: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", logger="sera_plugin"):
        colocated(small())
    assert f"vLLM 0.20.0 is installed; this plugin was tried with vLLM {host.TRIED}" in caplog.text


def test_weights_that_waking_up_overwrites_are_found(colocated: Any, monkeypatch: Any) -> None:
    policy = small()
    engine, llm = colocated(policy)
    own = llm.generate

    def generate(*args: Any, **options: Any) -> Any:
        llm.collective_rpc("reload_weights")  # as TRL's generate does
        return own(*args, **options)

    monkeypatch.setattr(llm, "generate", generate)
    refused = pytest.raises(VllmError, match="so it has other weights")
    with refused, engine.serving(runs(policy)):
        pytest.fail("nothing may be sampled")


def test_sampled_answers_follow_the_seed(colocated: Any) -> None:
    policy = small()
    engine, _ = colocated(policy)
    with engine.serving(runs(policy)):
        first, again = (rollouts(engine, policy) for _ in range(2))
        whole = rollouts(engine, policy, token_budget=30)
    assert first == again
    assert first == whole  # each prompt has a seed of its own here
    different = {rollout for each in first.values() for rollout in each}
    assert len(different) > len(first)


def test_a_lora_policy_samples_as_it_does_itself(colocated: Any) -> None:
    policy = lora(small(), modules_to_save=None)
    engine, _ = colocated(policy)
    with engine.serving(runs(policy)):
        assert rollouts(engine, policy, temperature=0.0) == rollouts(None, policy, temperature=0.0)
