"""Does DPO learn on SmolLM2? Samples, pairs, training and judging, going on where it stopped.

python -m benchmarks.smollm.task --minutes 120

Answers are sampled by the package's own sampler and stored as JSON lines, with their log-probs
under the starting model. Best against worst of a prompt is a pair. Plain DPO (`axolotl train`,
LoRA) then runs once per learning rate, and each policy is judged on the held-out prompts. What is
stored is not done again; a run that is cut by the time goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel

from benchmarks.smollm.model import load
from benchmarks.smollm.sentiment import Analyse, Asked, Pair, pairs_of, prompts, reward, vader
from benchmarks.smollm.task_train import PLAIN, Task, TimeIsUp, train
from benchmarks.smollm.writer import Writer, prompt_ids, scorer_on
from sera_plugin.scoring.completions import CompletionList
from sera_plugin.scoring.scorer import inference

RESULTS = Path("benchmarks/smollm/results")
SAMPLES, RUNS = "sentiment-samples.jsonl", "sentiment-runs.jsonl"
PER_PROMPT = 4
JUDGED = 2
"""Answers to each prompt that the starting model and each policy are judged by."""
PAIRED, FRESH = 1, 2
"""Drawings: of the answers that pairs are made of, and of those that are judged. Prompts were
chosen by the former, so their rewards would flatter whatever comes after."""
CHUNK = 64


def stored(path: Path) -> list[dict[str, Any]]:
    """The lines of a file; none if it is not there."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def append(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Add lines to a file at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))


def sample(task: Task, analyse: Analyse) -> tuple[float, list[Pair], list[Pair]]:
    """Sample until there are pairs enough; the floor and both kinds of pairs."""
    path = task.results / SAMPLES
    lines = stored(path)
    done = {line["key"] for line in lines}
    left = [one for one in prompts(task.seed) if one.key not in done]
    writer: Writer | None = None
    while True:
        floor, pairs, held = pairs_of(lines, analyse) if lines else (0.0, [], [])
        wanted = {False: len(pairs) < task.pairs, True: len(held) < task.held_out}
        chunk = [one for one in left if wanted[one.held_out]][:CHUNK]
        if not chunk:
            break
        task.check()
        if writer is None:
            writer = Writer(*load(task.model, torch.bfloat16, task.device), task.seed)
        made = writer.write(chunk, PER_PROMPT, PAIRED)
        append(path, made)
        lines += made
        taken = {one.key for one in chunk}
        left = [one for one in left if one.key not in taken]
        print(f"{len(lines)} prompts, {len(pairs)} and {len(held)} pairs before them", flush=True)
    if len(pairs) < task.pairs or len(held) < task.held_out:
        raise SystemExit(
            f"All prompts together give {len(pairs)} pairs to train on and {len(held)} held out, "
            f"where {task.pairs} and {task.held_out} are asked for."
        )
    return floor, pairs[: task.pairs], held[: task.held_out]


def margins(task: Task, folder: Path, held: Sequence[Pair]) -> np.ndarray:
    """The log-ratio margin of every held-out pair under a trained policy, fp32, nats, shape (n,).

    The reference's log-probs are stored: every policy of the task has the same reference.
    """
    path = task.work / f"reference-{task.seed}.jsonl"
    known = {line["key"]: line["logps"] for line in stored(path)}
    keys = [key_of(pair) for pair in held]
    left = [pair for pair, key in zip(held, keys, strict=True) if key not in known]
    model, tokenizer = load(task.model, device=task.device)
    for some, found in _logps(task, model, tokenizer, left):
        lines = [
            {"key": key_of(pair), "logps": two}
            for pair, two in zip(some, found.tolist(), strict=True)
        ]
        append(path, lines)
        known |= {line["key"]: line["logps"] for line in lines}
    policy = PeftModel.from_pretrained(model, folder).eval()
    ours = np.concatenate([found for _, found in _logps(task, policy, tokenizer, held)])
    ratios = ours - np.array([known[key] for key in keys])
    result: np.ndarray = ratios[:, 0] - ratios[:, 1]
    return result


def key_of(pair: Pair) -> str:
    """Hash of a pair's prompt and answers: which of them make the pair depends on the floor."""
    said = json.dumps([pair.prompt, pair.chosen, pair.rejected])
    return hashlib.blake2b(said.encode(), digest_size=8).hexdigest()


def _logps(
    task: Task, model: Any, tokenizer: Any, pairs: Sequence[Pair]
) -> Iterator[tuple[Sequence[Pair], np.ndarray]]:
    """Some pairs at a time, with log-probs of chosen and rejected, shape (n, 2), nats."""
    scorer = scorer_on(task.device, shares=True)
    with inference(model):
        for start in range(0, len(pairs), CHUNK):
            task.check()
            some = pairs[start : start + CHUNK]
            rows = [
                (prompt_ids(pair.prompt, tokenizer), tokenizer(text + "<|im_end|>").input_ids)
                for pair in some
                for text in (pair.chosen, pair.rejected)
            ]
            yield some, scorer.logps(model, CompletionList(rows), "Pairs").logps.reshape(-1, 2)


def parts(lines: Sequence[dict[str, Any]], floor: float, analyse: Analyse) -> dict[str, Any]:
    """Parts of the reward and lengths of answers, a list per prompt for each."""
    found: dict[str, list[list[float]]] = {}
    for line in lines:
        rewards = [
            reward(text, fluency, floor, analyse)
            for text, fluency in zip(line["answers"], line["fluency"], strict=True)
        ]
        for name in ("value", "sentiment", "disfluency", "repeats"):
            values = [round(getattr(one, name), 4) for one in rewards]
            found.setdefault(name, []).append(values)
        found.setdefault("finished", []).append([float(done) for done in line["finished"]])
        found.setdefault("tokens", []).append([float(count) for count in line["tokens"]])
    return found


