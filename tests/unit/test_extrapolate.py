"""Models beyond the end of a run: the arithmetic, the files, and what is refused."""

from __future__ import annotations

import ctypes
import gc
import itertools
import json
import math
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from assets import small_llama
from command_line import MakeConfig
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from benchmarks.evidence import expo
from benchmarks.evidence.runs import Results, Settings, report_runs
from benchmarks.evidence.study import RESULTS
from sera_plugin.commands import extrapolate_weights
from sera_plugin.commands.extrapolate import extrapolate
from sera_plugin.commands.extrapolate_eval import LOSSES, Evaluation, mean_over_batches
from sera_plugin.commands.extrapolate_files import Weights
from sera_plugin.commands.extrapolate_sources import TrainedRun
from sera_plugin.commands.extrapolate_weights import base_name, extrapolated, scaled
from sera_plugin.host import loading
from sera_plugin.runtime.errors import RunError, SeraConfigError

VOCABULARY = 23


def test_a_tensor_by_hand() -> None:
    end, start = torch.tensor([[1.0, 2.0], [-3.0, 0.0]]), torch.tensor([[0.5, 2.5], [-3.0, 4.0]])
    assert extrapolated(end, start, 0.5).tolist() == [[1.25, 1.75], [-3.0, -2.0]]
    assert extrapolated(end, start, 1.0).tolist() == [[1.5, 1.5], [-3.0, -4.0]]


def test_half_precision_is_computed_in_float32() -> None:
    torch.manual_seed(0)
    start = torch.randn(999).bfloat16()
    end = (start.float() + 0.02 * torch.randn(999)).bfloat16()
    wide = end.float().numpy() + np.float32(0.3) * (end.float().numpy() - start.float().numpy())
    found = extrapolated(end, start, 0.3)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, torch.from_numpy(wide).bfloat16())
    assert not torch.equal(found, end + 0.3 * (end - start))


def test_a_weight_that_did_not_move_stays_though_the_start_is_stored_finer() -> None:
    start = torch.randn(999, generator=torch.Generator().manual_seed(1))
    assert torch.equal(extrapolated(start.bfloat16(), start, 3.0), start.bfloat16())


def test_blocks_numbers_that_are_whole_and_a_scalar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extrapolate_weights, "BLOCK", 4)
    end, start = torch.arange(15.0).view(3, 5), torch.ones(3, 5)
    assert torch.equal(extrapolated(end, start, 2.0), 3 * end - 2)
    assert extrapolated(torch.tensor(2.0), torch.tensor(1.0), 0.5).tolist() == 2.5
    assert extrapolated(torch.tensor([7]), torch.tensor([3]), 0.5).tolist() == [7]
    with pytest.raises(OverflowError, match="float16"):
        extrapolated(torch.tensor([6e4], dtype=torch.half), torch.zeros(1), 0.5)


def test_names_in_the_base_model() -> None:
    assert base_name("base_model.model.lm_head.weight") == "lm_head.weight"
    assert base_name("base_model.model.model.embed.base_layer.weight") == "model.embed.weight"
    assert base_name("base_model.model.lm_head.modules_to_save.weight") == "lm_head.weight"


def test_the_config_of_an_adapter() -> None:
    config = {"lora_alpha": 16, "alpha_pattern": {"q_proj": 4}, "r": 8}
    assert scaled(config, 0.3) == {"lora_alpha": 20.8, "alpha_pattern": {"q_proj": 5.2}, "r": 8}
    assert scaled({"lora_alpha": 16}, 0.5) == {"lora_alpha": 24, "alpha_pattern": {}}


def test_losses_and_means_by_hand() -> None:
    margins = np.array([2.0, -1.0])
    values = {name: loss(margins, 0.5).tolist() for name, (_, loss) in LOSSES.items()}
    assert values["sigmoid"] == pytest.approx([math.log1p(math.exp(-1)), math.log1p(math.exp(0.5))])
    assert values["hinge"] == [0.0, 1.5]
    assert values["ipo"] == [1.0, 4.0]  # (m − 1)²
    assert mean_over_batches(np.array([1.0, 0.0, 1.0, 1.0, 0.0]), 2) == pytest.approx(0.5)
    assert mean_over_batches(np.array([1.0, 0.0]), 8) == 0.5


