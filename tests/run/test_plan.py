"""A run planned before it starts: the numbers, and the command on a config without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import assets
import pytest
import slow_reference as slow
import yaml
from axolotl.utils.dict import DictDefault
from click.testing import CliRunner
from command_line import ENVIRONMENT, TRAIN_PAIRS, MakeConfig, RunCli
from peft import LoraConfig, get_peft_model
from runs_on_disk import write_run
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from sera_plugin.commands.cli import sera
from sera_plugin.commands.plan import Lengths, RunPlan, assemble
from sera_plugin.commands.plan_inputs import learning_rates, model_size, warmup_steps
from sera_plugin.commands.speed import Speed
from sera_plugin.commands.terminal import show_plan
from sera_plugin.config import SeraConfig, parse_block
from sera_plugin.data.reader import RunFiles
from sera_plugin.data.schedule import Batching, plan
from sera_plugin.runtime.errors import RunError
from sera_plugin.training.costs import ModelSize

LENGTHS = Lengths(pairs=100, prompt=10.0, answer=20.0, total=6000, evaluation=600)


def planned(
    speed: Speed | None = None,
    *,
    max_steps: int | None = None,
    num_rounds: int = 3,
    warmup_rounds: int = 1,
    refined: int = 0,
    contrast: int = 0,
    asked: tuple[float, ...] = (),
    weight_bytes: float = 2,
    **block: object,
) -> RunPlan:
    block = {"warmup_rounds": warmup_rounds, "bootstrap": {"max_new_tokens": 50}, **block}
    config = parse_block(block)
    assert isinstance(config, SeraConfig)
    schedule = plan(
        100,
        num_rounds=num_rounds,
        warmup_rounds=warmup_rounds,
        keep=config.selection.planned,
        fraction=config.bootstrap.fraction,
        batching=Batching(per_device=5, accumulation=1, ranks=2),
        max_steps=max_steps,
    )
    return assemble(
        schedule,
        replace(LENGTHS, refined=refined, contrast=contrast, asked=asked),
        config,
        ModelSize(parameters=1000, trainable=1000, weight_bytes=weight_bytes),
        token_budget=400,
        processes=2,
        stage=3,
        speed=speed or Speed(),
        rates=[float(n) for n in range(schedule.max_steps)],
    )


def test_rounds_and_tokens() -> None:
    found = planned()
    first, second, third = found.rounds
    assert (found.updates, found.opening_tokens) == (30, 6600)
    assert (first.scored, first.sampled, first.prompts, first.trained) == (0, 0, 0, 6000)
    assert (second.size.kept, second.size.bootstrapped, second.prompts) == (70, 30, 60)
    # 60 prompts, 4 candidates: 240 answers of 20 tokens, at most 50, each scored by two models.
    assert second.sampled == 4800
    assert second.most_sampled == 12000
    assert second.scored == 6000 + 600 + 2 * 240 * 30
    assert second.forwards == 27  # 21,000 tokens, 400 in a batch, two ranks
    assert (second.rates, third.rates) == ((10.0, 19.0), (20.0, 29.0))
    assert found.seconds is None


def test_what_is_known_from_sampling_is_not_scored_again() -> None:
    """In float32, where sampling and scoring agree: one model scores each of 240 answers."""
    assert planned(weight_bytes=4.0).rounds[1].scored == 6000 + 600 + 240 * 30
    for keys in ({"training": {"sampled_logps": False}}, {"bootstrap": {"engine": "vllm"}}):
        bootstrap = {"max_new_tokens": 50, **keys.get("bootstrap", {})}
        found = planned(weight_bytes=4.0, **{**keys, "bootstrap": bootstrap})
        assert found.rounds[1].scored == 6000 + 600 + 2 * 240 * 30


def test_time_needs_every_speed_that_matters() -> None:
    full = planned(Speed(1000.0, 100.0, 500.0))
    second = full.rounds[1]
    assert second.seconds == pytest.approx(21.0 + 48.0 + 12.0)
    assert full.seconds == pytest.approx(6.6 + 12.0 + 2 * 81.0)
    assert planned(Speed(1000.0, None, 500.0)).seconds is None
    without = planned(Speed(1000.0, None, 500.0), bootstrap={"fraction": 0})
    assert without.seconds == pytest.approx(6.6 + 12 + 2 * (6.6 + 0.7 * 12))


@pytest.mark.parametrize("source", ["round", "on_the_fly"])
def test_refinement_scores_every_pair_of_a_round_once(source: str) -> None:
    speed = Speed(1000.0, 100.0, 500.0)
    plain, refined = planned(speed), planned(speed, refine={"source": source}, refined=9000)
    assert [entry.refined for entry in plain.rounds] == [0, 0, 0]
    assert [entry.refined for entry in refined.rounds] == [9000, 9000, 9000]
    fewer = planned(speed, refine={}, refined=9000, selection={"keep": 0.5})
    assert [entry.refined for entry in fewer.rounds] == [9000, 7200, 7200]
    for one, other in zip(plain.rounds, refined.rounds, strict=True):
        assert other.scored == one.scored
        assert other.seconds == pytest.approx(one.seconds + 9.0)
    # A pass per micro-batch is no scoring batch; 9,000 and 30,000 tokens, 400 in one, two ranks.
    forwards = [entry.forwards for entry in refined.rounds[:2]]
    assert forwards == ([12, 38] if source == "round" else [0, 27])


def test_what_training_steps_note_is_not_scored() -> None:
    second = planned(selection={"source": "training"}).rounds[1]
    assert second.scored == 600 + 2 * 240 * 30
    assert planned(selection={"source": "training"}, bootstrap=False).rounds[1].scored == 600


def test_the_contrast_is_scored_before_round_1() -> None:
    """Preset `contrast` scores nothing of D in its reviews, and no evaluation pairs before any
    update."""
    found = planned(
        Speed(1000.0, None, 500.0),
        preset="contrast",
        warmup_rounds=0,
        contrast=14000,
        bootstrap={"fraction": 0.0},
    )
    assert found.opening_tokens == 6000 + 600 + 14000
    assert [entry.scored for entry in found.rounds] == [0, 600, 600]
    assert [entry.size.reviewed for entry in found.rounds] == [True] * 3
    assert found.seconds == pytest.approx(20.6 + 2 * 0.6 + 3 * 12)


def test_the_judge_contrast_scores_every_answer_of_a_prompt_in_every_pass() -> None:
    judge = {"max_new_tokens": 50, "judge": "contrast"}
    # 60 prompts with 4 sampled and 2 offline answers of 20 tokens, behind prompts of 25 and 30.
    judged = 360 * (25 + 20) + 360 * (30 + 20)
    found = planned(bootstrap=judge, asked=(25.0, 30.0))
    assert found.rounds[1].scored == 21000 + judged
    assert found.opening_tokens == 6600
    alone = planned(bootstrap=judge | {"pool": "policy"}, asked=(25.0,))
    assert alone.rounds[1].scored == 21000 + 240 * (25 + 20)


def test_max_steps_cuts_the_plan() -> None:
    found = planned(max_steps=15)
    assert [entry.updates for entry in found.rounds] == [10, 5]
    assert found.rounds[-1].rates == (10.0, 14.0)


def test_memory_of_every_stage() -> None:
    found = planned()
    assert found.memory[0].training == 1000 * (2 + 2 + 12 + 2)
    assert found.memory[3].training == 1000 * (2 + 2 + 12 + 2) / 2
    assert found.memory[3].gathered_for_sampling == 2000


def test_speed_of_a_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "out")
    with pytest.raises(RunError, match="no round of it has been timed yet"):
        Speed.measured(RunFiles.open(run), 2)
    for number, value in ((2, 100.0), (3, 300.0)):
        path = run / f"sera/round-0{number}/summary.json"
        summary = json.loads(path.read_text()) | {"tokens_per_second_scoring": value}
        path.write_text(json.dumps(summary))
    same = Speed.measured(RunFiles.open(run), 2)
    assert same == Speed(200.0, None, None, "Speed as measured, on as many GPUs.")
    more = Speed.measured(RunFiles.open(run), 8)
    assert more.scoring == 800.0
    assert more.generation is None
    assert "as measured on 2, for 8 GPUs multiplied by 4, as if" in more.note
    settings = json.loads((run / "sera/run.json").read_text())
    for ranks in (None, 0, "2", True):
        (run / "sera/run.json").write_text(json.dumps(settings | {"ranks": ranks}))
        with pytest.raises(RunError, match=r"does not say on how many processes it ran, so .* 8;"):
            Speed.measured(RunFiles.open(run), 8)


def test_rates_are_those_of_the_schedule() -> None:
    cfg = DictDefault({"lr_scheduler": "linear", "learning_rate": 1.0, "warmup_steps": 2})
    rates = learning_rates(cfg, 6)
    assert rates == pytest.approx([0, 0.5, 1, 0.75, 0.5, 0.25])
    assert learning_rates(DictDefault({**cfg, "lr_scheduler": "rex"}), 6) is None
    assert learning_rates(DictDefault({**cfg, "cosine_min_lr_ratio": 0.1}), 6) is None
    assert warmup_steps(DictDefault({"warmup_ratio": 0.1}), 100) == 10
    assert warmup_steps(DictDefault({"warmup_ratio": 0.01}), 100) == 2
    assert warmup_steps(DictDefault({}), 10_000) == 100


def test_model_size_without_weights(llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama)
    keys = {"base_model": str(llama), "planned_dtype_bytes": 2, "optimizer": "adamw_torch"}
    whole = model_size(DictDefault(keys), deepspeed=True)
    assert whole.parameters == whole.trainable == model.num_parameters()
    assert (whole.weight_bytes, whole.optimizer_bytes, whole.separate_reference) == (2, 12, True)
    adapter = {"adapter": "lora", "lora_r": 4, "lora_target_linear": True}
    lora = model_size(DictDefault(keys | adapter), deepspeed=False)
    settings = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    wrapped = get_peft_model(model, settings)
    assert lora.trainable == wrapped.get_nb_trainable_parameters()[0]
    assert not lora.separate_reference


@pytest.mark.parametrize("tied", [True, False])
def test_model_size_counts_a_tied_head_once(tmp_path: Path, tied: bool) -> None:
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_config(config)
    found = model_size(DictDefault({"base_model": str(tmp_path)}), deepspeed=False)
    assert found.parameters == model.num_parameters()
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


@pytest.mark.parametrize("layers", [[0], [0, 1]])
def test_model_size_of_an_adapter_on_some_layers(llama: Path, layers: list[int]) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama)
    keys = {"base_model": str(llama), "adapter": "lora", "lora_r": 4}
    keys |= {"lora_target_modules": ["q_proj"], "peft_layers_to_transform": layers}
    found = model_size(DictDefault(keys), deepspeed=False)
    settings = LoraConfig(r=4, target_modules=["q_proj"], layers_to_transform=layers)
    wrapped = get_peft_model(model, settings)
    assert found.trainable == wrapped.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize(
    ("targets", "layers", "trainable"),
    [
        # r·(in + out): q 4·(16 + 16), v 4·(16 + 8), in two layers of four.
        ({"lora_target_modules": ["q_proj", "v_proj"]}, [1, 3], 2 * (128 + 96)),
        ({"lora_target_modules": ["q_proj", "v_proj"]}, None, 4 * (128 + 96)),
        ({"lora_target_modules": ["q_proj"]}, 2, 128),
        # q, k, v, o and three of the MLP, not the head.
        ({"lora_target_linear": True}, [0], 128 + 96 + 96 + 128 + 3 * 4 * (16 + 32)),
        ({"lora_target_linear": True}, None, 4 * (448 + 576)),
    ],
)
def test_an_adapter_counts_in_the_layers_that_it_transforms(
    tmp_path: Path, targets: dict[str, object], layers: list[int] | int | None, trainable: int
) -> None:
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    keys = {"base_model": str(tmp_path), "adapter": "lora", "lora_r": 4, **targets}
    cfg = DictDefault(keys | {"peft_layers_to_transform": layers})
    found = model_size(cfg, deepspeed=False)
    assert found.trainable == trainable
    # Embedding and head, four layers of attention, MLP and two norms, and the last norm.
    base = 2 * 50 * 16 + 4 * (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 32 + 2 * 16) + 16
    assert found.parameters == base + trainable


def cells(said: str, row: str) -> list[str]:
    """The values of a row, of all tables that have it."""
    lines = [line.strip("│").split("│") for line in said.splitlines() if line.startswith("│")]
    return [cell.strip() for name, *rest in lines if name.strip() == row for cell in rest]


def test_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    show_plan(planned(Speed(1000.0, 100.0, 500.0, "A note.")))
    said = capsys.readouterr().out
    assert "100 pairs" in said
    assert "this config is ZeRO-3" in said
    assert "Estimated time: 3 min. A note." in said
    assert cells(said, "tokens scored") == ["0", "21,000", "21,000"]
    show_plan(planned())
    said = capsys.readouterr().out
    assert "No time is estimated: give --measured" in said
    assert "Δ" not in said
    show_plan(planned(refine={}, refined=9000))
    said = capsys.readouterr().out
    assert cells(said, "tokens scored for Δ") == ["9,000"] * 3


@pytest.mark.parametrize("columns", [None, "80", "60"])
def test_many_rounds_and_large_numbers_are_shown_whole_in_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str | None
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    found = planned(num_rounds=12)
    large = [replace(entry, scored=entry.scored * 10**8) for entry in found.rounds]
    show_plan(replace(found, rounds=tuple(large)))
    said = capsys.readouterr().out
    assert cells(said, "updates") == ["10"] * 12
    assert cells(said, "tokens scored") == ["0"] + ["2,100,000,000,000"] * 11
    assert "…" not in said
    assert max(map(len, said.splitlines())) <= int(columns or 80)


def refused(path: Path, *more: str) -> str:
    result = CliRunner().invoke(sera, ["plan", str(path), *more])
    assert result.exit_code == 1
    return result.output.strip().splitlines()[-1].removeprefix("Error: ")


def test_bad_input_is_one_sentence(config: MakeConfig, tmp_path: Path) -> None:
    assert "can't be read" in refused(tmp_path / "none.yml")
    assert "has no sera: block" in refused(config(drop=("sera",)))
    assert "would train plain DPO" in refused(config(drop=("plugins",)))
    assert "did you mean ensemble?" in refused(config(sera={"ensembel": 1}))
    assert "does not exist" in refused(config(), "--measured", str(tmp_path / "none"))
    result = CliRunner().invoke(sera, ["schema", "--out", str(tmp_path / "none/schema.json")])
    assert result.exit_code == 1
    assert "none/schema.json can't be written (No such file or directory)." in result.output


@pytest.mark.cli
def test_plan_of_a_config_for_eight_gpus_with_bf16(
    config: MakeConfig, run_cli: RunCli, llama: Path
) -> None:
    """bf16 and DeepSpeed, which this machine can't run, are planned all the same."""
    sera = {"refine": {"prompt": "be kind", "placement": "system"}}
    path = config(bf16=True, micro_batch_size=1, gradient_accumulation_steps=1, sera=sera)
    keys = yaml.safe_load(path.read_text())
    keys["deepspeed"] = {"zero_optimization": {"stage": 3}, "bf16": {"enabled": True}}
    path.write_text(yaml.safe_dump(keys))
    said = run_cli("sera", "plan", path, "--gpus", "8", "--json")
    found = json.loads(said[said.index("\n{\n") :])
    assert found["processes"] == 8
    assert found["lengths"]["pairs"] == TRAIN_PAIRS
    assert [entry["updates"] for entry in found["rounds"]] == [8, 8, 8]
    assert found["stage"] == 3
    assert found["model"]["weight_bytes"] == 2
    assert not Path(keys["output_dir"], "sera").exists()
    words = AutoTokenizer.from_pretrained(llama)
    tokens = slow.tokens_behind(words, "be kind", assets.pairs(TRAIN_PAIRS))
    assert [entry["refined"] for entry in found["rounds"]] == 3 * [tokens]