def fresh(
    task: Task, folder: Path | None, asked: Sequence[Asked], path: Path, ahead: str = ""
) -> list[dict[str, Any]]:
    """Answers of the starting model, or of a policy, to judge it by; those stored stay.

    Args:
        task: what is asked for.
        folder: the policy's adapter; None for the starting model.
        asked: the prompts.
        path: where they are stored.
        ahead: an instruction that is put ahead of each prompt.
    """
    found = {line["key"]: line for line in stored(path)}
    left = [one for one in asked if one.key not in found]
    if left:
        model, tokenizer = load(task.model, torch.bfloat16, task.device)
        if folder is not None:
            model = PeftModel.from_pretrained(model, folder).eval()
        writer = Writer(model, tokenizer, task.seed, ahead)
        for start in range(0, len(left), CHUNK):
            task.check()
            made = writer.write(left[start : start + CHUNK], JUDGED, FRESH)
            append(path, made)
            found |= {line["key"]: line for line in made}
    return [found[one.key] for one in asked]


def untold(task: Task, asked: Sequence[Asked]) -> list[dict[str, Any]]:
    """Answers of the starting model to the prompts alone, which all policies are compared with."""
    return fresh(task, None, asked, task.work / f"start-{task.seed}.jsonl")


def means(values: Sequence[Sequence[float]], digits: int) -> list[float]:
    """The mean of each prompt's answers, rounded."""
    return [round(float(np.mean(some)), digits) for some in values]


def judge(
    task: Task, rate: float, folder: Path, held: Sequence[Pair], floor: float, analyse: Analyse
) -> None:
    """Judge a policy on the held-out pairs and on prompts of their second half, and store it."""
    # The first half chooses the learning rate.
    asked = [Asked(pair.key, pair.prompt, True) for pair in held[len(held) // 2 :]]
    before = untold(task, asked)
    after = fresh(task, folder, asked, folder.parent / "answers.jsonl")
    found = [round(float(value), 4) for value in margins(task, folder, held)]
    run = {
        "rate": rate,
        "pairs": task.pairs,
        "epochs": task.epochs,
        "seed": task.seed,
        "floor": round(floor, 4),
        "date": time.strftime("%Y-%m-%d"),
        "margins": found,
        "longer": [int(pair.tokens[0] > pair.tokens[1]) for pair in held],
        "before": parts(before, floor, analyse),
        "after": parts(after, floor, analyse),
        "examples": [[line["prompt"], line["answers"][0]] for line in after[:3]],
    }
    append(task.results / RUNS, [run])


def work(task: Task, rates: Sequence[float], packages: Path) -> None:
    """Do what is left until the time is up."""
    analyse = vader(packages)
    floor, pairs, held = sample(task, analyse)
    known = ("rate", "pairs", "epochs", "seed")
    done = [tuple(run[name] for name in known) for run in stored(task.results / RUNS)]
    for rate in rates:
        if (rate, task.pairs, task.epochs, task.seed) not in done:
            name = f"{len(pairs)}-pairs-{task.epochs}-epochs-{rate:g}-seed-{task.seed}"
            rows = [pair.row() for pair in pairs]
            folder = train(task, task.work / name, rows, PLAIN, {"learning_rate": rate})
            judge(task, rate, folder, held, floor, analyse)
            print(f"{rate:g} is trained and judged", flush=True)


def add_options(parser: argparse.ArgumentParser, pairs: int, epochs: int) -> None:
    """The options of the scripts that train on the task, with how much each trains by default."""
    add = parser.add_argument
    add("--minutes", type=float, default=120)
    add("--model", type=Path, default=Path("smollm-work/SmolLM2-135M-Instruct"))
    add("--packages", type=Path, default=Path("smollm-work/packages"))
    add("--results", type=Path, default=RESULTS)
    add("--work", type=Path, default=Path("smollm-work/task"))
    add("--pairs", type=int, default=pairs)
    add("--held-out", type=int, default=512)
    add("--epochs", type=int, default=epochs)
    add("--device", choices=("cpu", "gpu"), default="cpu")
    add("--page", type=Path, default=Path("docs/language-model.md"))


def task_of(given: argparse.Namespace, seed: int) -> Task:
    """What was asked for by these options; the time runs from now on.

    Raises:
        SystemExit: if there is no model, or no such device.
    """
    if not (given.model / "config.json").is_file():
        raise SystemExit(f"There is no model in {given.model}; `make smollm` writes it.")
    if given.device == "gpu" and not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no GPU for --device gpu.")
    return Task(
        model=given.model,
        results=given.results,
        work=given.work,
        pairs=given.pairs,
        held_out=given.held_out,
        epochs=given.epochs,
        seed=seed,
        end=time.monotonic() + 60 * given.minutes,
        device="cuda" if given.device == "gpu" else "cpu",
    )


def main() -> None:
    """Read the options, work, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, pairs=1000, epochs=1)
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-5, 5e-5, 1e-4])
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    task = task_of(given, given.seed)
    try:
        work(task, given.rates, given.packages)
    except TimeIsUp:
        print("The time is up; the same command goes on from here.")
    from benchmarks.smollm.task_report import write_page

    write_page(given.results, given.page, given.packages)


if __name__ == "__main__":
    main()
