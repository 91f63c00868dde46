"""Caches, continuous batching and vLLM."""

import ast
import dataclasses
import importlib.util
from pathlib import Path

import pytest
import transformers
from host_source import (
    assert_names,
    assert_parts,
    breaks,
    calls,
    found,
    in_order,
    names,
    parts_of,
    read_from,
    text_of,
    tree_of,
)
from transformers.generation.continuous_batching import (
    cb_logits_processors,
    continuous_api,
    input_outputs,
    model_runner,
)
from trl.generation import vllm_client, vllm_generation

pytestmark = pytest.mark.contract

PAGED = "transformers.generation.continuous_batching"
MANAGER = f"{PAGED}.continuous_api.ContinuousBatchingManager"
VLLM = "trl.generation.vllm_generation.VLLMGeneration"


def test_generate_fills_gaps_in_our_settings_from_the_models():
    assert "self.generation_config.to_dict()" in parts_of(
        transformers.GenerationMixin._prepare_generation_config
    ), (
        "generate no longer mixes the model's own generation settings into ours, so "
        "sera_plugin.sampling.transformers_engine need not hide them"
    )


def test_continuous_batching_has_the_hooks_that_we_use():
    manager = continuous_api.ContinuousBatchingManager
    assert_names(
        "transformers.GenerationMixin.init_continuous_batching",
        ["generation_config", "continuous_batching_config", "workload_hints"],
    )
    wanted = {"input_ids", "request_id", "max_new_tokens", "eos_token_id"}
    assert wanted <= set(names(manager.add_request)), breaks(f"{MANAGER}.add_request")
    assert {"timeout"} <= set(names(manager.get_result)), breaks(f"{MANAGER}.get_result")
    assert {"hard_stop"} <= set(names(manager.stop)), breaks(f"{MANAGER}.get_result")
    create, symbol = manager._create_batch_processor, f"{MANAGER}._create_batch_processor"
    assert_parts(create, f"{MANAGER}.logit_processor", "logit_processor=self.logit_processor")
    assert_parts(create, f"{MANAGER}.batch_processor", "getattr(self, 'batch_processor', None)")
    read = read_from(create, "self.model")
    assert read == {"config", "device", "dtype"}, f"it reads the model's {read}: {breaks(symbol)}"
    assert_parts(create, symbol, "getattr(self.model, 'tp_plan', {})")
    assert_parts(
        manager._handle_critical_error, f"{MANAGER}.fatal_error", "self.fatal_error = error"
    )


def test_continuous_batching_lets_us_draw_by_position():
    prepare = input_outputs.ContinuousBatchingIOs.prepare_batch_tensors
    symbol = f"{PAGED}.requests.RequestState.position_offset"
    moved = [
        node.lineno
        for node in ast.walk(tree_of(prepare))
        if isinstance(node, ast.AugAssign)
        and ast.unparse(node) == "state.position_offset += query_length"
    ]
    named = [call.lineno for call in calls(prepare, "prepare_tensor_args")]
    assert moved, breaks(symbol)
    assert named, breaks(symbol)
    assert min(moved) < min(named), (
        f"it no longer counts the tokens of the pass that is prepared: {breaks(symbol)}"
    )
    processors = f"{PAGED}.cb_logits_processors.ContinuousBatchingLogitsProcessorList"
    assert names(found(processors).prepare_tensor_args) == ["requests_in_batch", "arg_storage"], (
        breaks(processors)
    )
    one = f"{PAGED}.cb_logits_processors.ContinuousBatchingLogitsProcessor"
    abstract = cb_logits_processors.ContinuousBatchingLogitsProcessor.__abstractmethods__
    assert abstract == {"fill_defaults", "prepare_tensor_args", "__call__"}, breaks(one)
    assert_parts(found(processors), processors, "self.tensors_required")
    # What is sampled is the only token that our processor leaves.
    assert_parts(model_runner.ModelRunner._sample, one, "self.do_sample")


def test_the_paged_cache_is_as_we_size_it():
    update = f"{PAGED}.cache.PagedAttentionCache.update"
    assert names(found(update))[:2] == ["key_states", "value_states"], breaks(update)
    config = transformers.LlamaConfig(num_hidden_layers=3)
    grouping = f"{PAGED}.cache.group_layers_by_attn_type"
    assert len(found(grouping)(config)[0]) == 1, breaks(grouping)
    sizes = "transformers.generation.configuration_utils.ContinuousBatchingConfig"
    fields = {f.name for f in dataclasses.fields(found(sizes))}
    wanted = {"block_size", "num_blocks", "max_batch_tokens", "max_requests_per_batch"}
    assert wanted <= fields, breaks(sizes)


