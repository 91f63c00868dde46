"""Passes that are stopped and started again, and runs that are killed while they sample."""

from __future__ import annotations

import functools
from dataclasses import replace

import assets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model

from sera_plugin.data.candidates import Source
from sera_plugin.host.models import adapter_weights, fingerprint
from sera_plugin.runtime.shards import LOG, Origin, round_label
from sera_plugin.sampling import sampler as generation
from sera_plugin.sampling.sampler import Prompt, Sampler
from sera_plugin.sampling.settings import Sampling
from sera_plugin.sampling.transformers_engine import TransformersEngine
from sera_plugin.scoring import scorer as scoring
from sera_plugin.scoring.completions import CompletionList
from sera_plugin.scoring.scorer import Scorer, inference

VOCABULARY = 40
draw = np.random.default_rng(5)


def tokens(count):
    return tuple(int(t) for t in draw.integers(4, VOCABULARY, count))


ROWS = [(tokens(3), tokens(4)) for _ in range(14)]
PROMPTS = [Prompt(f"example-{i}", tokens(3)) for i in range(14)]
SAMPLING = Sampling(
    num_candidates=2,
    temperature=1.0,
    top_p=1.0,
    max_new_tokens=6,
    sequence_len=64,
    ending=(2, 3),
    stops=frozenset({1, 2}),
    pad_token_id=0,
    token_budget=36,
)
# Both passes have 7 batches of two, in shards of two batches: 4 shards.
BATCHES, SHARD = 7, 2


@pytest.fixture
def warnings(monkeypatch):
    """What the module warns of."""
    found = []
    monkeypatch.setattr(LOG, "warning", lambda text, *values: found.append(text % values))
    return found


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr(scoring, "SHARD_BATCHES", SHARD)
    monkeypatch.setattr(generation, "SHARD_BATCHES", SHARD)
    return tiny_model()


def tiny_model():
    return assets.small_llama(VOCABULARY, pad_token_id=0, eos_token_id=1, bos_token_id=None).eval()


class Stop(Exception):
    pass


