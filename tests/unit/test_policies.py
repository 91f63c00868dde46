"""Snapshots give back every byte, and each model of a run scores as what it is."""

import copy
import os
import re
from pathlib import Path

import assets
import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from sera_plugin.data.candidates import Source
from sera_plugin.data.store import RunStore
from sera_plugin.host.facts import Models
from sera_plugin.runtime.errors import StoreError
from sera_plugin.scoring.policies import Policies
from sera_plugin.scoring.snapshot import Snapshot

INPUT = torch.tensor([[3, 1, 4, 1, 5, 9]])


def small_model(dtype=torch.float32, **changes):
    return assets.small_llama(30, attention_dropout=0.5, **changes).to(dtype)


def with_adapter(seed=1):
    model = get_peft_model(
        small_model(), LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", r=4)
    )
    shift(model, seed)
    return model


@torch.no_grad()
def shift(model, seed):
    """What training does: move every trainable weight."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.3 * torch.randn_like(parameter, dtype=torch.float32))


def bytes_of(model):
    return {
        name: tensor.detach().contiguous().view(torch.uint8).clone()
        for name, tensor in model.state_dict().items()
    }


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def logits(forward):
    return forward(input_ids=INPUT, use_cache=False).logits.detach()


KINDS = {
    "fp32": small_model,
    "bf16": lambda: small_model(torch.bfloat16),
    "tied": lambda: small_model(tie_word_embeddings=True),
    "adapter": with_adapter,
}


@pytest.mark.parametrize("kind", KINDS)
def test_swapping_in_shows_the_old_policy_and_restores_every_byte(kind):
    model = KINDS[kind]().eval()
    snapshot, old, old_logits = Snapshot.take(model), bytes_of(model), logits(model)
    shift(model, 7)
    new, new_logits = bytes_of(model), logits(model)
    assert not same(old, new)
    with snapshot.swapped_in(model):
        assert same(bytes_of(model), old)
        assert torch.equal(logits(model), old_logits)
    assert same(bytes_of(model), new)
    assert torch.equal(logits(model), new_logits)


def test_weights_that_are_no_numbers_come_back_too():
    model = small_model()
    snapshot = Snapshot.take(model)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = torch.nan
        model.lm_head.weight[0, 1] = -0.0
    before = bytes_of(model)
    with snapshot.swapped_in(model):
        assert torch.isfinite(model.lm_head.weight).all()
    assert same(bytes_of(model), before)


def test_every_byte_is_restored_when_the_body_raises():
    model = with_adapter()
    snapshot = Snapshot.take(model)
    shift(model, 7)
    before = bytes_of(model)

    def fail():
        with snapshot.swapped_in(model):
            assert not same(bytes_of(model), before)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert same(bytes_of(model), before)


def test_a_snapshot_of_another_model_is_refused_and_changes_nothing():
    model = small_model()
    before = bytes_of(model)
    with (
        pytest.raises(KeyError, match=r"q_proj\.lora_A"),
        Snapshot.take(with_adapter()).swapped_in(model),
    ):
        pass
    assert same(bytes_of(model), before)


def test_a_snapshot_holds_trainable_weights_alone_and_is_a_copy():
    model = with_adapter()
    snapshot = Snapshot.take(model)
    assert snapshot.weights
    assert all("lora_" in name for name in snapshot.weights)
    kept = {name: tensor.clone() for name, tensor in snapshot.weights.items()}
    shift(model, 7)
    assert all(torch.equal(snapshot.weights[name], kept[name]) for name in kept)


@pytest.mark.parametrize("kind", KINDS)
def test_a_snapshot_can_be_stored(kind, tmp_path):
    snapshot = Snapshot.take(KINDS[kind]())
    snapshot.save(tmp_path / "policy.safetensors")
    loaded = Snapshot.load(tmp_path / "policy.safetensors")
    assert loaded.weights.keys() == snapshot.weights.keys()
    for name, tensor in snapshot.weights.items():
        assert loaded.weights[name].dtype == tensor.dtype
        assert torch.equal(loaded.weights[name], tensor)
    assert [path.name for path in tmp_path.iterdir()] == ["policy.safetensors"]


def test_a_snapshot_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: (done.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))
    )
    monkeypatch.setattr(
        Path, "replace", lambda path, to: (done.append(str(to)), replace(path, to))[1]
    )
    path = tmp_path / "policy.safetensors"
    Snapshot.take(small_model()).save(path)
    assert [re.sub(r"\.[0-9a-f]{16}\.tmp", ".tmp", name) for name in done] == [
        str(tmp_path / ".policy.safetensors.tmp"), str(path), str(tmp_path),
    ]  # fmt: skip


def test_a_snapshot_that_cant_be_stored_is_one_sentence(tmp_path):
    path = tmp_path / "a file" / "policy.safetensors"
    path.parent.write_text("in the way")
    with pytest.raises(StoreError, match=r"can't be written \(.*Not a directory"):
        Snapshot.take(small_model()).save(path)


def flip(path, where):
    content = bytearray(path.read_bytes())
    content[where(content)] ^= 1
    path.write_bytes(content)


SNAPSHOT_DAMAGE = {
    "a weight": lambda path: flip(path, lambda content: len(content) - 9),
    "the name of a weight": lambda path: flip(path, lambda content: content.index(b"lm_head")),
    "the dtype": lambda path: path.write_bytes(path.read_bytes().replace(b'"F32"', b'"I32"')),
    "the checksum": lambda path: flip(path, lambda content: content.index(b"sha256") + 10),
    "no checksum": lambda path: save_file(load_file(path), path),
    "the length of the header": lambda path: flip(path, lambda content: 1),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", SNAPSHOT_DAMAGE)
def test_a_damaged_snapshot_is_never_used(tmp_path, damage):
    path = tmp_path / "policy-02.safetensors"
    Snapshot.take(small_model()).save(path)
    before = path.read_bytes()
    SNAPSHOT_DAMAGE[damage](path)
    assert not path.exists() or path.read_bytes() != before
    with pytest.raises(StoreError) as caught:
        Snapshot.load(path)
    text = str(caught.value)
    assert text.startswith(f"can't resume: {path} is ")
    assert text.endswith("or resume from an earlier checkpoint, from which it is made anew.")
    assert "\n" not in text


def policies_of(model, ref_model=None, fsdp=False, step=None):
    models = Models(
        accelerator=Accelerator(cpu=True),
        policy=model,
        wrapped=model,
        reference=ref_model,
        fsdp=fsdp,
        checkpointing={"use_reentrant": False},
    )
    return Policies(models, RunStore("out").work, step or (lambda: 0))


def test_the_policy_scores_without_dropout_and_trains_on_as_before():
    model = small_model()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    expected = logits(copy.deepcopy(model).eval())
    with policies_of(model).policy() as forward:
        assert not model.is_gradient_checkpointing
        assert torch.equal(logits(forward), expected)
    assert model.is_gradient_checkpointing
    assert all(module.training for module in model.modules())


def test_the_reference_of_a_full_model_is_the_hosts():
    model, reference = small_model(), small_model()
    shift(model, 7)
    expected = logits(reference.eval())
    with policies_of(model, reference.train()).reference() as forward:
        assert torch.equal(logits(forward), expected)
    assert reference.training


def test_the_reference_of_an_adapter_is_its_base():
    model = with_adapter().eval()
    base = logits(small_model().eval())
    policy = logits(model)
    assert not torch.allclose(policy, base)
    policies = policies_of(model)
    with policies.reference() as forward:
        assert torch.equal(logits(forward), base)
    with policies.policy() as forward:
        assert torch.equal(logits(forward), policy)


def test_an_adapter_that_is_trained_further_has_its_beginning_as_reference():
    model = with_adapter()
    torch.manual_seed(0)
    model.add_adapter("ref", model.peft_config["default"])
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name in parameters:
            if ".ref." in name:
                parameters[name].copy_(parameters[name.replace(".ref.", ".default.")])
    start = logits(model.eval())
    shift(model, 7)
    with policies_of(model).reference() as forward:
        assert torch.equal(logits(forward), start)
    assert model.active_adapter == "default"
    assert not torch.equal(logits(model), start)


def test_a_moved_reference_is_the_snapshot():
    model, first = small_model(), small_model()
    policies = policies_of(model, first)
    shift(model, 7)
    policies.reference_snapshot = Snapshot.take(model)
    moved = logits(copy.deepcopy(model).eval())
    shift(model, 8)
    now = bytes_of(model)
    with policies.reference() as forward:
        assert torch.equal(logits(forward), moved)
    assert same(bytes_of(model), now)


@pytest.mark.parametrize("fsdp", [False, True])
def test_the_model_that_generates_is_the_bare_one_in_evaluation_mode(fsdp):
    model = with_adapter().train()
    with policies_of(model, fsdp=fsdp).generating() as (bare, synced):
        assert bare is model
        assert synced is fsdp  # under FSDP every rank must take every step
        assert not any(module.training for module in bare.modules())
    assert model.training


@pytest.mark.parametrize("kind", ["adapter", "full", "previous"])
def test_the_reference_generates_as_what_it_scores(kind):
    model = with_adapter() if kind == "adapter" else small_model()
    base = small_model().eval()
    policies = policies_of(model, small_model().train() if kind == "full" else None)
    if kind == "previous":
        policies.reference_snapshot = Snapshot.take(model)
    if kind != "adapter":
        shift(model, 7)
    before = bytes_of(model)
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    expected = base.generate(INPUT, **options)
    with policies.generating(Source.REFERENCE) as (bare, synced):
        assert not synced
        assert not any(module.training for module in bare.modules())
        assert torch.equal(logits(bare), logits(base))
        assert torch.equal(bare.generate(INPUT, **options), expected)
    assert same(bytes_of(model), before)
    assert policies.origin(Source.REFERENCE, "round-02") == policies.reference_origin("round-02")
    assert policies.origin(Source.POLICY, "round-02") == policies.policy_origin("round-02")


@pytest.mark.parametrize("adapter", [True, False])
def test_passes_are_keyed_by_the_weights_of_their_model(adapter):
    model = with_adapter() if adapter else small_model()
    done = [0]
    policies = policies_of(model, None if adapter else small_model(), step=lambda: done[0])
    earlier = Snapshot.take(model)
    policy, reference = policies.policy_origin("label"), policies.reference_origin("label")
    assert policy.label == "label"
    assert (policy.model == reference.model) is not adapter
    assert policies.earlier_origin(earlier, "label") == policy
    shift(model, 7)
    done[0] += 1
    assert policies.policy_origin("label").model != policy.model
    assert policies.reference_origin("label") == reference
    assert policies.earlier_origin(earlier, "label") == policy
    policies.reference_snapshot = earlier
    assert policies.reference_origin("label") == policy
