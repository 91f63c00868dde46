"""The benchmark's arithmetic, its naive passes, and one small run of the whole command."""

import json
import math
from dataclasses import replace
from pathlib import Path

import assets
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import naive, report
from benchmarks.assets import END_OF_TURN, TEMPERATURE, make, row_tokens
from benchmarks.hardware import forward_flops
from benchmarks.presets import TINY
from benchmarks.runs import interleaved
from benchmarks.summary import Bar, Ratio, bars, line, slope
from benchmarks.variants import Variant

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def test_ratio_pairs_turns():
    ratio = Ratio.of([1.0, 4.0, 9.0], [2.0, 4.0, 3.0])
    assert (ratio.median, ratio.low, ratio.high, ratio.turns) == (1.0, 0.5, 3.0, 3)
    with pytest.raises(ValueError, match="2 and 1 turns"):
        Ratio.of([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="0 and 0 turns"):
        Ratio.of([], [])


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_slope_is_the_exponent(exponent):
    sizes = [10, 100, 1_000]
    assert slope(sizes, [3 * n**exponent for n in sizes]) == pytest.approx(exponent)


def test_line_finds_both_parts():
    sizes = [10, 100, 1_000]
    assert line(sizes, [2 + 0.5 * n for n in sizes]) == pytest.approx((0.5, 2.0))


def test_turns_are_interleaved():
    order = []

    def measure(variant, turn):
        order.append((turn, variant.name))
        return {}

    variants = [Variant("a", ""), Variant("b", "", barred=False)]
    found = interleaved(variants, 3, measure)
    assert order == [(0, "a"), (0, "b"), (1, "a"), (1, "b"), (2, "a")]
    assert {name: len(turns) for name, turns in found.items()} == {"a": 3, "b": 2}
    order.clear()
    interleaved(variants, 1, measure)
    assert order == [(0, "a"), (0, "b")]


@pytest.mark.parametrize(
    ("found", "limit", "verdict"),
    [
        (0.5, 0.5, "reached"),
        (0.53, 0.5, "missed by 0.03"),
        (None, 0.5, "not measured"),
        (0.4, None, ""),
    ],
)
def test_verdicts(found, limit, verdict):
    assert Bar("what", limit, found, "").verdict == verdict


def _run(seconds, **more):
    return {"seconds": seconds, "cpu_seconds": seconds, "steps": 1, **more}


def test_the_table_compares_with_the_plain_run_of_the_same_turn():
    runs = {
        "plain": [_run(10.0), _run(20.0)],
        "select-host-gc": [_run(8.0), _run(18.0)],
        "select": [_run(4.0)],
    }
    table = {bar.what: bar for bar in bars({"runs": runs})}
    host = table["selection only, rescoring, host's collection in both"]
    assert host.found == pytest.approx(0.85)
    assert host.verdict == "missed by 0.4"
    assert table["our collection alone: rescoring, against the host's"].found == 0.5
    assert table["full SeRA, as shipped"].found is None
    memory = table["peak GPU memory in training steps, against plain DPO"]
    assert (memory.found, memory.text) == (None, "needs a GPU")


def test_gpu_memory_is_that_of_training_steps():
    runs = {
        "plain": [_run(1.0, cuda_step_peak_gib=10.0, cuda_peak_gib=10.0)],
        "select": [_run(1.0, cuda_step_peak_gib=7.0, cuda_peak_gib=20.0)],
    }
    memory = next(bar for bar in bars({"runs": runs}) if "GPU" in bar.what)
    assert memory.found == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("collecting", "words"), [(0.4, "0.40 s with the host's."), (0.01, "had no effect")]
)
def test_a_switch_without_effect_is_said(collecting, words):
    runs = {
        "plain": [_run(9.0, collection_seconds=0.4)],
        "select-host-gc": [_run(9.0, collection_seconds=collecting)],
    }
    assert words in report._gc_sentence(runs)


def test_naive_scores_equal_a_plain_loop():
    model = assets.small_llama(50).eval()
    rows = [([3, 4, 5], [6, 7], [8]), ([9], [10, 11, 12, 13], [14, 15]), ([1, 2], [3], [4, 5, 6])]
    with torch.no_grad():
        found, computed = naive.score(model, rows, batch=2, max_length=4, pad=0, device=CPU)
        for row, (prompt, *answers) in enumerate(rows):
            for side, answer in enumerate(answers):
                tokens = [*prompt, *answer][:4]
                logps = torch.log_softmax(model(torch.tensor([tokens])).logits[0], dim=-1)
                places = range(len(prompt), len(tokens))
                expected = sum(float(logps[place - 1, tokens[place]]) for place in places)
                assert found[row, side] == pytest.approx(expected, abs=1e-5)
    assert found.shape == (3, 2)
    assert computed == 4 * 4 + 2 * 4


