"""The cache with room: what the host's own cache gives, without its copies."""

import assets
import pytest
import torch
from transformers import DynamicCache, DynamicLayer, MistralConfig, MistralForCausalLM

from sera_plugin.host import cache as growing
from sera_plugin.host.cache import growing_cache

VOCABULARY, ROWS = 40, 3


@pytest.fixture(scope="module")
def llama():
    return assets.small_llama(VOCABULARY).eval()


@pytest.fixture(scope="module")
def mistral():
    """Every layer sees a window of 8 tokens."""
    torch.manual_seed(0)
    config = MistralConfig(vocab_size=VOCABULARY, sliding_window=8, **assets.SMALLEST)
    return MistralForCausalLM(config).eval()


def logits_of(model, cache, steps, crop):
    """Logits of a prompt, then of token after token, with rows doubled and dropped on the way."""
    draw = torch.Generator().manual_seed(1)
    found, rows = [], ROWS
    with torch.no_grad():
        for step in range(steps):
            ids = torch.randint(VOCABULARY, (rows, 6 if step == 0 else 1), generator=draw)
            found.append(model(input_ids=ids, past_key_values=cache, use_cache=True).logits)
            if step == 0:
                cache.batch_repeat_interleave(2)
                rows *= 2
            if step == steps // 2:
                kept = torch.tensor([4, 1, 2])
                cache.batch_select_indices(kept)
                rows = len(kept)
            if crop and step == steps - 3:
                cache.crop(-2)
    return found


@pytest.mark.parametrize("steps", [7, growing.STEP + 9])
@pytest.mark.parametrize(("name", "crop"), [("llama", True), ("llama", False), ("mistral", False)])
def test_logits_are_those_of_the_hosts_cache_to_the_bit(name, crop, steps, request):
    model = request.getfixturevalue(name)
    pairs = zip(
        logits_of(model, growing_cache(model.config), steps, crop),
        logits_of(model, DynamicCache(config=model.config), steps, crop),
        strict=True,
    )
    assert all(torch.equal(ours, hosts) for ours, hosts in pairs)


def test_only_layers_of_full_attention_grow(llama, mistral):
    assert {type(layer) for layer in growing_cache(llama.config).layers} == {growing.GrowingLayer}
    windows = [type(layer) for layer in DynamicCache(config=mistral.config).layers]
    assert DynamicLayer not in windows
    assert [type(layer) for layer in growing_cache(mistral.config).layers] == windows


def test_a_buffer_is_made_once_per_step_tokens():
    layer, made = growing.GrowingLayer(), set()
    new = torch.arange(2.0 * 1 * 1 * 4).reshape(2, 1, 1, 4)
    for token in range(2 * growing.STEP + 2):
        keys, values = layer.update(new + token, -new - token)
        made.add((keys.data_ptr(), values.data_ptr()))
    assert len(made) == 2
    assert torch.equal(keys[:, :, :, 0], torch.arange(2.0 * growing.STEP + 2) + new[:, :, :, 0])
    assert torch.equal(values, -keys)


def test_dropped_rows_free_their_buffer_at_once():
    layer = growing.GrowingLayer()
    layer.update(torch.ones(4, 1, 3, 2), torch.ones(4, 1, 3, 2))
    assert layer.keys.untyped_storage().nbytes() == 4 * (3 + growing.STEP) * 2 * 4
    layer.batch_select_indices(torch.tensor([0]))
    assert not layer._buffers
    assert not layer._views
    assert layer.keys.untyped_storage().nbytes() == 3 * 2 * 4


def test_what_the_host_puts_in_their_place_is_what_grows():
    layer = growing.GrowingLayer()
    layer.update(torch.ones(2, 1, 3, 2), torch.ones(2, 1, 3, 2))
    layer.reorder_cache(torch.tensor([1, 0]))
    layer.keys, layer.values = layer.keys * 5, layer.values * 7
    keys, values = layer.update(torch.zeros(2, 1, 1, 2), torch.zeros(2, 1, 1, 2))
    assert keys[0, 0, :, 0].tolist() == [5, 5, 5, 0]
    assert values[1, 0, :, 1].tolist() == [7, 7, 7, 0]