class Passes:
    """Runs passes of a model, counts their batches, and stops them in a given forward pass."""

    def __init__(self, model, folder):
        self.model, self.folder = model, folder

    def origin(self):
        return Origin(self.folder, round_label(2), fingerprint(self.model))

    def logps(self, rows=ROWS, origin=None, **changes):
        settings = {"pad_token_id": 0, "max_length": 30, "token_budget": 14} | changes
        with inference(self.model):
            scorer = Scorer(Accelerator(cpu=True), **settings)
            return scorer.logps(self.model, CompletionList(rows), "test", origin).logps.tobytes()

    def rollouts(self, prompts=PROMPTS, origin=None, seed=1, number=2, **changes):
        sampler = Sampler(Accelerator(cpu=True), replace(SAMPLING, **changes), TransformersEngine())
        with torch.no_grad():
            return list(
                sampler.completions(
                    self.model, prompts, seed, number, synced=False, origin=origin
                ).items()
            )

    def count(self, kind, monkeypatch, stop_in_batch=None, **changes):
        """The pass's result, or None if it was stopped, and how many batches were computed."""
        original, batches = self.model.forward, 0

        @functools.wraps(original)
        def forward(*args, **kwargs):
            nonlocal batches
            batches += kwargs["input_ids"].shape[1] > 1  # not a later token of an answer
            if batches == stop_in_batch:
                raise Stop
            return original(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(self.model, "forward", forward)
            try:
                return getattr(self, kind)(origin=self.origin(), **changes), batches
            except Stop:
                return None, batches - 1


KINDS = ["logps", "rollouts"]


@pytest.mark.parametrize("stop", range(1, BATCHES + 1))
@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_pass_repeats_one_shard_at_most(tmp_path, monkeypatch, model, kind, stop):
    passes = Passes(model, tmp_path)
    expected = getattr(passes, kind)()
    assert passes.count(kind, monkeypatch, stop) == (None, stop - 1)
    found, batches = passes.count(kind, monkeypatch)
    assert found == expected
    assert batches == BATCHES - (stop - 1) // SHARD * SHARD
    assert stop - 1 + batches - BATCHES < SHARD  # what was computed twice
    assert passes.count(kind, monkeypatch) == (expected, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_shard_is_computed_again(tmp_path, monkeypatch, model, warnings, kind):
    passes = Passes(model, tmp_path)
    expected, _ = passes.count(kind, monkeypatch)
    damaged = sorted(tmp_path.rglob("shard-00002.*"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert passes.count(kind, monkeypatch) == (expected, SHARD)
    assert len(warnings) == 1
    assert passes.count(kind, monkeypatch) == (expected, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_shards_of_other_groups_are_reused(tmp_path, monkeypatch, model, kind):
    # As with another number of ranks: the groups differ, the batches do not.
    passes = Passes(model, tmp_path)
    expected = getattr(passes, kind)()
    passes.count(kind, monkeypatch, 6)
    monkeypatch.setattr({"logps": scoring, "rollouts": generation}[kind], "SHARD_BATCHES", 3)
    assert passes.count(kind, monkeypatch) == (expected, BATCHES - 4)


CHANGES = [
    ("logps", {"max_length": 29}),
    ("logps", {"token_budget": 15}),
    ("logps", {"rows": [*ROWS[:-1], (ROWS[-1][0], (5, *ROWS[-1][1][1:]))]}),
    ("logps", {"rows": [*ROWS[:-1], (ROWS[-1][0] + ROWS[-1][1][:1], ROWS[-1][1][1:])]}),
    ("rollouts", {"seed": 2}),
    ("rollouts", {"number": 3}),
    ("rollouts", {"prompts": [*PROMPTS[:-1], Prompt("other", PROMPTS[-1].token_ids)]}),
    ("rollouts", {"prompts": [*PROMPTS[:-1], Prompt("example-13", (5, 6, 7))]}),
    ("rollouts", {"num_candidates": 1, "token_budget": 18}),
    ("rollouts", {"temperature": 0.9}),
    ("rollouts", {"writer": Source.REFERENCE}),
    ("rollouts", {"first_candidate": 1}),
    ("rollouts", {"top_p": 0.9}),
    ("rollouts", {"max_new_tokens": 5, "token_budget": 34}),
    ("rollouts", {"sequence_len": 63}),
    ("rollouts", {"ending": (2,)}),
    ("rollouts", {"stops": frozenset({2})}),
    ("rollouts", {"pad_token_id": 3}),
    ("rollouts", {"token_budget": 37}),
]


@pytest.mark.parametrize(("kind", "change"), CHANGES)
def test_nothing_is_reused_after_a_change(tmp_path, monkeypatch, model, kind, change):
    passes = Passes(model, tmp_path)
    passes.count(kind, monkeypatch)
    expected = getattr(passes, kind)(**change)
    assert passes.count(kind, monkeypatch, **change) == (expected, BATCHES)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_reused_for_other_weights(tmp_path, monkeypatch, model, kind):
    passes = Passes(model, tmp_path)
    passes.count(kind, monkeypatch)
    with torch.no_grad():
        weight = model.model.layers[1].mlp.up_proj.weight
        weight[3, 2] = torch.nextafter(weight[3, 2], torch.tensor(9.0))
    assert passes.count(kind, monkeypatch)[1] == BATCHES


def test_the_fingerprint_follows_the_weights():
    model, twin = tiny_model(), tiny_model()
    assert fingerprint(model) == fingerprint(twin)
    twin.config.use_cache = False
    assert fingerprint(model) == fingerprint(twin)
    assert fingerprint(model.to(torch.bfloat16)) != fingerprint(twin)
    twin.config.rms_norm_eps *= 2
    assert fingerprint(tiny_model()) != fingerprint(twin)


def test_the_reference_below_an_adapter_stays_what_it_is():
    settings = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "r": 2}
    model = get_peft_model(tiny_model(), LoraConfig(task_type="CAUSAL_LM", **settings))
    model.add_adapter("ref", LoraConfig(task_type="CAUSAL_LM", **settings))

    def identities():
        without = [adapter_weights(model, kept) for kept in (None, "ref")]
        return [fingerprint(model), *(fingerprint(model, some) for some in without)]

    policy, base, reference = identities()
    assert len({policy, base, reference}) == 3
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    moved, *rest = identities()
    assert moved != policy
    assert rest == [base, reference]
    with torch.no_grad():
        model.base_model.model.model.norm.weight.add_(1.0)
    assert base not in identities()