@pytest.mark.cli
@pytest.mark.parametrize("negative", ["be mean", None])
def test_plan_counts_a_pass_for_each_prompt_of_the_contrast(
    config: MakeConfig, run_cli: RunCli, llama: Path, negative: str | None
) -> None:
    asked = [{"positive": "be kind", "negative": negative, "placement": "system"}]
    sera = {"preset": "contrast", "selection": {"contrast": {"prompts": asked}}}
    path = config(sera=sera, drop=("test_datasets", "evals_per_epoch"))
    said = run_cli("sera", "plan", path, "--json")
    found = json.loads(said[said.index("\n{\n") :])
    words = AutoTokenizer.from_pretrained(llama)
    texts = ["be kind", *([negative] if negative else [])]
    tokens = sum(slow.tokens_behind(words, text, assets.pairs(TRAIN_PAIRS)) for text in texts)
    assert found["lengths"]["contrast"] == tokens
    assert found["opening_tokens"] == found["lengths"]["total"] + tokens
    assert [entry["scored"] for entry in found["rounds"]] == [0, 0, 0]


def started(*command: str | Path) -> tuple[str, str]:
    """What a command says on the standard output, a pipe, and on the standard error."""
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "COLUMNS"}
    path = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    done = subprocess.run(
        [*map(str, command)],
        env=environment | {"PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout, done.stderr


@pytest.mark.cli
def test_json_stands_alone_on_the_standard_output(config: MakeConfig) -> None:
    module = (sys.executable, "-m", "sera_plugin")
    assert json.loads(started(*module, "schema")[0]) == json.loads(
        json.dumps(SeraConfig.model_json_schema())
    )
    said, beside = started(*module, "plan", config(), "--json")
    assert json.loads(said)["lengths"]["pairs"] == TRAIN_PAIRS
    assert "Plugin loaded successfully" in beside


@pytest.mark.cli
def test_a_pipe_gets_the_tables_and_a_file_the_json(config: MakeConfig, tmp_path: Path) -> None:
    path = config(sera={"selection": True, "bootstrap": {"fraction": 0.8}})
    said, beside = started("axolotl", "sera", "plan", path, "--out", tmp_path / "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text())["updates"] == 8 + 2 * 12
    assert "Plugin loaded successfully" in beside
    assert "Plugin loaded successfully" not in said
    tables = said[said.index("64 pairs") :]
    assert cells(tables, "offline pairs kept") == ["64", "45", "45"]
    assert cells(tables, "bootstrapped pairs") == ["0", "51", "51"]
    assert cells(tables, "prompts sampled") == ["0", "64", "64"]
    assert "…" not in tables
    assert max(map(len, tables.splitlines())) <= 80
    started("axolotl", "sera", "schema", "--out", tmp_path / "schema.json")
    assert json.loads((tmp_path / "schema.json").read_text()) == json.loads(
        json.dumps(SeraConfig.model_json_schema())
    )


@pytest.mark.cli
def test_what_would_be_refused(config: MakeConfig, run_cli: RunCli) -> None:
    path = config(micro_batch_size=32, gradient_accumulation_steps=2)
    said = run_cli("sera", "plan", path, "--gpus", "8", expect_failure=True)
    assert "Error: datasets: 64 pairs are fewer than one batch of 512" in said
    assert "Traceback" not in said