def test_the_dynamic_cache_keeps_layers_that_we_may_replace():
    cache = transformers.DynamicCache(config=transformers.LlamaConfig(num_hidden_layers=3))
    layers, symbol = breaks("transformers.DynamicCache.layers"), "transformers.DynamicLayer.update"
    assert isinstance(cache.layers, list), layers
    assert [type(layer) for layer in cache.layers] == [transformers.DynamicLayer] * 3, layers
    update = transformers.DynamicLayer.update
    assert names(update)[:2] == ["key_states", "value_states"], breaks(symbol)
    steps = ["lazy_initialization", "cat", "cat"]
    assert in_order(update, "lazy_initialization", "cat") == steps, breaks(symbol)


def test_trls_vllm_generation_starts_and_sends_as_we_use_it():
    generation = vllm_generation.VLLMGeneration
    passed = {
        *("model", "accelerator", "processing_class", "mode", "server_base_url", "server_timeout"),
        *("gpu_memory_utilization", "max_model_length", "enable_sleep_mode", "trust_remote_code"),
    }
    assert passed <= set(names(generation.__init__)), breaks(VLLM)
    start = generation._init_vllm
    assert text_of(start).rstrip().endswith("accelerator.wait_for_everyone()"), (
        f"a failed start no longer leaves one wait to the other ranks: {breaks(VLLM)}"
    )
    made = {
        ast.unparse(node.targets[0]): ast.unparse(node.value.func)
        for node in ast.walk(tree_of(start))
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
    }
    assert made["self.vllm_client"] == "VLLMClient", breaks(f"{VLLM}.vllm_client")
    assert made["self.llm"] == "LLM", breaks(f"{VLLM}.llm")
    asked = {ast.unparse(call.func) for call in calls(start, "init_communicator")}
    assert asked == {"self.vllm_client.init_communicator"}, breaks(f"{VLLM}.vllm_client")
    assert_parts(start, f"{VLLM}.llm", "self.llm.sleep(level=2)")
    push = f"{VLLM}._push_param_to_vllm"
    assert_parts(found(push), push, "self.vllm_client.update_named_param(name, param)")
    loaded = [ast.unparse(call.args[0]) for call in calls(found(push), "load_weights")]
    assert loaded == ["[(name, param)]"], breaks(push)
    assert_names("trl.generation.vllm_generation.extract_logprobs", ["all_outputs"])
    backend = "trl.distributed.DistributedBackend"
    assert names(found(backend).gather_params) == ["params"], breaks(backend)


def test_trls_generate_still_overwrites_the_weights_that_were_sent():
    assert any(
        ast.unparse(call.args[0]) == "'reload_weights'"
        for call in calls(vllm_generation.VLLMGeneration.generate, "collective_rpc")
    ), "TRL issue 5312 may be solved; host.vllm.Colocated may use VLLMGeneration.generate"


def test_trls_client_asks_and_fails_as_we_read_it():
    client, why = vllm_client.VLLMClient, breaks(f"{VLLM}.vllm_client")
    asked = {"prompts", "n", "temperature", "top_p", "max_tokens", "logprobs", "generation_kwargs"}
    assert asked <= set(names(client.generate)), why
    text = text_of(client.generate)
    assert "raise Exception(f'Request failed: {response.status_code}" in text, why
    for field in ("prompt_ids", "completion_ids", "logprobs", "logprob_token_ids"):
        assert f"json_response['{field}']" in text, why
    assert "timeout" not in text, "TRL's client has a time limit of its own now"
    assert_parts(client.__init__, f"{VLLM}.vllm_client", "self.session = requests.Session()")


@pytest.mark.parametrize(
    "module", ["trl/scripts/vllm_serve.py", "axolotl/scripts/vllm_serve_lora.py"]
)
def test_both_servers_have_the_endpoints_that_are_called(module):
    # Read as text, for it can't be imported without vLLM.
    package, *rest = module.split("/")
    folder = Path(importlib.util.find_spec(package).origin).parent
    tree = ast.parse(folder.joinpath(*rest).read_text(encoding="utf-8"))
    routes = {
        ast.unparse(decorator)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for decorator in node.decorator_list
    }
    for path in (
        *("generate", "init_communicator", "update_named_param", "reset_prefix_cache"),
        "close_communicator",
    ):
        assert any(route.startswith(f"app.post('/{path}/'") for route in routes), (
            f"{module} has no /{path}/"
        )
    for path in ("health", "get_world_size"):
        assert any(route.startswith(f"app.get('/{path}/'") for route in routes), (
            f"{module} has no /{path}/"
        )
    nodes = [node for node in ast.walk(tree) if isinstance(node, (ast.Call, ast.keyword))]
    texts = {ast.unparse(node) for node in nodes}
    assert "generation_kwargs.update(request.generation_kwargs)" in texts, "seeds don't arrive"
    assert "logprobs_mode='processed_logprobs'" in texts, f"{module} gives other log-probs"
    words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert "prompt_token_ids" in words, f"{module} takes no token ids"