def moved(model: LlamaForCausalLM, seed: int = 5) -> LlamaForCausalLM:
    """The model after training: every weight a little different."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += (0.05 * torch.randn(parameter.shape)).to(parameter.dtype)
    return model


def full_run(
    folder: Path, dtype: torch.dtype = torch.float32, shard: int | str = "5GB", **config: Any
) -> TrainedRun:
    small_llama(VOCABULARY, **config).to(dtype).save_pretrained(
        folder / "base", max_shard_size=shard
    )
    ended = moved(small_llama(VOCABULARY, **config).to(dtype))
    ended.save_pretrained(folder / "out", max_shard_size=shard)
    (folder / "out/tokenizer.json").write_text("{}")
    return TrainedRun(folder / "out", str(folder / "base"), None, None, {})


def weights(folder: Path) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return {name: value.detach() for name, value in model.state_dict().items()}


def expected(run: TrainedRun, alpha: float) -> dict[str, torch.Tensor]:
    start, end = weights(Path(run.base_model)), weights(run.folder)
    return {
        name: (w.float() + alpha * (w.float() - start[name].float())).to(w.dtype)
        for name, w in end.items()
    }


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("read", "written"), [("5GB", 5e9), (6_000, 5e9), ("5GB", 4e3), (6_000, 4e3)]
)
def test_a_whole_model(
    tmp_path: Path, read: Any, written: float, dtype: torch.dtype, tied: bool
) -> None:
    run = full_run(tmp_path, dtype, read, tie_word_embeddings=tied)
    models = extrapolate(run, [0.3, 1.0, 0.3], tmp_path / "beyond", written)
    assert [model.folder.name for model in models] == ["alpha-0.3", "alpha-1"]
    for model in models:
        wanted, found = expected(run, model.alpha), weights(model.folder)
        assert wanted.keys() == found.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        assert found["lm_head.weight"].dtype == dtype
        shards = list(model.folder.glob("model*.safetensors"))
        assert (len(shards) > 1) == (written < 5e9)
        names = [name for shard in shards for name in load_file(shard)]
        assert ("lm_head.weight" in names) != tied
        assert (model.folder / "tokenizer.json").is_file()


@pytest.mark.parametrize("where", ["start", "end"])
def test_a_tied_head_that_is_stored_twice(tmp_path: Path, where: str) -> None:
    run = full_run(tmp_path, tie_word_embeddings=True)
    path = (Path(run.base_model) if where == "start" else run.folder) / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, path, {"format": "pt"})
    [model] = extrapolate(run, [0.5], tmp_path / "beyond")
    wanted, found = expected(run, 0.5), weights(model.folder)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_head_that_the_run_untied(tmp_path: Path) -> None:
    run = full_run(tmp_path, tie_word_embeddings=True)
    untied = LlamaForCausalLM(small_llama(VOCABULARY, tie_word_embeddings=False).config)
    moved(untied).save_pretrained(run.folder)
    [model] = extrapolate(run, [0.5], tmp_path / "beyond")
    end, start = untied.lm_head.weight, weights(Path(run.base_model))["model.embed_tokens.weight"]
    assert torch.equal(weights(model.folder)["lm_head.weight"], end + 0.5 * (end - start))


def test_the_manifest(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    [model] = extrapolate(run, [0.5], tmp_path / "beyond")
    manifest = json.loads((model.folder / "extrapolation.json").read_text())
    assert manifest["alpha"] == 0.5
    assert manifest["run"] == str(run.folder)
    assert manifest["base_model"] == run.base_model
    assert manifest["start"].keys() == {"model.safetensors"}
    assert manifest["end"].keys() == {"model.safetensors", "config.json"}
    written = {path.name for path in model.folder.iterdir()} - {"extrapolation.json"}
    assert manifest["files"].keys() == written
    assert {"sera_plugin", "torch", "transformers"} <= manifest["versions"].keys()


ADAPTERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 3, "v_proj": 7}},
    "whole head": {"modules_to_save": ["lm_head"]},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "bias": {"lora_bias": True},
}


def lora_run(
    folder: Path, dtype: torch.dtype = torch.float32, kind: str = "plain", **keys: Any
) -> TrainedRun:
    """A run whose adapter started with B·A = 0 and has been trained."""
    base = small_llama(VOCABULARY, attention_bias=kind == "bias").to(dtype)
    base.save_pretrained(folder / "base")
    settings = {
        "r": 4,
        "lora_alpha": 10,
        "target_modules": ["q_proj", "v_proj"],
        **ADAPTERS[kind],
        **keys,
    }
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder / "base", dtype=dtype),
        LoraConfig(task_type="CAUSAL_LM", **settings),
        autocast_adapter_dtype=False,
    )
    torch.manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += (0.1 * torch.randn(parameter.shape)).to(dtype)
    model.save_pretrained(folder / "out")
    return TrainedRun(folder / "out", str(folder / "base"), None, None, {})


def merged(run: TrainedRun, adapter: Path) -> dict[str, torch.Tensor]:
    """All weights of the base model with an adapter merged into it, float64."""
    base = AutoModelForCausalLM.from_pretrained(run.base_model, dtype=torch.float64)
    model = PeftModel.from_pretrained(base, str(adapter), autocast_adapter_dtype=False)
    state = model.double().merge_and_unload().state_dict()
    return {name: value.detach() for name, value in state.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_against_merged_weights(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    run = lora_run(tmp_path, dtype, kind)
    [model] = extrapolate(run, [0.3], tmp_path / "beyond")
    base = AutoModelForCausalLM.from_pretrained(run.base_model, dtype=torch.float64).state_dict()
    end, found = merged(run, run.folder), merged(run, model.folder)
    # A weight that was trained whole is rounded to its stored dtype; s·B·A is not.
    rounded = dtype == torch.bfloat16 and kind == "whole head"
    for name, weight in end.items():
        tolerance = 0.01 if rounded and name == "lm_head.weight" else 1e-6
        wanted = weight + 0.3 * (weight - base[name])
        torch.testing.assert_close(found[name], wanted, rtol=tolerance, atol=1e-9)
    assert sum(not torch.equal(weight, base[name]) for name, weight in end.items()) >= 3
    assert not (model.folder / "config.json").exists()
    direct = AutoModelForCausalLM.from_pretrained(model.folder)
    assert direct(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


def test_an_adapter_needs_no_base_model(tmp_path: Path) -> None:
    run = lora_run(tmp_path)
    shutil.rmtree(run.base_model)
    [model] = extrapolate(run, [0.5], tmp_path / "beyond")
    before, after = (load_file(f / "adapter_model.safetensors") for f in (run.folder, model.folder))
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert json.loads((model.folder / "adapter_config.json").read_text())["lora_alpha"] == 15


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(run: TrainedRun, out: Path, alpha: float = 0.5) -> str:
    with pytest.raises((RunError, SeraConfigError)) as error:
        extrapolate(run, [alpha], out)
    assert not list(out.glob("*"))
    said = str(error.value)
    assert said.endswith(".")
    assert "\n" not in said
    return said


@pytest.mark.parametrize("alpha", [0.0, -0.5, -1.0, math.inf, math.nan])
def test_alphas_that_do_not_go_beyond(tmp_path: Path, alpha: float) -> None:
    run = TrainedRun(tmp_path / "out", "base", None, None, {})
    said = refused(run, tmp_path / "beyond", alpha)
    assert said == f"--alpha {alpha:g} is not allowed; it must be a number above 0."


def drop(name: str, path: Path) -> None:
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path, {"format": "pt"})


NORM = "model.norm.weight"
BROKEN: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "vocabulary": (
        lambda base, out: small_llama(VOCABULARY + 1).save_pretrained(base),
        rf"\w+.weight has the shape \({VOCABULARY}, 16\) in .*out and \({VOCABULARY + 1}, 16\) in",
    ),
    "missing at the start": (
        lambda base, out: drop(NORM, base / "model.safetensors"),
        rf"{NORM} of .*out is not in base_model: .*base",
    ),
    "missing at the end": (
        lambda base, out: drop(NORM, out / "model.safetensors"),
        rf"{NORM} of base_model: .*base is not in .*out",
    ),
    "no end": (
        lambda base, out: (out / "model.safetensors").unlink(),
        "out holds no trained model: .* holds no model.safetensors",
    ),
    "damaged": (
        lambda base, out: (out / "model.safetensors").write_bytes(b"damaged"),
        "model.safetensors can't be read",
    ),
    "quantized": (
        lambda base, out: edit(base / "config.json", quantization_config={"bits": 4}),
        "base: its weights are quantized",
    ),
    "no start": (lambda base, out: shutil.rmtree(base), "base_model: .*base is no folder here"),
    "no weights at the start": (
        lambda base, out: (base / "model.safetensors").unlink(),
        "base_model: .*base: .* holds no model.safetensors",
    ),
    "no config": (
        lambda base, out: (out / "config.json").unlink(),
        "config.json is missing, or is no file",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_models_that_do_not_belong_together(tmp_path: Path, what: str) -> None:
    run = full_run(tmp_path)
    breaking, pattern = BROKEN[what]
    breaking(Path(run.base_model), run.folder)
    said = refused(run, tmp_path / "beyond")
    assert re.search(pattern, said), said


def test_shards_that_are_not_complete(tmp_path: Path) -> None:
    run = full_run(tmp_path, shard=6_000)
    first = sorted(run.folder.glob("model-*"))[0]
    names = list(load_file(first))
    drop(names[0], first)
    assert f"{first} lacks {names[0]}, which" in refused(run, tmp_path / "beyond")
    first.unlink()
    assert f"{first} can't be read" in refused(run, tmp_path / "beyond")


def test_a_model_that_started_from_itself_and_one_that_is_on_no_disk(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    own = TrainedRun(run.folder, str(run.folder), None, None, {})
    assert "is the run's own folder" in refused(own, tmp_path / "beyond")
    far = TrainedRun(run.folder, "nobody/no-such-model", None, None, {})
    assert "nobody/no-such-model is no folder here" in refused(far, tmp_path / "beyond")


def test_an_alpha_that_leaves_the_range_of_the_dtype(tmp_path: Path) -> None:
    run = full_run(tmp_path, torch.float16)
    said = refused(run, tmp_path / "beyond", 1e9)
    assert said.startswith("--alpha 1e+09: ")
    assert said.endswith("is not finite in torch.float16; use a smaller α.")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_dora": True}, "use_dora can't be extrapolated exactly"),
        ({"peft_type": "IA3"}, "peft_type: IA3 can't be extrapolated"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: pissa can't be extrapolated"),
        ({"init_lora_weights": False}, "init_lora_weights: False can't be extrapolated"),
        ({"lora_alpha": None}, "holds no lora_alpha"),
    ],
)
def test_adapters_that_can_not_be_scaled(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    run = lora_run(tmp_path)
    edit(run.folder / "adapter_config.json", **changes)
    assert said in refused(run, tmp_path / "beyond")


def test_a_tensor_of_an_adapter_that_the_base_model_lacks(tmp_path: Path) -> None:
    run = lora_run(tmp_path, trainable_token_indices=[1, 2])
    said = refused(run, tmp_path / "beyond")
    assert "trainable_tokens_delta of " in said
    assert "is not in base_model" in said


def test_what_a_user_made_is_never_overwritten(tmp_path: Path) -> None:
    run, out = full_run(tmp_path), tmp_path / "beyond"
    (out / "alpha-0.5").mkdir(parents=True)
    (out / "alpha-0.5/mine").write_text("mine")
    with pytest.raises(RunError, match=r"alpha-0\.5 is there and is none of our models"):
        extrapolate(run, [0.3, 0.5], out)
    assert [path.name for path in out.iterdir()] == ["alpha-0.5"]
    shutil.rmtree(out)

    [first] = extrapolate(run, [0.5], out)
    age = (first.folder / "model.safetensors").stat().st_mtime_ns
    again, other = extrapolate(run, [0.5, 0.3], out)
    assert (first.new, again.new, other.new) == (True, False, True)
    assert (first.folder / "model.safetensors").stat().st_mtime_ns == age

    moved(small_llama(VOCABULARY), seed=6).save_pretrained(run.folder)
    with pytest.raises(RunError, match=r"alpha-0\.5 is there and was made of other weights"):
        extrapolate(run, [0.5], out)
    moved(small_llama(VOCABULARY)).save_pretrained(run.folder)
    (first.folder / "tokenizer.json").write_text("[]")
    with pytest.raises(RunError, match=r"alpha-0\.5 is there and is not as it was written"):
        extrapolate(run, [0.5], out)


def killed_at(number: int, run: TrainedRun, out: Path) -> bool:
    """Whether a process that extrapolates was killed when it touched its files so many times."""
    child = os.fork()
    if not child:
        left = itertools.count(1)

        def touched(event: str, args: tuple[Any, ...]) -> None:
            own = event in ("open", "os.rename", "os.mkdir") and ".tmp" in str(args[0])
            if own and next(left) == number:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(touched)
        try:
            extrapolate(run, [0.5], out, 4e3)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_a_kill_at_any_point_leaves_nothing_half(tmp_path: Path) -> None:
    run, out, points = full_run(tmp_path), tmp_path / "beyond", 0
    while killed_at(points + 1, run, out):
        points += 1
        assert not (out / "alpha-0.5").exists()
    assert points > 10
    assert [path.name for path in out.iterdir()] == ["alpha-0.5"]
    wanted, found = expected(run, 0.5), weights(out / "alpha-0.5")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_disk_that_is_full_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = full_run(tmp_path), tmp_path / "beyond"

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(RunError, match=r"alpha-0\.5 can't be written \(No space left on device\)"):
        extrapolate(run, [0.5], out)
    assert not list(out.iterdir())


def peak(work: Callable[[], object]) -> int:
    """The most memory, in bytes, that is held beyond that at the start, without mapped files."""

    def held() -> int:
        with open("/proc/self/status", encoding="ascii") as status:
            return next(int(s.split()[1]) for s in status if s.startswith("RssAnon")) * 1024

    ctypes.CDLL(None).malloc_trim(0)  # what was freed earlier is given back
    before, most, done = held(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.0005):
            most = max(most, held())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return most - before


@pytest.mark.slow
def test_memory_stays_at_a_shard_and_some_blocks(tmp_path: Path) -> None:
    """The same with one shard for all holds a whole model, which shows that the gauge works."""
    names = [f"layer.{number}" for number in range(32)]
    for folder, value in (("base", 1.0), ("out", 2.0)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text("{}")
        tensors = {name: torch.full((2048, 2048), value).bfloat16() for name in names}
        save_file(tensors, tmp_path / folder / "model.safetensors", {"format": "pt"})
        del tensors
    run = TrainedRun(tmp_path / "out", str(tmp_path / "base"), None, None, {})
    model = (tmp_path / "out/model.safetensors").stat().st_size
    assert peak(lambda: extrapolate(run, [0.5], tmp_path / "sharded", model / 16)) < 0.5 * model
    assert peak(lambda: extrapolate(run, [0.5], tmp_path / "whole", 2 * model)) > 0.9 * model
    found = Weights.of(tmp_path / "sharded/alpha-0.5", "model")
    assert found.files.keys() == set(names)
    assert found.tensor(names[-1])[0, 0] == 2.5


def test_which_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "config.yml"
    keys = {"base_model": "org/base", "output_dir": str(tmp_path / "out")}
    path.write_text(yaml.safe_dump(keys | {"revision_of_model": "v2"}))
    plain = TrainedRun.of(path)
    assert plain == TrainedRun(tmp_path / "out", "org/base", "v2", path, {})
    with pytest.raises(RunError, match="does not exist; name the output_dir"):
        TrainedRun.of(tmp_path / "out")
    settings = {"sera": {}, "base_model": "org/other", "config": "../config.yml"}
    (tmp_path / "out/sera").mkdir(parents=True)
    (tmp_path / "out/sera/run.json").write_text(json.dumps(settings))
    for where in (path, tmp_path / "out"):
        run = TrainedRun.of(where)
        assert "the run has not come to its end" in caplog.text
        caplog.clear()
        assert (run.base_model, run.revision) == ("org/other", "v2")
        assert run.config
        assert run.config.samefile(path)
    path.write_text(yaml.safe_dump(keys | {"merge_lora": True, "lora_model_dir": "adapter"}))
    with pytest.raises(SeraConfigError, match="lora_model_dir: adapter with merge_lora: true"):
        TrainedRun.of(tmp_path / "out")
    path.write_text("rl: dpo")
    with pytest.raises(SeraConfigError, match="is not a config of Axolotl with a base_model"):
        TrainedRun.of(path)


def test_an_evaluation_holds_one_model_at_a_time(
    tmp_path: Path, config: MakeConfig, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = config(drop=("sera", "plugins")), tmp_path / "out"
    moved(LlamaForCausalLM.from_pretrained(llama)).save_pretrained(out)
    run = TrainedRun(out, str(llama), None, path, {})
    models = extrapolate(run, [0.5], tmp_path / "beyond")
    load, alive = loading.load_model, []

    def counting(*given: Any) -> Any:
        gc.collect()
        alive.append(sum(isinstance(thing, LlamaForCausalLM) for thing in gc.get_objects()))
        return load(*given)

    monkeypatch.setattr(loading, "load_model", counting)
    found = Evaluation.of(run, tmp_path).measure([(0.0, out), (0.5, models[0].folder)])
    assert [row.alpha for row in found] == [0.0, 0.5]
    assert len(alive) == 3
    assert set(alive) == {alive[0]}


def test_the_page_shows_what_is_stored() -> None:
    page = (Path(__file__).parents[2] / "docs/extrapolation.md").read_text(encoding="utf-8")
    settings, results = Settings(), Results(RESULTS)
    for regime in expo.REGIMES:
        runs = report_runs(regime, "dpo", expo.SEEDS, settings, results)
        assert len(runs) == 6
        assert not list(expo.missing(runs, settings, results))
        assert expo.compared(runs, settings, results) in page