def test_naive_generation_counts_tokens_up_to_the_stop():
    model = assets.small_llama(50).eval()
    common = {
        "batch": 2,
        "candidates": 3,
        "temperature": 1.0,
        "top_p": 1.0,
        "max_new_tokens": 5,
        "pad": 0,
        "device": CPU,
    }
    prompts = [[3, 4], [5], [6, 7, 8]]
    assert naive.generate(model, prompts, stops=[60], **common) == 3 * 3 * 5
    everything = list(range(50))
    assert naive.generate(model, prompts, stops=everything, **common) == 3 * 3


def test_flops_count_the_head_for_answers_only():
    model = assets.small_llama(50)
    head = 50 * 16
    blocks = sum(p.numel() for p in model.parameters()) - 2 * head
    found = forward_flops(model, np.array([10, 4]), np.array([3, 1]))
    assert found == 2 * blocks * 14 + 2 * head * 4 + 2 * 2 * 16 * (100 + 16)


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    preset = replace(TINY, lengths=(64, 128), pairs=30, scored_pairs=40)
    folder = tmp_path_factory.mktemp("made-up")
    return folder, preset, make(folder, preset)


def test_made_up_rows_have_the_lengths_asked_for(made_up):
    folder, _, setting = made_up
    words = AutoTokenizer.from_pretrained(folder / "model")
    scored = (folder / "scored.jsonl").read_text().splitlines()
    lengths = [length for row in map(json.loads, scored) for length in row_tokens(words, row)]
    assert len(scored) == setting["scored_pairs"] == 40
    assert min(lengths) >= 64 - 8
    assert max(lengths) <= 128 + 8
    train = (folder / "train.jsonl").read_text().splitlines()
    assert len(train) == setting["training_pairs"] == 30
    assert set(train) <= set(scored)


def test_answers_of_the_random_model_end(made_up):
    folder, preset, _ = made_up
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    words = AutoTokenizer.from_pretrained(folder / "model")
    ids = torch.randint(0, len(words), (8, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        shares = (model(ids).logits / TEMPERATURE).softmax(dim=-1)
    chance = float(shares[..., words.convert_tokens_to_ids(END_OF_TURN)].mean())
    assert 0.5 < chance * preset.answer_tokens < 2


def test_docs_keep_what_stands_around_the_results(tmp_path):
    page, table = tmp_path / "page.md", tmp_path / "table.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    table.write_text("new\n")
    report.into_docs(page, table, "name", with_plot=True)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "new\n" in text
    assert "results/name.svg" in text


@pytest.fixture(scope="module")
def results(tmp_path_factory, run_python):
    folder = tmp_path_factory.mktemp("bench")
    command = ("-m", "benchmarks", "--quick", "--out", folder)
    more = ("--variants", "plain,select", "--paged")
    run_python(*command, *more, env={"PYTHONPATH": str(ROOT)})
    (found,) = folder.glob("*.json")
    assert found.with_suffix(".md").exists()
    assert found.with_suffix(".svg").read_text().lstrip().startswith("<?xml")
    return json.loads(found.read_text())


@pytest.mark.cli
def test_the_command_measures_runs_passes_and_growth(results):
    plain, ours = (results["runs"][name][0] for name in ("plain", "select"))
    assert plain["tokens"] == 3 * results["setting"]["training_tokens"]
    assert 0 < ours["tokens"] < plain["tokens"]
    assert [entry["round"] for entry in ours["rounds"]] == [1, 2, 3]
    assert plain["rounds"] == []
    assert plain["collections"] >= plain["steps"]
    each = plain["collection_seconds"] / plain["steps"]
    assert ours["collection_seconds"] < 0.5 * each * ours["steps"]
    for run in (plain, ours):
        assert 0 < run["seconds"] < run["process_seconds"]
        assert 0 < run["rss_before_gib"] <= run["rss_peak_gib"]

    passes = results["passes"]
    assert passes["margins"]["difference"] <= 1e-4 < passes["margins"]["mean_size"]
    assert passes["scoring"]["difference"] <= 1e-2
    assert passes["shared"]["answers"] == 4
    assert passes["shared"]["difference"] <= 1e-3
    # Prompts may be too short for reading them once to save work; then nothing is shared.
    tokens = passes["shared"]["tokens"]
    assert 0 < tokens["once"] <= tokens["each"]
    assert 0 <= passes["scoring"]["fast_padding"] < passes["scoring"]["naive_padding"] < 1
    most = 16 * 2 * 16
    for side in ("fast", "paged", "naive"):
        assert passes["generation"][f"{side}_batch"] >= 4 * 2
        (tokens,) = passes["generation"][f"{side}_tokens"]
        assert most / 4 < tokens < most
        assert all(seconds > 0 for seconds in passes["generation"][f"{side}_seconds"])

    for done in results["growth"].values():
        assert math.isfinite(done["slope"])
        assert min(done["seconds"]) > 0
    assert str(ROOT) not in json.dumps(results)
