"""bitsandbytes on a CPU: gradients through a base in 4 bits, before and after an evaluation."""

from pathlib import Path

import assets
import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn import Linear4bit
from host_source import breaks
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from sera_plugin.host import quantised
from sera_plugin.runtime.errors import SeraConfigError
from sera_plugin.scoring.scorer import inference

pytestmark = pytest.mark.contract
SYMBOL = "bitsandbytes.nn.Linear4bit.support_avx512bf16_for_cpu"
TOKENS = torch.arange(24).reshape(2, 12)
SIZES = {"hidden_size": 64, "intermediate_size": 128}
packs = pytest.mark.skipif(not has_avx512bf16(), reason="this processor has no AVX512-BF16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small")
    torch.manual_seed(0)
    config = assets.LlamaConfig(vocab_size=64, **(assets.SMALLEST | SIZES))
    assets.LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture
def policy(folder):
    """QLoRA as Axolotl sets it up, with an adapter that is not zero."""
    bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
    )
    base = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=bits, device_map={"": "cpu"}, dtype=torch.float32
    )
    assert any(isinstance(module, Linear4bit) for module in base.modules())
    torch.manual_seed(1)
    settings = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(base, settings).train()


def gradients(policy):
    policy.zero_grad()
    policy(input_ids=TOKENS, labels=TOKENS).loss.backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.requires_grad}


def evaluate(policy):
    with inference(policy):
        return policy(input_ids=TOKENS).logits


def test_an_evaluation_changes_no_gradient(policy):
    assert quantised.keep_gradients(policy) == 14, breaks(SYMBOL)
    before = gradients(policy)
    logits = evaluate(policy)
    after = gradients(policy)
    assert all(float(gradient.abs().max()) > 0 for gradient in before.values())
    for name, gradient in before.items():
        assert torch.equal(after[name], gradient), (name, breaks(SYMBOL))
    torch.testing.assert_close(logits, policy(input_ids=TOKENS).logits, atol=0, rtol=0)


@packs
def test_without_the_switch_gradients_are_wrong(policy):
    """What the switch is for; when this fails, bitsandbytes needs it no longer."""
    before = gradients(policy)
    evaluate(policy)
    after = gradients(policy)
    first = next(iter(before))
    difference = float((after[first] - before[first]).norm() / before[first].norm())
    assert difference > 0.1, difference


@packs
def test_weights_that_are_packed_already_are_refused(policy):
    evaluate(policy)
    with pytest.raises(SeraConfigError, match=r"load_in_4bit: true .* has packed the weights"):
        quantised.keep_gradients(policy)


@packs
def test_a_layer_that_packs_in_spite_of_the_switch_is_refused(policy, monkeypatch):
    """As with a bitsandbytes that has given the switch another name."""
    on = property(lambda layer: True, lambda layer, value: None)
    monkeypatch.setattr(Linear4bit, "support_avx512bf16_for_cpu", on, raising=False)
    with pytest.raises(SeraConfigError, match=r"load_in_4bit: true .* passes no gradients"):
        quantised.keep_gradients(policy)


def test_a_model_without_such_layers_is_left_alone():
    assert quantised.keep_gradients(torch.nn.Linear(2, 2)) == 0
